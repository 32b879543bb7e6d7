//! Stage 2: who is who, and where a connection goes.
//!
//! [`Index`] takes in [`source`](crate::source) objects as they change, at a cost that follows the
//! change; [`Snapshot`] is one state of it, immutable, that any thread may keep and ask. What is
//! decided here: which pods the mesh carries (`enrolment`), which pod owns an address
//! (`addresses`), which endpoints a service has for whom (`backends`), and the way of a connection
//! (`resolve`). Nothing here does I/O, reads a clock or draws a random number.
//!
//! The snapshot depends on the set of objects alone, never on the order in which they came; a
//! property test in `tests.rs` holds this.

mod addresses;
mod backends;
mod by_address;
mod enrolment;
mod identities;
mod index;
mod resolve;
mod services;
mod snapshot;
mod table;

use crate::mesh::TrustDomain;

pub use backends::Backend;
pub use enrolment::{DEFAULT_LABEL, enrolment};
pub use index::{Index, Rejected};
pub use resolve::Unroutable;
pub use snapshot::{Counts, Snapshot};

/// What identifying workloads depends on beside the objects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The domain that all identities are in.
    pub trust_domain: TrustDomain,
    /// The DNS suffix of the cluster's services, `cluster.local` mostly.
    pub cluster_domain: String,
    /// Labels that enrol, on a namespace or a pod: all of them, [`DEFAULT_LABEL`] included.
    pub enrol_labels: Vec<(String, String)>,
    /// Namespaces whose pods are never enrolled.
    pub excluded_namespaces: Vec<String>,
    /// Runtime classes that are known to take packets past the namespace, beside those whose names
    /// say so.
    pub sandboxed_runtimes: Vec<String>,
    /// Our node, where each node marks the pods that it has captured, and so a pod of another one
    /// is reached by tunnel if it is marked; `None` where enrolment says it all.
    pub marking: Option<String>,
    /// Our own namespace, where its deletion means that the mesh is to be no more: from then on nobody
    /// is enrolled.
    pub home: Option<String>,
}

impl Settings {
    /// The settings of a daemon that was told nothing else: enrolment by [`DEFAULT_LABEL`],
    /// `kube-system` excluded.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        let (key, value) = DEFAULT_LABEL;
        Self {
            trust_domain,
            cluster_domain: "cluster.local".to_owned(),
            enrol_labels: vec![(key.to_owned(), value.to_owned())],
            excluded_namespaces: vec!["kube-system".to_owned()],
            sandboxed_runtimes: Vec::new(),
            marking: None,
            home: None,
        }
    }
}

#[cfg(test)]
mod tests;
