//! What the relay is about, pure: no I/O, no clock, no runtime.
//!
//! Reading order: [`time`] and [`webhook`] say what is handled, [`signature`] who may send it,
//! [`activity`] what it says, [`route`] where it goes, [`target`] how; [`delivery`], [`outcome`] and
//! [`retry`] what becomes of it; [`limit`] names the bounds.

pub mod activity;
pub mod answer;
pub mod delivery;
pub mod jump;
pub mod known;
pub mod limit;
pub mod outcome;
pub mod pattern;
pub mod request;
pub mod retry;
pub mod route;
pub mod signature;
pub mod source;
pub mod target;
pub mod time;
pub mod webhook;
