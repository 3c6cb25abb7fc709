//! What a route's `when` asks of a body: typed questions about single values.
//!
//! A missing value answers yes only to `exists: false` and to what is negated. Types are not mixed:
//! the text `"5"` is neither equal to nor greater than the number 4.

use std::cmp::Ordering;
use std::fmt;

use crate::domain::number::Decimal;
use crate::domain::pointer::{Document, Field, Pointer, PointerId};

/// One question about one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Where the value stands.
    pub pointer: Pointer,
    /// The same among the pointers of its table.
    pub id: PointerId,
    /// What is asked of it.
    pub test: Test,
}

impl Condition {
    /// Whether it holds.
    pub fn holds(&self, document: &Document<'_>) -> bool {
        self.test.holds(document.get(self.id))
    }
}

/// What is asked of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// All of these; for several operators in one condition.
    All(Vec<Self>),
    /// It equals this.
    Equals(Scalar),
    /// It is there, or it is not.
    Exists(bool),
    /// It equals one of these.
    In(Vec<Scalar>),
    /// It is a number, and stands so to this one.
    Number(Comparison, Number),
    /// This does not hold.
    Not(Box<Self>),
    /// It is text that begins so.
    Prefix(Box<str>),
    /// It is text that ends so.
    Suffix(Box<str>),
}

/// How a number stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `gt`
    Greater,
    /// `gte`
    GreaterOrEqual,
    /// `lt`
    Less,
    /// `lte`
    LessOrEqual,
}

/// A value that is written in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar {
    /// `true` or `false`.
    Boolean(bool),
    /// `null`; equals nothing but itself.
    Null,
    /// A number.
    Number(Number),
    /// Text.
    Text(Box<str>),
}

/// A number as it is written in a table.
#[derive(Debug, Clone)]
pub struct Number(Box<str>);

impl Number {
    /// Reads decimal notation.
    pub fn parse(text: &str) -> Option<Self> {
        Decimal::parse(text.as_bytes()).map(|_| Self(text.into()))
    }

    /// To compare with.
    pub fn decimal(&self) -> Decimal<'_> {
        Decimal::parse(self.0.as_bytes()).expect("it was read when it was made")
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.decimal() == other.decimal()
    }
}

impl Eq for Number {}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Test {
    /// Whether it holds of a value, or of none.
    pub fn holds(&self, field: Option<&Field<'_>>) -> bool {
        match self {
            Self::All(tests) => tests.iter().all(|test| test.holds(field)),
            Self::Exists(expected) => field.is_some() == *expected,
            Self::Not(test) => !test.holds(field),
            Self::Equals(scalar) => field.is_some_and(|field| scalar.equals(field)),
            Self::In(list) => field.is_some_and(|field| list.iter().any(|one| one.equals(field))),
            Self::Number(comparison, bound) => match field {
                Some(Field::Number(number, _)) => comparison.holds(number.cmp(&bound.decimal())),
                _ => false,
            },
            Self::Prefix(prefix) => text(field).is_some_and(|text| text.starts_with(&**prefix)),
            Self::Suffix(suffix) => text(field).is_some_and(|text| text.ends_with(&**suffix)),
        }
    }
}

impl Comparison {
    /// Whether the order of two numbers is as wanted.
    pub const fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
        }
    }

    /// Its name in a table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Greater => "gt",
            Self::GreaterOrEqual => "gte",
            Self::Less => "lt",
            Self::LessOrEqual => "lte",
        }
    }
}

impl Scalar {
    fn equals(&self, field: &Field<'_>) -> bool {
        match (self, field) {
            (Self::Boolean(a), Field::Boolean(b)) => a == b,
            (Self::Null, Field::Null) => true,
            (Self::Number(a), Field::Number(b, _)) => a.decimal() == *b,
            (Self::Text(a), Field::Text(b)) => b.get() == Some(a),
            _ => false,
        }
    }
}

fn text<'a>(field: Option<&'a Field<'_>>) -> Option<&'a str> {
    match field {
        Some(Field::Text(text)) => text.get(),
        _ => None,
    }
}

impl fmt::Display for Condition {
    /// As one would write it: `/resource/total {gte: 100}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.test {
            Test::Equals(scalar) => write!(f, "{}: {scalar}", self.pointer),
            test => write!(f, "{}: {{{test}}}", self.pointer),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(tests) => write_list(f, tests),
            Self::Equals(scalar) => write!(f, "equals: {scalar}"),
            Self::Exists(expected) => write!(f, "exists: {expected}"),
            Self::In(list) => {
                f.write_str("in: [")?;
                write_list(f, list)?;
                f.write_str("]")
            }
            Self::Not(test) => match &**test {
                Self::Equals(scalar) => write!(f, "not: {scalar}"),
                test => write!(f, "not: {{{test}}}"),
            },
            Self::Number(comparison, bound) => write!(f, "{}: {bound}", comparison.name()),
            Self::Prefix(prefix) => write!(f, "prefix: {prefix:?}"),
            Self::Suffix(suffix) => write!(f, "suffix: {suffix:?}"),
        }
    }
}

fn write_list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, list: &[T]) -> fmt::Result {
    for (index, one) in list.iter().enumerate() {
        write!(f, "{}{one}", if index == 0 { "" } else { ", " })?;
    }
    Ok(())
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Null => f.write_str("null"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::pointer::Pointers;

    fn number(text: &str) -> Number {
        Number::parse(text).unwrap()
    }

    fn is(text: &str) -> Test {
        Test::Equals(Scalar::Text(text.into()))
    }

    fn compares(comparison: Comparison, bound: &str) -> Test {
        Test::Number(comparison, number(bound))
    }

    #[track_caller]
    fn check(test: &Test, holds_of: &[&str], not_of: &[&str]) {
        for (values, expected) in [(holds_of, true), (not_of, false)] {
            for value in values {
                // An empty text stands for a value that is missing.
                let body = match *value {
                    "" => r#"{"b":1}"#.to_owned(),
                    value => format!(r#"{{"a":{value}}}"#),
                };
                let mut pointers = Pointers::default();
                let pointer = Pointer::parse("/a").unwrap();
                let id = pointers.add(&pointer);
                let condition = Condition { pointer, id, test: test.clone() };
                let document = Document::new(body.as_bytes(), &pointers);
                assert_eq!(condition.holds(&document), expected, "{condition} of {body}");
            }
        }
    }

    #[test]
    fn equal_is_of_the_same_type_and_numbers_are_compared_as_numbers() {
        check(&is("x"), &[r#""x""#, r#""\u0078""#], &["1", "null", r#""X""#, r#"["x"]"#, ""]);
        check(&is("1"), &[r#""1""#], &["1", "1.0"]);
        let one = Test::Equals(Scalar::Number(number("1")));
        check(&one, &["1", "1.0", "10e-1"], &[r#""1""#, "1.01", "true", "[1]", ""]);
        check(&Test::Equals(Scalar::Null), &["null"], &["0", r#""""#, "false", "{}", ""]);
        check(&Test::Equals(Scalar::Boolean(true)), &["true"], &["false", r#""true""#, "1", ""]);
    }

    #[test]
    fn a_text_is_neither_more_nor_less_than_a_number() {
        use Comparison::{Greater, GreaterOrEqual, Less, LessOrEqual};
        let strange = [r#""5""#, "null", "true", "[5]", ""];
        for (comparison, yes, no) in [
            (Greater, "5.1", "5"),
            (GreaterOrEqual, "5.0", "4.9"),
            (Less, "-6", "5"),
            (LessOrEqual, "5", "5.0000000000000000001"),
        ] {
            check(&compares(comparison, "5"), &[yes], &[&[no][..], &strange].concat());
        }
    }

    #[test]
    fn a_missing_value_satisfies_only_what_is_negated() {
        check(&Test::Exists(false), &[""], &["null", "1", "{}"]);
        check(&Test::Exists(true), &["null", "[]", r#""""#], &[""]);
        check(&Test::Not(Box::new(is("x"))), &["", "1", r#""y""#], &[r#""x""#]);
        let small = compares(Comparison::Less, "5");
        check(&Test::Not(Box::new(small)), &["", "5", r#""1""#], &["4"]);
        check(&Test::Not(Box::new(Test::Exists(false))), &["1"], &[""]);
    }

    #[test]
    fn texts_have_beginnings_and_ends() {
        check(
            &Test::Prefix("ab".into()),
            &[r#""abc""#, r#""ab""#],
            &[r#""a""#, r#""cab""#, "12", ""],
        );
        check(&Test::Suffix("é".into()), &[r#""caf\u00e9""#], &[r#""cafe""#, r#""éa""#, "null"]);
    }

    #[test]
    fn one_of_a_list_and_all_of_several() {
        let list =
            Test::In(vec![Scalar::Text("a".into()), Scalar::Number(number("2")), Scalar::Null]);
        check(&list, &[r#""a""#, "2.0", "null"], &[r#""2""#, "3", ""]);
        let range = Test::All(vec![
            compares(Comparison::GreaterOrEqual, "1"),
            compares(Comparison::Less, "5"),
        ]);
        check(&range, &["1", "4.999"], &["0", "5", r#""3""#, ""]);
    }

    #[test]
    fn a_condition_reads_as_it_is_written() {
        let mut pointers = Pointers::default();
        let pointer = Pointer::parse("/a/b").unwrap();
        let id = pointers.add(&pointer);
        let test = Test::All(vec![
            compares(Comparison::GreaterOrEqual, "1.50"),
            Test::Not(Box::new(Test::In(vec![Scalar::Null, Scalar::Text("x".into())]))),
        ]);
        let condition = Condition { pointer: pointer.clone(), id, test };
        assert_eq!(condition.to_string(), r#"/a/b: {gte: 1.50, not: {in: [null, "x"]}}"#);
        assert_eq!(Condition { pointer, id, test: is("x") }.to_string(), r#"/a/b: "x""#);
    }
}
