//! The cluster as the mesh sees it: the settings in force, and whom they enrol.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::check::facts::{Cluster, Controller, Facts, Got, Mesh, Namespace, Pod};
use crate::check::rules::settings;
use crate::identify;
use crate::mesh::{Bypass, Enrolment, Labels, Owner};
use crate::source;

/// The DaemonSet of the daemons, and their service account.
const DAEMON: &str = "adit-node";
/// The Deployment of the authority, and its service account.
const CONTROL: &str = "adit-control";

/// The facts with what follows from them at once.
pub(crate) struct View<'f> {
    pub(crate) facts: &'f Facts,
    pub(crate) cluster: &'f Cluster,
    /// The DaemonSet of our daemons, if there is one.
    pub(crate) daemon: Option<&'f Controller>,
    /// The Deployment of our authority, if there is one.
    pub(crate) control: Option<&'f Controller>,
    /// How the daemons understand objects, or will.
    pub(crate) mesh: Mesh,
    /// Namespaces by name.
    pub(crate) namespaces: Got<BTreeMap<&'f str, &'f Namespace>>,
    /// Pods that have not ended, each with whether the mesh carries it.
    pub(crate) pods: Got<Vec<(&'f Pod, Enrolment)>>,
}

impl<'f> View<'f> {
    pub(crate) fn new(facts: &'f Facts, cluster: &'f Cluster) -> Self {
        let ours = |all: &'f Got<Vec<Controller>>, name: &str| {
            let all = all.as_ref().map_or(&[][..], Vec::as_slice).iter();
            let mut ours = all.filter(|one| one.namespace == facts.place.namespace);
            let named = ours.clone().find(|one| one.name == name);
            named.or_else(|| ours.find(|one| one.account == name))
        };
        let daemon = ours(&cluster.daemon_sets, DAEMON);
        let mesh = daemon.map_or_else(|| facts.told.clone(), settings::of);
        let namespaces = cluster.namespaces.as_ref();
        let namespaces: Got<BTreeMap<_, _>> = namespaces
            .map(|all| all.iter().map(|one| (one.name.as_str(), one)).collect())
            .map_err(Clone::clone);
        let pods = match (&cluster.pods, &namespaces) {
            (Ok(pods), Ok(namespaces)) => {
                let verdict = |pod: &'f Pod| {
                    let labels = namespaces.get(pod.namespace.as_str());
                    let labels = labels.map(|one| one.labels.clone()).unwrap_or_default();
                    (pod, verdict(pod, &labels, &mesh))
                };
                let ended = Enrolment::Bypass(Bypass::Finished);
                let all = pods.iter().map(verdict);
                Ok(all.filter(|(_, enrolment)| *enrolment != ended).collect())
            }
            (Err(why), _) | (_, Err(why)) => Err(why.clone()),
        };
        Self {
            facts,
            cluster,
            daemon,
            control: ours(&cluster.deployments, CONTROL),
            mesh,
            namespaces,
            pods,
        }
    }

    /// The pods that the mesh is to carry.
    pub(crate) fn enrolled(&self) -> Result<impl Iterator<Item = &'f Pod> + Clone + '_, &String> {
        let pods = self.pods.as_ref()?.iter();
        Ok(pods
            .filter(|(_, enrolment)| *enrolment == Enrolment::Enrolled)
            .map(|(pod, _)| *pod))
    }

    /// Whether a namespace enrols what says nothing for itself.
    pub(crate) fn enrols(&self, namespace: &Namespace) -> bool {
        let excluded = &self.mesh.settings.excluded_namespaces;
        !excluded.contains(&namespace.name) && self.labelled(&namespace.labels)
    }

    /// Whether labels hold one that enrols.
    pub(crate) fn labelled(&self, labels: &Labels) -> bool {
        let says = |(key, value): &(String, String)| {
            labels.get(key).is_some_and(|label| **label == **value)
        };
        self.mesh.settings.enrol_labels.iter().any(says)
    }
}

/// Asks the daemons' own predicate.
fn verdict(pod: &Pod, namespace_labels: &Labels, mesh: &Mesh) -> Enrolment {
    let nothing: Arc<str> = Arc::from("");
    let object = source::Pod {
        uid: nothing.clone(),
        name: pod.name.as_str().into(),
        namespace: pod.namespace.as_str().into(),
        service_account: nothing.clone(),
        node: nothing.clone(),
        ips: SmallVec::new(),
        labels: pod.labels.clone(),
        owner: Owner {
            kind: nothing.clone(),
            name: nothing,
        },
        phase: pod.phase,
        host_network: pod.host_network,
        sidecar: pod.sidecar,
        marked: pod.marked,
        terminating: pod.terminating,
        created: 0,
        netns: None,
        runtime_class: pod.runtime_class.as_deref().unwrap_or_default().into(),
    };
    identify::enrolment(&object, namespace_labels, &mesh.settings)
}
