//! The index: takes changes in, gives snapshots out.
//!
//! It holds one working [`Snapshot`] and what is needed to carry it forward. A pod costs the same
//! whatever the cluster's size; a node's new zone costs its pods, a namespace's new label its pods,
//! a slice its service. Objects may come in any order: a pod before its namespace has no namespace
//! labels until that comes, one before its node no zone.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::identify::Settings;
use crate::identify::addresses::{Contested, claims, same_pod};
use crate::identify::enrolment::{Facts, decide, enrolment, enrols};
use crate::identify::identities::Identities;
use crate::identify::services::Services;
use crate::identify::snapshot::{Record, Snapshot};
use crate::identify::table::pair;
use crate::mesh::{Enrolment, Identity, IdentityError, Labels, Reach, Workload};
use crate::source::{Change, Key, Kind, Namespace, Node, Object, Pod};

/// An object that could not be taken in. Its last good version stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The object.
    pub object: Key,
    /// Why.
    pub cause: IdentityError,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.cause)
    }
}

/// Everything that is known of the cluster, kept up to date.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    state: Snapshot,
    namespaces: HashMap<Arc<str>, Labels>,
    nodes: HashMap<Arc<str>, Node>,
    contested: Contested,
    identities: Identities,
    services: Services,
    /// Whether our own namespace is going, and the mesh with it.
    over: bool,
}

impl Index {
    /// An index of nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: Snapshot::default(),
            namespaces: HashMap::new(),
            nodes: HashMap::new(),
            contested: Contested::default(),
            identities: Identities::default(),
            services: Services::default(),
            over: false,
        }
    }

    /// Whether our own namespace is being deleted: nobody is enrolled any more, for good.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The state now. Costs a few counters, whatever the cluster's size.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.state.clone())
    }

    /// The namespaces, and whether each enrols its pods.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.namespaces
            .iter()
            .map(|(name, labels)| (name, enrols(name, labels, &self.settings)))
    }

    /// The namespaces with an enrolment label that says nothing known, and what it says.
    pub fn mislabelled(&self) -> impl Iterator<Item = (&Arc<str>, &str, &str)> {
        let unknown = |(name, labels)| {
            let (key, value) = self.settings.unknown_label(labels)?;
            Some((name, key, value))
        };
        self.namespaces.iter().filter_map(unknown)
    }

    /// An enrolment label of these that says nothing known, and what it says.
    #[must_use]
    pub fn unknown_label<'a>(&'a self, labels: &'a Labels) -> Option<(&'a str, &'a str)> {
        self.settings.unknown_label(labels)
    }

    /// Takes changes in, in their order, and says which could not be. Policies are not its own:
    /// they are passed over.
    ///
    /// Changes may be lent or given. Given ones are dropped one by one on the way, which spares
    /// memory when there is a whole cluster of them.
    pub fn apply<C: Borrow<Change>>(
        &mut self,
        changes: impl IntoIterator<Item = C>,
    ) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for change in changes {
            match change.borrow() {
                Change::Upsert(object) => rejected.extend(self.upsert(object).err()),
                Change::Remove(key) => self.remove(key),
            }
        }
        let counts = &mut self.state.counts;
        counts.namespaces = self.namespaces.len();
        counts.nodes = self.nodes.len();
        counts.workloads = self.state.pods.len();
        counts.services = self.state.services.len();
        counts.endpoint_slices = self.services.slice_count();
        counts.contested_addresses = self.contested.len();
        rejected
    }

    fn upsert(&mut self, object: &Object) -> Result<(), Rejected> {
        let nodes = &self.nodes;
        let zone = |node: &str| nodes.get(node).map(|node| node.zone.clone());
        match object {
            Object::Namespace(namespace) => self.upsert_namespace(namespace),
            Object::Node(node) => self.place(&node.name, Some(node)),
            Object::Pod(pod) => return self.upsert_pod(pod),
            Object::Service(service) => self.services.upsert(&mut self.state, service, &zone),
            Object::EndpointSlice(slice) => {
                self.services.upsert_slice(&mut self.state, slice, &zone);
            }
            Object::AuthorizationPolicy(_) | Object::PeerAuthentication(_) => {}
        }
        Ok(())
    }

    fn remove(&mut self, key: &Key) {
        let nodes = &self.nodes;
        let zone = |node: &str| nodes.get(node).map(|node| node.zone.clone());
        match key.kind {
            Kind::Namespace => {
                self.namespaces.remove(&key.name);
                self.relabel(&key.name);
                self.end_with(&key.name);
            }
            Kind::Node => self.place(&key.name, None),
            Kind::Pod => {
                if let Some(old) = self.state.record(&key.namespace, &key.name).cloned() {
                    self.detach(&old);
                    self.identities.release(&old.workload);
                }
            }
            Kind::Service => {
                let state = &mut self.state;
                self.services.remove(state, &key.namespace, &key.name);
            }
            Kind::EndpointSlice => {
                let name = (key.namespace.clone(), key.name.clone());
                self.services.remove_slice(&mut self.state, &name, &zone);
            }
            Kind::AuthorizationPolicy | Kind::PeerAuthentication => {}
        }
    }

    fn upsert_pod(&mut self, pod: &Pod) -> Result<(), Rejected> {
        let domain = &self.settings.trust_domain;
        let identity = self.identities.of(domain, pod);
        let identity = identity.map_err(|cause| Rejected {
            object: Key {
                kind: Kind::Pod,
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
            },
            cause,
        })?;
        let workload = self.workload(pod, identity);
        let sandboxed = self.settings.is_sandboxed(&pod.runtime_class);
        let fresh = |workload| {
            let Pod {
                created,
                terminating,
                sidecar,
                ..
            } = *pod;
            Record::new(workload, created, terminating, sidecar, sandboxed)
        };
        let old = self.state.record(&pod.namespace, &pod.name).cloned();
        let Some(old) = old else {
            self.identities.retain(pod, &workload.identity);
            self.attach(fresh(Arc::new(workload)));
            return Ok(());
        };
        // Snapshots go on sharing a pod that is what it was.
        let same = *old.workload == workload;
        let new = fresh(if same {
            old.workload.clone()
        } else {
            Arc::new(workload)
        });
        if !(same && new.ranks_as(&old)) {
            self.identities.retain(pod, &new.workload.identity);
            self.detach(&old);
            self.identities.release(&old.workload);
            self.attach(new);
        }
        Ok(())
    }

    fn workload(&self, pod: &Pod, identity: Identity) -> Workload {
        let node = self.nodes.get(&pod.node);
        let labels = self.namespaces.get(&pod.namespace);
        let enrolment = enrolment(pod, labels.unwrap_or(&Labels::default()), &self.settings);
        Workload {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            identity,
            node: pod.node.clone(),
            zone: node.map(|node| node.zone.clone()).unwrap_or_default(),
            region: node.map(|node| node.region.clone()).unwrap_or_default(),
            ips: pod.ips.clone(),
            labels: pod.labels.clone(),
            owner: pod.owner.clone(),
            enrolment,
            phase: pod.phase,
            host_network: pod.host_network,
            reach: self.reach(pod),
            netns: pod.netns.clone(),
        }
    }

    fn reach(&self, pod: &Pod) -> Reach {
        match &self.settings.marking {
            Some(own) if **own != *pod.node && pod.marked => Reach::Captured,
            Some(own) if **own != *pod.node => Reach::Uncaptured,
            Some(_) if pod.marked => Reach::Marked,
            _ => Reach::AsEnrolled,
        }
    }

    /// Puts a pod into every table; an older version of it must be out of them.
    fn attach(&mut self, record: Record) {
        let workload = record.workload.clone();
        let same = |w: &Workload| same_pod(w, &workload);
        for ip in claims(&workload) {
            let Snapshot {
                addresses, pods, ..
            } = &mut self.state;
            self.contested.claim(addresses, pods, *ip, &record);
        }
        if !workload.node.is_empty() {
            let at = pair(&workload.node, (&*workload.namespace, &*workload.name));
            let on_nodes = &mut self.state.nodes;
            on_nodes.put(at, workload.clone(), |w| same(w));
        }
        self.state.counts.enrolled += usize::from(workload.enrolled());
        let at = pair(&workload.namespace, &*workload.name);
        self.state.pods.put(at, record, |r| same(&r.workload));
    }

    /// Takes a pod out of every table.
    fn detach(&mut self, record: &Record) {
        let workload = &record.workload;
        for ip in claims(workload) {
            let owners = &mut self.state.addresses;
            self.contested.release(owners, *ip, workload);
        }
        let at = pair(&workload.node, (&*workload.namespace, &*workload.name));
        self.state.nodes.take(at, |w| same_pod(w, workload));
        self.state.counts.enrolled -= usize::from(workload.enrolled());
        let at = pair(&workload.namespace, &*workload.name);
        let same = |r: &Record| same_pod(&r.workload, workload);
        self.state.pods.take(at, same);
    }

    fn replace(&mut self, old: &Record, workload: Workload) {
        self.detach(old);
        self.attach(old.with(workload));
    }

    fn upsert_namespace(&mut self, namespace: &Namespace) {
        let (name, labels) = (namespace.name.clone(), namespace.labels.clone());
        if self.namespaces.insert(name, labels).as_ref() != Some(&namespace.labels) {
            self.relabel(&namespace.name);
        }
        if namespace.terminating {
            self.end_with(&namespace.name);
        }
    }

    /// Ends the mesh if the namespace that goes is ours: no label enrols any more.
    fn end_with(&mut self, namespace: &str) {
        if self.over || self.settings.home.as_deref() != Some(namespace) {
            return;
        }
        self.over = true;
        self.settings.enrol_labels.clear();
        let pods = self.state.pods.iter();
        let all: BTreeSet<_> = pods.map(|pod| pod.workload.namespace.clone()).collect();
        for namespace in all {
            self.relabel(&namespace);
        }
    }

    /// Decides the enrolment of a namespace's pods anew.
    fn relabel(&mut self, namespace: &str) {
        let labels = self.namespaces.get(namespace).cloned().unwrap_or_default();
        let changed: Vec<(Record, Enrolment)> = self
            .state
            .pods
            .range(namespace)
            .filter(|record| *record.workload.namespace == *namespace)
            .map(|record| (record, decide(facts(record), &labels, &self.settings)))
            .filter(|(record, enrolment)| record.workload.enrolment != *enrolment)
            .map(|(record, enrolment)| (record.clone(), enrolment))
            .collect();
        for (record, enrolment) in changed {
            let workload = Workload {
                enrolment,
                ..(*record.workload).clone()
            };
            self.replace(&record, workload);
        }
    }

    /// Takes in where a node is, or that it is gone.
    fn place(&mut self, name: &Arc<str>, node: Option<&Node>) {
        let old = match node {
            Some(node) => self.nodes.insert(name.clone(), node.clone()),
            None => self.nodes.remove(name),
        };
        let place = |node: Option<&Node>| match node {
            Some(node) => (node.zone.clone(), node.region.clone()),
            None => Default::default(),
        };
        let (zone, region) = place(node);
        if place(old.as_ref()) == (zone.clone(), region.clone()) {
            return;
        }
        let pods: Vec<Arc<Workload>> = self.state.on_node(name).cloned().collect();
        for pod in pods {
            let Some(record) = self.state.record(&pod.namespace, &pod.name).cloned() else {
                continue;
            };
            let workload = Workload {
                zone: zone.clone(),
                region: region.clone(),
                ..(*pod).clone()
            };
            self.replace(&record, workload);
        }
        let nodes = &self.nodes;
        let zone = |node: &str| nodes.get(node).map(|node| node.zone.clone());
        self.services.zones_changed(&mut self.state, &zone);
    }
}

fn facts(record: &Record) -> Facts<'_> {
    let workload = &record.workload;
    Facts {
        namespace: &workload.namespace,
        labels: &workload.labels,
        phase: workload.phase,
        host_network: workload.host_network,
        sidecar: record.sidecar(),
        sandboxed: record.sandboxed(),
    }
}
