//! What a running relay answers is what its own document says.

use std::collections::BTreeSet;

use boon::{Compiler, Schemas};
use serde_json::{Value, json};

use crate::support::sender::{Answer, Connection};
use crate::support::vectors::activity;
use crate::support::{Receiver, Reply, Request, Routes, Sender, TestRelay, eventually};

/// Soon again, and often.
const OFTEN: &str = "retry: { first: 10ms, max: 10ms, for: 1h }";

/// Asks a relay, and holds what is asked and answered against its document.
struct Checked {
    relay: TestRelay,
    document: Value,
    asked: BTreeSet<String>,
}

impl Checked {
    fn new(relay: TestRelay) -> Self {
        let mut document = relay.get("/api/v1/openapi.json").json();
        close(&mut document);
        Self { relay, document, asked: BTreeSet::new() }
    }

    /// `path` is as the document has it; each of its parameters is `about`.
    #[track_caller]
    fn get(&mut self, path: &str, about: &str, query: &str) -> Answer {
        let place = filled(path, about);
        let request = Request::unsigned(&format!("/api/v1{place}{query}"), b"").method("GET");
        self.ask("get", path, &request)
    }

    #[track_caller]
    fn post(&mut self, path: &str, about: &str, body: &Value) -> Answer {
        let place = filled(path, about);
        let bytes = body.to_string().into_bytes();
        let answer = self.ask("post", path, &Request::unsigned(&format!("/api/v1{place}"), &bytes));
        let operation = &self.document["paths"][path]["post"];
        self.fits(&operation["requestBody"]["content"]["application/json"]["schema"], body);
        answer
    }

    #[track_caller]
    fn ask(&mut self, method: &str, path: &str, request: &Request) -> Answer {
        let mut connection = Connection::open(self.relay.admin(), None).unwrap();
        let answer = connection.send(request).unwrap();
        let what = format!("{method} {path}");
        let operation = &self.document["paths"][path][method];
        assert!(operation.is_object(), "{what} is not in the document");
        let kind = answer.header("content-type").unwrap();
        let content = if answer.status == 200 {
            self.asked.insert(what.clone());
            &operation["responses"]["200"]["content"]
        } else {
            &self.document["components"]["responses"]["Problem"]["content"]
        };
        assert!(content[kind].is_object(), "{what} answers {kind}: {answer:?}");
        if let Some(schema) = content[kind].get("schema") {
            self.fits(schema, &answer.json());
        }
        answer
    }

    #[track_caller]
    fn fits(&self, schema: &Value, instance: &Value) {
        // The others are not worth a look: an object of any kind.
        let Some(place) = schema.get("$ref").and_then(Value::as_str) else { return };
        let mut compiler = Compiler::new();
        compiler.add_resource("http://relay.test/api", self.document.clone()).unwrap();
        let mut schemas = Schemas::new();
        let index = compiler.compile(&format!("http://relay.test/api{place}"), &mut schemas);
        let index = index.unwrap_or_else(|error| panic!("{place}: {error}"));
        if let Err(error) = schemas.validate(instance, index) {
            panic!("{instance:#} is not {place}: {error}");
        }
    }
}

fn filled(path: &str, about: &str) -> String {
    let segment = |part| if str::starts_with(part, '{') { about } else { part };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// Objects have no members but those that are described: clients may take more, answers have none.
fn close(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(close);
            if members.get("type") == Some(&json!("object")) && members.contains_key("properties") {
                members.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// A relay that has seen everything: what is delivered, waits, fails, is dead, and has no route.
fn eventful(ids: &mut Vec<String>) -> (TestRelay, Vec<Receiver>) {
    let crm = Receiver::willing();
    let gone = Receiver::start(|_| Reply::Status(410));
    let down = Receiver::start(|_| Reply::Status(500));
    let routes = Routes::new()
        .target("crm", &crm.url(), &["headers: { X-A: \"{activity}\" }"])
        .target("gone", &gone.url(), &[])
        .target("down", &down.url(), &[OFTEN])
        .target("held", &crm.url(), &["paused: true"])
        .route("orders", &["activity: [ORDER_*, \"!ORDER_VIEWED\"]"], &["crm", "gone", "held"])
        .route("listings", &["activity: LISTING_*", "when: { /id: { exists: true } }"], &["down"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    for nth in 0..4 {
        for name in ["ORDER_CREATED", "LISTING_DELIVERED", "ORDER_VIEWED"] {
            ids.push(sender.post(&activity(name, &format!("{name}{nth}"), "ORDER")).accepted());
        }
    }
    ids.push(sender.post(b"not JSON").accepted());
    relay.wait_for_metric("relay_dead_letters", &[("target", "gone"), ("cause", "given_up")], 4.0);
    relay.wait_for_metric("relay_target_suspended", &[("target", "down")], 1.0);
    crm.wait_for(4);
    (relay, vec![crm, gone, down])
}

#[test]
fn what_is_answered_is_what_the_document_says() {
    let mut ids = Vec::new();
    let (relay, _targets) = eventful(&mut ids);
    let routes = std::fs::read_to_string(relay.path("routes.yaml")).unwrap();
    let mut api = Checked::new(relay);
    api.get("/openapi.json", "", "");
    assert_eq!(api.get("/webhooks", "", "").json()["items"].as_array().unwrap().len(), ids.len());
    let page = api.get("/webhooks", "", "?limit=2&order=oldest&since=1h").json();
    let more = format!("?cursor={}", page["next"].as_str().unwrap());
    assert_eq!(api.get("/webhooks", "", &more).status, 200);
    for id in &ids {
        assert_eq!(api.get("/webhooks/{webhook_id}", id, "").status, 200);
        assert_eq!(api.get("/webhooks/{webhook_id}/body", id, "").status, 200);
    }
    assert_eq!(api.get("/dead-letters", "", "").json()["items"].as_array().unwrap().len(), 4);
    let targets = api.get("/targets", "", "").json();
    let states = targets["items"].as_array().unwrap().iter().map(|target| &target["state"]);
    assert_eq!(states.collect::<Vec<_>>(), ["running", "suspended", "running", "paused"]);
    assert_eq!(api.get("/routes", "", "").json()["routes"].as_array().unwrap().len(), 2);
    let store = api.get("/store", "", "").json();
    assert!(store["pending"].as_u64() >= Some(8) && store["bytes"].as_u64() > Some(0), "{store}");
    assert_eq!(store["dead_letters"], json!({ "given_up": 4 }));

    assert_eq!(api.post("/targets/{name}/pause", "crm", &json!({})).json()["state"], "paused");
    assert_eq!(api.post("/targets/{name}/resume", "crm", &json!({})).json()["state"], "running");
    let replay = json!({ "webhook_ids": [ids[0]], "again": true, "dry_run": true });
    assert_eq!(api.post("/webhooks/replay", "", &replay).json()["found"], 1);
    let again = json!({ "webhook_ids": [ids[1]], "again": true });
    assert_eq!(api.post("/webhooks/replay", "", &again).json()["deliveries"], 1);
    let second = format!("{}.1", ids[1]);
    let shown = api.get("/webhooks/{webhook_id}", &second, "").json();
    assert_eq!(shown["webhook_id"], *ids[1]);
    assert_eq!(shown["deliveries"][1]["again"], 1);
    assert_eq!(api.get("/webhooks/{webhook_id}/body", &second, "").status, 200);
    let replay = json!({ "webhook_ids": [second], "state": "pending", "dry_run": true });
    assert_eq!(api.post("/webhooks/replay", "", &replay).json()["found"], 1);
    assert_eq!(api.post("/webhooks/{webhook_id}/erase", &second, &json!({})).status, 400);
    let redrive = json!({ "webhook_ids": [ids[0]], "target": "gone", "to": "down" });
    assert_eq!(api.post("/dead-letters/redrive", "", &redrive).json()["redriven"], 1);
    let discard = api.post("/dead-letters/discard", "", &json!({ "all": true }));
    assert_eq!(discard.json()["discarded"], 3);
    let level = api.post("/log-level", "", &json!({ "level": "debug", "for": "1h" })).json();
    assert_eq!((&level["level"], &level["configured"]), (&json!("debug"), &json!("info")));
    assert_eq!(api.get("/log-level", "", "").json(), level);
    assert_eq!(api.post("/reload", "", &json!({})).json()["status"], "unchanged");
    let other = routes.replace("ORDER_*", "ORDER_X");
    let diff = api.post("/routes/diff", "", &json!({ "routes": other, "since": "24h" })).json();
    assert_eq!(diff["changed"], 4);
    assert_eq!(diff["examples"].as_array().unwrap().len(), 4);
    let explain = json!({ "activity": "ORDER_CREATED" });
    assert_eq!(api.post("/routes/explain", "", &explain).status, 200);

    let erase = |dry_run: bool| json!({ "dry_run": dry_run });
    for (dry_run, state) in [(true, "stored"), (false, "erased")] {
        let erased = api.post("/webhooks/{webhook_id}/erase", &ids[0], &erase(dry_run)).json();
        assert_eq!(erased["state"], state, "{erased}");
    }
    assert_eq!(api.post("/webhooks/{webhook_id}/erase", &ids[0], &erase(false)).status, 404);

    let paths = api.document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
    });
    assert_eq!(api.asked, all.collect(), "each has been asked");
}

#[test]
fn a_problem_is_what_the_document_says() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]));
    let mut api = Checked::new(relay.start());
    let nowhere = "01a213ed-646b-7000-80b3-4e15e05fd840";
    assert_eq!(api.get("/webhooks/{webhook_id}", nowhere, "").status, 404);
    assert_eq!(api.get("/webhooks", "", "?limit=0").status, 400);
    assert_eq!(api.post("/targets/{name}/pause", "nobody", &json!({})).status, 404);
    assert_eq!(api.post("/dead-letters/redrive", "", &json!({})).status, 400);
    let candidate = api.post("/routes/diff", "", &json!({ "routes": "sources: {}\n" }));
    assert_eq!(candidate.status, 422);
    assert!(!candidate.json()["problems"].as_array().unwrap().is_empty());
    std::fs::write(api.relay.path("routes.yaml"), "sources: {}\n").unwrap();
    let refused = eventually("the file is refused", || {
        let answer = api.post("/reload", "", &json!({}));
        if answer.status == 422 { Ok(answer) } else { Err(format!("{answer:?}")) }
    });
    assert!(!refused.json()["problems"].as_array().unwrap().is_empty());
}

#[test]
fn a_certificate_that_is_refused_is_a_problem_as_the_document_says() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    assert!(relay.is_tls());
    let certificate = relay.path("certs/tls.crt");
    let mut api = Checked::new(relay);
    std::fs::write(certificate, "no PEM").unwrap();
    let refused = eventually("the certificate is refused", || {
        let answer = api.post("/reload", "", &json!({}));
        if answer.status == 422 { Ok(answer) } else { Err(format!("{answer:?}")) }
    });
    let problem = &refused.json()["problems"][0];
    assert!(problem["file"].as_str().unwrap().ends_with("tls.crt"), "{problem}");
}
