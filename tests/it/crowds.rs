//! Strangers who hold on to as much as they can, and the sender among them.

use std::net::TcpStream;
use std::time::Duration;

use crate::support::eventually::pause;
use crate::support::routes::PATH;
use crate::support::sender::Connection;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, eventually};

/// Half of it is for strangers, half of that for one address.
const IN_FLIGHT: usize = 32;

const STRANGERS: usize = 64;

struct Scene {
    relay: TestRelay,
    crm: Receiver,
    plain: bool,
    bodies: Vec<Vec<u8>>,
}

impl Scene {
    fn start(plain: bool) -> Self {
        Self::start_with(plain, &[])
    }

    fn start_with(plain: bool, more: &[&str]) -> Self {
        let crm = Receiver::willing();
        let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
        let in_flight = IN_FLIGHT.to_string();
        let flags = ["--in-flight-max", &in_flight, "--in-flight-bytes-max", "8MiB"];
        let builder = TestRelay::with(&routes).flags(&flags).flags(more);
        let relay = if plain { builder.plain_http() } else { builder }.start();
        Self { relay, crm, plain, bodies: Vec::new() }
    }

    /// One more unsigned request, from one of two addresses: it announces 2 MiB, sends so many
    /// bytes and then no more.
    fn stranger(&self, number: usize, bytes: usize) -> Connection {
        let address = if number.is_multiple_of(2) { [127, 0, 0, 2] } else { [127, 0, 0, 3] };
        let request = Request::unsigned(PATH, &vec![b'x'; 2 * 1024 * 1024]);
        let mut connection = Sender::new(&self.relay).connect_from(address);
        connection.write(&request.head()).unwrap();
        // It may have been ended for another's sake by now.
        let _written = connection.write(&request.body[..bytes]);
        connection
    }

    /// So many strangers, when each of them either has a place or was sent away.
    fn strangers(&self, bytes: usize) -> Vec<Connection> {
        let crowd = (0..STRANGERS).map(|number| self.stranger(number, bytes)).collect();
        eventually("the strangers hold what they can get", || {
            let sent_away = self.answered("timeout") + self.answered("overloaded");
            let places = STRANGERS as f64 - sent_away;
            (places <= IN_FLIGHT as f64 / 2.0).then_some(()).ok_or(format!("{places} places"))
        });
        crowd
    }

    fn answered(&self, answer: &str) -> f64 {
        let labels = [("source", "aryeo"), ("answer", answer)];
        self.relay.metrics().value("relay_webhooks_received_total", &labels)
    }

    /// A new webhook of this size.
    fn body(&mut self, size: usize) -> Vec<u8> {
        let mut body = listing_delivered(&format!("a webhook {}", self.bodies.len()));
        body.resize(body.len().max(size), b' ');
        self.bodies.push(body.clone());
        body
    }

    fn posts(&mut self, size: usize) {
        let body = self.body(size);
        Sender::new(&self.relay).post(&body).accepted();
    }

    /// The sender on a slow line, while more strangers come.
    fn dribbles(&mut self, size: usize, pieces: usize) {
        let request = Request::signed(&self.body(size));
        let mut connection = Sender::new(&self.relay).connect();
        connection.write(&request.head()).unwrap();
        let mut more = Vec::new();
        for (number, piece) in request.body.chunks(size.div_ceil(pieces)).enumerate() {
            connection.write(piece).unwrap();
            // Fewer in all than have a place: some of those who came first are always there.
            if number < IN_FLIGHT / 8 {
                more.push(self.stranger(number, 1));
            }
            pause(Duration::from_secs(1) / u32::try_from(pieces).unwrap());
        }
        connection.read_answer().unwrap().accepted();
    }

    /// All of the sender's and nothing of the strangers' was taken in.
    #[track_caller]
    fn ends(mut self) {
        let received = self.crm.wait_for(self.bodies.len());
        let mut arrived: Vec<_> = received.iter().map(|received| received.body.clone()).collect();
        arrived.sort();
        self.bodies.sort();
        assert!(arrived == self.bodies, "not the bodies that were sent, plain: {}", self.plain);
        assert_eq!(self.answered("overloaded"), 0.0);
        assert_eq!(self.answered("accepted"), self.bodies.len() as f64);
    }
}

#[test]
fn slow_strangers_do_not_crowd_out_the_sender() {
    for plain in [false, true] {
        let mut scene = Scene::start(plain);
        let _crowd = scene.strangers(1);
        for _ in 0..5 {
            scene.posts(0);
            scene.posts(26_000);
            scene.posts(300_000);
        }
        scene.dribbles(26_000, 10);
        scene.dribbles(300_000, 10);
        scene.ends();
    }
}

#[test]
fn strangers_with_large_bodies_do_not_crowd_out_the_sender() {
    for plain in [false, true] {
        let mut scene = Scene::start(plain);
        let _crowd = scene.strangers(900_000);
        for _ in 0..5 {
            scene.posts(26_000);
            scene.posts(300_000);
            scene.posts(2 * 1024 * 1024);
        }
        scene.ends();
    }
}

#[test]
fn a_stranger_gives_way_to_the_next_of_the_same_address_at_once() {
    let mut scene = Scene::start(false);
    let crowd: Vec<_> = (0..20).map(|number| scene.stranger(number * 2, 1)).collect();
    // Eight of them have a place, the newest.
    let mut crowd = crowd.into_iter();
    for mut ended in crowd.by_ref().take(12) {
        let answer = ended.read_answer().unwrap();
        answer.problem(408);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(crowd.len(), 8);
    assert_eq!(scene.answered("timeout"), 12.0);
    scene.posts(0);
    scene.ends();
}

#[test]
fn a_stranger_alone_has_until_the_body_s_time_is_up() {
    let scene = Scene::start_with(false, &["--body-timeout", "3s"]);
    let mut crowd: Vec<_> = (0..16).map(|number| scene.stranger(number, 1)).collect();
    for connection in &mut crowd {
        connection.read_answer().unwrap().problem(408);
    }
    let logs = scene.relay.logs().join("\n");
    assert!(
        !logs.contains("others wanted in"),
        "somebody gave way although there was room:\n{logs}"
    );
    scene.ends();
}

#[test]
fn connections_that_only_wait_do_not_crowd_out_the_sender() {
    for plain in [false, true] {
        // All of them come from one address.
        let flags = ["--connections-max", "20", "--connections-per-address-max", "20"];
        let mut scene = Scene::start_with(plain, &flags);
        let address = scene.relay.listen();
        // Some say nothing, some have begun a head, some have had an answer.
        let silent: Vec<_> = (0..30).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut others: Vec<_> = (0..30).map(|_| Sender::new(&scene.relay).connect()).collect();
        for (number, connection) in others.iter_mut().enumerate().skip(15) {
            match number % 2 {
                0 => connection.write(b"POST /webhooks/aryeo HTT").unwrap(),
                _ => connection.send(&Request::unsigned("/elsewhere", b"")).unwrap().problem(404),
            }
        }
        for _ in 0..30 {
            scene.posts(26_000);
        }
        drop((silent, others));
        scene.ends();
    }
}
