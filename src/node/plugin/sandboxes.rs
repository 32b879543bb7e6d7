//! The sandboxes that the runtime has told of and has not removed since.
//!
//! Pure. A sandbox is a pod's by namespace and name, and by UID where both sides know one: a name
//! alone may be that of the pod before.

use std::collections::HashMap;

use crate::api::plugin::{Attachment, Sandbox};
use crate::mesh::{Enrolment, Workload};
use crate::sys::netns::Netns;

/// A sandbox with the namespace that came with it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) sandbox: Sandbox,
    pub(crate) netns: Netns,
}

/// What is to become of a new sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Its pod is to be captured first.
    Enrol,
    /// Its pod is none of the mesh, for this reason.
    Bypass(&'static str),
    /// Its pod is not in the index yet.
    Wait,
}

/// Decides by what the index says of the pod of that namespace and name.
pub(crate) fn decide(sandbox: &Sandbox, pod: Option<&Workload>, node: &str) -> Decision {
    match pod {
        Some(pod) if is_of(sandbox, pod) && *pod.node == *node => match pod.enrolment {
            Enrolment::Enrolled => Decision::Enrol,
            Enrolment::Bypass(why) => Decision::Bypass(why.reason()),
        },
        _ => Decision::Wait,
    }
}

/// All of them, one per pod: the last.
#[derive(Debug, Default)]
pub(crate) struct Sandboxes(HashMap<(String, String), Known>);

impl Sandboxes {
    /// Takes note of a sandbox, in the place of any other of its pod. A further interface of the
    /// same sandbox changes nothing: the pod is captured by its first, whole.
    pub(crate) fn add(&mut self, new: Known) {
        let pod = (new.sandbox.namespace.clone(), new.sandbox.name.clone());
        let known = self.0.get(&pod);
        let repeated =
            |known: &Known| known.netns == new.netns && known.sandbox.uid == new.sandbox.uid;
        if !known.is_some_and(repeated) {
            self.0.insert(pod, new);
        }
    }

    /// The sandbox of a pod.
    pub(crate) fn of(&self, pod: &Workload) -> Option<&Known> {
        let name = (pod.namespace.to_string(), pod.name.to_string());
        let known = self.0.get(&name)?;
        is_of(&known.sandbox, pod).then_some(known)
    }

    /// Forgets a sandbox that was removed.
    pub(crate) fn remove(&mut self, attachment: &Attachment) -> Option<Known> {
        let removed = self.take(|known| known.sandbox.attachment == *attachment);
        removed.into_iter().next()
    }

    /// Forgets all sandboxes of a network but those that are `left`.
    pub(crate) fn keep_only(&mut self, network: &str, left: &[Attachment]) -> Vec<Known> {
        self.take(|known| {
            known.sandbox.network == network && !left.contains(&known.sandbox.attachment)
        })
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Sandbox> {
        self.0.values().map(|known| &known.sandbox)
    }

    /// The same with their namespaces.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Known> {
        self.0.values()
    }

    /// Forgets all that are not left.
    pub(crate) fn prune(&mut self, is_left: impl Fn(&Sandbox) -> bool) {
        self.take(|known| !is_left(&known.sandbox));
    }

    /// Forgets the sandbox with this namespace, which turned out to be of no more use.
    pub(crate) fn forget(&mut self, netns: &Netns) {
        self.take(|known| known.netns == *netns);
    }

    fn take(&mut self, which: impl Fn(&Known) -> bool) -> Vec<Known> {
        self.0
            .extract_if(|_, known| which(known))
            .map(|(_, known)| known)
            .collect()
    }
}

/// Objects written by hand have no UID; the index then calls them by their names.
fn is_of(sandbox: &Sandbox, pod: &Workload) -> bool {
    let named = || {
        let name = pod.uid.split_once('/');
        name == Some((&*pod.namespace, &*pod.name))
    };
    sandbox.namespace == *pod.namespace
        && sandbox.name == *pod.name
        && (sandbox.uid.is_empty() || sandbox.uid == *pod.uid || named())
}
