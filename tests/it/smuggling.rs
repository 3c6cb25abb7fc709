//! HTTP/1.1 that two readers could read differently: never more than one webhook comes of it.
//!
//! Each row hides a second request, rightly signed, where another reading of the same bytes would
//! find it.

use crate::support::routes::{PATH, SECRET};
use crate::support::sender::chunk_of;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, sign};

/// What has to become of a row.
enum Expected {
    /// 400 or no answer at all, and the connection ends.
    Refused,
    /// An answer of this status; the connection ends, or goes on behind the whole request.
    Answered(u16),
    /// The webhook with the row's body; the connection ends, or goes on behind the whole request.
    Served,
}

use Expected::{Answered, Refused, Served};

struct Row {
    name: &'static str,
    bytes: Vec<u8>,
    /// What is signed.
    body: Vec<u8>,
    expected: Expected,
}

/// A signed request of these head lines, `%S` being its signature, followed by `rest`.
fn row(name: &'static str, body: &[u8], head: &str, rest: &[u8], expected: Expected) -> Row {
    let signature = format!("Signature: {}", sign(SECRET, body));
    let head = head.replace("%S", &signature).replace("%P", PATH);
    Row { name, bytes: [head.as_bytes(), rest].concat(), body: body.to_vec(), expected }
}

/// What must never be taken for a request.
fn hidden(name: &str) -> Vec<u8> {
    let request = Request::signed(&listing_delivered(&format!("hidden: {name}")));
    [request.head(), request.encoded_body()].concat()
}

/// The lines of a POST, with these for where its body ends.
fn post(framing: &str) -> String {
    format!("POST %P HTTP/1.1\r\nHost: localhost\r\n%S\r\n{framing}\r\n\r\n")
}

fn lengths() -> Vec<Row> {
    let body = |name: &str| listing_delivered(name);
    let wrong = |name: &'static str, length: &str| {
        let rest = [body(name), hidden(name)].concat();
        row(name, &body(name), &post(&format!("Content-Length: {length}")), &rest, Refused)
    };
    let right = body("two equal lengths").len();
    vec![
        wrong("a length with a plus", "+5"),
        wrong("a negative length", "-1"),
        wrong("a length in hex", "0x5"),
        wrong("a length of digits and letters", "5a"),
        wrong("an empty length", ""),
        wrong("a list of lengths", "5, 5"),
        wrong("a length with a blank in it", "5 5"),
        wrong("a length in Arabic digits", "\u{665}"),
        wrong("a length over 64 bits", "18446744073709551621"),
        wrong("two lengths that differ", "5\r\nContent-Length: 6"),
        wrong("two lengths that differ, the first is none", "x\r\nContent-Length: 6"),
        row(
            "two equal lengths",
            &body("two equal lengths"),
            &post(&format!("Content-Length: {right}\r\ncontent-length: {right}")),
            &body("two equal lengths"),
            Served,
        ),
        row(
            "a length that no body has",
            b"x",
            &post("Content-Length: 18446744073709551615"),
            &hidden("a length that no body has"),
            Answered(431),
        ),
    ]
}

fn encodings() -> Vec<Row> {
    let chunked = |body: &[u8]| [chunk_of(body), b"0\r\n\r\n".to_vec()].concat();
    let refused = |name: &'static str, lines: &str| {
        let body = listing_delivered(name);
        row(name, &body, &post(lines), &[chunked(&body), hidden(name)].concat(), Refused)
    };
    // The length says that what is hidden is still the body.
    let both = |name: &'static str, lines: &str| {
        let body = listing_delivered(name);
        let rest = [chunked(&body), hidden(name)].concat();
        let lines = lines.replace("%L", &rest.len().to_string());
        row(name, &body, &post(&lines), &rest, Served)
    };
    // Here the length alone counts, and what is hidden is part of the body.
    let length_only = |name: &'static str, lines: &str| {
        let body = [chunked(b"x"), hidden(name)].concat();
        let lines = lines.replace("%L", &body.len().to_string());
        row(name, &body, &post(&lines), &body, Served)
    };
    vec![
        both("a length, then chunked", "Content-Length: %L\r\nTransfer-Encoding: chunked"),
        both("chunked, then a length", "Transfer-Encoding: chunked\r\nContent-Length: %L"),
        both("chunked, then no length at all", "Transfer-Encoding: chunked\r\nContent-Length: x"),
        both("a line feed hides chunked", "Content-Length: %L\r\nX: a\nTransfer-Encoding: chunked"),
        refused("chunked, identity", "Transfer-Encoding: chunked, identity"),
        refused("xchunked", "Transfer-Encoding: xchunked"),
        refused("chunked with a parameter", "Transfer-Encoding: chunked;a=b"),
        refused("identity", "Transfer-Encoding: identity"),
        refused("an empty encoding", "Transfer-Encoding:"),
        refused("a vertical tab", "Transfer-Encoding: \u{b}chunked"),
        refused("quoted", "Transfer-Encoding: \"chunked\""),
        refused(
            "two lines, the last is none",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        ),
        refused("a blank before the colon", "Transfer-Encoding : chunked"),
        refused("a folded line", "Transfer-Encoding:\r\n chunked"),
        refused("a tab that folds", "X: a\r\n\tTransfer-Encoding: chunked"),
        refused("a carriage return alone", "X: a\rTransfer-Encoding: chunked"),
        length_only("an underscore", "Content-Length: %L\r\nTransfer_Encoding: chunked"),
        length_only("another name", "Content-Length: %L\r\nX-Transfer-Encoding: chunked"),
        length_only("TE says what is taken", "Content-Length: %L\r\nTE: chunked"),
    ]
}

fn chunks() -> Vec<Row> {
    let lines = post("Transfer-Encoding: chunked");
    // The first chunk as it is told; after it, the end of the body and what is hidden.
    let refused = |name: &'static str, first: &[u8]| {
        let rest = [first, b"0\r\n\r\n", &hidden(name)].concat();
        row(name, &listing_delivered(name), &lines, &rest, Refused)
    };
    let served = |name: &'static str, of: fn(&[u8]) -> Vec<u8>| {
        let body = listing_delivered(name);
        row(name, &body, &lines, &of(&body), Served)
    };
    vec![
        served("an extension", |body| {
            [format!("{:x};a=\"b\"\r\n", body.len()).as_bytes(), body, b"\r\n0;c\r\n\r\n"].concat()
        }),
        served("a size in capitals with zeros before it", |body| {
            [format!("000{:X}\r\n", body.len()).as_bytes(), body, b"\r\n00\r\n\r\n"].concat()
        }),
        served("trailers that would be another framing", |body| {
            let end = b"0\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n";
            [chunk_of(body), end.to_vec()].concat()
        }),
        refused("a size over 64 bits", b"10000000000000005\r\nhello\r\n"),
        refused("a size that is none", b"xyz\r\nhello\r\n"),
        refused("a size with 0x", b"0x5\r\nhello\r\n"),
        refused("a size with a plus", b"+5\r\nhello\r\n"),
        refused("a negative size", b"-5\r\nhello\r\n"),
        refused("an empty size", b"\r\nhello\r\n"),
        refused("a size that ends in a line feed", b"5\nhello\r\n"),
        refused("a line feed in an extension", b"5;a\nhello\r\n"),
        refused("a chunk longer than it says", b"4\r\nhello\r\n"),
        refused("a chunk that ends in a line feed", b"5\r\nhello\n"),
        refused("a NUL after the size", b"5\0\r\nhello\r\n"),
    ]
}

/// A row whose head says `%L` where the length of its body belongs.
fn with_length(name: &'static str, head: &str, expected: Expected) -> Row {
    let body = listing_delivered(name);
    let head = head.replace("%L", &format!("Content-Length: {}", body.len()));
    let more = if matches!(expected, Refused) { hidden(name) } else { Vec::new() };
    row(name, &body, &head, &[body.clone(), more].concat(), expected)
}

fn header_lines() -> Vec<Row> {
    let line = |name: &'static str, line: &str, expected: Expected| {
        let head = format!("POST %P HTTP/1.1\r\nHost: localhost\r\n{line}\r\n%S\r\n%L\r\n\r\n");
        with_length(name, &head, expected)
    };
    vec![
        line("a NUL in a value", "X: a\0b", Refused),
        line("a NUL in a name", "X\0: a", Refused),
        line("a name with a blank", "X Y: a", Refused),
        line("no name", ": a", Refused),
        line("a line without a colon", "nonsense", Refused),
        line("a name that is not ASCII", "Ünlike: a", Refused),
        with_length(
            "a blank before the first line",
            "POST %P HTTP/1.1\r\n X: a\r\n%S\r\n%L\r\n\r\n",
            Refused,
        ),
        with_length("line feeds alone", "POST %P HTTP/1.1\nHost: localhost\n%S\n%L\n\n", Served),
    ]
}

fn first_lines() -> Vec<Row> {
    let old = "POST %P HTTP/1.0\r\n%S";
    vec![
        with_length("no host", "POST %P HTTP/1.1\r\n%S\r\n%L\r\n\r\n", Served),
        with_length(
            "two hosts",
            "POST %P HTTP/1.1\r\nHost: a\r\nHost: b\r\n%S\r\n%L\r\n\r\n",
            Served,
        ),
        with_length(
            "an absolute target",
            "POST http://evil.test%P HTTP/1.1\r\nHost: a\r\n%S\r\n%L\r\n\r\n",
            Served,
        ),
        with_length(
            "an authority as target",
            "POST localhost:443 HTTP/1.1\r\nHost: a\r\n%S\r\n%L\r\n\r\n",
            Answered(404),
        ),
        with_length(
            "an asterisk as target",
            "POST * HTTP/1.1\r\nHost: a\r\n%S\r\n%L\r\n\r\n",
            Answered(404),
        ),
        with_length(
            "a fragment in the target",
            "POST %P#x HTTP/1.1\r\nHost: a\r\n%S\r\n%L\r\n\r\n",
            Served,
        ),
        with_length("no target", "POST HTTP/1.1\r\nHost: a\r\n%S\r\n%L\r\n\r\n", Refused),
        with_length(
            "two blanks before the version",
            "POST %P  HTTP/1.1\r\n%S\r\n%L\r\n\r\n",
            Refused,
        ),
        with_length("HTTP/0.9", "POST %P\r\n\r\n", Refused),
        with_length("HTTP/1.2", "POST %P HTTP/1.2\r\nHost: a\r\n%S\r\n%L\r\n\r\n", Refused),
        with_length(
            "HTTP/2.0 in words",
            "POST %P HTTP/2.0\r\nHost: a\r\n%S\r\n%L\r\n\r\n",
            Refused,
        ),
        with_length(
            "http in small letters",
            "POST %P http/1.1\r\nHost: a\r\n%S\r\n%L\r\n\r\n",
            Refused,
        ),
        with_length(
            "HTTP/1.0 kept alive",
            &format!("{old}\r\nConnection: keep-alive\r\n%L\r\n\r\n"),
            Served,
        ),
    ]
}

fn unframed() -> Vec<Row> {
    // A body that is a request: refused for another reason, it is still a body.
    let in_body = |name: &'static str, start: &str, status: u16| {
        let body = hidden(name);
        let head =
            format!("{start}\r\nHost: localhost\r\n%S\r\nContent-Length: {}\r\n\r\n", body.len());
        row(name, &body, &head, &body, Answered(status))
    };
    let old = "POST %P HTTP/1.0\r\n%S";
    let unframed = [listing_delivered("old"), hidden("HTTP/1.0 without a length")].concat();
    let chunks = [chunk_of(b"hello"), b"0\r\n\r\n".to_vec(), hidden("HTTP/1.0, chunked")].concat();
    vec![
        row(
            "HTTP/1.0, chunked",
            b"hello",
            &format!("{old}\r\nTransfer-Encoding: chunked\r\n\r\n"),
            &chunks,
            Refused,
        ),
        row(
            "HTTP/1.0 without a length",
            &listing_delivered("old"),
            &format!("{old}\r\n\r\n"),
            &unframed,
            Answered(401),
        ),
        in_body("in the body of a GET", "GET %P HTTP/1.1", 405),
        in_body("in the body of a PUT to nowhere", "PUT /elsewhere HTTP/1.1", 404),
    ]
}

/// Sends a row and looks at all that comes back.
#[track_caller]
fn play(sender: &Sender, row: &Row) {
    let name = row.name;
    let mut connection = sender.connect();
    // It may be closed before all is written.
    let _written = connection.write(&row.bytes);
    let first = connection.read_answer();
    match (&row.expected, &first) {
        (Refused, Ok(answer)) => assert_eq!(answer.status, 400, "{name}: {answer:?}"),
        (Refused, Err(error)) => assert!(!is_timeout(error), "{name}: it is still open"),
        (Answered(status), Ok(answer)) => assert_eq!(answer.status, *status, "{name}: {answer:?}"),
        (Served, Ok(answer)) => assert_eq!(answer.status, 202, "{name}: {answer:?}"),
        (Answered(_) | Served, Err(error)) => panic!("{name}: no answer: {error}"),
    }
    if !matches!(row.expected, Refused) {
        // Whoever is in step takes this for the next request.
        let _written = connection.write(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    match (connection.read_answer(), &row.expected) {
        (Ok(answer), Refused) => panic!("{name}: another answer: {answer:?}"),
        (Ok(answer), _) => assert_eq!(answer.status, 404, "{name}: out of step: {answer:?}"),
        (Err(error), _) => assert!(!is_timeout(&error), "{name}: neither answered nor closed"),
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

#[track_caller]
fn nothing_is_smuggled_in(rows: &[Row]) {
    for plain in [false, true] {
        let crm = Receiver::willing();
        let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
        let builder = TestRelay::with(&routes);
        let mut relay = if plain { builder.plain_http() } else { builder }.start();
        let mut sender = Sender::new(&relay);
        rows.iter().for_each(|row| play(&sender, row));
        let last = listing_delivered("the last one");
        sender.post(&last).accepted();

        let served = rows.iter().filter(|row| matches!(row.expected, Served));
        let mut expected: Vec<_> = served.map(|row| row.body.clone()).collect();
        expected.push(last);
        let accepted = relay
            .metrics()
            .value("relay_webhooks_received_total", &[("source", "aryeo"), ("answer", "accepted")]);
        assert_eq!(accepted, expected.len() as f64);
        crm.wait_for(expected.len());
        // Its end waits for what else may be on its way.
        relay.terminate();
        let mut arrived: Vec<_> = crm.received().into_iter().map(|webhook| webhook.body).collect();
        arrived.sort();
        expected.sort();
        assert!(arrived == expected, "not what was served, plain: {plain}");
    }
}

#[test]
fn a_length_is_digits_or_the_request_is_refused() {
    nothing_is_smuggled_in(&lengths());
}

#[test]
fn a_request_with_two_framings_is_one_webhook_at_most() {
    nothing_is_smuggled_in(&encodings());
}

#[test]
fn chunks_are_read_to_the_letter() {
    nothing_is_smuggled_in(&chunks());
}

#[test]
fn a_head_that_can_be_read_in_two_ways_hides_nothing() {
    let rows = [header_lines(), first_lines(), unframed()].into_iter().flatten();
    nothing_is_smuggled_in(&rows.collect::<Vec<_>>());
}
