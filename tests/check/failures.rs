//! An API server that does not answer, or not with everything.

use crate::bed::{Bed, Said, adit, finding};
use crate::support::apiserver::{Call, Fault};

/// Holds that nothing could be checked, and that one line says why.
#[track_caller]
fn unchecked(said: &Said, parts: &[&str]) {
    assert_eq!(said.status, Some(2), "{}{}", said.out, said.err);
    assert_eq!(said.out, "");
    assert!(said.err.starts_with("adit: "), "{}", said.err);
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    for part in parts {
        assert!(said.err.contains(part), "no {part:?} in {}", said.err);
    }
}

#[test]
fn a_server_that_is_away_is_one_clear_error() {
    let mut bed = Bed::sound();
    bed.api.stop();
    let away = bed.check(&[]);
    unchecked(
        &away,
        &["cannot check the cluster", "is it up", "Connection refused"],
    );
    bed.api.resume();
    assert_eq!(bed.check(&[]).status, Some(0), "it was nothing else");
    bed.api.fail("pods", Call::List, 1, Fault::Hangup);
    unchecked(&bed.check(&[]), &["no answer"]);
    bed.api.fail("pods", Call::List, 1, Fault::Half);
    unchecked(&bed.check(&[]), &["no answer"]);
}

#[test]
fn credentials_that_are_not_taken_are_one_clear_error() {
    let bed = Bed::bare(|options| {
        options.tokens.insert("other".to_owned());
    });
    unchecked(
        &bed.check(&[]),
        &["credentials", "Unauthorized", "--kubeconfig"],
    );
}

#[test]
fn a_kubeconfig_that_is_no_use_is_one_clear_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kubeconfig");
    let text = path.to_str().expect("it is text");
    unchecked(
        &adit(&["--kubeconfig", text]),
        &["kubeconfig", text, "give another", "No such file"],
    );
    std::fs::write(&path, "clusters: [").expect("written");
    // The parser shows the place on further lines.
    let malformed = adit(&["--kubeconfig", text]);
    assert_eq!((malformed.status, malformed.out.as_str()), (Some(2), ""));
    for part in [
        "adit: cannot check the cluster",
        "cannot use kubeconfig",
        text,
        "clusters: [",
    ] {
        assert!(malformed.err.contains(part), "{}", malformed.err);
    }
    unchecked(&adit(&[]), &["--kubeconfig"]);
}

#[test]
fn questions_that_make_no_sense_are_told() {
    for (arguments, part) in [
        (&["--pre", "--source", "/tmp"][..], "--source"),
        (&["--node-local", "--source", "/tmp"], "--node-local"),
        (&["--output", "yaml"], "yaml"),
        (&["--post"], "--post"),
        (&["--namespace", "A b"], "--namespace"),
        (&["--trust-domain", "A b"], "--trust-domain"),
    ] {
        let said = adit(arguments);
        assert_eq!(said.status, Some(2), "{arguments:?}");
        assert_eq!(said.out, "");
        assert!(said.err.contains(part), "{}", said.err);
    }
}

#[test]
fn what_is_not_shown_to_us_is_skipped_and_says_why() {
    let bed = Bed::sound();
    for resource in [
        "networkpolicies",
        "serviceaccounts",
        "secrets",
        "daemonsets",
    ] {
        bed.api
            .fail(resource, Call::Any, usize::MAX, Fault::Status(403, None));
    }
    let (status, answer) = bed.findings(&[]);
    assert_eq!(status, Some(0), "{answer:#}");
    for name in [
        "tunnels reach",
        "no exchange of roots",
        "the DaemonSet is there",
    ] {
        let skipped = finding(&answer, name);
        assert_eq!(skipped["state"], "skipped", "{skipped}");
        assert!(
            skipped["found"]
                .as_str()
                .is_some_and(|why| why.contains("403")),
            "{skipped}"
        );
    }
    // Each names the right that is missing, also where it is another object that is not shown.
    for (name, right) in [
        ("tunnels reach", "list networkpolicies.networking.k8s.io"),
        ("no exchange of roots", "get secrets adit-ca in adit-system"),
        ("the DaemonSet is there", "list daemonsets.apps"),
        ("every node", "list daemonsets.apps"),
        ("all is of", "list daemonsets.apps"),
        ("daemons, authority and this check", "list daemonsets.apps"),
    ] {
        let why = &finding(&answer, name)["found"];
        let expect = format!("{right} is not granted");
        assert!(
            why.as_str().is_some_and(|why| why.contains(&expect)),
            "{name}: {why}"
        );
    }
    let all = answer["findings"].as_array().into_iter().flatten();
    for skipped in all.filter(|found| found["state"] == "skipped") {
        let why = skipped["found"].as_str().unwrap_or_default();
        let a_node_s = why.starts_with("a node alone knows them");
        assert!(a_node_s || why.contains("is not granted"), "{skipped}");
    }
    let names = finding(&answer, "namespaces and service accounts");
    assert!(
        names["found"]
            .as_str()
            .is_some_and(|found| found.contains("nothing is known"))
    );
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let bed = Bed::sound();
    bed.api
        .fail("pods", Call::List, 2, Fault::Status(429, Some(1)));
    let (status, answer) = bed.findings(&[]);
    assert_eq!(status, Some(0), "{answer:#}");
    assert_eq!(
        finding(&answer, "pods that should")["found"],
        "2 pods captured"
    );
}

#[test]
fn an_answer_that_is_no_list_is_skipped() {
    let bed = Bed::sound();
    bed.api.put(serde_json::json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": "odd" },
        "spec": { "podSelector": "everything" },
    }));
    let (status, answer) = bed.findings(&[]);
    assert_eq!(status, Some(0), "{answer:#}");
    let tunnels = finding(&answer, "tunnels reach");
    assert_eq!(tunnels["state"], "skipped");
    assert!(
        tunnels["found"]
            .as_str()
            .is_some_and(|why| why.contains("not understood"))
    );
}
