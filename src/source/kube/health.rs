//! How each watch is, for metrics and people. Written by the watches, read by anybody.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::source::kube::kinds::WATCHED;
use crate::source::{Key, Kind};

/// Problems of one kind that are listed; more are counted.
const MAX_PROBLEMS: usize = 100;

/// How the watch of one kind is.
#[derive(Clone, Debug)]
pub struct Health {
    /// The kind.
    pub kind: Kind,
    /// Whether it is watched right now, or known not to be served.
    pub connected: bool,
    /// Whether it has been listed to its end at least once.
    pub synced: bool,
    /// Whether the cluster does not know this kind.
    pub absent: bool,
    /// Objects that are known.
    pub objects: usize,
    /// When the server was last heard on it: a list, an event or a bookmark.
    pub heard: Option<Instant>,
    /// How often it was listed anew after the first time.
    pub relists: u64,
    /// Failures, by reason.
    pub errors: BTreeMap<&'static str, u64>,
    /// Why it is not watched right now, once that has lasted.
    pub failing: Option<String>,
    /// Objects that are invalid, and why; not all where there are many.
    pub(super) invalid: Vec<(Key, String)>,
    /// How many of those are not listed.
    pub(super) more_invalid: usize,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Board(Mutex<Vec<Health>>);

impl Board {
    pub(super) fn new() -> Self {
        let new = |kind| Health {
            kind,
            connected: false,
            synced: false,
            absent: false,
            objects: 0,
            heard: None,
            relists: 0,
            errors: BTreeMap::new(),
            failing: None,
            invalid: Vec::new(),
            more_invalid: 0,
        };
        Self(Mutex::new(WATCHED.iter().map(|a| new(a.kind)).collect()))
    }

    pub(super) fn all(&self) -> Vec<Health> {
        self.lock().clone()
    }

    pub(super) fn change(&self, kind: Kind, change: impl FnOnce(&mut Health)) {
        let mut all = self.lock();
        if let Some(health) = all.iter_mut().find(|health| health.kind == kind) {
            change(health);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Health>> {
        // Nothing that is done under the lock can leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    pub(super) fn set_invalid<'k>(
        &mut self,
        invalid: impl ExactSizeIterator<Item = (&'k Key, &'k str)>,
    ) {
        self.more_invalid = invalid.len().saturating_sub(MAX_PROBLEMS);
        let some = invalid.take(MAX_PROBLEMS);
        self.invalid = some.map(|(k, why)| (k.clone(), why.to_owned())).collect();
    }
}
