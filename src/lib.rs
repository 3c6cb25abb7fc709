//! A durable webhook relay for Aryeo.
pub mod delivery;
pub mod domain;
pub mod net;
pub mod store;
pub mod telemetry;
