//! A daemon in a namespace of its own, beside an API server.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::apiserver::{ApiServer, Options};
use crate::support::{Daemon, Kubernetes, Launch, Namespace, within};

/// Within this a change of the API is in the index, whatever the machine does beside.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// Within this what has failed is found out and mended: back-off, and a silence of two seconds.
pub(crate) const MENDED: Duration = Duration::from_secs(20);

/// A real server sends a bookmark a minute, so its silence says nothing before.
const REAL_SILENCE: &str = "90s";

/// Where a daemon and a server meet. Fields go in this order: the daemon first.
pub(crate) struct Bed {
    daemon: Option<Daemon>,
    /// How long its daemon trusts a watch that says nothing.
    pub(crate) silence: &'static str,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) namespace: Arc<Namespace>,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self {
            daemon: None,
            silence: "2s",
            dir: tempfile::tempdir().expect("a temporary directory"),
            namespace: Arc::new(Namespace::new("kube")),
        }
    }

    /// A bed beside the server that was asked for.
    pub(crate) fn beside() -> (Self, Kubernetes) {
        let mut bed = Self::new();
        let server = Kubernetes::start(&bed.namespace);
        if !server.is_fake() {
            bed.silence = REAL_SILENCE;
        }
        (bed, server)
    }

    /// A bed and a fake server, behaving as said.
    pub(crate) fn fake(change: impl FnOnce(&mut Options)) -> (Self, ApiServer) {
        let bed = Self::new();
        let mut options = Options {
            namespace: Some(bed.namespace.clone()),
            ..Options::default()
        };
        change(&mut options);
        (bed, ApiServer::start(options))
    }

    /// How its daemon is to be started, with this kubeconfig.
    pub(crate) fn launch(&self, kubeconfig: &str) -> Launch {
        let path = self.path("kubeconfig");
        std::fs::write(&path, kubeconfig).expect("the directory is writable");
        let launch = Launch {
            namespace: self.namespace.clone(),
            node: "here".to_owned(),
            sources: vec![PathBuf::from("kube")],
            ca: self.path("ca"),
            run_dir: self.path("run"),
            log: self.path("log"),
            drain: "1s".to_owned(),
            args: Vec::new(),
            privileges: Vec::new(),
        };
        let path = path.to_str().expect("it is text");
        launch.args(&["--kubeconfig", path, "--watch-silence", self.silence])
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts its daemon and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(&mut self, kubeconfig: &str) {
        self.daemon = Some(self.launch(kubeconfig).start());
    }

    /// Starts its daemon and waits for nothing.
    pub(crate) fn spawn(&mut self, kubeconfig: &str) {
        self.daemon = Some(self.launch(kubeconfig).spawn());
        // Its ports are the first that it opens.
        within(SOON, "the daemon answers", || self.daemon().ready());
    }

    #[track_caller]
    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("the test has started it")
    }

    /// The names of all pods in its index.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.names("/workloads")
    }

    /// The names of what an admin page lists.
    pub(crate) fn names(&self, page: &str) -> BTreeSet<String> {
        let all: Value = serde_json::from_str(&self.daemon().admin("GET", page)).expect("JSON");
        let all = all.as_array().into_iter().flatten();
        all.map(|one| one["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The pod as its index has it.
    pub(crate) fn pod(&self, name: &str) -> Value {
        let all: Value =
            serde_json::from_str(&self.daemon().admin("GET", "/workloads")).expect("JSON");
        let mut all = all.as_array().into_iter().flatten();
        all.find(|pod| pod["name"] == name)
            .cloned()
            .unwrap_or(Value::Null)
    }

    /// Waits until its index has exactly these pods.
    #[track_caller]
    pub(crate) fn sees(&self, time: Duration, names: &[&str]) {
        self.lists(time, "/workloads", names);
    }

    /// Waits until an admin page lists exactly these names.
    #[track_caller]
    pub(crate) fn lists(&self, time: Duration, page: &str, names: &[&str]) {
        let wanted: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
        within(time, &format!("{page} has {names:?}"), || {
            let found = self.names(page);
            if found == wanted { Ok(()) } else { Err(found) }
        });
    }

    /// Waits until it is ready.
    #[track_caller]
    pub(crate) fn becomes_ready(&self, time: Duration) {
        within(time, "the daemon is ready", || {
            match self.daemon().ready() {
                Ok((200, _)) => Ok(()),
                other => Err(other),
            }
        });
    }

    /// Waits until it is not ready and says all of `words` about it.
    #[track_caller]
    pub(crate) fn waits_for(&self, words: &[&str]) {
        within(
            MENDED,
            &format!("readiness says {words:?}"),
            || match self.daemon().ready() {
                Ok((503, body)) if words.iter().all(|word| body.contains(word)) => Ok(()),
                other => Err(other),
            },
        );
    }

    /// A metric of a kind.
    pub(crate) fn metric(&self, name: &str, kind: &str) -> f64 {
        self.daemon().metric(name, &[("kind", kind)])
    }
}

/// A pod of another node, running.
pub(crate) fn pod(name: &str, last: u8) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "labels": { "app": name },
        },
        "spec": {
            "nodeName": "there",
            "serviceAccountName": "web",
            "containers": [{ "name": "app", "image": "app" }],
        },
        "status": {
            "phase": "Running",
            "podIP": format!("10.9.0.{last}"),
            "podIPs": [{ "ip": format!("10.9.0.{last}") }],
        },
    })
}

/// A namespace, of the mesh or not.
pub(crate) fn namespace(name: &str, enrolled: bool) -> Value {
    let mode = if enrolled { "ambient" } else { "none" };
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": name, "labels": { "adit.mesh/mode": mode } },
    })
}

/// A policy by which nobody but `account` reaches the pods of the namespace.
pub(crate) fn policy(name: &str, account: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "rules": [{ "from": [{ "source": {
            "principals": [format!("cluster.local/ns/shop/sa/{account}")] } }] }] },
    })
}
