//! How a disk fails.

use std::time::Duration;

/// When what fails, counted from 1 over the whole disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// This write and all after it until [`SimDisk::heal`](super::SimDisk::heal): no space.
    pub full_at_write: Option<u64>,
    /// This write only writes a part, then the next ones go on.
    pub short_at_write: Option<u64>,
    /// This write fails for a reason of the device's.
    pub broken_at_write: Option<u64>,
    /// This sync fails; what was not durable is lost if the power is cut.
    pub broken_at_sync: Option<u64>,
    /// This sync of a directory fails; what was made, renamed and removed in it is lost if the power
    /// is cut.
    pub broken_at_dir_sync: Option<u64>,
    /// This sync does not end before the faults are set anew, as by [`SimDisk::heal`](super::SimDisk::heal).
    pub hung_at_sync: Option<u64>,
    /// Nobody is told how much room is left before the faults are set anew.
    pub hung_sizes: bool,
    /// Files can't be made.
    pub no_create: bool,
    /// All files together have room for so many bytes.
    pub room: Option<u64>,
    /// From this read on nothing can be read until [`SimDisk::heal`](super::SimDisk::heal).
    pub broken_from_read: Option<u64>,
    /// Each read takes so long.
    pub slow_reads: Duration,
    /// From this change on, of whatever kind, nothing works any more: the process was stopped.
    pub dead_from_change: Option<u64>,
}
