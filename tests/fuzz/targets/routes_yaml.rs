//! Whatever is in a routes file, loading it ends, and says why it can't be used.
#![no_main]

use std::path::Path;

use aryeo_relay::config::{self, Environment, Secrets};
use libfuzzer_sys::fuzz_target;

/// Every variable is set.
struct AllSet;

impl Environment for AllSet {
    fn var(&self, name: &str) -> Option<String> {
        Some(format!("value of {name}"))
    }
}

fuzz_target!(|bytes: &[u8]| {
    match config::load_bytes(bytes, Path::new("routes.yaml"), &AllSet, Secrets::Warn) {
        Ok(loaded) => {
            assert!(!loaded.table.sources.is_empty() && !loaded.table.routes().is_empty());
            let reached = loaded.table.routes().iter().flat_map(|route| &route.to);
            for target in reached {
                assert!(loaded.table.targets.contains_key(target), "{target} is nowhere");
            }
        }
        Err(problems) => assert!(problems.errors() > 0, "refused without a reason"),
    }
});
