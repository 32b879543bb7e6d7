//! Which service accounts have a pod on which node.
//!
//! A node is watched from its first request on, and until it has not asked for a while: the watch
//! answers at once. What the watch does not know yet — a pod that was bound a moment ago — is asked
//! for before anybody is refused. Only what decides is kept of a pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, ListParams};
use kube::core::Object;
use kube::runtime::watcher::{self, Event};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::causes::Causes;
use crate::control::kube::{Error, Kube};
use crate::mesh::Identity;
use crate::task::{self, Task};

/// A node that has not asked for so long is watched no more.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How long the first look at a node may take before the list is asked instead.
const SYNC: Duration = Duration::from_secs(2);
/// After this a silent watch is begun anew, in seconds.
const WATCH: u32 = 60;
/// The pause after a watch that failed: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Most nodes that are watched at once.
const NODES: usize = 5_000;

/// A pod, as far as it matters here.
type Slim = Object<Spec, Status>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<String>,
    host_network: Option<bool>,
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
}

/// The pods of one node that count: namespace and name, to the service account. Pure.
#[derive(Debug, Default)]
struct Table {
    pods: HashMap<(String, String), String>,
    /// What a list that is under way has brought so far.
    coming: HashMap<(String, String), String>,
}

impl Table {
    fn apply(&mut self, event: Event<Slim>, node: &str) -> bool {
        match event {
            Event::Init => self.coming.clear(),
            Event::InitApply(pod) => {
                if let (key, Some(account)) = counts(&pod, node) {
                    self.coming.insert(key, account);
                }
            }
            Event::InitDone => {
                self.pods = std::mem::take(&mut self.coming);
                return true;
            }
            Event::Apply(pod) => match counts(&pod, node) {
                (key, Some(account)) => drop(self.pods.insert(key, account)),
                (key, None) => drop(self.pods.remove(&key)),
            },
            Event::Delete(pod) => drop(self.pods.remove(&counts(&pod, node).0)),
        }
        false
    }

    fn holds(&self, identity: &Identity) -> bool {
        let fits = |((namespace, _), account): (&(String, String), &String)| {
            namespace == identity.namespace() && account == identity.service_account()
        };
        self.pods.iter().any(fits)
    }
}

/// A pod's key, and its service account if the pod counts: on this node, not ended, and not in the
/// host's network, where no identity is needed.
fn counts(pod: &Slim, node: &str) -> ((String, String), Option<String>) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let key = (text(&pod.metadata.namespace), text(&pod.metadata.name));
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let ended = matches!(phase, Some("Succeeded" | "Failed"));
    let here = pod.spec.node_name.as_deref() == Some(node);
    let counts = here && !ended && pod.spec.host_network != Some(true);
    let account = pod.spec.service_account_name.clone();
    (key, account.filter(|_| counts))
}

/// One node that is watched.
struct Watched {
    table: Arc<Mutex<Table>>,
    /// Whether the table is what the server last said.
    synced: watch::Receiver<bool>,
    used: Instant,
    _task: Task,
}

/// All nodes that are watched.
pub(crate) struct Pods {
    kube: Arc<Kube>,
    nodes: Mutex<HashMap<String, Watched>>,
}

impl Pods {
    /// No node is watched yet.
    pub(crate) fn new(kube: &Arc<Kube>) -> Self {
        Self {
            kube: kube.clone(),
            nodes: Mutex::default(),
        }
    }

    /// How many nodes are watched.
    pub(crate) fn watched(&self) -> usize {
        lock(&self.nodes).len()
    }

    /// Lets go of nodes that have not asked for long.
    pub(crate) fn tidy(&self, now: Instant) {
        lock(&self.nodes).retain(|_, node| now.saturating_duration_since(node.used) < IDLE);
    }

    /// Whether a pod of this identity's service account is on the node.
    pub(crate) async fn hold(&self, node: &str, identity: &Identity) -> Result<bool, Error> {
        if let Some((table, mut synced)) = self.watch(node) {
            let known = tokio::time::timeout(SYNC, synced.wait_for(|synced| *synced)).await;
            if matches!(known, Ok(Ok(_))) && lock(&table).holds(identity) {
                return Ok(true);
            }
        }
        self.list(node, identity).await
    }

    fn watch(&self, node: &str) -> Option<(Arc<Mutex<Table>>, watch::Receiver<bool>)> {
        let now = Instant::now();
        let mut nodes = lock(&self.nodes);
        if let Some(watched) = nodes.get_mut(node) {
            watched.used = now;
            return Some((watched.table.clone(), watched.synced.clone()));
        }
        if nodes.len() >= NODES {
            return None;
        }
        let table = Arc::new(Mutex::new(Table::default()));
        let (told, synced) = watch::channel(false);
        let work = follow(self.kube.clone(), node.to_owned(), table.clone(), told);
        let watched = Watched {
            table: table.clone(),
            synced: synced.clone(),
            used: now,
            _task: task::spawn("watch the pods of a node", work),
        };
        nodes.insert(node.to_owned(), watched);
        Some((table, synced))
    }

    /// Asks the server for what it has now.
    async fn list(&self, node: &str, identity: &Identity) -> Result<bool, Error> {
        let selector = format!("spec.nodeName={node}");
        let params = ListParams::default().fields(&selector);
        let namespace = identity.namespace();
        let ask = async |client| {
            let resource = ApiResource::erase::<Pod>(&());
            let pods = Api::<Slim>::namespaced_with(client, namespace, &resource);
            pods.list(&params).await
        };
        let found = self.kube.ask("list the pods of a node", ask).await?;
        let wanted = Some(identity.service_account());
        let mut accounts = found.items.iter().map(|pod| counts(pod, node).1);
        Ok(accounts.any(|account| account.as_deref() == wanted))
    }
}

/// Keeps a table, for ever. After an error everything is asked for anew, so that nothing is missed.
async fn follow(
    kube: Arc<Kube>,
    node: String,
    table: Arc<Mutex<Table>>,
    synced: watch::Sender<bool>,
) {
    let mut pause = PAUSE;
    loop {
        match kube.client().await {
            Ok((client, generation)) => {
                let resource = ApiResource::erase::<Pod>(&());
                let pods = Api::<Slim>::all_with(client, &resource);
                let selector = format!("spec.nodeName={node}");
                let config = watcher::Config::default().fields(&selector).timeout(WATCH);
                let mut events = std::pin::pin!(watcher::watcher(pods, config));
                while let Some(event) = events.next().await {
                    match event {
                        Ok(event) => {
                            if lock(&table).apply(event, &node) {
                                synced.send_replace(true);
                                pause = PAUSE;
                            }
                        }
                        Err(error) => {
                            tracing::debug!(node, error = %Causes(&error), "watch of a node's pods broke");
                            if is_refused(&error) {
                                kube.renew(generation);
                            }
                            break;
                        }
                    }
                }
            }
            Err(error) => {
                tracing::debug!(node, error = %Causes(&error), "no watch of a node's pods");
            }
        }
        synced.send_replace(false);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether it was our credentials that were refused.
fn is_refused(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let (InitialListFailed(cause) | WatchStartFailed(cause) | WatchFailed(cause)) = error else {
        return false;
    };
    matches!(cause, kube::Error::Api(status) if status.code == 401)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks can leave them half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
