//! An API server as its users have it: objects go in through HTTP, whichever server it is.
//!
//! `KUBEBUILDER_ASSETS` chooses: a directory with `etcd` and `kube-apiserver`, as the ecosystem's
//! envtest has it, and they are started ([`real`]); nothing, and it is the fake one. Tests that need
//! a server that does wrong on command ask for the fake one by name instead, and never come here.

mod real;

use std::sync::Arc;
use std::time::Duration;

use adit::cluster::Access;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};

use crate::support::apiserver::{ApiServer, Options};
use crate::support::kubernetes::real::Real;
use crate::support::namespace::Namespace;
use crate::support::wait::within;

/// How long a real server may take until it is ready: the machine runs other tests meanwhile.
pub(crate) const START: Duration = Duration::from_secs(90);

/// A running API server.
pub(crate) struct Kubernetes {
    which: Which,
    dir: tempfile::TempDir,
    namespace: Arc<Namespace>,
}

enum Which {
    Fake(Box<ApiServer>),
    Real(Box<Real>),
}

impl Kubernetes {
    /// Starts the server that was asked for, in a namespace where it has the loopback addresses.
    pub(crate) fn start(namespace: &Arc<Namespace>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty());
        let which = match assets {
            Some(assets) => {
                let real = Real::start(assets.as_ref(), dir.path(), namespace);
                Which::Real(Box::new(real))
            }
            None => Which::Fake(Box::new(ApiServer::start(Options {
                namespace: Some(namespace.clone()),
                ..Options::default()
            }))),
        };
        let mut server = Self {
            which,
            dir,
            namespace: namespace.clone(),
        };
        server.answers();
        server
    }

    pub(crate) fn is_fake(&self) -> bool {
        matches!(self.which, Which::Fake(_))
    }

    pub(crate) fn kubeconfig(&self) -> String {
        match &self.which {
            Which::Fake(api) => api.kubeconfig("{}"),
            Which::Real(real) => real.kubeconfig(),
        }
    }

    pub(crate) fn stop(&mut self) {
        match &mut self.which {
            Which::Fake(api) => api.stop(),
            Which::Real(real) => real.stop(),
        }
    }

    pub(crate) fn resume(&mut self) {
        match &mut self.which {
            Which::Fake(api) => api.resume(),
            Which::Real(real) => real.resume(),
        }
        self.answers();
    }

    /// Waits until it is ready: a real one that only listens lacks what it makes itself at first.
    #[track_caller]
    fn answers(&mut self) {
        within(START, "the API server is ready", || {
            if let Which::Real(real) = &mut self.which {
                real.must_run();
            }
            match self.ask(Method::GET, "/readyz", None) {
                Ok((200, _)) => Ok(()),
                other => Err(other),
            }
        });
    }

    /// Creates an object or merges it into the one that is there, with its status.
    #[track_caller]
    pub(crate) fn apply(&self, object: &Value) {
        let path = path(object);
        let name = object["metadata"]["name"].as_str().expect("it has a name");
        let created = self.ask(Method::POST, &path, Some(object));
        match created {
            Ok((201, _)) => {}
            Ok((409, _)) => drop(self.must(Method::PATCH, &format!("{path}/{name}"), object)),
            other => panic!("POST {path}: {other:?}"),
        }
        if object["status"].is_object() {
            let status = json!({ "status": object["status"] });
            self.must(Method::PATCH, &format!("{path}/{name}/status"), &status);
        }
    }

    /// Deletes an object at once.
    #[track_caller]
    pub(crate) fn delete(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().expect("it has a name");
        let path = format!("{}/{name}", path(object));
        self.must(Method::DELETE, &path, &json!({ "gracePeriodSeconds": 0 }));
    }

    /// Defines the two kinds of policy.
    pub(crate) fn define_policies(&self) {
        for (plural, kind) in [
            ("authorizationpolicies", "AuthorizationPolicy"),
            ("peerauthentications", "PeerAuthentication"),
        ] {
            let any = json!({ "openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
            self.apply(&json!({
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": { "name": format!("{plural}.security.istio.io") },
                "spec": {
                    "group": "security.istio.io",
                    "scope": "Namespaced",
                    "names": {
                        "plural": plural, "kind": kind,
                        "singular": kind.to_lowercase(), "listKind": format!("{kind}List"),
                    },
                    "versions": [{ "name": "v1", "served": true, "storage": true, "schema": any }],
                },
            }));
            let path = format!("/apis/security.istio.io/v1/{plural}");
            within(START, &path, || match self.ask(Method::GET, &path, None) {
                Ok((200, _)) => Ok(()),
                other => Err(other),
            });
        }
    }

    /// The server's version, as it calls itself.
    pub(crate) fn version(&self) -> String {
        match self.ask(Method::GET, "/version", None) {
            Ok((200, body)) => body["gitVersion"].as_str().unwrap_or_default().to_owned(),
            other => panic!("/version: {other:?}"),
        }
    }

    /// The body of an answer that must be a success.
    #[track_caller]
    pub(crate) fn must(&self, method: Method, path: &str, body: &Value) -> Value {
        match self.ask(method.clone(), path, Some(body)) {
            Ok((200..=299, body)) => body,
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    /// Status and body of one answer.
    pub(crate) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        let file = self.dir.path().join("kubeconfig");
        std::fs::write(&file, self.kubeconfig()).expect("the directory is writable");
        let form = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", form)
            .header("accept", "application/json")
            .body(Body::from(body))
            .expect("the parts are well formed");
        self.namespace.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime can be made").block_on(async {
                let client = Access::Kubeconfig(file).client().await;
                let client = client.map_err(|error| error.to_string())?;
                let answer = client.send(request).await;
                let answer = answer.map_err(|error| error.to_string())?;
                let code = answer.status().as_u16();
                let body = answer.into_body().collect().await;
                let bytes = body.map_err(|error| error.to_string())?.to_bytes();
                Ok((code, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
            })
        })
    }
}

/// The path of the collection an object belongs to.
fn path(object: &Value) -> String {
    let api_version = object["apiVersion"].as_str().expect("it has a version");
    let kind = object["kind"].as_str().expect("it has a kind");
    let base = match api_version {
        "v1" => "/api/v1".to_owned(),
        other => format!("/apis/{other}"),
    };
    let plural = match kind {
        "AuthorizationPolicy" => "authorizationpolicies".to_owned(),
        other => format!("{}s", other.to_lowercase()),
    };
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{base}/namespaces/{namespace}/{plural}"),
        None => format!("{base}/{plural}"),
    }
}
