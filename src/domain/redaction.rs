//! Keeping our secrets out of what a target's answer is kept for.
//!
//! Many servers answer an error with a page that shows the request, headers included, and the
//! beginning of an answer to a failed attempt is stored. What we sent in confidence must not come
//! back that way. This finds a secret as it was sent, or as PHP writes it in JSON; who encodes it in
//! another way is not found out.

use std::borrow::Cow;

/// What stands in a secret's place.
const MARK: &[u8] = b"***";

/// The text without these secrets. It may have been cut off after `whole` bytes: then the beginning
/// of a secret at its end is taken out as well.
pub fn without<'a>(text: &'a [u8], secrets: &[&[u8]], whole: usize) -> Cow<'a, [u8]> {
    let mut wanted: Vec<Cow<'_, [u8]>> = Vec::with_capacity(secrets.len());
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        wanted.push(Cow::Borrowed(secret));
        if secret.contains(&b'/') {
            let escaped = secret.split(|byte| *byte == b'/').collect::<Vec<_>>();
            wanted.push(Cow::Owned(escaped.join(&b"\\/"[..])));
        }
    }
    // A secret may be a part of another: the longer one first.
    wanted.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    let was_cut = text.len() >= whole;
    let mut left = text;
    let mut kept: Option<Vec<u8>> = None;
    let mut seen = 0;
    while let Some(rest) = left.get(seen..).filter(|rest| !rest.is_empty()) {
        let found = wanted.iter().find(|secret| rest.starts_with(secret)).map(|s| s.len());
        let cut = || (was_cut && wanted.iter().any(|s| s.starts_with(rest))).then_some(rest.len());
        let Some(length) = found.or_else(cut) else {
            seen += 1;
            continue;
        };
        let kept = kept.get_or_insert_default();
        kept.extend_from_slice(left.get(..seen).unwrap_or_default());
        kept.extend_from_slice(MARK);
        left = rest.get(length..).unwrap_or_default();
        seen = 0;
    }
    match kept {
        None => Cow::Borrowed(text),
        Some(mut kept) => {
            kept.extend_from_slice(left);
            Cow::Owned(kept)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, secrets: &[&str], expected: &str) {
        let secrets: Vec<&[u8]> = secrets.iter().map(|secret| secret.as_bytes()).collect();
        let result = without(text.as_bytes(), &secrets, 40);
        assert_eq!(str::from_utf8(&result), Ok(expected), "{text}");
    }

    #[test]
    fn secrets_are_taken_out_wherever_they_stand() {
        check("an error", &["s3cret"], "an error");
        check("", &["s3cret"], "");
        check("s3cret", &["s3cret"], "***");
        check("a: s3crets3cret; b", &["s3cret", ""], "a: ******; b");
        check("Bearer s3cret, s3cret", &["s3cret", "Bearer s3cret"], "***, ***");
        check(r#"{"a":"x\/y\/z"}, x/y/z"#, &["x/y/z"], r#"{"a":"***"}, ***"#);
    }

    #[test]
    fn the_beginning_of_a_secret_counts_where_the_text_was_cut_off() {
        check(
            "0123456789012345678901234567890123 s3cr",
            &["s3cret"],
            "0123456789012345678901234567890123 s3cr",
        );
        check(
            "01234567890123456789012345678901234 s3cr",
            &["s3cret"],
            "01234567890123456789012345678901234 ***",
        );
    }
}
