//! What is written of webhooks and of what was refused.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::testing::{ORDER, Rig, SECRET, post, sign, signed, source};
use crate::domain::client::Network;
use crate::domain::route::Unrouted;
use crate::domain::source::Source;
use crate::ingress::IngressLimits;

/// The log lines of this thread while it lives.
fn log() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(Arc::new(LogWriter(Arc::clone(&log))))
        .finish();
    (log, crate::telemetry::logging::capture(subscriber))
}

struct LogWriter(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_webhook_is_one_event_without_secrets_and_a_flood_is_only_counted() {
    let (log, _guard) = log();
    let rig = Rig::new();
    let lines = || {
        let taken = std::mem::take(&mut *log.lock().unwrap());
        String::from_utf8(taken).unwrap().lines().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    rig.send(signed(ORDER)).await;
    let [line] = &lines()[..] else { panic!("one line") };
    for part in [
        "INFO",
        "webhook_id=",
        "source=\"aryeo\"",
        "activity=\"ORDER_CREATED\"",
        "answer=\"accepted\"",
        &format!("bytes={}", ORDER.len()),
        "duration_ms=",
        "deliveries=\"crm,billing\"",
        "peer=192.0.2.7",
    ] {
        assert!(line.contains(part), "{part} not in {line}");
    }

    let signature = sign(b"else");
    let mut all = vec![line.clone()];
    for _ in 0..100 {
        rig.send(post(ORDER, &signature)).await.check(401, "unauthorized");
    }
    let refused = lines();
    let (errors, others): (Vec<_>, Vec<_>) =
        refused.iter().partition(|line| line.contains("ERROR"));
    assert_eq!(others.len(), 10, "{refused:#?}");
    assert_eq!(errors.len(), 6, "after 3, 6, 12, 24, 48 and 96 in a row: {refused:#?}");
    assert!(refused[2].contains("ERROR"), "the third in a row: {refused:#?}");
    all.extend(refused);

    let mut lost = signed(ORDER);
    *lost.uri_mut() = "/webhooks?token=query-secret".parse().unwrap();
    rig.send(lost).await.check(404, "not_found");
    rig.send(signed(&vec![b'x'; 65 * 1024])).await.check(413, "too_large");
    let alarms = lines();
    assert!(alarms.len() == 2 && alarms.iter().all(|line| line.contains("ERROR")), "{alarms:?}");
    assert!(alarms[0].contains("path=\"/webhooks\""), "{alarms:?}");
    all.extend(alarms);
    for secret in [SECRET, "query-secret", "header-secret", "o1", &signature, &sign(ORDER)] {
        assert!(all.iter().all(|line| !line.contains(secret)), "{secret}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_nobody_has_named_is_told_of_once_in_a_minute() {
    let (log, _guard) = log();
    let told = || {
        let lines = String::from_utf8(std::mem::take(&mut *log.lock().unwrap())).unwrap();
        let lines = lines.lines().filter(|line| line.contains("--trusted-proxies"));
        lines.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let senders: Network = "198.51.100.0/24".parse().unwrap();
    let source = Source { allow_from: Some([senders].into_iter().collect()), ..source() };
    let rig = Rig::with(source, Unrouted::Keep, IngressLimits::default());
    let forwarded = || {
        let mut request = signed(ORDER);
        request.headers_mut().insert("x-forwarded-for", "198.51.100.7".parse().unwrap());
        request
    };
    // Who forwards for nobody is where he seems to be.
    rig.send(signed(ORDER)).await.check(403, "forbidden");
    assert_eq!(told(), [""; 0]);
    for _ in 0..50 {
        rig.send(forwarded()).await.check(403, "forbidden");
    }
    let [line] = &told()[..] else { panic!("one line") };
    for part in ["WARN", "source=\"aryeo\"", "peer=192.0.2.7", "suppressed=0"] {
        assert!(line.contains(part), "{part} not in {line}");
    }
    tokio::time::advance(Duration::from_secs(60)).await;
    rig.send(forwarded()).await.check(403, "forbidden");
    assert!(told()[0].contains("suppressed=49"));
    // Who is let in, as a proxy, forwards for whom it likes.
    rig.send_from("198.51.100.1", forwarded()).await.check(202, "accepted");
    assert_eq!(told(), [""; 0]);
}
