//! How a tunnel listener recognises a connection of its own daemon.
//!
//! Between two pods of one node there is nobody to encrypt for: the bytes cross the pods' veths,
//! where NetworkPolicy sees them as it sees a tunnel, but without TLS and HTTP/2. The side that
//! dials binds its socket, announces the address pair here with what it knows of the source, and
//! only then connects. The side that accepts takes the announcement out. An address pair is one
//! socket's alone while that socket lives, so nobody else can arrive under it.
//!
//! The registry is one daemon's. While a pod's listeners pass to the next daemon
//! ([`handover`](crate::node::handover)), this one dials its neighbours through tunnels, and stops
//! accepting only when all that it announced has arrived.
//!
//! The one lock of the data path is here, held for one map operation per same-node connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::mesh::{Identity, PodAddr, Service, Workload};
use crate::node::kept::{Seated, Way};
use crate::telemetry::Outcome;

/// What the dialling side knows and the accepting side needs.
#[derive(Clone, Debug)]
pub(crate) struct Announcement {
    /// Who the source is.
    pub(crate) identity: Identity,
    /// The source's workload.
    pub(crate) workload: Arc<Workload>,
    /// Where the connection is bound for, behind the tunnel port.
    pub(crate) to: PodAddr,
    /// The service that led there.
    pub(crate) service: Option<Arc<Service>>,
    /// Why the accepting side refused, for the record of the dialling side, which sees a reset.
    pub(crate) refused: Arc<OnceLock<Outcome>>,
}

/// The two ends of a TCP connection as the accepting side sees them.
type Pair = (SocketAddr, SocketAddr);

/// Announcements that nobody has taken yet, of all workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct SameNode(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    by_pair: HashMap<Pair, (u64, Announcement)>,
    made: u64,
}

impl SameNode {
    /// Announces a connection from `source` to `destination`; it is withdrawn when the guard goes.
    /// `None` if one is announced already: two sockets may be bound to one address before they
    /// connect (`SO_REUSEADDR`), and the second must not give the first its destination.
    pub(crate) fn announce(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        announcement: Announcement,
    ) -> Option<Announced> {
        let pair = (source, destination);
        let mut waiting = self.lock();
        let ticket = waiting.made + 1;
        let Entry::Vacant(place) = waiting.by_pair.entry(pair) else {
            return None;
        };
        place.insert((ticket, announcement));
        waiting.made = ticket;
        drop(waiting);
        Some(Announced {
            registry: self.clone(),
            pair,
            ticket,
        })
    }

    /// Whether nobody is on the way: all that was announced has been accepted or given up.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().by_pair.is_empty()
    }

    /// Takes the announcement of the connection between these ends, once.
    pub(crate) fn take(&self, source: SocketAddr, destination: SocketAddr) -> Option<Announcement> {
        self.lock()
            .by_pair
            .remove(&(source, destination))
            .map(|(_, announcement)| announcement)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A map operation cannot leave the map half-done, so a poisoned lock still guards a map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Withdraws its announcement when dropped, if nobody took it: never a later one of the same pair.
pub(crate) struct Announced {
    registry: SameNode,
    pair: Pair,
    ticket: u64,
}

impl Drop for Announced {
    fn drop(&mut self) {
        let mut waiting = self.registry.lock();
        if waiting
            .by_pair
            .get(&self.pair)
            .is_some_and(|(ticket, _)| *ticket == self.ticket)
        {
            waiting.by_pair.remove(&self.pair);
        }
    }
}

/// What one side keeps while the connection lives.
pub(crate) struct Beside {
    /// The dialling side, of a connection that is new.
    _announced: Option<(Announced, Option<Seated>)>,
    /// The dialling side.
    refused: Option<Arc<OnceLock<Outcome>>>,
    /// Which way it is, where both ends are here.
    pub(crate) way: Option<Way>,
}

impl Beside {
    /// The side that dialled, or would have.
    pub(crate) fn dialling(
        announced: Option<(Announced, Option<Seated>)>,
        refused: Arc<OnceLock<Outcome>>,
        way: Option<Way>,
    ) -> Self {
        Self {
            _announced: announced,
            refused: Some(refused),
            way,
        }
    }

    /// The side that accepted.
    pub(crate) fn accepting(way: Option<Way>) -> Self {
        Self {
            _announced: None,
            refused: None,
            way,
        }
    }

    /// Why the accepting side refused, if it did.
    pub(crate) fn refused(&self) -> Option<Outcome> {
        self.refused.as_ref()?.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{Enrolment, Labels, Owner, Phase, TrustDomain};

    fn announcement(port: u16) -> Announcement {
        let identity =
            Identity::new(&TrustDomain::parse("cluster.local").unwrap(), "ns", "sa").unwrap();
        let workload = Workload {
            uid: "u".into(),
            name: "p".into(),
            namespace: "ns".into(),
            identity: identity.clone(),
            node: "n".into(),
            zone: "".into(),
            region: "".into(),
            ips: Default::default(),
            labels: Labels::default(),
            owner: Owner {
                kind: "pod".into(),
                name: "p".into(),
            },
            enrolment: Enrolment::Enrolled,
            phase: Phase::Running,
            host_network: false,
            reach: crate::mesh::Reach::AsEnrolled,
            netns: None,
        };
        Announcement {
            identity,
            workload: workload.into(),
            to: PodAddr::new(SocketAddr::from(([10, 0, 0, 2], port))),
            service: None,
            refused: Arc::default(),
        }
    }

    #[test]
    fn an_announcement_is_taken_once_and_withdrawn_by_its_own_guard_alone() {
        let registry = SameNode::default();
        let ends = (
            SocketAddr::from(([10, 0, 0, 1], 4)),
            SocketAddr::from(([10, 0, 0, 2], 15008)),
        );
        let first = registry.announce(ends.0, ends.1, announcement(1));
        assert_eq!(registry.take(ends.0, ends.1).unwrap().to.port(), 1);
        assert!(registry.take(ends.0, ends.1).is_none());
        let second = registry.announce(ends.0, ends.1, announcement(2));
        drop(first);
        assert_eq!(registry.take(ends.0, ends.1).unwrap().to.port(), 2);
        let third = registry.announce(ends.0, ends.1, announcement(3));
        drop((second, third));
        assert!(registry.take(ends.0, ends.1).is_none());
    }

    #[test]
    fn a_second_announcement_of_a_pair_does_not_change_where_the_first_goes() {
        let registry = SameNode::default();
        let ends = (
            SocketAddr::from(([10, 0, 0, 1], 4)),
            SocketAddr::from(([10, 0, 0, 2], 15008)),
        );
        let _first = registry.announce(ends.0, ends.1, announcement(1)).unwrap();
        assert!(registry.announce(ends.0, ends.1, announcement(2)).is_none());
        assert_eq!(registry.take(ends.0, ends.1).unwrap().to.port(), 1);
    }
}
