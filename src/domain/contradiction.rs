//! Conditions that no body can satisfy.
//!
//! What is found is so; what is not found may be so nevertheless. It is looked for what is likely
//! when somebody writes a table: bounds that leave no number, values of two types, a value that
//! another operator excludes, something below a value that has nothing below it.

use std::cmp::Ordering;

use crate::domain::condition::{Comparison, Condition, Number, Scalar, Test};

/// Two parts of a condition that do not go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// One of them, as it is written.
    pub one: String,
    /// The other.
    pub other: String,
}

/// Why a condition can never hold, if that is found.
pub fn contradiction(test: &Test) -> Option<Contradiction> {
    let mut facts = Vec::new();
    collect(test, true, &mut facts);
    if is_possible(&facts) {
        return None;
    }
    // Two of them are enough for a reader in nearly every case.
    let pairs = facts
        .iter()
        .enumerate()
        .flat_map(|(index, one)| facts.iter().skip(index + 1).map(move |other| [*one, *other]));
    let pair = pairs.into_iter().find(|pair| !is_possible(pair));
    let shown = |fact: Option<&Fact<'_>>| fact.map_or_else(String::new, Fact::show);
    let [one, other] = match pair {
        Some([one, other]) => [shown(Some(&one)), shown(Some(&other))],
        None => {
            let all: Vec<_> = facts.iter().skip(1).map(Fact::show).collect();
            [shown(facts.first()), all.join(", ")]
        }
    };
    Some(Contradiction { one, other })
}

/// The conditions of one route, by number, that can not hold together: the first one leaves nothing
/// for the second to look at.
pub fn conflicts(conditions: &[Condition]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (above, upper) in conditions.iter().enumerate() {
        // Only an object or an array has something below it.
        if admits(&upper.test, Value::Nested) {
            continue;
        }
        let is_below = |lower: &Condition| {
            let rest = lower.pointer.as_str().strip_prefix(upper.pointer.as_str());
            rest.is_some_and(|rest| rest.starts_with('/')) && !admits(&lower.test, Value::Missing)
        };
        let below = conditions.iter().enumerate().filter(|(_, lower)| is_below(lower));
        found.extend(below.map(|(below, _)| (above, below)));
    }
    found
}

/// A value in a body.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Missing,
    /// An object or an array.
    Nested,
    Scalar(&'a Scalar),
}

/// Something that must hold, or must not.
#[derive(Debug, Clone, Copy)]
struct Fact<'a> {
    test: &'a Test,
    holds: bool,
}

impl Fact<'_> {
    fn admits(&self, value: Value<'_>) -> bool {
        admits(self.test, value) == self.holds
    }

    fn show(&self) -> String {
        match (self.holds, self.test) {
            (true, test) => test.to_string(),
            // As one would rather write it.
            (false, Test::Exists(expected)) => Test::Exists(!expected).to_string(),
            (false, Test::Equals(scalar)) => format!("not: {scalar}"),
            (false, test) => format!("not: {{{test}}}"),
        }
    }
}

/// Whether a test holds of a value: as [`Test::holds`], of what is written in a table.
fn admits(test: &Test, value: Value<'_>) -> bool {
    let text = |affix: fn(&str, &str) -> bool, part: &str| match value {
        Value::Scalar(Scalar::Text(text)) => affix(text, part),
        Value::Missing | Value::Nested | Value::Scalar(_) => false,
    };
    match test {
        Test::All(tests) => tests.iter().all(|test| admits(test, value)),
        Test::Exists(expected) => !matches!(value, Value::Missing) == *expected,
        Test::Not(test) => !admits(test, value),
        Test::Equals(scalar) => matches!(value, Value::Scalar(value) if value == scalar),
        Test::In(list) => matches!(value, Value::Scalar(value) if list.contains(value)),
        Test::Number(comparison, bound) => match value {
            Value::Scalar(Scalar::Number(number)) => {
                comparison.holds(number.decimal().cmp(&bound.decimal()))
            }
            Value::Missing | Value::Nested | Value::Scalar(_) => false,
        },
        Test::Prefix(prefix) => text(|text, part| text.starts_with(part), prefix),
        Test::Suffix(suffix) => text(|text, part| text.ends_with(part), suffix),
    }
}

/// Takes a test apart into what must hold at the same time.
fn collect<'a>(test: &'a Test, holds: bool, facts: &mut Vec<Fact<'a>>) {
    match test {
        Test::All(tests) if holds => tests.iter().for_each(|test| collect(test, true, facts)),
        Test::Not(test) => collect(test, !holds, facts),
        test => facts.push(Fact { test, holds }),
    }
}

/// Whether some value may satisfy all of them.
fn is_possible(facts: &[Fact<'_>]) -> bool {
    let all_admit = |value| facts.iter().all(|fact| fact.admits(value));
    let positive = || facts.iter().filter(|fact| fact.holds).map(|fact| fact.test);
    let must_miss = |fact: &Fact<'_>| matches!(fact.test, Test::Exists(e) if *e != fact.holds);
    if facts.iter().any(must_miss) {
        return all_admit(Value::Missing);
    }
    // Where the values are named, they can be tried.
    let named = positive().find_map(|test| match test {
        Test::Equals(scalar) => Some(std::slice::from_ref(scalar)),
        Test::In(list) => Some(list),
        _ => None,
    });
    if let Some(named) = named {
        return named.iter().any(|scalar| all_admit(Value::Scalar(scalar)));
    }
    let is_number = positive().any(|test| matches!(test, Test::Number(..)));
    let is_text = positive().any(|test| matches!(test, Test::Prefix(_) | Test::Suffix(_)));
    match (is_number, is_text) {
        (true, true) => false,
        (true, false) => has_number(facts),
        (false, true) => has_text(facts),
        (false, false) => true,
    }
}

/// A bound, and whether it is within.
type Bound<'a> = (&'a Number, bool);

/// Whether the bounds leave a number. That a number is excluded by `not` matters only where the
/// bounds leave no other.
fn has_number(facts: &[Fact<'_>]) -> bool {
    let (mut low, mut high): (Option<Bound<'_>>, Option<Bound<'_>>) = (None, None);
    for Fact { test, holds } in facts {
        let Test::Number(comparison, bound) = test else { continue };
        let (is_lower, within) = match (comparison, holds) {
            (Comparison::Greater, true) | (Comparison::LessOrEqual, false) => (true, false),
            (Comparison::GreaterOrEqual, true) | (Comparison::Less, false) => (true, true),
            (Comparison::Less, true) | (Comparison::GreaterOrEqual, false) => (false, false),
            (Comparison::LessOrEqual, true) | (Comparison::Greater, false) => (false, true),
        };
        let (known, tighter) = match is_lower {
            true => (&mut low, Ordering::Greater),
            false => (&mut high, Ordering::Less),
        };
        let replaces = known.is_none_or(|(other, other_within)| {
            let order = bound.decimal().cmp(&other.decimal());
            order == tighter || (order.is_eq() && other_within && !within)
        });
        if replaces {
            *known = Some((bound, within));
        }
    }
    let (Some((low, low_within)), Some((high, high_within))) = (low, high) else { return true };
    match low.decimal().cmp(&high.decimal()) {
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => {
            let only = Scalar::Number(low.clone());
            low_within && high_within && facts.iter().all(|f| f.admits(Value::Scalar(&only)))
        }
    }
}

/// Whether there may be a text with these beginnings and ends.
fn has_text(facts: &[Fact<'_>]) -> bool {
    let is_refused = |fact: &Fact<'_>| match (fact.holds, fact.test) {
        (true, Test::Prefix(prefix)) => facts.iter().any(|other| match (other.holds, other.test) {
            (false, Test::Prefix(refused)) => prefix.starts_with(&**refused),
            (true, Test::Prefix(other)) => {
                !prefix.starts_with(&**other) && !other.starts_with(&**prefix)
            }
            _ => false,
        }),
        (true, Test::Suffix(suffix)) => facts.iter().any(|other| match (other.holds, other.test) {
            (false, Test::Suffix(refused)) => suffix.ends_with(&**refused),
            (true, Test::Suffix(other)) => {
                !suffix.ends_with(&**other) && !other.ends_with(&**suffix)
            }
            _ => false,
        }),
        _ => false,
    };
    !facts.iter().any(is_refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::pointer::{Document, Pointer, Pointers};
    use proptest::prelude::*;

    fn number(text: &str) -> Number {
        Number::parse(text).unwrap()
    }

    fn is(text: &str) -> Test {
        Test::Equals(Scalar::Text(text.into()))
    }

    fn not(test: Test) -> Test {
        Test::Not(Box::new(test))
    }

    fn cmp(comparison: Comparison, bound: &str) -> Test {
        Test::Number(comparison, number(bound))
    }

    #[track_caller]
    fn check(tests: &[Test], expected: Option<(&str, &str)>) {
        let found = contradiction(&Test::All(tests.to_vec()));
        let found = found.as_ref().map(|found| (&*found.one, &*found.other));
        assert_eq!(found, expected);
    }

    #[test]
    fn bounds_that_leave_no_number_are_found() {
        use Comparison::{Greater, GreaterOrEqual, Less, LessOrEqual};
        check(&[cmp(Greater, "5"), cmp(Less, "3")], Some(("gt: 5", "lt: 3")));
        check(&[cmp(GreaterOrEqual, "5"), cmp(Less, "5.0")], Some(("gte: 5", "lt: 5.0")));
        check(&[cmp(GreaterOrEqual, "5"), cmp(LessOrEqual, "5")], None);
        check(&[cmp(Greater, "5"), cmp(Less, "5.1")], None);
        let not_five = not(Test::Equals(Scalar::Number(number("5"))));
        let exactly = [cmp(GreaterOrEqual, "5"), cmp(LessOrEqual, "5"), not_five];
        check(&exactly, Some(("gte: 5", "lte: 5, not: 5")));
        check(&[cmp(Greater, "5"), not(cmp(Greater, "3"))], Some(("gt: 5", "not: {gt: 3}")));
        check(&[cmp(Greater, "3"), not(cmp(Greater, "5"))], None);
    }

    #[test]
    fn values_that_another_operator_excludes_are_found() {
        check(&[is("abc"), Test::Prefix("b".into())], Some((r#"equals: "abc""#, r#"prefix: "b""#)));
        check(&[is("abc"), Test::Prefix("ab".into())], None);
        let five = Test::Equals(Scalar::Number(number("5")));
        check(&[five.clone(), Test::Prefix("5".into())], Some(("equals: 5", r#"prefix: "5""#)));
        check(&[five.clone(), Test::In(vec![Scalar::Null])], Some(("equals: 5", "in: [null]")));
        check(&[five.clone(), not(five.clone())], Some(("equals: 5", "not: 5")));
        check(&[five, Test::Exists(false)], Some(("equals: 5", "exists: false")));
        check(&[Test::Exists(false), not(is("x"))], None);
        check(
            &[Test::Exists(true), not(Test::Exists(true))],
            Some(("exists: true", "exists: false")),
        );
    }

    #[test]
    fn beginnings_and_types_that_exclude_each_other_are_found() {
        let text = Test::Prefix("abc".into());
        check(&[text.clone(), cmp(Comparison::Greater, "1")], Some((r#"prefix: "abc""#, "gt: 1")));
        check(
            &[text.clone(), not(Test::Prefix("ab".into()))],
            Some((r#"prefix: "abc""#, r#"not: {prefix: "ab"}"#)),
        );
        check(&[text.clone(), not(Test::Prefix("abcd".into()))], None);
        check(&[text, Test::Suffix("zz".into())], None);
    }

    #[test]
    fn what_is_below_a_value_without_anything_below_it_is_found() {
        let mut pointers = Pointers::default();
        let mut at = |pointer: &str, test: Test| {
            let pointer = Pointer::parse(pointer).unwrap();
            let id = pointers.add(&pointer);
            Condition { pointer, id, test }
        };
        let conditions = [
            at("/a", is("x")),
            at("/a/b", is("x")),
            at("/ab", is("x")),
            at("/a/c", Test::Exists(false)),
            at("/d", Test::Exists(true)),
            at("/d/e", is("x")),
            at("/f/g", is("x")),
            at("/f", Test::Exists(false)),
        ];
        assert_eq!(conflicts(&conditions), [(0, 1), (7, 6)]);
    }

    fn scalar() -> impl Strategy<Value = Scalar> {
        prop_oneof![
            any::<bool>().prop_map(Scalar::Boolean),
            Just(Scalar::Null),
            (0..4_u8).prop_map(|n| Scalar::Number(number(&n.to_string()))),
            "[ab]{0,2}".prop_map(|text| Scalar::Text(text.into())),
        ]
    }

    fn test() -> impl Strategy<Value = Test> {
        let comparison = prop::sample::select(vec![
            Comparison::Greater,
            Comparison::GreaterOrEqual,
            Comparison::Less,
            Comparison::LessOrEqual,
        ]);
        let leaf = prop_oneof![
            scalar().prop_map(Test::Equals),
            prop::collection::vec(scalar(), 1..3).prop_map(Test::In),
            any::<bool>().prop_map(Test::Exists),
            (comparison, 0..4_u8).prop_map(|(c, n)| cmp(c, &n.to_string())),
            "[ab]{0,2}".prop_map(|text| Test::Prefix(text.into())),
            "[ab]{0,2}".prop_map(|text| Test::Suffix(text.into())),
        ];
        leaf.prop_recursive(3, 8, 4, |inner| {
            prop_oneof![
                inner.clone().prop_map(not),
                prop::collection::vec(inner, 1..4).prop_map(Test::All),
            ]
        })
    }

    /// Bodies with every kind of value; texts and numbers beyond those of the tests.
    fn bodies() -> Vec<String> {
        let mut values: Vec<String> =
            ["null", "true", "false", "[]", "{}"].map(str::to_owned).to_vec();
        values.extend((-1..9).map(|half| format!("{}", f64::from(half) / 2.0)));
        let letters = ["", "a", "b", "z"];
        for one in letters {
            for two in letters {
                values.extend(letters.map(|three| format!("\"{one}{two}{three}\"")));
            }
        }
        let mut bodies: Vec<_> = values.iter().map(|value| format!(r#"{{"a":{value}}}"#)).collect();
        bodies.push("{}".to_owned());
        bodies
    }

    proptest! {
        #[test]
        fn what_some_body_satisfies_is_no_contradiction(test in test()) {
            let mut pointers = Pointers::default();
            let pointer = Pointer::parse("/a").unwrap();
            let id = pointers.add(&pointer);
            let found = contradiction(&test);
            let condition = Condition { pointer, id, test };
            for body in bodies() {
                let holds = condition.holds(&Document::new(body.as_bytes(), &pointers));
                prop_assert!(!holds || found.is_none(), "{} has {:?}: {}", condition, found, body);
            }
        }

        #[test]
        fn a_written_value_is_judged_as_that_of_a_body(test in test(), scalar in scalar()) {
            let mut pointers = Pointers::default();
            let pointer = Pointer::parse("/a").unwrap();
            let id = pointers.add(&pointer);
            let admitted = admits(&test, Value::Scalar(&scalar));
            let body = format!(r#"{{"a":{scalar}}}"#);
            let condition = Condition { pointer, id, test };
            prop_assert_eq!(condition.holds(&Document::new(body.as_bytes(), &pointers)), admitted);
        }
    }
}
