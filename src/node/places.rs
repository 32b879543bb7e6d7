//! How many connections there is room for, and which pod's next one is let in.
//!
//! What comes to an end first is descriptors, or the kernel's and our memory for each of them; a pod
//! that opens connection after connection would take them from all pods of the node. So each is
//! counted for the pod it was accepted in, and the pods share what there is by
//! [`quota`](crate::quota): one alone may have eight ninths of it, and when several want much, whoever
//! has little is still served. A connection that dials on counts twice; tunnels that are kept and
//! listeners count for no pod.
//!
//! On the data path this costs an addition for all and one for the pod when a connection begins, and
//! the same when it ends.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use crate::node::refusing::TooMany;
use crate::quota::{self, Seldom};
use crate::sys::process;

/// How many times what is free one pod may hold.
const OF_ONE_POD: usize = 8;
/// Descriptors that are no connection's: of sources, servers, namespaces, a hand-over. One in so many,
/// or [`KEPT_MOST`].
const KEPT_ONE_IN: u64 = 8;
const KEPT_MOST: u64 = 1024;
/// Memory that is reckoned for a descriptor, ours and the kernel's, without bytes that wait.
const MEMORY_EACH: u64 = 8 * 1024;
/// The part of the memory that connections may take: one in so many.
const MEMORY_ONE_IN: u64 = 4;

/// The places of this daemon.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    used: AtomicUsize,
    shares: Mutex<HashMap<Arc<str>, Weak<Share>>>,
    began: Instant,
}

/// What one pod has of them.
#[derive(Debug)]
pub(crate) struct Share {
    places: Arc<Places>,
    own: AtomicUsize,
    refused: [Seldom; TooMany::KINDS],
}

/// The places of one connection, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    share: Arc<Share>,
    count: Cell<usize>,
}

impl Places {
    /// As many as this process can have.
    pub(crate) fn new() -> Arc<Self> {
        let most = most(process::descriptor_limit(), process::memory());
        Arc::new(Self {
            most,
            used: AtomicUsize::new(0),
            shares: Mutex::default(),
            began: Instant::now(),
        })
    }

    /// How many there are.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// How many are free.
    pub(crate) fn free(&self) -> usize {
        let used = self.used.load(Ordering::Relaxed);
        self.most.saturating_sub(used)
    }

    /// Whether so little is left that nothing should be kept for later.
    pub(crate) fn is_short(&self) -> bool {
        self.free() < self.most / (2 * OF_ONE_POD)
    }

    /// Whoever counted `before` for no pod counts `now`.
    pub(crate) fn recount(&self, before: usize, now: usize) {
        if now >= before {
            self.used.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// A pod's share: one, however often it is asked for while somebody has it.
    pub(crate) fn share(self: &Arc<Self>, uid: &Arc<str>) -> Arc<Share> {
        let shares = self.shares.lock();
        // Each change is one operation of the map, so a poisoned lock still guards a map.
        let mut shares = shares.unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(uid).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            places: self.clone(),
            own: AtomicUsize::new(0),
            refused: Default::default(),
        });
        shares.insert(uid.clone(), Arc::downgrade(&share));
        share
    }
}

impl Share {
    /// A place for one more connection, if the pod may have one.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Place> {
        let used = self.places.used.load(Ordering::Relaxed);
        quota::admits(self.places.most, used, self.held(), OF_ONE_POD).then(|| {
            let place = Place {
                share: self.clone(),
                count: Cell::new(0),
            };
            place.one_more();
            place
        })
    }

    /// How many the pod has.
    pub(crate) fn held(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }

    /// Whether a refusal is to be told now, and of how many.
    pub(crate) fn complain(&self, which: TooMany) -> Option<u64> {
        self.refused[which as usize].complain(self.places.began.elapsed())
    }
}

impl Place {
    /// The connection takes another one.
    pub(crate) fn one_more(&self) {
        self.count.set(self.count.get() + 1);
        self.share.own.fetch_add(1, Ordering::Relaxed);
        self.share.places.used.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let count = self.count.get();
        self.share.own.fetch_sub(count, Ordering::Relaxed);
        self.share.places.used.fetch_sub(count, Ordering::Relaxed);
    }
}

/// How many places so many descriptors and so much memory give.
fn most(descriptors: u64, memory: Option<u64>) -> usize {
    let kept = (descriptors / KEPT_ONE_IN).min(KEPT_MOST);
    let by_memory = memory.map_or(u64::MAX, |all| all / MEMORY_ONE_IN / MEMORY_EACH);
    usize::try_from((descriptors - kept).min(by_memory)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_ends_first_is_what_there_is() {
        const GIB: u64 = 1 << 30;
        let check = |descriptors, memory, expect| {
            assert_eq!(
                most(descriptors, memory),
                expect,
                "{descriptors} {memory:?}"
            );
        };
        check(400, None, 350);
        check(20_000, Some(64 * GIB), 18_976);
        check(1 << 20, Some(64 * GIB), (1 << 20) - 1024);
        check(1 << 30, Some(8 * GIB), 262_144);
        check(1 << 30, Some(GIB / 2), 16_384);
    }

    #[test]
    fn a_place_is_given_back_with_all_that_it_took() {
        let places = Places::new();
        let uid: Arc<str> = "uid".into();
        let share = places.share(&uid);
        assert!(Arc::ptr_eq(&share, &places.share(&uid)), "one per pod");
        let before = places.free();
        let place = share.admit().unwrap();
        place.one_more();
        assert_eq!((share.held(), before - places.free()), (2, 2));
        places.recount(0, 5);
        places.recount(5, 1);
        assert_eq!(before - places.free(), 3);
        drop(place);
        assert_eq!((share.held(), before - places.free()), (0, 1));
        drop(share);
        assert_eq!(places.share(&"other".into()).held(), 0);
        assert_eq!(
            places.shares.lock().unwrap().len(),
            1,
            "none of the pod that is gone"
        );
    }
}
