//! One identity per service account, shared by its pods and forgotten with the last of them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::mesh::{Identity, IdentityError, TrustDomain, Workload};
use crate::source::Pod;

/// The identities of all pods.
#[derive(Debug, Default)]
pub(super) struct Identities {
    /// By namespace.
    namespaces: HashMap<Arc<str>, Accounts>,
}

/// By service account, the identity and the number of its pods.
type Accounts = HashMap<Arc<str>, (Identity, usize)>;

impl Identities {
    /// The identity of a pod, known or new.
    pub(super) fn of(&self, domain: &TrustDomain, pod: &Pod) -> Result<Identity, IdentityError> {
        let accounts = self.namespaces.get(&pod.namespace);
        match accounts.and_then(|all| all.get(&pod.service_account)) {
            Some((known, _)) => Ok(known.clone()),
            None => Identity::new(domain, &pod.namespace, &pod.service_account),
        }
    }

    /// Counts a pod in.
    pub(super) fn retain(&mut self, pod: &Pod, identity: &Identity) {
        let accounts = self.namespaces.entry(pod.namespace.clone()).or_default();
        let known = accounts.entry(pod.service_account.clone());
        known.or_insert_with(|| (identity.clone(), 0)).1 += 1;
    }

    /// Counts a pod out.
    pub(super) fn release(&mut self, workload: &Workload) {
        let Some(accounts) = self.namespaces.get_mut(&workload.namespace) else {
            return;
        };
        let account = workload.identity.service_account();
        if let Some((_, pods)) = accounts.get_mut(account) {
            *pods -= 1;
            if *pods == 0 {
                accounts.remove(account);
            }
        }
        if accounts.is_empty() {
            self.namespaces.remove(&workload.namespace);
        }
    }
}
