//! What may happen to a store, at random.

use proptest::prelude::*;

/// What may happen.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Commit(u8),
    /// The same body as an earlier one.
    Repeat(u64),
    Deliver(bool),
    Retry(bool),
    Dead(bool),
    Expire(bool),
    /// A target may pin nothing any more.
    Relieve(bool),
    Lapse,
    Wait(u16),
    Flush,
    Restart,
    Kill,
    PowerCut(u64),
    DeleteIndex,
    /// The next index is in memory; the file stays for the one after it.
    IndexInMemory,
    Clean,
    /// Deliveries for an earlier one, also to targets that have one, also while it is cleaned.
    Add {
        which: u64,
        targets: u8,
        again: bool,
        cleaning: bool,
    },
    /// A webhook's bytes have to go, also while it is cleaned.
    Erase(u64, bool),
    Redrive(bool),
    Discard(bool),
    /// What an operator says of a target.
    Pause(bool, bool),
    /// The next start has so much room.
    Limit(u8),
    /// Which of the next writes or syncs fails, or is short.
    Fault(Failure, u64),
}

/// How a disk fails.
#[derive(Debug, Clone, Copy)]
pub(super) enum Failure {
    Write,
    Short,
    Sync,
}

/// Some of them.
pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let failure = prop_oneof![Just(Failure::Write), Just(Failure::Short), Just(Failure::Sync)];
    let step = prop_oneof![
        8 => (0..4u8).prop_map(Step::Commit),
        2 => any::<u64>().prop_map(Step::Repeat),
        4 => any::<bool>().prop_map(Step::Deliver),
        3 => any::<bool>().prop_map(Step::Retry),
        1 => any::<bool>().prop_map(Step::Dead),
        1 => any::<bool>().prop_map(Step::Expire),
        2 => any::<bool>().prop_map(Step::Relieve),
        1 => Just(Step::Lapse),
        2 => (0..3000u16).prop_map(Step::Wait),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => Just(Step::DeleteIndex),
        1 => Just(Step::IndexInMemory),
        1 => Just(Step::Clean),
        4 => (any::<u64>(), 1..4u8, any::<bool>(), any::<bool>()).prop_map(
            |(which, targets, again, cleaning)| Step::Add { which, targets, again, cleaning }
        ),
        1 => any::<(u64, bool)>().prop_map(|(which, cleaning)| Step::Erase(which, cleaning)),
        2 => any::<bool>().prop_map(Step::Redrive),
        1 => any::<bool>().prop_map(Step::Discard),
        1 => any::<(bool, bool)>().prop_map(|(first, pause)| Step::Pause(first, pause)),
        1 => any::<u8>().prop_map(Step::Limit),
        2 => (failure, 1..4u64).prop_map(|(failure, nth)| Step::Fault(failure, nth)),
    ];
    proptest::collection::vec(step, 1..60)
}
