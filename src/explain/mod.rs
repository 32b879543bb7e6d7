//! Answers `adit explain SRC DST:PORT`: what would become of a connection, and which policy and
//! rule say so.
//!
//! The node asks it with its own state, the command line with what it read from files. It walks
//! the same journey that a connection does, through the same resolution and the same evaluator,
//! and decides nothing itself. Pure: facts in, an [`Explanation`] out.

mod question;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::api::explain::{DryRun, End, Explanation, Mtls, Policy, Route as Told, Verdict};
use crate::authorize::{Considered, Evaluator, Policies};
use crate::explain::question::{Dialled, Origin};
use crate::identify::Snapshot;
use crate::mesh::policy::{Body, Notice, PolicyName};
use crate::mesh::{
    Direction, Enrolment, Flow, Local, OriginalDst, Path, Peer, PodAddr, Route, Service,
    TunnelAddr, Workload,
};

/// What an explanation asks of the index.
pub trait Facts {
    /// The pod of that name.
    fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>>;
    /// The pod that owns the address.
    fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>>;
    /// The service of that name.
    fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>>;
    /// The service that owns the address.
    fn service_at(&self, ip: IpAddr) -> Option<&Arc<Service>>;
    /// Where a connection of `source` to that address goes; of several endpoints, any one.
    ///
    /// # Errors
    ///
    /// A stable word for why it goes nowhere.
    fn resolve(&self, source: &Workload, to: OriginalDst) -> Result<Route, &'static str>;
}

impl Facts for Snapshot {
    fn workload(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        Self::workload(self, namespace, name)
    }

    fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        Self::workload_at(self, ip)
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        Self::service(self, namespace, name)
    }

    fn service_at(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        Self::service_at(self, ip)
    }

    fn resolve(&self, source: &Workload, to: OriginalDst) -> Result<Route, &'static str> {
        Self::resolve(self, source, to, 0).map_err(|unroutable| unroutable.reason())
    }
}

/// How the mesh is set up, as far as an explanation depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'s> {
    /// The domain below which services have names, such as `cluster.local`.
    pub cluster_domain: &'s str,
    /// Whether two pods of one node are joined without a tunnel (`--same-node=direct`).
    pub same_node_direct: bool,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is no question.
    #[error("{text:?} is not {expected}")]
    Form {
        /// What was asked.
        text: String,
        /// What is understood.
        expected: &'static str,
    },
    /// No pod or service has that name.
    #[error("nothing is known by the name {0:?}")]
    Unknown(String),
    /// The two ends have no address of a common family.
    #[error("{0:?} has no address that the source could reach")]
    NoAddress(String),
    /// Which pod of a service a connection from outside reaches is not for this mesh to say.
    #[error("the source is no pod, so which pod of {0:?} it reaches is not known; ask with a pod")]
    OutsideToService(String),
}

impl Error {
    /// A stable word for callers that are programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Form { .. } => "form",
            Self::Unknown(_) => "unknown",
            Self::NoAddress(_) => "no_address",
            Self::OutsideToService(_) => "outside_to_service",
        }
    }
}

/// Where a connection would go.
enum Way {
    /// To a pod of the mesh, where policy is enforced.
    Enforced {
        workload: Arc<Workload>,
        service: Option<Arc<Service>>,
        to: PodAddr,
        via: Option<TunnelAddr>,
        path: Path,
    },
    /// Past the mesh.
    Outside {
        workload: Option<Arc<Workload>>,
        to: SocketAddr,
    },
    /// Within the source pod; such calls are not captured.
    Within,
    /// Nowhere, and why.
    Nowhere(&'static str),
}

/// Explains a connection from `source` (`namespace/pod` or an address) to `destination` (a pod or
/// service as `namespace/name`, a service's hostname, or an address, each with `:port`).
///
/// # Errors
///
/// [`Error`] when there is no such question. A connection that is refused is an answer.
pub fn explain(
    facts: &impl Facts,
    policies: &Policies,
    settings: Settings<'_>,
    source: &str,
    destination: &str,
) -> Result<Explanation, Error> {
    let origin = Origin::find(facts, source)?;
    let dialled = Dialled::find(facts, settings, &origin, destination)?;
    let way = way(facts, settings, &origin, &dialled)?;
    let mut told = outline(&origin, &dialled, &way);
    if let Way::Enforced {
        workload,
        service,
        to,
        path,
        ..
    } = way
    {
        let flow = Flow {
            direction: Direction::Inbound,
            source: Peer {
                addr: SocketAddr::new(origin.towards(to.ip())?, 0),
                identity: origin.identity().filter(|_| path.authenticated()),
                workload: origin.workload,
            },
            destination: Local {
                addr: to.get(),
                workload: Some(Arc::clone(&workload)),
                service,
            },
            path,
        };
        enforce(&mut told, policies, &policies.evaluator(&workload), flow);
    }
    Ok(told)
}

fn way(
    facts: &impl Facts,
    settings: Settings<'_>,
    origin: &Origin,
    dialled: &Dialled,
) -> Result<Way, Error> {
    let Some(source) = &origin.workload else {
        if let Some(service) = &dialled.service {
            let name = format!("{}/{}", service.namespace, service.name);
            return Err(Error::OutsideToService(name));
        }
        let to = dialled.addr;
        let workload = facts.workload_at(to.ip()).map(Arc::clone);
        return Ok(match workload.filter(|workload| workload.tunnelled()) {
            Some(workload) => Way::Enforced {
                workload,
                service: None,
                to: PodAddr::new(to),
                via: None,
                path: Path::Plain,
            },
            None => Way::Outside {
                workload: facts.workload_at(to.ip()).map(Arc::clone),
                to,
            },
        });
    };
    if source.ips.contains(&dialled.addr.ip()) {
        return Ok(Way::Within);
    }
    let route = match facts.resolve(source, OriginalDst::new(dialled.addr)) {
        Ok(route) => route,
        Err(reason) => return Ok(Way::Nowhere(reason)),
    };
    Ok(match route {
        Route::Mesh {
            workload,
            service,
            to,
            via,
        } => {
            let path = path(settings, source, &workload);
            Way::Enforced {
                workload,
                service,
                to,
                via: (path == Path::Tunnel).then_some(via),
                path,
            }
        }
        Route::Plain { workload, to, .. } => Way::Outside {
            workload,
            to: to.get(),
        },
        Route::Unknown { to } => Way::Outside {
            workload: None,
            to: to.get(),
        },
    })
}

fn path(settings: Settings<'_>, source: &Workload, destination: &Workload) -> Path {
    let same_node = !source.node.is_empty() && source.node == destination.node;
    match (source.enrolled(), same_node && settings.same_node_direct) {
        (false, _) => Path::Plain,
        (true, true) => Path::SameNode,
        (true, false) => Path::Tunnel,
    }
}

/// All that can be told before policy is asked.
fn outline(origin: &Origin, dialled: &Dialled, way: &Way) -> Explanation {
    let route = |path: &str, to: Option<SocketAddr>, via: Option<TunnelAddr>| Told {
        path: path.to_owned(),
        to: to.map(|to| to.to_string()),
        via: via.map(|via| via.to_string()),
    };
    let verdict = |permitted, reason: &str, text: &str| Verdict {
        permitted,
        reason: reason.to_owned(),
        policy: None,
        rule: None,
        text: text.to_owned(),
    };
    let (route, destination, verdict) = match way {
        Way::Enforced {
            workload,
            to,
            via,
            path,
            ..
        } => (
            route(path.as_str(), Some(to.get()), *via),
            Some(end(Some(workload), to.ip())),
            verdict(
                true,
                "no_allow_policy",
                "no ALLOW policy binds the destination",
            ),
        ),
        Way::Outside { workload, to } => (
            route(Path::Plain.as_str(), Some(*to), None),
            Some(end(workload.as_ref(), to.ip())),
            verdict(true, "not_enforced", "the destination is outside the mesh"),
        ),
        Way::Within => (
            route("local", Some(dialled.addr), None),
            None,
            verdict(
                true,
                "not_captured",
                "a pod's calls to itself are not captured",
            ),
        ),
        Way::Nowhere(reason) => (
            route("none", None, None),
            None,
            verdict(
                false,
                reason,
                &format!("there is no way ({reason}), so the call is reset"),
            ),
        ),
    };
    Explanation {
        source: end(origin.workload.as_ref(), origin.address(dialled.addr.ip())),
        dialled: dialled.addr.to_string(),
        service: dialled
            .service
            .as_ref()
            .map(|s| format!("{}/{}", s.namespace, s.name)),
        route,
        destination,
        mtls: None,
        policies: Vec::new(),
        verdict,
        dry_run: Vec::new(),
        notices: dialled.notices.clone(),
    }
}

fn end(workload: Option<&Arc<Workload>>, address: IpAddr) -> End {
    End {
        pod: workload.map(|w| format!("{}/{}", w.namespace, w.name)),
        address: address.to_string(),
        identity: workload.map(|w| w.identity.to_string()),
        enrolment: match workload.map(|w| w.enrolment) {
            Some(Enrolment::Enrolled) => "enrolled",
            Some(Enrolment::Bypass(why)) => why.reason(),
            None => "outside the mesh",
        }
        .to_owned(),
    }
}

/// Asks the evaluator, and tells what it says.
fn enforce(told: &mut Explanation, policies: &Policies, evaluator: &Evaluator, flow: Flow) {
    let mtls = evaluator.mtls(flow.destination.addr.port());
    told.mtls = Some(Mtls {
        mode: match mtls {
            Some(mtls) if mtls.strict => "STRICT".to_owned(),
            _ => "PERMISSIVE".to_owned(),
        },
        policy: mtls.map(|mtls| mtls.policy.to_string()),
        level: mtls
            .map_or("default", |mtls| mtls.level.as_str())
            .to_owned(),
    });
    if let Some(mtls) = mtls {
        let all = policies.peer_authentication();
        let deciding = all.filter(|policy| policy.name == mtls.policy);
        deciding.for_each(|p| remark(&mut told.notices, &p.name, &p.notices));
    }
    for Considered { policy, rules } in evaluator.considered(&flow) {
        remark(&mut told.notices, &policy.name, &policy.notices);
        told.policies.push(Policy {
            name: policy.name.to_string(),
            scope: policies.scope(&policy).as_str().to_owned(),
            action: match &policy.body {
                Body::Rules { action, .. } => action.as_str(),
                Body::Refuse { .. } => "REFUSE",
            }
            .to_owned(),
            dry_run: policy.dry_run,
            rules,
        });
    }
    let verdict = evaluator.decide(flow);
    let dry_run = verdict.dry_run.iter().map(|dry| DryRun {
        policy: dry.policy.to_string(),
        would: dry.would.reason().to_owned(),
    });
    told.dry_run = dry_run.collect();
    match &verdict.decision {
        Ok(permit) => {
            let Some(policy) = permit.granted_by() else {
                return;
            };
            let rule = permit.rule();
            told.verdict.reason = "allowed".to_owned();
            told.verdict.text = format!("allowed by {policy}, rules[{}]", rule.unwrap_or_default());
            told.verdict.policy = Some(policy.to_string());
            told.verdict.rule = rule;
        }
        Err(refusal) => {
            let denial = &refusal.denial;
            told.verdict = Verdict {
                permitted: false,
                reason: denial.reason().to_owned(),
                policy: denial.policy().map(ToString::to_string),
                rule: denial.rule(),
                text: denial.to_string(),
            };
        }
    }
}

fn remark(notices: &mut Vec<String>, name: &PolicyName, about: &[Notice]) {
    notices.extend(
        about
            .iter()
            .map(|notice| format!("{name}: {}", notice.text)),
    );
}
