//! `when`: what a route asks of a body.

use crate::config::compile::Context;
use crate::config::forms::{self, Named, Text};
use crate::config::lint;
use crate::config::node::{Meaning, meaning};
use crate::config::schema::Operators;
use crate::config::spot::Spot;
use crate::domain::condition::{Comparison, Condition, Number, Scalar, Test};
use crate::domain::pointer::{Pointer, Pointers};

/// Conditions of one route.
const CONDITIONS_MAX: usize = 64;

/// Values of one `in`.
const VALUES_MAX: usize = 1000;

/// A longer text, in bytes, is a mistake.
const TEXT_BYTES_MAX: usize = 4096;

/// Conditions inside conditions: `not: {not: …}`.
const NESTED_MAX: usize = 8;

/// Compiles the conditions of one route. `pointers` are those of its table.
pub(super) fn compile(
    when: &Named<forms::Condition>,
    spot: Spot<'_>,
    pointers: &mut Pointers,
    context: &mut Context<'_>,
) -> Vec<Condition> {
    if when.0.len() > CONDITIONS_MAX {
        context.report.error(spot.at, format!("more than {CONDITIONS_MAX} conditions"));
    }
    let mut conditions = Vec::with_capacity(when.0.len());
    for (index, (text, condition)) in when.0.iter().enumerate().take(CONDITIONS_MAX) {
        let pointer = Pointer::parse(text).map_err(|error| error.to_string());
        let pointer = context.take(spot.entry_key(index), pointer);
        let test = one(condition, spot.entry(index), 0, context);
        if let (Some(pointer), Some(test)) = (pointer, test) {
            let id = pointers.add(&pointer);
            conditions.push(Condition { pointer, id, test });
        }
    }
    lint::conditions(&conditions, spot, context);
    conditions
}

fn one(
    condition: &forms::Condition,
    spot: Spot<'_>,
    depth: usize,
    context: &mut Context<'_>,
) -> Option<Test> {
    if depth > NESTED_MAX {
        context
            .report
            .error(spot.at, format!("more than {NESTED_MAX} conditions inside each other"));
        return None;
    }
    match condition {
        forms::Condition::Is(value) => scalar(value, spot, context).map(Test::Equals),
        forms::Condition::Holds(operators) => all(operators, spot, depth, context),
    }
}

fn all(
    operators: &Operators,
    spot: Spot<'_>,
    depth: usize,
    context: &mut Context<'_>,
) -> Option<Test> {
    let Operators { equals, not, one_of, gt, gte, lt, lte, prefix, suffix, exists } = operators;
    let mut tests = Vec::new();
    if let Some(value) = equals {
        tests.push(scalar(value, spot.key("equals"), context).map(Test::Equals));
    }
    if let Some(condition) = not {
        let test = one(condition, spot.key("not"), depth + 1, context);
        tests.push(test.map(|test| Test::Not(Box::new(test))));
    }
    if let Some(values) = one_of {
        tests.push(list(values, spot.key("in"), context));
    }
    for (comparison, bound) in [
        (Comparison::Greater, gt),
        (Comparison::GreaterOrEqual, gte),
        (Comparison::Less, lt),
        (Comparison::LessOrEqual, lte),
    ] {
        if let Some(bound) = bound {
            tests.push(compared(comparison, bound, spot.key(comparison.name()), context));
        }
    }
    if let Some(Text(affix)) = prefix {
        tests.push(text(affix, spot.key("prefix"), context).map(Test::Prefix));
    }
    if let Some(Text(affix)) = suffix {
        tests.push(text(affix, spot.key("suffix"), context).map(Test::Suffix));
    }
    tests.extend(exists.map(|expected| Some(Test::Exists(expected))));
    if tests.is_empty() {
        context.report.error(spot.at, "an empty condition: write a value, or {exists: true}");
        return None;
    }
    let mut tests: Vec<_> = tests.into_iter().collect::<Option<_>>()?;
    if tests.len() == 1 { tests.pop() } else { Some(Test::All(tests)) }
}

fn list(values: &[forms::Scalar], spot: Spot<'_>, context: &mut Context<'_>) -> Option<Test> {
    if values.is_empty() || values.len() > VALUES_MAX {
        context.report.error(spot.at, format!("\"in\" takes between 1 and {VALUES_MAX} values"));
        return None;
    }
    let numbered = values.iter().enumerate();
    let values: Vec<_> =
        numbered.map(|(index, value)| scalar(value, spot.item(index), context)).collect();
    values.into_iter().collect::<Option<_>>().map(Test::In)
}

fn compared(
    comparison: Comparison,
    bound: &forms::Scalar,
    spot: Spot<'_>,
    context: &mut Context<'_>,
) -> Option<Test> {
    match scalar(bound, spot, context)? {
        Scalar::Number(bound) => Some(Test::Number(comparison, bound)),
        Scalar::Boolean(_) | Scalar::Null | Scalar::Text(_) => {
            let message = format!(
                "\"{}\" compares numbers, and nothing else is ever more or less: expected a number",
                comparison.name()
            );
            context.report.error(spot.at, message);
            None
        }
    }
}

/// A single value. How a number is written is asked of the tree: no digit is rounded away.
fn scalar(value: &forms::Scalar, spot: Spot<'_>, context: &mut Context<'_>) -> Option<Scalar> {
    match value {
        forms::Scalar::Boolean(value) => Some(Scalar::Boolean(*value)),
        forms::Scalar::Null => Some(Scalar::Null),
        forms::Scalar::Text(value) => text(value, spot, context).map(Scalar::Text),
        forms::Scalar::Number(_) => {
            let written = spot.text().unwrap_or_default();
            let number = match meaning(written) {
                // Also what is hexadecimal to YAML.
                Meaning::Integer(integer) => Number::parse(&integer.to_string()),
                _ => Number::parse(written),
            };
            if number.is_none() {
                context.report.error(spot.at, "JSON has no such number: write it in decimal");
            }
            number.map(Scalar::Number)
        }
    }
}

fn text(text: &str, spot: Spot<'_>, context: &mut Context<'_>) -> Option<Box<str>> {
    if text.len() > TEXT_BYTES_MAX {
        context.report.error(spot.at, format!("more than {TEXT_BYTES_MAX} bytes of text"));
        return None;
    }
    Some(text.into())
}
