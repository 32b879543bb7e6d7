//! Who gets a certificate, and what the others are told.

use std::time::{Duration, Instant};

use adit::pki::grpc::CertificateRequest;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tonic::Code;

use crate::bed::{Bed, Control, daemon};
use crate::caller::request;
use crate::support::apiserver::{Call, Fault};
use crate::support::{eventually, within};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

#[test]
fn a_node_gets_certificates_for_its_pods() {
    let (bed, control) = Bed::shop();
    let issued = bed
        .caller(&control)
        .ask("shop", "cart")
        .expect("it is granted");
    assert_eq!(issued.names(), [CART], "the identity and no other name");
    assert_eq!((issued.chain.len(), issued.roots.len()), (1, 1));
    assert!(issued.leads_to(&issued.roots[0]));
    assert!(
        (86_000..=86_400).contains(&issued.validity()),
        "{}",
        issued.validity()
    );

    control.await_record("certificate issued", |record| {
        record["target"] == "audit"
            && record["node"] == "worker-1"
            && record["account"] == "adit-system/adit-node"
            && record["pod"] == "adit-node-worker-1"
            && record["identity"] == CART
            && record["serial"] == issued.serial()
    });
    assert!(
        !control.text().contains("worker-1-token"),
        "no token is logged"
    );
    assert!(!control.text().contains("PRIVATE KEY"));
    eventually(Duration::from_secs(2), "it is counted", || {
        control.metric("adit_control_certificates_issued_total") == 1.0
    });
}

#[test]
fn wishes_for_validity_are_kept_within_bounds() {
    let bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    let control = bed.start("control", &["--max-validity", "2h"]);
    let caller = bed.caller(&control);
    for (wish, least, most) in [
        (0, 7100, 7200),
        (600, 590, 600),
        (86_400, 7100, 7200),
        (-5, 7100, 7200),
        (1, 5, 10),
    ] {
        let issued = caller.ask_for("shop", "cart", wish).expect("it is granted");
        let validity = issued.validity();
        assert!((least..=most).contains(&validity), "{wish}: {validity}");
        // A client that renews in the middle must not ask again at once.
        let middle = issued.middle();
        assert!(middle >= 1, "{wish}: {middle}");
    }
}

/// Asks as it is and expects a refusal of this kind, in the answer, the records and the metrics.
#[track_caller]
fn refused(
    control: &Control,
    answer: Result<impl Sized, tonic::Status>,
    code: Code,
    reason: &str,
    told: &str,
) {
    let Err(status) = answer else {
        panic!("{reason}: a certificate was given");
    };
    assert_eq!(status.code(), code, "{reason}: {status}");
    assert!(status.message().contains(told), "{reason}: {status}");
    control.await_record("certificate refused", |record| record["reason"] == reason);
    let series = format!("adit_control_certificates_refused_total{{reason=\"{reason}\"}}");
    assert!(control.metric(&series) >= 1.0, "{reason} is not counted");
}

#[test]
fn tokens_that_are_not_a_node_daemons_are_refused() {
    let (bed, control) = Bed::shop();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut status = daemon("worker-1");
        change(&mut status);
        status
    };
    bed.token(
        "expired",
        json!({ "authenticated": false, "error": "token has expired" }),
    );
    bed.token(
        "for-istio",
        changed(&|s| s["audiences"] = json!(["istio-ca"])),
    );
    bed.token(
        "old-server",
        changed(&|s| {
            s["audiences"] = json!([]);
            s["ignores audiences"] = json!(true);
        }),
    );
    bed.token(
        "cart",
        changed(&|s| s["user"]["username"] = json!("system:serviceaccount:shop:cart")),
    );
    bed.token(
        "kubelet",
        changed(&|s| s["user"]["username"] = json!("system:node:worker-1")),
    );
    bed.token("unbound", changed(&|s| s["user"]["extra"] = json!({})));
    let ask = |token| bed.caller(&control).token(token).ask("shop", "cart");
    let no = Code::Unauthenticated;
    refused(&control, ask(None), no, "no_token", "no bearer token");
    refused(
        &control,
        ask(Some("unheard-of")),
        no,
        "token",
        "unknown token",
    );
    refused(
        &control,
        ask(Some("expired")),
        no,
        "token",
        "token has expired",
    );
    refused(&control, ask(Some("for-istio")), no, "token", "audiences");
    refused(&control, ask(Some("old-server")), no, "audience", "adit-ca");
    let no = Code::PermissionDenied;
    refused(
        &control,
        ask(Some("cart")),
        no,
        "account",
        "system:serviceaccount:shop:cart",
    );
    refused(
        &control,
        ask(Some("kubelet")),
        no,
        "account",
        "adit-system/adit-node",
    );
    refused(
        &control,
        ask(Some("unbound")),
        no,
        "no_node",
        "bound to no node",
    );
    assert_eq!(
        control.metric("adit_control_certificates_issued_total"),
        0.0
    );
}

#[test]
fn other_accounts_are_trusted_where_they_are_named() {
    let bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    let mut status = daemon("worker-1");
    status["user"]["username"] = json!("system:serviceaccount:istio-system:ztunnel");
    status["audiences"] = json!(["istio-ca"]);
    bed.token("ztunnel", status);
    let control = bed.start(
        "control",
        &[
            "--node-account",
            "istio-system/ztunnel",
            "--audience",
            "istio-ca",
        ],
    );
    let ask = |token| bed.caller(&control).token(Some(token)).ask("shop", "cart");
    assert!(ask("ztunnel").is_ok());
    refused(
        &control,
        ask("worker-1-token"),
        Code::Unauthenticated,
        "token",
        "audiences",
    );
}

#[test]
fn only_service_accounts_of_pods_on_the_node_are_signed() {
    let (bed, control) = Bed::shop();
    let no = Code::PermissionDenied;
    let ask = |node: &str, account| {
        let token = format!("{node}-token");
        bed.caller(&control)
            .token(Some(&token))
            .ask("shop", account)
    };
    assert!(ask("worker-1", "cart").is_ok());
    refused(
        &control,
        ask("worker-2", "cart"),
        no,
        "not_on_node",
        "shop/cart runs on node worker-2",
    );
    refused(
        &control,
        ask("worker-1", "bank"),
        no,
        "not_on_node",
        "shop/bank",
    );
    // The name of the account is not enough, nor that of the namespace.
    bed.pod("worker-1", "bank", "cart-1", "bank");
    refused(
        &control,
        ask("worker-1", "bank"),
        no,
        "not_on_node",
        "shop/bank",
    );

    let pod = |name: &str, spec: Value, phase: &str| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name },
            "spec": { "nodeName": "worker-1", "serviceAccountName": name, "containers": [] },
            "status": { "phase": phase },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        bed.api.put(pod);
    };
    pod("host", json!({ "hostNetwork": true }), "Running");
    refused(
        &control,
        ask("worker-1", "host"),
        no,
        "not_on_node",
        "shop/host",
    );
    pod("done", json!({}), "Succeeded");
    refused(
        &control,
        ask("worker-1", "done"),
        no,
        "not_on_node",
        "shop/done",
    );
    pod("dead", json!({}), "Failed");
    refused(
        &control,
        ask("worker-1", "dead"),
        no,
        "not_on_node",
        "shop/dead",
    );
    pod("young", json!({}), "Pending");
    assert!(
        ask("worker-1", "young").is_ok(),
        "a pod has its certificate before it runs"
    );
}

#[test]
fn a_pod_counts_as_soon_as_it_is_there_and_no_longer_than_that() {
    let (bed, control) = Bed::shop();
    let caller = bed.caller(&control);
    assert!(
        caller.ask("shop", "cart").is_ok(),
        "the node is watched from now on"
    );
    for n in 0..5 {
        let account = format!("new-{n}");
        bed.pod("worker-1", "shop", &account, &account);
        assert!(
            caller.ask("shop", &account).is_ok(),
            "{account} is asked for at once"
        );
    }
    bed.api.remove("v1", "Pod", "shop", "cart-1");
    let refused_within = |seconds, account, why| {
        within(Duration::from_secs(seconds), why, || {
            match caller.ask("shop", account) {
                Err(status) if status.code() == Code::PermissionDenied => Ok(()),
                other => Err(other.map(|issued| issued.names())),
            }
        });
    };
    refused_within(3, "cart", "a pod that is gone");
    assert_eq!(bed.api.watching("pods"), 1, "one watch per node that asks");

    // A watch that breaks is begun anew, and nothing is believed meanwhile.
    bed.pod("worker-1", "shop", "bank-1", "bank");
    assert!(caller.ask("shop", "bank").is_ok());
    bed.api
        .break_watches("pods", crate::support::apiserver::Break::Gone);
    bed.api.remove("v1", "Pod", "shop", "bank-1");
    refused_within(5, "bank", "a pod that went unseen");
}

#[test]
fn requests_that_are_not_what_they_say_are_refused() {
    let (bed, control) = Bed::shop();
    bed.pod("worker-1", "shop", "bank-1", "bank");
    let caller = bed.caller(&control);
    let uri = |text: &str| SanType::URI(text.try_into().expect("it is ASCII"));
    let csr = |key: &KeyPair, names: Vec<SanType>| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let csr = params.serialize_request(key).expect("it signs");
        csr.pem().expect("it can be written")
    };
    let p256 = KeyPair::generate().expect("a key can be made");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key can be made");
    let send = |csr: String| {
        let csr = CertificateRequest {
            csr,
            ..CertificateRequest::default()
        };
        caller.send(csr)
    };
    let bad = Code::InvalidArgument;
    refused(
        &control,
        send(String::new()),
        bad,
        "csr_malformed",
        "PKCS #10",
    );
    refused(
        &control,
        send("x".repeat(10_000)),
        bad,
        "csr_malformed",
        "PKCS #10",
    );
    refused(
        &control,
        send(csr(&p384, vec![uri(CART)])),
        bad,
        "csr_key",
        "P-256",
    );
    refused(
        &control,
        send(csr(&p256, vec![])),
        bad,
        "csr_names",
        "no URI name",
    );
    let both = vec![uri(CART), uri("spiffe://cluster.local/ns/shop/sa/bank")];
    refused(
        &control,
        send(csr(&p256, both)),
        bad,
        "csr_names",
        "2 URI names",
    );
    let dns = SanType::DnsName("adit-control.adit-system.svc".try_into().expect("a name"));
    refused(
        &control,
        send(csr(&p256, vec![uri(CART), dns])),
        bad,
        "csr_names",
        "beside its URI",
    );
    refused(
        &control,
        send(csr(&p256, vec![uri("https://x")])),
        bad,
        "csr_names",
        "identity",
    );

    let elsewhere = request("spiffe://elsewhere/ns/shop/sa/cart", 0);
    refused(
        &control,
        caller.send(elsewhere),
        Code::PermissionDenied,
        "trust_domain",
        "cluster.local",
    );
    let mut swapped = request(CART, 0);
    swapped.metadata = request("spiffe://cluster.local/ns/shop/sa/bank", 0).metadata;
    refused(
        &control,
        caller.send(swapped),
        Code::PermissionDenied,
        "impersonation",
        "sa/bank",
    );
    assert!(
        send(csr(&p256, vec![uri(CART)])).is_ok(),
        "metadata may be left out"
    );

    // A request that is too large never gets to be read.
    let large = CertificateRequest {
        csr: "x".repeat(100_000),
        ..CertificateRequest::default()
    };
    let status = caller.send(large).expect_err("it is too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}

#[test]
fn a_node_that_asks_too_often_is_slowed_down_and_others_are_not() {
    let (bed, control) = Bed::shop();
    bed.pod("worker-2", "shop", "cart-2", "cart");
    let codes = bed.caller(&control).burst(&request(CART, 0), 700);
    let granted = codes.iter().filter(|code| **code == Code::Ok).count();
    assert!((500..690).contains(&granted), "{granted}");
    assert!(
        codes[..500].iter().all(|code| *code == Code::Ok),
        "a burst passes"
    );
    let slowed = codes
        .iter()
        .filter(|code| **code == Code::ResourceExhausted)
        .count();
    assert_eq!(granted + slowed, 700);
    let other = bed.caller(&control).token(Some("worker-2-token"));
    assert!(other.ask("shop", "cart").is_ok());
    let told = control.records("certificate refused");
    assert!(told.is_empty(), "they do not fill the log: {told:?}");
}

#[test]
fn no_more_are_worked_on_at_once_than_a_replica_bears() {
    const AT_ONCE: usize = 128;
    let (bed, control) = Bed::shop();
    let caller = bed.caller(&control);
    // Whoever is worked on waits for the review of its token.
    bed.api.fail("", Call::Write, usize::MAX, Fault::Silence);
    let codes = caller.crowd(&request(CART, 0), AT_ONCE + 40);
    let many = |code| codes.iter().filter(|c| **c == code).count();
    // Where connections take long to come about, some come when the first have ended.
    let (busy, waited) = (many(Code::ResourceExhausted), many(Code::Unavailable));
    assert!((1..=40).contains(&busy), "{codes:?}");
    assert_eq!(busy + waited, AT_ONCE + 40, "{codes:?}");
    let refused =
        |reason| format!("adit_control_certificates_refused_total{{reason=\"{reason}\"}}");
    assert_eq!(control.metric(&refused("busy")), busy as f64);
    assert_eq!(control.metric(&refused("api")), waited as f64);
    bed.api.heal();
    assert!(caller.ask("shop", "cart").is_ok(), "there is room again");
}

#[test]
fn a_quiet_log_has_the_audit_records_still() {
    let bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    let control = bed.start("control", &["--log", "error"]);
    let issued = bed.caller(&control).ask("shop", "cart");
    let issued = issued.expect("it is granted");
    control.await_record("certificate issued", |r| r["serial"] == issued.serial());
    let refused = bed.caller(&control).ask("shop", "bank");
    assert!(refused.is_err());
    control.await_record("certificate refused", |r| r["reason"] == "not_on_node");
    assert!(control.records("certificate authority started").is_empty());
    let control = bed.start("silent", &["--log", "error,audit=off"]);
    assert!(bed.caller(&control).ask("shop", "cart").is_ok());
    assert!(control.records("certificate issued").is_empty(), "as told");
}

#[test]
fn while_the_api_server_is_away_nothing_is_granted_and_then_again() {
    let (mut bed, mut control) = Bed::shop();
    let caller = bed.caller(&control);
    assert!(caller.ask("shop", "cart").is_ok());
    bed.api.stop();
    // The token was believed a moment ago, and the pods were watched: both end.
    within(
        Duration::from_secs(25),
        "it says that the API server is away",
        || match caller.ask("shop", "cart") {
            Err(status) if status.code() == Code::Unavailable => Ok(()),
            other => Err(other.map(|issued| issued.names())),
        },
    );
    control.await_record("the authority cannot be kept up to date", |r| {
        r["reason"] == "api"
    });
    assert!(control.ended().is_none());
    bed.api.resume();
    within(Duration::from_secs(20), "it works again", || {
        caller.ask("shop", "cart")
    });
    control.await_ready();
}

#[test]
fn an_api_server_that_refuses_us_is_told_apart() {
    let (bed, control) = Bed::shop();
    bed.api
        .fail("pods", Call::Any, 100, Fault::Status(403, None));
    let status = bed
        .caller(&control)
        .ask("shop", "cart")
        .expect_err("nothing is known of pods");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("role"), "{status}");
    bed.api.heal();
    assert!(bed.caller(&control).ask("shop", "cart").is_ok());
}

/// Whoever reaches the port may connect and say nothing.
#[test]
fn strangers_who_say_nothing_keep_no_node_waiting() {
    let (bed, control) = Bed::shop();
    let stranger = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // So that other tests may listen on the port that this one gets.
        socket.set_reuse_address(true)?;
        socket.connect(&control.address().into())?;
        Ok::<_, std::io::Error>(socket)
    };
    // More than there may be connections at once.
    let strangers: Result<Vec<_>, _> = (0..4_300).map(|_| stranger()).collect();
    let strangers = strangers.expect("all are let in");
    let begun = Instant::now();
    let issued = bed.caller(&control).ask("shop", "cart");
    issued.expect("it is granted");
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "the first strangers are sent away after five"
    );
    drop(strangers);
}
