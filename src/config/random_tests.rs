//! That the two readers of a routes file read the same, and that no input does harm.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::tests::{TestEnvironment, corpus, load_text, problems_of};
use super::*;

/// Holds [`shape`] and [`schema`] together over one text. Says whether both take it.
///
/// Where only one of the two parsers takes it for YAML, or [`position`] refuses what a routes file
/// has no use for (aliases, tags), there is nothing to compare.
fn compare(text: &str) -> bool {
    let mut report = Report::new(Path::new("f"));
    let tree = position::parse(text, &mut report).ok().filter(|_| !report.has_failed());
    let Some(tree) = tree.filter(|_| schema::is_yaml_for_test(text)) else { return false };
    let pruned = shape::check(&tree, &mut report);
    let file = schema::from_text(text);
    assert_eq!(
        !report.has_failed(),
        file.is_ok(),
        "shape: {:?}\nschema: {file:?}\n{text}",
        report.finish()
    );
    if let Ok(file) = &file {
        let again = schema::from_node(&pruned.expect("no problem")).expect("the same tree");
        assert_eq!(*file, again, "the two readers read different values in\n{text}");
    } else if let Some(pruned) = pruned {
        schema::from_node(&pruned).expect("what is left has no problem of form");
    }
    file.is_ok()
}

#[test]
fn the_two_readers_agree_on_every_file_of_the_corpus() {
    for path in [corpus("good"), corpus("warn"), corpus("bad"), vec!["routes.yaml".into()]].concat()
    {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let both = compare(text.strip_prefix('\u{feff}').unwrap_or(&text));
        let is_good = !path.parent().unwrap().ends_with("bad");
        assert!(both || !is_good, "{}", path.display());
    }
}

#[test]
fn what_the_parsers_take_for_different_things_is_refused() {
    let text = fs::read_to_string("tests/data/routes/good/base.yaml").unwrap();
    let problems = problems_of(&text.replace("[crm, billing]", "[crm,:billing]"));
    assert!(problems.contains(": error: not every reader of YAML takes this: "), "{problems}");
}

/// A good file, broken in small ways that keep it YAML more often than not.
pub(super) fn mutated() -> impl Strategy<Value = String> {
    let texts: Vec<String> = corpus("good")
        .into_iter()
        .chain(["routes.yaml".into()])
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let piece = prop_oneof![
        "[ \n:{}\\[\\],*&!|>'\"#?%@~-]{1,3}",
        "[a-z0-9_./]{1,6}",
        Just("null".to_owned()),
        Just("- ".to_owned()),
        Just(": ".to_owned()),
        Just("\n  ".to_owned()),
        Just("\t".to_owned()),
        Just(String::new()),
        "\\PC{1,2}",
    ];
    let edit = (any::<prop::sample::Index>(), 0..12_usize, piece);
    (prop::sample::select(texts), prop::collection::vec(edit, 0..4)).prop_map(|(text, edits)| {
        let mut chars: Vec<char> = text.chars().collect();
        for (index, length, piece) in edits {
            let from = index.index(chars.len() + 1);
            let to = (from + length).min(chars.len());
            chars.splice(from..to, piece.chars());
        }
        chars.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn no_text_makes_loading_panic(text in "\\PC*|[ \n\t:{}\\[\\],*&!|>'\"#?%a-]*") {
        prop_assert!(load_text(&text).map_or_else(|problems| problems.errors() > 0, |_| true));
    }

    #[test]
    fn no_bytes_make_loading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let path = Path::new("routes.yaml");
        drop(load_bytes(&bytes, path, &TestEnvironment, Secrets::Resolve));
    }

    #[test]
    fn no_broken_file_makes_loading_panic_or_fail_without_a_reason(text in mutated()) {
        if let Err(problems) = load_text(&text) {
            prop_assert!(problems.errors() > 0);
        }
    }

    #[test]
    fn the_two_readers_agree_on_broken_files(text in mutated()) {
        compare(&text);
    }
}
