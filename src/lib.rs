//! A durable webhook relay for Aryeo.
pub mod config;
pub mod domain;
pub mod store;
