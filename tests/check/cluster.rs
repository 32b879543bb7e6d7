//! What is said of a cluster, and by which exit status.

use serde_json::{Value, json};

use crate::bed::{Bed, finding, namespace, pod};

#[test]
fn a_sound_cluster_passes() {
    let bed = Bed::sound();
    let said = bed.check(&[]);
    assert_eq!(said.status, Some(0), "{}{}", said.out, said.err);
    assert_eq!(said.err, "");
    for part in [
        "kubernetes\n  ✓ the API server is of a version that is served: v1.34.0+fake\n",
        "service account adit-system/adit-node may run a daemon",
        "service account adit-system/adit-control may run the certificate authority",
        "\ninstallation\n  ✓ the DaemonSet is there, and its pods are ready: 1 of 1 are ready\n",
        "✓ pods that should be captured are: 2 pods captured",
        "- the certificates of nodes are in force: skipped: ",
        " 0 to look at, 0 failed, 1 skipped\n",
    ] {
        assert!(said.out.contains(part), "no {part:?} in {}", said.out);
    }
    assert!(!said.out.contains("this node"), "{}", said.out);
    // It looks and touches nothing, and no key is read.
    for request in bed.api.requests() {
        let review = request.uri.ends_with("accessreviews");
        assert!(request.method == "GET" || review, "{request:?}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_mend() {
    let bed = Bed::sound();
    bed.api.put(pod("web", false));
    bed.api
        .put(namespace("typo", json!({ "adit.mesh/mode": "ambiet" })));
    bed.api.put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": "only-http" },
        "spec": { "podSelector": {}, "ingress": [{ "ports": [{ "port": 8080 }] }] },
    }));
    bed.api.put(json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "namespace": "shop", "name": "callers" },
        "spec": { "rules": [{ "from": [{ "source": { "principals": ["acme.org/ns/shop/sa/web"] } }] }] },
    }));
    bed.root(-3);
    let said = bed.check(&[]);
    assert_eq!(said.status, Some(1), "{}{}", said.out, said.err);
    assert_eq!(said.err, "");
    for part in [
        "✗ pods that should be captured are: 1 pod not captured, 1 are\n      shop/web on n1\n    mend: ",
        "      typo: adit.mesh/mode=ambiet\n    mend: write adit.mesh/mode=ambient",
        "shop/only-http: ingress[0] lets shop/db in from shop/db, and not on port 15008",
        "    see: https://kubernetes.io/docs/concepts/services-networking/network-policies/",
        "AuthorizationPolicy shop/callers: rules[0].from[0]: \"acme.org/ns/shop/sa/web\" is not of cluster.local",
        "no root is in force",
        " 5 failed,",
    ] {
        assert!(said.out.contains(part), "no {part:?} in {}", said.out);
    }

    let (status, answer) = bed.findings(&[]);
    assert_eq!(status, Some(1));
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"));
    let typo = finding(&answer, "labels of namespaces");
    assert_eq!(typo["group"], "labels");
    assert_eq!(typo["state"], "fail");
    assert_eq!(typo["items"], json!(["typo: adit.mesh/mode=ambiet"]));
    for field in ["found", "hint", "link"] {
        assert!(
            typo[field].as_str().is_some_and(|text| !text.is_empty()),
            "{typo}"
        );
    }
}

#[test]
fn what_only_wants_looking_at_fails_nothing() {
    let bed = Bed::sound();
    bed.root(20);
    let said = bed.check(&[]);
    assert_eq!(said.status, Some(0), "{}", said.out);
    assert!(
        said.out.contains("! the roots are published"),
        "{}",
        said.out
    );
    let (status, answer) = bed.findings(&[]);
    assert_eq!((status, &answer["ok"]), (Some(0), &Value::Bool(true)));
}

#[test]
fn the_flags_say_what_a_daemon_would_be_told() {
    let bed = Bed::bare(|_| {});
    bed.api.put(namespace(
        "shop",
        json!({ "istio.io/dataplane-mode": "ambient" }),
    ));
    let enrolled = |arguments: &[&str]| {
        let (_, answer) = bed.findings(&[&["--pre"], arguments].concat());
        finding(&answer, "labels of namespaces")["found"].clone()
    };
    assert_eq!(enrolled(&[]), "0 namespaces enrolled");
    let label = ["--enrol-label", "istio.io/dataplane-mode=ambient"];
    assert_eq!(enrolled(&label), "1 namespace enrolled");
    let without = [&label[..], &["--exclude-namespace", "shop"]].concat();
    let (status, answer) = bed.findings(&[&["--pre"], &without[..]].concat());
    assert_eq!(status, Some(1));
    assert_eq!(
        finding(&answer, "excluded namespaces")["items"],
        json!(["shop"])
    );
}

#[test]
fn before_an_installation_it_is_asked_whether_it_may_be() {
    let bed = Bed::bare(|_| {});
    let said = bed.check(&["--pre"]);
    assert_eq!(said.status, Some(0), "{}{}", said.out, said.err);
    assert!(
        said.out.contains("this account may install Adit"),
        "{}",
        said.out
    );
    assert!(!said.out.contains("installation\n"), "{}", said.out);

    // Without --pre, that nothing is installed is what is wrong.
    let said = bed.check(&[]);
    assert_eq!(said.status, Some(1));
    assert!(
        said.out
            .contains("there is no DaemonSet adit-node in adit-system"),
        "{}",
        said.out
    );

    bed.api
        .options(|options| drop(options.denied.insert("create daemonsets".to_owned())));
    let said = bed.check(&["--pre"]);
    assert_eq!(said.status, Some(1), "{}", said.out);
    let part =
        "this account lacks 1 right to install Adit\n      create daemonsets.apps in adit-system\n";
    assert!(said.out.contains(part), "{}", said.out);
}

#[test]
fn a_cluster_is_read_in_pages() {
    let bed = Bed::sound();
    bed.api
        .load((0..1203).map(|i| pod(&format!("p{i}"), i % 2 == 0)));
    let (status, answer) = bed.findings(&[]);
    assert_eq!(status, Some(1));
    let captured = finding(&answer, "pods that should");
    assert_eq!(captured["items"].as_array().map(Vec::len), Some(601));
    assert_eq!(captured["found"], "601 pods not captured, 604 are");
    let said = bed.check(&[]);
    assert!(
        said.out.contains("      and 591 more (all with -o json)\n"),
        "{}",
        said.out
    );
}
