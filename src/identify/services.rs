//! Services and their EndpointSlices, in whatever order they come.
//!
//! A slice may be there before its service, and the other way round. Each change redoes the one
//! service it is about. Of two services with one virtual address the first by namespace and name
//! has it, as when one of them is on its way out and the address was given out again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::identify::backends::backends;
use crate::identify::snapshot::{Entry, Snapshot};
use crate::identify::table::pair;
use crate::mesh::Service;
use crate::source::EndpointSlice;

/// A namespace and a name in it.
pub(super) type Name = (Arc<str>, Arc<str>);

/// What the services of a snapshot are made from.
#[derive(Debug, Default)]
pub(super) struct Services {
    slices: HashMap<Name, Arc<EndpointSlice>>,
    /// The slices of each service, by name.
    of: HashMap<Name, BTreeSet<Arc<str>>>,
    /// The services that claim each virtual address; the first has it.
    claims: HashMap<IpAddr, BTreeSet<Name>>,
    /// The services in which a node's zone plays a part.
    asked_nodes: HashSet<Name>,
}

/// Tells the zone of a node.
pub(super) type ZoneOf<'z> = &'z dyn Fn(&str) -> Option<Arc<str>>;

impl Services {
    pub(super) fn slice_count(&self) -> usize {
        self.slices.len()
    }

    pub(super) fn upsert(
        &mut self,
        state: &mut Snapshot,
        service: &Arc<Service>,
        zone: ZoneOf<'_>,
    ) {
        let name = (service.namespace.clone(), service.name.clone());
        if let Some(old) = state.service(&name.0, &name.1).cloned() {
            if old == *service {
                return;
            }
            for ip in old.vips.iter().filter(|ip| !service.vips.contains(ip)) {
                self.disclaim(state, *ip, &name);
            }
        }
        for ip in &service.vips {
            self.claims.entry(*ip).or_default().insert(name.clone());
        }
        self.rebuild(state, service.clone(), zone);
    }

    pub(super) fn remove(&mut self, state: &mut Snapshot, namespace: &str, name: &str) {
        let Some(entry) = state.entry(namespace, name).cloned() else {
            return;
        };
        let name = (entry.service.namespace.clone(), entry.service.name.clone());
        for ip in &entry.service.vips {
            self.disclaim(state, *ip, &name);
        }
        self.asked_nodes.remove(&name);
        state
            .services
            .take(pair(&name.0, &*name.1), |e| is(e, &name));
    }

    pub(super) fn upsert_slice(
        &mut self,
        state: &mut Snapshot,
        slice: &Arc<EndpointSlice>,
        zone: ZoneOf<'_>,
    ) {
        let name = (slice.namespace.clone(), slice.name.clone());
        let old = self.slices.insert(name, slice.clone());
        let service = (slice.namespace.clone(), slice.service.clone());
        if old.as_ref() == Some(slice) {
            return;
        }
        if let Some(old) = old.filter(|old| old.service != slice.service) {
            self.forget(state, &old, zone);
        }
        let of = self.of.entry(service.clone()).or_default();
        of.insert(slice.name.clone());
        self.redo(state, &service, zone);
    }

    pub(super) fn remove_slice(&mut self, state: &mut Snapshot, name: &Name, zone: ZoneOf<'_>) {
        if let Some(old) = self.slices.remove(name) {
            self.forget(state, &old, zone);
        }
    }

    /// After a node's zone has changed.
    pub(super) fn zones_changed(&mut self, state: &mut Snapshot, zone: ZoneOf<'_>) {
        let names: Vec<Name> = self.asked_nodes.iter().cloned().collect();
        for name in names {
            self.redo(state, &name, zone);
        }
    }

    fn forget(&mut self, state: &mut Snapshot, slice: &EndpointSlice, zone: ZoneOf<'_>) {
        let service = (slice.namespace.clone(), slice.service.clone());
        if let Some(of) = self.of.get_mut(&service) {
            of.remove(&slice.name);
            if of.is_empty() {
                self.of.remove(&service);
            }
        }
        self.redo(state, &service, zone);
    }

    fn redo(&mut self, state: &mut Snapshot, name: &Name, zone: ZoneOf<'_>) {
        if let Some(service) = state.service(&name.0, &name.1).cloned() {
            self.rebuild(state, service, zone);
        }
    }

    /// Makes a service's entry anew and puts it wherever it belongs.
    fn rebuild(&mut self, state: &mut Snapshot, service: Arc<Service>, zone: ZoneOf<'_>) {
        let name = (service.namespace.clone(), service.name.clone());
        let of = self.of.get(&name).into_iter().flatten();
        let slices = of.filter_map(|slice| self.slices.get(&(name.0.clone(), slice.clone())));
        let backends = backends(&service, slices.map(|slice| &**slice), zone);
        if backends.asked_nodes {
            self.asked_nodes.insert(name.clone());
        } else {
            self.asked_nodes.remove(&name);
        }
        let entry = Arc::new(Entry { service, backends });
        for ip in &entry.service.vips {
            if self.claims.get(ip).and_then(BTreeSet::first) == Some(&name) {
                state.vips.put(*ip, entry.clone());
            }
        }
        let at = pair(&name.0, &*name.1);
        state.services.put(at, entry, |e| is(e, &name));
    }

    /// Withdraws a claim to `ip`; the next in order has it then.
    fn disclaim(&mut self, state: &mut Snapshot, ip: IpAddr, name: &Name) {
        let Some(claims) = self.claims.get_mut(&ip) else {
            return;
        };
        claims.remove(name);
        let next = claims.first();
        let next = next.and_then(|name| state.entry(&name.0, &name.1)).cloned();
        match next {
            Some(next) => state.vips.put(ip, next),
            None => {
                self.claims.remove(&ip);
                state.vips.take(ip);
            }
        }
    }
}

fn is(entry: &Entry, name: &Name) -> bool {
    entry.service.name == name.1 && entry.service.namespace == name.0
}
