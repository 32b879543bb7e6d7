//! Which pod owns an address.
//!
//! An address belongs to one pod at a time, but objects lag behind: a dead node's pods go on being
//! listed, and their addresses are given out again. Rules:
//!
//! 1. A pod on its node's network never owns an address: it is the node's.
//! 2. A finished pod never owns one: it has given it back.
//! 3. Of several others, one that is not terminating goes before one that is; then one that is
//!    running before one that is not yet; then the younger by `creationTimestamp`; then the one
//!    with the greater uid, and last by namespace and name, so that there is always an order.
//!
//! A service's address goes before a pod's (`resolve`). Whether a pod is enrolled plays no part:
//! a label must not decide whose an address is.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::identify::snapshot::Record;
use crate::identify::table::{Table, of_ip};
use crate::mesh::{Phase, Workload};

/// Whether `a` owns an address that `b` claims as well (rule 3).
pub(super) fn outranks(a: &Record, b: &Record) -> bool {
    fn rank(record: &Record) -> impl Ord + '_ {
        let workload = &record.workload;
        (
            !record.terminating(),
            workload.phase == Phase::Running,
            record.created(),
            &workload.uid,
            &workload.namespace,
            &workload.name,
        )
    }
    rank(a) > rank(b)
}

/// The addresses that a pod claims (rules 1 and 2).
pub(super) fn claims(workload: &Workload) -> &[IpAddr] {
    if workload.host_network || workload.phase == Phase::Finished {
        &[]
    } else {
        &workload.ips
    }
}

/// Whether both are versions of one pod.
pub(super) fn same_pod(a: &Workload, b: &Workload) -> bool {
    a.name == b.name && a.namespace == b.namespace
}

/// The pods that claim an address and do not own it.
#[derive(Debug, Default)]
pub(super) struct Contested(HashMap<IpAddr, Vec<Record>>);

impl Contested {
    /// How many addresses are claimed more than once.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Enters a pod's claim to `ip`.
    pub(super) fn claim(&mut self, owners: &mut Table<Record>, ip: IpAddr, new: &Record) {
        let at = of_ip(ip);
        let Some(owner) = owners.find(at, |r| owns(r, ip)).cloned() else {
            owners.put(at, new.clone(), |r| owns(r, ip));
            return;
        };
        let loser = if outranks(new, &owner) {
            owners.put(at, new.clone(), |r| owns(r, ip));
            owner
        } else {
            new.clone()
        };
        self.0.entry(ip).or_default().push(loser);
    }

    /// Withdraws a pod's claim to `ip`; the next in rank owns it then.
    pub(super) fn release(&mut self, owners: &mut Table<Record>, ip: IpAddr, old: &Workload) {
        let at = of_ip(ip);
        let is_old = |record: &Record| same_pod(&record.workload, old);
        let owned = owners.find(at, |r| owns(r, ip)).is_some_and(is_old);
        let Some(others) = self.0.get_mut(&ip) else {
            if owned {
                owners.take(at, |r| owns(r, ip));
            }
            return;
        };
        let leaves = if owned {
            let best = (1..others.len()).fold(0, |best, i| {
                if outranks(&others[i], &others[best]) {
                    i
                } else {
                    best
                }
            });
            owners.put(at, others[best].clone(), |r| owns(r, ip));
            Some(best)
        } else {
            others.iter().position(is_old)
        };
        if let Some(leaves) = leaves {
            others.swap_remove(leaves);
        }
        if others.is_empty() {
            self.0.remove(&ip);
        }
    }
}

/// Whether an entry is the one for `ip`: two addresses may share a hash.
pub(super) fn owns(record: &Record, ip: IpAddr) -> bool {
    record.workload.ips.contains(&ip)
}
