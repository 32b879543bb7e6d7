//! Labels, and the pods that follow from them.

use super::*;

#[test]
fn labels_that_do_nothing_are_told() {
    let labelled = |name: &str, labels: Value| vec![namespace(name, labels)];
    let typo = labelled("other", json!({ "adit.mesh/mode": "ambiet" }));
    check(
        &typo,
        "labels of namespaces",
        State::Fail,
        &["other: adit.mesh/mode=ambiet"],
    );
    let out = labelled("other", json!({ "adit.mesh/mode": "none" }));
    check(&out, "labels of namespaces", State::Pass, &[]);
    check(
        &labelled("kube-system", on()),
        "excluded namespaces",
        State::Fail,
        &["kube-system"],
    );
    let key = labelled("other", json!({ "adit.mesh/node": "ambient" }));
    check(&key, "labels are known", State::Warn, &["adit.mesh/node"]);
    let both = labelled(
        "shop",
        json!({ "adit.mesh/mode": "ambient", "istio.io/dataplane-mode": "ambient" }),
    );
    check(&both, "namespaces are of one mesh", State::Fail, &["shop"]);
    let field = labelled("other", json!({ "istio.io/dataplane-mode": "ambient" }));
    check(&field, "the field's label", State::Warn, &["other"]);
    let injected = labelled(
        "shop",
        json!({ "adit.mesh/mode": "ambient", "istio-injection": "enabled" }),
    );
    check(
        &injected,
        "enrolled namespaces get",
        State::Warn,
        &["shop: istio-injection"],
    );
    let off = labelled(
        "shop",
        json!({ "adit.mesh/mode": "ambient", "istio-injection": "disabled", "istio.io/rev": "x" }),
    );
    check(&off, "enrolled namespaces get", State::Pass, &[]);
    let mut linkerd = namespace("shop", on());
    linkerd["metadata"]["annotations"] = json!({ "linkerd.io/inject": "enabled" });
    check(
        &[linkerd],
        "enrolled namespaces get",
        State::Warn,
        &["linkerd.io/inject"],
    );
    let odd = captured(
        "web",
        json!({ "metadata": { "labels": { "adit.mesh/mode": "on" } } }),
    );
    check(
        &[odd],
        "labels of pods",
        State::Warn,
        &["shop/web: adit.mesh/mode=on"],
    );
}

#[test]
fn pods_that_are_not_captured_are_told() {
    let name = "pods that should";
    let bare = |more: Value| vec![pod("shop", "web", "n1", more)];
    check(
        &bare(json!({})),
        name,
        State::Fail,
        &["shop/web on n1", "1 pod not captured, 1 are"],
    );
    check(
        &bare(json!({ "metadata": { "creationTimestamp": "2026-01-05T19:59:30Z" } })),
        name,
        State::Pass,
        &[],
    );
    check(
        &bare(json!({ "metadata": { "deletionTimestamp": "2026-01-05T19:00:00Z" } })),
        name,
        State::Pass,
        &[],
    );
    check(
        &bare(json!({ "metadata": { "labels": { "adit.mesh/mode": "none" } } })),
        name,
        State::Pass,
        &[],
    );
    check(
        &bare(json!({ "status": { "phase": "Pending" } })),
        name,
        State::Pass,
        &[],
    );
    check(
        &bare(json!({ "status": { "phase": "Succeeded" } })),
        name,
        State::Pass,
        &[],
    );
    let opted = json!({ "metadata": { "labels": { "adit.mesh/mode": "none" } } });
    check(
        &[captured("web", opted)],
        "no pod is called",
        State::Warn,
        &["shop/web on n1: opted_out"],
    );
    let host = json!({ "spec": { "hostNetwork": true } });
    check(
        &bare(host),
        "enrolled namespaces have no pods on",
        State::Warn,
        &["shop/web"],
    );
    let sidecar = json!({ "metadata": { "annotations": { "sidecar.istio.io/status": "{}" } } });
    check(
        &bare(sidecar),
        "enrolled namespaces have no pods with a",
        State::Warn,
        &["shop/web: Istio"],
    );
    let linkerd = json!({ "spec": { "initContainers": [{ "name": "linkerd-proxy" }] } });
    check(
        &[captured("web", linkerd)],
        "enrolled namespaces have no pods with a",
        State::Warn,
        &["Linkerd"],
    );
    let file = json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": "00" } } });
    check(
        &[captured("web", file)],
        "enrolled namespaces have no static",
        State::Fail,
        &["shop/web"],
    );
    let kata = json!({ "spec": { "runtimeClassName": "safe" } });
    check(
        &[captured("web", kata)],
        "pods of the mesh use",
        State::Fail,
        &["runtime kata-qemu"],
    );
    let port = json!({ "spec": { "containers": [{ "name": "a", "ports": [{ "containerPort": 15006 }] }] } });
    check(
        &[captured("web", port)],
        "no application",
        State::Fail,
        &["shop/web: 15006"],
    );
    let sandboxed = json!({ "spec": { "runtimeClassName": "gvisor" } });
    check(
        &bare(sandboxed),
        "enrolled namespaces have no pods of sandboxed",
        State::Warn,
        &["shop/web"],
    );
    let waits = json!({ "status": { "phase": "Pending" } });
    check(
        &bare(waits),
        "pods of the mesh start",
        State::Warn,
        &["shop/web on n1"],
    );
    let pulls = json!({ "status": { "phase": "Pending", "podIPs": [{ "ip": "10.0.0.1" }] } });
    check(&bare(pulls), "pods of the mesh start", State::Pass, &[]);
    // Of others nothing is asked.
    let other = json!({ "spec": { "hostNetwork": true, "runtimeClassName": "safe" } });
    check(&[pod("other", "web", "n1", other)], name, State::Pass, &[]);
}
