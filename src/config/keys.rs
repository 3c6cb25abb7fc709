//! The language of `routes.yaml`, and that of tests of it: which keys there are, what kind of value
//! each takes, and what an editor says about it.

use crate::config::shape::{Key, Record, Shape, may, must};

const DURATION: Shape = Shape::Text("a duration such as 10s");
const RATE: Shape = Shape::Text("a rate such as 100/s");
const HEADERS: Shape = Shape::Map("names of headers", &Shape::Header);
const SUBJECT: Shape = Shape::Text("a subject of a certificate");
const NETWORK: Shape = Shape::Text("a network such as 192.0.2.0/24");
const HEADER_NAME: Shape = Shape::Text("the name of a header");
const VARIABLE: Shape = Shape::Text("the name of an environment variable");
const SECRET_TEXT: Shape = Shape::Text("the secret");
const PATH: Shape = Shape::Text("the path of a file");

/// The whole file.
pub(super) static ROOT: Shape = Shape::Record(&FILE);

pub(super) static FILE: Record = Record {
    noun: "the file",
    keys: &[
        must("sources", Shape::Map("names of sources", &Shape::Record(&SOURCE)))
            .about("Who may post, by name."),
        must("targets", Shape::Map("names of targets", &Shape::Record(&TARGET)))
            .about("Where webhooks go, by name. Each has a lane and a secret of its own."),
        must("routes", Shape::List(&Shape::Record(&ROUTE))).about(
            "Which webhooks go to which targets. Every route that matches adds its targets.",
        ),
        may("unrouted", Shape::Text("keep or drop"))
            .about(
                "What happens to webhooks that no route wants: `keep` stores them, `drop` \
                 acknowledges and counts them. Default: keep.",
            )
            .example(r#""keep""#),
        may("defaults", Shape::Record(&DEFAULTS)).about(
            "What targets have that do not say otherwise. `headers`, `retry` and `tls` \
                 are filled up key by key.",
        ),
    ],
    whole: false,
};

static SOURCE: Record = Record {
    noun: "a source",
    keys: &[
        must("path", Shape::Text("a path such as /webhooks/aryeo"))
            .about(
                "The exact path of the URL that is registered at the sender; one segment may \
                 be `{activity}`. The query string is ignored.",
            )
            .example(r#""/webhooks/aryeo""#),
        must("verify", Shape::Record(&VERIFY))
            .about("How requests prove where they come from.")
            .example(r#"{ "scheme": "aryeo", "secrets": [{ "env": "ARYEO_WEBHOOK_SECRET" }] }"#),
        may("body_limit", Shape::Text("a size such as 2MiB"))
            .about("The largest body, up to 32MiB. Default: 2MiB.")
            .example(r#""2MiB""#),
        may("rate_limit", RATE)
            .about(
                "Webhooks that are taken per second, minute or hour, charged after \
                 verification. Default: no limit.",
            )
            .example(r#""100/s""#),
        may("allow_from", Shape::List(&NETWORK))
            .about(
                "Networks or addresses that requests may come from; the relay has to know them, see \
                 `serve --trusted-proxies`. Default: all.",
            )
            .example(r#"["192.0.2.0/24", "2001:db8::/32"]"#),
        may("client_certificate", Shape::List(&SUBJECT))
            .about(
                "Subjects of certificates, one of which the sender has to show: a DNS name, a URI or an \
                 e-mail address of it, or its common name. It needs `serve --client-ca`. Default: none \
                 is wanted.",
            )
            .example(r#"["hooks.example.com"]"#),
        may("duplicates", Shape::Record(&DUPLICATES))
            .about("How long the same bytes on the same path are a duplicate.")
            .example(r#"{ "activities": "24h", "bare": "150s" }"#),
        may("silence_after", DURATION)
            .about("A silence longer than this is an alarm: exported as a metric. Default: 24h.")
            .example(r#""24h""#),
        may("require_headers", Shape::Map("names of headers", &Shape::Record(&SECRET)))
            .about("Headers that every request must bring, each with its secret; at most 16.")
            .example(r#"{ "X-Token": { "env": "TOKEN" } }"#),
        may("activity", Shape::Text("the name of an activity"))
            .about("The activity of webhooks that name none themselves.")
            .example(r#""ORDER_CREATED""#),
    ],
    whole: false,
};

static VERIFY: Record = Record {
    noun: "verify",
    keys: &[
        must("scheme", Shape::Text("the name of a scheme"))
            .about(
                "How a request is signed: `aryeo` over the body, `aryeo-timestamped` over \
                 timestamp and body (tolerance 5 minutes), or `none` beside \
                 `require_headers`.",
            )
            .example(r#""aryeo""#),
        may("secrets", Shape::List(&Shape::Record(&SECRET)))
            .about(
                "Any one may match. To rotate, add the new one here first, then change it at \
                 the sender.",
            )
            .example(r#"[{ "env": "ARYEO_WEBHOOK_SECRET" }]"#),
        may("header", HEADER_NAME)
            .about("The header that carries the signature. Default: Signature.")
            .example(r#""Signature""#),
    ],
    whole: false,
};

static SIGN: Record = Record {
    noun: "sign",
    keys: &[
        must("scheme", Shape::Text("the name of a scheme that signs"))
            .about(
                "How deliveries are signed: `aryeo` over the body, `aryeo-timestamped` over \
                 timestamp and body, `standard-webhooks` over id, timestamp and body, `github` \
                 over the body, or `none`.",
            )
            .example(r#""aryeo""#),
        may("secrets", Shape::List(&Shape::Record(&SECRET)))
            .about(
                "The first signs, the others are there for a rotation; under \
                 `standard-webhooks`, where each is base64 after `whsec_`, all sign.",
            )
            .example(r#"[{ "env": "CRM_SECRET" }]"#),
        may("header", HEADER_NAME)
            .about(
                "The header that carries the signature. Default: the scheme's, as Signature, \
                 webhook-signature or X-Hub-Signature-256.",
            )
            .example(r#""Signature""#),
    ],
    whole: false,
};

pub(super) static SECRET: Record = Record {
    noun: "a secret",
    keys: &[
        may("env", VARIABLE)
            .about("The environment variable that holds the secret.")
            .example(r#""CRM_SECRET""#),
        may("file", PATH)
            .about(
                "The file that holds the secret, relative to this one; one newline at its end \
                 is dropped. With $CREDENTIALS_DIRECTORY/ before it, a credential of systemd.",
            )
            .example(r#""secrets/crm""#),
        may("value", SECRET_TEXT)
            .about("The secret itself. Warned about: `env` and `file` hide it."),
    ],
    whole: true,
};

static DUPLICATES: Record = Record {
    noun: "duplicates",
    keys: &[
        may("activities", DURATION)
            .about("For bodies with an activity's id. Default: 24h.")
            .example(r#""24h""#),
        may("bare", DURATION)
            .about("For all other bodies. Default: 150s, which covers the sender's own retries.")
            .example(r#""150s""#),
    ],
    whole: false,
};

// What a target and `defaults` both have.
const HEADERS_KEY: Key = may("headers", HEADERS)
    .about(
        "Headers of each delivery: text, with placeholders such as {activity}, {webhook_id} or \
         {body:/resource/id} (a brace is {{), or {env: NAME} or {file: PATH} with a prefix.",
    )
    .example(r#"{ "X-Tenant": "realtour" }"#);
const FORWARD_HEADERS_KEY: Key = may("forward_headers", Shape::List(&HEADER_NAME))
    .about("Inbound headers to pass on. Default: none.")
    .example(r#"["X-Request-Id"]"#);
const TIMEOUT_KEY: Key = may("timeout", DURATION)
    .about("For one attempt with everything in it, up to 10m. Default: 10s.")
    .example(r#""10s""#);
const RETRY_KEY: Key = may("retry", Shape::Record(&RETRY))
    .about("How long, and how often, a delivery is tried again.")
    .example(r#"{ "first": "1s", "max": "1h", "for": "72h" }"#);
const CONCURRENCY_KEY: Key = may("concurrency", Shape::Integer)
    .about("Attempts at the same time, from 1 to 1000. Default: 16.")
    .example("16");
const RATE_LIMIT_KEY: Key = may("rate_limit", RATE)
    .about("Attempts per second, minute or hour, spread evenly. Default: no limit.")
    .example(r#""600/m""#);
const BACKLOG_LIMIT_KEY: Key = may(
    "backlog_limit",
    Shape::Text("a share or a size such as 50% or 2GiB"),
)
.about(
    "How much of the store may wait for this target: a share of the store's limit, or a size \
         from 1MiB. Beyond it the oldest deliveries become dead letters. Default: 50%.",
)
.example(r#""50%""#);
const PAUSED_KEY: Key = may("paused", Shape::Boolean)
    .about(
        "Keep everything for this target and send nothing, until it is false again. Default: \
         false.",
    )
    .example("true");
const TLS_KEY: Key = may("tls", Shape::Record(&TLS)).about(
    "What to trust, and what to show, if the URL is https. Default: the system's \
                 authorities.",
);

static TARGET: Record = Record {
    noun: "a target",
    keys: &[
        must("url", Shape::Text("a url"))
            .about(
                "Where deliveries are posted, https or http. No user or password in it: use \
                 `headers` with a secret.",
            )
            .example(r#""https://crm.internal/hooks/aryeo""#),
        must("sign", Shape::Record(&SIGN))
            .about("How deliveries are signed for this target.")
            .example(r#"{ "scheme": "aryeo", "secrets": [{ "env": "CRM_SECRET" }] }"#),
        HEADERS_KEY,
        FORWARD_HEADERS_KEY,
        TIMEOUT_KEY,
        RETRY_KEY,
        CONCURRENCY_KEY,
        RATE_LIMIT_KEY,
        PAUSED_KEY,
        TLS_KEY,
        BACKLOG_LIMIT_KEY,
    ],
    whole: false,
};

static DEFAULTS: Record = Record {
    noun: "defaults",
    keys: &[
        HEADERS_KEY,
        FORWARD_HEADERS_KEY,
        TIMEOUT_KEY,
        RETRY_KEY,
        CONCURRENCY_KEY,
        RATE_LIMIT_KEY,
        PAUSED_KEY,
        TLS_KEY,
        BACKLOG_LIMIT_KEY,
    ],
    whole: false,
};

pub(super) static HEADER: Record = Record {
    noun: "a header's value",
    keys: &[
        may("env", VARIABLE)
            .about("The environment variable that holds the value.")
            .example(r#""TOKEN""#),
        may("file", PATH)
            .about("The file that holds the value, relative to this one.")
            .example(r#""secrets/token""#),
        may("prefix", Shape::Text("text")).about("Goes before the value.").example(r#""Bearer ""#),
    ],
    whole: true,
};

static RETRY: Record = Record {
    noun: "retry",
    keys: &[
        may("first", DURATION)
            .about("The wait after the first failure; it doubles from then on. Default: 1s.")
            .example(r#""1s""#),
        may("max", DURATION).about("The longest wait. Default: 1h.").example(r#""1h""#),
        may("for", DURATION)
            .about("How long a delivery is tried before it is a dead letter. Default: 72h.")
            .example(r#""72h""#),
        may("give_up_on", Shape::List(&Shape::Integer))
            .about("Statuses from 300 to 599 that make it a dead letter at once. Default: [410].")
            .example("[404, 410]"),
    ],
    whole: false,
};

static TLS: Record = Record {
    noun: "tls",
    keys: &[
        may("ca", PATH)
            .about("A PEM file with the authorities to trust, in place of the system's.")
            .example(r#""certs/ca.pem""#),
        may("certificate", PATH)
            .about("A PEM file with the relay's own certificate for this target; needs `key`.")
            .example(r#""certs/client.pem""#),
        may("key", PATH)
            .about("A PEM file with the certificate's private key.")
            .example(r#""certs/client.key""#),
        may("server_name", Shape::Text("a host name"))
            .about("The name that the target's certificate must have, if not the URL's.")
            .example(r#""crm.example""#),
    ],
    whole: false,
};

static ROUTE: Record = Record {
    noun: "a route",
    keys: &[
        must("name", Shape::Text("a name"))
            .about("Unique among the routes.")
            .example(r#""orders""#),
        may("source", Shape::OneOrMany)
            .about("Names of sources, with `*` and `?` as wildcards; `!` excludes. Default: any.")
            .example(r#""aryeo""#),
        may("activity", Shape::OneOrMany)
            .about(
                "Names of activities, with `*` and `?` as wildcards; `!` excludes. A route \
                 with this key never matches a webhook without an activity.",
            )
            .example(r#"["ORDER_*", "!ORDER_VIEWED"]"#),
        may("resource", Shape::OneOrMany)
            .about("Types of resources, with `*` and `?` as wildcards; `!` excludes. Default: any.")
            .example(r#""ORDER""#),
        must("to", Shape::List(&Shape::Text("the name of a target")))
            .about("The targets that matching webhooks go to.")
            .example(r#"["crm"]"#),
        may("headers", HEADERS)
            .about("Headers on top of the target's own: text with placeholders, never secrets.")
            .example(r#"{ "X-Channel": "{activity}" }"#),
        may("final", Shape::Boolean)
            .about("Routes after this one are not looked at where it matches. Default: false.")
            .example("true"),
        may("when", Shape::Map("JSON pointers", &Shape::Condition))
            .about(
                "What the body must say: a JSON pointer to each value and its condition; all \
                 must hold.",
            )
            .example(r#"{ "/resource/total_amount": { "gte": 100000 } }"#),
    ],
    whole: false,
};

pub(super) static CONDITION: Record = Record {
    noun: "a condition",
    keys: &[
        may("equals", Shape::Scalar)
            .about("The value is this one; a bare value in place of the map means the same.")
            .example(r#""USD""#),
        may("not", Shape::Condition)
            .about("The opposite of a value or condition; a missing value satisfies it.")
            .example(r#""internal""#),
        may("in", Shape::List(&Shape::Scalar))
            .about("The value is one of these.")
            .example(r#"["gold", "platinum"]"#),
        may("gt", Shape::Scalar).about("The value is a number above this one.").example("100"),
        may("gte", Shape::Scalar).about("The value is a number not below this one.").example("100"),
        may("lt", Shape::Scalar).about("The value is a number below this one.").example("100"),
        may("lte", Shape::Scalar).about("The value is a number not above this one.").example("100"),
        may("prefix", Shape::Text("text"))
            .about("The value is text that begins so.")
            .example(r#""Lot ""#),
        may("suffix", Shape::Text("text"))
            .about("The value is text that ends so.")
            .example(r#""-draft""#),
        may("exists", Shape::Boolean).about("Whether the value is there at all.").example("false"),
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
