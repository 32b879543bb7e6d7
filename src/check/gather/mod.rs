//! Gathers facts: from the API server, and from the machine that this runs on.
//!
//! Thin: what is read is made into facts by `shape`, what it means is said by `rules`. What is
//! refused or not there concerns its own checks; when the server does not answer at all, or does
//! not know who asks, there is nothing to check.

mod api;
mod local;
mod rights;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::check::facts::{Cluster, Controller, Felix, ForeignPolicy, Got, Rights, Root, ThisNode};
use crate::check::gather::api::{Api, Form, Unread};
use crate::check::gather::rights::Whose;
use crate::check::shape::{self, Bare, ConfigMap, RuntimeClass};
use crate::check::{Config, Error};
use crate::cluster::Access;

/// The policy kinds' definitions.
const DEFINITIONS: [&str; 2] = [
    "authorizationpolicies.security.istio.io",
    "peerauthentications.security.istio.io",
];
/// Paths of policies of networks' own kinds.
const FOREIGN: [(&str, &str); 5] = [
    (
        "CiliumNetworkPolicy",
        "/apis/cilium.io/v2/ciliumnetworkpolicies",
    ),
    (
        "CiliumClusterwideNetworkPolicy",
        "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
    ),
    (
        "NetworkPolicy of Calico",
        "/apis/crd.projectcalico.org/v1/networkpolicies",
    ),
    (
        "GlobalNetworkPolicy of Calico",
        "/apis/crd.projectcalico.org/v1/globalnetworkpolicies",
    ),
    (
        "AdminNetworkPolicy",
        "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies",
    ),
];
/// Where Calico has the settings of its data plane.
const FELIX: [&str; 2] = [
    "/apis/crd.projectcalico.org/v1/felixconfigurations/default",
    "/apis/projectcalico.org/v3/felixconfigurations/default",
];

/// What the machine says that this runs on. Blocks.
pub(super) fn node(config: &Config) -> Option<ThisNode> {
    config.node.as_ref().map(local::look)
}

/// What the cluster says.
pub(super) async fn cluster(config: &Config, access: &Access) -> Result<Cluster, Error> {
    let api = Api(access.client().await.map_err(Error::Access)?);
    let place = &config.place;
    let ours = place.namespace.as_str();
    let version: Got<Option<Value>> = api.get("/version", Form::Whole).await?;
    let server = version.ok().flatten().unwrap_or_default();
    let daemon_sets = all(&api, "/apis/apps/v1/daemonsets", shape::Controller::fact).await?;
    let path = format!("/apis/apps/v1/namespaces/{ours}/deployments");
    let deployments = all(&api, &path, shape::Controller::fact).await?;
    let found = api
        .list::<Bare>("/api/v1/namespaces", Form::Metadata)
        .await?;
    let namespaces = told(found).map(|all| all.into_iter().map(Bare::namespace).collect());
    let found = api
        .list::<Bare>("/api/v1/serviceaccounts", Form::Metadata)
        .await?;
    let name = |one: Bare| (one.metadata.namespace, one.metadata.name);
    let accounts = told(found).map(|all| all.into_iter().map(name).collect());
    let roots = format!("/api/v1/namespaces/{ours}/configmaps/{}", place.bundle);
    let secret = format!("/api/v1/namespaces/{ours}/secrets/{}", place.secret);
    let secret = api.get::<Bare>(&secret, Form::Metadata).await?;
    let there = |name: &str| match name {
        "adit-control" => may_be(&deployments, ours, name),
        _ => may_be(&daemon_sets, ours, name),
    };
    Ok(Cluster {
        server: server["gitVersion"].as_str().unwrap_or_default().to_owned(),
        rights: rights(&api, config, there).await?,
        nodes: all(&api, "/api/v1/nodes", shape::Node::fact).await?,
        namespaces,
        pods: all(&api, "/api/v1/pods", |pod: shape::Pod| pod.fact(ours)).await?,
        accounts,
        cilium: cilium(&api, &daemon_sets).await?,
        daemon_sets,
        deployments,
        definitions: definitions(&api).await?,
        admission: admission(&api).await?,
        authorization: policies(&api, "authorizationpolicies", shape::authorization).await?,
        peers: policies(&api, "peerauthentications", shape::peer_authentication).await?,
        network_policies: all(
            &api,
            "/apis/networking.k8s.io/v1/networkpolicies",
            shape::NetworkPolicy::fact,
        )
        .await?,
        foreign_policies: foreign(&api).await?,
        felix: felix(&api).await?,
        runtimes: runtimes(&api).await?,
        roots: bundle(&api, &roots).await?,
        secret: secret.map(|found| found.as_ref().map(Bare::secret)),
    })
}

/// Everything of a kind that every cluster has.
async fn all<T: DeserializeOwned, F>(
    api: &Api,
    path: &str,
    fact: impl Fn(T) -> F,
) -> Result<Got<Vec<F>>, Error> {
    let found = told(api.list(path, Form::Whole).await?);
    Ok(found.map(|all| all.into_iter().map(fact).collect()))
}

fn told<T>(found: Result<T, Unread>) -> Got<T> {
    found.map_err(|why| match why {
        Unread::Absent => "the API server does not know of such objects".to_owned(),
        Unread::Refused(why) => why,
    })
}

/// Everything of a kind that a cluster need not have.
async fn any(api: &Api, path: &str) -> Result<Got<Option<Vec<Value>>>, Error> {
    Ok(match api.list(path, Form::Whole).await? {
        Ok(all) => Ok(Some(all)),
        Err(Unread::Absent) => Ok(None),
        Err(Unread::Refused(why)) => Err(why),
    })
}

async fn policies<F>(
    api: &Api,
    plural: &str,
    fact: impl Fn(&Value) -> F,
) -> Result<Got<Vec<F>>, Error> {
    for version in ["v1", "v1beta1"] {
        let path = format!("/apis/security.istio.io/{version}/{plural}");
        match any(api, &path).await? {
            Ok(None) => {}
            Ok(Some(all)) => return Ok(Ok(all.iter().map(fact).collect())),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(Vec::new()))
}

async fn definitions(api: &Api) -> Result<Got<Vec<String>>, Error> {
    let mut found = Vec::new();
    for name in DEFINITIONS {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        match api.get::<Bare>(&path, Form::Metadata).await? {
            Ok(None) => {}
            Ok(Some(_)) => found.push(name.to_owned()),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(found))
}

async fn admission(api: &Api) -> Result<Got<Vec<String>>, Error> {
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let found = told(api.list::<Bare>(path, Form::Metadata).await?);
    Ok(found.map(|all| all.into_iter().map(|one| one.metadata.name).collect()))
}

/// Cilium's settings lie beside its agents.
async fn cilium(
    api: &Api,
    daemon_sets: &Got<Vec<Controller>>,
) -> Result<Got<Option<BTreeMap<String, String>>>, Error> {
    let sets = daemon_sets.as_ref().map_or(&[][..], Vec::as_slice);
    let agent = sets
        .iter()
        .find(|set| matches!(set.name.as_str(), "cilium" | "anetd"));
    let namespace = agent.map_or("kube-system", |agent| &agent.namespace);
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/cilium-config");
    let found = api.get::<ConfigMap>(&path, Form::Whole).await?;
    Ok(found.map(|map| map.map(|map| map.data)))
}

async fn felix(api: &Api) -> Result<Got<Option<Felix>>, Error> {
    for path in FELIX {
        match api.get::<Value>(path, Form::Whole).await? {
            Ok(None) => {}
            Ok(Some(object)) => return Ok(Ok(Some(shape::felix(&object)))),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(None))
}

async fn foreign(api: &Api) -> Result<Got<Vec<ForeignPolicy>>, Error> {
    let mut found = Vec::new();
    for (kind, path) in FOREIGN {
        match any(api, path).await? {
            Ok(all) => {
                let all = all.unwrap_or_default();
                found.extend(all.iter().map(|one| shape::foreign(kind, one)));
            }
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(found))
}

async fn runtimes(api: &Api) -> Result<Got<BTreeMap<String, String>>, Error> {
    let path = "/apis/node.k8s.io/v1/runtimeclasses";
    let found = told(api.list::<RuntimeClass>(path, Form::Whole).await?);
    let pair = |one: RuntimeClass| (one.metadata.name, one.handler);
    Ok(found.map(|all| all.into_iter().map(pair).collect()))
}

async fn bundle(api: &Api, path: &str) -> Result<Got<Option<Vec<Root>>>, Error> {
    let found = api.get::<ConfigMap>(path, Form::Whole).await?;
    Ok(found.map(|map| {
        let bundle = map.map(|map| map.data.get("root-cert.pem").cloned());
        bundle.map(|text| shape::roots(&text.unwrap_or_default()))
    }))
}

/// Before an installation it is one's own rights that count; after, those of what runs, which `there`
/// tells by name.
async fn rights(
    api: &Api,
    config: &Config,
    there: impl Fn(&str) -> bool,
) -> Result<Vec<Rights>, Error> {
    let place = &config.place;
    let (daemon, control) = ("run a daemon", "run the certificate authority");
    if config.pre {
        let all = rights::install(place);
        return Ok(vec![
            rights::ask(api, Whose::Own, "install Adit", &all).await?,
        ]);
    }
    // Beside a daemon, its own account asks.
    if config.access == Some(Access::InCluster) && config.node.is_some() {
        let all = rights::daemon();
        return Ok(vec![rights::ask(api, Whose::Own, daemon, &all).await?]);
    }
    let all = [
        ("adit-node", daemon, rights::daemon()),
        ("adit-control", control, rights::control(place)),
    ];
    let mut found = Vec::new();
    for (name, purpose, all) in all {
        if there(name) {
            let namespace = place.namespace.as_str();
            let whose = Whose::Account { namespace, name };
            found.push(rights::ask(api, whose, purpose, &all).await?);
        }
    }
    Ok(found)
}

/// Whether there is one of that name in this namespace; it may be where that is not known.
fn may_be(all: &Got<Vec<Controller>>, namespace: &str, name: &str) -> bool {
    all.as_ref().map_or(true, |all| {
        all.iter()
            .any(|one| one.namespace == namespace && one.name == name)
    })
}
