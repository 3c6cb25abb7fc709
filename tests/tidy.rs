//! Makes the modules of this crate behave like crates, and keeps the house in order.
//!
//! [`LAYERS`] says which top-level module may import which; any other arrow fails. Further rules:
//! a comment on every file, files of a readable size, a pure `domain`, a map that names every
//! module, no notes to self, no skipped tests, no dead link in a document.
//!
//! Method: every rule is a function from a file to its problems. One test applies them all to the
//! tree; the others show each rule a snippet that it must catch and one that it must let pass. The
//! source is split into tokens by a small lexer, so that comments and strings are not mistaken for
//! code; it is not a parser, and what only a macro expands to stays unseen.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Every top-level module, lowest first, and what it may import.
///
/// A new arrow is a decision: change this table and the map in `src/ARCHITECTURE.md` together.
const LAYERS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("telemetry", &["domain"]),
    ("config", &["domain", "telemetry"]),
    ("net", &["domain", "telemetry"]),
    ("store", &["domain", "telemetry"]),
    ("ingress", &["domain", "telemetry", "net", "store"]),
    ("delivery", &["domain", "telemetry", "net", "store"]),
    ("admin", &["domain", "telemetry", "net", "store"]),
    ("app", &["domain", "telemetry", "config", "net", "store", "ingress", "delivery", "admin"]),
    ("cli", &["domain", "telemetry", "config", "net", "app"]),
];

/// The executable hands over to the command line and does nothing else.
const MAIN_IMPORTS: &[&str] = &["cli"];

/// Longer than this, a file is about two things.
const CODE_LINES_MAX: usize = 500;

/// Crates that do I/O, tell the time or report. `http` and `bytes` are plain data and stay allowed.
const IMPURE_CRATES: &[&str] = &[
    "hickory_resolver",
    "hyper",
    "hyper_util",
    "metrics",
    "metrics_exporter_prometheus",
    "rusqlite",
    "rustix",
    "rustls",
    "tempfile",
    "tokio",
    "tokio_rustls",
    "tokio_util",
    "tracing",
    "tracing_subscriber",
];

/// The same from the standard library; a glob that would bring them in counts too.
const IMPURE_STD: &[&str] = &["std::env", "std::fs", "std::net", "std::time::SystemTime"];

/// Spelled in halves, so that this file does not contain them.
const MARKS: &[&str] = &[concat!("FIX", "ME"), concat!("TO", "DO")];

/// Folders that hold no text of ours.
const SKIPPED_FOLDERS: &[&str] = &[".git", "data", "node_modules", "target"];

// === the tree ===

#[test]
fn the_tree_is_tidy() {
    let tree = Tree::read(Path::new(env!("CARGO_MANIFEST_DIR")));
    let problems = problems_of_tree(&tree);
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn the_layers_have_no_cycle() {
    for (position, (module, imports)) in LAYERS.iter().enumerate() {
        let lower: Vec<&str> = LAYERS.iter().take(position).map(|(name, _)| *name).collect();
        for import in *imports {
            assert!(lower.contains(import), "`{module}` imports `{import}`, which is not below it");
        }
    }
}

#[test]
fn ingress_delivery_and_admin_do_not_know_each_other() {
    let faces = ["ingress", "delivery", "admin"];
    for face in faces {
        let imports = imports_of(face).expect("every face has a layer");
        assert!(faces.iter().all(|other| !imports.contains(other)), "{face}");
    }
}

// === what is checked ===

struct File {
    /// Relative to the repository, with forward slashes.
    path: String,
    text: String,
}

struct Tree {
    files: Vec<File>,
    /// Every file and folder, so that links can be checked.
    entries: BTreeSet<String>,
}

impl Tree {
    fn read(root: &Path) -> Self {
        let mut tree = Self { files: Vec::new(), entries: BTreeSet::new() };
        tree.read_folder(root, "");
        assert!(tree.file("Cargo.toml").is_some(), "{} is not the repository", root.display());
        tree
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) {
        let entries = fs::read_dir(folder).expect("a folder of the repository can be listed");
        for entry in entries {
            let entry = entry.expect("an entry of the repository can be read");
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            if entry.path().is_dir() {
                if !SKIPPED_FOLDERS.contains(&name.as_str()) || prefix == "tests/" {
                    self.entries.insert(path.clone());
                    self.read_folder(&entry.path(), &format!("{path}/"));
                }
                continue;
            }
            self.entries.insert(path.clone());
            // Certificates, pictures and other bytes are not ours to read.
            if let Ok(text) = fs::read_to_string(entry.path()) {
                self.files.push(File { path, text });
            }
        }
    }

    fn of(files: &[(&str, &str)]) -> Self {
        let files: Vec<File> = files
            .iter()
            .map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        let mut entries = BTreeSet::new();
        for file in &files {
            for (position, _) in file.path.match_indices('/') {
                entries.extend(file.path.get(..position).map(str::to_owned));
            }
            entries.insert(file.path.clone());
        }
        Self { files, entries }
    }

    fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Top-level modules that exist: `src/net.rs` and `src/net/…` are both `net`.
    fn modules(&self) -> BTreeSet<&str> {
        self.files.iter().filter_map(|file| module_of(&file.path)).collect()
    }
}

fn problems_of_tree(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in &tree.files {
        let rust = file.path.ends_with(".rs");
        if rust && in_source(&file.path) {
            problems.extend(arrows(file));
            problems.extend(impurities(file));
            problems.extend(size(file));
        }
        if rust && (in_source(&file.path) || file.path.starts_with("tests/")) {
            problems.extend(module_comment(file));
            problems.extend(skipped_tests(file));
        }
        if rust || file.path.ends_with(".md") || file.text.starts_with("#!") {
            problems.extend(marks(file));
        }
        if file.path.ends_with(".md") {
            problems.extend(links(file, tree));
        }
    }
    problems.extend(layerless(tree));
    problems.extend(unmapped(tree));
    problems
}

fn in_source(path: &str) -> bool {
    path.starts_with("src/")
}

/// The top-level module a file belongs to; none for `lib.rs` and `main.rs`.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    if !inside.ends_with(".rs") || inside == "lib.rs" || inside == "main.rs" {
        return None;
    }
    inside.split('/').next()?.split('.').next()
}

fn imports_of(module: &str) -> Option<&'static [&'static str]> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, imports)| *imports)
}

// === rules ===

/// Only the arrows of [`LAYERS`].
fn arrows(file: &File) -> Vec<String> {
    let (name, imports) = match (file.path.as_str(), module_of(&file.path)) {
        ("src/main.rs", _) => ("main", MAIN_IMPORTS),
        (_, Some(module)) => match imports_of(module) {
            Some(imports) => (module, imports),
            None => return Vec::new(), // `layerless` reports the module itself.
        },
        (_, None) => return Vec::new(),
    };
    let wrong = references(file)
        .into_iter()
        .filter(|(_, import)| import != name && !imports.contains(&import.as_str()));
    wrong
        .map(|(line, import)| {
            let allowed =
                if imports.is_empty() { "nothing".to_owned() } else { imports.join(", ") };
            let path = &file.path;
            if imports_of(&import).is_some() {
                format!(
                    "{path}:{line}: `{name}` may not import `{import}`; it may import {allowed}"
                )
            } else {
                format!(
                    "{path}:{line}: `crate::{import}` is not a module with a layer; \
                     import from the module that owns it"
                )
            }
        })
        .collect()
}

/// No top-level module that [`LAYERS`] does not know, neither as a file nor inside `lib.rs`.
fn layerless(tree: &Tree) -> Vec<String> {
    let mut modules: BTreeSet<String> = tree.modules().into_iter().map(str::to_owned).collect();
    if let Some(lib) = tree.file("src/lib.rs") {
        let tokens = tokens(&lib.text);
        modules.extend(
            tokens
                .windows(2)
                .filter_map(|pair| match pair {
                    [first, second] if first.text == "mod" => Some(second.text.clone()),
                    _ => None,
                })
                .filter(|module| module != "tests"),
        );
    }
    modules
        .into_iter()
        .filter(|module| imports_of(module).is_none())
        .map(|module| {
            format!("src/{module}: no layer; give it one in tests/tidy.rs or move it into a module")
        })
        .collect()
}

/// The map names every top-level module.
fn unmapped(tree: &Tree) -> Vec<String> {
    let map = tree.file("src/ARCHITECTURE.md").map_or("", |file| file.text.as_str());
    let modules = tree.modules().into_iter();
    modules
        .filter(|module| {
            let spellings = ["`{}`", "`{}/", "`{}::", "crate::{}"];
            !spellings.iter().any(|spelling| map.contains(&spelling.replace("{}", module)))
        })
        .map(|module| format!("src/ARCHITECTURE.md: does not mention the module `{module}`"))
        .collect()
}

/// `domain` decides; it can not read a file, a clock or a socket, and it does not report.
fn impurities(file: &File) -> Vec<String> {
    if module_of(&file.path) != Some("domain") {
        return Vec::new();
    }
    let tokens = tokens(&file.text);
    let mut problems = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        if continues_a_path(&tokens, position) || !is_name(&token.text) {
            continue;
        }
        let used =
            text_at(&tokens, position + 1) == "::" || text_before(&tokens, position) == "use";
        if !used {
            continue;
        }
        for path in paths_from(&tokens, position) {
            let root = path.split("::").next().unwrap_or_default();
            let banned =
                IMPURE_CRATES.contains(&root) || IMPURE_STD.iter().any(|ban| names(&path, ban));
            if banned {
                problems.push(format!(
                    "{}:{}: `{path}` inside `domain`; take the value as an argument, \
                     act in another module",
                    file.path, token.line
                ));
            }
        }
    }
    problems
}

/// A reader learns from the first lines what a file is for.
fn module_comment(file: &File) -> Option<String> {
    let mut lines = file.text.lines().map(str::trim);
    let documented = lines
        .find(|line| !line.is_empty() && (!line.starts_with("#!") || line.starts_with("#![doc")))
        .is_some_and(|line| {
            line.strip_prefix("//!").is_some_and(|text| !text.trim().is_empty())
                || line.starts_with("#![doc = include_str!(")
        });
    (!documented)
        .then(|| format!("{}: starts without a `//!` comment saying what it is", file.path))
}

/// Lines that hold code, tests and comments not counted.
fn size(file: &File) -> Option<String> {
    let tokens = without_tests(tokens(&file.text));
    let lines: BTreeSet<usize> =
        tokens.iter().flat_map(|token| token.line..=token.line_last).collect();
    (lines.len() > CODE_LINES_MAX).then(|| {
        format!(
            "{}: {} lines of code, more than {CODE_LINES_MAX}; split it by responsibility",
            file.path,
            lines.len()
        )
    })
}

/// A note to self is an issue for the tracker.
fn marks(file: &File) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let lines = file.text.lines().enumerate();
    lines
        .filter_map(|(index, line)| {
            let mark = line.split(|c| !is_word(c)).find(|word| MARKS.contains(word))?;
            Some(format!("{}:{}: {mark}; do it, or open an issue", file.path, index + 1))
        })
        .collect()
}

/// A test runs, and asserts what it expects.
fn skipped_tests(file: &File) -> Vec<String> {
    let tokens = tokens(&file.text);
    let mut problems = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        if token.text != "#" || text_at(&tokens, position + 1) != "[" {
            continue;
        }
        let first = text_at(&tokens, position + 2);
        let end = closing(&tokens, position + 1);
        let conditional = first == "cfg_attr";
        let attribute = tokens.iter().take(end).skip(position + 2);
        let named = attribute.take(if conditional { usize::MAX } else { 1 });
        for name in named.map(|token| token.text.as_str()) {
            match name {
                "ignore" => problems.push(format!(
                    "{}:{}: #[ignore]; let it run, or say in its output why it can not",
                    file.path, token.line
                )),
                "should_panic" => problems.push(format!(
                    "{}:{}: #[should_panic]; assert the error, any panic would pass",
                    file.path, token.line
                )),
                _ => {}
            }
        }
    }
    problems
}

/// Relative links of a document lead somewhere, and so do their `#sections`.
fn links(file: &File, tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (line, target) in link_targets(&file.text) {
        let outside = target.contains("://") || target.starts_with("mailto:");
        // Paths of items are rustdoc's to check: the map is part of the crate's documentation.
        let item = file.path.starts_with("src/") && !target.contains(['/', '.', '#']);
        if outside || item || target.contains("::") {
            continue;
        }
        let (path, section) = target.split_once('#').unwrap_or((&target, ""));
        let path = resolve(&file.path, path);
        if !path.is_empty() && !tree.entries.contains(&path) {
            problems.push(format!("{}:{line}: the link {target} leads nowhere", file.path));
            continue;
        }
        let linked = tree.file(&path).filter(|linked| linked.path.ends_with(".md"));
        if let Some(linked) = linked
            && !section.is_empty()
            && !sections(&linked.text).contains(section)
        {
            problems.push(format!("{}:{line}: {path} has no section #{section}", file.path));
        }
    }
    problems
}

// === reading Rust ===

#[derive(Debug)]
struct Token {
    /// A name, a number, `::`, one other character, or `""` for any string or character.
    text: String,
    line: usize,
    line_last: usize,
}

/// Code without comments; a lifetime is left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut lexer = Lexer { rest: text, line: 1 };
    let mut tokens = Vec::new();
    while let Some(c) = lexer.rest.chars().next() {
        let line = lexer.line;
        let text = if c.is_whitespace() {
            lexer.skip(c.len_utf8());
            continue;
        } else if lexer.rest.starts_with("//") {
            lexer.skip_past("\n");
            continue;
        } else if lexer.rest.starts_with("/*") {
            lexer.skip_block_comment();
            continue;
        } else if let Some(hashes) = raw_string_hashes(lexer.rest) {
            lexer.skip_past("\"");
            lexer.skip_past(&format!("\"{}", "#".repeat(hashes)));
            "\"\"".to_owned()
        } else if c == '"' {
            lexer.skip_quoted('"');
            "\"\"".to_owned()
        } else if c == '\'' {
            if is_lifetime(lexer.rest) {
                lexer.skip(1);
                lexer.take_name();
                continue;
            }
            lexer.skip_quoted('\'');
            "\"\"".to_owned()
        } else if is_name_char(c) {
            lexer.take_name()
        } else if lexer.rest.starts_with("::") {
            lexer.skip(2);
            "::".to_owned()
        } else {
            lexer.skip(c.len_utf8());
            c.to_string()
        };
        tokens.push(Token { text, line, line_last: lexer.line });
    }
    tokens
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

impl Lexer<'_> {
    fn skip(&mut self, bytes: usize) {
        let (skipped, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.line += skipped.matches('\n').count();
        self.rest = rest;
    }

    fn skip_past(&mut self, end: &str) {
        let bytes = self.rest.find(end).map_or(self.rest.len(), |position| position + end.len());
        self.skip(bytes);
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0_usize;
        while !self.rest.is_empty() {
            if self.rest.starts_with("/*") {
                depth += 1;
                self.skip(2);
            } else if self.rest.starts_with("*/") {
                depth -= 1;
                self.skip(2);
                if depth == 0 {
                    return;
                }
            } else {
                let bytes = self.rest.chars().next().map_or(0, char::len_utf8);
                self.skip(bytes);
            }
        }
    }

    fn skip_quoted(&mut self, quote: char) {
        self.skip(1);
        while let Some(c) = self.rest.chars().next() {
            self.skip(c.len_utf8());
            if c == '\\' {
                let escaped = self.rest.chars().next().map_or(0, char::len_utf8);
                self.skip(escaped);
            } else if c == quote {
                return;
            }
        }
    }

    fn take_name(&mut self) -> String {
        let name: String = self.rest.chars().take_while(|c| is_name_char(*c)).collect();
        self.skip(name.len());
        name
    }
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn raw_string_hashes(rest: &str) -> Option<usize> {
    let after = ["br", "cr", "r"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let unhashed = after.trim_start_matches('#');
    unhashed.starts_with('"').then(|| after.len() - unhashed.len())
}

/// `'a` is a lifetime; `'a'` and `'\n'` are characters.
fn is_lifetime(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    chars.next().is_some_and(is_name_char) && chars.next() != Some('\'')
}

fn text_at(tokens: &[Token], position: usize) -> &str {
    tokens.get(position).map_or("", |token| token.text.as_str())
}

fn text_before(tokens: &[Token], position: usize) -> &str {
    position.checked_sub(1).map_or("", |before| text_at(tokens, before))
}

/// Whether the name at `position` is a later part of a path, as `metrics` in `telemetry::metrics`.
fn continues_a_path(tokens: &[Token], position: usize) -> bool {
    let Some(before) = position.checked_sub(1) else { return false };
    let starts = |text: &str| is_name(text) && text != "use" || text == ">";
    text_at(tokens, before) == "."
        || text_at(tokens, before) == "::" && starts(text_before(tokens, before))
}

/// The position of the bracket that closes the one at `open`, or the end.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (position, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return position;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// The code that ships: without the items under `#[cfg(test)]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let marks = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut ends = Vec::new();
    let mut from = 0;
    for position in 0..tokens.len() {
        let marked = marks
            .iter()
            .enumerate()
            .all(|(offset, mark)| text_at(&tokens, position + offset) == *mark);
        if position >= from && marked {
            from = item_end(&tokens, position + marks.len());
            ends.push(position..from);
        }
    }
    let kept = |position: &usize| !ends.iter().any(|end| end.contains(position));
    tokens.into_iter().enumerate().filter(|(position, _)| kept(position)).map(|(_, t)| t).collect()
}

/// One past the item that starts at `start`.
fn item_end(tokens: &[Token], start: usize) -> usize {
    let mut position = start;
    while position < tokens.len() {
        match text_at(tokens, position) {
            ";" => return position + 1,
            "{" => return closing(tokens, position) + 1,
            "(" | "[" => position = closing(tokens, position) + 1,
            ")" | "]" | "}" => return position,
            _ => position += 1,
        }
    }
    position
}

/// What a file names at the root of the crate, with the line: `crate::x`, `super::…::x` that climbs
/// to the root, and `aryeo_relay::x`.
fn references(file: &File) -> Vec<(usize, String)> {
    let tokens = tokens(&file.text);
    let mut found = Vec::new();
    // For each open brace, whether it is that of an inline module.
    let mut braces: Vec<bool> = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        let next = text_at(&tokens, position + 1);
        match token.text.as_str() {
            "{" => {
                let named = position.checked_sub(2).map_or("", |before| text_at(&tokens, before));
                braces.push(named == "mod");
            }
            "}" => {
                braces.pop();
            }
            "crate" | "aryeo_relay" if next == "as" => found.push((token.line, "*".to_owned())),
            "crate" | "aryeo_relay" if next == "::" => {
                let names = roots_from(&tokens, position + 2);
                found.extend(names.into_iter().map(|name| (token.line, name)));
            }
            "super" if !(text_before(&tokens, position) == "::" && climbs(&tokens, position)) => {
                let depth = depth_of(&file.path) + braces.iter().filter(|module| **module).count();
                let mut after = position;
                let mut climbed = 0;
                while text_at(&tokens, after) == "super" && text_at(&tokens, after + 1) == "::" {
                    climbed += 1;
                    after += 2;
                }
                if climbed >= depth && depth > 0 {
                    let names = roots_from(&tokens, after);
                    found.extend(names.into_iter().map(|name| (token.line, name)));
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether the `super` at `position` is counted with the one before it.
fn climbs(tokens: &[Token], position: usize) -> bool {
    position.checked_sub(2).is_some_and(|before| text_at(tokens, before) == "super")
}

/// How many modules a file lies below the root of the crate.
fn depth_of(path: &str) -> usize {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let folders = inside.matches('/').count();
    if inside.ends_with("mod.rs") { folders } else { folders + 1 }
}

/// The first names of the path or group at `position`.
fn roots_from(tokens: &[Token], position: usize) -> Vec<String> {
    let paths = if text_at(tokens, position) == "{" {
        group(tokens, position)
    } else {
        vec![text_at(tokens, position).to_owned()]
    };
    let names: BTreeSet<&str> = paths.iter().filter_map(|path| path.split("::").next()).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// All paths that begin with the name at `position`: one, or as many as its groups spell out.
fn paths_from(tokens: &[Token], position: usize) -> Vec<String> {
    let name = text_at(tokens, position);
    if text_at(tokens, position + 1) != "::" {
        return vec![name.to_owned()];
    }
    let rest = match text_at(tokens, position + 2) {
        "{" => group(tokens, position + 2),
        next if is_name(next) => paths_from(tokens, position + 2),
        "*" => vec!["*".to_owned()],
        _ => return vec![name.to_owned()],
    };
    rest.into_iter()
        .map(|path| if path == "self" { name.to_owned() } else { format!("{name}::{path}") })
        .collect()
}

/// The paths of the group whose brace is at `open`.
fn group(tokens: &[Token], open: usize) -> Vec<String> {
    let end = closing(tokens, open);
    let mut paths = Vec::new();
    let mut position = open + 1;
    while position < end {
        let text = text_at(tokens, position);
        if text == "{" {
            position = closing(tokens, position);
        } else if matches!(text_before(tokens, position), "{" | ",") && text != "," {
            paths.extend(paths_from(tokens, position));
        }
        position += 1;
    }
    paths
}

/// Whether `path` is `ban`, something in it, or a glob that contains it.
fn names(path: &str, ban: &str) -> bool {
    let inside = |path: &str, outer: &str| {
        path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    inside(path, ban) || path.strip_suffix("::*").is_some_and(|outer| inside(ban, outer))
}

// === reading Markdown ===

/// Where the links of a document lead, with their lines; code is not read.
fn link_targets(text: &str) -> Vec<(usize, String)> {
    let mut targets = Vec::new();
    for (number, line) in prose(text) {
        // Every second part lies between backquotes.
        let code_free: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for after in code_free.split("](").skip(1) {
            if let Some((target, _)) = after.split_once(')') {
                let target = target.split_whitespace().next().unwrap_or_default();
                targets.push((number, target.to_owned()));
            }
        }
        let reference = code_free.trim_start().strip_prefix('[').and_then(|r| r.split_once("]: "));
        targets.extend(reference.map(|(_, target)| (number, target.trim().to_owned())));
    }
    targets
}

/// The lines outside fenced code, numbered from one.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// The anchors that a forge gives to a document's headings.
fn sections(text: &str) -> BTreeSet<String> {
    let mut sections = BTreeSet::new();
    for (_, line) in prose(text).into_iter().filter(|(_, line)| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let mut anchor = String::new();
        for c in heading.chars() {
            match c {
                ' ' => anchor.push('-'),
                c if is_name_char(c) || c == '-' => anchor.push(c),
                _ => {}
            }
        }
        let plain = anchor.clone();
        let mut copy = 0;
        while !sections.insert(anchor.clone()) {
            copy += 1;
            anchor.clone_from(&plain);
            write!(anchor, "-{copy}").expect("writing to a string can not fail");
        }
    }
    sections
}

/// `link` as seen from the document at `from`, relative to the repository.
fn resolve(from: &str, link: &str) -> String {
    if link.is_empty() {
        return from.to_owned();
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            // A link that leaves the repository must not become one that stays in it.
            ".." if parts.is_empty() => parts.push("outside the repository"),
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

// === the rules, tested ===

/// A tree that is in order, with one file put in its place or beside it.
fn problems_with(path: &str, text: &str) -> Vec<String> {
    let map = "`domain` `net` `store` `ingress` `delivery`";
    let good = [
        ("src/ARCHITECTURE.md", map),
        (
            "src/lib.rs",
            "#![doc = include_str!(\"ARCHITECTURE.md\")]\npub mod domain;\npub mod net;\n",
        ),
        ("src/main.rs", "//! The executable.\nfn main() { aryeo_relay::cli::main() }\n"),
        ("src/domain/mod.rs", "//! What it is about.\n"),
        ("src/net/mod.rs", "//! Sockets.\nuse crate::domain::limit;\n"),
    ];
    let mut files: Vec<(&str, &str)> = good.into_iter().filter(|(good, _)| *good != path).collect();
    files.push((path, text));
    problems_of_tree(&Tree::of(&files))
}

#[track_caller]
fn assert_caught(path: &str, text: &str, words: &str) {
    let problems = problems_with(path, text);
    assert!(problems.len() == 1, "one problem expected in {text:?}: {problems:#?}");
    assert!(problems.iter().any(|p| p.contains(words)), "{words:?} expected: {problems:#?}");
}

#[track_caller]
fn assert_passes(path: &str, text: &str) {
    assert_eq!(problems_with(path, text), Vec::<String>::new(), "in {text:?}");
}

#[test]
fn an_arrow_outside_the_table_is_caught_however_it_is_spelled() {
    let words = "`net` may not import `store`";
    for code in [
        "use crate::store::Store;",
        "use crate::{domain::limit, store::{self, Store}};",
        "pub(in crate::store) fn f() {}",
        "use ::{crate::store as s};",
        "fn f() { crate :: store :: open(\"a\") }",
        "macro_rules! m { () => { $crate::store::open() } }",
        "mod tests { use super::super::super::store::Store; }",
        "use super::super::store::Store;",
        "const C: char = '\"'; use crate::store::Store; const D: char = '\"';",
        "fn f<'a>(s: &'a str) { let _ = r#\"\"\"#; crate::store::open(s) }",
        "use aryeo_relay::store::Store;",
    ] {
        assert_caught("src/net/listener.rs", &format!("//! Sockets.\n{code}\n"), words);
    }
    assert_caught(
        "src/ingress/mod.rs",
        "//! Face.\nuse crate::delivery::Lane;",
        "`ingress` may not import `delivery`",
    );
    assert_caught(
        "src/domain/mod.rs",
        "//! Pure.\n\nuse crate::net::tls;",
        "src/domain/mod.rs:3: `domain` may not import `net`; it may import nothing",
    );
    assert_caught(
        "src/main.rs",
        "//! The executable.\nfn main() { aryeo_relay::app::run() }",
        "`main` may not import `app`",
    );
}

#[test]
fn a_path_to_something_without_a_layer_is_caught() {
    for code in
        ["use crate::Helper;", "use crate::*;", "use crate as root;", "use crate::{self as r};"]
    {
        assert_caught(
            "src/net/tls.rs",
            &format!("//! TLS.\n{code}\n"),
            "not a module with a layer",
        );
    }
}

#[test]
fn allowed_arrows_comments_and_strings_pass() {
    for code in [
        "use crate::{domain::{limit, time::Clock}, telemetry};",
        "use super::tls::Acceptor;",
        "mod tests { use super::*; use super::super::tls::Acceptor; }",
        "// use crate::store::Store;",
        "/* /* */ use crate::store::Store; */",
        "/// See [`crate::store::Store`].\npub(crate) fn f() {}",
        "const S: &str = \"\\\" crate::store::Store\";",
        "const S: &str = r##\"\"# crate::store::Store\"##;",
        "const B: &[u8] = b\"crate::store\"; fn f<'a>(_: &'a u8) -> char { '\\'' }",
    ] {
        assert_passes("src/net/listener.rs", &format!("//! Sockets.\n{code}\n"));
    }
}

#[test]
fn a_module_without_a_layer_is_caught() {
    let map = "`domain` `net` `util`";
    let helper = ("src/util.rs", "//! Odds and ends.");
    let problems = problems_of_tree(&Tree::of(&[("src/ARCHITECTURE.md", map), helper]));
    assert!(problems.concat().starts_with("src/util: no layer"), "{problems:?}");
    assert_caught("src/lib.rs", "//! Relay.\nmod core { fn f() {} }", "src/core: no layer");
}

#[test]
fn a_module_that_the_map_does_not_name_is_caught() {
    let words = "does not mention the module `net`";
    assert_caught("src/ARCHITECTURE.md", "`domain`, and internet", words);
    assert_passes("src/ARCHITECTURE.md", "[`domain`](crate::domain) and `net/`");
}

#[test]
fn io_and_clocks_in_the_domain_are_caught() {
    for code in [
        "use tokio::sync::mpsc;",
        "use hyper::StatusCode;",
        "fn f() { tracing::info!(\"x\") }",
        "use metrics;",
        "use ::metrics::Label;",
        "fn f() { std::fs::read(\"x\"); }",
        "use std::{collections::BTreeMap, net::{IpAddr}};",
        "use std::env;",
        "use std::time::{Duration, SystemTime};",
        "use std::time::*;",
        "fn f() -> std::time::SystemTime { g() }",
    ] {
        assert_caught("src/domain/mod.rs", &format!("//! Pure.\n{code}\n"), "inside `domain`");
    }
    for code in [
        "use std::time::Duration; use bytes::Bytes; use http::HeaderName;",
        "use std::{collections::BTreeMap, fmt};",
        "fn f(metrics: u8, env: u8) -> u8 { self.metrics + self::metrics::f(env) }",
        "const V: &str = env!(\"CARGO_PKG_VERSION\"); // tokio::spawn",
    ] {
        assert_passes("src/domain/mod.rs", &format!("//! Pure.\n{code}\n"));
    }
    assert_passes("src/net/listener.rs", "//! Sockets.\nuse tokio::net::TcpListener;\n");
}

#[test]
fn a_file_without_a_comment_is_caught() {
    for text in ["fn f() {}\n", "", "//!\nfn f() {}", "// Sockets.\n", "#![allow(x)]\nfn f() {}"] {
        assert_caught("src/net/listener.rs", text, "starts without a `//!`");
    }
    assert_caught("tests/it/main.rs", "fn f() {}", "starts without a `//!`");
    assert_passes("src/net/listener.rs", "\n#![expect(x, reason = \"y\")]\n\n//! Sockets.\n");
}

#[test]
fn a_file_that_is_too_long_is_caught() {
    let code = |lines: usize| format!("//! Long.\n{}", "const X: u8 = 0;\n".repeat(lines));
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(600));
    let comments = "// Why.\n\n/* And\nhow. */\n".repeat(600);
    let allowed = format!("{comments}{}{tests}", "const X: u8 = 0;\n".repeat(500));
    assert_caught("src/net/tls.rs", &code(501), "501 lines of code");
    assert_caught("src/net/tls.rs", &format!("{}{tests}", code(501)), "501 lines of code");
    // Tests on top hide nothing.
    let after = format!("//! Long.\n#[cfg(test)]\nuse a::b;\n{tests}{}", code(501));
    assert_caught("src/net/tls.rs", &after, "501 lines of code");
    assert_caught(
        "src/net/tls.rs",
        &format!("//! S.\nconst S: &str = \"{}\";", "\n".repeat(501)),
        "502",
    );
    assert_passes("src/net/tls.rs", &format!("//! Long.\n{allowed}"));
}

#[test]
fn a_note_to_self_is_caught() {
    for mark in MARKS {
        assert_caught("src/net/tls.rs", &format!("//! TLS.\n// {mark}: later"), mark);
        assert_caught("tests/it/main.rs", &format!("//! {mark}(me)"), mark);
        assert_caught("tests/all", &format!("#!/bin/sh\n# {mark}"), mark);
        assert_caught("README.md", mark, mark);
    }
    assert_passes("src/net/tls.rs", "//! TLS.\nfn todo_list() { METHODTODO; }");
}

#[test]
fn a_skipped_test_is_caught() {
    assert_caught("tests/it/main.rs", "//! T.\n#[test]\n#[ignore]\nfn f() {}", ":3: #[ignore]");
    assert_caught("tests/it/main.rs", "//! T.\n#[ignore = \"slow\"]\nfn f() {}", ":2: #[ignore]");
    assert_caught("src/net/tls.rs", "//! T.\n#[cfg_attr(miri, ignore)]\nfn f() {}", "#[ignore]");
    assert_caught(
        "src/net/tls.rs",
        "//! T.\n#[should_panic(expected = \"x\")]\nfn f() {}",
        "#[should_panic]",
    );
    assert_passes(
        "tests/it/main.rs",
        "//! `#[ignore]` is not used.\n#[test]\nfn f() { \"#[ignore]\"; ignore(); }",
    );
}

#[test]
fn a_link_that_leads_nowhere_is_caught() {
    for text in [
        "[a](missing.md)",
        "See [a](src/missing/) and [b](src/net).",
        "[a](../README.md)",
        "[a]: missing.md",
        "![a](missing.png \"title\")",
    ] {
        assert_caught("README.md", text, "leads nowhere");
    }
    assert_caught("README.md", "# A b\n[a](#a-c)", "no section #a-c");
    assert_caught("deploy/README.md", "[a](../src/ARCHITECTURE.md#nothing)", "no section");
    assert_passes(
        "README.md",
        "[a](src/ARCHITECTURE.md), [b](./src/net/) and [c](https://x.example/y)",
    );
    assert_passes("README.md", "# A `b`, c!\n# A `b`, c!\n[a](#a-b-c) [b](#a-b-c-1)");
    assert_passes("README.md", "`[a](missing.md)`\n```text\n[a](missing.md)\n# No heading\n```\n");
    assert_passes("src/ARCHITECTURE.md", "`net` and [`domain`](crate::domain), [x](domain)");
}
