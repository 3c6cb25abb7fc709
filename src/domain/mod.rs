//! What the relay is about, pure: no I/O, no clock, no runtime.
//!
//! Reading order: [`time`] and [`webhook`] say what is handled, [`signature`] and [`proof`] who may
//! send it, [`client`] and [`proxied`] from where, [`activity`] what it says, [`route`] where it goes, by
//! [`condition`] and [`mod@pointer`] if it must, [`target`] and [`template`] how, [`question`] and
//! [`explain`] why; [`delivery`], [`outcome`], [`redaction`] and [`retry`] what becomes of it, [`lane`]
//! when it is tried at all; [`comparison`] is what another table would do; [`limit`] names the bounds.
//! [`renewal`] is of the listener's certificate, [`trace`] for those who follow webhooks from machine to machine.

pub mod activity;
pub mod answer;
pub mod client;
pub mod comparison;
pub mod condition;
pub mod contradiction;
pub mod delivery;
pub mod explain;
mod json;
pub mod jump;
pub mod known;
pub mod lane;
pub mod limit;
pub mod number;
pub mod outcome;
pub mod pattern;
pub mod pointer;
pub mod proof;
pub mod proxied;
pub mod question;
pub mod redaction;
pub mod renewal;
pub mod request;
pub mod retry;
pub mod route;
pub mod shadow;
pub mod signature;
pub mod source;
pub mod target;
pub mod template;
pub mod time;
pub mod trace;
pub mod webhook;
