//! That nothing of what is printed has a secret in it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::config::{self, Problems, Secrets};
use proptest::prelude::*;

fn check(text: &str) -> Problems {
    let nothing: HashMap<String, String> = HashMap::new();
    config::check_bytes(text.as_bytes(), Path::new("f"), &nothing, Secrets::Resolve)
}

/// Everything that is printed of a problem, and every line of the file as it would be quoted.
fn shown(text: &str) -> String {
    // A problem in every line, so that every line is quoted.
    let mut shown = check(text).to_string();
    let mut report = config::problem::Report::new(Path::new("f"));
    let tree = config::position::parse(text, &mut report);
    let is_whole = tree.is_ok();
    let tree = tree.map_or_else(|seen| seen, Some);
    let page = super::Page { text, tree: tree.as_ref(), is_whole };
    let count = config::quote::lines(text).count();
    let sheet = page.sheet(1..=count);
    for line in (1..=count).filter_map(|number| sheet.line(number)) {
        let quote = line.quote(1, 2).map(|quote| quote.text().to_owned());
        writeln!(shown, "\n{}", quote.unwrap_or_default()).unwrap();
    }
    shown
}

const SECRET: &str = "s3cr3t";

const CASES: u32 = 3000;

/// A table with something in the place of a list of secrets.
fn table(verify: &str, target: &str) -> String {
    format!(
        "sources:\n  aryeo:\n    path: /a\n    verify: {verify}\n    odd: x\ntargets:\n  crm:\n    \
         {target}\n    odd: x\n    sign: {{ scheme: none }}\nroutes:\n  - name: r\n    to: [crm, x]\n"
    )
}

/// Ways to write a secret down, where it belongs and where it does not.
fn tables() -> Vec<String> {
    let verify = [
        "{ scheme: aryeo, secrets: [{ value: SECRET }, { env: x }] }",
        "{ scheme: aryeo, secrets: [{ value: \"SECRET\" , odd: x }] }",
        "{ scheme: aryeo, secrets: [{ value: 'SECRET\n      SECRET', odd: x }] }",
        "{ scheme: aryeo, secrets: [{ value: \"SEC\\x52ET SECRET\" }, { odd: SECRET }] }",
        "{ scheme: aryeo, secrets: [SECRET, 'SECRET', \"SECRET\"] }",
        "{ scheme: aryeo, secrets: SECRET }",
        "{ scheme: aryeo, secrets: { value: SECRET } }",
        "{ scheme: aryeo, secret: SECRET, secrets: [[SECRET]] }",
        "{ scheme: aryeo, secrets: [{ SECRET }, { SECRET: }, { env:SECRET }] }",
        "{ scheme: aryeo, secrets: [{ env: SECRET }] }",
        "{ scheme: aryeo, secrets: [{ value: !SECRET x }, { value: &SECRET x }] }",
        "{ scheme: aryeo, secrets: [{ value: *SECRET }] }",
        "{ scheme: aryeo, SECRET }",
        "SECRET",
        "[SECRET]",
        "\n      scheme: aryeo\n      secrets:\n        - value: SECRET # SECRET\n          odd: SECRET",
        "\n      scheme: aryeo\n      secrets:\n        - value: |\n            SECRET\n          odd: x",
        "\n      scheme: aryeo\n      secrets:\n        - value: >-\n            SECRET\n            SECRET # SECRET\n          odd: x",
        "\n      scheme: aryeo\n      secrets:\n        - value: SECRET\n            SECRET\n          odd: x",
        "\n      scheme: aryeo\n      secrets:\n        - value: \"SECRET\n\n            SECRET\"\n          odd: x",
        "\n      scheme: aryeo\n      secrets:\n        - ? value\n          : SECRET\n          odd: x",
        "\n      scheme: aryeo\n      secrets:\n        - \"value\": SECRET\n          value: SECRET",
        "\n      scheme: aryeo\n      secrets:\n        value:\n          SECRET",
        "\n      scheme: aryeo\n      secrets:\n      - SECRET\n      - [SECRET]",
    ];
    let target = [
        "url: https://u:SECRET@host:99999/",
        "url: \"https://u:SECRET/R?E#T@host:99999/\"",
        "url: 'https://u:SECRET''s@host:99999/'",
        "url: \"https://u\\x3aSECRET\\x40host:99999/\"",
        "url: u:SECRET@host",
        "url: [https://u:SECRET@host]",
        "url: https://u:SECRET@host:99999/\n      SECRET@host",
        "url: { value: SECRET }",
        "headers: { Authorization: Bearer SECRET é, X-Api-Key: 'SECRET' }",
        "headers: { X-A: { value: SECRET }, X-B: { prefix: SECRET, env: x }, X-C: [SECRET] }",
        "headers: { Cookie: { prefix: \"SECRET é\", env: x }, X-Token: SECRET }",
        "password: SECRET",
        "sign: SECRET",
        "# SECRET\n    url: x # SECRET\n    #SECRET",
    ];
    let good = "{ scheme: aryeo, secrets: [{ env: A }] }";
    let tables = verify.iter().map(|verify| table(verify, "url: https://host/"));
    let tables = tables.chain(target.iter().map(|target| table(good, target)));
    tables.map(|text| text.replace("SECRET", SECRET)).collect()
}

#[test]
fn a_secret_is_never_shown_wherever_it_stands() {
    // A url in a wrong place is known only as long as it looks like one, so these are not broken.
    let urls = [
        "timeout: https://u:SECRET@host/",
        "url: https://SECRET@host:99999/",
        "url: https://host:99999/?token=SECRET#SECRET",
        "url: \"https://u:p/a?b#c@SECRET@host:99999/?SECRET\"",
    ];
    let urls = urls.map(|url| table("{ scheme: none }", url).replace("SECRET", SECRET));
    for text in tables().into_iter().chain(urls) {
        let shown = shown(&text);
        assert!(!shown.contains(SECRET) && !shown.contains("3cr3"), "{text}\n{shown}");
        assert!(shown.contains("aryeo:") && shown.contains("- name: "), "{text}\n{shown}");
    }
}

#[test]
fn of_a_url_only_scheme_host_and_path_are_shown() {
    let parts = |text: &'static str| {
        let parts = super::secrets_of_url(text, true);
        parts.map(|(from, to)| text.get(from..to).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(parts("https://host:80/path"), Vec::<&str>::new());
    assert_eq!(parts("http://[::1]:80/path"), Vec::<&str>::new());
    assert_eq!(parts("http://[::1]/path"), Vec::<&str>::new());
    assert_eq!(parts("https://u@host/?q#f"), ["u", "q#f"]);
    assert_eq!(parts("u:p@host"), ["u:p"]);
    assert_eq!(parts("https://u:p/a?b#c@d@host#f"), ["u:p/a?b#c@d", "f"]);
    assert_eq!(parts("https://u:pass"), ["u:pass"]);
    // What has lost its `@`, or is no url at all.
    assert_eq!(parts("https://u:pass,host:80/path"), ["u:pass,host:80"]);
    assert_eq!(parts("https://u:pass#host:80/"), ["u:pass", "host:80/"]);
    assert_eq!(parts("x @ pass"), ["x @ pass"]);
}

#[test]
fn what_is_no_secret_is_shown() {
    let text = table("{ scheme: aryeo, secrets: [{ env: A }, { file: b/c }] }", "timeout: soon");
    let shown = shown(&text);
    for part in ["{ scheme: aryeo, secrets: [{ env: A }, { file: b/c }] }", "timeout: soon"] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
}

#[test]
fn a_file_that_ends_in_the_middle_shows_no_secret_either() {
    for text in tables() {
        for (end, _) in text.char_indices() {
            let text = text.get(..end).unwrap();
            let shown = shown(text);
            assert!(!shown.contains(SECRET), "{text}\n{shown}");
        }
    }
}

/// What breaks a file, without a letter that could make another word of the secret.
const BREAKAGE: &[&str] = &[
    "", "[", "]", "{", "}", ",", "\"", "'", "*", "&", "!", "|", ">", "#", "%", "@", "`", "\t",
    "\n", " ", "-", ": ", "- ", "\r", "\n---\n", "\u{8}",
];

/// A secret as programs make them up.
const TOKEN: &str = "Zx9mQ4tR7uK2pL8w";

/// Where to break a file: so many characters there become something else.
type Edit = (prop::sample::Index, usize, &'static str);

fn edit() -> impl Strategy<Value = Edit> {
    (any::<prop::sample::Index>(), 0..3_usize, prop::sample::select(BREAKAGE))
}

fn broken(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (index, length, piece) in edits {
        let from = index.index(chars.len() + 1);
        let to = (from + length).min(chars.len());
        chars.splice(from..to, piece.chars());
    }
    chars.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    })]

    #[test]
    fn however_often_a_file_is_broken_no_token_in_it_is_shown(
        text in prop::sample::select(tables()), edits in prop::collection::vec(edit(), 1..6),
    ) {
        let text = broken(&text.replace(SECRET, TOKEN), &edits);
        let shown = shown(&text);
        prop_assert!(!shown.contains(TOKEN), "{}\n{}", text, shown);
    }

    /// Broken twice, a word may have come to stand where names do.
    #[test]
    fn a_file_that_is_broken_in_one_place_shows_no_secret_of_it(
        text in prop::sample::select(tables()), edit in edit(),
    ) {
        let text = broken(&text, &[edit]);
        let shown = shown(&text);
        prop_assert!(!shown.contains(SECRET), "{}\n{}", text, shown);
    }
}
