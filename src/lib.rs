//! A durable webhook relay for Aryeo.
