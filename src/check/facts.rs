//! What was found in the cluster and on this node, as plain values: all that the rules look at.
//!
//! Objects are reduced to what a rule asks. What could not be read is there as the reason why
//! ([`Got`]), so that its checks are skipped and say so. `gather` fills this; nothing here does I/O.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::api;
use crate::check::selector::Selector;
use crate::identify::Settings;
use crate::mesh::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::mesh::{Labels, Phase};

/// What was read, or why it was not, to follow "skipped:".
pub type Got<T> = Result<T, String>;

/// Everything that was found.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether Adit is not installed yet.
    pub pre: bool,
    /// When it was found.
    pub now: SystemTime,
    /// Our own version.
    pub version: &'static str,
    /// Where Adit is, or is to be.
    pub place: Place,
    /// How a daemon understands objects that was told nothing else than this program.
    pub told: Mesh,
    /// The cluster.
    pub cluster: Asked,
    /// This node, if it was to be looked at.
    pub node: Option<ThisNode>,
}

/// What came of asking the API server.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Nothing told where one is: only this node is looked at.
    Nobody,
    /// It does not answer, or does not take our credentials.
    InVain,
    /// It answered.
    Answered(Box<Cluster>),
}

/// Where Adit is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// The ConfigMap with the roots.
    pub bundle: String,
    /// The Secret with the authority's key.
    pub secret: String,
}

/// How objects are understood.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// Identity and enrolment.
    pub settings: Settings,
    /// The namespace whose policies bind the whole mesh.
    pub root_namespace: String,
}

/// What the API server says.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The server's version, `v1.34.0`.
    pub server: String,
    /// What accounts may do that they must.
    pub rights: Vec<Rights>,
    /// Nodes.
    pub nodes: Got<Vec<Node>>,
    /// Namespaces.
    pub namespaces: Got<Vec<Namespace>>,
    /// Pods.
    pub pods: Got<Vec<Pod>>,
    /// Service accounts, as namespace and name.
    pub accounts: Got<Vec<(String, String)>>,
    /// DaemonSets.
    pub daemon_sets: Got<Vec<Controller>>,
    /// Deployments of our namespace.
    pub deployments: Got<Vec<Controller>>,
    /// Which of the policy kinds are defined, by the names of their definitions.
    pub definitions: Got<Vec<String>>,
    /// Names of ValidatingAdmissionPolicies.
    pub admission: Got<Vec<String>>,
    /// AuthorizationPolicies; none where the kind is not defined.
    pub authorization: Got<Vec<AuthorizationPolicy>>,
    /// PeerAuthentications; none where the kind is not defined.
    pub peers: Got<Vec<PeerAuthentication>>,
    /// NetworkPolicies.
    pub network_policies: Got<Vec<NetworkPolicy>>,
    /// Policies of the network's own kinds, which are not evaluated here.
    pub foreign_policies: Got<Vec<ForeignPolicy>>,
    /// The ConfigMap `cilium-config`, where there is one.
    pub cilium: Got<Option<BTreeMap<String, String>>>,
    /// Calico's settings of its data plane, where there are any.
    pub felix: Got<Option<Felix>>,
    /// Handlers of RuntimeClasses, by name.
    pub runtimes: Got<BTreeMap<String, String>>,
    /// The published roots; `None` without the ConfigMap.
    pub roots: Got<Option<Vec<Root>>>,
    /// The metadata of the authority's Secret; `None` without it.
    pub secret: Got<Option<SecretNotes>>,
}

/// What one account must be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Whose, for people.
    pub who: String,
    /// What for.
    pub purpose: &'static str,
    /// Each right, such as `list pods`, and whether it is granted.
    pub granted: Got<Vec<(String, bool)>>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Whether kubelet says that it is ready.
    pub ready: bool,
    /// As `uname -r` says it.
    pub kernel: String,
    /// As in `containerd://2.1.0`.
    pub runtime: String,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Whether annotation `linkerd.io/inject` asks for Linkerd's sidecars.
    pub linkerd: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node; empty while unscheduled.
    pub node: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// When it was made.
    pub created: Option<SystemTime>,
    /// Whether it is on its node's network.
    pub host_network: bool,
    /// Whether it has a sidecar of Istio.
    pub sidecar: bool,
    /// Whether it has a sidecar of Linkerd.
    pub linkerd: bool,
    /// Whether its node says that it is captured.
    pub marked: bool,
    /// Whether kubelet made it from a file of its own.
    pub from_file: bool,
    /// Its RuntimeClass, if it names one.
    pub runtime_class: Option<String>,
    /// The ports that its containers declare.
    pub ports: Vec<u16>,
    /// The images of its containers; only for pods of our own namespace.
    pub images: Vec<String>,
}

/// A DaemonSet or a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which pods are its.
    pub selector: Selector,
    /// The service account of its pods.
    pub account: String,
    /// The labels a node must have for its pods.
    pub node_selector: Labels,
    /// The images of its containers.
    pub images: Vec<String>,
    /// Commands and arguments of its containers, in their order.
    pub arguments: Vec<String>,
    /// Variables of its containers that have a value of their own.
    pub variables: BTreeMap<String, String>,
    /// How many pods it should have.
    pub wanted: u64,
    /// How many of its pods are ready.
    pub ready: u64,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pods of its namespace that it binds.
    pub pods: Selector,
    /// What may come in; `None` where it says nothing about that.
    pub ingress: Option<Vec<Allowance>>,
    /// What may go out; `None` where it says nothing about that.
    pub egress: Option<Vec<Allowance>>,
}

/// One rule of a NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// The peers; with none, everybody.
    pub peers: Vec<PeerOf>,
    /// The ports; with none, all.
    pub ports: Vec<PortRange>,
}

/// Peers of a NetworkPolicy's rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerOf {
    /// Pods, of the namespaces that are selected, or of the policy's own.
    Pods {
        /// Of which namespaces; `None` for the policy's own.
        namespaces: Option<Selector>,
        /// Which of them.
        pods: Selector,
    },
    /// Addresses.
    Block {
        /// Within this,
        within: IpNet,
        /// and not within these.
        except: Vec<IpNet>,
    },
}

/// Ports of a NetworkPolicy's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRange {
    /// TCP ports by number, the last included.
    Tcp(u16, u16),
    /// A TCP port by the name that a container gives it.
    Named,
    /// Another protocol.
    Other,
}

/// A policy of the network's own kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignPolicy {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it names ports, and not the tunnel's among them.
    pub lacks_tunnel: bool,
}

/// Calico's data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Felix {
    /// Whether it is eBPF.
    pub ebpf: bool,
    /// Whether services are resolved in `connect(2)`.
    pub connect_time: bool,
}

/// A root that is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its subject, for people.
    pub subject: String,
    /// The end of its validity; `None` where it cannot be read.
    pub ends: Option<SystemTime>,
    /// The trust domain that it names, if it does.
    pub trust_domain: Option<String>,
}

/// What the authority's Secret says beside its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecretNotes {
    /// Since when another root has been staged.
    pub staged: Option<SystemTime>,
    /// Since when the old root has been retiring.
    pub promoted: Option<SystemTime>,
}

/// What was found on the machine that this runs on.
#[derive(Clone, Debug)]
pub struct ThisNode {
    /// The kernel's release, as `uname -r` says it.
    pub kernel: String,
    /// Whether a connection could be captured; if not, why, for people.
    pub capture: Result<(), String>,
    /// Whether sockets can be listed.
    pub sock_diag: Result<(), String>,
    /// The capabilities in force, as `/proc/self/status` has them.
    pub capabilities: Result<u64, String>,
    /// By what kubelet's sockets are known; `None` where kubelet is not seen.
    pub kubelet: Option<&'static str>,
    /// The daemon, if one answers: its status and its certificates.
    pub daemon: Result<(api::Status, Vec<api::Certificate>), String>,
}

impl Pod {
    /// `namespace/name`.
    pub fn full(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether it has been there for that long; also where it does not say.
    pub fn older_than(&self, age: Duration, now: SystemTime) -> bool {
        self.created
            .is_none_or(|at| now.duration_since(at).unwrap_or_default() >= age)
    }
}
