//! Pods that should be captured and are not, and pods that do not fit into a mesh.

use std::time::Duration;

use crate::check::facts::{Namespace, Pod};
use crate::check::finding::{Check, Finding, State, count};
use crate::check::rules::install;
use crate::check::rules::view::View;
use crate::mesh::{Bypass, Enrolment, Phase, TUNNEL_PORT};

pub(super) const GROUP: &str = "pods";

const CAPTURED: Check = Check {
    group: GROUP,
    name: "pods that should be captured are",
    hint: "the pod's events (reason NotCaptured) and `adit pods` on its node say why; traffic of a pod that \
           was captured before fails closed, that of others is not protected",
    link: "README.md#no-pod-starts-uncaptured",
};
const START: Check = Check {
    group: GROUP,
    name: "pods of the mesh start",
    hint: "the pod's events say what its sandbox waits for: while the daemon of a node is away, pods of the \
           mesh wait there rather than start uncaptured",
    link: "README.md#no-pod-starts-uncaptured",
};
const STALE: Check = Check {
    group: GROUP,
    name: "no pod is called captured that is not to be",
    hint: "the daemon of its node takes the mark away; where none runs, take the annotation \
           ambient.istio.io/redirection away, or others keep sending it tunnels",
    link: "README.md#no-pod-starts-uncaptured",
};
const HOST: Check = Check {
    group: GROUP,
    name: "enrolled namespaces have no pods on their node's network",
    hint: "such pods stay outside of the mesh, and count as peers without an identity: move them, or allow \
           them by address",
    link: "README.md#what-it-does-not-do",
};
const SIDECARS: Check = Check {
    group: GROUP,
    name: "enrolled namespaces have no pods with a sidecar",
    hint: "turn injection off for the namespace and restart them: a pod with Istio's sidecar is left out \
           of the mesh, one with Linkerd's is proxied twice",
    link: "README.md#use-it",
};
const STATIC: Check = Check {
    group: GROUP,
    name: "enrolled namespaces have no static pods",
    hint: "move them to another namespace: the API server knows them by another UID than kubelet, and they \
           do not start in an enrolled one",
    link: "README.md#what-it-does-not-do",
};
const RUNTIMES: Check = Check {
    group: GROUP,
    name: "pods of the mesh use their namespace's network stack",
    hint: "tell the daemons of the RuntimeClass with --sandboxed-runtime: a virtual machine or a network stack \
           of its own passes by what captures in the pod's network namespace",
    link: "README.md#what-it-does-not-do",
};
const PORTS: Check = Check {
    group: GROUP,
    name: "no application of the mesh wants a port of Adit",
    hint: "let the application listen elsewhere: 15001, 15006 and 15008 are taken in each captured pod",
    link: "README.md#ports-and-privileges",
};
const UNSUPPORTED: Check = Check {
    group: GROUP,
    name: "enrolled namespaces have no pods of sandboxed runtimes",
    hint: "they run outside of the mesh: give them a runtime that uses their namespace's network stack, or \
           opt them out with the label adit.mesh/mode=none",
    link: "README.md#no-pod-starts-uncaptured",
};

/// How long a pod may take from its making to its mark.
const GRACE: Duration = Duration::from_secs(60);
/// How long a sandbox may take that is not waited for in vain.
const LONG: Duration = Duration::from_secs(300);
/// Words in the handlers of runtimes that keep traffic out of the namespace's stack.
const APART: [&str; 4] = ["kata", "runsc", "gvisor", "firecracker"];

pub(crate) fn check(view: &View<'_>) -> Vec<Finding> {
    let pods = match &view.pods {
        Ok(pods) => pods,
        Err(why) => return vec![CAPTURED.skip(why)],
    };
    let mut findings = Vec::new();
    if !view.facts.pre {
        findings.push(captured(view, pods));
        findings.push(start(view, pods));
        findings.push(stale(view, pods));
    }
    findings.extend([
        host(view, pods),
        sidecars(view, pods),
        of_enrolled(&STATIC, State::Fail, pods, |pod| {
            pod.from_file.then(String::new)
        }),
        runtimes(view, pods),
        of_enrolled(&PORTS, State::Fail, pods, |pod| {
            let ours = pod
                .ports
                .iter()
                .find(|port| [15001, 15006, TUNNEL_PORT].contains(port));
            ours.map(|port| format!(": {port}"))
        }),
        unsupported(pods),
    ]);
    findings
}

type Judged<'f> = (&'f Pod, Enrolment);

fn captured(view: &View<'_>, pods: &[Judged<'_>]) -> Finding {
    // In a daemon's pod the DaemonSet is not shown to us, and there is one all the same.
    if view.daemon.is_none() && view.cluster.daemon_sets.is_ok() {
        return CAPTURED.skip("there is no DaemonSet to be seen");
    }
    let wanted = || {
        pods.iter()
            .filter(|(_, enrolment)| *enrolment == Enrolment::Enrolled)
    };
    let served = install::served(view);
    let now = view.facts.now;
    let due =
        |pod: &Pod| pod.phase == Phase::Running && !pod.terminating && pod.older_than(GRACE, now);
    let items = wanted()
        .filter(|(pod, _)| due(pod) && !pod.marked)
        .map(|(pod, _)| {
            let alone = served
                .as_ref()
                .is_some_and(|served| !served.contains(pod.node.as_str()));
            let why = if alone {
                ", which has no ready daemon"
            } else {
                ""
            };
            format!("{} on {}{why}", pod.full(), pod.node)
        });
    let marked = wanted().filter(|(pod, _)| pod.marked).count();
    CAPTURED.none(
        State::Fail,
        items.collect(),
        format!("{} captured", count(marked, "pod")),
        |many| format!("{} not captured, {marked} are", count(many, "pod")),
    )
}

/// A pod without an address has no sandbox; one that only waits for its image has both.
fn start(view: &View<'_>, pods: &[Judged<'_>]) -> Finding {
    let now = view.facts.now;
    of_enrolled(&START, State::Warn, pods, |pod| {
        let placed = pod.phase == Phase::Pending && !pod.node.is_empty() && pod.ips.is_empty();
        let waits = placed && !pod.terminating && pod.older_than(LONG, now);
        waits.then(|| format!(" on {}", pod.node))
    })
}

fn stale(view: &View<'_>, pods: &[Judged<'_>]) -> Finding {
    let others = match &view.cluster.daemon_sets {
        // Another mesh marks its own pods in the same way.
        Ok(sets) => sets.iter().any(|set| set.name.contains("ztunnel")),
        Err(_) => true,
    };
    let stale = pods.iter().filter(|(pod, enrolment)| {
        let ours = !others || matches!(enrolment, Enrolment::Bypass(Bypass::OptedOut));
        pod.marked && *enrolment != Enrolment::Enrolled && ours && !pod.terminating
    });
    let items = stale.map(|(pod, enrolment)| {
        let why = match enrolment {
            Enrolment::Bypass(bypass) => bypass.reason(),
            Enrolment::Enrolled => "",
        };
        format!("{} on {}: {why}", pod.full(), pod.node)
    });
    STALE.none(State::Warn, items.collect(), "none is", |many| {
        format!("{} marked, and not of the mesh", count(many, "pod"))
    })
}

/// Whether a pod's namespace is enrolled.
fn at_home(view: &View<'_>, pod: &Pod) -> bool {
    let namespaces = view.namespaces.as_ref();
    let namespace = namespaces
        .ok()
        .and_then(|all| all.get(pod.namespace.as_str()));
    namespace.is_some_and(|one: &&Namespace| view.enrols(one))
}

fn host(view: &View<'_>, pods: &[Judged<'_>]) -> Finding {
    let on_host = pods
        .iter()
        .filter(|(pod, _)| pod.host_network && at_home(view, pod));
    let items: Vec<_> = on_host.map(|(pod, _)| pod.full()).collect();
    HOST.none(State::Warn, items, "they have none", |many| {
        count(many, "pod")
    })
}

fn sidecars(view: &View<'_>, pods: &[Judged<'_>]) -> Finding {
    let items = pods
        .iter()
        .filter(|(pod, _)| !pod.host_network)
        .filter_map(|(pod, enrolment)| {
            let whose = match (pod.sidecar, pod.linkerd) {
                (true, _) if at_home(view, pod) => "Istio",
                (false, true) if *enrolment == Enrolment::Enrolled => "Linkerd",
                _ => return None,
            };
            Some(format!("{}: {whose}", pod.full()))
        });
    SIDECARS.none(State::Warn, items.collect(), "they have none", |many| {
        count(many, "pod")
    })
}

fn runtimes(view: &View<'_>, pods: &[Judged<'_>]) -> Finding {
    let runtimes = match &view.cluster.runtimes {
        Ok(runtimes) => runtimes,
        Err(why) => return RUNTIMES.skip(why),
    };
    of_enrolled(&RUNTIMES, State::Fail, pods, |pod| {
        let class = pod.runtime_class.as_ref()?;
        let handler = runtimes.get(class).unwrap_or(class);
        let apart = APART.iter().any(|word| handler.contains(word));
        apart.then(|| format!(": runtime {handler}"))
    })
}

fn unsupported(pods: &[Judged<'_>]) -> Finding {
    let apart = pods
        .iter()
        .filter(|(_, enrolment)| *enrolment == Enrolment::Bypass(Bypass::SandboxedRuntime));
    let items = apart.map(|(pod, _)| pod.full()).collect();
    UNSUPPORTED.none(State::Warn, items, "they have none", |many| {
        count(many, "pod")
    })
}

/// A check that names each enrolled pod of which `says` has something.
fn of_enrolled(
    check: &Check,
    state: State,
    pods: &[Judged<'_>],
    says: impl Fn(&Pod) -> Option<String>,
) -> Finding {
    let enrolled = pods
        .iter()
        .filter(|(_, enrolment)| *enrolment == Enrolment::Enrolled);
    let items = enrolled.filter_map(|(pod, _)| Some(format!("{}{}", pod.full(), says(pod)?)));
    check.none(state, items.collect(), "nothing against it", |many| {
        count(many, "pod")
    })
}
