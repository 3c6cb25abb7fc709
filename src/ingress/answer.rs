//! How a request ended, and the response that says so.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response};
use http_body_util::Full;

use crate::domain::answer::Answer;
use crate::domain::signature::VerifyError;
use crate::domain::webhook::WebhookId;
use crate::ingress::spans::Traced;
use crate::net::body::BodyError;
use crate::store::CommitError;

/// A verified webhook that was dealt with.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) answer: Answer,
    pub(super) webhook_id: Option<WebhookId>,
    pub(super) activity: Option<Box<str>>,
    /// The names of its targets, for the log.
    pub(super) deliveries: String,
    /// What its trace is to tell, if it is recorded.
    pub(super) traced: Option<Traced>,
}

/// A request that was not taken in.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) answer: Answer,
    /// More than the sender is told.
    pub(super) reason: Option<&'static str>,
    pub(super) retry_after_secs: Option<u64>,
    /// What someone must look at: webhooks are being lost.
    pub(super) alarm: Option<&'static str>,
    /// What was shown when its connection began is not good any more: on another one the sender can show
    /// something else.
    pub(super) outlived: bool,
}

/// How a request ended.
pub(super) type Outcome = Result<Taken, Refusal>;

impl From<Answer> for Refusal {
    fn from(answer: Answer) -> Self {
        let retry_after_secs = answer.retry_after_secs();
        Self { answer, reason: None, retry_after_secs, alarm: None, outlived: false }
    }
}

impl Refusal {
    pub(super) fn because(answer: Answer, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..Self::from(answer) }
    }

    /// It is worth another try then.
    pub(super) fn after(self, wait: Duration) -> Self {
        let secs = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self { retry_after_secs: Some(secs.max(1)), ..self }
    }
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Self {
        Self::because(Answer::Unauthorized, error.name())
    }
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Closed => Self::because(Answer::ShuttingDown, "the store is closed"),
            CommitError::DiskFull => Answer::DiskFull.into(),
            CommitError::Overloaded => {
                Self::because(Answer::Overloaded, "too many commits are waiting")
            }
            CommitError::Unavailable => {
                Self::because(Answer::StoreUnavailable, "the disk does not take it")
            }
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge { .. } => Answer::TooLarge.into(),
            BodyError::Timeout => Answer::Timeout.into(),
            BodyError::GaveWay => {
                Self::because(Answer::Timeout, "others wanted in, and it was the slowest")
            }
            BodyError::NoRoom => {
                Self::because(Answer::Overloaded, "webhooks that are being stored take all memory")
            }
            BodyError::Disconnected(_) => Self::because(Answer::BadRequest, "the sender left"),
            BodyError::Malformed(_) => Self::because(Answer::BadRequest, "malformed body"),
        }
    }
}

/// What the sender is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) answer: Answer,
    pub(super) webhook_id: Option<WebhookId>,
    pub(super) retry_after_secs: Option<u64>,
}

impl From<&Refusal> for Told {
    fn from(refusal: &Refusal) -> Self {
        let Refusal { answer, retry_after_secs, .. } = *refusal;
        Self { answer, webhook_id: None, retry_after_secs }
    }
}

impl From<&Outcome> for Told {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Ok(Taken { answer, webhook_id, .. }) => {
                Self { answer: *answer, webhook_id: *webhook_id, retry_after_secs: None }
            }
            Err(refusal) => refusal.into(),
        }
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The response; `close` where the connection can't go on: over HTTP/1 because the body has not been read.
pub(super) fn response(told: Told, close: bool) -> Response<Full<Bytes>> {
    let Told { answer, webhook_id, retry_after_secs } = told;
    let status = answer.status();
    let (content_type, body) = match webhook_id {
        Some(id) => (JSON, format!(r#"{{"status":"{}","webhook_id":"{id}"}}"#, answer.name())),
        None if status.is_success() => (JSON, format!(r#"{{"status":"{}"}}"#, answer.name())),
        None => (PROBLEM, problem(answer)),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    if let Some(secs) = retry_after_secs {
        headers.insert(RETRY_AFTER, secs.into());
    }
    if answer == Answer::MethodNotAllowed {
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
    }
    if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn problem(answer: Answer) -> String {
    let status = answer.status();
    format!(
        r#"{{"type":"urn:aryeo-relay:{}","title":"{}","status":{},"detail":"{}"}}"#,
        answer.name(),
        status.canonical_reason().unwrap_or("Error"),
        status.as_u16(),
        answer.detail(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn every_answer_is_json_that_says_its_name_and_status() {
        for answer in Answer::ALL {
            let told = Told::from(&Refusal::from(answer));
            let (head, body) = response(told, false).into_parts();
            assert_eq!(head.status, answer.status());
            let body = body.collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            if answer.status().is_success() {
                assert_eq!(head.headers[CONTENT_TYPE], "application/json");
                assert_eq!(body, serde_json::json!({ "status": answer.name() }));
            } else {
                assert_eq!(head.headers[CONTENT_TYPE], "application/problem+json");
                assert_eq!(body["type"], format!("urn:aryeo-relay:{}", answer.name()));
                assert_eq!(body["status"], answer.status().as_u16());
                assert!(body["title"].is_string() && body["detail"].is_string());
            }
            let retry_after = head.headers.get(RETRY_AFTER).map(|v| v.to_str().unwrap().to_owned());
            assert_eq!(retry_after, answer.retry_after_secs().map(|secs| secs.to_string()));
            assert_eq!(head.headers.contains_key(ALLOW), answer == Answer::MethodNotAllowed);
            assert!(!head.headers.contains_key(CONNECTION));
        }
    }
}
