//! A durable webhook relay for Aryeo.
pub mod domain;
pub mod net;
pub mod store;
pub mod telemetry;
pub mod admin;
