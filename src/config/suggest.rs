//! Which word was probably meant by one that is not known.

/// Longer words are no slips of the keyboard, and comparing them would take long.
const WORD_BYTES_MAX: usize = 100;

/// What a character takes at most.
const BYTES_PER_CHAR: usize = 4;

/// Further apart than this, two words are two words, however long they are.
const DISTANCE_MAX: usize = 4;

/// The known word that looks most like `found`, if one does: a third of it may be wrong, and upper
/// and lower case are the same.
pub(super) fn nearest<'k>(
    found: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let bound = |word: &str| (found.len().max(word.len()).max(3) / 3).min(DISTANCE_MAX);
    nearest_within(found, known, bound)
}

/// The known word that looks most like `found` and is no further from it than `bound` says.
pub(super) fn nearest_within<'k>(
    found: &str,
    known: impl IntoIterator<Item = &'k str>,
    bound: impl Fn(&str) -> usize,
) -> Option<&'k str> {
    let letters_found = letters(found);
    let near = known.into_iter().filter_map(|word| {
        let bound = bound(word);
        // Most words have too little in common for a comparison: these tests are cheap.
        if found.len().abs_diff(word.len()) > bound * BYTES_PER_CHAR
            || found.len().max(word.len()) > WORD_BYTES_MAX
            || (letters_found ^ letters(word)).count_ones() as usize > 2 * bound
        {
            return None;
        }
        let [found, lower] = [found, word].map(str::to_ascii_lowercase);
        let distance = strsim::osa_distance(&found, &lower);
        (distance <= bound && !differ_by_number(&found, &lower)).then_some((distance, word))
    });
    // Also of words that come in no order the same is found each time.
    near.min().map(|(_, word)| word)
}

/// Which letters occur: one wrong letter changes two bits at most.
fn letters(word: &str) -> u64 {
    word.chars().fold(0, |letters, c| letters | 1 << (u32::from(c.to_ascii_lowercase()) % 64))
}

/// Whether two words are alike but for their digits: by `t3` nobody means `t2`.
fn differ_by_number(a: &str, b: &str) -> bool {
    let letters = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    a != b && a.contains(|c: char| c.is_ascii_digit()) && letters(a) == letters(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slips_of_the_keyboard_are_recognised() {
        let known = ["billing", "crm", "warehouse", "timeout", "aryeo-timestamped"];
        for (found, meant) in [
            ("biling", Some("billing")),
            ("BILLING", Some("billing")),
            ("billign", Some("billing")),
            ("cmr", Some("crm")),
            ("timeuot", Some("timeout")),
            ("aryeo-timestamp", Some("aryeo-timestamped")),
            ("lake", None),
            ("", None),
            ("x", None),
            ("house", None),
        ] {
            assert_eq!(nearest(found, known), meant, "{found}");
        }
    }

    #[test]
    fn the_nearest_wins() {
        assert_eq!(nearest("orders", ["border", "order", "orders2"]), Some("order"));
        assert_eq!(nearest("aab", ["aaa", "aac"]), Some("aaa"));
    }

    #[test]
    fn another_number_is_another_thing() {
        assert_eq!(nearest("route-12", ["route-13", "route-1"]), None);
        assert_eq!(nearest("route12", ["route-12"]), Some("route-12"));
    }

    proptest! {
        #[test]
        fn the_cheap_tests_exclude_nothing_that_is_near(
            a in "[a-dé]{0,8}", b in "[a-dé]{0,8}", bound in 0..5_usize,
        ) {
            let plainly = strsim::osa_distance(&a, &b) <= bound;
            let found = nearest_within(&a, [&*b], |_| bound).is_some();
            prop_assert_eq!(found, plainly);
        }
    }
}
