//! A durable webhook relay for Aryeo.
pub mod admin;
pub mod domain;
pub mod net;
pub mod store;
pub mod telemetry;
