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

use crate::identify::by_address::ByAddress;
use crate::identify::snapshot::Record;
use crate::identify::table::{Table, pair};
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

    /// Enters a pod's claim to `ip`. The pods that own addresses must be in `pods`.
    pub(super) fn claim(
        &mut self,
        owners: &mut ByAddress<Workload>,
        pods: &Table<Record>,
        ip: IpAddr,
        new: &Record,
    ) {
        let owner = owners.at(ip).and_then(|owner| record(pods, owner)).cloned();
        let Some(owner) = owner else {
            owners.put(ip, new.workload.clone());
            return;
        };
        let loser = if outranks(new, &owner) {
            owners.put(ip, new.workload.clone());
            owner
        } else {
            new.clone()
        };
        self.0.entry(ip).or_default().push(loser);
    }

    /// Withdraws a pod's claim to `ip`; the next in rank owns it then.
    pub(super) fn release(&mut self, owners: &mut ByAddress<Workload>, ip: IpAddr, old: &Workload) {
        let owned = owners.at(ip).is_some_and(|owner| same_pod(owner, old));
        let Some(others) = self.0.get_mut(&ip) else {
            if owned {
                owners.take(ip);
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
            owners.put(ip, others[best].workload.clone());
            Some(best)
        } else {
            let is_old = |record: &Record| same_pod(&record.workload, old);
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

fn record<'p>(pods: &'p Table<Record>, workload: &Workload) -> Option<&'p Record> {
    let at = pair(&workload.namespace, &*workload.name);
    pods.find(at, |record| same_pod(&record.workload, workload))
}
