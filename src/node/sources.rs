//! What each source address holds of this worker: tunnels, and the connections in them.
//!
//! A peer has proven who it is when its tunnel stands, and may yet open tunnel after tunnel. Honest
//! ones make one for each thousand connections, or for each hundred, and one for each of their
//! workers; so tunnels have a fixed bound, and what they carry a share of all
//! ([`places`](crate::node::places)), so that a source does not take the places of others that call
//! the same pod.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use crate::quota;

/// Tunnels from one source address to one pod, on one worker.
pub(crate) const TUNNELS: usize = 256;
/// How many times what is free the connections of one source may hold.
const OF_ONE_SOURCE: usize = 2;

/// All sources of one worker.
#[derive(Debug, Default)]
pub(crate) struct Sources(RefCell<HashMap<Ends, Rc<Source>>>);

/// A source address, and the cookie of the namespace of the pod that it calls.
type Ends = (IpAddr, u64);

#[derive(Debug, Default)]
struct Source {
    tunnels: Cell<usize>,
    streams: Cell<usize>,
}

/// One tunnel of a source, counted while this lives.
#[derive(Debug)]
pub(crate) struct OfSource {
    sources: Rc<Sources>,
    ends: Ends,
    source: Rc<Source>,
}

/// One connection in a tunnel of a source, counted while this lives.
#[derive(Debug)]
pub(crate) struct Within(Rc<Source>);

impl Sources {
    /// Counts a tunnel from `source` to the pod of this namespace, unless there are too many.
    pub(crate) fn enter(self: &Rc<Self>, source: IpAddr, pod: u64) -> Option<OfSource> {
        let ends = (source, pod);
        let mut all = self.0.borrow_mut();
        let source = all.entry(ends).or_default();
        if source.tunnels.get() >= TUNNELS {
            return None;
        }
        source.tunnels.set(source.tunnels.get() + 1);
        Some(OfSource {
            sources: self.clone(),
            ends,
            source: source.clone(),
        })
    }
}

impl OfSource {
    /// Counts a connection in it, unless the source holds its share while `free` of `most` places
    /// are free.
    pub(crate) fn admit(&self, most: usize, free: usize) -> Option<Within> {
        let own = self.source.streams.get();
        quota::admits(most, most - free, own, OF_ONE_SOURCE).then(|| {
            self.source.streams.set(own + 1);
            Within(self.source.clone())
        })
    }
}

impl Drop for OfSource {
    fn drop(&mut self) {
        let left = self.source.tunnels.get() - 1;
        self.source.tunnels.set(left);
        if left == 0 {
            self.sources.0.borrow_mut().remove(&self.ends);
        }
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_takes_all_it_can_leaves_room_to_the_others() {
        let sources = Rc::new(Sources::default());
        let of = |last| IpAddr::from([10, 0, 0, last]);
        let tunnels: Vec<_> = std::iter::from_fn(|| sources.enter(of(1), 7)).collect();
        assert_eq!(tunnels.len(), TUNNELS);
        assert!(sources.enter(of(1), 8).is_some(), "another pod");
        let other = sources.enter(of(2), 7).unwrap();
        let mut held = Vec::new();
        for tunnel in tunnels.iter().cycle() {
            match tunnel.admit(900, 900 - held.len()) {
                Some(stream) => held.push(stream),
                None => break,
            }
        }
        assert_eq!(held.len(), 600);
        assert!(other.admit(900, 300).is_some());
        held.pop();
        assert!(tunnels[0].admit(900, 301).is_some());
        drop((tunnels, other));
        assert!(sources.0.borrow().is_empty());
    }
}
