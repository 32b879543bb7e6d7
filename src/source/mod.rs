//! Kubernetes objects, from wherever they come, reduced to what the journey needs.
//!
//! [`Files`] reads them from YAML and JSON files, [`Kube`](kube::Kube) watches the API server.
//! Both speak [`Change`], and [`identify::Index`](crate::identify::Index) is built from nothing
//! else, so that there is one path from objects to index. The objects are slim ([`Pod`] and its
//! neighbours in `object.rs`): everything that no later stage asks for is dropped at this door,
//! and text that recurs is shared ([`Interner`]).
//!
//! How a file becomes changes: `listing` finds the files and sees which have changed, `outline`
//! and `outline_json` cut a file into one chunk per object while streaming it, `chunk` turns the
//! text of a chunk into an object (`raw` holds the serde shapes, `read` the checks, `block` the
//! quick reader for the YAML that kubectl prints), and `files` compares with what was there
//! before and says what changed.

mod block;
mod chunk;
mod files;
mod intern;
pub mod kube;
mod ledger;
mod listing;
mod object;
mod outline;
mod outline_json;
mod owner;
mod raw;
mod read;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::mesh::Service;
use crate::mesh::policy::{AuthorizationPolicy, PeerAuthentication};

pub use files::{Files, Poll};
pub use intern::Interner;
pub use object::{Endpoint, EndpointPort, EndpointSlice, Hints, Namespace, Node, Pod, Readiness};

/// The kinds of object that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `security.istio.io/v1` AuthorizationPolicy.
    AuthorizationPolicy,
    /// `security.istio.io/v1` PeerAuthentication.
    PeerAuthentication,
}

impl Kind {
    /// The kind of an object with this `apiVersion` and `kind`, if it is one that is read.
    ///
    /// An absent `apiVersion` is taken for the right one; a wrong one is another kind that
    /// happens to share the name (Knative has a `Service`, too).
    #[must_use]
    pub fn of(api_version: Option<&str>, kind: &str) -> Option<Self> {
        let (this, versions): (Self, &[&str]) = match kind {
            "Namespace" => (Self::Namespace, &["v1"]),
            "Node" => (Self::Node, &["v1"]),
            "Pod" => (Self::Pod, &["v1"]),
            "Service" => (Self::Service, &["v1"]),
            "EndpointSlice" => (Self::EndpointSlice, &["discovery.k8s.io/v1"]),
            "AuthorizationPolicy" => (
                Self::AuthorizationPolicy,
                &["security.istio.io/v1", "security.istio.io/v1beta1"],
            ),
            "PeerAuthentication" => (
                Self::PeerAuthentication,
                &["security.istio.io/v1", "security.istio.io/v1beta1"],
            ),
            _ => return None,
        };
        api_version
            .is_none_or(|version| versions.contains(&version))
            .then_some(this)
    }

    /// Whether objects of this kind live in a namespace.
    #[must_use]
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }

    /// The kind's name, as manifests spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }
}

/// What an object is called. Two objects with one key are versions of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a kind that has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str();
        if self.namespace.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}

/// One object of the cluster. It is two words in size, since there are many of them at once when a
/// source is first read.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A namespace.
    Namespace(Box<Namespace>),
    /// A node.
    Node(Box<Node>),
    /// A pod.
    Pod(Box<Pod>),
    /// A service that has ports to dial; `ExternalName` services are not read.
    Service(Arc<Service>),
    /// A part of a service's endpoints.
    EndpointSlice(Arc<EndpointSlice>),
    /// A policy about who may call whom.
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    /// A policy about which identities must be proven.
    PeerAuthentication(Box<PeerAuthentication>),
}

/// One step from an older state of the cluster to a newer.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is new, or has changed.
    Upsert(Object),
    /// The object is gone.
    Remove(Key),
}

/// Something in the source that a person has to mend. Until then the last good state stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, or the path that was asked for; `kube` for the API server.
    pub file: PathBuf,
    /// The line, from 1; 0 when the problem is about the whole file.
    pub line: u32,
    /// The object, as `Kind namespace/name`; empty when the problem is about the whole file.
    pub object: String,
    /// What is wrong, and what it does.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        f.write_str(&self.message)
    }
}
