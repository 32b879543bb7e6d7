//! The network that pods have, and others who have a hand in it.

use crate::check::facts::Controller;
use crate::check::finding::{Check, Finding, State};
use crate::check::rules::view::View;

pub(super) const GROUP: &str = "network";

const PRIMARY: Check = Check {
    group: GROUP,
    name: "the pod network is known",
    hint: "",
    link: "",
};
const EXCLUSIVE: Check = Check {
    group: GROUP,
    name: "the pod network leaves other CNI plugins in place",
    hint: "set cni.exclusive=false in Cilium's values (cni-exclusive in the ConfigMap cilium-config) and \
           restart its agents: it takes away what others put into the CNI directory, so that pods \
           would start uncaptured",
    link: "README.md#no-pod-starts-uncaptured",
};
const SERVICES: Check = Check {
    group: GROUP,
    name: "connections to services are seen as such",
    hint: "Cilium: set socketLB.hostNamespaceOnly=true (bpf-lb-sock-hostns-only). Calico: set \
           bpfConnectTimeLoadBalancing to Disabled. Otherwise an endpoint is chosen inside the pod before \
           Adit sees the connection: it is encrypted and judged all the same, but Adit's own choice of \
           endpoints and the service's name in records and metrics are lost",
    link: "https://kubernetes.io/docs/reference/networking/virtual-ips/",
};
const MESHES: Check = Check {
    group: GROUP,
    name: "no other mesh captures pods",
    hint: "let each namespace be of one mesh: both take the ports 15001, 15006 and 15008 in a pod, and \
           the second one to come fails",
    link: "README.md#ports-and-privileges",
};
const ENCRYPTION: Check = Check {
    group: GROUP,
    name: "packets are not encrypted twice",
    hint: "choose one: the network's encryption is of no more use for pods of the mesh, and costs \
           processor time",
    link: "README.md#use-it",
};
const INTERFACES: Check = Check {
    group: GROUP,
    name: "pods have one network",
    hint: "TCP on secondary interfaces is captured as well, and NetworkPolicies do not bind it there; opt \
           such pods out with the label adit.mesh/mode=none where that is not meant",
    link: "README.md#what-it-does-not-do",
};
const FIREWALLS: Check = Check {
    group: GROUP,
    name: "no security groups of the cloud bind single pods",
    hint: "let each security group that is bound to pods allow TCP 15008 from and to the others, and \
           the probes of its nodes",
    link: "README.md#ports-and-privileges",
};

/// Networks by a word of their image.
const NETWORKS: [(&str, &str); 13] = [
    ("cilium", "Cilium"),
    ("calico", "Calico"),
    ("amazon-k8s-cni", "AWS VPC CNI"),
    ("azure-cns", "Azure CNI"),
    ("flannel", "Flannel"),
    ("antrea", "Antrea"),
    ("kube-router", "kube-router"),
    ("weave", "Weave Net"),
    ("kindnet", "kindnet"),
    ("ovn-kubernetes", "OVN-Kubernetes"),
    ("kube-ovn", "Kube-OVN"),
    ("netd", "GKE"),
    ("terway", "Terway"),
];
/// Networks whose image's name says less than their own.
const BY_NAME: [(&str, &str); 3] = [
    ("anetd", "GKE Dataplane V2 (Cilium)"),
    ("ovnkube-node", "OVN-Kubernetes"),
    ("kube-multus-ds", ""),
];

pub(crate) fn check(view: &View<'_>) -> Vec<Finding> {
    let sets = match &view.cluster.daemon_sets {
        Ok(sets) => sets,
        Err(why) => {
            let all = [PRIMARY, EXCLUSIVE, SERVICES, MESHES];
            return all.iter().map(|check| check.skip(why)).collect();
        }
    };
    let mut findings = vec![
        primary(sets),
        exclusive(view),
        services(view),
        meshes(view, sets),
    ];
    findings.extend(encryption(view));
    let named = |word: &str| {
        let mut sets = sets.iter();
        sets.find(|set| set.name.contains(word) || image(set, word))
    };
    if let Some(multus) = named("multus") {
        let found = format!("{} gives pods further interfaces", place(multus));
        findings.push(INTERFACES.warn(found));
    }
    let aws = named("amazon-k8s-cni");
    let branches = aws.filter(|set| {
        set.variables
            .get("ENABLE_POD_ENI")
            .is_some_and(|v| v == "true")
    });
    if branches.is_some() {
        findings.push(
            FIREWALLS.warn(
                "the AWS VPC CNI gives pods interfaces with security groups (ENABLE_POD_ENI)",
            ),
        );
    }
    findings
}

/// Whether an image's last part has this word in it.
fn image(set: &Controller, word: &str) -> bool {
    let mut images = set.images.iter();
    images.any(|image| {
        let image = image.split('@').next().unwrap_or_default();
        image
            .rsplit('/')
            .next()
            .is_some_and(|name| name.contains(word))
    })
}

fn place(set: &Controller) -> String {
    format!("DaemonSet {}/{}", set.namespace, set.name)
}

fn primary(sets: &[Controller]) -> Finding {
    let by_name = BY_NAME.iter().filter(|(_, says)| !says.is_empty());
    let by_name = by_name.filter(|(name, _)| sets.iter().any(|set| set.name == *name));
    let by_image = NETWORKS
        .iter()
        .filter(|(word, _)| sets.iter().any(|set| image(set, word)));
    let mut found: Vec<_> = by_name.chain(by_image).map(|(_, says)| *says).collect();
    found.dedup();
    PRIMARY.pass(match found.is_empty() {
        true => "none of those that something is known of".to_owned(),
        false => found.join(", "),
    })
}

/// A setting of Cilium's.
fn cilium<'v>(view: &View<'v>, key: &str) -> Option<&'v str> {
    let settings = view.cluster.cilium.as_ref().ok()?.as_ref()?;
    settings.get(key).map(String::as_str)
}

fn is_on(value: Option<&str>) -> bool {
    value.is_some_and(|value| matches!(value.trim(), "true" | "1" | "strict"))
}

fn exclusive(view: &View<'_>) -> Finding {
    match &view.cluster.cilium {
        Err(why) => EXCLUSIVE.skip(why),
        Ok(_) if is_on(cilium(view, "cni-exclusive")) => {
            EXCLUSIVE.fail("Cilium has cni-exclusive=true")
        }
        Ok(Some(_)) => EXCLUSIVE.pass("Cilium does, by cni-exclusive"),
        Ok(None) => EXCLUSIVE.pass("nothing is known that does not"),
    }
}

fn services(view: &View<'_>) -> Finding {
    let (cilium_said, felix) = (&view.cluster.cilium, &view.cluster.felix);
    let in_sockets = is_on(cilium(view, "bpf-lb-sock"))
        || is_on(cilium(view, "kube-proxy-replacement")) && cilium(view, "bpf-lb-sock").is_none();
    let on_hosts_only = is_on(cilium(view, "bpf-lb-sock-hostns-only"));
    if in_sockets && !on_hosts_only {
        return SERVICES.warn(
            "Cilium resolves services inside of pods (kube-proxy-replacement or bpf-lb-sock, without \
             bpf-lb-sock-hostns-only)",
        );
    }
    match (cilium_said, felix) {
        (Err(why), _) | (_, Err(why)) => SERVICES.skip(why),
        (_, Ok(Some(felix))) if felix.ebpf && felix.connect_time => {
            SERVICES.warn("Calico's eBPF data plane resolves services inside of pods")
        }
        (_, Ok(Some(felix))) if felix.ebpf => {
            SERVICES.pass("Calico's eBPF data plane leaves that to packets")
        }
        _ => SERVICES.pass("services are resolved outside of pods"),
    }
}

fn meshes(view: &View<'_>, sets: &[Controller]) -> Finding {
    let named = |names: &[&str]| {
        let ours = &view.facts.place.namespace;
        let other = sets.iter().filter(|set| set.namespace != *ours);
        let other = other.filter(|set| names.contains(&set.name.as_str()));
        other.map(place).collect::<Vec<_>>()
    };
    let mut found = named(&["ztunnel", "kmesh", "ztunnel-cilium"]);
    if is_on(cilium(view, "enable-ztunnel")) {
        found.push("Cilium with enable-ztunnel".to_owned());
    }
    let field = "istio.io/dataplane-mode".to_owned();
    let mut shared = view.mesh.settings.enrol_labels.iter();
    // Then both are asked for the same namespaces.
    let state = match shared.any(|(key, _)| *key == field) {
        true => State::Fail,
        false => State::Warn,
    };
    MESHES.none(state, found, "none is known here", |_| match state {
        State::Fail => format!("another mesh is installed, and both take the label {field}"),
        _ => "another mesh is installed beside".to_owned(),
    })
}

fn encryption(view: &View<'_>) -> Option<Finding> {
    let on = |key: &str| is_on(cilium(view, key));
    let by = ["enable-wireguard", "enable-ipsec"];
    let by = by.into_iter().find(|key| on(key))?;
    Some(ENCRYPTION.warn(format!("Cilium encrypts packets between nodes ({by})")))
}
