//! What a target can leave out: its own word, that of `defaults`, or what is built in.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderName, Uri};

use crate::config::compile::{Context, HeadersOf};
use crate::config::forms::{HeaderSetting, Integer, Named, Text};
use crate::config::problem::Span;
use crate::config::schema;
use crate::config::secret::{PEM_BYTES_MAX, Secrets, read_file};
use crate::config::spot::Spot;
use crate::config::value;
use crate::domain::pointer::Pointers;
use crate::domain::request::is_reserved;
use crate::domain::retry::RetrySchedule;
use crate::domain::signature::Signing;
use crate::domain::target::{BacklogLimit, Identity, Rate, Target, TargetTls};
use crate::domain::template::{HeaderRule, HeaderText};

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

/// As far as they are written in one place.
#[derive(Debug, Default)]
pub(super) struct Settings {
    headers: Vec<HeaderRule>,
    /// Where each of them is written.
    headers_at: Vec<Span>,
    pointers: Pointers,
    forward_headers: Option<Vec<HeaderName>>,
    timeout: Option<Duration>,
    retry: Retry,
    concurrency: Option<usize>,
    rate_limit: Option<Rate>,
    backlog_limit: Option<BacklogLimit>,
    paused: Option<bool>,
    tls: TargetTls,
}

#[derive(Debug, Default)]
struct Retry {
    first: Option<Duration>,
    max: Option<Duration>,
    keep_for: Option<Duration>,
    give_up_on: Option<Vec<u16>>,
}

/// What is written, of a target or of `defaults`.
struct Written<'a> {
    headers: &'a Named<HeaderSetting>,
    forward_headers: Option<&'a Vec<Text>>,
    timeout: Option<&'a Text>,
    retry: &'a schema::Retry,
    concurrency: Option<&'a Integer>,
    rate_limit: Option<&'a Text>,
    backlog_limit: Option<&'a Text>,
    paused: Option<bool>,
    tls: &'a schema::Tls,
}

impl Settings {
    /// Of `defaults`. `proofs` are the headers that prove something inbound.
    pub(super) fn of_defaults(
        defaults: &schema::Defaults,
        spot: Spot<'_>,
        proofs: &[HeaderName],
        context: &mut Context<'_>,
    ) -> Self {
        let schema::Defaults { headers, forward_headers, timeout, retry, .. } = defaults;
        let written = Written {
            headers,
            forward_headers: forward_headers.as_ref(),
            timeout: timeout.as_ref(),
            retry,
            concurrency: defaults.concurrency.as_ref(),
            rate_limit: defaults.rate_limit.as_ref(),
            backlog_limit: defaults.backlog_limit.as_ref(),
            paused: defaults.paused,
            tls: &defaults.tls,
        };
        Self::of(&written, spot, [&[], proofs], context)
    }

    /// Of a target: the headers that its scheme sets, and those that prove something inbound.
    pub(super) fn of_target(
        target: &schema::Target,
        spot: Spot<'_>,
        taken: [&[HeaderName]; 2],
        context: &mut Context<'_>,
    ) -> Self {
        let schema::Target { headers, forward_headers, timeout, retry, .. } = target;
        let written = Written {
            headers,
            forward_headers: forward_headers.as_ref(),
            timeout: timeout.as_ref(),
            retry,
            concurrency: target.concurrency.as_ref(),
            rate_limit: target.rate_limit.as_ref(),
            backlog_limit: target.backlog_limit.as_ref(),
            paused: target.paused,
            tls: &target.tls,
        };
        Self::of(&written, spot, taken, context)
    }

    fn of(
        written: &Written<'_>,
        spot: Spot<'_>,
        [signatures, proofs]: [&[HeaderName]; 2],
        context: &mut Context<'_>,
    ) -> Self {
        let mut pointers = Pointers::default();
        let headers_spot = spot.key("headers");
        let owner = HeadersOf::Target(signatures);
        let headers = context.headers(written.headers, headers_spot, owner, &mut pointers);
        let refused = [signatures, proofs].concat();
        Self {
            headers_at: headers
                .iter()
                .map(|rule| place(written.headers, rule, headers_spot))
                .collect(),
            headers,
            pointers,
            forward_headers: written
                .forward_headers
                .map(|list| forwarded(list, spot.key("forward_headers"), &refused, context)),
            timeout: context.duration("timeout", written.timeout, spot.key("timeout"), &TIMEOUT),
            retry: Retry::of(written.retry, spot.key("retry"), context),
            concurrency: written.concurrency.and_then(|integer| {
                context.integer("concurrency", integer, spot.key("concurrency"), &CONCURRENCY)
            }),
            rate_limit: written
                .rate_limit
                .and_then(|Text(text)| context.take(spot.key("rate_limit").at, value::rate(text))),
            backlog_limit: written.backlog_limit.and_then(|Text(text)| {
                context.take(spot.key("backlog_limit").at, value::backlog_limit(text))
            }),
            paused: written.paused,
            tls: tls(written.tls, spot.key("tls"), context),
        }
    }

    /// These, and what `defaults` say where they say nothing. Maps are filled up key by key.
    pub(super) fn over(
        self,
        defaults: &Self,
        signatures: &[HeaderName],
        context: &mut Context<'_>,
    ) -> Self {
        let Self { headers: own, mut pointers, .. } = self;
        let mut headers = Vec::with_capacity(defaults.headers.len() + own.len());
        for (rule, at) in defaults.headers.iter().zip(&defaults.headers_at) {
            if own.iter().any(|own| own.name == rule.name) {
                continue;
            }
            if signatures.contains(&rule.name) {
                let message = format!("the header \"{}\" carries a target's signature", rule.name);
                context.report.error(*at, message);
            }
            let value = match &rule.value {
                HeaderText::Template(template) => {
                    HeaderText::Template(template.moved(&defaults.pointers, &mut pointers))
                }
                fixed @ (HeaderText::Fixed(_) | HeaderText::Secret { .. }) => fixed.clone(),
            };
            headers.push(HeaderRule { name: rule.name.clone(), value });
        }
        headers.extend(own);
        Self {
            headers,
            headers_at: Vec::new(),
            pointers,
            forward_headers: self.forward_headers.or_else(|| defaults.forward_headers.clone()),
            timeout: self.timeout.or(defaults.timeout),
            retry: self.retry.over(&defaults.retry),
            concurrency: self.concurrency.or(defaults.concurrency),
            rate_limit: self.rate_limit.or(defaults.rate_limit),
            backlog_limit: self.backlog_limit.or(defaults.backlog_limit),
            paused: self.paused.or(defaults.paused),
            tls: TargetTls {
                ca: self.tls.ca.or_else(|| defaults.tls.ca.clone()),
                identity: self.tls.identity.or_else(|| defaults.tls.identity.clone()),
                server_name: self.tls.server_name.or_else(|| defaults.tls.server_name.clone()),
            },
        }
    }

    /// The target that has them.
    pub(super) fn target(
        self,
        name: &str,
        url: Uri,
        sign: Signing,
        spot: Spot<'_>,
        context: &mut Context<'_>,
    ) -> Target {
        Target {
            name: name.into(),
            sign,
            headers: self.headers,
            pointers: self.pointers,
            forward_headers: self.forward_headers.unwrap_or_default(),
            timeout: self.timeout.unwrap_or(TIMEOUT_DEFAULT),
            retry: self.retry.schedule(spot.key("retry"), context),
            concurrency: self.concurrency.unwrap_or(CONCURRENCY_DEFAULT),
            rate_limit: self.rate_limit,
            backlog_limit: self.backlog_limit.unwrap_or_default(),
            paused: self.paused.unwrap_or(false),
            // Without TLS there is nothing to set; defaults are for those that have it.
            tls: if is_https(&url) { self.tls } else { TargetTls::default() },
            url,
        }
    }
}

/// Whether a target is spoken to over TLS.
pub(super) fn is_https(url: &Uri) -> bool {
    url.scheme_str() == Some("https")
}

fn place(written: &Named<HeaderSetting>, rule: &HeaderRule, spot: Spot<'_>) -> Span {
    let is_it = |(name, _): &(String, _)| rule.name.as_str().eq_ignore_ascii_case(name);
    written.0.iter().position(is_it).map_or(spot.at, |index| spot.entry_key(index))
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
            context.report.warning(
                at,
                format!("the header \"{text}\" is never passed on as it came: take it out"),
            );
        } else if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

impl Retry {
    fn of(retry: &schema::Retry, spot: Spot<'_>, context: &mut Context<'_>) -> Self {
        let first =
            context.duration("retry.first", retry.first.as_ref(), spot.key("first"), &RETRY_WAIT);
        let max = context.duration("retry.max", retry.max.as_ref(), spot.key("max"), &RETRY_WAIT);
        let keep_for =
            context.duration("retry.for", retry.keep_for.as_ref(), spot.key("for"), &RETRY_FOR);
        let give_up_on = retry.give_up_on.as_ref().map(|list| {
            let spot = spot.key("give_up_on");
            let mut statuses: Vec<u16> = Vec::new();
            for (index, integer) in list.iter().enumerate() {
                let status = context.integer("give_up_on", integer, spot.item(index), &GIVE_UP_ON);
                statuses.extend(status.filter(|status| !statuses.contains(status)));
            }
            statuses
        });
        Self { first, max, keep_for, give_up_on }
    }

    fn over(self, defaults: &Self) -> Self {
        Self {
            first: self.first.or(defaults.first),
            max: self.max.or(defaults.max),
            keep_for: self.keep_for.or(defaults.keep_for),
            give_up_on: self.give_up_on.or_else(|| defaults.give_up_on.clone()),
        }
    }

    fn schedule(self, spot: Spot<'_>, context: &mut Context<'_>) -> RetrySchedule {
        let default = RetrySchedule::default();
        let schedule = RetrySchedule {
            first: self.first.unwrap_or(default.first),
            max: self.max.unwrap_or(default.max),
            keep_for: self.keep_for.unwrap_or(default.keep_for),
            give_up_on: self.give_up_on.unwrap_or(default.give_up_on),
        };
        if schedule.first > schedule.max {
            let at = spot.key_or("max", "first").at;
            let [first, max] = [schedule.first, schedule.max].map(value::show_duration);
            context
                .report
                .error(at, format!("retry.max ({max}) is shorter than retry.first ({first})"));
        }
        schedule
    }
}

fn tls(tls: &schema::Tls, spot: Spot<'_>, context: &mut Context<'_>) -> TargetTls {
    let schema::Tls { ca, certificate, key, server_name } = tls;
    let mut pem = |key: &str, text: Option<&Text>, label: &str| {
        let spot = spot.key(key);
        let path = context.path(text?, spot.at)?;
        if context.secrets == Secrets::Ignore {
            return None;
        }
        let bytes = match read_file(&path, PEM_BYTES_MAX, context.files) {
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
    let missing = match (certificate, key) {
        (Some(_), None) => Some(("certificate", "key")),
        (None, Some(_)) => Some(("key", "certificate")),
        _ => None,
    };
    if let Some((there, missing)) = missing {
        let at = spot.key(there).at;
        context.report.error(at, format!("\"{there}\" needs \"{missing}\" beside it"));
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
