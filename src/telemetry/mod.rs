//! The names of metrics and log fields: an API that dashboards hold on to.

pub mod log_level;
pub mod log_limit;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod reference;
mod series;
pub mod source;
pub mod target;
pub mod traces;
