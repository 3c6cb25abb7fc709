#![doc = include_str!("ARCHITECTURE.md")]

pub mod admin;
pub mod cli;
pub mod domain;
pub mod net;
pub mod store;
pub mod telemetry;
