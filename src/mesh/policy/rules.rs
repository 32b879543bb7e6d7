//! The rules of an AuthorizationPolicy, as they were written.
//!
//! The values mirror the API: a rule has sources, operations and conditions. HTTP fields are kept
//! by name alone, for the evaluator to read as layer 4 must.

use ipnet::IpNet;

use crate::mesh::policy::{Pattern, ServiceAccount, Values};

/// A rule: one of `from`, one of `to` and all of `when` must hold; an empty list always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Where the flow comes from.
    pub from: Vec<Source>,
    /// What it wants.
    pub to: Vec<Operation>,
    /// What else must hold.
    pub when: Vec<Condition>,
}

impl Rule {
    /// The paths of the fields in it that need HTTP.
    pub fn needs_http(&self) -> impl Iterator<Item = String> {
        let from = self.from.iter().enumerate().flat_map(|(at, source)| {
            let fields = source.needs_http.iter();
            fields.map(move |field| format!("from[{at}].source.{field}"))
        });
        let to = self.to.iter().enumerate().flat_map(|(at, operation)| {
            let fields = operation.needs_http.iter();
            fields.map(move |field| format!("to[{at}].operation.{field}"))
        });
        let when = self.when.iter().enumerate();
        let when = when.filter_map(|(at, condition)| match condition {
            Condition::NeedsHttp(key) => Some(format!("when[{at}] {key}")),
            _ => None,
        });
        from.chain(to).chain(when)
    }
}

/// Where a flow comes from: all fields must hold. One without any field matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Identities, without `spiffe://`.
    pub principals: Values<Pattern>,
    /// Namespaces of identities.
    pub namespaces: Values<Pattern>,
    /// Service accounts of identities.
    pub service_accounts: Values<ServiceAccount>,
    /// Addresses of the TCP peer.
    pub ip_blocks: Values<IpNet>,
    /// Fields that are set and need HTTP, or are not served on layer 4.
    pub needs_http: Vec<&'static str>,
}

impl Source {
    /// Whether no field is set, not even one that needs HTTP.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.principals.is_empty()
            && self.namespaces.is_empty()
            && self.service_accounts.is_empty()
            && self.ip_blocks.is_empty()
            && self.needs_http.is_empty()
    }
}

/// What a flow wants: all fields must hold. One without any field matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Ports of the workload, not of a service.
    pub ports: Values<u16>,
    /// Fields that are set and need HTTP.
    pub needs_http: Vec<&'static str>,
}

impl Operation {
    /// Whether no field is set, not even one that needs HTTP.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.needs_http.is_empty()
    }
}

/// A condition on one attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `source.ip`: the TCP peer of this hop.
    SourceIp(Values<IpNet>),
    /// `source.namespace`
    SourceNamespace(Values<Pattern>),
    /// `source.principal`
    SourcePrincipal(Values<Pattern>),
    /// `source.serviceAccount`
    SourceServiceAccount(Values<ServiceAccount>),
    /// `destination.ip`: the pod's address.
    DestinationIp(Values<IpNet>),
    /// `destination.port`: the workload's port.
    DestinationPort(Values<u16>),
    /// An attribute that needs HTTP, or is not served on layer 4.
    NeedsHttp(String),
}

impl Condition {
    /// The attribute it is about, as policies spell it.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::SourceIp(_) => "source.ip",
            Self::SourceNamespace(_) => "source.namespace",
            Self::SourcePrincipal(_) => "source.principal",
            Self::SourceServiceAccount(_) => "source.serviceAccount",
            Self::DestinationIp(_) => "destination.ip",
            Self::DestinationPort(_) => "destination.port",
            Self::NeedsHttp(key) => key,
        }
    }
}
