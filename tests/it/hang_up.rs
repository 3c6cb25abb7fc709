//! A sender that leaves cancels nothing.

use std::net::Shutdown;
use std::time::Duration;

use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Routes, Sender, TestRelay};

const TIMES: usize = 40;

#[derive(Debug, Clone, Copy)]
enum Leaving {
    /// Closes both ways at once, nothing read.
    Closes,
    /// Says that nothing more comes, then closes.
    HalfCloses,
    /// Resets the connection.
    Resets,
}

fn leave(leaving: Leaving, plain: bool) {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let builder = TestRelay::with(&routes);
    let relay = if plain { builder.plain_http() } else { builder }.start();
    let sender = Sender::new(&relay);
    let bodies: Vec<Vec<u8>> =
        (0..TIMES).map(|n| listing_delivered(&format!("{leaving:?} {n}"))).collect();
    for body in &bodies {
        let request = sender.request(body);
        let mut connection = sender.connect();
        connection.write(&request.head()).unwrap();
        connection.write(&request.body).unwrap();
        match leaving {
            Leaving::Closes => {}
            Leaving::HalfCloses => connection.tcp().shutdown(Shutdown::Write).unwrap(),
            Leaving::Resets => {
                let at_once = Some(Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(connection.tcp(), at_once).unwrap();
            }
        }
        drop(connection);
    }
    let received = crm.wait_for(TIMES);
    let mut arrived: Vec<_> = received.iter().map(|received| received.body.clone()).collect();
    arrived.sort();
    let mut bodies = bodies;
    bodies.sort();
    assert!(arrived == bodies, "{leaving:?}: not the bodies that were sent");
    // The retry that the real sender makes now is harmless.
    let mut sender = Sender::new(&relay);
    for body in &bodies {
        sender.post(body).duplicate();
    }
}

#[test]
fn a_sender_that_closes_right_after_the_last_byte_is_served() {
    leave(Leaving::Closes, false);
    leave(Leaving::Closes, true);
}

#[test]
fn a_sender_that_half_closes_right_after_the_last_byte_is_served() {
    leave(Leaving::HalfCloses, false);
    leave(Leaving::HalfCloses, true);
}

#[test]
fn a_sender_that_resets_right_after_the_last_byte_is_served() {
    // What was read counts; the kernel keeps what came before the reset readable.
    leave(Leaving::Resets, true);
}

#[test]
fn a_sender_that_leaves_in_the_middle_of_a_body_leaves_nothing() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    let body = listing_delivered("half");
    let request = sender.request(&body);
    let mut connection = sender.connect();
    connection.write(&request.head()).unwrap();
    connection.write(&body[..body.len() / 2]).unwrap();
    drop(connection);
    sender.post(&body).accepted();
    assert_eq!(crm.wait_for(1).len(), 1);
}
