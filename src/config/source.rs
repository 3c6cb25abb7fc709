//! `sources`: who may post, on which path, verified how.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::compile::{Context, Spot};
use crate::config::problem::Position;
use crate::config::schema::{self, Named, Text};
use crate::config::value;
use crate::domain::limit::TIMESTAMP_TOLERANCE;
use crate::domain::signature::{Scheme, Verification};
use crate::domain::source::{DuplicateWindows, Source};

/// Not a source's name: metrics and logs show it of requests that reach none.
const NONE: &str = "none";

const BODY_LIMIT_DEFAULT: u64 = 2 * 1024 * 1024;

/// Smaller ones refuse honest webhooks, larger ones are no webhooks.
const BODY_LIMIT: RangeInclusive<u64> = 1..=32 * 1024 * 1024;

/// A window of no time would deliver the sender's own retries.
const DUPLICATES: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(30 * 86_400);

/// The sender tries again after 10 s and 100 s more, each with a time-out of 3 s.
const SENDER_RETRIES: Duration = Duration::from_secs(120);

const SILENCE_AFTER: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 86_400);

const SILENCE_AFTER_DEFAULT: Duration = Duration::from_secs(86_400);

/// Compiles all sources.
pub(super) fn compile(
    sources: &Named<schema::Source>,
    spot: Spot<'_>,
    context: &mut Context<'_>,
) -> Vec<Source> {
    let mut paths: HashMap<&str, (&str, Position)> = HashMap::new();
    let mut compiled = Vec::with_capacity(sources.0.len());
    for (index, (name, source)) in sources.0.iter().enumerate() {
        let key_at = spot.entry_key(index);
        context.take(key_at, value::name(name));
        if name == NONE {
            let message = format!("\"{NONE}\" can't be a source's name: it means no source");
            context.report.error(key_at, message);
        }
        let path_at = spot.entry(index).key("path").at;
        match paths.get(&*source.path.0) {
            Some((other, at)) => context.report.error(
                path_at,
                format!("source \"{other}\" has this path already, in line {}", at.line),
            ),
            None => _ = paths.insert(&source.path.0, (name, path_at)),
        }
        compiled.extend(one(name, source, spot.entry(index), context));
    }
    compiled
}

fn one(
    name: &str,
    source: &schema::Source,
    spot: Spot<'_>,
    context: &mut Context<'_>,
) -> Option<Source> {
    let path = context.take(spot.key("path").at, value::path(&source.path.0));
    let verify = verification(&source.verify, spot.key("verify"), context);
    let body_limit = body_limit(source.body_limit.as_ref(), spot.key("body_limit"), context);
    let rate_limit = source
        .rate_limit
        .as_ref()
        .and_then(|Text(text)| context.take(spot.key("rate_limit").at, value::rate(text)));
    let duplicates = duplicates(&source.duplicates, spot.key("duplicates"), context);
    let silence_after = context.duration(
        "silence_after",
        source.silence_after.as_ref(),
        spot.key("silence_after"),
        &SILENCE_AFTER,
    );
    path?;
    Some(Source {
        name: name.into(),
        path: source.path.0.as_str().into(),
        verify: verify?,
        body_bytes_max: usize::try_from(body_limit).unwrap_or(usize::MAX),
        rate_limit,
        duplicates,
        silence_after: silence_after.unwrap_or(SILENCE_AFTER_DEFAULT),
    })
}

fn verification(
    verify: &schema::Scheme,
    spot: Spot<'_>,
    context: &mut Context<'_>,
) -> Option<Verification> {
    let scheme = match &*verify.scheme.0 {
        "aryeo" => Scheme::Aryeo,
        "aryeo-timestamped" => Scheme::AryeoTimestamped,
        other => {
            let message = match other {
                "none" => {
                    "a source without a signature is not supported by this version".to_owned()
                }
                "standard-webhooks" | "github" => {
                    format!(
                        "a source can't be verified by \"{other}\": use aryeo or aryeo-timestamped"
                    )
                }
                _ => format!("unknown scheme \"{other}\": use aryeo or aryeo-timestamped"),
            };
            context.report.error(spot.key("scheme").at, message);
            return None;
        }
    };
    let header = context.signature_header(scheme, verify.header.as_ref(), spot);
    let secrets = context.secrets(verify.secrets.as_deref(), spot);
    if secrets.is_empty() {
        return None;
    }
    Some(Verification { scheme, secrets, header: header?, tolerance: TIMESTAMP_TOLERANCE })
}

fn body_limit(text: Option<&Text>, spot: Spot<'_>, context: &mut Context<'_>) -> u64 {
    let Some(Text(text)) = text else { return BODY_LIMIT_DEFAULT };
    let Some(bytes) = context.take(spot.at, value::size(text)) else { return BODY_LIMIT_DEFAULT };
    if !BODY_LIMIT.contains(&bytes) {
        let [from, to, found] =
            [*BODY_LIMIT.start(), *BODY_LIMIT.end(), bytes].map(value::show_size);
        let message = format!("body_limit must be between {from} and {to}, not {found}");
        context.report.error(spot.at, message);
    }
    bytes
}

fn duplicates(
    duplicates: &schema::Duplicates,
    spot: Spot<'_>,
    context: &mut Context<'_>,
) -> DuplicateWindows {
    let default = DuplicateWindows::default();
    let mut window = |key: &str, text: Option<&Text>, default: Duration| {
        let spot = spot.key(key);
        let window = context.duration(key, text, spot, &DUPLICATES).unwrap_or(default);
        if window < SENDER_RETRIES {
            let message = format!(
                "{key} is shorter than {}, so that the sender's own retries are delivered again",
                value::show_duration(SENDER_RETRIES)
            );
            context.report.warning(spot.at, message);
        }
        window
    };
    DuplicateWindows {
        activities: window("activities", duplicates.activities.as_ref(), default.activities),
        bare: window("bare", duplicates.bare.as_ref(), default.bare),
    }
}
