//! What the node holds, in the words of the admin dump.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::api;
use crate::authorize::Policies;
use crate::causes::Causes;
use crate::identify::Snapshot;
use crate::mesh::{Bypass, Direction, Phase, Service, Workload};
use crate::node::enrol::Held;
use crate::node::pods::{Entry, State};
use crate::node::worker::Worker;
use crate::node::world::World;
use crate::pki::CertificateStatus;
use crate::source::Problem;

/// The live connections of one worker.
pub(crate) fn connections(worker: &Worker) -> Vec<api::Connection> {
    let now = Instant::now();
    let mut all = Vec::with_capacity(worker.live.len());
    worker.live.each(|connection| {
        let flow = connection.permit.flow();
        let (requested, responded) = connection.moved();
        let (bytes_sent, bytes_recv) = match flow.direction {
            Direction::Outbound => (requested, responded),
            Direction::Inbound => (responded, requested),
        };
        all.push(api::Connection {
            id: connection.id,
            worker: worker.index,
            bytes_sent,
            bytes_recv,
            age_seconds: now
                .saturating_duration_since(connection.since)
                .as_secs_f64(),
            policy: connection.permit.granted_by().map(ToString::to_string),
            ..api::Connection::of(flow)
        });
    });
    all
}

/// A problem of the sources.
pub(crate) fn problem(problem: &Problem) -> api::Problem {
    api::Problem {
        file: problem.file.display().to_string(),
        line: problem.line as usize,
        object: problem.object.clone(),
        message: problem.message.clone(),
    }
}

/// Live pods that claim an address which belongs to another, with that address.
pub(crate) fn contested(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<Workload>, IpAddr)> {
    let live = |pod: &&Arc<Workload>| pod.phase != Phase::Finished && !pod.host_network;
    snapshot.workloads().filter(live).flat_map(move |pod| {
        let others = pod.ips.iter().filter(move |ip| {
            snapshot
                .workload_at(**ip)
                .is_some_and(|owner| owner.uid != pod.uid)
        });
        others.map(move |ip| (pod, *ip))
    })
}

/// A service with its endpoints.
pub(crate) fn service(snapshot: &Snapshot, service: &Service) -> api::Service {
    let mut endpoints = BTreeMap::<IpAddr, api::Endpoint>::new();
    for (port, _, backends) in snapshot.endpoints(service) {
        for backend in backends {
            let workload = snapshot.workload_at(backend.ip);
            let endpoint = endpoints
                .entry(backend.ip)
                .or_insert_with(|| api::Endpoint {
                    ip: backend.ip.to_string(),
                    ready: true,
                    workload: workload.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
                    node: workload.map_or_else(String::new, |pod| pod.node.to_string()),
                    zone: workload.map_or_else(String::new, |pod| pod.zone.to_string()),
                    ..api::Endpoint::default()
                });
            endpoint.ports.insert(port.port, backend.port);
        }
    }
    api::Service::new(service, endpoints.into_values().collect())
}

/// Every policy, as it is understood.
pub(crate) fn policies(policies: &Policies) -> Vec<api::Policy> {
    let root = policies.root_namespace();
    let authorization = policies.authorization();
    let authorization = authorization.map(|policy| api::Policy::authorization(policy, root));
    let peer = policies.peer_authentication();
    let peer = peer.map(|policy| api::Policy::peer_authentication(policy, root));
    authorization.chain(peer).collect()
}

/// The certificates of this node's identities.
pub(crate) fn certificates(report: &[CertificateStatus]) -> Vec<api::Certificate> {
    let now = SystemTime::now();
    let one = |status: &CertificateStatus| {
        let certificate = status.certificate.as_deref();
        api::Certificate {
            identity: status.identity.to_string(),
            state: state(status, now).to_owned(),
            serial: certificate.map_or_else(String::new, |c| c.serial().to_owned()),
            not_before: certificate.map_or(0, |c| seconds(c.not_before())),
            not_after: certificate.map_or(0, |c| seconds(c.lifetime().not_after)),
            renew_at: seconds(status.next),
            failures: status.failures.into(),
            error: status
                .last_error
                .as_ref()
                .map(|error| Causes(&**error).to_string()),
        }
    };
    report.iter().map(one).collect()
}

/// `valid` also while renewals fail: it is in force. A failing one has failures beside it.
fn state(status: &CertificateStatus, now: SystemTime) -> &'static str {
    match &status.certificate {
        None => "missing",
        Some(certificate) if certificate.lifetime().not_after <= now => "expired",
        Some(_) => "valid",
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A pod of this node that is to be captured and cannot be, by its runtime.
pub(crate) fn unsupported(pod: &Workload) -> api::Pod {
    api::Pod {
        uid: pod.uid.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        identity: pod.identity.to_string(),
        ips: pod.ips.to_vec(),
        state: api::PodState::Unsupported,
        reason: Bypass::SandboxedRuntime.reason().to_owned(),
        error: SANDBOXED.to_owned(),
        ..api::Pod::default()
    }
}

/// What people are told of a pod with a sandboxed runtime.
pub(crate) const SANDBOXED: &str = "its runtime class takes its packets past the network namespace, so that it cannot be captured: it sends \
     and receives in clear, and no policy is enforced for it; give it another runtime class, or opt it \
     out with the label adit.mesh/mode=none";

/// A pod of this node that is captured or is to be.
pub(crate) fn pod(entry: &Entry, held: Option<&Held>, world: &World) -> api::Pod {
    let wanted = entry.wanted();
    let (namespace, name) = wanted.name.split_once('/').unwrap_or(("", &wanted.name));
    let local = world.pod(&wanted.uid);
    let failed = entry
        .last_error()
        .filter(|_| *entry.state() != State::Captured);
    let state = match entry.state() {
        State::Captured => api::PodState::Enrolled,
        State::Draining | State::Releasing => api::PodState::Draining,
        State::Pending | State::Enrolling if failed.is_some() => api::PodState::Failed,
        State::Pending | State::Enrolling => api::PodState::Pending,
    };
    api::Pod {
        uid: wanted.uid.to_string(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        identity: local.map_or_else(String::new, |pod| pod.workload.identity.to_string()),
        ips: wanted.ips.to_vec(),
        state,
        reason: failed.map_or_else(String::new, |_| "enrolment_failed".to_owned()),
        error: failed.unwrap_or_default().to_owned(),
        netns: wanted.place.to_string(),
        netns_cookie: held.map_or(0, |held| held.netns.cookie()),
        connections_kept: held.map_or(0, Held::kept),
    }
}
