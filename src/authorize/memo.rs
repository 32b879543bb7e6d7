//! What was decided about flows of one kind, kept for the next such flow.
//!
//! Rules that only say whom they do not mean cannot be filed under anything
//! ([`index`](crate::authorize::index)): each of them is tried for each flow. Where a workload has
//! many of these, or of dry-run policies, its evaluator keeps its answers here. A flow's kind is the
//! proven identity itself, and for addresses and ports the stretch between two numbers at which
//! any rule of the evaluator begins or ends: within it all of them answer alike. A client's own
//! address makes no kind of its own, unless a policy names it.
//!
//! The answers are part of one evaluator, and end with it when a policy changes. There are at most
//! [`SLOTS`]; a new one takes the place of an old one. Reading takes no lock, and two workers that
//! work out the same answer at once both put it in.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::authorize::compile::{Asked, Policy, Set};
use crate::mesh::Identity;

/// How many answers are kept.
const SLOTS: usize = 1024;
/// In how many slots an answer may stand, from the one that its hash says.
const WAYS: usize = 16;

/// Answers by kind of flow.
#[derive(Debug)]
pub(super) struct Memo<A> {
    sources: Cuts<u128>,
    destinations: Cuts<u128>,
    ports: Cuts<u32>,
    slots: Box<[ArcSwapOption<Kept<A>>]>,
}

#[derive(Debug)]
struct Kept<A> {
    hash: u64,
    kind: Kind,
    answer: A,
}

/// What the rules of one evaluator can tell of a flow.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Kind {
    identity: Option<Identity>,
    source: usize,
    destination: usize,
    port: usize,
}

impl<A: Clone> Memo<A> {
    /// For an evaluator whose answers depend on `policies`, and on nothing else.
    pub(super) fn new<'p>(policies: impl Iterator<Item = &'p Policy>) -> Self {
        let (mut sources, mut destinations) = (vec![], vec![]);
        let mut ports = vec![];
        for set in policies.flat_map(Policy::sets) {
            match set {
                Set::Sources(ranges) => sources.extend(ranges.ends()),
                Set::Destinations(ranges) => destinations.extend(ranges.ends()),
                Set::Ports(open) => {
                    ports.extend(
                        open.iter()
                            .flat_map(|port| [u32::from(*port), u32::from(*port) + 1]),
                    );
                }
                Set::Principals { .. } | Set::Namespaces { .. } | Set::Accounts(_) => {}
            }
        }
        Self {
            sources: Cuts::new(sources),
            destinations: Cuts::new(destinations),
            ports: Cuts::new(ports),
            slots: std::iter::repeat_with(ArcSwapOption::empty)
                .take(SLOTS)
                .collect(),
        }
    }

    /// The answer for a flow: the one that is kept, or what `work_out` says.
    pub(super) fn answer(&self, asked: &Asked<'_>, work_out: impl FnOnce() -> A) -> A {
        let kind = self.kind(asked);
        let mut hasher = DefaultHasher::new();
        kind.hash(&mut hasher);
        let hash = hasher.finish();
        let slot = |way| &self.slots[(index(hash) + way) % SLOTS];
        let mut place = slot(index(hash >> 32) % WAYS);
        for way in 0..WAYS {
            match &*slot(way).load() {
                Some(kept) if kept.hash == hash && kept.kind == kind => return kept.answer.clone(),
                Some(_) => {}
                None => {
                    place = slot(way);
                    break;
                }
            }
        }
        let answer = work_out();
        place.store(Some(Arc::new(Kept {
            hash,
            kind,
            answer: answer.clone(),
        })));
        answer
    }

    fn kind(&self, asked: &Asked<'_>) -> Kind {
        Kind {
            identity: asked.identity.cloned(),
            source: self.sources.stretch(number(asked.source)),
            destination: self.destinations.stretch(number(asked.destination.ip())),
            port: self.ports.stretch(asked.destination.port().into()),
        }
    }
}

/// Bits of a hash as an index. Where an index is shorter than a hash, the low bits are as good.
#[expect(
    clippy::cast_possible_truncation,
    reason = "bits of a hash, not a number"
)]
fn index(bits: u64) -> usize {
    bits as usize
}

/// A canonical address as a number, IPv4 as its IPv4-mapped IPv6 address.
pub(super) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// Numbers at which something begins or has just ended, sorted.
#[derive(Debug)]
struct Cuts<N>(Box<[N]>);

impl<N: Ord + Copy> Cuts<N> {
    fn new(mut cuts: Vec<N>) -> Self {
        cuts.sort_unstable();
        cuts.dedup();
        Self(cuts.into())
    }

    /// Which of the stretches between the cuts a number is in.
    fn stretch(&self, number: N) -> usize {
        self.0.partition_point(|cut| *cut <= number)
    }
}
