//! One state of the index, immutable: what any thread may keep and ask without a lock.
//!
//! Connections ask by address and get the way ([`Snapshot::resolve`]); programs ask by name or
//! node for what they serve, and list everything for a dump. A snapshot shares nearly all of its
//! memory with the one before it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::identify::backends::{Backend, Backends};
use crate::identify::by_address::ByAddress;
use crate::identify::table::{Table, pair};
use crate::mesh::{Family, Service, ServicePort, Workload, canonical_ip};

/// A pod, with what only the index wants to know of it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) workload: Arc<Workload>,
    /// The digits of its creation (`source::Pod::created`) over three bits, to save eight bytes.
    packed: u64,
}

impl Record {
    pub(super) fn new(
        workload: Arc<Workload>,
        created: u64,
        terminating: bool,
        sidecar: bool,
        sandboxed: bool,
    ) -> Self {
        let bits = u64::from(sandboxed) << 2 | u64::from(terminating) << 1 | u64::from(sidecar);
        Self {
            workload,
            packed: created << 3 | bits,
        }
    }

    pub(super) fn created(&self) -> u64 {
        self.packed >> 3
    }

    pub(super) fn terminating(&self) -> bool {
        self.packed & 2 != 0
    }

    pub(super) fn sidecar(&self) -> bool {
        self.packed & 1 != 0
    }

    pub(super) fn sandboxed(&self) -> bool {
        self.packed & 4 != 0
    }

    /// Whether all that is held beside the workload is alike.
    pub(super) fn ranks_as(&self, other: &Self) -> bool {
        self.packed == other.packed
    }

    /// The same pod, seen anew.
    pub(super) fn with(&self, workload: Workload) -> Self {
        Self {
            workload: Arc::new(workload),
            packed: self.packed,
        }
    }
}

/// A service and where it leads.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) service: Arc<Service>,
    pub(super) backends: Backends,
}

/// One state of the index. A clone costs a few counters.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All pods, by namespace and name.
    pub(super) pods: Table<Record>,
    /// The pods that own an address, by that.
    pub(super) addresses: ByAddress<Workload>,
    /// The pods that are scheduled, by node.
    pub(super) nodes: Table<Arc<Workload>>,
    /// All services, by namespace and name.
    pub(super) services: Table<Arc<Entry>>,
    /// The services that own a virtual address, by that.
    pub(super) vips: ByAddress<Entry>,
    pub(super) counts: Counts,
}

/// How much a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Namespaces.
    pub namespaces: usize,
    /// Nodes.
    pub nodes: usize,
    /// Pods.
    pub workloads: usize,
    /// Pods that the mesh carries.
    pub enrolled: usize,
    /// Services.
    pub services: usize,
    /// EndpointSlices.
    pub endpoint_slices: usize,
    /// Addresses that more than one live pod claims.
    pub contested_addresses: usize,
}

impl Snapshot {
    /// The pod that owns an address, by the rules in `addresses`.
    #[must_use]
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.at(canonical_ip(ip))
    }

    /// The service that has this virtual address; of several, the first by namespace and name.
    #[must_use]
    pub fn service_at(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        Some(&self.entry_at(canonical_ip(ip))?.service)
    }

    pub(super) fn entry_at(&self, ip: IpAddr) -> Option<&Arc<Entry>> {
        self.vips.at(ip)
    }

    /// A pod by name.
    #[must_use]
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        Some(&self.record(namespace, name)?.workload)
    }

    pub(super) fn record(&self, namespace: &str, name: &str) -> Option<&Record> {
        self.pods.find(pair(namespace, name), |record| {
            *record.workload.name == *name && *record.workload.namespace == *namespace
        })
    }

    /// A service by name.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        Some(&self.entry(namespace, name)?.service)
    }

    pub(super) fn entry(&self, namespace: &str, name: &str) -> Option<&Arc<Entry>> {
        self.services.find(pair(namespace, name), |entry| {
            *entry.service.name == *name && *entry.service.namespace == *namespace
        })
    }

    /// All pods of a node, whether the mesh carries them or not. Costs what that node has.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let here = self.nodes.range(node);
        here.filter(move |workload| *workload.node == *node)
    }

    /// All pods, in no telling order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.pods.iter().map(|record| &record.workload)
    }

    /// All services, in no telling order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter().map(|entry| &entry.service)
    }

    /// Where a service leads, for dumps: each port and family with the endpoints that any client
    /// may be sent to. Empty for a service that is not of this snapshot.
    pub fn endpoints<'s>(
        &'s self,
        service: &'s Service,
    ) -> impl Iterator<Item = (&'s ServicePort, Family, &'s [Backend])> {
        let entry = self.entry(&service.namespace, &service.name);
        entry.into_iter().flat_map(|entry| {
            let ports = entry.service.ports.iter().zip(&entry.backends.ports);
            ports.flat_map(|(port, backends)| {
                [Family::V4, Family::V6].map(|family| (port, family, backends.family(family).all()))
            })
        })
    }

    /// Whether a service leads to a pod: whether one of its [`endpoints`](Self::endpoints) has an
    /// address of it. Costs a binary search for each of the service's ports and the pod's
    /// addresses: of a thousand endpoints ten are looked at.
    #[must_use]
    pub fn selects(&self, service: &Service, workload: &Workload) -> bool {
        let Some(entry) = self.entry(&service.namespace, &service.name) else {
            return false;
        };
        let mut ports = entry.backends.ports.iter();
        ports.any(|port| {
            let mut ips = workload.ips.iter();
            ips.any(|ip| port.family(Family::of(*ip)).has(*ip))
        })
    }

    /// How much there is of everything.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
