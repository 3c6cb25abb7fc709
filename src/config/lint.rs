//! What is allowed and probably not meant: routes that nothing reaches, targets and defaults that
//! nothing uses, patterns that match nothing, secrets that are there twice.
//!
//! All of it is a warning. What is said is so: where that would take too long to find out, or where
//! errors leave it open, nothing is said.

use std::collections::HashSet;

use crate::config::compile::Context;
use crate::config::forms::{Named, Text};
use crate::config::node::{Entry, Node};
use crate::config::problem::Span;
use crate::config::schema;
use crate::config::spot::Spot;
use crate::config::suggest;
use crate::domain::condition::{Condition, Test};
use crate::domain::contradiction;
use crate::domain::known;
use crate::domain::pattern::Pattern;
use crate::domain::pointer::Pointer;
use crate::domain::route::Route;
use crate::domain::shadow::{Shadowed, shadowed};
use crate::domain::signature::{Scheme, Secret};
use crate::domain::source::SourcePath;

/// Comparisons of two patterns, or of two places, in one file. Ten thousand routes take a tenth.
const STEPS_MAX: usize = 2_000_000;

/// How many letters may be wrong in a name for it to be taken for a known activity: the list is
/// open, and two names of the same family differ by three letters and more.
const ACTIVITY_DISTANCE_MAX: usize = 2;

/// Unknown targets that are looked at: each may be the reason why a known one is not used.
const UNKNOWN_TARGETS_MAX: usize = 20;

/// What looking for what is not meant needs to know.
#[derive(Debug)]
pub(super) struct Lint {
    steps: usize,
    /// Aryeo's activities, and those that sources have of their own.
    activities: Vec<String>,
    names: HashSet<String>,
    /// Whether any activity may come: a path names it.
    is_open: bool,
}

impl Default for Lint {
    fn default() -> Self {
        let activities: Vec<_> = known::activities().map(str::to_owned).collect();
        let names = activities.iter().cloned().collect();
        Self { steps: STEPS_MAX, activities, names, is_open: false }
    }
}

impl Lint {
    /// Learns which activities the sources have of their own.
    pub(super) fn learn(&mut self, sources: &Named<schema::Source>) {
        for (_, source) in &sources.0 {
            self.is_open |= source.path.0.contains(SourcePath::ACTIVITY);
            let own = source.activity.as_ref().map(|Text(name)| name.clone());
            self.names.extend(own.clone());
            self.activities.extend(own);
        }
    }

    fn spend(&mut self, steps: usize) -> bool {
        self.steps = self.steps.saturating_sub(steps);
        self.steps > 0
    }

    /// What is wrong with the name or pattern of an activity, and what was probably meant.
    fn activity(&self, text: &str, has_room: bool) -> Option<(String, Option<String>)> {
        let name = text.strip_prefix('!').unwrap_or(text);
        let pattern = Pattern::new(name);
        if pattern.exact().is_some() {
            if self.names.contains(name) {
                return None;
            }
            let known = self.activities.iter().map(String::as_str);
            let bound = |word: &str| ACTIVITY_DISTANCE_MAX.min(word.len() / 4);
            let meant = suggest::nearest_within(name, known, bound)?;
            let message = format!("no activity is known by the name of \"{name}\"");
            return Some((message, Some(meant.to_owned())));
        }
        if self.activities.iter().any(|known| pattern.matches(known)) {
            return None;
        }
        // What is not listed needs no help, unless that decides whether there is a problem.
        let is_foreign = self.is_open || name.contains('.');
        let meant = if has_room || is_foreign { self.corrected(name) } else { None };
        // Names of other senders have a point in them, as in `com.example.order.created`.
        if meant.is_none() && is_foreign {
            return None;
        }
        Some((format!("\"{text}\" matches no activity that is known"), meant))
    }

    /// A pattern with the words in it that are known to be in activities, if it matches one then.
    fn corrected(&self, pattern: &str) -> Option<String> {
        let words: HashSet<&str> =
            self.activities.iter().flat_map(|name| name.split('_')).collect();
        let mut corrected = String::new();
        for part in pattern.split_inclusive(['_', '*', '?']) {
            let word = part.trim_end_matches(['_', '*', '?']);
            let meant = match word {
                "" => word,
                known if words.contains(known) => known,
                unknown => suggest::nearest(unknown, words.iter().copied()).unwrap_or(unknown),
            };
            corrected.push_str(meant);
            corrected.push_str(part.get(word.len()..).unwrap_or_default());
        }
        let pattern = Pattern::new(&corrected);
        self.activities.iter().any(|known| pattern.matches(known)).then_some(corrected)
    }
}

/// A list of names and patterns, which are good each by itself.
pub(super) fn names(what: &str, list: &[(&str, Span)], context: &mut Context<'_>) {
    let read = |(text, at): &(&'_ str, Span)| {
        let pattern = text.strip_prefix('!').map(Pattern::new);
        (pattern.is_none(), pattern.unwrap_or_else(|| Pattern::new(text)), *at)
    };
    let patterns: Vec<_> = list.iter().map(read).collect();
    let part = |includes: bool| patterns.iter().filter(move |(kind, ..)| *kind == includes);
    let has_includes = part(true).next().is_some();
    for ((text, at), (includes, pattern, _)) in list.iter().zip(&patterns) {
        if !context.lint.spend(patterns.len()) {
            return;
        }
        if what == "activity"
            && let Some((message, meant)) = context.lint.activity(text, context.report.has_room())
        {
            let reported = context.report.warning(*at, message);
            if let Some(meant) = meant {
                let mark = if *includes { "" } else { "!" };
                reported.help(format!("did you mean \"{mark}{meant}\"?"));
            }
        } else if *includes
            && let Some((.., out)) = part(false).find(|(_, out, _)| out.covers(pattern))
        {
            let by = list.iter().find(|(_, at)| at == out).map_or("", |(text, _)| text);
            let message = format!("\"{text}\" is taken out again by \"{by}\" in the same list");
            context.report.warning(*at, message);
        } else if what != "source"
            && !includes
            && has_includes
            && !part(true).any(|(_, own, _)| own.overlaps(pattern))
        {
            let message = format!("\"{text}\" excludes nothing that this list includes");
            context.report.warning(*at, message);
        }
    }
}

/// The conditions of one route: those that can never hold, alone or together.
pub(super) fn conditions(conditions: &[Condition], spot: Spot<'_>, context: &mut Context<'_>) {
    let index_of = |pointer: &Pointer| spot.index_of(pointer.as_str());
    for Condition { pointer, test, .. } in conditions {
        // A bare value holds of itself.
        if !matches!(test, Test::Equals(_))
            && let Some(found) = contradiction::contradiction(test)
            && let Some(index) = index_of(pointer)
        {
            let contradiction::Contradiction { one, other } = found;
            let message = format!("this never holds: no value is both {{{one}}} and {{{other}}}");
            context.report.warning(spot.entry(index).at, message);
        }
    }
    if !context.lint.spend(conditions.len() * conditions.len()) {
        return;
    }
    for (above, below) in contradiction::conflicts(conditions) {
        let (Some(above), Some(below)) = (conditions.get(above), conditions.get(below)) else {
            continue;
        };
        let Some(index) = index_of(&below.pointer) else { continue };
        let message =
            format!("this never holds: nothing is below {} where {above} holds", above.pointer);
        context.report.warning(spot.entry_key(index), message);
    }
}

/// The first secret of a list that is not as long as the specification of the scheme wants it: others may
/// refuse it.
pub(super) fn key_length(scheme: Scheme, secrets: &[(Secret, Span)], context: &mut Context<'_>) {
    let Some(bytes) = scheme.key_bytes() else { return };
    let unfit = secrets.iter().find(|(secret, _)| !secret.has_length_of(scheme));
    if let Some((_, at)) = unfit {
        let (from, to, name) = (bytes.start(), bytes.end(), scheme.name());
        let message = format!(
            "the key in this secret is not {from} to {to} bytes long, as {name} wants it: make another, for \
             the target may refuse it"
        );
        let reported = context.report.warning(*at, message);
        reported.help("whsec_$(openssl rand -base64 32), say, at the target too");
    }
}

/// Secrets of one list that are the same: a rotation to the old secret.
pub(super) fn secrets(secrets: &[(Secret, Span)], context: &mut Context<'_>) {
    for (index, (secret, at)) in secrets.iter().enumerate() {
        let is_same = |other: &Secret| {
            let named = other.label() != "value" && other.label() == secret.label();
            named || other.signs_as(secret)
        };
        let known = secrets.iter().take(index).find(|(other, _)| is_same(other));
        if let Some((_, known)) = known {
            let message = format!("this is the same secret as the one in line {}", known.line());
            let reported = context.report.warning(*at, message);
            reported.help("a rotation needs the new secret beside the old one");
        }
    }
}

/// Routes that nothing reaches. `routes` are as they were written in `spot`.
pub(super) fn unreachable(
    routes: &[Route],
    sources: &[&str],
    spot: Spot<'_>,
    context: &mut Context<'_>,
) {
    if routes.iter().all(|route| !route.end) {
        return;
    }
    // What has errors may take less, or more, than is left of it.
    let whole: Vec<(usize, &Route)> = routes
        .iter()
        .enumerate()
        .filter(|(index, _)| !context.report.has_failed_in(spot.item(*index).at))
        .collect();
    let known: Vec<_> = whole.iter().map(|(_, route)| *route).collect();
    for Shadowed { route, by } in shadowed(&known, sources, &mut context.lint.steps) {
        let (Some((index, route)), Some((by_index, by))) = (whole.get(route), whole.get(by)) else {
            continue;
        };
        let line = spot.item(*by_index).key("name").at.line();
        let message = format!(
            "route \"{}\" never matches: route \"{}\" in line {line} takes all of it and is final",
            route.name, by.name
        );
        let reported = context.report.warning(spot.item(*index).key("name").at, message);
        reported.help(format!("move it above \"{}\", or take out that one's `final`", by.name));
    }
}

/// Targets that no route sends anything to.
pub(super) fn unused_targets(root: &Node, context: &mut Context<'_>) {
    let targets = entries(root, "targets");
    let routes = root.get("routes").map(|entry| entry.value.items()).unwrap_or_default();
    let to = routes.iter().filter_map(|route| Some(&route.get("to")?.value));
    // Also where the brackets were forgotten, which is an error of its own.
    let used: HashSet<&str> =
        to.flat_map(|to| to.items().iter().chain([to])).filter_map(Node::text).collect();
    if used.is_empty() {
        return;
    }
    let names: HashSet<&str> = targets.iter().map(|entry| &*entry.key).collect();
    let unknown: Vec<_> =
        used.iter().filter(|name| !names.contains(*name)).take(UNKNOWN_TARGETS_MAX).collect();
    for Entry { key, key_at, .. } in targets.iter().filter(|entry| !used.contains(&*entry.key)) {
        let is_meant = |name: &&str| suggest::nearest(name, [&**key]).is_some();
        if !unknown.iter().any(|name| is_meant(name)) {
            context.report.warning(*key_at, format!("no route sends anything to target \"{key}\""));
        }
    }
}

/// Defaults that every target has another word for. `pruned` has only those that are good, `root`
/// has all targets.
pub(super) fn unused_defaults(pruned: &Node, root: &Node, context: &mut Context<'_>) {
    let targets: Vec<&Node> = entries(root, "targets").iter().map(|entry| &entry.value).collect();
    if targets.is_empty() || targets.iter().any(|target| target.entries().is_empty()) {
        return;
    }
    for default in entries(pruned, "defaults") {
        let key = &*default.key;
        if !["headers", "retry", "tls"].contains(&key) {
            if context.lint.spend(targets.len()) && targets.iter().all(|t| t.get(key).is_some()) {
                unused(key, default.key_at, context);
            }
            continue;
        }
        for inner in default.value.entries() {
            if !context.lint.spend(targets.len()) {
                return;
            }
            let has = |target: &&Node| {
                let mut own = entries(target, key).iter();
                own.any(|own| own.key.eq_ignore_ascii_case(&inner.key))
            };
            let mut concerned =
                targets.iter().filter(|t| key != "tls" || is_encrypted(t)).peekable();
            if concerned.peek().is_none() {
                let message = "no target's url begins with https://: this default is never used";
                context.report.warning(inner.key_at, message);
            } else if concerned.all(has) {
                unused(&format!("{key}.{}", inner.key), inner.key_at, context);
            }
        }
    }
}

/// What is in the map under this key.
fn entries<'a>(node: &'a Node, key: &str) -> &'a [Entry] {
    node.get(key).map(|entry| entry.value.entries()).unwrap_or_default()
}

fn is_encrypted(target: &Node) -> bool {
    let url = target.get("url").and_then(|url| url.value.text()).unwrap_or_default();
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

fn unused(key: &str, at: Span, context: &mut Context<'_>) {
    let message = format!("every target has its own \"{key}\": this default is never used");
    context.report.warning(at, message);
}
