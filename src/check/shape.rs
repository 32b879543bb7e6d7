//! From the API's JSON to facts. Pure.
//!
//! Each object is read in one pass that skips what nobody asks for. `null` is an absent field, as
//! the API has it.

mod network;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::check::facts::{self, Felix, ForeignPolicy, Root, SecretNotes};
use crate::check::selector::Selector;
use crate::mesh::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::mesh::{Labels, Phase, TUNNEL_PORT};
use crate::pki::authority::{self, Part};

pub(crate) use network::NetworkPolicy;

/// Reads `null` as what is not there.
pub(crate) fn nullable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

type Texts = BTreeMap<String, String>;

/// A page of a list.
#[derive(Deserialize)]
pub(crate) struct List<T> {
    #[serde(default)]
    pub(crate) metadata: ListMeta,
    #[serde(default = "Option::default")]
    pub(crate) items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
pub(crate) struct ListMeta {
    /// Where the next page begins.
    #[serde(default, rename = "continue", deserialize_with = "nullable")]
    pub(crate) next: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) namespace: String,
    #[serde(deserialize_with = "nullable")]
    labels: Texts,
    #[serde(deserialize_with = "nullable")]
    pub(crate) annotations: Texts,
    #[serde(deserialize_with = "nullable")]
    creation_timestamp: String,
    deletion_timestamp: Option<IgnoredAny>,
}

impl Meta {
    fn labels(&self) -> Labels {
        labels(&self.labels)
    }

    fn time(&self, annotation: &str) -> Option<SystemTime> {
        time(self.annotations.get(annotation)?)
    }
}

fn labels(texts: &Texts) -> Labels {
    let pairs = texts.iter();
    Labels::new(pairs.map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str()))))
}

fn time(text: &str) -> Option<SystemTime> {
    Some(text.trim().parse::<Timestamp>().ok()?.into())
}

/// An object of which the metadata are all that is asked.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Bare {
    pub(crate) metadata: Meta,
}

impl Bare {
    pub(crate) fn namespace(self) -> facts::Namespace {
        let linkerd = self.metadata.annotations.get("linkerd.io/inject");
        facts::Namespace {
            labels: self.metadata.labels(),
            linkerd: linkerd.is_some_and(|value| value != "disabled"),
            name: self.metadata.name,
        }
    }

    pub(crate) fn secret(&self) -> SecretNotes {
        SecretNotes {
            staged: self.metadata.time("adit.mesh/staged-at"),
            promoted: self.metadata.time("adit.mesh/promoted-at"),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    metadata: Meta,
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
    node_info: NodeInfo,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeInfo {
    kernel_version: String,
    container_runtime_version: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

fn is_ready(conditions: &[Condition]) -> bool {
    let mut all = conditions.iter();
    all.any(|one| one.kind == "Ready" && one.status == "True")
}

impl Node {
    pub(crate) fn fact(self) -> facts::Node {
        facts::Node {
            labels: self.metadata.labels(),
            name: self.metadata.name,
            ready: is_ready(&self.status.conditions),
            kernel: self.status.node_info.kernel_version,
            runtime: self.status.node_info.container_runtime_version,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    metadata: Meta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    #[serde(deserialize_with = "nullable")]
    node_name: String,
    #[serde(deserialize_with = "nullable")]
    host_network: bool,
    #[serde(deserialize_with = "nullable")]
    service_account_name: String,
    runtime_class_name: Option<String>,
    #[serde(deserialize_with = "nullable")]
    node_selector: Texts,
    #[serde(deserialize_with = "nullable")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    init_containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    image: String,
    #[serde(deserialize_with = "nullable")]
    command: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    env: Vec<Variable>,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<ContainerPort>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    container_port: u16,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    #[serde(deserialize_with = "nullable")]
    phase: String,
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

impl Pod {
    /// The pod; `ours` is the namespace in which images matter.
    pub(crate) fn fact(self, ours: &str) -> facts::Pod {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let note = |key: &str| metadata.annotations.get(key).map(String::as_str);
        let containers = || spec.containers.iter().chain(&spec.init_containers);
        facts::Pod {
            labels: metadata.labels(),
            ips: status
                .pod_ips
                .iter()
                .filter_map(|one| one.ip.parse::<IpAddr>().ok())
                .collect(),
            phase: match status.phase.as_str() {
                "Succeeded" | "Failed" => Phase::Finished,
                "Running" | "Unknown" | "" => Phase::Running,
                _ => Phase::Pending,
            },
            ready: is_ready(&status.conditions),
            terminating: metadata.deletion_timestamp.is_some(),
            created: time(&metadata.creation_timestamp),
            host_network: spec.host_network,
            sidecar: note("sidecar.istio.io/status").is_some(),
            linkerd: containers().any(|one| one.name == "linkerd-proxy"),
            marked: note("ambient.istio.io/redirection") == Some("enabled"),
            from_file: note("kubernetes.io/config.mirror").is_some(),
            ports: containers()
                .flat_map(|one| one.ports.iter().map(|port| port.container_port))
                .collect(),
            images: match metadata.namespace == ours {
                true => spec
                    .containers
                    .iter()
                    .map(|one| one.image.clone())
                    .collect(),
                false => Vec::new(),
            },
            runtime_class: spec.runtime_class_name,
            node: spec.node_name,
            namespace: metadata.namespace,
            name: metadata.name,
        }
    }
}

/// A DaemonSet or a Deployment.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Controller {
    metadata: Meta,
    spec: ControllerSpec,
    status: ControllerStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ControllerSpec {
    replicas: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    selector: Selector,
    template: Template,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Template {
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ControllerStatus {
    desired_number_scheduled: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    number_ready: u64,
    #[serde(deserialize_with = "nullable")]
    ready_replicas: u64,
}

impl Controller {
    pub(crate) fn fact(self) -> facts::Controller {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let pods = spec.template.spec;
        let each = || pods.containers.iter();
        let variables = each().flat_map(|one| &one.env);
        let known = variables.filter_map(|one| Some((one.name.clone(), one.value.clone()?)));
        facts::Controller {
            selector: spec.selector,
            node_selector: labels(&pods.node_selector),
            images: each().map(|one| one.image.clone()).collect(),
            arguments: each()
                .flat_map(|one| one.command.iter().chain(&one.args).cloned())
                .collect(),
            variables: known.collect(),
            // A Deployment's replicas are one where it says nothing.
            wanted: status
                .desired_number_scheduled
                .or(spec.replicas)
                .unwrap_or(1),
            ready: status.number_ready + status.ready_replicas,
            account: pods.service_account_name,
            namespace: metadata.namespace,
            name: metadata.name,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigMap {
    #[serde(deserialize_with = "nullable")]
    pub(crate) data: Texts,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct RuntimeClass {
    pub(crate) metadata: Meta,
    pub(crate) handler: String,
}

/// Calico's `FelixConfiguration`.
pub(crate) fn felix(object: &Value) -> Felix {
    let spec = &object["spec"];
    let text = spec["bpfConnectTimeLoadBalancing"].as_str();
    Felix {
        ebpf: spec["bpfEnabled"] == true,
        // The data plane's defaults: for TCP, unless the older switch says no.
        connect_time: match text {
            Some(mode) => mode != "Disabled",
            None => spec["bpfConnectTimeLoadBalancingEnabled"] != false,
        },
    }
}

/// A policy of the network's own kind, by what its text names.
pub(crate) fn foreign(kind: &'static str, object: &Value) -> ForeignPolicy {
    let text = |field: &str| {
        let text = object["metadata"][field].as_str();
        text.unwrap_or_default().to_owned()
    };
    let spec = format!("{}{}", object["spec"], object["specs"]);
    let names_ports = ["\"toPorts\":", "\"ports\":"]
        .iter()
        .any(|word| spec.contains(word));
    ForeignPolicy {
        kind,
        namespace: text("namespace"),
        name: text("name"),
        lacks_tunnel: names_ports && !spec.contains(&TUNNEL_PORT.to_string()),
    }
}

/// An `AuthorizationPolicy`.
pub(crate) fn authorization(object: &Value) -> AuthorizationPolicy {
    let (meta, spec) = parts(object);
    AuthorizationPolicy::read(&meta.name, &meta.namespace, &meta.annotations, spec)
}

/// A `PeerAuthentication`.
pub(crate) fn peer_authentication(object: &Value) -> PeerAuthentication {
    let (meta, spec) = parts(object);
    PeerAuthentication::read(&meta.name, &meta.namespace, &meta.annotations, spec)
}

fn parts(object: &Value) -> (Meta, &Value) {
    let meta = object.get("metadata").map(Meta::deserialize);
    let meta = meta.and_then(Result::ok).unwrap_or_default();
    (meta, object.get("spec").unwrap_or(&Value::Null))
}

/// The certificates of a bundle of roots; none where it cannot be read.
pub(crate) fn roots(bundle: &str) -> Vec<Root> {
    let all = authority::read_bundle(bundle.as_bytes(), Part::Roots).unwrap_or_default();
    all.iter().map(|one| root(one)).collect()
}

fn root(der: &[u8]) -> Root {
    let Ok((_, parsed)) = parse_x509_certificate(der) else {
        return Root {
            subject: "a certificate that cannot be read".to_owned(),
            ends: None,
            trust_domain: None,
        };
    };
    let ends = u64::try_from(parsed.validity().not_after.timestamp()).ok();
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let domain = names.filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.split('/').next(),
        _ => None,
    });
    let trust_domain = domain.map(str::to_owned).next();
    Root {
        subject: parsed.subject().to_string(),
        ends: ends.and_then(|ends| UNIX_EPOCH.checked_add(Duration::from_secs(ends))),
        trust_domain,
    }
}

#[cfg(test)]
mod tests;
