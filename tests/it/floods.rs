//! HTTP as no honest sender speaks it, down to the frames.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::routes::PATH;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, patience};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A POST without a signature, and so many more headers.
fn head(more: usize) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let mut head = vec![0x83, 0x86, 0x04];
    head.extend(text(PATH));
    head.push(0x01);
    head.extend(text("localhost"));
    for number in 0..more {
        head.push(0);
        head.extend(text(&format!("x-{number}")));
        head.extend(text("1"));
    }
    head
}

/// A frame that came back: its kind, its stream, and the code of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    kind: u8,
    stream: u32,
    code: u32,
}

struct Raw(TcpStream);

impl Raw {
    fn open(relay: &TestRelay) -> Self {
        let mut stream = TcpStream::connect(relay.listen()).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        stream.set_write_timeout(Some(patience())).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
        Self(stream)
    }

    /// All at once; the relay may have closed in the meantime.
    fn send(&mut self, frames: &[Vec<u8>]) {
        let _written = self.0.write_all(&frames.concat());
    }

    fn next(&mut self) -> Option<Told> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
        let mut payload = vec![0; usize::try_from(number(&head[..3])).unwrap()];
        self.0.read_exact(&mut payload).ok()?;
        let (kind, stream) = (head[3], number(&head[5..]));
        let code = match kind {
            RST_STREAM => number(&payload),
            GOAWAY => number(&payload[4..8]),
            _ => 0,
        };
        Some(Told { kind, stream, code })
    }

    /// Reads on until such a frame comes.
    #[track_caller]
    fn wait_for(&mut self, kind: u8) -> Told {
        loop {
            let told = self.next().unwrap_or_else(|| panic!("closed before a frame {kind}"));
            if told.kind == kind {
                return told;
            }
        }
    }

    /// With this code the relay says that it has enough, and closes.
    #[track_caller]
    fn ends_with(mut self, code: u32) {
        assert_eq!(self.wait_for(GOAWAY).code, code);
        while let Some(told) = self.next() {
            assert!(told.kind != GOAWAY || told.code == code, "{told:?}");
        }
    }
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
    let mut raw = Raw::open(&relay);
    let reset = |stream| frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    let pairs = (0..200).map(|number| number * 2 + 1).flat_map(|id| [opened(id, 0), reset(id)]);
    raw.send(&pairs.collect::<Vec<_>>());
    raw.ends_with(ENHANCE_YOUR_CALM);
    the_sender_is_served(&relay, &crm);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_too_many_of_them_end_their_connection() {
    let (relay, crm) = relay(&[]);
    let mut raw = Raw::open(&relay);
    // None of them sends its body.
    raw.send(&(0..140).map(|number| opened(number * 2 + 1, 0)).collect::<Vec<_>>());
    for _ in 0..12 {
        let told = raw.wait_for(RST_STREAM);
        assert!(told.code == REFUSED_STREAM && told.stream > 2 * 128, "{told:?}");
    }
    raw.send(&(140..800).map(|number| opened(number * 2 + 1, 0)).collect::<Vec<_>>());
    raw.ends_with(ENHANCE_YOUR_CALM);
    the_sender_is_served(&relay, &crm);
}

#[test]
fn a_head_that_goes_on_and_on_ends_its_connection() {
    let (relay, crm) = relay(&[]);
    for payload in [&[][..], b"\0\x01x\x011"] {
        let mut raw = Raw::open(&relay);
        let mut frames = vec![frame(HEADERS, END_STREAM, 1, &head(0))];
        frames.extend((0..20_000).map(|_| frame(CONTINUATION, 0, 1, payload)));
        raw.send(&frames);
        raw.ends_with(ENHANCE_YOUR_CALM);
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
        let Raw(mut stream) = Raw::open(&relay);
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
    let mut raw = Raw::open(&relay);
    raw.send(&[opened(1, END_STREAM)]);
    assert_eq!(raw.wait_for(HEADERS).stream, 1);
    raw.send(&[opened(3, END_STREAM)]);
    raw.ends_with(NO_ERROR);
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
    let mut raw = Raw::open(&relay);
    raw.send(&[frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(101))]);
    assert_eq!(raw.wait_for(HEADERS).stream, 1);
    let labels = [("source", "aryeo"), ("answer", "headers_too_large")];
    relay.wait_for_metric("relay_webhooks_received_total", &labels, 1.0);
    crm.wait_for(1);
}
