//! What the relay is about, pure: no I/O, no clock, no runtime.
//!
//! Reading order: [`time`] and [`webhook`] say what is handled, [`signature`] and [`proof`] who may
//! send it, [`activity`] what it says, [`route`] where it goes, by [`condition`] and [`pointer`] if it
//! must, [`target`] and [`template`] how; [`delivery`], [`outcome`] and [`retry`] what becomes of it;
//! [`limit`] names the bounds.

pub mod activity;
pub mod answer;
pub mod condition;
pub mod contradiction;
pub mod delivery;
mod json;
pub mod known;
pub mod limit;
pub mod number;
pub mod outcome;
pub mod pattern;
pub mod pointer;
pub mod proof;
pub mod request;
pub mod retry;
pub mod route;
pub mod shadow;
pub mod signature;
pub mod source;
pub mod target;
pub mod template;
pub mod time;
pub mod webhook;
