//! The kit: a relay, senders and targets that tests can order about.

pub(crate) mod certs;
pub(crate) mod container;
pub(crate) mod eventually;
pub(crate) mod http2;
mod http2_sender;
pub(crate) mod manager;
pub(crate) mod metrics;
pub(crate) mod otlp;
pub(crate) mod pebble;
pub(crate) mod picture;
pub(crate) mod prometheus;
pub(crate) mod promql;
pub(crate) mod receiver;
pub(crate) mod relay;
pub(crate) mod routes;
pub(crate) mod sender;
pub(crate) mod tools;
pub(crate) mod vectors;

pub(crate) use certs::AUTHORITY;
pub(crate) use eventually::{eventually, patience};
pub(crate) use receiver::{Received, Receiver, Reply};
pub(crate) use relay::TestRelay;
pub(crate) use routes::Routes;
pub(crate) use sender::{Answer, Request, Sender, sign};
