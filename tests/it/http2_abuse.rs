//! HTTP/2 as nobody of good will speaks it: the sender on another connection does not notice.

use crate::support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, RST_STREAM,
    RawHttp2, SETTINGS, WINDOW_UPDATE, block, frame,
};
use crate::support::routes::{PATH, SECRET};
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, eventually, sign};

/// As the protocol numbers them.
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

const INITIAL_WINDOW_SIZE: u16 = 4;

/// What the relay allows on a connection at once.
const STREAMS_MAX: u32 = 128;

/// How much more memory than before a connection may ever cost, in KiB: many times what one should.
const MEMORY_MAX: u64 = 64 * 1024;

struct Scene {
    relay: TestRelay,
    crm: Receiver,
    honest: usize,
    memory: u64,
}

impl Scene {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let crm = Receiver::willing();
        let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
        let relay = TestRelay::with(&routes).plain_http().flags(flags).start();
        let mut scene = Self { relay, crm, honest: 0, memory: 0 };
        scene.posts(20);
        scene.memory = scene.peak();
        scene
    }

    /// The sender, on a connection of its own.
    #[track_caller]
    fn posts(&mut self, count: usize) {
        let mut sender = Sender::new(&self.relay);
        for _ in 0..count {
            self.honest += 1;
            sender.post(&listing_delivered(&self.honest.to_string())).accepted();
        }
    }

    /// Somebody writes these bytes so many times, for as long as the relay takes them, and the sender posts
    /// meanwhile.
    #[track_caller]
    fn flooded(&mut self, connection: RawHttp2, times: usize, bytes: Vec<u8>) -> RawHttp2 {
        let flood = std::thread::spawn(move || {
            let mut connection = connection;
            let _all = (0..times).all(|_| connection.write(&bytes).is_ok());
            connection
        });
        self.posts(10);
        while !flood.is_finished() {
            self.posts(1);
        }
        self.posts(10);
        flood.join().unwrap()
    }

    /// The most it ever held, in KiB.
    fn peak(&self) -> u64 {
        let path = format!("/proc/{}/status", self.relay.process());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Only the sender's webhooks were taken in, and memory stayed in bounds. Whoever has a request open
    /// should be gone by now: the relay would wait for it before it stops.
    #[track_caller]
    fn ends(mut self) {
        self.posts(20);
        let grown = self.peak().saturating_sub(self.memory);
        assert!(grown <= MEMORY_MAX, "{grown} KiB more");
        let labels = [("answer", "accepted")];
        let accepted = self.relay.metrics().value("relay_webhooks_received_total", &labels);
        assert_eq!(accepted, self.honest as f64);
        self.crm.wait_for(self.honest);
        self.relay.terminate();
        assert_eq!(self.crm.count(), self.honest);
    }
}

fn post<'a>(path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    let first = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", path)];
    block(&[&first, more].concat())
}

/// Asks for something on this stream; the answer is a refusal.
fn ask(connection: &mut RawHttp2, stream: u32) -> std::io::Result<()> {
    let head = post("/elsewhere", &[]);
    connection.write(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head))
}

/// One with an answer, which it can read only where it has a window.
fn answered(relay: &TestRelay, settings: &[(u16, u32)]) -> RawHttp2 {
    let mut connection = RawHttp2::open(relay, settings);
    ask(&mut connection, 1).unwrap();
    connection.wait_for("it is answered", |frame| frame.kind == HEADERS);
    connection
}

/// The numbers of a client's streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| number * 2 + 1)
}

#[test]
fn streams_that_are_reset_at_once_end_the_connection() {
    let mut scene = Scene::start();
    let connection = RawHttp2::open(&scene.relay, &[]);
    let head = post(PATH, &[]);
    let flood: Vec<u8> = streams(10_000)
        .flat_map(|stream| {
            let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            [frame(HEADERS, END_HEADERS, stream, &head), reset].concat()
        })
        .collect();
    scene.flooded(connection, 1, flood).is_sent_away(ENHANCE_YOUR_CALM);
    scene.ends();
}

#[test]
fn a_head_without_an_end_ends_the_connection() {
    for piece in [&b""[..], &block(&[("x", &"y".repeat(1000))])] {
        let mut scene = Scene::start();
        let mut connection = RawHttp2::open(&scene.relay, &[]);
        connection.write(&frame(HEADERS, 0, 1, &post(PATH, &[]))).unwrap();
        let flood = frame(CONTINUATION, 0, 1, piece).repeat(100);
        scene.flooded(connection, 1_000, flood).is_sent_away(ENHANCE_YOUR_CALM);
        scene.ends();
    }
}

#[test]
fn settings_without_an_end_cost_their_sender_alone() {
    let mut scene = Scene::start();
    let connection = RawHttp2::open(&scene.relay, &[]);
    let flood = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(100);
    scene.flooded(connection, 1_000, flood).is_in_step();
    scene.ends();
}

#[test]
fn pings_without_an_end_cost_their_sender_alone() {
    let mut scene = Scene::start();
    let connection = RawHttp2::open(&scene.relay, &[]);
    let flood = frame(PING, 0, 0, b"01234567").repeat(100);
    scene.flooded(connection, 1_000, flood).is_in_step();
    scene.ends();
}

#[test]
fn empty_pieces_of_a_body_end_the_connection() {
    let mut scene = Scene::start();
    let mut connection = RawHttp2::open(&scene.relay, &[]);
    connection.write(&frame(HEADERS, END_HEADERS, 1, &post(PATH, &[]))).unwrap();
    let flood = frame(DATA, 0, 1, b"").repeat(100);
    scene.flooded(connection, 1_000, flood).is_sent_away(ENHANCE_YOUR_CALM);
    scene.ends();
}

#[test]
fn answers_that_nobody_reads_are_bounded_by_the_streams() {
    let mut scene = Scene::start();
    let mut connection = RawHttp2::open(&scene.relay, &[(INITIAL_WINDOW_SIZE, 0)]);
    let head = post("/elsewhere", &[]);
    let requests: Vec<u8> = streams(STREAMS_MAX)
        .flat_map(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &head))
        .collect();
    connection.write(&requests).unwrap();
    let answers = |frames: &[Frame]| frames.iter().filter(|f| f.kind == HEADERS).count();
    eventually("all are answered", || answers(&connection.frames()) == STREAMS_MAX as usize);
    assert!(connection.frames().iter().all(|frame| frame.kind != DATA), "it has no window");
    // All of them are open still, so the next has no place.
    let next = STREAMS_MAX * 2 + 1;
    connection.write(&frame(HEADERS, END_HEADERS | END_STREAM, next, &head)).unwrap();
    let refused = connection.wait_for("the next is refused", |frame| frame.stream == next);
    assert_eq!(refused.error(), Some(REFUSED_STREAM));
    scene.posts(20);
    drop(connection);
    scene.ends();
}

#[test]
fn answers_that_nobody_reads_do_not_crowd_out_the_sender() {
    // All of them come from one address, the sender from another.
    let flags = ["--connections-max", "16", "--connections-per-address-max", "16"];
    let mut scene = Scene::start_with(&flags);
    let held: Vec<_> =
        (0..16).map(|_| answered(&scene.relay, &[(INITIAL_WINDOW_SIZE, 0)])).collect();
    for _ in 0..3 {
        scene.honest += 1;
        let body = listing_delivered(&scene.honest.to_string());
        let mut connection = Sender::new(&scene.relay).connect_from([127, 0, 0, 2]);
        connection.send(&Request::signed(&body)).unwrap().accepted();
    }
    assert!(held.iter().any(RawHttp2::ended), "somebody gave way");
    drop(held);
    scene.ends();
}

#[test]
fn who_does_not_take_leave_is_not_waited_for_when_it_stops() {
    for window in [0, 65_535] {
        let crm = Receiver::willing();
        let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
        let mut relay = TestRelay::with(&routes).plain_http().start();
        let connection = answered(&relay, &[(INITIAL_WINDOW_SIZE, window)]);
        let logs = relay.log();
        relay.terminate();
        let given_up = |line: &String| line.contains("could not be answered");
        assert!(!logs.all().iter().any(given_up), "every request was answered");
        assert!(connection.frames().iter().any(|frame| frame.kind == GOAWAY), "it was told");
    }
}

#[test]
fn a_connection_that_had_all_its_requests_ends_whether_its_peer_agrees_or_not() {
    let scene = Scene::start_with(&["--requests-per-connection-max", "2"]);
    let mut connection = answered(&scene.relay, &[]);
    let mut streams = streams(u32::MAX).skip(1);
    eventually("it is closed", || {
        // The peer acknowledges nothing, and asks on and on as soon as it is answered.
        let next = streams.next().unwrap();
        let room = frame(WINDOW_UPDATE, 0, 0, &1024_u32.to_be_bytes());
        let _written = connection.write(&room).and_then(|()| ask(&mut connection, next));
        let is_answered = || connection.frames().iter().any(|frame| frame.stream == next);
        eventually("it is answered or closed", || is_answered() || connection.ended());
        connection.ended()
    });
    connection.is_told_to_go(NO_ERROR);
    scene.ends();
}

#[test]
fn more_streams_than_are_allowed_are_refused_and_the_others_go_on() {
    let mut scene = Scene::start();
    let mut connection = RawHttp2::open(&scene.relay, &[]);
    connection.is_in_step();
    let head = post(PATH, &[]);
    let requests: Vec<u8> = streams(STREAMS_MAX * 2)
        .flat_map(|stream| frame(HEADERS, END_HEADERS, stream, &head))
        .collect();
    connection.write(&requests).unwrap();
    connection.wait_for("the last is refused", |frame| {
        frame.stream == STREAMS_MAX * 4 - 1 && frame.error() == Some(REFUSED_STREAM)
    });
    connection.is_in_step();
    let refused = |frame: &&Frame| frame.error() == Some(REFUSED_STREAM);
    assert_eq!(connection.frames().iter().filter(refused).count(), STREAMS_MAX as usize);
    scene.posts(20);
    drop(connection);
    scene.ends();
}

#[test]
fn a_head_that_is_too_large_is_answered_without_being_looked_at() {
    let mut scene = Scene::start();
    let mut connection = RawHttp2::open(&scene.relay, &[]);
    let large = "y".repeat(8_000);
    let lines = [("a", &*large), ("b", &*large), ("c", &*large), ("d", &*large), ("e", &*large)];
    let head = post(PATH, &lines);
    let pieces: Vec<&[u8]> = head.chunks(16_000).collect();
    connection.write(&frame(HEADERS, END_STREAM, 1, pieces[0])).unwrap();
    connection.write(&frame(CONTINUATION, 0, 1, pieces[1])).unwrap();
    connection.write(&frame(CONTINUATION, END_HEADERS, 1, pieces[2])).unwrap();
    connection.wait_for("it is answered or refused", |frame| frame.stream == 1);
    scene.posts(20);
    let seen = scene.relay.metrics().value("relay_webhooks_received_total", &[]);
    assert_eq!(seen, scene.honest as f64);
    scene.ends();
}

#[test]
fn a_window_past_its_end_ends_the_connection_or_the_stream() {
    let mut scene = Scene::start();
    let most = 0x7fff_ffff_u32.to_be_bytes();
    let mut connection = RawHttp2::open(&scene.relay, &[]);
    connection.write(&frame(WINDOW_UPDATE, 0, 0, &most).repeat(2)).unwrap();
    connection.is_sent_away(FLOW_CONTROL_ERROR);

    let mut connection = RawHttp2::open(&scene.relay, &[]);
    connection.write(&frame(HEADERS, END_HEADERS, 1, &post(PATH, &[]))).unwrap();
    connection.write(&frame(WINDOW_UPDATE, 0, 1, &most).repeat(2)).unwrap();
    let reset = connection.wait_for("the stream is reset", |frame| frame.kind == RST_STREAM);
    assert_eq!(reset.error(), Some(FLOW_CONTROL_ERROR));
    connection.is_in_step();
    scene.posts(20);
    drop(connection);
    scene.ends();
}

#[test]
fn a_body_of_another_length_than_it_says_is_no_webhook() {
    let mut scene = Scene::start();
    let body = listing_delivered("not the length that it says");
    let signature = sign(SECRET, &body);
    for length in [body.len() - 1, body.len() + 1, 0] {
        let mut connection = RawHttp2::open(&scene.relay, &[]);
        let length = length.to_string();
        let head = post(PATH, &[("signature", &signature), ("content-length", &length)]);
        connection.write(&frame(HEADERS, END_HEADERS, 1, &head)).unwrap();
        connection.write(&frame(DATA, END_STREAM, 1, &body)).unwrap();
        let reset = connection.wait_for("the stream is reset", |frame| frame.kind == RST_STREAM);
        assert_eq!(reset.error(), Some(PROTOCOL_ERROR), "{length}");
    }
    scene.posts(20);
    scene.ends();
}

#[test]
fn a_body_that_was_cut_off_is_no_webhook() {
    let mut scene = Scene::start();
    let body = listing_delivered("the first part of it is signed");
    let part = &body[..body.len() / 2];
    let signature = sign(SECRET, part);
    let length = body.len().to_string();
    for (cut, lines) in [&[("content-length", &*length)][..], &[]].into_iter().enumerate() {
        let mut connection = RawHttp2::open(&scene.relay, &[]);
        let head = post(PATH, &[&[("signature", &*signature)], lines].concat());
        connection.write(&frame(HEADERS, END_HEADERS, 1, &head)).unwrap();
        connection.write(&frame(DATA, 0, 1, part)).unwrap();
        connection.write(&frame(RST_STREAM, 0, 1, &NO_ERROR.to_be_bytes())).unwrap();
        let labels = [("source", "aryeo"), ("answer", "bad_request")];
        scene.relay.wait_for_metric("relay_webhooks_received_total", &labels, cut as f64 + 1.0);
    }
    scene.posts(20);
    scene.ends();
}

#[test]
fn what_would_be_two_requests_to_a_server_of_http_1_is_none() {
    let mut scene = Scene::start();
    let body = listing_delivered("two requests");
    let signature = sign(SECRET, &body);
    let lines: [(&str, &str); 8] = [
        ("transfer-encoding", "chunked"),
        ("connection", "keep-alive"),
        ("Capital", "a"),
        ("x", "a\r\ny: b"),
        ("x\r\ny", "b"),
        ("x", "a\0"),
        ("content-length", "+5"),
        (":path", "/elsewhere"),
    ];
    for line in lines {
        let mut connection = RawHttp2::open(&scene.relay, &[]);
        let head = post(PATH, &[("signature", &signature), line]);
        connection.write(&frame(HEADERS, END_HEADERS, 1, &head)).unwrap();
        // It may be over by now.
        let _written = connection.write(&frame(DATA, END_STREAM, 1, &body));
        connection.wait_for(&format!("{line:?} is refused"), |frame| frame.error().is_some());
    }
    scene.posts(20);
    scene.ends();
}
