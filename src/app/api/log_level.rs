//! The level of the log, shown and changed.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::api::Problem;
use crate::config;
use crate::domain::time::Timestamp;
use crate::telemetry::log_level::{Known, LEVELS, LogLevel};

/// A level for a while ends within this; whoever wants another one for longer has a flag.
const FOR_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is to be logged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    level: String,
    #[serde(rename = "for")]
    lasting: Option<String>,
}

/// How it is.
pub(super) fn shown(known: Known) -> Value {
    json!({
        "level": known.level.to_string(),
        "configured": known.configured.to_string(),
        "until": known.until.map(|until| until.to_string()),
    })
}

/// Changes it, and tells how it is then.
pub(super) fn set(log_level: &LogLevel, body: &Bytes, now: Timestamp) -> Result<Value, Problem> {
    let Wanted { level, lasting } = super::parse(body)?;
    let wrong = |detail| Problem::new(StatusCode::BAD_REQUEST, detail);
    let Some(level) = LEVELS.into_iter().find(|known| known.to_string() == level) else {
        let all = LEVELS.map(|level| level.to_string()).join(", ");
        return Err(wrong(format!("level: there is no {level:?}; it is one of {all}")));
    };
    let lasting = lasting.map(|text| lasts(&text)).transpose();
    let lasting = lasting.map_err(|error| wrong(format!("for: {error}")))?;
    log_level.set(level, lasting.map(|lasting| now.plus(lasting)));
    Ok(shown(log_level.known()))
}

fn lasts(text: &str) -> Result<Duration, String> {
    let lasting = config::duration(text)?;
    if lasting.is_zero() || lasting > FOR_MAX {
        return Err(format!("it is more than nothing and at most 7d, not {text}"));
    }
    Ok(lasting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(log_level: &LogLevel, body: &str) -> Result<Value, u16> {
        let now = Timestamp::from_millis(1_700_000_000_000);
        set(log_level, &Bytes::from(body.to_owned()), now)
            .map_err(|problem| problem.status.as_u16())
    }

    #[test]
    fn a_level_is_set_for_good_or_for_a_while_and_what_can_t_be_meant_changes_nothing() {
        let log_level = LogLevel::default();
        let shown = |level: &str, until: Option<&str>| {
            Ok(json!({ "level": level, "configured": "info", "until": until }))
        };
        assert_eq!(asked(&log_level, r#"{"level":"debug"}"#), shown("debug", None));
        let until = Some("2023-11-14T22:28:20.000Z");
        assert_eq!(asked(&log_level, r#"{"level":"trace","for":"15m"}"#), shown("trace", until));
        for wrong in [
            "{}",
            r#"{"level":"loud"}"#,
            r#"{"level":"DEBUG"}"#,
            r#"{"level":5}"#,
            r#"{"level":"debug","for":"0s"}"#,
            r#"{"level":"debug","for":"8d"}"#,
            r#"{"level":"debug","for":"soon"}"#,
            r#"{"level":"debug","until":"15m"}"#,
        ] {
            assert_eq!(asked(&log_level, wrong), Err(400), "{wrong}");
        }
        assert_eq!(super::shown(log_level.known())["level"], "trace");
        assert_eq!(asked(&log_level, r#"{"level":"info","for":"15m"}"#), shown("info", None));
    }
}
