//! That nothing of what is printed has a secret in it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::config::{self, Problems, Secrets};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

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

const SEED: u64 = 1;

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
fn breakage() -> impl Strategy<Value = String> {
    prop_oneof![
        "[\\[\\]{},\"'*&!|>#%@`\t\n -]{1,3}",
        Just("\u{8}".to_owned()),
        Just("\n---\n".to_owned()),
        Just("\r".to_owned()),
        Just(": ".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        // Enough edits make another word of anything; these do not.
        rng_seed: RngSeed::Fixed(SEED),
        ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn no_broken_file_shows_a_secret(
        text in prop::sample::select(tables()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3_usize, breakage()), 1..4),
    ) {
        let mut chars: Vec<char> = text.chars().collect();
        for (index, length, piece) in edits {
            let from = index.index(chars.len() + 1);
            let to = (from + length).min(chars.len());
            chars.splice(from..to, piece.chars());
        }
        let text: String = chars.into_iter().collect();
        let shown = shown(&text);
        prop_assert!(!shown.contains(SECRET), "{}\n{}", text, shown);
    }
}
