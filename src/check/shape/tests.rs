//! The API's JSON, and what is left of it. What rules say of it is in `rules/tests.rs`.

use serde_json::json;

use super::*;
use crate::check::facts::{PeerOf, PortRange};

fn network_policy(spec: Value) -> facts::NetworkPolicy {
    let object = json!({ "metadata": { "namespace": "a", "name": "b" }, "spec": spec });
    serde_json::from_value::<NetworkPolicy>(object)
        .unwrap()
        .fact()
}

#[test]
fn a_network_policy_says_what_it_is_about() {
    let check = |spec: Value, ingress: Option<usize>, egress: Option<usize>| {
        let read = network_policy(spec.clone());
        let rules = [&read.ingress, &read.egress].map(|side| side.as_ref().map(Vec::len));
        assert_eq!(rules, [ingress, egress], "{spec}");
    };
    check(json!({ "podSelector": {} }), Some(0), None);
    check(json!({ "egress": [{}] }), Some(0), Some(1));
    check(json!({ "policyTypes": ["Egress"] }), None, Some(0));
    check(
        json!({ "policyTypes": ["Ingress"], "egress": [{}] }),
        Some(0),
        None,
    );
    check(
        json!({ "policyTypes": ["Ingress", "Egress"], "ingress": [{}, {}] }),
        Some(2),
        Some(0),
    );
    check(
        json!({ "policyTypes": null, "ingress": null }),
        Some(0),
        None,
    );
}

#[test]
fn ports_and_peers_are_read() {
    let port = |port: Value| {
        let read = network_policy(json!({ "ingress": [{ "ports": [port] }] }));
        read.ingress.unwrap()[0].ports[0]
    };
    assert_eq!(port(json!({ "port": 80 })), PortRange::Tcp(80, 80));
    let range = json!({ "protocol": "TCP", "port": 80, "endPort": 90 });
    assert_eq!(port(range), PortRange::Tcp(80, 90));
    assert_eq!(port(json!({ "protocol": "TCP" })), PortRange::Tcp(0, 65535));
    assert_eq!(port(json!({ "port": "http" })), PortRange::Named);
    let udp = json!({ "protocol": "UDP", "port": 80 });
    assert_eq!(port(udp), PortRange::Other);
    assert_eq!(port(json!({ "port": 70000 })), PortRange::Other);

    let peer = |peer: Value| {
        let read = network_policy(json!({ "ingress": [{ "from": [peer] }] }));
        read.ingress.unwrap().remove(0).peers.remove(0)
    };
    let own = peer(json!({ "podSelector": {} }));
    assert!(matches!(
        own,
        PeerOf::Pods {
            namespaces: None,
            ..
        }
    ));
    let any = peer(json!({ "namespaceSelector": {} }));
    assert!(matches!(
        any,
        PeerOf::Pods {
            namespaces: Some(_),
            ..
        }
    ));
    let block =
        peer(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "x"] } }));
    let PeerOf::Block { within, except } = block else {
        panic!("{block:?}")
    };
    assert_eq!(within.to_string(), "10.0.0.0/8");
    assert_eq!(except.len(), 1);
}

#[test]
fn a_pod_is_what_the_api_says() {
    let object = json!({
        "metadata": {
            "namespace": "shop", "name": "web", "labels": null,
            "annotations": { "ambient.istio.io/redirection": "enabled" },
            "creationTimestamp": "2026-01-05T08:00:00Z", "deletionTimestamp": "2026-01-05T09:00:00Z",
        },
        "spec": {
            "nodeName": "n1", "hostNetwork": null, "containers": [
                { "name": "a", "image": "a:1", "ports": [{ "containerPort": 80, "name": "http" }] },
                { "name": "b", "image": "b:1" },
            ],
            "initContainers": null,
        },
        "status": {
            "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }, { "ip": "?" }],
            "conditions": [{ "type": "Ready", "status": "False" }],
        },
    });
    let read = |ours: &str| {
        serde_json::from_value::<Pod>(object.clone())
            .unwrap()
            .fact(ours)
    };
    let pod = read("adit-system");
    assert_eq!(pod.full(), "shop/web");
    assert!(pod.marked && pod.terminating);
    assert!(!pod.ready && !pod.host_network && !pod.sidecar && !pod.from_file);
    assert_eq!((pod.ips.len(), &pod.ports[..]), (2, &[80][..]));
    assert_eq!(pod.phase, Phase::Running);
    assert_eq!(pod.images, Vec::<String>::new());
    assert_eq!(read("shop").images, ["a:1", "b:1"]);
    let at = pod.created.unwrap();
    assert!(pod.older_than(Duration::from_secs(60), at + Duration::from_secs(60)));
    assert!(!pod.older_than(Duration::from_secs(61), at + Duration::from_secs(60)));
    let nothing: Pod = serde_json::from_value(json!({})).unwrap();
    assert_eq!(nothing.fact("").full(), "/");
}

#[test]
fn roots_that_cannot_be_read_are_no_panic() {
    assert_eq!(roots(""), Vec::new());
    assert_eq!(roots("no PEM"), Vec::new());
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(roots(broken)[0].ends, None);
}

#[test]
fn odd_json_is_no_panic() {
    for odd in [
        json!(null),
        json!([]),
        json!("x"),
        json!({ "spec": 1, "metadata": "x" }),
    ] {
        let _ = felix(&odd);
        let _ = foreign("x", &odd);
        let _ = authorization(&odd);
        let _ = peer_authentication(&odd);
        let _ = serde_json::from_value::<Pod>(odd.clone()).map(|pod| pod.fact(""));
        let _ = serde_json::from_value::<Controller>(odd).map(Controller::fact);
    }
}
