//! An API server as its users have it: objects go in through HTTP, whichever server it is.

use adit::cluster::Access;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};

use crate::bed::{Bed, MENDED};
use crate::real::Real;
use crate::support::apiserver::{ApiServer, Options};
use crate::support::within;

/// The server of the suite that runs against either.
pub(crate) enum Cluster {
    Fake(Box<ApiServer>),
    Real(Box<Real>),
}

impl Cluster {
    /// A bed beside the server that was asked for.
    pub(crate) fn new() -> (Bed, Self) {
        let bed = Bed::new();
        let cluster = match std::env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty()) {
            Some(assets) => Self::Real(Box::new(Real::start(assets.as_ref(), &bed))),
            None => Self::Fake(Box::new(ApiServer::start(Options {
                namespace: Some(bed.namespace.clone()),
                ..Options::default()
            }))),
        };
        (bed, cluster)
    }

    pub(crate) fn is_fake(&self) -> bool {
        matches!(self, Self::Fake(_))
    }

    pub(crate) fn kubeconfig(&self) -> String {
        match self {
            Self::Fake(api) => api.kubeconfig("{}"),
            Self::Real(real) => real.kubeconfig(),
        }
    }

    pub(crate) fn stop(&mut self) {
        match self {
            Self::Fake(api) => api.stop(),
            Self::Real(real) => real.stop(),
        }
    }

    pub(crate) fn resume(&mut self, bed: &Bed) {
        match self {
            Self::Fake(api) => api.resume(),
            Self::Real(real) => real.resume(),
        }
        within(MENDED, "the API server answers", || {
            match self.ask(bed, Method::GET, "/readyz", None) {
                Ok((200, _)) => Ok(()),
                other => Err(other),
            }
        });
    }

    /// Creates an object or merges it into the one that is there, with its status.
    #[track_caller]
    pub(crate) fn apply(&self, bed: &Bed, object: &Value) {
        let path = path(object);
        let name = object["metadata"]["name"].as_str().expect("it has a name");
        let created = self.ask(bed, Method::POST, &path, Some(object));
        match created {
            Ok((201, _)) => {}
            Ok((409, _)) => self.must(bed, Method::PATCH, &format!("{path}/{name}"), object),
            other => panic!("POST {path}: {other:?}"),
        }
        if object["status"].is_object() {
            let status = json!({ "status": object["status"] });
            self.must(
                bed,
                Method::PATCH,
                &format!("{path}/{name}/status"),
                &status,
            );
        }
    }

    #[track_caller]
    pub(crate) fn delete(&self, bed: &Bed, object: &Value) {
        let name = object["metadata"]["name"].as_str().expect("it has a name");
        let path = format!("{}/{name}", path(object));
        self.must(
            bed,
            Method::DELETE,
            &path,
            &json!({ "gracePeriodSeconds": 0 }),
        );
    }

    /// Defines the two kinds of policy.
    pub(crate) fn define_policies(&self, bed: &Bed) {
        for (plural, kind) in [
            ("authorizationpolicies", "AuthorizationPolicy"),
            ("peerauthentications", "PeerAuthentication"),
        ] {
            let any = json!({ "openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
            self.apply(
                bed,
                &json!({
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
                }),
            );
            let path = format!("/apis/security.istio.io/v1/{plural}");
            within(MENDED, &path, || {
                match self.ask(bed, Method::GET, &path, None) {
                    Ok((200, _)) => Ok(()),
                    other => Err(other),
                }
            });
        }
    }

    /// The server's version, as it calls itself.
    pub(crate) fn version(&self, bed: &Bed) -> String {
        match self.ask(bed, Method::GET, "/version", None) {
            Ok((200, body)) => body["gitVersion"].as_str().unwrap_or_default().to_owned(),
            other => panic!("/version: {other:?}"),
        }
    }

    #[track_caller]
    fn must(&self, bed: &Bed, method: Method, path: &str, body: &Value) {
        match self.ask(bed, method.clone(), path, Some(body)) {
            Ok((200..=299, _)) => {}
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    /// Status and body of one answer.
    pub(crate) fn ask(
        &self,
        bed: &Bed,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        let file = bed.path("test.kubeconfig");
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
        bed.namespace.enter(|| {
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
