//! What is installed, how it is set, and what it is trusted by.

use super::*;

#[test]
fn an_installation_that_is_not_whole_is_told() {
    let set = |status| workload("DaemonSet", "adit-node", "adit:0.1.0", status);
    let half = set(json!({ "desiredNumberScheduled": 2, "numberReady": 1 }));
    check(&[half], "the DaemonSet is there", State::Fail, &["1 of 2"]);
    let none = set(json!({ "desiredNumberScheduled": 0, "numberReady": 0 }));
    check(
        &[none],
        "the DaemonSet is there",
        State::Fail,
        &["nodeSelector"],
    );
    let absent = in_cluster(|cluster| cluster.daemon_sets = Ok(Vec::new()));
    changed(
        &absent,
        "the DaemonSet is there",
        State::Fail,
        &["adit-node in adit-system"],
    );
    check(&[node("n3")], "every node has", State::Fail, &["n3"]);
    let mut windows = node("n3");
    windows["metadata"]["labels"]["kubernetes.io/os"] = json!("windows");
    let mut down = node("n4");
    down["status"]["conditions"][0]["status"] = json!("False");
    check(
        &[windows, down],
        "every node has",
        State::Pass,
        &["2 nodes"],
    );
    let control = |ready: u64| {
        workload(
            "Deployment",
            "adit-control",
            "adit:0.1.0",
            json!({ "readyReplicas": ready }),
        )
    };
    check(
        &[control(0)],
        "the certificate authority",
        State::Fail,
        &["0 of 2"],
    );
    check(
        &[control(1)],
        "the certificate authority",
        State::Warn,
        &["1 of 2"],
    );
    let undefined = in_cluster(|cluster| {
        cluster.definitions = Ok(vec!["authorizationpolicies.security.istio.io".to_owned()])
    });
    changed(
        &undefined,
        "the policy kinds",
        State::Fail,
        &["peerauthentications"],
    );
    let unguarded = in_cluster(|cluster| cluster.admission = Ok(vec!["other".to_owned()]));
    changed(
        &unguarded,
        "daemons are kept",
        State::Warn,
        &["no ValidatingAdmissionPolicy"],
    );
    let mut newer = ours("adit-node", "n2");
    newer["spec"]["containers"][0]["image"] = json!("adit:0.2.0");
    check(
        &[newer],
        "all is of one version",
        State::Warn,
        &["adit:0.2.0: adit-node-n2 on n2", "2 images"],
    );
    let program = with(|facts| facts.version = "0.3.0");
    changed(
        &program,
        "all is of one version",
        State::Warn,
        &["this program is 0.3.0"],
    );
}

#[test]
fn the_daemons_settings_count() {
    let daemon = |env: Value, args: Value| {
        let mut set = workload(
            "DaemonSet",
            "adit-node",
            "adit:0.1.0",
            json!({ "desiredNumberScheduled": 2, "numberReady": 2 }),
        );
        let container = &mut set["spec"]["template"]["spec"]["containers"][0];
        container["env"] = env;
        container["args"] = args;
        set
    };
    let name = "daemons, authority and this check";
    let ca = "--ca=https://adit-control:15012";
    let other = daemon(
        json!([{ "name": "ADIT_TRUST_DOMAIN", "value": "acme.org" }]),
        json!([ca]),
    );
    let mut found = facts(&sound());
    let cluster = cluster_of(&mut found);
    let sets = cluster.daemon_sets.as_mut().unwrap();
    *sets = vec![read::<shape::Controller>(&other).fact()];
    assert_eq!(finding(&found, name).state, State::Fail);
    assert_eq!(finding(&found, "the roots are of").state, State::Fail);

    let excluded = daemon(
        json!([]),
        json!(["node", ca, "--exclude-namespace", "kube-system,other"]),
    );
    check(
        &[excluded],
        name,
        State::Warn,
        &["--exclude-namespace", "kube-system,other"],
    );
    let same = daemon(
        json!([{ "name": "ADIT_TRUST_DOMAIN", "value": "$(DOMAIN)" }]),
        json!([ca]),
    );
    check(&[same], name, State::Pass, &["cluster.local"]);
    let istiod = daemon(
        json!([]),
        json!(["--ca", "https://istiod.istio-system:15012"]),
    );
    let mut found = facts(&sound());
    let cluster = cluster_of(&mut found);
    cluster.daemon_sets = Ok(vec![read::<shape::Controller>(&istiod).fact()]);
    cluster.deployments = Ok(Vec::new());
    cluster.roots = Ok(None);
    changed(
        &found,
        "the certificate authority",
        State::Pass,
        &["istiod"],
    );
}

#[test]
fn roots_that_end_are_told_in_time() {
    let roots = |ends: &[Option<i64>]| {
        in_cluster(|cluster| {
            let root = |days: &Option<i64>| Root {
                subject: "CN=one".to_owned(),
                ends: days.map(|days| match u32::try_from(days) {
                    Ok(days) => now() + days * DAY,
                    Err(_) => now() - DAY,
                }),
                trust_domain: None,
            };
            cluster.roots = Ok(Some(ends.iter().map(root).collect()));
        })
    };
    let name = "the roots are published";
    changed(&roots(&[Some(100)]), name, State::Pass, &["100 days"]);
    changed(
        &roots(&[Some(20), Some(900)]),
        name,
        State::Warn,
        &["CN=one: ends in 20 days"],
    );
    changed(
        &roots(&[Some(-1), Some(900)]),
        name,
        State::Warn,
        &["is over"],
    );
    changed(
        &roots(&[Some(-1)]),
        name,
        State::Fail,
        &["no root is in force"],
    );
    changed(&roots(&[None]), name, State::Fail, &["cannot be read"]);
    changed(&roots(&[]), name, State::Fail, &["no certificate"]);
    let gone = in_cluster(|cluster| cluster.roots = Ok(None));
    changed(&gone, name, State::Fail, &["adit-system/adit-ca-root"]);
    let foreign = in_cluster(|cluster| {
        cluster.roots.as_mut().unwrap().as_mut().unwrap()[0].trust_domain =
            Some("acme.org".to_owned());
    });
    changed(&foreign, "the roots are of", State::Fail, &["acme.org"]);
    let rotating = |days: u32| {
        in_cluster(|cluster| {
            let staged = Some(now() - days * DAY);
            cluster.secret = Ok(Some(SecretNotes {
                staged,
                promoted: None,
            }));
        })
    };
    changed(&rotating(2), "no exchange", State::Pass, &["2 days"]);
    changed(&rotating(40), "no exchange", State::Warn, &["40 days"]);
}
