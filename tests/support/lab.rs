//! Two nodes, their pods, and the daemons between them.
//!
//! ```text
//! pod ─ veth ─ br0 [node 1] eth0 ── link ── eth0 [node 2] br0 ─ veth ─ pod
//!        10.1.1.0/24      10.0.0.1    10.0.0.2      10.1.2.0/24
//!        fd01:1::/64      fd00::1     fd00::2       fd01:2::/64
//! ```
//!
//! No interface is made outside the lab's own namespaces. Service addresses (10.96.0.0/16,
//! fd96::/64) are routed nowhere: without capture a call to one fails.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::app::{Conn, Listener, Outcome, Server};
use super::cluster::Cluster;
use super::daemon::{Daemon, Launch, run_dir};
use super::namespace::Namespace;
use super::objects::{self, ServiceSpec};
use super::wire::Wire;

/// How long a call between applications may take before it counts as unanswered.
const CALL: Duration = Duration::from_secs(10);

/// Which IP families a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    /// IPv4 and IPv6.
    Dual,
    /// An IPv4 address; IPv6 is there but has only its own link.
    V4,
    /// An IPv6 address alone.
    V6,
    /// An IPv4 address, and no IPv6 at all, not even on the loopback.
    NoV6,
}

/// What a pod is, beside its place in the network.
#[derive(Clone, Debug)]
pub(crate) struct PodSpec {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) families: Families,
    /// Whether the index is told of it.
    pub(crate) known: bool,
}

impl PodSpec {
    /// In another Kubernetes namespace.
    pub(crate) fn namespace(&mut self, name: &str) -> &mut Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// With another service account.
    pub(crate) fn service_account(&mut self, name: &str) -> &mut Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// With one more label.
    pub(crate) fn label(&mut self, key: &str, value: &str) -> &mut Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With these families.
    pub(crate) fn families(&mut self, families: Families) -> &mut Self {
        self.families = families;
        self
    }

    /// A part of the network of which no object tells.
    pub(crate) fn unknown(&mut self) -> &mut Self {
        self.known = false;
        self
    }
}

/// A pod of a lab, as its applications and its neighbours see it. Clones are the same pod.
#[derive(Clone, Debug)]
pub(crate) struct Pod(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    name: String,
    spec: PodSpec,
    node: usize,
    interface: String,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    netns: Arc<Namespace>,
}

impl Pod {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Its Kubernetes namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.0.spec.namespace
    }

    /// `NAMESPACE/NAME`.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.0.spec.namespace, self.0.name)
    }

    /// Its SPIFFE identity in the default trust domain.
    pub(crate) fn identity(&self) -> String {
        let PodSpec {
            namespace,
            service_account,
            ..
        } = &self.0.spec;
        format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}")
    }

    /// What else it is.
    pub(crate) fn spec(&self) -> &PodSpec {
        &self.0.spec
    }

    /// Its network namespace.
    pub(crate) fn netns(&self) -> &Namespace {
        &self.0.netns
    }

    /// The number of its node, from 1.
    pub(crate) fn node(&self) -> usize {
        self.0.node
    }

    /// The node's end of its interface.
    pub(crate) fn interface(&self) -> &str {
        &self.0.interface
    }

    /// Its addresses, IPv4 first.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        let v4 = self.0.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.0.v6.map(IpAddr::V6)).collect()
    }

    /// Its first address.
    pub(crate) fn ip(&self) -> IpAddr {
        self.ips()[0]
    }

    /// Its IPv4 address.
    #[track_caller]
    pub(crate) fn v4(&self) -> IpAddr {
        IpAddr::V4(self.0.v4.expect("the test gave it IPv4"))
    }

    /// Its IPv6 address.
    #[track_caller]
    pub(crate) fn v6(&self) -> IpAddr {
        IpAddr::V6(self.0.v6.expect("the test gave it IPv6"))
    }

    /// Its address of the same family as `other`.
    #[track_caller]
    pub(crate) fn ip_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() {
            self.v4()
        } else {
            self.v6()
        }
    }

    /// A port of its first address.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// Listens on every address of the pod.
    pub(crate) fn listen(&self, port: u16) -> Listener {
        Listener::wildcard(self.netns(), self.0.spec.families != Families::NoV6, port)
    }

    /// Runs a server that says its pod's name and the caller's address, then echoes.
    pub(crate) fn greet(&self, port: u16) -> Server {
        self.listen(port).greet(self.name())
    }

    /// Calls such a server.
    pub(crate) fn call(&self, to: SocketAddr) -> Outcome {
        self.call_for(to, CALL)
    }

    /// Calls such a server with less patience.
    pub(crate) fn call_for(&self, to: SocketAddr, patience: Duration) -> Outcome {
        Outcome::of_call(self.netns(), to, patience)
    }

    /// Dials, says `words`, and tells how the connection ends. A reset may come so soon that the
    /// dial itself sees it.
    pub(crate) fn end_of(&self, to: SocketAddr, words: &[u8], patience: Duration) -> Outcome {
        let conn = Conn::dial(self.netns(), None, to, patience);
        // An error is told once: the send that has seen a reset leaves only an end to the read.
        let said = conn.and_then(|conn| {
            conn.patience(patience);
            conn.try_send(words).map(|()| conn)
        });
        said.map_or_else(|error| Outcome::of(&error), |conn| conn.ending())
    }

    /// Dials; panics when the connection does not open.
    #[track_caller]
    pub(crate) fn dial(&self, to: SocketAddr) -> Conn {
        self.try_dial(to)
            .unwrap_or_else(|e| panic!("{} cannot dial {to}: {e}", self.name()))
    }

    /// Dials.
    pub(crate) fn try_dial(&self, to: SocketAddr) -> std::io::Result<Conn> {
        Conn::dial(self.netns(), None, to, CALL)
    }

    /// Dials a greeter and takes its greeting; the connection then echoes.
    #[track_caller]
    pub(crate) fn dial_greeter(&self, to: SocketAddr) -> Conn {
        let conn = self.dial(to);
        let greeting = conn.line();
        assert!(greeting.is_ok(), "{} calls {to}: {greeting:?}", self.name());
        conn
    }

    /// Whether rules of any kind stand in its namespace.
    pub(crate) fn has_rules(&self) -> bool {
        !self.netns().run("nft", &["list", "tables"]).is_empty()
    }
}

/// A node of a lab.
#[derive(Debug)]
pub(crate) struct Node {
    number: usize,
    netns: Arc<Namespace>,
    pods: u8,
    daemon: Option<Daemon>,
}

impl Node {
    /// Its name in the objects.
    pub(crate) fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Its network namespace.
    pub(crate) fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// The same, for what outlives a borrow.
    pub(crate) fn share_netns(&self) -> Arc<Namespace> {
        Arc::clone(&self.netns)
    }

    /// Its own address towards the other node.
    pub(crate) fn ip(&self) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(self.number).expect("few nodes")])
    }
}

/// The whole: nodes, pods, objects and daemons. Everything goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Lab {
    // Daemons are dropped first, with their nodes; then the namespaces; then the directory.
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    /// The objects; call [`Lab::publish`] after a change.
    pub(crate) cluster: Cluster,
    services: u8,
    dir: tempfile::TempDir,
}

impl Lab {
    /// Two nodes, and the namespaces `mesh` (enrolled) and `plain` (not).
    pub(crate) fn new() -> Self {
        Self::with_nodes(2)
    }

    /// One node alone, for what happens within a node.
    pub(crate) fn one_node() -> Self {
        Self::with_nodes(1)
    }

    fn with_nodes(count: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("adit-lab-").tempdir();
        let dir = dir.expect("the temporary directory is writable");
        let mut cluster = Cluster::new(dir.path().join("cluster.yaml"));
        let nodes: Vec<_> = (1..=count).map(node).collect();
        if let [one, two] = &nodes[..] {
            link(&one.netns, &two.netns);
        }
        for node in &nodes {
            cluster.put(json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": node.name(),
                    "labels": {
                        "kubernetes.io/hostname": node.name(),
                        "topology.kubernetes.io/region": "r1",
                        "topology.kubernetes.io/zone": format!("zone{}", node.number),
                    },
                },
                "spec": { "podCIDR": format!("10.1.{}.0/24", node.number) },
                "status": { "addresses": [{ "type": "InternalIP", "address": node.ip().to_string() }] },
            }));
        }
        let mut lab = Self {
            nodes,
            pods: Vec::new(),
            cluster,
            services: 0,
            dir,
        };
        lab.namespace("mesh", &[("adit.mesh/mode", "ambient")]);
        lab.namespace("plain", &[]);
        lab
    }

    /// Adds a Kubernetes namespace.
    pub(crate) fn namespace(&mut self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        self.cluster.put(json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        }));
    }

    /// Adds an enrolled dual-stack pod with a service account of its own name.
    pub(crate) fn pod(&mut self, node: usize, name: &str) -> Pod {
        self.pod_with(node, name, |_| ())
    }

    /// Adds a pod that the index knows and the mesh leaves alone.
    pub(crate) fn plain_pod(&mut self, node: usize, name: &str) -> Pod {
        self.pod_with(node, name, |p| _ = p.namespace("plain"))
    }

    /// Adds a host of the network of which no object tells.
    pub(crate) fn stranger(&mut self, node: usize, name: &str) -> Pod {
        self.pod_with(node, name, |p| _ = p.unknown())
    }

    /// Adds a pod as `shape` makes it.
    pub(crate) fn pod_with(
        &mut self,
        node: usize,
        name: &str,
        shape: impl FnOnce(&mut PodSpec),
    ) -> Pod {
        let mut spec = PodSpec {
            namespace: "mesh".to_owned(),
            service_account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            families: Families::Dual,
            known: true,
        };
        shape(&mut spec);
        let place = &mut self.nodes[node - 1];
        place.pods += 1;
        let (net, host) = (u8::try_from(node).expect("few nodes"), place.pods + 1);
        let v6 = Ipv6Addr::new(0xfd01, net.into(), 0, 0, 0, 0, 0, host.into());
        let parts = Parts {
            name: name.to_owned(),
            node,
            interface: format!("pod{host}"),
            v4: (spec.families != Families::V6).then_some(Ipv4Addr::new(10, 1, net, host)),
            v6: matches!(spec.families, Families::Dual | Families::V6).then_some(v6),
            netns: Arc::new(Namespace::new(name)),
            spec,
        };
        wire(&place.netns, &parts);
        let pod = Pod(Arc::new(parts));
        if pod.0.spec.known {
            self.cluster.put(objects::pod(&pod));
        }
        self.pods.push(pod.clone());
        pod
    }

    /// Gives a pod a new network namespace of the same name and addresses.
    ///
    /// The pod given must be the only handle left beside the lab's.
    pub(crate) fn replace_netns(&mut self, pod: Pod) -> Pod {
        let id = pod.id();
        drop(pod);
        let at = self
            .pods
            .iter()
            .position(|p| p.id() == id)
            .expect("it is a pod of the lab");
        let pod = self.pods.swap_remove(at);
        let mut parts = Arc::try_unwrap(pod.0).expect("no other handle is left");
        let node = &self.nodes[parts.node - 1];
        node.netns.ip(&format!("link del {}", parts.interface));
        Arc::get_mut(&mut parts.netns)
            .expect("no other handle is left")
            .replace();
        wire(&node.netns, &parts);
        let pod = Pod(Arc::new(parts));
        self.pods.push(pod.clone());
        pod
    }

    /// Begins a service of the namespace `mesh`.
    pub(crate) fn service(&mut self, name: &str) -> ServiceSpec<'_> {
        self.services += 1;
        ServiceSpec::new(&mut self.cluster, self.services, name)
    }

    /// Writes the objects to the file that the daemons read.
    pub(crate) fn publish(&self) {
        self.cluster.publish();
    }

    /// Publishes, and starts a daemon on every node.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.start_with(|launch| launch);
    }

    /// The same, with daemons started as `shape` makes it.
    #[track_caller]
    pub(crate) fn start_with(&mut self, shape: impl Fn(Launch) -> Launch) {
        self.publish();
        let started: Vec<_> = (1..=self.nodes.len())
            .map(|n| shape(self.launch(n)).spawn())
            .collect();
        for (node, mut daemon) in self.nodes.iter_mut().zip(started) {
            daemon.await_ready();
            node.daemon = Some(daemon);
        }
    }

    /// How a daemon of a node is started by default.
    pub(crate) fn launch(&self, node: usize) -> Launch {
        let place = &self.nodes[node - 1];
        Launch {
            namespace: Arc::clone(&place.netns),
            node: place.name(),
            sources: vec![self.cluster.path().to_owned()],
            ca: self.ca(),
            run_dir: run_dir(self.dir(), &place.name()),
            log: self.dir().join(format!("{}.log", place.name())),
            drain: "5s".to_owned(),
            args: Vec::new(),
            privileges: Vec::new(),
        }
    }

    /// Makes `daemon` the one of a node, in the place of any other.
    pub(crate) fn install(&mut self, node: usize, daemon: Daemon) {
        self.nodes[node - 1].daemon = Some(daemon);
    }

    /// Starts another daemon of a node beside the one that runs, waits until it has taken over, and
    /// gives the one that has handed over.
    #[track_caller]
    pub(crate) fn relieve(&mut self, node: usize, shape: impl FnOnce(Launch) -> Launch) -> Daemon {
        let mut next = shape(self.successor(node)).spawn();
        next.says(&["taken over"]);
        next.await_ready();
        self.exchange(node, next)
    }

    /// How another daemon of a node is started, with a log of its own.
    pub(crate) fn successor(&self, node: usize) -> Launch {
        let mut launch = self.launch(node);
        let before = (1..).map(|n| self.dir().join(format!("node{node}-next{n}.log")));
        let mut free = before.skip_while(|path| path.exists());
        launch.log = free.next().expect("there are numbers enough");
        launch
    }

    /// Makes `daemon` the one of a node, and gives the one before.
    #[track_caller]
    pub(crate) fn exchange(&mut self, node: usize, daemon: Daemon) -> Daemon {
        let before = self.nodes[node - 1].daemon.replace(daemon);
        before.expect("the test has started it")
    }

    /// The daemon of a node.
    #[track_caller]
    pub(crate) fn daemon(&mut self, node: usize) -> &mut Daemon {
        let daemon = self.nodes[node - 1].daemon.as_mut();
        daemon.expect("the test has started it")
    }

    /// Starts the daemon of a node again as it was started before.
    #[track_caller]
    pub(crate) fn restart(&mut self, node: usize) {
        let launch = self.daemon(node).launch().clone();
        self.daemon(node).kill();
        let daemon = launch.start();
        self.install(node, daemon);
    }

    /// A node.
    pub(crate) fn node(&self, node: usize) -> &Node {
        &self.nodes[node - 1]
    }

    /// The directory of the authority that the daemons share.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir().join("ca")
    }

    /// The lab's own directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Listens on the link between the nodes.
    pub(crate) fn tap_link(&self) -> Wire {
        self.tap(1, "eth0")
    }

    /// Listens on an interface of a node.
    pub(crate) fn tap(&self, node: usize, interface: &str) -> Wire {
        let file = self.dir().join(format!("node{node}-{interface}.pcap"));
        Wire::tap(&self.nodes[node - 1].netns, interface, file)
    }
}

fn node(number: usize) -> Node {
    let netns = Arc::new(Namespace::new(&format!("node{number}")));
    netns.sysctl("ipv4/ip_forward", "1");
    netns.sysctl("ipv6/conf/all/forwarding", "1");
    netns.ip(&format!(
        "link add br0 type bridge forward_delay 0\n\
         link set br0 up\n\
         addr add 10.1.{number}.1/24 dev br0\n\
         addr add fd01:{number}::1/64 dev br0 nodad\n"
    ));
    Node {
        number,
        netns,
        pods: 0,
        daemon: None,
    }
}

/// Joins two nodes.
fn link(one: &Namespace, two: &Namespace) {
    one.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}\nlink set eth0 up",
        two.name()
    ));
    two.ip("link set eth0 up");
    for (node, own, other) in [(one, 1, 2), (two, 2, 1)] {
        node.ip(&format!(
            "addr add 10.0.0.{own}/24 dev eth0\n\
             addr add fd00::{own}/64 dev eth0 nodad\n\
             route add 10.1.{other}.0/24 via 10.0.0.{other}\n\
             route add fd01:{other}::/64 via fd00::{other}\n"
        ));
    }
}

/// Joins a pod to its node's bridge.
fn wire(node: &Namespace, pod: &Parts) {
    let (interface, netns) = (&pod.interface, &pod.netns);
    if pod.spec.families == Families::NoV6 {
        for link in ["all", "default", "lo"] {
            netns.sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "1");
        }
    }
    node.ip(&format!(
        "link add {interface} type veth peer name eth0 netns {}\n\
         link set {interface} master br0 up\n",
        netns.name()
    ));
    netns.ip("link set eth0 up");
    if let Some(v4) = pod.v4 {
        netns.ip(&format!(
            "addr add {v4}/24 dev eth0\nroute add default via 10.1.{}.1\n",
            pod.node
        ));
    }
    if let Some(v6) = pod.v6 {
        netns.ip(&format!(
            "addr add {v6}/64 dev eth0 nodad\nroute add default via fd01:{}::1\n",
            pod.node
        ));
    }
}
