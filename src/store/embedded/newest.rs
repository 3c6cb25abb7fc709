//! The newest webhook of each source, for the alert on silence.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::time::Timestamp;

/// The newest webhook of each source.
#[derive(Debug, Default)]
pub struct Newest(Mutex<HashMap<Arc<str>, Timestamp>>);

impl Newest {
    /// A webhook came in.
    pub fn saw(&self, source: &Arc<str>, at: Timestamp) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match newest.get_mut(source) {
            Some(known) => *known = at.max(*known),
            None => {
                newest.insert(Arc::clone(source), at);
            }
        }
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<(Box<str>, Timestamp)> {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = newest.iter().map(|(name, at)| (Box::from(&**name), *at)).collect();
        all.sort();
        all
    }
}
