//! A durable webhook relay for Aryeo.
pub mod domain;
pub mod ingress;
pub mod net;
pub mod store;
pub mod telemetry;
