//! What is installed, whether all of it runs, and whether it is of one version.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::facts::{Controller, Node, Pod};
use crate::check::finding::{Check, Finding, State, count};
use crate::check::rules::kubernetes::is_linux;
use crate::check::rules::settings;
use crate::check::rules::view::View;

pub(super) const GROUP: &str = "installation";

const DAEMONS: Check = Check {
    group: GROUP,
    name: "the DaemonSet is there, and its pods are ready",
    hint: "apply the manifests (`kubectl apply -k daemonset/`) and look at pods and events of the \
           namespace; --namespace names another one",
    link: "README.md#use-it",
};
const NODES: Check = Check {
    group: GROUP,
    name: "every node has a ready daemon",
    hint: "pods of the mesh on these nodes are not served, or are but as they were: see the pod of the \
           daemon there, and the DaemonSet's tolerations",
    link: "https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
};
const CONTROL: Check = Check {
    group: GROUP,
    name: "the certificate authority is ready",
    hint: "see the pods of the Deployment: while no replica is ready, no certificate is renewed and no \
           identity gets its first",
    link: "README.md#use-it",
};
const DEFINITIONS: Check = Check {
    group: GROUP,
    name: "the policy kinds are defined",
    hint: "apply the definitions of the manifests, or those of Istio: without them there is no policy, \
           and everybody may call everybody",
    link: "README.md#use-it",
};
const ADMISSION: Check = Check {
    group: GROUP,
    name: "daemons are kept to the pods of their own node",
    hint: "apply the ValidatingAdmissionPolicy of the manifests: without it a daemon that was taken over \
           can mark pods of other nodes",
    link: "https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/",
};
const SKEW: Check = Check {
    group: GROUP,
    name: "all is of one version",
    hint: "let the rollout come to its end, or find out what holds it up (`kubectl rollout status`)",
    link: "README.md#use-it",
};
const SETTINGS: Check = Check {
    group: GROUP,
    name: "daemons, authority and this check have the same settings",
    hint: "let DaemonSet and Deployment say the same; what the daemons say is what is checked by here",
    link: "README.md#use-it",
};

pub(crate) fn check(view: &View<'_>) -> Vec<Finding> {
    let cluster = view.cluster;
    vec![
        daemons(view),
        nodes(view),
        control(view),
        match &cluster.definitions {
            Ok(defined) => definitions(defined),
            Err(why) => DEFINITIONS.skip(why),
        },
        match &cluster.admission {
            Ok(names) if names.iter().any(|name| name.contains("adit")) => {
                ADMISSION.pass("by a ValidatingAdmissionPolicy")
            }
            Ok(_) => ADMISSION.warn("there is no ValidatingAdmissionPolicy of Adit"),
            Err(why) => ADMISSION.skip(why),
        },
        skew(view),
        same_settings(view),
    ]
}

fn daemons(view: &View<'_>) -> Finding {
    if let Err(why) = &view.cluster.daemon_sets {
        return DAEMONS.skip(why);
    }
    let Some(daemon) = view.daemon else {
        let namespace = &view.facts.place.namespace;
        return DAEMONS.fail(format!("there is no DaemonSet adit-node in {namespace}"));
    };
    let Controller { wanted, ready, .. } = daemon;
    let found = format!("{ready} of {wanted} are ready");
    match () {
        () if *wanted == 0 => DAEMONS.fail("no node is one of its: see its nodeSelector"),
        () if ready < wanted => DAEMONS.fail(found),
        () => DAEMONS.pass(found),
    }
}

/// The daemon's pods.
fn pods_of<'v>(view: &'v View<'_>, controller: &'v Controller) -> Result<Vec<&'v Pod>, &'v String> {
    let all = view.pods.as_ref()?.iter().map(|(pod, _)| *pod);
    Ok(all
        .filter(|pod| {
            pod.namespace == controller.namespace && controller.selector.matches(&pod.labels)
        })
        .collect())
}

/// The nodes that daemons are to run on and that are up.
fn meant<'v>(nodes: &'v [Node], daemon: &Controller) -> impl Iterator<Item = &'v Node> {
    let wanted = daemon.node_selector.clone();
    nodes.iter().filter(move |node| {
        let mut pairs = wanted.pairs().iter();
        node.ready && is_linux(node) && pairs.all(|(k, v)| node.labels.get(k) == Some(v))
    })
}

/// Why no DaemonSet of daemons is known.
fn unseen<'v>(view: &'v View<'_>) -> &'v str {
    let sets = view.cluster.daemon_sets.as_ref();
    sets.map_or_else(String::as_str, |_| "there is no DaemonSet to be seen")
}

/// The names of nodes on which a daemon is ready; `None` where that is not known.
pub(crate) fn served<'v>(view: &'v View<'_>) -> Option<BTreeSet<&'v str>> {
    let pods = pods_of(view, view.daemon?).ok()?;
    let ready = pods.into_iter().filter(|pod| pod.ready && !pod.terminating);
    Some(ready.map(|pod| pod.node.as_str()).collect())
}

fn nodes(view: &View<'_>) -> Finding {
    let nodes = match &view.cluster.nodes {
        Ok(nodes) => nodes,
        Err(why) => return NODES.skip(why),
    };
    let (Some(daemon), Some(served)) = (view.daemon, served(view)) else {
        return NODES.skip(match &view.pods {
            Err(why) if view.daemon.is_some() => why.as_str(),
            _ => unseen(view),
        });
    };
    let without = meant(nodes, daemon).filter(|node| !served.contains(node.name.as_str()));
    let without: Vec<_> = without.map(|node| node.name.clone()).collect();
    let all = count(meant(nodes, daemon).count(), "node");
    NODES.none(State::Fail, without, all, |many| {
        format!("{} without a ready daemon", count(many, "node"))
    })
}

fn control(view: &View<'_>) -> Finding {
    if let Err(why) = &view.cluster.deployments {
        return CONTROL.skip(why);
    }
    let other = view
        .daemon
        .and_then(|daemon| settings::values(daemon, "ca").pop());
    let other = other.filter(|ca| !ca.contains("adit-control"));
    match (view.control, other) {
        (None, Some(ca)) => CONTROL.pass(format!("daemons ask {ca}")),
        (None, None) => CONTROL.fail("there is no Deployment adit-control"),
        (Some(Controller { wanted, ready, .. }), _) => {
            let found = format!("{ready} of {wanted} replicas are ready");
            match () {
                () if *ready == 0 => CONTROL.fail(found),
                () if ready < wanted => CONTROL.warn(found),
                () => CONTROL.pass(found),
            }
        }
    }
}

fn definitions(defined: &[String]) -> Finding {
    let kinds = ["authorizationpolicies", "peerauthentications"];
    let missing = kinds.map(|kind| format!("{kind}.security.istio.io"));
    let missing: Vec<_> = missing
        .into_iter()
        .filter(|name| !defined.contains(name))
        .collect();
    DEFINITIONS.none(State::Fail, missing, "both", |many| {
        format!("{many} of 2 are not defined")
    })
}

/// The image of daemon or authority among those of a pod or a template: the first, as manifests
/// have it.
fn skew(view: &View<'_>) -> Finding {
    let Some(daemon) = view.daemon else {
        return SKEW.skip(unseen(view));
    };
    let mut images: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (what, controller) in [("daemons", Some(daemon)), ("authority", view.control)] {
        let Some(controller) = controller else {
            continue;
        };
        if let Some(image) = controller.images.first() {
            images
                .entry(image)
                .or_default()
                .push(format!("{what}, as wanted"));
        }
        let pods = match pods_of(view, controller) {
            Ok(pods) => pods,
            Err(why) => return SKEW.skip(why),
        };
        for pod in pods {
            if let Some(image) = pod.images.first() {
                images
                    .entry(image)
                    .or_default()
                    .push(format!("{} on {}", pod.name, pod.node));
            }
        }
    }
    let ours = view.facts.version;
    if let [(image, _)] = images.iter().collect::<Vec<_>>()[..] {
        let tag = image
            .rsplit_once(':')
            .map(|(_, tag)| tag.trim_start_matches('v'));
        let tag = tag.filter(|tag| tag.starts_with(|c: char| c.is_ascii_digit()));
        return match tag.filter(|tag| *tag != ours) {
            Some(_) => SKEW.warn(format!("{image} runs, this program is {ours}")),
            None => SKEW.pass(*image),
        };
    }
    let items = images.iter().map(|(image, who)| {
        let shown = who.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        let more = match who.len().saturating_sub(3) {
            0 => String::new(),
            more => format!("; {more} more"),
        };
        format!("{image}: {shown}{more}")
    });
    SKEW.finding(
        State::Warn,
        format!("{} run side by side", count(images.len(), "image")),
        items.collect(),
    )
}

fn same_settings(view: &View<'_>) -> Finding {
    if view.daemon.is_none() {
        return SETTINGS.skip(unseen(view));
    }
    let domain = &view.mesh.settings.trust_domain;
    let theirs = view.control.map(settings::of);
    if let Some(theirs) = theirs.filter(|mesh| mesh.settings.trust_domain != *domain) {
        let theirs = theirs.settings.trust_domain;
        return SETTINGS.fail(format!(
            "daemons are of the trust domain {domain}, the authority is of {theirs}: it signs nothing for them"
        ));
    }
    let differ = settings::differences(&view.mesh, &view.facts.told);
    SETTINGS.none(
        State::Warn,
        differ,
        format!(
            "trust domain {domain}, root namespace {}",
            view.mesh.root_namespace
        ),
        |_| "what follows is by what the daemons are told".to_owned(),
    )
}
