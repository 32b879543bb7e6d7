//! The two ends of a question, found by the names that people use for them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::explain::{Error, Facts, Settings};
use crate::mesh::{Family, Identity, Service, Workload, canonical, canonical_ip};

/// Who would connect.
pub(super) struct Origin {
    /// The pod, where it is one.
    pub(super) workload: Option<Arc<Workload>>,
    /// The address that was asked with, if any.
    ip: Option<IpAddr>,
    text: String,
}

impl Origin {
    /// Finds `namespace/pod` or an address.
    pub(super) fn find(facts: &impl Facts, text: &str) -> Result<Self, Error> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            let ip = canonical_ip(ip);
            return Ok(Self {
                workload: facts.workload_at(ip).map(Arc::clone),
                ip: Some(ip),
                text: text.to_owned(),
            });
        }
        let (namespace, name) = text.split_once('/').ok_or_else(|| Error::Form {
            text: text.to_owned(),
            expected: "a source: namespace/pod or an IP address",
        })?;
        let workload = facts.workload(namespace, name);
        let workload = workload.ok_or_else(|| Error::Unknown(text.to_owned()))?;
        Ok(Self {
            workload: Some(Arc::clone(workload)),
            ip: None,
            text: text.to_owned(),
        })
    }

    /// Who it could prove to be.
    pub(super) fn identity(&self) -> Option<Identity> {
        self.workload
            .as_ref()
            .map(|workload| workload.identity.clone())
    }

    /// The address from which it would reach `to`.
    pub(super) fn towards(&self, to: IpAddr) -> Result<IpAddr, Error> {
        let family = Family::of(to);
        let asked = self.ip.filter(|ip| Family::of(*ip) == family);
        let own = || {
            self.workload
                .as_ref()
                .and_then(|workload| workload.ip(family))
        };
        asked
            .or_else(own)
            .ok_or_else(|| Error::NoAddress(self.text.clone()))
    }

    /// An address to show: of the family of `to`, if it has one.
    pub(super) fn address(&self, to: IpAddr) -> IpAddr {
        let first = || self.workload.as_ref().and_then(|w| w.ips.first().copied());
        let best = self.towards(to).ok().or(self.ip).or_else(first);
        best.unwrap_or(match Family::of(to) {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        })
    }
}

/// What would be dialled.
pub(super) struct Dialled {
    /// The address and port.
    pub(super) addr: SocketAddr,
    /// The service that owns the address.
    pub(super) service: Option<Arc<Service>>,
    /// What the one who asks should know.
    pub(super) notices: Vec<String>,
}

const EXPECTED: &str = "a destination: namespace/pod:port, namespace/service:port, \
                        name.namespace[.svc[.domain]]:port or an IP address and port";

impl Dialled {
    /// Finds a pod, a service or an address, each with a port. A pod goes before a service of
    /// the same name; the service's hostname then still names the service.
    pub(super) fn find(
        facts: &impl Facts,
        settings: Settings<'_>,
        origin: &Origin,
        text: &str,
    ) -> Result<Self, Error> {
        let form = || Error::Form {
            text: text.to_owned(),
            expected: EXPECTED,
        };
        if let Ok(addr) = text.parse::<SocketAddr>() {
            let addr = canonical(addr);
            let service = facts.service_at(addr.ip()).map(Arc::clone);
            return Ok(Self::at(addr, service));
        }
        let (name, port) = text.rsplit_once(':').ok_or_else(form)?;
        let port: u16 = port.parse().map_err(|_| form())?;
        if let Some((namespace, name)) = name.split_once('/') {
            let service = facts.service(namespace, name);
            let Some(pod) = facts.workload(namespace, name) else {
                let service = service.ok_or_else(|| Error::Unknown(text.to_owned()))?;
                return Self::of_service(service, origin, port);
            };
            let ip = reachable(&pod.ips, origin, text)?;
            let mut dialled = Self::at(SocketAddr::new(ip, port), None);
            dialled.notices.extend(service.map(|_| {
                format!(
                    "{namespace}/{name} is also a service: ask for {name}.{namespace} to mean it"
                )
            }));
            return Ok(dialled);
        }
        let (service, namespace) = hostname(name, settings.cluster_domain).ok_or_else(form)?;
        let service = facts.service(namespace, service);
        let service = service.ok_or_else(|| Error::Unknown(text.to_owned()))?;
        Self::of_service(service, origin, port)
    }

    fn at(addr: SocketAddr, service: Option<Arc<Service>>) -> Self {
        let one_of_many = "one of the service's endpoints was taken, and policy may differ by \
                           endpoint: ask for a pod to be sure";
        let one_of_many = service.is_some().then(|| one_of_many.to_owned());
        Self {
            addr,
            service,
            notices: one_of_many.into_iter().collect(),
        }
    }

    fn of_service(service: &Arc<Service>, origin: &Origin, port: u16) -> Result<Self, Error> {
        let name = format!("{}/{}", service.namespace, service.name);
        let ip = reachable(&service.vips, origin, &name)?;
        Ok(Self::at(
            SocketAddr::new(ip, port),
            Some(Arc::clone(service)),
        ))
    }
}

/// The first address that the source has a family for. A source that is no pod and was not asked
/// for by address cannot be.
fn reachable(ips: &[IpAddr], origin: &Origin, name: &str) -> Result<IpAddr, Error> {
    let mut ips = ips.iter().copied();
    ips.find(|ip| origin.towards(*ip).is_ok())
        .ok_or_else(|| Error::NoAddress(name.to_owned()))
}

/// Splits `name.namespace`, also with `.svc` or `.svc.domain` behind it.
fn hostname<'n>(text: &'n str, cluster_domain: &str) -> Option<(&'n str, &'n str)> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let below = text
        .strip_suffix(cluster_domain)
        .and_then(|t| t.strip_suffix('.'));
    let below = below.filter(|text| text.ends_with(".svc")).unwrap_or(text);
    let short = below.strip_suffix(".svc").unwrap_or(below);
    let (name, namespace) = short.split_once('.')?;
    let whole = !name.is_empty() && !namespace.is_empty() && !namespace.contains('.');
    whole.then_some((name, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostnames_of_services() {
        let check = |text: &str, expect: Option<(&str, &str)>| {
            assert_eq!(hostname(text, "cluster.local"), expect, "{text:?}");
        };
        let web = Some(("web", "shop"));
        check("web.shop", web);
        check("web.shop.svc", web);
        check("web.shop.svc.cluster.local", web);
        check("web.shop.svc.cluster.local.", web);
        check("web", None);
        check("web.shop.svc.other.domain", None);
        check("web.shop.cluster.local", None);
        check("pod.web.shop.svc", None);
        check(".shop", None);
        check("", None);
    }
}
