//! Which mTLS mode holds on each port of a workload.
//!
//! PeerAuthentications stand on levels, and the narrowest that says something decides: mesh (root
//! namespace, no selector), selector of the root namespace, namespace, workload (selector of its
//! own namespace), port. On one level the oldest policy stands and the others do not count; those
//! without a creation time are younger than all that have one, and names break ties. UNSET asks
//! the next wider level, and where none says anything PERMISSIVE holds. DISABLE acts as
//! PERMISSIVE.
//!
//! A policy that could not be understood is on no level: it demands STRICT on every port of what
//! it binds. Istio ignores selectors in the root namespace for this kind; here they are served,
//! and any policy of the workload's own namespace goes before them.

use std::sync::Arc;

use crate::mesh::Workload;
use crate::mesh::policy::{Mode, PeerAuthentication, PolicyName, Requirement};

/// What is demanded of peers on a port, and who demands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mtls {
    /// Whether a peer without an identity is refused.
    pub strict: bool,
    /// Where that was decided.
    pub level: Level,
    /// The policy that decided.
    pub policy: PolicyName,
}

/// Where an mTLS mode comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The root namespace, without a selector.
    Mesh,
    /// The root namespace, with a selector.
    MeshSelector,
    /// The workload's namespace.
    Namespace,
    /// The workload, by a selector in its namespace.
    Workload,
    /// One port of a policy with a selector.
    Port,
    /// A policy that could not be understood.
    Unreadable,
}

impl Level {
    /// A stable word for dumps and explanations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::MeshSelector => "mesh_selector",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
            Self::Port => "port",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The modes of one workload, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    workload: Option<Mtls>,
    ports: Box<[(u16, Mtls)]>,
}

impl Modes {
    /// Decides from the PeerAuthentications that bind the workload, in any order.
    pub(super) fn new<'p>(
        bound: impl Iterator<Item = &'p Arc<PeerAuthentication>>,
        root: &str,
    ) -> Self {
        let mut standing: Vec<(Level, &PeerAuthentication)> = Vec::new();
        let mut unreadable: Option<&PolicyName> = None;
        for policy in bound {
            if let Requirement::Unreadable { .. } = policy.requirement {
                unreadable = Some(unreadable.map_or(&policy.name, |name| name.min(&policy.name)));
                continue;
            }
            let level = level(policy, root);
            match standing.iter_mut().find(|(at, _)| *at == level) {
                Some((_, other)) if age(policy) < age(other) => *other = policy,
                Some(_) => {}
                None => standing.push((level, policy)),
            }
        }
        if let Some(name) = unreadable {
            let demand = Mtls {
                strict: true,
                level: Level::Unreadable,
                policy: name.clone(),
            };
            return Self {
                workload: Some(demand),
                ports: Box::default(),
            };
        }
        standing.sort_unstable_by_key(|(level, _)| *level);
        Self::layered(&standing)
    }

    /// Lays the levels over one another, from the widest to the narrowest.
    fn layered(standing: &[(Level, &PeerAuthentication)]) -> Self {
        let mut workload = None;
        let mut layered: Vec<(u16, Mtls)> = Vec::new();
        for (level, policy) in standing {
            let Requirement::Modes { mode, ports } = &policy.requirement else {
                continue;
            };
            let demand = |mode: Mode, level: Level| {
                (mode != Mode::Unset).then(|| Mtls {
                    strict: mode == Mode::Strict,
                    level,
                    policy: policy.name.clone(),
                })
            };
            if let Some(demand) = demand(*mode, *level) {
                workload = Some(demand);
                layered.clear();
            }
            for (port, mode) in ports {
                if let Some(demand) = demand(*mode, Level::Port) {
                    layered.retain(|(other, _)| other != port);
                    layered.push((*port, demand));
                }
            }
        }
        layered.sort_unstable_by_key(|(port, _)| *port);
        Self {
            workload,
            ports: layered.into(),
        }
    }

    /// What holds on `port`; `None`, and so PERMISSIVE, where no policy says anything.
    pub(super) fn on(&self, port: u16) -> Option<&Mtls> {
        match self.ports.binary_search_by_key(&port, |(port, _)| *port) {
            Ok(at) => Some(&self.ports[at].1),
            Err(_) => self.workload.as_ref(),
        }
    }
}

/// Whether `policy`, which is of the workload's namespace or the root namespace, binds it.
pub(super) fn binds(policy: &PeerAuthentication, workload: &Workload) -> bool {
    let selector = policy.selector.as_ref();
    selector.is_none_or(|selector| selector.matches(&workload.labels))
}

fn level(policy: &PeerAuthentication, root: &str) -> Level {
    match (policy.name.namespace() == root, &policy.selector) {
        (true, None) => Level::Mesh,
        (true, Some(_)) => Level::MeshSelector,
        (false, None) => Level::Namespace,
        (false, Some(_)) => Level::Workload,
    }
}

/// Sorts the oldest first.
fn age(policy: &PeerAuthentication) -> (bool, Option<&str>, &PolicyName) {
    let created = policy.created.as_deref();
    (created.is_none(), created, &policy.name)
}
