//! What the node knows at one moment, as one immutable value.
//!
//! A connection takes the [`World`] once and decides everything by it, so it can never see the
//! index of one moment with the policies of another. Readers take no lock.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderValue;

use crate::authorize::{Evaluator, Policies};
use crate::identify::Snapshot;
use crate::mesh::Workload;

/// Index, policies and the pods of this node, of one moment.
pub(crate) struct World {
    /// Who is who.
    pub(crate) snapshot: Arc<Snapshot>,
    /// Who may reach whom.
    pub(crate) policies: Arc<Policies>,
    /// The pods of this node that are captured or are to be, by UID.
    pub(crate) pods: HashMap<Arc<str>, Arc<LocalPod>>,
}

/// One pod of this node.
pub(crate) struct LocalPod {
    /// The pod.
    pub(crate) workload: Arc<Workload>,
    /// The policies bound to it, compiled.
    pub(crate) evaluator: Evaluator,
    /// What the field's peers are told about it with each connection.
    pub(crate) baggage: HeaderValue,
    /// Whether its listeners and rules are in place now.
    pub(crate) served: bool,
}

impl World {
    /// The world of `snapshot` and `policies`, for these pods and whether each is served.
    ///
    /// A pod that neither changed itself nor had a policy changed keeps its evaluator from
    /// `before`, so the cost follows what changed.
    pub(crate) fn new(
        snapshot: Arc<Snapshot>,
        policies: Arc<Policies>,
        pods: impl IntoIterator<Item = (Arc<Workload>, bool)>,
        before: Option<&Self>,
    ) -> Self {
        let unchanged = before.filter(|before| Arc::ptr_eq(&before.policies, &policies));
        let local = |(workload, served): (Arc<Workload>, bool)| {
            let kept = unchanged
                .and_then(|before| before.pods.get(&workload.uid))
                .filter(|pod| Arc::ptr_eq(&pod.workload, &workload))
                .map(|pod| pod.evaluator.clone());
            let evaluator = kept.unwrap_or_else(|| policies.evaluator(&workload));
            let baggage = baggage(&workload);
            (
                workload.uid.clone(),
                Arc::new(LocalPod {
                    workload,
                    evaluator,
                    baggage,
                    served,
                }),
            )
        };
        let pods = pods.into_iter().map(local).collect();
        Self {
            snapshot,
            policies,
            pods,
        }
    }

    /// The pod of that UID, if it is this node's.
    pub(crate) fn pod(&self, uid: &str) -> Option<&Arc<LocalPod>> {
        self.pods.get(uid)
    }
}

/// The attributes of a workload as the field's `baggage` header has them: `key=value`, comma
/// between, empty values left out.
fn baggage(workload: &Workload) -> HeaderValue {
    let owner = format!("k8s.{}.name", workload.owner.kind);
    let pairs = [
        ("k8s.cluster.name", "Kubernetes"),
        ("k8s.namespace.name", &*workload.namespace),
        (&*owner, &*workload.owner.name),
        ("service.name", workload.canonical_name()),
        ("service.version", workload.canonical_revision()),
        ("cloud.region", &*workload.region),
        ("cloud.availability_zone", &*workload.zone),
    ];
    let pairs = pairs.iter().filter(|(_, value)| !value.is_empty());
    let text: Vec<_> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
    // Names and labels of Kubernetes are all header text; if one is not, nothing is said.
    HeaderValue::from_str(&text.join(",")).unwrap_or(HeaderValue::from_static(""))
}
