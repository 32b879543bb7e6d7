//! A cluster with Adit in it, and `adit check` as a person runs it.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::apiserver::{ApiServer, Options, Resource};

/// What the program said.
pub(crate) struct Said {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// An API server and a kubeconfig for it.
pub(crate) struct Bed {
    pub(crate) api: ApiServer,
    dir: tempfile::TempDir,
}

impl Bed {
    /// A cluster without Adit.
    pub(crate) fn bare(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            tls: true,
            ..Options::default()
        };
        change(&mut options);
        let api = ApiServer::start(options);
        api.put(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "n1", "labels": { "kubernetes.io/os": "linux" } },
            "status": {
                "conditions": [{ "type": "Ready", "status": "True" }],
                "nodeInfo": { "kernelVersion": "6.1.0", "containerRuntimeVersion": "containerd://2.1.0" },
            },
        }));
        let dir = tempfile::tempdir().expect("a directory");
        let bed = Self { api, dir };
        let kubeconfig = bed.api.kubeconfig("{token: person}");
        std::fs::write(bed.kubeconfig(), kubeconfig).expect("the directory is writable");
        bed
    }

    /// A cluster with Adit and two captured pods, in which nothing is wrong.
    pub(crate) fn sound() -> Self {
        let bed = Self::bare(|_| {});
        for (plural, kind) in [
            ("authorizationpolicies", "AuthorizationPolicy"),
            ("peerauthentications", "PeerAuthentication"),
        ] {
            bed.api
                .install(Resource::new("security.istio.io", "v1", plural, kind));
        }
        bed.api.load([
            namespace("adit-system", json!({})),
            namespace("shop", json!({ "adit.mesh/mode": "ambient" })),
            account("shop", "web"),
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
                "metadata": { "name": "adit-node" }, "spec": {},
            }),
            controller("DaemonSet", "adit-node", json!({ "desiredNumberScheduled": 1, "numberReady": 1 })),
            controller("Deployment", "adit-control", json!({ "readyReplicas": 2 })),
            ours("adit-node"),
            ours("adit-control"),
            pod("web", true),
            pod("db", true),
        ]);
        bed.root(3650);
        bed
    }

    /// Publishes a root that ends in so many days.
    pub(crate) fn root(&self, days: i64) {
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no name is wrong");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "adit root");
        let now = std::time::SystemTime::now();
        let day = std::time::Duration::from_secs(86_400);
        let length = day * u32::try_from(days.abs()).expect("not that many");
        params.not_before = (now - 5000 * day).into();
        params.not_after = if days < 0 { now - length } else { now + length }.into();
        let root = params.self_signed(&key).expect("it signs itself").pem();
        self.api.put(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "namespace": "adit-system", "name": "adit-ca-root" },
            "data": { "root-cert.pem": root },
        }));
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Runs `adit check` with its kubeconfig and further arguments.
    pub(crate) fn check(&self, arguments: &[&str]) -> Said {
        let kubeconfig = self.kubeconfig();
        let kubeconfig = kubeconfig.to_str().expect("it is text");
        // A daemon of another test must not be taken for this cluster's.
        let run_dir = self.dir.path().join("run");
        let run_dir = run_dir.to_str().expect("it is text");
        adit(
            &[
                &["--kubeconfig", kubeconfig, "--run-dir", run_dir],
                arguments,
            ]
            .concat(),
        )
    }

    /// Runs it for its findings.
    #[track_caller]
    pub(crate) fn findings(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let said = self.check(&[&["-o", "json"], arguments].concat());
        let answer = serde_json::from_str(&said.out);
        (
            said.status,
            answer.unwrap_or_else(|e| panic!("{e}: {}{}", said.out, said.err)),
        )
    }
}

/// Runs `adit check` with nothing in its environment.
pub(crate) fn adit(arguments: &[&str]) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_adit"))
        .env_clear()
        .arg("check")
        .args(arguments)
        .output()
        .expect("adit runs");
    Said {
        status: status.code(),
        out: String::from_utf8(stdout).expect("text"),
        err: String::from_utf8(stderr).expect("text"),
    }
}

/// The finding whose name begins so.
#[track_caller]
pub(crate) fn finding<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let mut all = answer["findings"].as_array().into_iter().flatten();
    let named = |one: &&Value| {
        one["name"]
            .as_str()
            .is_some_and(|text| text.starts_with(name))
    };
    all.find(named)
        .unwrap_or_else(|| panic!("no {name:?} in {answer:#}"))
}

pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "namespace": namespace, "name": name },
    })
}

fn controller(kind: &str, name: &str, status: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": { "namespace": "adit-system", "name": name },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": name } },
            "template": { "spec": {
                "serviceAccountName": name,
                "containers": [{ "name": "adit", "image": image() }],
            } },
        },
        "status": status,
    })
}

fn image() -> String {
    format!("registry.example/adit:{}", env!("CARGO_PKG_VERSION"))
}

fn ours(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "adit-system", "name": format!("{name}-x"), "labels": { "app": name } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "adit", "image": image() }] },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

/// A pod of the mesh, captured or not.
pub(crate) fn pod(name: &str, captured: bool) -> Value {
    let mark = if captured { "enabled" } else { "" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": name, "labels": { "app": name },
            "annotations": { "ambient.istio.io/redirection": mark },
            "creationTimestamp": "2026-01-05T08:00:00Z",
        },
        "spec": { "nodeName": "n1", "containers": [{ "name": "app", "image": "app:1" }] },
        "status": {
            "phase": "Running", "podIPs": [{ "ip": "10.9.0.1" }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}
