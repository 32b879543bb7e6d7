//! Identity: who shows which certificate, whom each side believes, and how certificates change.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use serde_json::Value;

use crate::reason;
use crate::support::{
    Authority, HboneClient, HboneServer, Lab, Mint, Outcome, Pod, Reply, eventually, holds_for,
    within,
};

/// Every text within `value` that begins like an identity.
fn identities(value: &Value) -> BTreeSet<String> {
    match value {
        Value::String(text) if text.starts_with("spiffe://") => BTreeSet::from([text.clone()]),
        Value::Array(items) => items.iter().flat_map(identities).collect(),
        Value::Object(map) => map.values().flat_map(identities).collect(),
        _ => BTreeSet::new(),
    }
}

fn certified(lab: &mut Lab, node: usize) -> BTreeSet<String> {
    identities(&lab.daemon(node).dump()["certificates"])
}

#[test]
fn daemons_that_start_at_once_make_one_root() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.publish();
    let _servers = [a.greet(8080), b.greet(8080)];
    for round in 0..4 {
        let ca = lab.dir().join(format!("ca-{round}"));
        let spawned = [1, 2].map(|n| lab.launch(n).ca(&ca).spawn());
        for (n, mut daemon) in spawned.into_iter().enumerate() {
            daemon.await_ready();
            lab.install(n + 1, daemon);
        }
        a.call(b.at(8080)).assert_served("b", a.ip());
        b.call(a.at(8080)).assert_served("a", b.ip());
    }
}

/// Every file below `dir`, with its mode.
fn files(dir: &Path) -> Vec<(std::path::PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let meta = entry.metadata().expect("it is there");
        if meta.is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push((entry.path(), meta.permissions().mode() & 0o777));
        }
    }
    found
}

#[test]
fn files_with_a_key_are_their_owners_alone() {
    let mut lab = Lab::one_node();
    lab.pod(1, "a");
    lab.start();
    let all: Vec<_> = files(&lab.ca())
        .into_iter()
        .chain(files(&lab.dir().join("run")))
        .collect();
    let keys: Vec<_> = all
        .iter()
        .filter(|(path, _)| std::fs::read_to_string(path).is_ok_and(|t| t.contains("PRIVATE KEY")))
        .collect();
    assert!(!keys.is_empty(), "the root's key is in a file: {all:?}");
    assert!(keys.iter().all(|(_, mode)| *mode == 0o600), "{keys:?}");
    let log = lab.daemon(1).log();
    assert!(!log.contains("PRIVATE KEY"));
}

#[test]
fn a_node_has_a_certificate_for_each_identity_of_its_pods_and_no_other() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.pod_with(1, "a2", |p| _ = p.service_account("a"));
    lab.plain_pod(1, "plain");
    lab.start();
    assert_eq!(certified(&mut lab, 1), BTreeSet::from([a.identity()]));
    assert_eq!(certified(&mut lab, 2), BTreeSet::from([b.identity()]));
    let c = lab.pod(1, "c");
    lab.publish();
    eventually(
        Duration::from_secs(5),
        "a new pod's identity has its certificate",
        || certified(&mut lab, 1) == BTreeSet::from([a.identity(), c.identity()]),
    );
    lab.cluster.remove("Pod", "mesh", "c");
    lab.publish();
    eventually(
        Duration::from_secs(15),
        "the certificate of a gone identity is let go",
        || certified(&mut lab, 1) == BTreeSet::from([a.identity()]),
    );
}

#[test]
fn a_pods_tunnel_port_shows_the_pods_identity_and_takes_only_proper_peers() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let outside = lab.stranger(1, "outside");
    lab.start();
    let _server = b.greet(8080);
    let authority = Authority::of_directory(&lab.ca());
    let foreign = Authority::foreign();
    let (proper, target) = (Mint::of(&a.identity()), b.at(8080).to_string());
    let to = b.at(15008);

    let own = authority.issue(&proper);
    let mut tunnel =
        HboneClient::open(outside.netns(), to, Some(&own)).expect("a proper peer is taken");
    assert_eq!(
        tunnel.server(),
        [b.identity()],
        "exactly the pod's identity"
    );
    let (status, mut stream) = tunnel.connect(&target).expect("it answers");
    assert_eq!(status, 200);
    let greeting = stream
        .receive()
        .expect("bytes come")
        .expect("before the end");
    assert!(greeting.starts_with(b"b "), "{greeting:?}");

    let mint = |uri: &str| Mint::of(uri);
    let nameless = Mint {
        uris: Vec::new(),
        ..proper.clone()
    };
    let server_only = Mint {
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        ..proper.clone()
    };
    let refused = [
        ("no certificate", None),
        ("a foreign authority", Some(foreign.issue(&proper))),
        (
            "an expired certificate",
            Some(authority.issue(&proper.clone().expired())),
        ),
        (
            "another trust domain",
            Some(authority.issue(&mint("spiffe://elsewhere/ns/mesh/sa/a"))),
        ),
        (
            "no SPIFFE name",
            Some(authority.issue(&mint("https://cluster.local/ns/mesh/sa/a"))),
        ),
        (
            "a malformed name",
            Some(authority.issue(&mint("spiffe://cluster.local/mesh/a"))),
        ),
        ("no name at all", Some(authority.issue(&nameless))),
        (
            "a certificate for servers",
            Some(authority.issue(&server_only)),
        ),
    ];
    for (what, credential) in refused {
        let opened = HboneClient::open(outside.netns(), to, credential.as_ref());
        let Err(error) = opened else {
            panic!("a peer with {what} was taken")
        };
        assert!(error.starts_with("tls"), "{what}: {error}");
    }
    let http1 = HboneClient::open_with(outside.netns(), to, Some(&own), &["http/1.1"]);
    assert!(http1.is_err(), "a peer that does not speak h2 was taken");
    a.call(b.at(8080)).assert_served("b", a.ip());
}

#[test]
fn tls_older_than_1_3_is_refused() {
    let mut lab = Lab::one_node();
    let b = lab.pod(1, "b");
    lab.start();
    let try_version = |version: &str| {
        let to = b.at(15008).to_string();
        let args = [
            "netns",
            "exec",
            lab.node(1).netns().name(),
            "openssl",
            "s_client",
            "-alpn",
            "h2",
            version,
            "-connect",
            &to,
        ];
        let output = Command::new("ip").args(args).stdin(Stdio::null()).output();
        let output = output.expect("openssl is installed by ./scripts/test");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let new = try_version("-tls1_3");
    assert!(
        new.contains("TLSv1.3") && new.contains("BEGIN CERTIFICATE"),
        "{new}"
    );
    let old = try_version("-tls1_2");
    assert!(!old.contains("BEGIN CERTIFICATE"), "{old}");
}

#[test]
fn a_source_accepts_exactly_the_destinations_identity() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let other = lab.pod(2, "other");
    lab.publish();
    let daemon = lab.launch(1).start();
    lab.install(1, daemon);
    let authority = Authority::of_directory(&lab.ca());
    let foreign = Authority::foreign();
    let right = Mint::of(&b.identity());

    let wrong = [
        (
            "another pod's identity",
            authority.issue(&Mint::of(&other.identity())),
        ),
        (
            "another trust domain",
            authority.issue(&Mint::of("spiffe://elsewhere/ns/mesh/sa/b")),
        ),
        (
            "another namespace",
            authority.issue(&Mint::of("spiffe://cluster.local/ns/plain/sa/b")),
        ),
        ("a foreign authority", foreign.issue(&right)),
        (
            "an expired certificate",
            authority.issue(&right.clone().expired()),
        ),
    ];
    for (what, credential) in wrong {
        let server = HboneServer::open(b.netns(), b.at(15008), &credential, Reply::Echo);
        let end = a.end_of(
            b.at(8080),
            b"for the right one alone",
            Duration::from_secs(5),
        );
        assert_eq!(end, Outcome::Reset, "{what}");
        assert!(
            server.seen().is_empty(),
            "{what}: a request reached the wrong server"
        );
    }
    within(Duration::from_secs(5), "each is recorded", || {
        let records = lab.daemon(1).records();
        let failed = records.iter().filter(|r| reason(r) == "tls_failed").count();
        if failed == 5 { Ok(()) } else { Err(records) }
    });
    let failed = lab.daemon(1).metric(
        "istio_tcp_connections_failed_total",
        &[("response_flags", "TLS_FAILURE")],
    );
    assert!(failed == 5.0, "{failed}");

    // The right one comes last: its tunnel would be used again.
    let server = HboneServer::open(
        b.netns(),
        b.at(15008),
        &authority.issue(&right),
        Reply::Echo,
    );
    let conn = a.dial(b.at(8080));
    conn.echoes(b"hello")
        .expect("the right identity is accepted");
    let seen = server.seen();
    assert_eq!(seen[0].client, [a.identity()], "the source shows its own");
    assert_eq!(
        (seen[0].method.as_str(), &seen[0].authority),
        ("CONNECT", &b.at(8080).to_string())
    );
}

#[test]
fn the_trust_domain_is_a_setting() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start_with(|l| l.args(&["--trust-domain", "example.org"]));
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
    assert_eq!(
        certified(&mut lab, 1),
        BTreeSet::from(["spiffe://example.org/ns/mesh/sa/a".to_owned()])
    );
}

/// The certificate that a pod's tunnel port shows.
fn shown(lab: &Lab, from: &Pod, to: &Pod) -> Vec<u8> {
    let own = Authority::of_directory(&lab.ca()).issue(&Mint::of(&from.identity()));
    let tunnel = HboneClient::open(from.netns(), to.at(15008), Some(&own)).expect("it is taken");
    tunnel.chain()[0].to_vec()
}

#[test]
fn certificates_are_renewed_and_no_connection_notices() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let probe = lab.pod_with(1, "probe", |p| _ = p.label("adit.mesh/mode", "none"));
    lab.start_with(|l| l.args(&["--cert-validity", "12s"]));
    let _server = b.greet(8080);
    let live = a.dial_greeter(b.at(8080));
    let first = shown(&lab, &probe, &b);
    let mut changes = BTreeSet::from([first]);
    within(
        Duration::from_secs(25),
        "two renewals, with traffic all the while",
        || {
            live.echoes(b"still alive")
                .expect("the connection outlives its certificate");
            a.call(b.at(8080)).assert_served("b", a.ip());
            changes.insert(shown(&lab, &probe, &b));
            if changes.len() >= 3 {
                Ok(())
            } else {
                Err(changes.len())
            }
        },
    );
}

#[test]
fn a_failed_renewal_is_loud_and_keeps_the_valid_certificate() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start_with(|l| l.args(&["--cert-validity", "20s"]));
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
    let before = certified(&mut lab, 1);
    let (ca, aside) = (lab.ca(), lab.dir().join("ca-aside"));
    std::fs::rename(&ca, &aside).expect("both are in one directory");
    std::fs::write(&ca, "not a directory").expect("the lab's directory is writable");
    within(
        Duration::from_secs(16),
        "the failed renewal is told",
        || {
            let lines = lab.daemon(1).lines();
            let loud = lines.iter().find(|l| {
                ["WARN", "ERROR"].contains(&l.text("level").as_str())
                    && format!("{l:?}").contains(&a.identity())
            });
            loud.cloned().ok_or("no such line")
        },
    );
    let failures = lab.daemon(1).metric("adit_certificate_failures_total", &[]);
    assert!(failures >= 1.0, "{failures}");
    assert_eq!(certified(&mut lab, 1), before, "the valid one is kept");
    holds_for(
        Duration::from_secs(1),
        "new connections are carried",
        || a.call(b.at(8080)).served(),
    );

    std::fs::remove_file(&ca).expect("it is there");
    std::fs::rename(&aside, &ca).expect("both are in one directory");
    // Past the end of the first certificate: it has been renewed since.
    holds_for(
        Duration::from_secs(12),
        "new connections are carried",
        || a.call(b.at(8080)).served() || !lab.daemon(1).runs(),
    );
    a.call(b.at(8080)).assert_served("b", a.ip());
}
