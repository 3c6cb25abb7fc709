//! `sources`: who may post, on which path, verified how.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST};

use crate::config::compile::{Context, SOURCES_MAX};
use crate::config::forms::{Named, Text};
use crate::config::problem::Span;
use crate::config::schema;
use crate::config::spot::Spot;
use crate::config::value;
use crate::domain::client::{Network, NetworkError, Networks};
use crate::domain::limit::TIMESTAMP_TOLERANCE;
use crate::domain::proof::{Proof, RequiredHeader};
use crate::domain::request::is_hop_by_hop;
use crate::domain::signature::{Scheme, Verification};
use crate::domain::source::{DuplicateWindows, Source, SourcePath};

/// Required headers of one source.
const REQUIRED_HEADERS_MAX: usize = 16;

/// Networks of one source: they are looked at one after the other.
const NETWORKS_MAX: usize = 256;

/// Subjects of one source.
const SUBJECTS_MAX: usize = 256;

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
    let mut paths: Vec<(&str, &str, Span)> = Vec::with_capacity(sources.0.len());
    let mut compiled = Vec::with_capacity(sources.0.len());
    for (index, (name, source)) in sources.0.iter().enumerate() {
        let key_at = spot.entry_key(index);
        context.take(key_at, value::name(name));
        if name == NONE {
            let message = format!("\"{NONE}\" can't be a source's name: it means no source");
            context.report.error(key_at, message);
        }
        let path_at = spot.entry(index).key("path").at;
        // More sources than there may be are compared with the first ones only.
        let others = paths.get(..paths.len().min(SOURCES_MAX)).unwrap_or_default();
        own_path(&source.path.0, others, path_at, context);
        paths.push((&source.path.0, name, path_at));
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
    let verify = proof(source, spot, context);
    let activity = source.activity.as_ref().and_then(|Text(text)| {
        context.take(spot.key("activity").at, value::activity(text))?;
        Some(text.as_str().into())
    });
    let body_limit = body_limit(source.body_limit.as_ref(), spot.key("body_limit"), context);
    let allow_from = source.allow_from.as_deref();
    let allow_from = allow_from.map(|list| networks(list, spot.key("allow_from"), context));
    let client_certificate = source.client_certificate.as_deref();
    let client_certificate =
        client_certificate.map(|list| subjects(list, spot.key("client_certificate"), context));
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
        path: SourcePath::new(&source.path.0),
        verify: verify?,
        activity,
        body_bytes_max: usize::try_from(body_limit).unwrap_or(usize::MAX),
        allow_from,
        client_certificate,
        rate_limit,
        duplicates,
        silence_after: silence_after.unwrap_or(SILENCE_AFTER_DEFAULT),
    })
}

/// That no request could be of two sources.
fn own_path(path: &str, others: &[(&str, &str, Span)], at: Span, context: &mut Context<'_>) {
    for (other_path, other, other_at) in others {
        if *other_path == path {
            let message = format!(
                "source \"{other}\" in line {} has this path already: each has its own",
                other_at.line()
            );
            context.report.error(at, message);
        } else if overlap(path, other_path) {
            let line = other_at.line();
            let exact = |path: &str| !path.contains(SourcePath::ACTIVITY);
            if exact(path) || exact(other_path) {
                let message = format!(
                    "this path and that of source \"{other}\" in line {line} overlap: the one \
                     without {} goes first",
                    SourcePath::ACTIVITY
                );
                context.report.warning(at, message);
            } else {
                let message = format!(
                    "source \"{other}\" in line {line} takes requests to this path too: which one \
                     is meant?"
                );
                context.report.error(at, message);
            }
        }
    }
}

/// Whether some request's path is both, by a placeholder.
fn overlap(a: &str, b: &str) -> bool {
    if !a.contains(SourcePath::ACTIVITY) && !b.contains(SourcePath::ACTIVITY) {
        return false;
    }
    let alike = |(a, b): (&str, &str)| {
        let named = |segment: &str| segment == SourcePath::ACTIVITY;
        a == b || (named(a) && !b.is_empty()) || (named(b) && !a.is_empty())
    };
    let (a, b) = (a.split('/'), b.split('/'));
    a.clone().count() == b.clone().count() && a.zip(b).all(alike)
}

/// What its requests must bring: a signature, required headers, or both; nothing beside a certificate.
fn proof(source: &schema::Source, spot: Spot<'_>, context: &mut Context<'_>) -> Option<Proof> {
    let verify_spot = spot.key("verify");
    let unsigned = source.verify.scheme.0 == "none";
    let signature = if unsigned {
        nothing_beside(&source.verify, verify_spot, context);
        None
    } else {
        Some(verification(&source.verify, verify_spot, context))
    };
    let headers = required_headers(source, spot.key("require_headers"), context);
    let is_shown = source.client_certificate.is_some();
    if unsigned && source.require_headers.0.is_empty() && !is_shown {
        context.report.error(
            verify_spot.key("scheme").at,
            "scheme none believes everybody: it needs \"require_headers\" or \"client_certificate\" \
             beside it",
        );
    }
    let signature = match signature {
        Some(signature) => Some(signature?),
        None => None,
    };
    if is_shown {
        Some(Proof::beside_certificate(signature, headers))
    } else {
        Proof::new(signature, headers)
    }
}

/// That `scheme: none` has nothing that only a signature has.
pub(super) fn nothing_beside(scheme: &schema::Scheme, spot: Spot<'_>, context: &mut Context<'_>) {
    for (key, is_there) in
        [("secrets", scheme.secrets.is_some()), ("header", scheme.header.is_some())]
    {
        if is_there {
            let message = format!("scheme none takes no \"{key}\"");
            context.report.error(spot.key(key).at, message);
        }
    }
}

fn required_headers(
    source: &schema::Source,
    spot: Spot<'_>,
    context: &mut Context<'_>,
) -> Vec<RequiredHeader> {
    let mut headers: Vec<RequiredHeader> = Vec::new();
    if source.require_headers.0.len() > REQUIRED_HEADERS_MAX {
        context.report.error(spot.at, format!("more than {REQUIRED_HEADERS_MAX} headers"));
    }
    let entries = source.require_headers.0.iter().enumerate().take(REQUIRED_HEADERS_MAX);
    for (index, (text, secret)) in entries {
        let key_at = spot.entry_key(index);
        let name = context.take(key_at, value::header_name(text));
        let secret = context.secret(secret, spot.entry(index));
        let (Some(name), Some(secret)) = (name, secret) else { continue };
        if headers.iter().any(|known| known.name == name) {
            context.report.error(key_at, format!("the header \"{text}\" is there already"));
        } else if is_hop_by_hop(&name) || [HOST, CONTENT_LENGTH].contains(&name) {
            let message =
                format!("the header \"{text}\" belongs to the connection: it proves nothing");
            context.report.error(key_at, message);
        } else {
            headers.push(RequiredHeader { name, secret });
        }
    }
    headers
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
                "standard-webhooks" | "github" => {
                    format!(
                        "scheme \"{other}\" only signs what targets get: a source is verified by \
                         aryeo or aryeo-timestamped"
                    )
                }
                _ if !value::is_like_scheme(other) => {
                    "unknown scheme: use aryeo or aryeo-timestamped".to_owned()
                }
                _ => format!("unknown scheme \"{other}\": use aryeo or aryeo-timestamped"),
            };
            let reported = context.report.error(spot.key("scheme").at, message);
            reported.suggest(other, ["aryeo", "aryeo-timestamped", "none"]);
            return None;
        }
    };
    let header = context.signature_header(scheme, verify.header.as_ref(), spot);
    let secrets = context.secrets(scheme, verify.secrets.as_deref(), spot);
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

fn networks(list: &[Text], spot: Spot<'_>, context: &mut Context<'_>) -> Networks {
    if list.is_empty() {
        let reported = context.report.error(spot.at, "an empty allow_from lets nobody in");
        reported.help("leave it out to let everybody in");
    } else if list.len() > NETWORKS_MAX {
        context.report.error(spot.at, format!("more than {NETWORKS_MAX} networks"));
    }
    let listed = list.iter().take(NETWORKS_MAX).enumerate();
    let networks = listed.filter_map(|(index, Text(text))| {
        let network = text.parse::<Network>();
        if let Err(error) = network {
            let message = format!("\"{text}\" {error}");
            let reported = context.report.error(spot.item(index).at, message);
            if let NetworkError::HostBits(meant) = error {
                reported.help(format!("did you mean \"{meant}\"?"));
            }
        }
        network.ok()
    });
    networks.collect()
}

fn subjects(list: &[Text], spot: Spot<'_>, context: &mut Context<'_>) -> Box<[Box<str>]> {
    if list.is_empty() {
        let reported = context.report.error(spot.at, "an empty client_certificate lets nobody in");
        reported.help("leave it out where no certificate is wanted");
    } else if list.len() > SUBJECTS_MAX {
        context.report.error(spot.at, format!("more than {SUBJECTS_MAX} subjects"));
    }
    for (index, Text(text)) in list.iter().enumerate() {
        if text.trim() != text || text.is_empty() {
            let message = "a subject is compared letter by letter: no blanks around it";
            context.report.error(spot.item(index).at, message);
        }
    }
    list.iter().take(SUBJECTS_MAX).map(|Text(text)| text.as_str().into()).collect()
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
