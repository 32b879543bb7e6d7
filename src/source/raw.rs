//! The serde shapes of Kubernetes objects, borrowing from the text they are read from.
//!
//! Only what `read` turns into slim objects is named; serde skips the rest. Every field may be
//! absent or `null`, which the API does not tell apart. A value of the wrong type is an error
//! here, so that the reader can say on which line it stands.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use crate::mesh::canonical_ip;

/// Reads `null` as the default.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// `metadata`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) namespace: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) uid: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) labels: Pairs<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) annotations: Annotations<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) owner_references: Vec<OwnerReference<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) creation_timestamp: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) deletion_timestamp: Option<Text<'a>>,
    /// For a watch, which goes on from it.
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) resource_version: Option<Text<'a>>,
}

/// One of `metadata.ownerReferences`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OwnerReference<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) kind: Text<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) name: Text<'a>,
    #[serde(deserialize_with = "or_default")]
    pub(super) controller: bool,
}

/// A Namespace or a Node: its metadata says everything.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Bare<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) metadata: Meta<'a>,
}

/// A Pod.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Pod<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) spec: PodSpec<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) status: PodStatus<'a>,
}

/// A Pod's `spec`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) node_name: Text<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) service_account_name: Option<Text<'a>>,
    #[serde(deserialize_with = "or_default")]
    pub(super) host_network: bool,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) runtime_class_name: Text<'a>,
}

/// A Pod's `status`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) phase: Option<Text<'a>>,
    #[serde(rename = "podIP", deserialize_with = "or_default")]
    pub(super) pod_ip: Option<Ip>,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub(super) pod_ips: Vec<PodIp>,
}

/// A Service.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Service<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) spec: ServiceSpec<'a>,
}

/// A Service's `spec`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec<'a> {
    #[serde(rename = "type", borrow, deserialize_with = "or_default")]
    pub(super) service_type: Option<Text<'a>>,
    #[serde(rename = "clusterIP", deserialize_with = "or_default")]
    pub(super) cluster_ip: Option<ClusterIp>,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub(super) cluster_ips: Vec<ClusterIp>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) ports: Vec<ServicePort<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) internal_traffic_policy: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) traffic_distribution: Option<Text<'a>>,
    #[serde(deserialize_with = "or_default")]
    pub(super) publish_not_ready_addresses: bool,
}

/// One of a Service's `ports`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServicePort<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) name: Text<'a>,
    #[serde(deserialize_with = "or_default")]
    pub(super) port: u16,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) protocol: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) target_port: Option<TargetPort<'a>>,
}

/// An EndpointSlice.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Slice<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) address_type: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) endpoints: Vec<Endpoint<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) ports: Vec<SlicePort<'a>>,
}

/// One of an EndpointSlice's `endpoints`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Endpoint<'a> {
    #[serde(deserialize_with = "or_default")]
    pub(super) addresses: Vec<Ip>,
    #[serde(deserialize_with = "or_default")]
    pub(super) conditions: Conditions,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) node_name: Text<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) zone: Text<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) hints: Hints<'a>,
}

/// An endpoint's `conditions`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Conditions {
    #[serde(deserialize_with = "or_default")]
    pub(super) ready: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    pub(super) serving: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    pub(super) terminating: Option<bool>,
}

/// An endpoint's `hints`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Hints<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) for_zones: Vec<Hint<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) for_nodes: Vec<Hint<'a>>,
}

/// A zone or a node by name.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Hint<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) name: Text<'a>,
}

/// One of an EndpointSlice's `ports`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SlicePort<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) name: Text<'a>,
    #[serde(deserialize_with = "or_default")]
    pub(super) port: Option<u16>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) protocol: Option<Text<'a>>,
}

/// One of `status.podIPs`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct PodIp {
    #[serde(deserialize_with = "or_default")]
    pub(super) ip: Option<Ip>,
}

/// Text, borrowed wherever the format lets it be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_string<E: Error>(self, text: String) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_str(Words)
    }
}

/// Labels, in the order of the text.
#[derive(Debug, Default)]
pub(super) struct Pairs<'a>(pub(super) Vec<(Text<'a>, Text<'a>)>);

impl Pairs<'_> {
    /// The value of `key`.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(k, _)| **k == *key);
        found.map(|(_, value)| &**value)
    }

    /// All pairs as plain text.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of text to text")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    let value = map.next_value::<Option<Text<'de>>>()?;
                    pairs.push((key, value.unwrap_or_default()));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The annotations that mean something to us.
#[derive(Debug, Default)]
pub(super) struct Annotations<'a> {
    /// `adit.mesh/netns`.
    pub(super) netns: Option<Text<'a>>,
    /// Whether `sidecar.istio.io/status` is there, whatever it says.
    pub(super) sidecar: bool,
    /// Whether `ambient.istio.io/redirection` says `enabled`.
    pub(super) marked: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Annotations<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Annotations<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of text to text")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = Annotations::default();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match &*key {
                        "adit.mesh/netns" => found.netns = map.next_value()?,
                        "ambient.istio.io/redirection" => {
                            let says: Option<Text<'de>> = map.next_value()?;
                            found.marked = says.is_some_and(|says| *says == *"enabled");
                        }
                        other => {
                            found.sidecar |= other == "sidecar.istio.io/status";
                            map.next_value::<serde::de::IgnoredAny>()?;
                        }
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// An IP address, in canonical form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip(pub(super) IpAddr);

impl<'de> Deserialize<'de> for Ip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        match text.parse() {
            Ok(ip) => Ok(Self(canonical_ip(ip))),
            Err(_) => Err(D::Error::custom(format_args!(
                "{:?} is not an IP address",
                &*text
            ))),
        }
    }
}

/// One of a service's `clusterIPs`: an address, or `None` or nothing for a headless service.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClusterIp(pub(super) Option<IpAddr>);

impl<'de> Deserialize<'de> for ClusterIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        match &*text {
            "" | "None" => Ok(Self(None)),
            ip => match ip.parse() {
                Ok(ip) => Ok(Self(Some(canonical_ip(ip)))),
                Err(_) => Err(D::Error::custom(format_args!(
                    "{ip:?} is neither an IP address nor None"
                ))),
            },
        }
    }
}

/// A service port's `targetPort`: a number or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TargetPort<'a> {
    Number(u16),
    Name(Text<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for TargetPort<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = TargetPort<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or a port name")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                let port = u16::try_from(number)
                    .map_err(|_| E::custom(format_args!("{number} is not a port")))?;
                Ok(TargetPort::Number(port))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                Err(E::custom(format_args!("{number} is not a port")))
            }
            fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(TargetPort::Name(Text(Cow::Borrowed(name))))
            }
            fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
                Ok(TargetPort::Name(Text(Cow::Owned(name.to_owned()))))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
