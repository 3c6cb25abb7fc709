//! A receiver of traces. What comes is read by the code that OpenTelemetry itself publishes.

use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;

use serde_json::Value;

use super::relay::{folder, run};
use super::tools::{TRACES, python_with};
use super::{Received, Receiver, Reply, eventually};

/// Reads each request of a folder, strictly, and prints its spans as JSON.
const READ: &str = r#"
import json, pathlib, sys
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

def strict(message):
    assert len(UnknownFieldSet(message)) == 0, f"unknown fields in {message}"
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                strict(one)

def values(attributes):
    names = [attribute.key for attribute in attributes]
    assert len(set(names)) == len(names), names
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}

spans = []
for file in sorted(pathlib.Path(sys.argv[1]).iterdir(), key=lambda file: int(file.name)):
    request = ExportTraceServiceRequest.FromString(file.read_bytes())
    strict(request)
    assert request.ByteSize() == file.stat().st_size, "it is written in another way"
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                assert len(span.trace_id) == 16 and len(span.span_id) == 8, span
                assert len(span.parent_span_id) in (0, 8), span
                spans.append({
                    "resource": values(of_resource.resource.attributes),
                    "scope": of_scope.scope.name,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": Span.SpanKind.Name(span.kind),
                    "from": span.start_time_unix_nano,
                    "to": span.end_time_unix_nano,
                    "is": values(span.attributes),
                    "links": [
                        {"trace": link.trace_id.hex(), "span": link.span_id.hex(), "flags": link.flags}
                        for link in span.links
                    ],
                    "status": Status.StatusCode.Name(span.status.code),
                    "message": span.status.message,
                    "flags": span.flags,
                })
print(json.dumps(spans))
"#;

/// It is there as long as this is.
pub(crate) struct Otlp {
    receiver: Receiver,
    /// Of so many requests.
    read: Mutex<(usize, Vec<Value>)>,
}

impl Otlp {
    /// Takes everything, if there is what it takes to read it.
    #[track_caller]
    pub(crate) fn willing() -> Option<Self> {
        Self::start(|_| Reply::Status(200))
    }

    /// Does what a script says. A request that is not answered with 200 does not count.
    #[track_caller]
    pub(crate) fn start(script: impl FnMut(&Received) -> Reply + Send + 'static) -> Option<Self> {
        python_with(TRACES)?;
        Some(Self { receiver: Receiver::start(script), read: Mutex::default() })
    }

    /// The flags of a relay that exports to it.
    pub(crate) fn flags(&self) -> [String; 2] {
        let url = self.receiver.url();
        let (endpoint, _) = url.split_once("/hooks").unwrap();
        ["--otlp-endpoint".to_owned(), endpoint.to_owned()]
    }

    pub(crate) fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// All bytes that came, as text.
    pub(crate) fn bytes(&self) -> String {
        let all = self.receiver.received().into_iter().map(|received| received.body);
        String::from_utf8_lossy(&all.collect::<Vec<_>>().concat()).into_owned()
    }

    /// All spans that came.
    #[track_caller]
    pub(crate) fn spans(&self) -> Vec<Value> {
        let received = self.receiver.received();
        let mut read = self.read.lock().unwrap();
        if read.0 < received.len() {
            let folder = folder();
            for (number, request) in received.iter().enumerate() {
                assert_eq!((&*request.method, &*request.path), ("POST", "/v1/traces"));
                assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
                fs::write(folder.path().join(number.to_string()), &request.body).unwrap();
            }
            let mut python = python_with(TRACES).unwrap();
            let ended = run(python.args(["-c", READ]).arg(folder.path()));
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            *read = (received.len(), serde_json::from_str(&ended.stdout).unwrap());
        }
        read.1.clone()
    }

    /// Waits until so many spans of these names have come; all that came, by name.
    #[track_caller]
    pub(crate) fn wait_for(&self, wanted: &[(&str, usize)]) -> HashMap<String, Vec<Value>> {
        eventually(&format!("{wanted:?} are traced"), || {
            let mut by_name: HashMap<String, Vec<Value>> = HashMap::new();
            for span in self.spans() {
                by_name.entry(span["name"].as_str().unwrap().to_owned()).or_default().push(span);
            }
            let count = |name: &str| by_name.get(name).map_or(0, Vec::len);
            if wanted.iter().all(|(name, number)| count(name) >= *number) {
                return Ok(by_name);
            }
            Err(format!("{:?}", by_name.keys().map(|name| (name, count(name))).collect::<Vec<_>>()))
        })
    }
}
