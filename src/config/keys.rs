//! The language of `routes.yaml`, and that of tests of it: which keys there are, and what kind of
//! value each takes.

use crate::config::shape::{Record, Shape, may, must, not_yet};

const DURATION: Shape = Shape::Text("a duration such as 10s");
const RATE: Shape = Shape::Text("a rate such as 100/s");
const HEADERS: Shape = Shape::Map("names of headers", &Shape::Header);
const HEADER_NAME: Shape = Shape::Text("the name of a header");
const VARIABLE: Shape = Shape::Text("the name of an environment variable");
const SECRET_TEXT: Shape = Shape::Text("the secret");
const PATH: Shape = Shape::Text("the path of a file");

/// The whole file.
pub(super) static ROOT: Shape = Shape::Record(&FILE);

static FILE: Record = Record {
    noun: "the file",
    keys: &[
        must("sources", Shape::Map("names of sources", &Shape::Record(&SOURCE))),
        must("targets", Shape::Map("names of targets", &Shape::Record(&TARGET))),
        must("routes", Shape::List(&Shape::Record(&ROUTE))),
        may("unrouted", Shape::Text("keep or drop")),
        may("defaults", Shape::Record(&DEFAULTS)),
    ],
    whole: false,
};

static SOURCE: Record = Record {
    noun: "a source",
    keys: &[
        must("path", Shape::Text("a path such as /webhooks/aryeo")),
        must("verify", Shape::Record(&VERIFY)),
        may("body_limit", Shape::Text("a size such as 2MiB")),
        may("rate_limit", RATE),
        may("duplicates", Shape::Record(&DUPLICATES)),
        may("silence_after", DURATION),
        may("require_headers", Shape::Map("names of headers", &Shape::Record(&SECRET))),
        may("activity", Shape::Text("the name of an activity")),
        not_yet("allow_from"),
        not_yet("client_certificate"),
    ],
    whole: false,
};

static VERIFY: Record = Record {
    noun: "verify",
    keys: &[
        must("scheme", Shape::Text("the name of a scheme")),
        may("secrets", Shape::List(&Shape::Record(&SECRET))),
        may("header", HEADER_NAME),
    ],
    whole: false,
};

static SIGN: Record = Record {
    noun: "sign",
    keys: &[
        must("scheme", Shape::Text("the name of a scheme")),
        may("secrets", Shape::List(&Shape::Record(&SECRET))),
        may("header", HEADER_NAME),
    ],
    whole: false,
};

pub(super) static SECRET: Record = Record {
    noun: "a secret",
    keys: &[may("env", VARIABLE), may("file", PATH), may("value", SECRET_TEXT)],
    whole: true,
};

static DUPLICATES: Record = Record {
    noun: "duplicates",
    keys: &[may("activities", DURATION), may("bare", DURATION)],
    whole: false,
};

static TARGET: Record = Record {
    noun: "a target",
    keys: &[
        must("url", Shape::Text("a url")),
        must("sign", Shape::Record(&SIGN)),
        may("headers", HEADERS),
        may("forward_headers", Shape::List(&HEADER_NAME)),
        may("timeout", DURATION),
        may("retry", Shape::Record(&RETRY)),
        may("concurrency", Shape::Integer),
        may("rate_limit", RATE),
        may("tls", Shape::Record(&TLS)),
        not_yet("backlog_limit"),
        not_yet("paused"),
    ],
    whole: false,
};

static DEFAULTS: Record = Record {
    noun: "defaults",
    keys: &[
        may("headers", HEADERS),
        may("forward_headers", Shape::List(&HEADER_NAME)),
        may("timeout", DURATION),
        may("retry", Shape::Record(&RETRY)),
        may("concurrency", Shape::Integer),
        may("rate_limit", RATE),
        may("tls", Shape::Record(&TLS)),
        not_yet("backlog_limit"),
        not_yet("paused"),
    ],
    whole: false,
};

pub(super) static HEADER: Record = Record {
    noun: "a header's value",
    keys: &[may("env", VARIABLE), may("file", PATH), may("prefix", Shape::Text("text"))],
    whole: true,
};

static RETRY: Record = Record {
    noun: "retry",
    keys: &[
        may("first", DURATION),
        may("max", DURATION),
        may("for", DURATION),
        may("give_up_on", Shape::List(&Shape::Integer)),
    ],
    whole: false,
};

static TLS: Record = Record {
    noun: "tls",
    keys: &[
        may("ca", PATH),
        may("certificate", PATH),
        may("key", PATH),
        may("server_name", Shape::Text("a host name")),
    ],
    whole: false,
};

static ROUTE: Record = Record {
    noun: "a route",
    keys: &[
        must("name", Shape::Text("a name")),
        may("source", Shape::OneOrMany),
        may("activity", Shape::OneOrMany),
        may("resource", Shape::OneOrMany),
        must("to", Shape::List(&Shape::Text("the name of a target"))),
        may("headers", HEADERS),
        may("final", Shape::Boolean),
        may("when", Shape::Map("JSON pointers", &Shape::Condition)),
    ],
    whole: false,
};

pub(super) static CONDITION: Record = Record {
    noun: "a condition",
    keys: &[
        may("equals", Shape::Scalar),
        may("not", Shape::Condition),
        may("in", Shape::List(&Shape::Scalar)),
        may("gt", Shape::Scalar),
        may("gte", Shape::Scalar),
        may("lt", Shape::Scalar),
        may("lte", Shape::Scalar),
        may("prefix", Shape::Text("text")),
        may("suffix", Shape::Text("text")),
        may("exists", Shape::Boolean),
    ],
    whole: true,
};

pub(super) static TESTS: Record = Record {
    noun: "the file",
    keys: &[must("routes", PATH), must("tests", Shape::List(&Shape::Record(&TEST)))],
    whole: false,
};

static TEST: Record = Record {
    noun: "a test",
    keys: &[
        may("name", Shape::Text("text")),
        may("source", Shape::Text("the name of a source")),
        may("activity", Shape::Text("the name of an activity")),
        may("body", Shape::Anything),
        may("body_file", PATH),
        must("expect", Shape::OneOrMany),
        may(
            "headers",
            Shape::Map("names of targets", &Shape::Map("names of headers", &Shape::Scalar)),
        ),
    ],
    whole: false,
};

/// Every record, the outer ones first.
static RECORDS: [&Record; 13] = [
    &FILE,
    &SOURCE,
    &TARGET,
    &DEFAULTS,
    &ROUTE,
    &VERIFY,
    &SIGN,
    &SECRET,
    &DUPLICATES,
    &HEADER,
    &RETRY,
    &TLS,
    &CONDITION,
];

/// All keys of the language.
pub(super) fn words() -> impl Iterator<Item = &'static str> {
    RECORDS.iter().flat_map(|record| record.keys).map(|key| key.name)
}

/// What else has a key of this name.
pub(super) fn owner_of(key: &str) -> Option<&'static str> {
    let owner = RECORDS.iter().find(|record| record.known().any(|known| known == key));
    owner.map(|record| record.noun)
}
