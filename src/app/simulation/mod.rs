//! Everything between an accepted webhook and its target in one thread, by a seed: the store, whose threads
//! are turns here, the lanes, a disk that fails and loses what was not synced, targets with moods, operators,
//! a machine's clock that jumps. All that happens follows from the seed.
//!
//! ```text
//! cargo test --release --lib simulation                                    # 2,000 seeds
//! SIMULATION_SEEDS=100000 cargo test --release --lib simulation
//! SIMULATION_SEED=1234 cargo test --release --lib simulation -- --nocapture   # tells the story of one
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::play::Play;

mod ending;
mod isolation;
mod ledger;
mod life;
mod network;
mod operate;
mod outage;
mod play;
mod time;

const SEEDS: u64 = 2_000;
// Each is a thread with a store of its own.
const THREADS: usize = 2;

/// What a seed came to: the same each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    accepted: usize,
    exchanges: usize,
    lives: u32,
    // Of all that was answered and exchanged, in its order.
    digest: u64,
}

fn play(seed: u64) -> Outcome {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { Play::new(seed).run().await })
}

#[expect(clippy::disallowed_methods, reason = "how much of it is for who runs the test to say")]
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is to be a number, not {text}")))
}

#[test]
fn no_seed_loses_invents_or_forgets_anything() {
    if let Some(seed) = number("SIMULATION_SEED") {
        println!("{:?}", play(seed));
        return;
    }
    let first = number("SIMULATION_FIRST").unwrap_or(0);
    let last = first + number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let (next, total) = (AtomicU64::new(first), Mutex::new((0, 0, 0)));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work = || {
            while failed.lock().unwrap().len() < 5 {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= last {
                    return;
                }
                match catch_unwind(AssertUnwindSafe(|| play(seed))) {
                    Ok(Outcome { accepted, exchanges, lives, .. }) => {
                        let mut total = total.lock().unwrap();
                        *total = (total.0 + accepted, total.1 + exchanges, total.2 + lives);
                    }
                    Err(_) => failed.lock().unwrap().push(seed),
                }
            }
        };
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    let (accepted, exchanges, lives) = *total.lock().unwrap();
    println!("{} seeds: {accepted} accepted, {exchanges} exchanges, {lives} lives", last - first);
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "failed: {failed:?}; SIMULATION_SEED={} cargo test --lib simulation -- --nocapture tells what \
         happened",
        failed[0]
    );
    assert!(accepted > 0 && exchanges > 0 && lives > 0, "nothing happened");
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    for seed in 0..20 {
        assert_eq!(play(seed), play(seed), "seed {seed}");
    }
}
