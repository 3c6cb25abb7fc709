//! HTTP as no honest sender speaks it, down to the frames.

use std::io::Write;
use std::net::TcpStream;

use crate::support::http2::{
    CONTINUATION, END_HEADERS, END_STREAM, Frame, HEADERS, PING, PREFACE, RST_STREAM, RawHttp2,
    SETTINGS, block, frame,
};
use crate::support::routes::PATH;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, eventually, patience};

const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A POST without a signature, and so many more headers.
fn head(more: usize) -> Vec<u8> {
    let post = [(":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "a")];
    let names: Vec<String> = (0..more).map(|number| format!("x-{number}")).collect();
    let more = names.iter().map(|name| (&**name, "1"));
    block(&post.into_iter().chain(more).collect::<Vec<_>>())
}

/// Writes all at once; the relay may have closed in the meantime.
fn send(connection: &mut RawHttp2, frames: &[Vec<u8>]) {
    let _written = connection.write(&frames.concat());
}

fn relay(flags: &[&str]) -> (TestRelay, Receiver) {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    (TestRelay::with(&routes).flags(flags).plain_http().start(), crm)
}

/// The sender is served as if nothing were.
#[track_caller]
fn the_sender_is_served(relay: &TestRelay, crm: &Receiver) {
    Sender::new(relay).post(&listing_delivered("a webhook")).accepted();
    crm.wait_for(1);
}

fn opened(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &head(0))
}

#[test]
fn streams_that_are_opened_and_reset_at_once_end_their_connection() {
    let (relay, crm) = relay(&[]);
    let mut raw = RawHttp2::open(&relay, &[]);
    let reset = |stream| frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    let pairs = (0..200).map(|number| number * 2 + 1).flat_map(|id| [opened(id, 0), reset(id)]);
    send(&mut raw, &pairs.collect::<Vec<_>>());
    raw.is_told_to_go(ENHANCE_YOUR_CALM);
    the_sender_is_served(&relay, &crm);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_too_many_of_them_end_their_connection() {
    let (relay, crm) = relay(&[]);
    let mut raw = RawHttp2::open(&relay, &[]);
    // None of them sends its body.
    send(&mut raw, &(0..140).map(|number| opened(number * 2 + 1, 0)).collect::<Vec<_>>());
    let refused = |frames: Vec<Frame>| frames.into_iter().filter(|f| f.kind == RST_STREAM);
    eventually("those beyond are refused", || refused(raw.frames()).count() == 12);
    for told in refused(raw.frames()) {
        assert!(told.error() == Some(REFUSED_STREAM) && told.stream > 2 * 128, "{told:?}");
    }
    send(&mut raw, &(140..800).map(|number| opened(number * 2 + 1, 0)).collect::<Vec<_>>());
    raw.is_told_to_go(ENHANCE_YOUR_CALM);
    the_sender_is_served(&relay, &crm);
}

#[test]
fn a_head_that_goes_on_and_on_ends_its_connection() {
    let (relay, crm) = relay(&[]);
    for payload in [&[][..], b"\0\x01x\x011"] {
        let mut raw = RawHttp2::open(&relay, &[]);
        let mut frames = vec![frame(HEADERS, END_STREAM, 1, &head(0))];
        frames.extend((0..20_000).map(|_| frame(CONTINUATION, 0, 1, payload)));
        send(&mut raw, &frames);
        raw.is_told_to_go(ENHANCE_YOUR_CALM);
    }
    the_sender_is_served(&relay, &crm);
}

#[test]
fn settings_and_pings_whose_answers_nobody_reads_take_no_memory() {
    let (relay, crm) = relay(&[]);
    let resident = || relay.metrics().value("process_resident_memory_bytes", &[]);
    the_sender_is_served(&relay, &crm);
    let before = resident();
    let mut floods = Vec::new();
    for flood in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8])] {
        // Nobody reads what comes.
        let mut stream = TcpStream::connect(relay.listen()).unwrap();
        stream.set_write_timeout(Some(patience())).unwrap();
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let much = flood.repeat(1000);
        // Until the relay reads no more, or this is 20 MB.
        for _ in 0..2000 {
            if stream.write(&much).is_err() {
                break;
            }
        }
        floods.push(stream);
    }
    Sender::new(&relay).post(&listing_delivered("another")).accepted();
    let grown = resident() - before;
    assert!(grown < 16e6, "{grown} bytes more");
}

#[test]
fn a_connection_has_so_many_requests_and_no_more() {
    let (relay, crm) = relay(&["--requests-per-connection-max", "2"]);
    let mut connection = Sender::new(&relay).connect();
    let first = connection.send(&Request::signed(&listing_delivered("1"))).unwrap();
    first.accepted();
    assert_eq!(first.header("connection"), None);
    let last = connection.send(&Request::signed(&listing_delivered("2"))).unwrap();
    last.accepted();
    assert_eq!(last.header("connection"), Some("close"));
    connection.read_head().unwrap_err();
    let mut raw = RawHttp2::open(&relay, &[]);
    send(&mut raw, &[opened(1, END_STREAM)]);
    raw.wait_for("it is answered", |frame| frame.kind == HEADERS && frame.stream == 1);
    send(&mut raw, &[opened(3, END_STREAM)]);
    // It is closed once it is known that nothing more is on its way.
    let ping = raw.wait_for("whether it is in step", |frame| frame.kind == PING);
    send(&mut raw, &[frame(PING, END_STREAM, 0, &ping.payload)]);
    raw.is_told_to_go(NO_ERROR);
    crm.wait_for(2);
}

#[test]
fn a_head_has_a_hundred_lines_and_no_more() {
    let (relay, crm) = relay(&[]);
    let sender = Sender::new(&relay);
    let lines = |count: usize| {
        let request = Request::signed(&listing_delivered(&count.to_string()));
        let more = count - request.headers.len() - 1;
        (0..more).fold(request, |request, number| request.header(&format!("X-{number}"), "1"))
    };
    sender.send(&lines(100)).accepted();
    assert_eq!(sender.connect().send(&lines(101)).unwrap().status, 431);
    let mut raw = RawHttp2::open(&relay, &[]);
    send(&mut raw, &[frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(101))]);
    raw.wait_for("it is answered", |frame| frame.kind == HEADERS && frame.stream == 1);
    let labels = [("source", "aryeo"), ("answer", "headers_too_large")];
    relay.wait_for_metric("relay_webhooks_received_total", &labels, 1.0);
    crm.wait_for(1);
}
