//! What the operating system says of this process.

use std::fs;

/// Resource use of this process, as far as the system tells.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// User and system CPU time.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: f64,
    /// Open file descriptors.
    pub open_fds: f64,
    /// The limit on open file descriptors.
    pub max_fds: f64,
}

/// Reads it from `/proc`; zero where the system has none.
pub fn usage() -> Usage {
    Usage {
        cpu_seconds: cpu_seconds().unwrap_or_default(),
        resident_bytes: resident_bytes().unwrap_or_default(),
        open_fds: open_fds(),
        max_fds: max_fds(),
    }
}

/// What this machine, or this container, is called.
pub fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim_end().to_owned()).filter(|name| !name.is_empty())
}

#[expect(clippy::cast_precision_loss, reason = "ticks of CPU time stay far below 2^53")]
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in brackets and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second();
    Some((user + system) as f64 / ticks as f64)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory stay far below 2^53")]
fn resident_bytes() -> Option<f64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some((pages * rustix::param::page_size() as u64) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a count of descriptors stays far below 2^53")]
fn open_fds() -> f64 {
    fs::read_dir("/proc/self/fd").map_or(0.0, |entries| entries.count().saturating_sub(1) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a count of descriptors stays far below 2^53")]
fn max_fds() -> f64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map_or(f64::INFINITY, |n| n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_descriptors() {
        let usage = usage();
        assert!(usage.resident_bytes > 100_000.0);
        assert!(usage.open_fds >= 3.0 && usage.max_fds >= usage.open_fds);
    }
}
