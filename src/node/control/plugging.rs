//! Answers the CNI plugin: a new sandbox is captured before its pod starts, or let go, or told to
//! wait.
//!
//! The index may not know a pod yet whose sandbox is already made: kubelet and the daemon learn of
//! it by watches of their own. So a sandbox of an unknown pod waits a little; then its namespace
//! decides.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::api::plugin::{Answer, Attachment, Request, Sandbox};
use crate::mesh::Workload;
use crate::node::control::Control;
use crate::node::plugin::{Asked, Decision, Known, Left, Sandboxes, decide, forward};
use crate::node::pods::{Entry, Place, Wanted};
use crate::sys::netns::Netns;
use crate::task;
use crate::telemetry::metrics::Plugin;

/// How long a sandbox waits for its pod to appear in the index.
const UNKNOWN: Duration = Duration::from_secs(3);
/// How long it waits for the first index; below what the plugin waits for.
const STARTING: Duration = Duration::from_secs(8);

/// How often, at most, the namespaces of the mesh are gathered: that is to look at every pod.
const BETWEEN: Duration = Duration::from_secs(1);

/// What the control loop keeps for the plugin.
pub(super) struct Plugged {
    sandboxes: Sandboxes,
    /// Sandboxes of pods that the index does not know yet.
    unknown: Vec<Waiting>,
    /// Sandboxes whose pods are being captured, by UID.
    enrolling: HashMap<Arc<str>, Vec<Waiting>>,
    left: Left,
    /// Whether the index has changed since [`Left`] was brought up to date.
    stale: bool,
    /// When that was.
    said: Option<Instant>,
    /// Sandboxes of pods that were not in the index when last looked.
    strange: HashSet<Attachment>,
}

/// A sandbox whose answer is due.
struct Waiting {
    known: Known,
    since: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Plugged {
    pub(super) fn new(left: Left) -> Self {
        Self {
            sandboxes: Sandboxes::default(),
            unknown: Vec::new(),
            enrolling: HashMap::new(),
            left,
            stale: false,
            said: None,
            strange: HashSet::new(),
        }
    }

    /// The index has changed.
    pub(super) fn changed(&mut self) {
        self.stale = true;
    }

    /// Where a pod's namespace is to be had from, with the addresses it has there.
    pub(super) fn place(&self, pod: &Workload) -> Wanted {
        let known = self.sandboxes.of(pod);
        let told = || pod.netns.clone().map_or(Place::Search, Place::Path);
        Wanted {
            uid: pod.uid.clone(),
            name: format!("{}/{}", pod.namespace, pod.name).into(),
            place: known.map_or_else(told, |known| Place::Held(known.netns.clone())),
            // The index learns the addresses only when the pod runs.
            ips: known.map_or_else(
                || pod.ips.clone(),
                |known| known.sandbox.ips.iter().copied().collect(),
            ),
        }
    }

    /// Whether the runtime waits for this pod to be captured, and so has started nothing in it.
    pub(super) fn is_fresh(&self, pod: &Wanted) -> bool {
        let waits = self.enrolling.get(&pod.uid);
        let of_this = |waiting: &Waiting| {
            !waiting.answer.is_closed() && pod.place == Place::Held(waiting.known.netns.clone())
        };
        waits.is_some_and(|waits| waits.iter().any(of_this))
    }

    /// All sandboxes that are known.
    pub(super) fn sandboxes(&self) -> impl Iterator<Item = &Known> {
        self.sandboxes.known()
    }

    /// Takes note of a sandbox of which the daemon before was told.
    pub(super) fn add(&mut self, known: Known) {
        self.sandboxes.add(known);
    }

    /// A namespace that was handed over is not the pod's any more.
    pub(super) fn forget(&mut self, netns: &Netns) {
        self.sandboxes.forget(netns);
    }
}

impl Control {
    /// Takes what the plugin asks; the answer may come later.
    pub(super) fn asked(&mut self, asked: Asked) {
        let Asked {
            request,
            netns,
            answer,
            at,
        } = asked;
        if self.has_handed() {
            self.forward(request, netns, answer);
            return;
        }
        let waiting = |sandbox, netns, answer| Waiting {
            known: Known { sandbox, netns },
            since: at,
            answer,
        };
        match (request, netns) {
            (Request::Add(sandbox), Some(netns)) => self.add(waiting(sandbox, netns, answer)),
            (Request::Check(sandbox), Some(netns)) => {
                self.confirm(waiting(sandbox, netns, answer));
            }
            (Request::Add(sandbox) | Request::Check(sandbox), None) => {
                let reason = format!(
                    "no namespace came with the sandbox of {}/{}",
                    sandbox.namespace, sandbox.name
                );
                let _ = answer.send(Answer::Refused { reason });
            }
            (Request::Del(attachment), _) => {
                self.removed(&attachment);
                let _ = answer.send(Answer::Done);
            }
            (Request::Gc { network, left }, _) => {
                for known in self.plugged.sandboxes.keep_only(&network, &left) {
                    self.without_sandbox(&known);
                }
                let _ = answer.send(Answer::Done);
            }
            (Request::Status, _) => {
                let _ = answer.send(match self.unable() {
                    Some(reason) => Answer::Unknown { reason },
                    None => Answer::Done,
                });
            }
        }
    }

    /// Lets the next daemon answer.
    fn forward(&self, request: Request, netns: Option<Netns>, answer: oneshot::Sender<Answer>) {
        let socket = self.config.plugin_socket();
        let ask = async move {
            let ask = move || forward(&socket, &request, netns.as_ref());
            if let Some(answered) = task::blocking("forward", ask).await {
                let _ = answer.send(answered);
            }
        };
        task::spawn("forward", ask).detach();
    }

    /// The same for all that wait here.
    pub(super) fn forward_waiting(&mut self) {
        let mut all = std::mem::take(&mut self.plugged.unknown);
        all.extend(self.plugged.enrolling.drain().flat_map(|(_, all)| all));
        for waiting in all {
            let Waiting { known, answer, .. } = waiting;
            self.forward(Request::Add(known.sandbox), Some(known.netns), answer);
        }
    }

    fn add(&mut self, waiting: Waiting) {
        if self.ending.is_some() {
            let reason = "it is ending".to_owned();
            return self.answer(waiting, Answer::Unknown { reason });
        }
        if waiting.known.sandbox.ips.is_empty() {
            let reason = "the plugins before gave it no address".to_owned();
            return self.answer(waiting, Answer::Refused { reason });
        }
        self.plugged.unknown.push(waiting);
        self.settle();
    }

    /// Decides about all sandboxes that wait for their pods: some may be known now.
    pub(super) fn settle(&mut self) {
        if !self.in_charge() {
            return;
        }
        // A pod that is not wanted any more is not going to be captured: decide about it anew.
        let pods = &self.pods;
        let lost = |uid: &Arc<str>, _: &mut Vec<Waiting>| pods.entry(uid).is_none();
        for (_, waiting) in self.plugged.enrolling.extract_if(lost) {
            self.plugged.unknown.extend(waiting);
        }
        if self.plugged.unknown.is_empty() {
            return;
        }
        let snapshot = self.shared.world.load().snapshot.clone();
        let mut enrol = false;
        for waiting in std::mem::take(&mut self.plugged.unknown) {
            let sandbox = &waiting.known.sandbox;
            let pod = snapshot.workload(&sandbox.namespace, &sandbox.name);
            match decide(sandbox, pod.map(|pod| &**pod), &self.shared.node) {
                Decision::Bypass(reason) => {
                    // Its place is kept: the pod may get a label while it runs.
                    self.plugged.sandboxes.add(waiting.known.clone());
                    let reason = reason.to_owned();
                    self.answer(waiting, Answer::Bypass { reason });
                }
                Decision::Enrol => {
                    if let Some(pod) = pod {
                        enrol |= self.admit(&pod.uid, waiting);
                    }
                }
                Decision::Wait if self.is_late(&waiting) => self.by_namespace(waiting),
                Decision::Wait => self.plugged.unknown.push(waiting),
            }
        }
        if enrol {
            self.publish();
        }
    }

    /// Begins to capture a pod for its new sandbox; whether anything is to be done for it.
    fn admit(&mut self, uid: &Arc<str>, waiting: Waiting) -> bool {
        let netns = &waiting.known.netns;
        let owner = self.held.iter().find(|(_, held)| held.netns == *netns);
        match owner {
            Some((owner, _)) if owner != uid => {
                let reason = format!("its network namespace is that of pod {owner} as well");
                self.answer(waiting, Answer::Refused { reason });
                false
            }
            Some(_) if self.is_captured(uid) => {
                self.answer(waiting, Answer::Enrolled);
                false
            }
            _ => {
                self.plugged.sandboxes.add(waiting.known.clone());
                let enrolling = self.plugged.enrolling.entry(uid.clone());
                enrolling.or_default().push(waiting);
                true
            }
        }
    }

    fn is_captured(&self, uid: &str) -> bool {
        self.pods.entry(uid).is_some_and(Entry::is_settled)
    }

    fn is_late(&self, waiting: &Waiting) -> bool {
        let patience = match self.unable() {
            Some(_) => STARTING,
            None => UNKNOWN,
        };
        waiting.since.elapsed() >= patience
    }

    /// Why nothing can be said of any pod, if so.
    fn unable(&self) -> Option<String> {
        if self.ending.is_some() {
            return Some("it is ending".to_owned());
        }
        let starting = "it has not read the cluster's objects yet";
        (!self.reports.read_once).then(|| starting.to_owned())
    }

    /// Decides about a pod of which the index knows nothing but the namespace.
    fn by_namespace(&mut self, waiting: Waiting) {
        self.plugged.said = None;
        self.say_namespaces();
        let namespace = &waiting.known.sandbox.namespace;
        let outside = self.plugged.left.said().others.contains(namespace);
        let answer = match self.unable() {
            Some(reason) => Answer::Unknown { reason },
            None if outside => {
                self.plugged.sandboxes.add(waiting.known.clone());
                Answer::Bypass {
                    reason: "unknown_pod".to_owned(),
                }
            }
            None => Answer::Refused {
                reason: format!(
                    "namespace {namespace} may be of the mesh, and nobody has told the daemon of \
                     this pod yet: it waits for the API server"
                ),
            },
        };
        self.answer(waiting, answer);
    }

    /// A pod is captured, or cannot be: its sandboxes have their answer.
    pub(super) fn answer_enrolling(&mut self, pod: &Wanted, outcome: Result<&Netns, &str>) {
        let uid = &pod.uid;
        let Some(all) = self.plugged.enrolling.remove(uid) else {
            return;
        };
        let settled = self.is_captured(uid);
        let is_this = |waiting: &Waiting| pod.place == Place::Held(waiting.known.netns.clone());
        for waiting in all {
            match outcome {
                Ok(netns) if settled && *netns == waiting.known.netns => {
                    self.answer(waiting, Answer::Enrolled);
                }
                Err(why) if is_this(&waiting) => {
                    let reason = why.to_owned();
                    self.answer(waiting, Answer::Refused { reason });
                }
                // It was for the sandbox before; this one is next.
                Ok(_) | Err(_) => {
                    let enrolling = self.plugged.enrolling.entry(uid.clone());
                    enrolling.or_default().push(waiting);
                }
            }
        }
    }

    /// Says whether a sandbox is as it was left.
    fn confirm(&mut self, waiting: Waiting) {
        let snapshot = self.shared.world.load().snapshot.clone();
        let Known { sandbox, netns } = &waiting.known;
        let pod = snapshot.workload(&sandbox.namespace, &sandbox.name);
        let answer = match (
            decide(sandbox, pod.map(|pod| &**pod), &self.shared.node),
            pod,
        ) {
            (Decision::Enrol, Some(pod)) => {
                let held = self.held.get(&pod.uid);
                let there = held.is_some_and(|held| held.netns == *netns);
                if there && self.is_captured(&pod.uid) {
                    Answer::Enrolled
                } else {
                    Answer::Refused {
                        reason: "it is not captured at the moment".to_owned(),
                    }
                }
            }
            (Decision::Bypass(reason), _) => Answer::Bypass {
                reason: reason.to_owned(),
            },
            _ => Answer::Unknown {
                reason: "nobody has told the daemon of this pod".to_owned(),
            },
        };
        self.answer(waiting, answer);
    }

    fn removed(&mut self, attachment: &Attachment) {
        let given_up = |waiting: &mut Waiting| waiting.known.sandbox.attachment == *attachment;
        let mut gone: Vec<_> = self.plugged.unknown.extract_if(.., given_up).collect();
        for all in self.plugged.enrolling.values_mut() {
            gone.extend(all.extract_if(.., given_up));
        }
        for waiting in gone {
            let reason = "its sandbox was removed meanwhile".to_owned();
            self.answer(waiting, Answer::Refused { reason });
        }
        if let Some(known) = self.plugged.sandboxes.remove(attachment) {
            self.without_sandbox(&known);
        }
    }

    /// Gives up what is held of a sandbox that went.
    fn without_sandbox(&mut self, known: &Known) {
        let handed_over = Place::Held(known.netns.clone());
        let entries = self.pods.entries();
        let uids: Vec<_> = entries
            .filter(|entry| entry.wanted().place == handed_over)
            .map(|entry| entry.wanted().uid.clone())
            .collect();
        for uid in uids {
            self.pods.without_sandbox(&uid, Instant::now());
        }
    }

    /// Forgets sandboxes whose end nobody has told: a descriptor keeps a namespace alive. Called every
    /// ten seconds; a pod may be a little later in the index than its sandbox is here.
    pub(super) fn prune_sandboxes(&mut self) {
        let snapshot = self.shared.world.load().snapshot.clone();
        let before = std::mem::take(&mut self.plugged.strange);
        let mut strange = HashSet::new();
        let known = |sandbox: &Sandbox| {
            snapshot
                .workload(&sandbox.namespace, &sandbox.name)
                .is_some()
        };
        for sandbox in self.plugged.sandboxes.all().filter(|one| !known(one)) {
            strange.insert(sandbox.attachment.clone());
        }
        let gone = |sandbox: &Sandbox| {
            before.contains(&sandbox.attachment) && strange.contains(&sandbox.attachment)
        };
        self.plugged.sandboxes.prune(|sandbox| !gone(sandbox));
        self.plugged.strange = strange;
    }

    /// Leaves written which namespaces are of the mesh.
    pub(super) fn say_namespaces(&mut self) {
        let lately = |at: Instant| at.elapsed() < BETWEEN;
        if !self.plugged.stale || !self.reports.read_once || self.plugged.said.is_some_and(lately) {
            return;
        }
        self.plugged.said = Some(Instant::now());
        self.advise_namespaces();
        match self.plugged.left.say(&self.index) {
            Ok(()) => self.plugged.stale = false,
            Err(error) => {
                tracing::warn!(error = %error, "cannot write down the namespaces of the mesh");
            }
        }
    }

    /// Takes back what was said of namespaces.
    pub(super) fn forget_namespaces(&mut self) {
        self.plugged.left.forget();
    }

    fn answer(&self, waiting: Waiting, answer: Answer) {
        let word = match &answer {
            Answer::Enrolled => "enrolled",
            Answer::Bypass { .. } => "bypass",
            Answer::Refused { .. } => "refused",
            Answer::Unknown { .. } => "unknown",
            Answer::Done => "done",
        };
        let reason = match &answer {
            Answer::Bypass { reason } | Answer::Refused { reason } | Answer::Unknown { reason } => {
                reason.as_str()
            }
            _ => "",
        };
        let Sandbox {
            namespace, name, ..
        } = &waiting.known.sandbox;
        tracing::info!(
            pod = format_args!("{namespace}/{name}"),
            answer = word,
            reason,
            netns.cookie = waiting.known.netns.cookie(),
            duration = format_args!("{}ms", waiting.since.elapsed().as_millis()),
            "sandbox answered",
        );
        let daemon = &self.shared.metrics.daemon;
        daemon
            .sandboxes
            .get_or_create(&Plugin { answer: word })
            .inc();
        let _ = waiting.answer.send(answer);
    }
}
