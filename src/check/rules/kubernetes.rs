//! The cluster that Adit is in, or is to be in: versions, rights, nodes.

use crate::check::facts::{Node, Rights};
use crate::check::finding::{Check, Finding, State, count};
use crate::check::rules::view::View;

pub(super) const GROUP: &str = "kubernetes";

const VERSION: Check = Check {
    group: GROUP,
    name: "the API server is of a version that is served",
    hint: "upgrade the cluster to Kubernetes 1.30: tokens of older ones do not name their node, so \
           that adit control cannot tell nodes apart, and daemons are not kept to their own pods",
    link: "https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/",
};
const RIGHTS: Check = Check {
    group: GROUP,
    name: "what must be allowed is",
    hint: "let an administrator do this, or grant it with a Role or ClusterRole",
    link: "https://kubernetes.io/docs/reference/access-authn-authz/rbac/",
};
const KERNELS: Check = Check {
    group: GROUP,
    name: "nodes have a kernel that can capture",
    hint: "upgrade those nodes to Linux 5.14 or newer; `adit check --node-local` on a node tries what \
           its kernel really can",
    link: "README.md#ports-and-privileges",
};
const RUNTIMES: Check = Check {
    group: GROUP,
    name: "nodes have a container runtime that executes CNI plugins",
    hint: "use containerd or CRI-O: without the plugin, pods start before they are captured",
    link: "README.md#no-pod-starts-uncaptured",
};

/// The first version whose tokens name their node unless told otherwise.
const FIRST: (u32, u32) = (1, 30);
/// The first kernel with all that is needed.
const KERNEL: (u32, u32) = (5, 14);

pub(crate) fn check(view: &View<'_>) -> Vec<Finding> {
    let cluster = view.cluster;
    let mut findings = vec![version(&cluster.server)];
    findings.extend(cluster.rights.iter().map(rights));
    findings.push(match &cluster.nodes {
        Ok(nodes) => kernels(nodes),
        Err(why) => KERNELS.skip(why),
    });
    findings.push(match &cluster.nodes {
        Ok(nodes) => runtimes(nodes),
        Err(why) => RUNTIMES.skip(why),
    });
    findings
}

fn version(server: &str) -> Finding {
    match pair(server.trim_start_matches('v')) {
        Some(version) if version >= FIRST => VERSION.pass(server),
        Some(_) => VERSION.fail(server),
        None => VERSION.warn(format!("{server:?} is no version")),
    }
}

fn rights(rights: &Rights) -> Finding {
    let Rights {
        who,
        purpose,
        granted,
    } = rights;
    let granted = match granted {
        Ok(granted) => granted,
        Err(why) => return RIGHTS.skip(format!("{who}, to {purpose}: {why}")),
    };
    let missing = granted.iter().filter(|(_, granted)| !granted);
    let missing: Vec<_> = missing.map(|(right, _)| right.clone()).collect();
    RIGHTS.none(
        State::Fail,
        missing,
        format!("{who} may {purpose}"),
        |many| format!("{who} lacks {} to {purpose}", count(many, "right")),
    )
}

/// Whether a node is one that daemons run on, by what the manifests say.
pub(crate) fn is_linux(node: &Node) -> bool {
    let is = |key: &str, value: &str| node.labels.get(key).is_some_and(|label| **label == *value);
    let linux = node.labels.get("kubernetes.io/os");
    linux.is_none_or(|os| **os == *"linux")
        && !is("type", "virtual-kubelet")
        && !is("eks.amazonaws.com/compute-type", "fargate")
}

/// Distributions bring features to older kernels, so that a version is a hint and no more; their
/// kernels say so by a name of their own.
fn kernels(nodes: &[Node]) -> Finding {
    let linux = || nodes.iter().filter(|node| is_linux(node));
    let old = |node: &&Node| pair(&node.kernel).is_none_or(|version| version < KERNEL);
    let named: Vec<_> = linux().filter(old).collect();
    let patched = named.iter().all(|node| node.kernel.contains(".el"));
    let state = if patched { State::Warn } else { State::Fail };
    let item = |node: &&Node| format!("{}: {}", node.name, node.kernel);
    KERNELS.none(
        state,
        named.iter().map(item).collect(),
        count(linux().count(), "node"),
        |many| format!("{} with a kernel older than 5.14", count(many, "node")),
    )
}

fn runtimes(nodes: &[Node]) -> Finding {
    let linux = || nodes.iter().filter(|node| is_linux(node));
    let known = |node: &&Node| {
        let runtime = node.runtime.split("://").next();
        runtime.is_some_and(|name| matches!(name, "containerd" | "cri-o" | ""))
    };
    let other = linux().filter(|node| !known(node));
    let mut kinds: Vec<_> = linux().map(|node| node.runtime.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    RUNTIMES.none(
        State::Warn,
        other
            .map(|node| format!("{}: {}", node.name, node.runtime))
            .collect(),
        kinds.join(", "),
        |many| format!("{} with another runtime", count(many, "node")),
    )
}

/// The first two numbers of a version.
fn pair(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let digits = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_digit());
        part[..end.unwrap_or(part.len())].parse().ok()
    };
    Some((digits(parts.next()?)?, digits(parts.next()?)?))
}
