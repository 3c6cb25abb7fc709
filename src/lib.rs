//! A durable webhook relay for Aryeo.

pub mod net;
