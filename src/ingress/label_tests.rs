//! What senders put into bodies makes no labels.

use super::testing::{Rig, signed};

/// Made up by a sender, one after the other.
const ACTIVITIES: usize = 100_000;

#[tokio::test]
async fn a_hundred_thousand_made_up_activities_add_not_one_line_to_the_page() {
    let rig = Rig::new();
    let post = async |name: &str| {
        let body = format!(r#"{{"object":"ACTIVITY","id":"{name}","name":"{name}"}}"#);
        rig.send(signed(body.as_bytes())).await.check(202, "accepted");
    };
    post("ORDER_CREATED").await;
    post("MADE_UP").await;
    let lines = || rig.metrics.render().lines().count();
    let before = lines();
    for number in 0..ACTIVITIES {
        post(&format!("MADE_UP_{number}")).await;
    }
    assert_eq!(lines(), before);
    let others = ACTIVITIES + 1;
    rig.check_metric(&format!(
        r#"relay_webhooks_accepted_total{{source="aryeo",activity="other"}} {others}"#
    ));
    rig.check_metric(r#"relay_webhooks_accepted_total{source="aryeo",activity="ORDER_CREATED"} 1"#);
}
