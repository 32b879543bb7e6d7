//! Two nodes and their pods.
//!
//! ```text
//! pod ─ veth ─ br0 [node 1] eth0 ── veth ── eth0 [node 2] br0 ─ veth ─ pod
//!        10.1.1.0/24      10.0.0.1    10.0.0.2      10.1.2.0/24
//!        fd01:1::/64      fd00::1     fd00::2       fd01:2::/64
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use super::netns::Netns;

/// The Kubernetes namespace of enrolled pods.
const MESH: &str = "mesh";
/// The one of pods that the mesh leaves alone.
const PLAIN: &str = "plain";

/// The whole network.
#[derive(Debug)]
pub(crate) struct Net {
    nodes: [Netns; 2],
    pods: Vec<Arc<Pod>>,
    /// The congestion control of all namespaces, where it is not the system's.
    congestion: Option<String>,
}

/// A pod. It is a network namespace with two addresses.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    node: usize,
    enrolled: bool,
}

impl Pod {
    /// Its SPIFFE identity: a service account of its own.
    pub(crate) fn identity(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.namespace(),
            self.name
        )
    }

    fn namespace(&self) -> &'static str {
        if self.enrolled { MESH } else { PLAIN }
    }

    fn object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace(),
                "uid": format!("uid-{}", self.name),
                "labels": { "app": self.name },
                "annotations": { "adit.mesh/netns": self.netns.path() },
            },
            "spec": {
                "nodeName": format!("node{}", self.node),
                "serviceAccountName": self.name,
                "containers": [{ "name": "app", "image": "app" }],
            },
            "status": {
                "phase": "Running",
                "podIP": self.v4.to_string(),
                "podIPs": [{ "ip": self.v4.to_string() }, { "ip": self.v6.to_string() }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        })
    }
}

impl Net {
    /// Two nodes, joined.
    pub(crate) fn create(congestion: Option<&str>) -> Result<Self> {
        let nodes = [node(1)?, node(2)?];
        let [one, two] = &nodes;
        one.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}\nlink set eth0 up\n",
            two.name()
        ))?;
        two.ip("link set eth0 up")?;
        for (node, own, other) in [(one, 1, 2), (two, 2, 1)] {
            node.ip(&format!(
                "addr add 10.0.0.{own}/24 dev eth0\n\
                 addr add fd00::{own}/64 dev eth0 nodad\n\
                 route add 10.1.{other}.0/24 via 10.0.0.{other}\n\
                 route add fd01:{other}::/64 via fd00::{other}\n"
            ))?;
        }
        let net = Self {
            nodes,
            pods: Vec::new(),
            congestion: congestion.map(str::to_owned),
        };
        net.nodes.iter().try_for_each(|node| net.choose(node))?;
        Ok(net)
    }

    /// Gives a namespace the congestion control of all.
    fn choose(&self, netns: &Netns) -> Result<()> {
        match &self.congestion {
            Some(name) => netns.sysctl("ipv4/tcp_congestion_control", name),
            None => Ok(()),
        }
    }

    /// The namespace of a node, which is 1 or 2.
    pub(crate) fn node(&self, number: usize) -> &Netns {
        &self.nodes[number - 1]
    }

    /// Adds a pod to a node.
    pub(crate) fn pod(&mut self, node: usize, name: &str, enrolled: bool) -> Result<Arc<Pod>> {
        let host = u8::try_from(self.pods.len() + 2)?;
        let net = u8::try_from(node)?;
        let pod = Pod {
            name: name.to_owned(),
            netns: Netns::create(name)?,
            v4: Ipv4Addr::new(10, 1, net, host).into(),
            v6: Ipv6Addr::new(0xfd01, net.into(), 0, 0, 0, 0, 0, host.into()).into(),
            node,
            enrolled,
        };
        self.node(node).ip(&format!(
            "link add pod{host} type veth peer name eth0 netns {}\n\
             link set pod{host} master br0 up\n",
            pod.netns.name()
        ))?;
        pod.netns.ip(&format!(
            "link set eth0 up\n\
             addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             route add default via 10.1.{node}.1\n\
             route add default via fd01:{node}::1\n",
            pod.v4, pod.v6
        ))?;
        // Many short connections: a port in TIME_WAIT is free again after a second. It holds for
        // every carrier alike.
        pod.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
        self.choose(&pod.netns)?;
        self.pods.push(Arc::new(pod));
        Ok(Arc::clone(&self.pods[self.pods.len() - 1]))
    }

    /// The objects that tell of all this, as `kubectl get -o json` would.
    pub(crate) fn objects(&self) -> Value {
        let namespace = |name: &str, labels: Value| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        let node = |number: usize| {
            json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": { "name": format!("node{number}"), "labels": {} },
                "status": { "addresses": [{ "type": "InternalIP", "address": format!("10.0.0.{number}") }] },
            })
        };
        let mut items = vec![
            namespace(MESH, json!({ "adit.mesh/mode": "ambient" })),
            namespace(PLAIN, json!({})),
            node(1),
            node(2),
        ];
        items.extend(self.pods.iter().map(|pod| pod.object()));
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }
}

fn node(number: usize) -> Result<Netns> {
    let netns = Netns::create(&format!("node{number}"))?;
    netns.sysctl("ipv4/ip_forward", "1")?;
    netns.sysctl("ipv6/conf/all/forwarding", "1")?;
    netns.ip(&format!(
        "link add br0 type bridge forward_delay 0\n\
         link set br0 up\n\
         addr add 10.1.{number}.1/24 dev br0\n\
         addr add fd01:{number}::1/64 dev br0 nodad\n"
    ))?;
    Ok(netns)
}
