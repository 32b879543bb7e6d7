//! The cluster itself, and its networks.

use super::*;

#[test]
fn the_cluster_must_be_new_enough_and_let_us() {
    let server = |version: &str| in_cluster(|cluster| cluster.server = version.to_owned());
    changed(
        &server("v1.30.2-gke.100"),
        "the API server is",
        State::Pass,
        &["v1.30.2"],
    );
    changed(
        &server("v1.29.9"),
        "the API server is",
        State::Fail,
        &["v1.29.9"],
    );
    changed(&server("main"), "the API server is", State::Warn, &["main"]);
    let rights = |granted| {
        in_cluster(|cluster| {
            cluster.rights = vec![Rights {
                who: "this account".to_owned(),
                purpose: "install Adit",
                granted,
            }];
        })
    };
    let lacks = Ok(vec![
        ("create namespaces".to_owned(), true),
        ("create daemonsets.apps".to_owned(), false),
    ]);
    changed(
        &rights(lacks),
        "what must be allowed",
        State::Fail,
        &["this account lacks 1 right", "create daemonsets"],
    );
    changed(
        &rights(Err("forbidden".to_owned())),
        "what must be allowed",
        State::Skipped,
        &["forbidden"],
    );
    let kernel = |version: &str| {
        let mut old = node("n2");
        old["status"]["nodeInfo"]["kernelVersion"] = json!(version);
        old
    };
    check(
        &[kernel("5.10.0-28-amd64")],
        "nodes have a kernel",
        State::Fail,
        &["n2: 5.10.0"],
    );
    check(
        &[kernel("4.18.0-553.el8.x86_64")],
        "nodes have a kernel",
        State::Warn,
        &["4.18"],
    );
    check(
        &[kernel("5.14.0")],
        "nodes have a kernel",
        State::Pass,
        &["2 nodes"],
    );
    let mut docker = node("n2");
    docker["status"]["nodeInfo"]["containerRuntimeVersion"] = json!("docker://27.0.1");
    check(
        &[docker],
        "nodes have a container runtime",
        State::Warn,
        &["n2: docker://27"],
    );
}

fn cilium(settings: Value) -> Vec<Value> {
    let mut set = workload(
        "DaemonSet",
        "cilium",
        "quay.io/cilium/cilium:v1.18.0@sha256:00",
        json!({}),
    );
    set["metadata"]["namespace"] = json!("kube-system");
    let map = json!({
        "kind": "ConfigMap", "metadata": { "namespace": "kube-system", "name": "cilium-config" },
        "data": settings,
    });
    vec![set, map]
}

#[test]
fn networks_that_do_not_go_with_a_mesh_are_told() {
    let exclusive = "the pod network leaves";
    let services = "connections to services";
    check(
        &cilium(json!({ "cni-exclusive": "false" })),
        exclusive,
        State::Pass,
        &["Cilium"],
    );
    check(
        &cilium(json!({})),
        "the pod network is known",
        State::Pass,
        &["Cilium"],
    );
    check(
        &cilium(json!({ "cni-exclusive": "true" })),
        exclusive,
        State::Fail,
        &["cni-exclusive"],
    );
    let replaced = json!({ "kube-proxy-replacement": "true" });
    check(
        &cilium(replaced),
        services,
        State::Warn,
        &["kube-proxy-replacement"],
    );
    check(
        &cilium(json!({ "bpf-lb-sock": "true" })),
        services,
        State::Warn,
        &["bpf-lb-sock"],
    );
    let off = json!({ "kube-proxy-replacement": "true", "bpf-lb-sock": "false" });
    check(&cilium(off), services, State::Pass, &[]);
    let hosts = json!({ "kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true" });
    check(&cilium(hosts), services, State::Pass, &[]);
    check(
        &cilium(json!({ "enable-wireguard": "true" })),
        "packets are not",
        State::Warn,
        &["wireguard"],
    );
    let felix = |spec: Value| vec![json!({ "kind": "FelixConfiguration", "spec": spec })];
    check(
        &felix(json!({ "bpfEnabled": true })),
        services,
        State::Warn,
        &["Calico"],
    );
    check(
        &felix(json!({ "bpfEnabled": false })),
        services,
        State::Pass,
        &[],
    );
    let off = json!({ "bpfEnabled": true, "bpfConnectTimeLoadBalancing": "Disabled" });
    check(&felix(off), services, State::Pass, &["Calico"]);
    let set = |name: &str, image: &str| {
        let mut set = workload("DaemonSet", name, image, json!({}));
        set["metadata"]["namespace"] = json!("kube-system");
        set
    };
    check(
        &[set("kube-multus-ds", "multus-cni:4")],
        "pods have one network",
        State::Warn,
        &["kube-multus-ds"],
    );
    let mut aws = set(
        "aws-node",
        "602401143452.dkr.ecr.eu-west-1.amazonaws.com/amazon-k8s-cni:v1.19",
    );
    check(
        &[aws.clone()],
        "the pod network is known",
        State::Pass,
        &["AWS VPC CNI"],
    );
    aws["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{ "name": "ENABLE_POD_ENI", "value": "true" }]);
    check(
        &[aws],
        "no security groups",
        State::Warn,
        &["ENABLE_POD_ENI"],
    );
    let ztunnel = set("ztunnel", "istio/ztunnel:1.31");
    check(
        std::slice::from_ref(&ztunnel),
        "no other mesh",
        State::Warn,
        &["kube-system/ztunnel"],
    );
    let mut daemon = workload(
        "DaemonSet",
        "adit-node",
        "adit:0.1.0",
        json!({ "desiredNumberScheduled": 2, "numberReady": 2 }),
    );
    let words = json!([
        "node",
        "--ca=https://adit-control:1",
        "--enrol-label=istio.io/dataplane-mode=ambient"
    ]);
    daemon["spec"]["template"]["spec"]["containers"][0]["args"] = words;
    let mut facts = facts(&[sound(), vec![ztunnel]].concat());
    let label = ("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
    facts.told.settings.enrol_labels.push(label);
    let sets = cluster_of(&mut facts).daemon_sets.as_mut().unwrap();
    sets.retain(|set| set.name != "adit-node");
    sets.push(read::<shape::Controller>(&daemon).fact());
    changed(&facts, "no other mesh", State::Fail, &["both take"]);
}
