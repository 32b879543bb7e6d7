//! What each source address holds of a pod: tunnels, and connections, in them or without.
//!
//! Whoever may call a pod may yet open connection after connection, and tunnel after tunnel. Honest
//! peers make a tunnel for each thousand connections, or for each hundred, and one for each of their
//! workers; so tunnels have a fixed bound. Connections have a share of all
//! ([`places`](crate::node::places)), so small that a source which takes all of it leaves the pod
//! enough for its other callers.
//!
//! Counted per worker, so that no worker waits for another; a source is taken to spread over all.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use crate::quota;

/// Tunnels from one source address to one pod, on one worker.
pub(crate) const TUNNELS: usize = 256;
/// How many times what is free the connections of one source to one pod may hold. Such a connection
/// may take four places, two at either end, if both pods are of this node: the called pod then holds
/// four times what is free, of eight that it may.
const OF_ONE_SOURCE: usize = 2;

/// All sources of one worker.
#[derive(Debug, Default)]
pub(crate) struct Sources(RefCell<HashMap<Ends, Rc<Source>>>);

/// A source address, and the cookie of the namespace of the pod that it calls.
type Ends = (IpAddr, u64);

#[derive(Debug)]
struct Source {
    sources: Rc<Sources>,
    ends: Ends,
    tunnels: Cell<usize>,
    connections: Cell<usize>,
}

/// A tunnel of a source, counted while this lives.
#[derive(Debug)]
pub(crate) struct Tunnelled(Rc<Source>);

/// A connection of a source, counted while this lives.
#[derive(Debug)]
pub(crate) struct Called(Rc<Source>);

impl Sources {
    /// Counts a tunnel from `source` to the pod of this namespace, unless there are too many.
    pub(crate) fn tunnel(self: &Rc<Self>, source: IpAddr, pod: u64) -> Option<Tunnelled> {
        let source = self.of(source, pod);
        let few = source.tunnels.get() < TUNNELS;
        few.then(|| {
            source.tunnels.set(source.tunnels.get() + 1);
            Tunnelled(source)
        })
    }

    /// Counts a connection, unless the source holds its share while `free` places are free, on one
    /// of so many workers.
    pub(crate) fn call(
        self: &Rc<Self>,
        (source, pod): Ends,
        free: usize,
        workers: u16,
    ) -> Option<Called> {
        let source = self.of(source, pod);
        let own = source.connections.get() * usize::from(workers);
        if !quota::admits(free, 0, own, OF_ONE_SOURCE) {
            source.tidy();
            return None;
        }
        source.connections.set(source.connections.get() + 1);
        Some(Called(source))
    }

    /// Whether any tunnel stands, or is being made.
    pub(crate) fn have_tunnels(&self) -> bool {
        let all = self.0.borrow();
        all.values().any(|source| source.tunnels.get() > 0)
    }

    fn of(self: &Rc<Self>, source: IpAddr, pod: u64) -> Rc<Source> {
        let ends = (source, pod);
        let mut all = self.0.borrow_mut();
        let source = all.entry(ends).or_insert_with(|| {
            Rc::new(Source {
                sources: self.clone(),
                ends,
                tunnels: Cell::new(0),
                connections: Cell::new(0),
            })
        });
        source.clone()
    }
}

impl Source {
    /// Nothing is kept of a source that holds nothing.
    fn tidy(&self) {
        if self.tunnels.get() + self.connections.get() == 0 {
            self.sources.0.borrow_mut().remove(&self.ends);
        }
    }
}

impl Drop for Tunnelled {
    fn drop(&mut self) {
        self.0.tunnels.set(self.0.tunnels.get() - 1);
        self.0.tidy();
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        self.0.tidy();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_takes_all_it_can_leaves_room_to_the_others() {
        let sources = Rc::new(Sources::default());
        let of = |last| IpAddr::from([10, 0, 0, last]);
        let tunnels: Vec<_> = std::iter::from_fn(|| sources.tunnel(of(1), 7)).collect();
        assert_eq!(tunnels.len(), TUNNELS);
        assert!(sources.tunnel(of(1), 8).is_some(), "another pod");
        assert!(sources.tunnel(of(2), 7).is_some(), "another source");
        let mut held = Vec::new();
        while let Some(call) = sources.call((of(1), 7), 900 - held.len(), 1) {
            held.push(call);
        }
        assert_eq!(held.len(), 600);
        assert!(sources.call((of(2), 7), 300, 1).is_some());
        assert!(sources.call((of(3), 7), 0, 1).is_none());
        held.pop();
        assert!(sources.call((of(1), 7), 300, 1).is_some());
        assert!(sources.call((of(1), 7), 300, 2).is_none(), "on two workers");
        drop((tunnels, held));
        assert!(sources.0.borrow().is_empty());
    }
}
