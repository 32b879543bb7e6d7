//! The way of an outbound connection. Pure.
//!
//! 1. The address is a service's: the port must be one of its ports, and an endpoint of the
//!    address's family within the client's reach is drawn. A port that the service does not have,
//!    and a service without an endpoint, are refused: passing them on would only be refused
//!    later, or worse, answered by something else.
//! 2. The address is a pod's: to that pod, whatever the port.
//! 3. Neither, or a finished pod's, or a node's (and so that of any pod on its node's network):
//!    unknown, and passed on as it is.
//!
//! The endpoint that is drawn is a workload if a pod owns its address. Whatever is not a workload
//! that takes tunnels is reached in plain TCP.

use std::net::IpAddr;
use std::sync::Arc;

use crate::identify::{Backend, Snapshot};
use crate::mesh::{
    Family, OriginalDst, PodAddr, Route, Service, TUNNEL_PORT, TunnelAddr, Workload, canonical_ip,
};

/// Why a connection to a known service goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    /// No endpoint of the service is ready within the client's reach.
    #[error("service {}/{} has no endpoint for port {port}", .service.namespace, .service.name)]
    NoEndpoint {
        /// The service that was dialled.
        service: Arc<Service>,
        /// The port that was dialled.
        port: u16,
    },
    /// The service has no such TCP port.
    #[error("service {}/{} has no TCP port {port}", .service.namespace, .service.name)]
    NoPort {
        /// The service that was dialled.
        service: Arc<Service>,
        /// The port that was dialled.
        port: u16,
    },
}

impl Unroutable {
    /// A stable word for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::NoPort { .. } => "no_port",
        }
    }

    /// The service that was dialled.
    #[must_use]
    pub fn service(&self) -> &Arc<Service> {
        match self {
            Self::NoEndpoint { service, .. } | Self::NoPort { service, .. } => service,
        }
    }
}

impl Snapshot {
    /// The way of a connection of `source` to `to`. Where there is a choice, `draw` makes it: 64
    /// random bits, all of which count.
    ///
    /// # Errors
    ///
    /// [`Unroutable`] where `to` is a service's address and leads nowhere.
    pub fn resolve(
        &self,
        source: &Workload,
        to: OriginalDst,
        draw: u64,
    ) -> Result<Route, Unroutable> {
        let ip = canonical_ip(to.ip());
        let Some(entry) = self.entry_at(ip) else {
            return Ok(self.by_address(to));
        };
        let (service, port) = (&entry.service, to.port());
        let mut ports = entry.backends.ports.iter();
        let Some(open) = ports.find(|open| open.number == port) else {
            let service = service.clone();
            return Err(Unroutable::NoPort { service, port });
        };
        let pool = open.family(Family::of(ip));
        let Some(backend) = pick(pool.within_reach(source), draw) else {
            let service = service.clone();
            return Err(Unroutable::NoEndpoint { service, port });
        };
        let workload = self.workload_at(backend.ip);
        Ok(route(workload, Some(service), backend))
    }

    fn by_address(&self, to: OriginalDst) -> Route {
        let (ip, port) = (to.ip(), to.port());
        match self.workload_at(ip) {
            Some(workload) => route(Some(workload), None, Backend { ip, port }),
            None => Route::Unknown { to },
        }
    }
}

fn route(
    workload: Option<&Arc<Workload>>,
    service: Option<&Arc<Service>>,
    backend: Backend,
) -> Route {
    let to = PodAddr::new((backend.ip, backend.port).into());
    let service = service.cloned();
    match workload {
        Some(workload) if workload.tunnelled() => Route::Mesh {
            workload: workload.clone(),
            service,
            to,
            via: tunnel(backend.ip),
        },
        workload => Route::Plain {
            workload: workload.cloned(),
            service,
            to,
        },
    }
}

fn tunnel(ip: IpAddr) -> TunnelAddr {
    TunnelAddr::new((ip, TUNNEL_PORT).into())
}

/// Spreads draws evenly: the whole range of `draw` is cut into as many parts as there are backends.
fn pick(backends: &[Backend], draw: u64) -> Option<Backend> {
    let at = (u128::from(draw) * backends.len() as u128) >> 64;
    backends.get(usize::try_from(at).ok()?).copied()
}
