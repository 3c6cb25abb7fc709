//! From what is written to what it means: the routing table, or every reason why there is none.
//!
//! Names, references, ranges and secrets are checked here. A problem is reported and the work goes
//! on with what can be used, so that one run finds them all.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use zeroize::Zeroizing;

use crate::config::file::FileRead;
use crate::config::forms::{HeaderSetting, Integer, Named, OneOrMany, Text};
use crate::config::lint::Lint;
use crate::config::node::Node;
use crate::config::problem::{Report, Span};
use crate::config::schema::{self, File};
use crate::config::secret::{self, Environment, SECRET_BYTES_MAX, Secrets};
use crate::config::spot::Spot;
use crate::config::value::{self, Parsed};
use crate::config::{lint, route, source, suggest, target};
use crate::domain::limit::DELIVERIES_PER_WEBHOOK_MAX;
use crate::domain::pattern::{Pattern, Patterns};
use crate::domain::pointer::Pointers;
use crate::domain::request::is_reserved;
use crate::domain::route::{RoutingTable, Rules, Unrouted};
use crate::domain::signature::{Scheme, Secret};
use crate::domain::template::{HeaderRule, HeaderText, placeholder_names};

/// A rotation needs two.
const SECRETS_MAX: usize = 16;

/// Headers of one target or route.
const HEADERS_MAX: usize = 64;

/// Names or patterns in one list.
const PATTERNS_MAX: usize = 1000;

/// Every source is a label of a dozen metrics.
pub(super) const SOURCES_MAX: usize = 1000;

/// What compiling needs besides the file.
pub(super) struct Context<'a> {
    pub(super) report: &'a mut Report,
    pub(super) env: &'a dyn Environment,
    pub(super) secrets: Secrets,
    /// Relative paths are relative to it.
    pub(super) folder: &'a Path,
    /// What was read so far.
    pub(super) files: &'a mut Vec<FileRead>,
    pub(super) lint: Lint,
}

/// Compiles a file. `original` still has what was taken out of `pruned` because it is wrong.
///
/// The table is of use only if the report has no error.
pub(super) fn compile(
    file: &File,
    original: &Node,
    pruned: &Node,
    sha256: [u8; 32],
    context: &mut Context<'_>,
) -> RoutingTable {
    let root = Spot::new(pruned);
    for (key, names) in [("sources", SOURCES_MAX), ("targets", DELIVERIES_PER_WEBHOOK_MAX)] {
        context.count(original, key, names);
    }
    context.count(original, "routes", usize::MAX);
    context.lint.learn(&file.sources);
    let sources = source::compile(&file.sources, root.key("sources"), context);
    let proofs: Vec<_> =
        sources.iter().flat_map(|source| source.verify.header_names()).cloned().collect();
    let targets = target::compile(file, root, &proofs, context);
    let known = route::Known {
        sources: names(original, "sources"),
        target_names: names(original, "targets"),
        targets: targets.iter().map(|target| (&*target.name, target)).collect(),
    };
    let mut pointers = Pointers::default();
    let routes = route::compile(&file.routes, root.key("routes"), &known, &mut pointers, context);
    let source_names: Vec<_> = known.sources.iter().copied().collect();
    lint::unreachable(&routes, &source_names, root.key("routes"), context);
    lint::unused_targets(original, context);
    lint::unused_defaults(pruned, original, context);
    let unrouted = match file.unrouted.as_ref().map(|text| &*text.0) {
        None | Some("keep") => Unrouted::Keep,
        Some("drop") => Unrouted::Drop,
        Some(other) => {
            let message = format!("unrouted: expected keep or drop, found \"{other}\"");
            let reported = context.report.error(root.key("unrouted").at, message);
            reported.suggest(other, ["keep", "drop"]);
            Unrouted::Keep
        }
    };
    RoutingTable::new(Rules { sources, targets, routes, pointers, unrouted, sha256 })
}

fn names<'a>(original: &'a Node, key: &str) -> HashSet<&'a str> {
    let entries = original.get(key).map(|entry| entry.value.entries()).unwrap_or_default();
    entries.iter().map(|entry| &*entry.key).collect()
}

impl Context<'_> {
    /// What was parsed, or its problem reported.
    pub(super) fn take<T>(&mut self, at: Span, parsed: Parsed<T>) -> Option<T> {
        parsed.map_err(|message| self.report.error(at, message)).ok()
    }

    fn count(&mut self, original: &Node, key: &str, max: usize) {
        let Some(entry) = original.get(key) else { return };
        let count = entry.value.entries().len() + entry.value.items().len();
        if count == 0 {
            self.report
                .error(entry.key_at, format!("\"{key}\" is empty: there must be at least one"));
        } else if count > max {
            self.report.error(entry.key_at, format!("more than {max} {key}"));
        }
    }

    /// A duration within bounds.
    pub(super) fn duration(
        &mut self,
        what: &str,
        text: Option<&Text>,
        spot: Spot<'_>,
        bounds: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let duration = self.take(spot.at, value::duration(&text?.0))?;
        if bounds.contains(&duration) {
            return Some(duration);
        }
        let [from, to, found] =
            [*bounds.start(), *bounds.end(), duration].map(value::show_duration);
        self.report.error(spot.at, format!("{what} must be between {from} and {to}, not {found}"));
        None
    }

    /// A number within bounds.
    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        what: &str,
        integer: &Integer,
        spot: Spot<'_>,
        bounds: &RangeInclusive<i64>,
    ) -> Option<T> {
        let number = integer.0;
        if bounds.contains(&number)
            && let Ok(number) = T::try_from(number)
        {
            return Some(number);
        }
        let (from, to) = (bounds.start(), bounds.end());
        self.report.error(spot.at, format!("{what} must be between {from} and {to}, not {number}"));
        None
    }

    /// The path of a file, relative to the routes file or among a service's credentials.
    pub(super) fn path(&mut self, text: &Text, at: Span) -> Option<PathBuf> {
        if text.0.is_empty() {
            self.report.error(at, "the path of the file is empty");
            return None;
        }
        Some(secret::location(&text.0, self.folder, self.env))
    }

    /// Something outside of the file that could not be had.
    pub(super) fn unresolved(&mut self, at: Span, message: String) {
        match self.secrets {
            Secrets::Resolve => drop(self.report.error(at, message)),
            Secrets::Warn => drop(self.report.warning(at, message)),
            Secrets::Ignore => {}
        }
    }

    /// The secrets of `verify` or `sign`; at least one.
    pub(super) fn secrets(
        &mut self,
        scheme: Scheme,
        list: Option<&[schema::Secret]>,
        spot: Spot<'_>,
    ) -> Vec<Secret> {
        let secrets_spot = spot.key("secrets");
        let Some(list) = list else {
            // What is left of a list in which nothing was good has been reported item by item.
            if !self.report.has_failed_in(spot.at) {
                self.report.error(
                    secrets_spot.at,
                    "this scheme needs \"secrets\", as in secrets: [{env: NAME}]",
                );
            }
            return Vec::new();
        };
        if list.is_empty() || list.len() > SECRETS_MAX {
            let message = format!("\"secrets\" takes between 1 and {SECRETS_MAX}");
            self.report.error(secrets_spot.at, message);
            return Vec::new();
        }
        let numbered = list.iter().enumerate();
        let found: Vec<_> = numbered
            .filter_map(|(index, secret)| {
                let spot = secrets_spot.item(index);
                Some((self.secret_of(scheme, secret, spot)?, spot.at))
            })
            .collect();
        lint::key_length(scheme, &found, self);
        lint::secrets(&found, self);
        found.into_iter().map(|(secret, _)| secret).collect()
    }

    /// One secret, which is the bytes themselves.
    pub(super) fn secret(&mut self, secret: &schema::Secret, spot: Spot<'_>) -> Option<Secret> {
        match self.found(secret, spot)? {
            Found::Bytes(label, bytes) => Secret::new(label, &bytes),
            Found::Nothing(stand_in) => Some(stand_in),
        }
    }

    /// One secret, written as `scheme` has it.
    fn secret_of(
        &mut self,
        scheme: Scheme,
        secret: &schema::Secret,
        spot: Spot<'_>,
    ) -> Option<Secret> {
        match self.found(secret, spot)? {
            Found::Bytes(label, bytes) => {
                let spot = match &secret.value {
                    Some(_) => spot.key("value"),
                    None => spot.key_or("env", "file"),
                };
                let written = Secret::written(scheme, label, &bytes);
                self.take(spot.at, written.map_err(|error| error.to_string()))
            }
            Found::Nothing(stand_in) => Some(stand_in),
        }
    }

    fn found(&mut self, secret: &schema::Secret, spot: Spot<'_>) -> Option<Found> {
        let (label, bytes) = match (&secret.env, &secret.file, &secret.value) {
            (Some(name), None, None) => self.variable(name),
            (None, Some(path), None) => self.file(path, spot.key("file").at)?,
            (None, None, Some(Text(text))) => {
                let at = spot.key("value").at;
                if text.is_empty() || text.len() > SECRET_BYTES_MAX {
                    let message = format!("a secret has between 1 and {SECRET_BYTES_MAX} bytes");
                    self.report.error(at, message);
                    return None;
                }
                self.report.warning(
                    at,
                    "a secret in the file itself: {env: NAME} or {file: PATH} hide it",
                );
                ("value".to_owned(), Ok(Zeroizing::new(text.clone().into_bytes())))
            }
            _ => {
                self.report.error(
                    spot.at,
                    "a secret is one of {env: NAME}, {file: PATH} or {value: TEXT}",
                );
                return None;
            }
        };
        match bytes {
            Ok(bytes) => Some(Found::Bytes(label, bytes)),
            Err(message) => {
                self.unresolved(spot.key_or("env", "file").at, message);
                if self.secrets == Secrets::Resolve {
                    return None;
                }
                let mut stand_in = Zeroizing::new([0; 32]);
                getrandom::fill(stand_in.as_mut_slice()).ok()?;
                Secret::new(label, stand_in.as_slice()).map(Found::Nothing)
            }
        }
    }

    /// The label of a variable and what is in it.
    fn variable(&self, Text(name): &Text) -> (String, Parsed<Zeroizing<Vec<u8>>>) {
        let bytes = match self.secrets {
            Secrets::Resolve | Secrets::Warn => secret::from_env(self.env, name),
            Secrets::Ignore => Err(String::new()),
        };
        (format!("env:{name}"), bytes)
    }

    /// The label of a secret file and what is in it.
    fn file(&mut self, text: &Text, at: Span) -> Option<(String, Parsed<Zeroizing<Vec<u8>>>)> {
        let path = self.path(text, at)?;
        let bytes = match self.secrets {
            Secrets::Resolve | Secrets::Warn => secret::from_file_remembered(&path, self.files),
            Secrets::Ignore => Err(String::new()),
        };
        Some((format!("file:{}", text.0), bytes))
    }

    /// The header that carries a signature.
    pub(super) fn signature_header(
        &mut self,
        scheme: Scheme,
        text: Option<&Text>,
        spot: Spot<'_>,
    ) -> Option<HeaderName> {
        let Some(text) = text else { return Some(scheme.header()) };
        let at = spot.key("header").at;
        let name = self.take(at, value::header_name(&text.0))?;
        if is_reserved(&name) || scheme.beside().contains(&name) {
            self.report.error(at, format!("the header \"{}\" can't carry a signature", text.0));
            return None;
        }
        Some(name)
    }

    /// The operator's headers. What they point at is added to `pointers`.
    pub(super) fn headers(
        &mut self,
        settings: &Named<HeaderSetting>,
        spot: Spot<'_>,
        owner: HeadersOf<'_>,
        pointers: &mut Pointers,
    ) -> Vec<HeaderRule> {
        if settings.0.len() > HEADERS_MAX {
            self.report.error(spot.at, format!("more than {HEADERS_MAX} headers"));
        }
        let mut headers: Vec<HeaderRule> = Vec::new();
        for (index, (text, setting)) in settings.0.iter().enumerate().take(HEADERS_MAX) {
            let (key_at, spot) = (spot.entry_key(index), spot.entry(index));
            let name = self.take(key_at, value::header_name(text));
            let value = match (setting, owner) {
                (HeaderSetting::Text(text), _) => self.header_text(text, spot, pointers),
                (HeaderSetting::Secret(secret), HeadersOf::Target(_)) => {
                    self.header_secret(secret, spot)
                }
                (HeaderSetting::Secret(_), HeadersOf::Route(_)) => {
                    self.report.error(
                        spot.at,
                        "a route's headers are stored with its deliveries and can't be secret: \
                         use the target's",
                    );
                    None
                }
            };
            let Some(name) = name else { continue };
            if is_reserved(&name) || owner.signatures().contains(&name) {
                self.report.error(
                    key_at,
                    format!("the header \"{text}\" is set by the relay: take it out"),
                );
            } else if headers.iter().any(|known| known.name == name) {
                self.report.error(key_at, format!("the header \"{text}\" is there already"));
            } else if let Some(value) = value {
                headers.push(HeaderRule { name, value });
            }
        }
        headers
    }

    fn header_text(
        &mut self,
        text: &str,
        spot: Spot<'_>,
        pointers: &mut Pointers,
    ) -> Option<HeaderText> {
        match value::header_text(text, pointers) {
            Ok(text) => Some(text),
            Err(error) => {
                let found = text.get(error.at.clone()).unwrap_or_default();
                let name = found.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
                let meant = name.and_then(|name| suggest::nearest(name, placeholder_names()));
                let reported = self.report.error(spot.part(&error.at), error.message);
                if let Some(meant) = meant {
                    reported.help(format!("did you mean {{{meant}}}?"));
                }
                None
            }
        }
    }

    fn header_secret(
        &mut self,
        header: &schema::HeaderSecret,
        spot: Spot<'_>,
    ) -> Option<HeaderText> {
        let (label, bytes) = match (&header.env, &header.file) {
            (Some(name), None) => self.variable(name),
            (None, Some(path)) => self.file(path, spot.key("file").at)?,
            _ => {
                let message = "a header's value is text or one of {env: NAME} and {file: PATH}";
                self.report.error(spot.at, message);
                return None;
            }
        };
        let bytes = match bytes {
            Err(_) if self.secrets == Secrets::Ignore => Zeroizing::default(),
            bytes => bytes
                .map_err(|message| self.unresolved(spot.key_or("env", "file").at, message))
                .ok()?,
        };
        let Ok(text) = std::str::from_utf8(&bytes) else {
            self.report.error(spot.at, "a header's value has only printable ASCII characters");
            return None;
        };
        let prefix = header.prefix.as_ref().map_or("", |Text(prefix)| prefix);
        let whole = Zeroizing::new(format!("{prefix}{text}"));
        let mut value = self.take(spot.at, value::header_value(&whole))?;
        value.set_sensitive(true);
        Some(HeaderText::Secret { label: label.into(), value, begins: prefix.len() })
    }

    /// A name or a list of names and patterns.
    pub(super) fn patterns(
        &mut self,
        what: &str,
        list: Option<&OneOrMany>,
        spot: Spot<'_>,
    ) -> Option<Patterns> {
        let list = listed(list?, spot);
        if list.is_empty() || list.len() > PATTERNS_MAX {
            let message = format!(
                "\"{what}\" takes between 1 and {PATTERNS_MAX} names; leave it out for any"
            );
            self.report.error(spot.at, message);
            return None;
        }
        let good = list.iter().filter(|(text, at)| self.take(*at, value::pattern(text)).is_some());
        if good.count() == list.len() {
            lint::names(what, &list, self);
        }
        Some(Patterns::new(list.iter().map(|(text, _)| text)))
    }

    /// That each name of `list` is one of `known`.
    pub(super) fn known_sources(
        &mut self,
        list: Option<&OneOrMany>,
        spot: Spot<'_>,
        known: &HashSet<&str>,
    ) {
        for (text, at) in list.map(|list| listed(list, spot)).unwrap_or_default() {
            let pattern = Pattern::new(text.strip_prefix('!').unwrap_or(text));
            match pattern.exact() {
                Some(name) if !known.contains(name) => {
                    let reported = self.report.error(at, format!("unknown source \"{name}\""));
                    reported.suggest_name(name, known);
                }
                None if !known.iter().any(|name| pattern.matches(name)) => {
                    self.report.warning(at, format!("no source matches \"{text}\""));
                }
                Some(_) | None => {}
            }
        }
    }
}

/// What is where a secret should be.
enum Found {
    /// Its label, and what is written.
    Bytes(String, Zeroizing<Vec<u8>>),
    /// Nothing, for which this stands in.
    Nothing(Secret),
}

/// Each name of a list with its place.
fn listed<'a>(list: &'a OneOrMany, spot: Spot<'_>) -> Vec<(&'a str, Span)> {
    match list {
        OneOrMany::One(text) => vec![(text, spot.at)],
        OneOrMany::Many(list) => {
            let numbered = list.iter().enumerate();
            numbered.map(|(index, Text(text))| (&**text, spot.item(index).at)).collect()
        }
    }
}

/// Whose headers they are, with the names that the schemes of its targets set.
#[derive(Debug, Clone, Copy)]
pub(super) enum HeadersOf<'a> {
    /// Rendered at acceptance and stored: never secret.
    Route(&'a [HeaderName]),
    /// Read from the table in force at each attempt.
    Target(&'a [HeaderName]),
}

impl HeadersOf<'_> {
    const fn signatures(&self) -> &[HeaderName] {
        match self {
            Self::Route(names) | Self::Target(names) => names,
        }
    }
}
