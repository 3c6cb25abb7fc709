//! Erasing one webhook.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::admin::api::Problem;
use crate::app::api::parse;
use crate::app::api::wanted::known_as;
use crate::app::api::webhooks::{not_stored, story, unread};
use crate::domain::delivery::State;
use crate::domain::webhook::WebhookId;
use crate::store::archive::{Archive, EraseError, Erased};

/// Of one answer: then it says that it goes on.
const TIME_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct How {
    /// Only tells what it would be.
    #[serde(default)]
    dry_run: bool,
}

/// Erases a webhook. A large store takes longer than one answer may: it goes on without us, and who asks
/// again waits for it. Then nothing of it is stored any more.
pub(super) async fn erase<S: Archive>(store: &S, id: &str, body: &[u8]) -> Result<Value, Problem> {
    let id = whole_webhook(id)?;
    let how: How = if body.trim_ascii().is_empty() { How::default() } else { parse(body)? };
    if how.dry_run {
        let story = story(store, id).await?;
        let pending = story.deliveries.iter().filter(|d| d.state == State::Pending).count();
        let body_bytes = story.body_bytes;
        return Ok(told(id, "stored", Some(Erased { ended: pending, body_bytes })));
    }
    tracing::info!(webhook_id = %id, "an operator has a webhook erased");
    match timeout(TIME_MAX, store.erase(id)).await {
        Err(_) => Ok(told(id, "under_way", None)),
        Ok(Ok(Some(erased))) => Ok(told(id, "erased", Some(erased))),
        Ok(Ok(None)) => Err(not_stored(id)),
        Ok(Err(EraseError::Read(error))) => Err(unread(error)),
        Ok(Err(error @ EraseError::Remains { .. })) => {
            let detail = format!(
                "it is over and told to nobody any more, but {error}: the log says why; try again"
            );
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        }
    }
}

/// The id of a webhook and of nothing less: who names one repeat may think that only that one goes.
fn whole_webhook(text: &str) -> Result<WebhookId, Problem> {
    let (id, again) = known_as(text)?;
    if again == 0 {
        return Ok(id);
    }
    let detail = format!(
        "\"{text}\" is one delivery of a webhook that can only be erased with all of them: say {id} \
         to have it erased"
    );
    Err(Problem::new(StatusCode::BAD_REQUEST, detail))
}

fn told(id: WebhookId, state: &str, erased: Option<Erased>) -> Value {
    json!({
        "webhook_id": id.to_string(),
        "state": state,
        "ended": erased.map(|erased| erased.ended),
        "body_bytes": erased.map(|erased| erased.body_bytes),
    })
}
