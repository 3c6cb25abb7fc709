//! What looks like a token, in a place where none belongs: letters of both cases and digits in the
//! disorder of chance, longer than words are. A guess, and made so that names are not taken for one.

/// Shorter ones are as often names, such as `x86_64` or `T3kAb`.
pub(super) const CHARS_MIN: usize = 16;

/// So many characters may come to each change of kind. In hexadecimal digits it is two, in base 64
/// less, in words with a number at their end many.
const CHARS_PER_CHANGE: usize = 4;

/// The parts of a text that look like tokens, in bytes.
pub(super) fn tokens(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut begin = 0;
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"-_+=%".contains(c));
    words.filter_map(move |word| {
        let from = text.get(begin..)?.find(word)? + begin;
        begin = from + word.len();
        is_token(word).then_some((from, begin))
    })
}

/// Whether all of a word looks like a token.
pub(super) fn is_token(word: &str) -> bool {
    let kinds = word.chars().filter(char::is_ascii_alphanumeric).map(|c| match c {
        '0'..='9' => 0,
        'a'..='z' => 1,
        _ => 2,
    });
    let kinds: Vec<_> = kinds.collect();
    let changes = kinds.windows(2).filter(|pair| pair.first() != pair.last()).count();
    kinds.len() >= CHARS_MIN && kinds.contains(&0) && changes * CHARS_PER_CHANGE >= kinds.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_make_up_is_found_and_names_are_not() {
        for token in [
            "9f86d081884c7d659a2feaa0c55ad015",
            "b1946ac9-2492-d234-7c62-35b4d2611184",
            "T3kAb9xQz0LmN4pR7sVw1yCd",
            "whsec_C2FVsBQIhrscChlQIMV2b5sSYspob7oD",
            "JBSWY3DPEHPK3PXP",
            "eyJhbGciOiJIUzI1NiJ9",
        ] {
            assert!(is_token(token), "{token}");
        }
        for name in [
            "",
            "production-2024-11-25",
            "APPOINTMENT_CUSTOMER_REMINDER_SENT",
            "ARYEO_WEBHOOK_SECRET_V2",
            "OrderCreatedWebhookHandler",
            "crm.eu-central-1.example",
            "123456789012345678",
            "application/json",
            "ip-10-0-12-34",
        ] {
            assert!(!is_token(name), "{name}");
        }
    }

    #[test]
    fn tokens_are_found_where_they_stand() {
        let text = "/services/T3kAb9xQz0LmN4pR7sVw1yCd/é/9f86d081884c7d65?x";
        let found: Vec<_> = tokens(text).map(|(from, to)| text.get(from..to).unwrap()).collect();
        assert_eq!(found, ["T3kAb9xQz0LmN4pR7sVw1yCd", "9f86d081884c7d65"]);
    }
}
