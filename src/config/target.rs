//! `targets`: where deliveries go, signed how, with which patience.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderName, Uri};

use crate::config::compile::{Context, HeadersOf, Spot};
use crate::config::schema::{self, Named, Text};
use crate::config::secret::{PEM_BYTES_MAX, read_file};
use crate::config::value;
use crate::domain::request::is_reserved;
use crate::domain::retry::RetrySchedule;
use crate::domain::signature::{Scheme, Signing};
use crate::domain::target::{Identity, Target, TargetTls};

/// Not a target's name: tests of the rules expect it of webhooks that reach none.
const UNROUTED: &str = "unrouted";

/// No answer takes longer that is worth waiting for.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(600);

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The waits between attempts.
const RETRY_WAIT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// How long a delivery is tried.
const RETRY_FOR: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(90 * 86_400);

/// What is an answer at all, and no success.
const GIVE_UP_ON: RangeInclusive<i64> = 300..=599;

/// More at the same time is an attack on the target.
const CONCURRENCY: RangeInclusive<i64> = 1..=1000;

const CONCURRENCY_DEFAULT: usize = 16;

/// Names in one list of headers.
const FORWARD_HEADERS_MAX: usize = 64;

/// Compiles all targets. `signatures` are the headers that carry signatures inbound.
pub(super) fn compile(
    targets: &Named<schema::Target>,
    spot: Spot<'_>,
    signatures: &[HeaderName],
    context: &mut Context<'_>,
) -> Vec<Target> {
    let mut compiled = Vec::with_capacity(targets.0.len());
    for (index, (name, target)) in targets.0.iter().enumerate() {
        let key_at = spot.entry_key(index);
        context.take(key_at, value::name(name));
        if name == UNROUTED {
            let message = format!("\"{UNROUTED}\" can't be a target's name: it means no target");
            context.report.error(key_at, message);
        }
        compiled.extend(one(name, target, spot.entry(index), signatures, context));
    }
    compiled
}

fn one(
    name: &str,
    target: &schema::Target,
    spot: Spot<'_>,
    signatures: &[HeaderName],
    context: &mut Context<'_>,
) -> Option<Target> {
    let url = context.take(spot.key("url").at, value::url(&target.url.0));
    let sign = signing(&target.sign, spot.key("sign"), context);
    let taken = sign.as_ref().map(Signing::header_names).unwrap_or_default();
    let headers = context.headers(&target.headers, spot.key("headers"), &taken, HeadersOf::Target);
    let refused = [taken.as_slice(), signatures].concat();
    let forward_headers =
        forwarded(&target.forward_headers, spot.key("forward_headers"), &refused, context);
    let timeout =
        context.duration("timeout", target.timeout.as_ref(), spot.key("timeout"), &TIMEOUT);
    let retry = retry(&target.retry, spot.key("retry"), context);
    let concurrency = target.concurrency.as_ref().and_then(|integer| {
        context.integer("concurrency", integer, spot.key("concurrency"), &CONCURRENCY)
    });
    let rate_limit = target
        .rate_limit
        .as_ref()
        .and_then(|Text(text)| context.take(spot.key("rate_limit").at, value::rate(text)));
    let tls = tls(&target.tls, spot.key("tls"), url.as_ref(), context);
    Some(Target {
        name: name.into(),
        url: url?,
        sign: sign?,
        headers,
        forward_headers,
        timeout: timeout.unwrap_or(TIMEOUT_DEFAULT),
        retry,
        concurrency: concurrency.unwrap_or(CONCURRENCY_DEFAULT),
        rate_limit,
        tls,
    })
}

fn signing(sign: &schema::Scheme, spot: Spot<'_>, context: &mut Context<'_>) -> Option<Signing> {
    let scheme = match &*sign.scheme.0 {
        "aryeo" => Scheme::Aryeo,
        "aryeo-timestamped" => Scheme::AryeoTimestamped,
        "none" => {
            for (key, is_there) in
                [("secrets", sign.secrets.is_some()), ("header", sign.header.is_some())]
            {
                if is_there {
                    let message = format!("scheme none takes no \"{key}\"");
                    context.report.error(spot.key(key).at, message);
                }
            }
            return Some(Signing::None);
        }
        other => {
            let message = match other {
                "standard-webhooks" | "github" => {
                    format!("scheme \"{other}\" is not supported by this version")
                }
                _ => format!("unknown scheme \"{other}\": use aryeo, aryeo-timestamped or none"),
            };
            context.report.error(spot.key("scheme").at, message);
            return None;
        }
    };
    let header = context.signature_header(scheme, sign.header.as_ref(), spot);
    // The others are accepted by the target already, or still: the first signs.
    let secret = context.secrets(sign.secrets.as_deref(), spot).into_iter().next();
    Some(Signing::With { scheme, secret: secret?, header: header? })
}

fn forwarded(
    list: &[Text],
    spot: Spot<'_>,
    refused: &[HeaderName],
    context: &mut Context<'_>,
) -> Vec<HeaderName> {
    if list.len() > FORWARD_HEADERS_MAX {
        context.report.error(spot.at, format!("more than {FORWARD_HEADERS_MAX} headers"));
    }
    let mut names: Vec<HeaderName> = Vec::new();
    for (index, Text(text)) in list.iter().enumerate().take(FORWARD_HEADERS_MAX) {
        let at = spot.item(index).at;
        let Some(name) = context.take(at, value::header_name(text)) else { continue };
        if is_reserved(&name) || refused.contains(&name) || [AUTHORIZATION, COOKIE].contains(&name)
        {
            context
                .report
                .warning(at, format!("the header \"{text}\" is never passed on as it came"));
        } else if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn retry(retry: &schema::Retry, spot: Spot<'_>, context: &mut Context<'_>) -> RetrySchedule {
    let default = RetrySchedule::default();
    let first =
        context.duration("retry.first", retry.first.as_ref(), spot.key("first"), &RETRY_WAIT);
    let max = context.duration("retry.max", retry.max.as_ref(), spot.key("max"), &RETRY_WAIT);
    let keep_for =
        context.duration("retry.for", retry.keep_for.as_ref(), spot.key("for"), &RETRY_FOR);
    let (first, max) = (first.unwrap_or(default.first), max.unwrap_or(default.max));
    if first > max {
        let at = spot.key(if retry.max.is_some() { "max" } else { "first" }).at;
        let [first, max] = [first, max].map(value::show_duration);
        context
            .report
            .error(at, format!("retry.max ({max}) is shorter than retry.first ({first})"));
    }
    let give_up_on = match &retry.give_up_on {
        None => default.give_up_on,
        Some(list) => {
            let spot = spot.key("give_up_on");
            let mut statuses: Vec<u16> = Vec::new();
            for (index, integer) in list.iter().enumerate() {
                let status = context.integer("give_up_on", integer, spot.item(index), &GIVE_UP_ON);
                statuses.extend(status.filter(|status| !statuses.contains(status)));
            }
            statuses
        }
    };
    RetrySchedule { first, max, keep_for: keep_for.unwrap_or(default.keep_for), give_up_on }
}

fn tls(
    tls: &schema::Tls,
    spot: Spot<'_>,
    url: Option<&Uri>,
    context: &mut Context<'_>,
) -> TargetTls {
    let schema::Tls { ca, certificate, key, server_name } = tls;
    let asks = [ca, certificate, key, server_name].iter().any(|setting| setting.is_some());
    if asks && url.is_some_and(|url| url.scheme_str() != Some("https")) {
        context.report.error(spot.at, "\"tls\" needs a url that begins with https://");
    }
    let mut pem = |key: &str, text: Option<&Text>, label: &str| {
        let spot = spot.key(key);
        let path = context.path(text?, spot.at)?;
        let bytes = match read_file(&path, PEM_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(message) => {
                context.unresolved(spot.at, message);
                return None;
            }
        };
        let text = String::from_utf8_lossy(&bytes);
        if !text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(label)) {
            let message = format!("{} has no {label} in PEM form", path.display());
            context.unresolved(spot.at, message);
            return None;
        }
        Some(Bytes::copy_from_slice(&bytes))
    };
    let authorities = pem("ca", ca.as_ref(), "CERTIFICATE");
    let chain = pem("certificate", certificate.as_ref(), "CERTIFICATE");
    let private = pem("key", key.as_ref(), "PRIVATE KEY");
    if certificate.is_some() != key.is_some() {
        context.report.error(spot.at, "\"certificate\" and \"key\" go together");
    }
    if let Some(Text(name)) = server_name {
        context.take(spot.key("server_name").at, value::server_name(name));
    }
    TargetTls {
        ca: authorities,
        identity: chain.zip(private).map(|(certificate, key)| Identity { certificate, key }),
        server_name: server_name.as_ref().map(|Text(name)| name.as_str().into()),
    }
}
