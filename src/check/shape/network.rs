//! NetworkPolicies, from the API's JSON to facts.

use serde::Deserialize;
use serde_json::Value;

use crate::check::facts;
use crate::check::selector::Selector;
use crate::check::shape::{Meta, nullable};

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkPolicy {
    metadata: Meta,
    spec: NetworkPolicySpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NetworkPolicySpec {
    #[serde(deserialize_with = "nullable")]
    pod_selector: Selector,
    #[serde(deserialize_with = "nullable")]
    policy_types: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    ingress: Vec<NetworkRule>,
    #[serde(deserialize_with = "nullable")]
    egress: Vec<NetworkRule>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NetworkRule {
    #[serde(deserialize_with = "nullable")]
    from: Vec<NetworkPeer>,
    #[serde(deserialize_with = "nullable")]
    to: Vec<NetworkPeer>,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<NetworkPort>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NetworkPeer {
    namespace_selector: Option<Selector>,
    pod_selector: Option<Selector>,
    ip_block: Option<IpBlock>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct IpBlock {
    cidr: String,
    #[serde(deserialize_with = "nullable")]
    except: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NetworkPort {
    protocol: Option<String>,
    port: Option<Value>,
    end_port: Option<u16>,
}

impl NetworkPolicy {
    pub(crate) fn fact(self) -> facts::NetworkPolicy {
        let NetworkPolicySpec {
            pod_selector,
            policy_types,
            ingress,
            egress,
        } = self.spec;
        let says = |kind: &str| policy_types.iter().any(|one| one == kind);
        // The API's default: always ingress, and egress where there are rules for it.
        let silent = policy_types.is_empty();
        let (has_in, has_out) = (
            silent || says("Ingress"),
            says("Egress") || silent && !egress.is_empty(),
        );
        let rules = |rules: Vec<NetworkRule>| rules.into_iter().map(allowance).collect();
        facts::NetworkPolicy {
            namespace: self.metadata.namespace,
            name: self.metadata.name,
            pods: pod_selector,
            ingress: has_in.then(|| rules(ingress)),
            egress: has_out.then(|| rules(egress)),
        }
    }
}

fn allowance(rule: NetworkRule) -> facts::Allowance {
    let peers = rule.from.into_iter().chain(rule.to);
    facts::Allowance {
        peers: peers.map(peer).collect(),
        ports: rule.ports.iter().map(range).collect(),
    }
}

fn peer(peer: NetworkPeer) -> facts::PeerOf {
    let block = peer.ip_block.and_then(|block| {
        let except = block
            .except
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        let within = block.cidr.parse().ok()?;
        Some(facts::PeerOf::Block { within, except })
    });
    block.unwrap_or(facts::PeerOf::Pods {
        namespaces: peer.namespace_selector,
        pods: peer.pod_selector.unwrap_or_default(),
    })
}

fn range(port: &NetworkPort) -> facts::PortRange {
    if port
        .protocol
        .as_deref()
        .is_some_and(|protocol| protocol != "TCP")
    {
        return facts::PortRange::Other;
    }
    match &port.port {
        None | Some(Value::Null) => facts::PortRange::Tcp(0, u16::MAX),
        Some(Value::Number(number)) => {
            let first = number
                .as_u64()
                .and_then(|number| u16::try_from(number).ok());
            first.map_or(facts::PortRange::Other, |first| {
                facts::PortRange::Tcp(first, port.end_port.unwrap_or(first))
            })
        }
        Some(_) => facts::PortRange::Named,
    }
}
