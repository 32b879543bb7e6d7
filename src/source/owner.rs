//! What made a pod, in the words a person used.
//!
//! A pod's controller is often a go-between: a Deployment makes ReplicaSets, a CronJob makes Jobs.
//! Their names are built by rule, so the maker's name can be read back without asking for more
//! objects.

use std::sync::Arc;

use crate::mesh::{Labels, Owner};
use crate::source::Interner;

/// The owner of a pod called `pod`, whose controller reference has this kind and name.
///
/// - a ReplicaSet `X-<hash>`, where the pod's label `pod-template-hash` is that hash, is
///   Deployment `X`;
/// - a Job `X-<digits>`, 8 to 10 of them, is CronJob `X` (the controller appends the scheduled
///   minute);
/// - a pod without a controller, or a static pod of a Node, is its own owner.
pub(super) fn owner(
    controller: Option<(&str, &str)>,
    pod: &Arc<str>,
    labels: &Labels,
    interner: &mut Interner,
) -> Owner {
    let (kind, name) = match controller {
        None | Some(("Node", _)) => {
            return Owner {
                kind: interner.text("pod"),
                name: pod.clone(),
            };
        }
        Some(controller) => controller,
    };
    let cut = name.rsplit_once('-');
    match (kind, cut) {
        ("ReplicaSet", Some((base, hash)))
            if labels
                .get("pod-template-hash")
                .is_some_and(|label| **label == *hash) =>
        {
            made(interner, "deployment", base)
        }
        ("Job", Some((base, minute)))
            if (8..=10).contains(&minute.len()) && minute.bytes().all(|b| b.is_ascii_digit()) =>
        {
            made(interner, "cronjob", base)
        }
        _ => made(interner, &kind.to_ascii_lowercase(), name),
    }
}

fn made(interner: &mut Interner, kind: &str, name: &str) -> Owner {
    Owner {
        kind: interner.text(kind),
        name: interner.text(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(controller: Option<(&str, &str)>, expect: (&str, &str)) {
        let mut interner = Interner::default();
        let labels = interner.labels([("pod-template-hash", "7d9f")]);
        let owner = owner(controller, &Arc::from("p"), &labels, &mut interner);
        assert_eq!((&*owner.kind, &*owner.name), expect, "{controller:?}");
    }

    #[test]
    fn go_betweens_are_seen_through() {
        check(None, ("pod", "p"));
        check(Some(("Node", "n1")), ("pod", "p"));
        check(Some(("ReplicaSet", "web-7d9f")), ("deployment", "web"));
        check(Some(("ReplicaSet", "web-0000")), ("replicaset", "web-0000"));
        check(Some(("StatefulSet", "db")), ("statefulset", "db"));
        check(Some(("Job", "sync-28012345")), ("cronjob", "sync"));
        check(Some(("Job", "sync-1")), ("job", "sync-1"));
        check(Some(("Job", "once")), ("job", "once"));
    }
}
