//! Policies as they come and go, and an immutable snapshot of them.
//!
//! The control thread applies changes and publishes [`Policies`]. A change costs the policies of
//! its own namespace and a pointer per other namespace that has any.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::authorize::compile::Policy;
use crate::authorize::evaluator::Evaluator;
use crate::authorize::mtls::{Modes, binds};
use crate::mesh::policy::{AuthorizationPolicy, Notice, PeerAuthentication, PolicyName};
use crate::mesh::{TrustDomain, Workload};

/// A policy that came, changed or went.
#[derive(Clone, Debug)]
pub enum Change {
    /// An AuthorizationPolicy is new, or other than it was.
    Authorization(AuthorizationPolicy),
    /// A PeerAuthentication is new, or other than it was.
    PeerAuthentication(PeerAuthentication),
    /// An AuthorizationPolicy is gone.
    AuthorizationGone(PolicyName),
    /// A PeerAuthentication is gone.
    PeerAuthenticationGone(PolicyName),
}

/// Which workloads a policy binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All.
    Mesh,
    /// Those of its namespace.
    Namespace,
    /// Those that its selector matches: in its namespace, or anywhere when that is the root
    /// namespace.
    Workload,
}

impl Scope {
    /// A stable word for dumps and explanations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
        }
    }
}

/// All policies, to be changed one by one.
#[derive(Debug)]
pub struct Store {
    policies: Arc<Policies>,
}

/// An immutable snapshot of all policies.
#[derive(Clone, Debug)]
pub struct Policies {
    root: Arc<str>,
    trust_domain: TrustDomain,
    shelves: BTreeMap<Box<str>, Arc<Shelf>>,
}

/// The policies of one namespace.
#[derive(Clone, Debug, Default)]
struct Shelf {
    authorization: BTreeMap<PolicyName, Arc<Policy>>,
    peer: BTreeMap<PolicyName, Arc<PeerAuthentication>>,
}

impl Store {
    /// No policies yet. Those of `root_namespace` bind the whole mesh; `trust_domain` is what
    /// `cluster.local` in a principal stands for.
    #[must_use]
    pub fn new(root_namespace: &str, trust_domain: &TrustDomain) -> Self {
        Self {
            policies: Arc::new(Policies {
                root: root_namespace.into(),
                trust_domain: trust_domain.clone(),
                shelves: BTreeMap::new(),
            }),
        }
    }

    /// Applies one change.
    pub fn apply(&mut self, change: Change) {
        let policies = Arc::make_mut(&mut self.policies);
        match change {
            Change::Authorization(policy) => {
                let name = policy.name.clone();
                let policy = Arc::new(Policy::new(policy, &policies.trust_domain));
                policies.change(&name, |shelf| {
                    shelf.authorization.insert(name.clone(), policy);
                });
            }
            Change::PeerAuthentication(policy) => {
                let name = policy.name.clone();
                policies.change(&name, |shelf| {
                    shelf.peer.insert(name.clone(), Arc::new(policy));
                });
            }
            Change::AuthorizationGone(name) => {
                policies.change(&name, |shelf| {
                    shelf.authorization.remove(&name);
                });
            }
            Change::PeerAuthenticationGone(name) => {
                policies.change(&name, |shelf| {
                    shelf.peer.remove(&name);
                });
            }
        }
    }

    /// The policies as they are now.
    #[must_use]
    pub fn policies(&self) -> Arc<Policies> {
        Arc::clone(&self.policies)
    }
}

impl Policies {
    fn change(&mut self, name: &PolicyName, change: impl FnOnce(&mut Shelf)) {
        let shelf = self.shelves.entry(name.namespace().into()).or_default();
        change(Arc::make_mut(shelf));
        if shelf.authorization.is_empty() && shelf.peer.is_empty() {
            self.shelves.remove(name.namespace());
        }
    }

    /// Compiles what binds `workload`. To be done once per workload and snapshot, not per flow:
    /// the cost is that of the policies of its namespace and the root namespace.
    #[must_use]
    pub fn evaluator(&self, workload: &Workload) -> Evaluator {
        let shelves = self.shelves_of(&workload.namespace);
        let authorization = shelves
            .iter()
            .flat_map(|shelf| shelf.authorization.values());
        let authorization = authorization.filter(|policy| {
            let selector = policy.written.selector.as_ref();
            selector.is_none_or(|selector| selector.matches(&workload.labels))
        });
        let peer = shelves.iter().flat_map(|shelf| shelf.peer.values());
        let peer = peer.filter(|policy| binds(policy, workload));
        Evaluator::new(
            authorization.cloned().collect(),
            Modes::new(peer, &self.root),
        )
    }

    /// The root namespace's policies, then those of `namespace`.
    fn shelves_of(&self, namespace: &str) -> Vec<&Shelf> {
        let own = (namespace != &*self.root).then_some(namespace);
        let both = [Some(&*self.root), own].into_iter().flatten();
        both.filter_map(|name| self.shelves.get(name))
            .map(|shelf| &**shelf)
            .collect()
    }

    /// All AuthorizationPolicies, by namespace and name.
    pub fn authorization(&self) -> impl Iterator<Item = &AuthorizationPolicy> {
        let shelves = self.shelves.values();
        shelves.flat_map(|shelf| shelf.authorization.values().map(|policy| &*policy.written))
    }

    /// All PeerAuthentications, by namespace and name.
    pub fn peer_authentication(&self) -> impl Iterator<Item = &PeerAuthentication> {
        let shelves = self.shelves.values();
        shelves.flat_map(|shelf| shelf.peer.values().map(|policy| &**policy))
    }

    /// What the authors of policies should know, with kind and name of the policy.
    pub fn notices(&self) -> impl Iterator<Item = (&'static str, &PolicyName, &Notice)> {
        let authorization = self.authorization().flat_map(|policy| {
            let notices = policy.notices.iter();
            notices.map(|notice| ("AuthorizationPolicy", &policy.name, notice))
        });
        let peer = self.peer_authentication().flat_map(|policy| {
            let notices = policy.notices.iter();
            notices.map(|notice| ("PeerAuthentication", &policy.name, notice))
        });
        authorization.chain(peer)
    }

    /// Which workloads a policy binds.
    #[must_use]
    pub fn scope(&self, policy: &AuthorizationPolicy) -> Scope {
        match &policy.selector {
            Some(_) => Scope::Workload,
            None if policy.name.namespace() == &*self.root => Scope::Mesh,
            None => Scope::Namespace,
        }
    }

    /// The namespace whose policies bind the whole mesh.
    #[must_use]
    pub fn root_namespace(&self) -> &str {
        &self.root
    }
}
