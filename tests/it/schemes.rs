//! How targets are signed for, as programs that are not ours verify it, and how secrets are rotated.

use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::command_line::address_of;
use crate::reload::{in_force, replace, sha256};
use crate::support::relay::{BINARY, Background, command, run};
use crate::support::routes::{PATH, SOON};
use crate::support::tools::python;
use crate::support::vectors::listing_delivered;
use crate::support::{Received, Receiver, Reply, Routes, Sender, TestRelay, eventually, sign};

const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_bmV3LCBhbmQgbG9uZyBlbm91Z2ggZm9yIGl0";

/// Verifies a request, given as it came in, by the reference library.
const VERIFY: &str = "
import base64, json, sys
from standardwebhooks import Webhook, WebhookVerificationError
secret, headers, body = sys.argv[1], json.loads(sys.argv[2]), base64.b64decode(sys.argv[3])
try:
    Webhook(secret).verify(body, headers, json_parse=False)
except WebhookVerificationError as error:
    sys.exit(str(error))
";

/// What the reference library says of a request that a target got: nothing if it is good.
fn reference_says(python: &mut Command, received: &Received, secret: &str) -> Option<String> {
    let headers: serde_json::Map<_, _> =
        received.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let headers = serde_json::Value::from(headers).to_string();
    let body = BASE64_STANDARD.encode(&received.body);
    let ended = run(python.args(["-c", VERIFY, secret, &headers, &body]));
    match ended.code {
        Some(0) => None,
        _ => Some(ended.stderr.trim().to_owned()),
    }
}

/// A relay that signs so for the target at `url`.
fn relay(url: &str, sign: &str) -> TestRelay {
    let routes = Routes::new().target("crm", url, &[SOON]).all_to(&["crm"]);
    let yaml = routes.yaml().replace("scheme: aryeo, secrets: [{ env: CRM_SECRET }]", sign);
    let mut builder = TestRelay::with_file(&yaml);
    for (name, value) in routes.secrets() {
        builder = builder.environment(name, value);
    }
    builder.environment("OLD", OLD).environment("NEW", NEW).start()
}

const MISMATCH: &str = "No matching signature found";

#[test]
fn the_reference_library_of_standard_webhooks_verifies_each_attempt_with_either_secret() {
    if python().is_none() {
        return;
    }
    let says = |received: &Received, secret: &str| {
        reference_says(&mut python().unwrap(), received, secret)
    };
    let crm = Receiver::start(|received| match received.number {
        1 => Reply::Status(503),
        _ => Reply::Status(200),
    });
    let relay =
        relay(&crm.url(), "scheme: standard-webhooks, secrets: [{ env: NEW }, { env: OLD }]");
    let body = listing_delivered("1");
    let id = Sender::new(&relay).post(&body).accepted();
    let attempts = crm.wait_for(2);
    for received in &attempts {
        assert!(received.body == body);
        assert_eq!(received.header("webhook-id"), Some(&*id), "the same at each attempt");
        for secret in [OLD, NEW, NEW.strip_prefix("whsec_").unwrap()] {
            assert_eq!(says(received, secret), None, "{received:?}");
        }
        assert_eq!(says(received, "whsec_bm90IHRoaXMgb25l").as_deref(), Some(MISMATCH));
        assert_eq!(received.header("signature"), None);
    }
    let mut other = attempts[0].clone();
    other.body.push(b' ');
    assert_eq!(says(&other, NEW).as_deref(), Some(MISMATCH));
    let mut other = attempts[0].clone();
    other.headers.iter_mut().find(|(name, _)| name == "webhook-id").unwrap().1.push('0');
    assert_eq!(says(&other, NEW).as_deref(), Some(MISMATCH));

    // A repeat on purpose has an id of its own, so that it is not taken for a copy.
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    relay.told(&["webhooks", "replay", &id, "--again"]);
    let again = crm.wait_for(3).remove(2);
    assert_eq!(again.header("webhook-id"), Some(&*format!("{id}.1")));
    assert_eq!((says(&again, OLD), says(&again, NEW)), (None, None));
}

#[test]
fn what_is_not_text_is_signed_as_standard_webhooks_byte_for_byte() {
    let crm = Receiver::willing();
    let relay =
        relay(&crm.url(), "scheme: standard-webhooks, header: X-Sig, secrets: [{ env: OLD }]");
    let body = [&b"\xff\0 not UTF-8"[..], &[b'x'; 100_000]].concat();
    let id = Sender::new(&relay).post(&body).accepted();
    let received = crm.wait_for(1).remove(0);
    let stamp = received.header("webhook-timestamp").unwrap();
    let content = [format!("{id}.{stamp}.").as_bytes(), &body].concat();
    let key = BASE64_STANDARD.decode(OLD.strip_prefix("whsec_").unwrap()).unwrap();
    let hex = sign(key, &content);
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    let expected = format!("v1,{}", BASE64_STANDARD.encode(bytes));
    assert_eq!(received.lines("x-sig"), [expected]);
    assert_eq!(received.header("webhook-signature"), None, "it is renamed");
}

#[test]
fn openssl_makes_the_signature_that_the_scheme_github_does() {
    let crm = Receiver::willing();
    let relay = relay(&crm.url(), "scheme: github, secrets: [{ env: NEW }, { env: OLD }]");
    let body = listing_delivered("1");
    Sender::new(&relay).post(&body).accepted();
    let received = crm.wait_for(1).remove(0);
    assert!(received.body == body);
    std::fs::write(relay.path("body"), &received.body).unwrap();
    let openssl = run(command("openssl")
        .args(["dgst", "-sha256", "-r", "-hmac", NEW])
        .arg(relay.path("body")));
    let digest = openssl.stdout.split_whitespace().next().unwrap_or_default();
    assert_eq!(digest.len(), 64, "{openssl:?}");
    assert_eq!(received.lines("x-hub-signature-256"), [format!("sha256={digest}")]);
    assert_eq!(received.header("signature"), None);
}

#[test]
fn receive_and_send_verify_and_sign_by_the_schemes_of_targets() {
    for scheme in ["standard-webhooks", "github"] {
        let flags = ["--secret-env", "S", "--scheme", scheme];
        let mut receive = command(BINARY);
        receive.args(["receive", "--listen", "127.0.0.1:0"]).args(flags);
        let target = Background::start(receive.env("S", OLD));
        let url = address_of(&target);
        let relay = relay(&url, &format!("scheme: {scheme}, secrets: [{{ env: OLD }}]"));
        Sender::new(&relay).post(&listing_delivered("1")).accepted();
        let delivered = [("target", "crm"), ("settlement", "delivered")];
        relay.wait_for_metric("relay_deliveries_settled_total", &delivered, 1.0);
        let send = |secret: &str| {
            let mut send = command(BINARY);
            run(send.args(["send", "--url", &url]).args(flags).env("S", secret)).code
        };
        assert_eq!((send(OLD), send(NEW)), (Some(0), Some(1)), "{scheme}");
        let lines = eventually("all are told", || {
            let lines = target.lines();
            if lines.len() > 3 { Ok(lines) } else { Err(lines.join("\n")) }
        });
        let failed = lines.iter().filter(|line| line.contains("NOT VERIFIED")).count();
        assert_eq!(failed, 1, "{lines:?}");
    }
}

/// How often a secret of the source has proved a webhook.
#[track_caller]
fn verified(relay: &TestRelay, secret: &str) -> f64 {
    let labels = [("source", "aryeo"), ("secret", secret), ("result", "ok")];
    relay.metrics().value("relay_signature_verifications_total", &labels)
}

#[test]
fn a_sender_s_secret_is_rotated_without_a_refusal_and_the_count_says_when_the_old_one_may_go() {
    let crm = Receiver::willing();
    let yaml = |secrets: &str| {
        let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
        routes
            .yaml()
            .replace("[{ env: ARYEO_WEBHOOK_SECRET_0 }]", secrets)
            .replace("{ env: CRM_SECRET }", "{ file: crm.txt }")
    };
    let only_old = yaml("[{ file: old.txt }]");
    let both = yaml("[{ file: new.txt }, { file: old.txt }]");
    let only_new = yaml("[{ file: new.txt }]");
    let builder = TestRelay::with_file(&only_old).file("old.txt", "old\n").file("crm.txt", "crm\n");
    let relay = builder.start();
    let mut sent = [0_u32, 0];
    let mut post = |which: usize| {
        sent[which] += 1;
        let body = listing_delivered(&format!("{which} {}", sent[which]));
        Sender::new(&relay).secret(["old", "new"][which]).post(&body).accepted();
        sent
    };
    // What the sender does meanwhile is not to be seen.
    let save = |text: &str, post: &mut dyn FnMut()| {
        replace(&relay, "routes.yaml", text);
        eventually("the table is in force", || {
            post();
            in_force(&relay) == [sha256(text)]
        });
    };
    let counted = || ["file:old.txt", "file:new.txt"].map(|secret| verified(&relay, secret));
    post(0);

    // Here first.
    std::fs::write(relay.path("new.txt"), "new\n").unwrap();
    save(&both, &mut || {
        post(0);
    });
    let [by_old, _] = post(0);
    assert_eq!(counted(), [by_old, 0].map(f64::from), "a reload counts on; the new one is there");

    // Then at the sender, which may use both for a while.
    for which in [1, 0, 1, 1] {
        post(which);
    }
    let [by_old, by_new] = post(1);
    assert_eq!(counted(), [by_old, by_new].map(f64::from));
    for _ in 0..3 {
        post(1);
    }
    assert_eq!(counted()[0], f64::from(by_old), "it has stopped growing: it may go");

    save(&only_new, &mut || {
        post(1);
    });
    let sent = post(1);
    let refused = [("source", "aryeo"), ("answer", "unauthorized")];
    assert_eq!(relay.metrics().value("relay_webhooks_received_total", &refused), 0.0);
    assert_eq!(counted(), sent.map(f64::from));
    crm.wait_for(sent.iter().sum::<u32>() as usize);
    // Only now it is nobody's any more.
    Sender::new(&relay).secret("old").post(&listing_delivered("too late")).problem(401);
    let mismatch = [("source", "aryeo"), ("secret", "none"), ("result", "mismatch")];
    assert_eq!(relay.metrics().value("relay_signature_verifications_total", &mismatch), 1.0);
}

#[test]
fn each_secret_of_a_source_is_counted_from_the_start() {
    let crm = Receiver::willing();
    let routes = Routes::bare()
        .source("aryeo", PATH, &["new", "old"], &[])
        .target("crm", &crm.url(), &[])
        .all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).start();
    let counts = |relay: &TestRelay| {
        [0, 1].map(|n| verified(relay, &format!("env:ARYEO_WEBHOOK_SECRET_{n}")))
    };
    assert_eq!(counts(&relay), [0.0, 0.0]);
    Sender::new(&relay).secret("old").post(&listing_delivered("1")).accepted();
    assert_eq!(counts(&relay), [0.0, 1.0]);
    relay.restart();
    assert_eq!(counts(&relay), [0.0, 0.0], "at zero again, as all counters");
}
