#![doc = include_str!("ARCHITECTURE.md")]

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod delivery;
pub mod domain;
pub mod ingress;
pub mod net;
pub mod store;
pub mod telemetry;
