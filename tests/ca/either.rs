//! The authority before whichever API server was asked for, with tokens that the server gave out.
//!
//! The other tests here make up what a TokenReview says. These hold that a real one says it so:
//! with `KUBEBUILDER_ASSETS` they run against `kube-apiserver` and `etcd`, without against the fake
//! server, which then answers as the real one did.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::bed::{Control, Place, SOON};
use crate::caller::{Caller, Issued};
use crate::support::{Kubernetes, Namespace, eventually, within};

const SECRET: &str = "/api/v1/namespaces/adit-system/secrets/adit-ca";
const ROOTS: &str = "/api/v1/namespaces/adit-system/configmaps/adit-ca-root";
/// A real server remembers for ten seconds that a token was good.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// A cluster with two nodes, the daemon of each, and a pod of `shop/cart` on worker-1.
struct Site {
    place: Place,
    api: Kubernetes,
    namespace: Arc<Namespace>,
}

impl Site {
    fn new() -> Self {
        let namespace = Arc::new(Namespace::new("ca"));
        let api = Kubernetes::start(&namespace);
        let place = Place::new(&api.kubeconfig(), Some(namespace.clone()));
        let site = Self {
            place,
            api,
            namespace,
        };
        for name in ["adit-system", "shop"] {
            site.api.apply(&json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name },
            }));
        }
        site.account("adit-system", "adit-node");
        site.account("shop", "cart");
        for node in ["worker-1", "worker-2"] {
            site.api.apply(&json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
            }));
            let name = format!("adit-node-{node}");
            site.api
                .apply(&pod("adit-system", &name, "adit-node", node));
        }
        site.api.apply(&pod("shop", "cart-1", "cart", "worker-1"));
        site
    }

    fn account(&self, namespace: &str, name: &str) {
        self.api.apply(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": namespace },
        }));
    }

    /// A token of an account, for this audience, bound to a pod if there is one.
    fn token(&self, account: (&str, &str), audience: &str, pod: Option<&str>) -> String {
        let (namespace, name) = account;
        let mut spec = json!({ "audiences": [audience], "expirationSeconds": 3600 });
        if let Some(pod) = pod {
            spec["boundObjectRef"] = json!({ "kind": "Pod", "apiVersion": "v1", "name": pod });
        }
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec,
        });
        let answer = self.api.must(Method::POST, &path, &request);
        let token = answer["status"]["token"].as_str().expect("it is a token");
        token.to_owned()
    }

    /// The token that kubelet projects into the daemon of a node.
    fn daemon(&self, node: &str) -> String {
        let pod = format!("adit-node-{node}");
        self.token(("adit-system", "adit-node"), "adit-ca", Some(&pod))
    }

    fn object(&self, path: &str) -> Value {
        match self.api.ask(Method::GET, path, None) {
            Ok((200, object)) => object,
            _ => Value::Null,
        }
    }

    fn bundle(&self) -> String {
        let text = self.object(ROOTS)["data"]["root-cert.pem"].clone();
        text.as_str().unwrap_or_default().to_owned()
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        let bundle = self.bundle();
        let all = CertificateDer::pem_slice_iter(bundle.as_bytes());
        all.collect::<Result<_, _>>().expect("the bundle is PEM")
    }

    /// Asks a replica for a certificate of `shop/cart`.
    fn ask(&self, control: &Control, token: &str) -> Result<Issued, Status> {
        let caller = Caller::new(control.address(), &self.bundle(), token);
        let answer = self
            .namespace
            .enter(|| caller.ask("shop", "cart").map_err(Box::new));
        answer.map_err(|status| *status)
    }

    /// Expects that the token gets no certificate, and that the caller is told why.
    #[track_caller]
    fn refuses(&self, control: &Control, token: &str, code: Code, told: &str) {
        let status = self.ask(control, token).expect_err("it is refused");
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().contains(told), "{}", status.message());
    }
}

/// A running pod; the daemons' own are in the host's network.
fn pod(namespace: &str, name: &str, account: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "nodeName": node, "serviceAccountName": account,
            "hostNetwork": namespace == "adit-system",
            "containers": [{ "name": "app", "image": "app" }],
        },
        "status": { "phase": "Running" },
    })
}

#[test]
fn a_daemons_own_token_is_believed() {
    let site = Site::new();
    let control = site.place.start("control", &[]);
    let token = site.daemon("worker-1");
    let issued = site.ask(&control, &token).expect("it is granted");
    assert_eq!(issued.names(), ["spiffe://cluster.local/ns/shop/sa/cart"]);
    assert!(issued.leads_to(&site.roots()[0]));
    control.await_record("certificate issued", |record| {
        record["node"] == "worker-1"
            && record["account"] == "adit-system/adit-node"
            && record["pod"] == "adit-node-worker-1"
            && record["serial"] == issued.serial()
    });
    assert!(!control.text().contains(&token), "no token is logged");
}

#[test]
fn a_token_that_says_something_else_is_refused_for_that() {
    let site = Site::new();
    let control = site.place.start("control", &[]);
    let daemon = ("adit-system", "adit-node");
    let on = Some("adit-node-worker-1");
    let wrong = site.token(daemon, "somebody-else", on);
    site.refuses(&control, &wrong, Code::Unauthenticated, "audience");
    site.refuses(&control, "made.up.token", Code::Unauthenticated, "believe");
    let unbound = site.token(daemon, "adit-ca", None);
    site.refuses(
        &control,
        &unbound,
        Code::PermissionDenied,
        "bound to no node",
    );
    let pods_own = site.token(("shop", "cart"), "adit-ca", Some("cart-1"));
    site.refuses(
        &control,
        &pods_own,
        Code::PermissionDenied,
        "not the service account of a node daemon",
    );
}

#[test]
fn a_node_gets_nothing_for_pods_of_another() {
    let site = Site::new();
    let control = site.place.start("control", &[]);
    let token = site.daemon("worker-2");
    let told = "no pod of service account shop/cart runs on node worker-2";
    site.refuses(&control, &token, Code::PermissionDenied, told);
    let moved = pod("shop", "cart-2", "cart", "worker-2");
    site.api.apply(&moved);
    assert!(site.ask(&control, &token).is_ok(), "it runs there now");
    site.api.delete(&moved);
    within(SOON, "its certificates end with the pod", || {
        site.ask(&control, &token).err().ok_or("it is granted")
    });
}

#[test]
fn the_token_of_a_daemon_that_is_gone_is_nobodys() {
    let site = Site::new();
    let control = site.place.start("control", &[]);
    let token = site.daemon("worker-1");
    assert!(site.ask(&control, &token).is_ok());
    site.api.delete(&pod(
        "adit-system",
        "adit-node-worker-1",
        "adit-node",
        "worker-1",
    ));
    let refused = within(FORGOTTEN, "its token is refused", || {
        site.ask(&control, &token).err().ok_or("it is granted")
    });
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
}

#[test]
fn replicas_that_start_at_once_make_one_root_there_too() {
    let site = Site::new();
    let mut replicas: Vec<_> = (0..3)
        .map(|n| site.place.spawn(&format!("control-{n}"), &[]))
        .collect();
    replicas.iter_mut().for_each(Control::await_ready);
    let made = || -> usize {
        let made = replicas.iter().map(|r| r.records("made a root").len());
        made.sum()
    };
    eventually(SOON, "one of them was first", || made() == 1);
    let (roots, token) = (site.roots(), site.daemon("worker-1"));
    for replica in &replicas {
        let issued = site.ask(replica, &token).expect("it is granted");
        assert_eq!(issued.roots, roots);
    }
    let secret = site.object(SECRET);
    let keys: Vec<_> = secret["data"].as_object().into_iter().flatten().collect();
    assert_eq!(keys.len(), 2, "root.key and root.pem");
    assert_eq!(made(), 1, "only one of them was first");
}

/// Lets two days pass: sets every time that was written down back by so much.
fn pass(site: &Site) {
    let back = |text: &str| {
        let at: k8s_openapi::jiff::Timestamp = text.parse().expect("a time was written");
        json!((at - Duration::from_secs(48 * 3600)).to_string())
    };
    let mut notes = json!({});
    let secret = site.object(SECRET);
    for key in ["adit.mesh/staged-at", "adit.mesh/promoted-at"] {
        if let Some(text) = secret["metadata"]["annotations"][key].as_str() {
            notes[key] = back(text);
        }
    }
    let patch = json!({ "metadata": { "annotations": notes } });
    site.api.must(Method::PATCH, SECRET, &patch);
    let map = site.object(ROOTS);
    let text = map["metadata"]["annotations"]["adit.mesh/published"].as_str();
    let mut since: Value = serde_json::from_str(text.expect("it is there")).expect("JSON");
    for at in since.as_object_mut().expect("it is a map").values_mut() {
        *at = back(at.as_str().expect("a time was written"));
    }
    let notes = json!({ "adit.mesh/published": since.to_string() });
    let patch = json!({ "metadata": { "annotations": notes } });
    site.api.must(Method::PATCH, ROOTS, &patch);
}

#[test]
fn a_root_is_rotated_step_by_step() {
    let site = Site::new();
    let control = site.place.start("control", &[]);
    let token = site.daemon("worker-1");
    let old = site.roots().remove(0);
    let step = |name: &str| {
        let (done, told) = site.place.ca(name);
        assert!(done, "{name}: {told}");
    };
    step("stage");
    eventually(SOON, "the new root is published", || {
        site.roots().len() == 2
    });
    let new = site.roots().into_iter().find(|root| *root != old);
    let new = new.expect("two differ");
    let (done, told) = site.place.ca("promote");
    assert!(!done && told.contains("possible from "), "{told}");
    pass(&site);
    step("promote");
    within(SOON, "the new root signs", || {
        let issued = site.ask(&control, &token).expect("it is granted");
        issued
            .leads_to(&new)
            .then_some(())
            .ok_or("the old one does")
    });
    pass(&site);
    step("retire");
    eventually(SOON, "the old root is out of the bundle", || {
        site.roots() == [new.clone()]
    });
    assert!(site.ask(&control, &token).is_ok());
}
