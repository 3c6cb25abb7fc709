//! Decimal numbers compared as they are written, without rounding: an id of twenty digits is not
//! its neighbour, and `1.0` is `1`.

use std::cmp::Ordering;

/// More than any exponent that is written on purpose; sums of two stay far from overflow.
const EXPONENT_MAX: i64 = 1_000_000_000_000;

/// A number in decimal notation: `0.DIGITS` times ten to the power of `exponent`.
#[derive(Debug, Clone, Copy)]
pub struct Decimal<'a> {
    negative: bool,
    /// From the first to the last digit that counts, a point perhaps between them; empty for zero.
    digits: &'a [u8],
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Reads a number of JSON, or one with a `+` before it, as YAML has them.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let (negative, unsigned) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let (mantissa, power) = match unsigned.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => {
                let (mantissa, power) = unsigned.split_at_checked(at)?;
                (mantissa, exponent(power.get(1..)?)?)
            }
            None => (unsigned, 0),
        };
        let point = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
        let whole = mantissa.get(..point)?;
        let part = mantissa.get(point + 1..).unwrap_or_default();
        let all_digits = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
        let complete = !whole.is_empty() && (point == mantissa.len() || !part.is_empty());
        if !complete || !all_digits(whole) || !all_digits(part) {
            return None;
        }
        let counts = |byte: &u8| (b'1'..=b'9').contains(byte);
        let (Some(first), Some(last)) =
            (mantissa.iter().position(counts), mantissa.iter().rposition(counts))
        else {
            return Some(Self { negative: false, digits: &[], exponent: 0 });
        };
        // Digits before the point make it greater, zeros right behind it smaller.
        let magnitude = if first < point {
            i64::try_from(point - first).ok()?
        } else {
            -i64::try_from(first - point - 1).ok()?
        };
        let digits = mantissa.get(first..=last)?;
        Some(Self { negative, digits, exponent: magnitude.saturating_add(power) })
    }

    fn magnitude(&self, other: &Self) -> Ordering {
        let digits = |number: &Self| number.digits.iter().copied().filter(|byte| *byte != b'.');
        match (self.digits.is_empty(), other.digits.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => self
                .exponent
                .cmp(&other.exponent)
                // What goes on after an equal beginning is the greater one: its last digit counts.
                .then_with(|| digits(self).cmp(digits(other))),
        }
    }
}

impl Ord for Decimal<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, false) => self.magnitude(other),
            (true, true) => other.magnitude(self),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Decimal<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Decimal<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Decimal<'_> {}

/// The digits after an `e`; what is out of all proportion is as good as infinite.
fn exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = (value * 10 + i64::from(digit - b'0')).min(EXPONENT_MAX);
    }
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn compare(a: &str, b: &str) -> Ordering {
        let [a, b] = [a, b].map(|text| Decimal::parse(text.as_bytes()).expect("a number"));
        assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        a.cmp(&b)
    }

    #[test]
    fn numbers_are_equal_however_they_are_written() {
        for (a, b) in [
            ("1", "1.0"),
            ("1", "1.000"),
            ("100", "1e2"),
            ("100", "1E+2"),
            ("0.01", "1e-2"),
            ("12.5", "125e-1"),
            ("0", "-0.0"),
            ("0e5", "0"),
            ("-1.50", "-15e-1"),
            ("+7", "7"),
            ("007", "7"),
        ] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} and {b}");
        }
    }

    #[test]
    fn no_digit_is_rounded_away() {
        for (less, more) in [
            ("9007199254740992", "9007199254740993"),
            ("0.30000000000000004", "0.30000000000000005"),
            ("1", "1.0000000000000000000001"),
            ("-2", "-1"),
            ("-1", "0"),
            ("0", "1e-400"),
            ("1e400", "1e401"),
            ("9", "10"),
            ("99", "100"),
            ("0.9", "1"),
            ("1", "1e99999999999999999999"),
            ("1e-99999999999999999999", "1"),
        ] {
            assert_eq!(compare(less, more), Ordering::Less, "{less} and {more}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "", "-", "+", "e5", "1e", "1e+", ".5", "5.", "1.2.3", "0x10", "1_000", "--1", "inf",
            "1e5.0",
        ] {
            assert!(Decimal::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn integers_compare_as_integers(a in any::<i128>(), b in any::<i128>()) {
            prop_assert_eq!(compare(&a.to_string(), &b.to_string()), a.cmp(&b));
        }

        #[test]
        fn floats_compare_as_floats(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(a.is_finite() && b.is_finite());
            // Rust writes a float with all the digits that it has.
            prop_assert_eq!(Some(compare(&a.to_string(), &b.to_string())), a.partial_cmp(&b));
            prop_assert_eq!(compare(&format!("{a:e}"), &a.to_string()), Ordering::Equal);
        }

        #[test]
        fn nothing_makes_it_panic(text in "[-+0-9.eE]{0,40}") {
            if let Some(number) = Decimal::parse(text.as_bytes()) {
                prop_assert_eq!(number.cmp(&number), Ordering::Equal);
            }
        }
    }
}
