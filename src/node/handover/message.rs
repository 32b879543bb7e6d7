//! What two daemons say to each other: JSON, one message each, descriptors beside it.
//!
//! The two are of different versions whenever it matters. [`Hello`] is for ever as it is, and says
//! which versions of the rest its sender speaks; fields that are not known are passed over.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::api::plugin::Sandbox;
use crate::capture::{Connection, Estate};
use crate::node::handover::{Estates, PodEstate};
use crate::node::plugin::Known;
use crate::node::pods::{Place, Wanted};
use crate::sys::netns::Netns;

/// The version spoken here.
pub(super) const VERSION: u32 = 1;
/// Most bytes of a message.
pub(super) const LARGEST: usize = 128 * 1024;
/// Most listeners beside one message.
const LISTENERS: usize = 200;
/// Most kept connections in one message, of some 80 bytes each.
const KEPT: usize = 1000;

/// What a daemon that comes wants of the one that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wants {
    /// To be the next.
    Pods,
    /// To be told of its end: it has handed over its own pods, to this one or one before.
    Word,
}

/// The first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The versions of this protocol that its sender speaks.
    pub(crate) versions: Vec<u32>,
    pub(crate) wants: Wants,
    /// The version of the program, for people.
    pub(crate) program: String,
    /// Its process id, for people: it may be of another process namespace.
    pub(crate) process: u32,
    /// The node whose pods it is for.
    pub(crate) node: String,
    /// The cookie of its network namespace.
    pub(crate) network: u64,
}

impl Hello {
    /// From this process.
    pub(crate) fn new(wants: Wants, node: &str) -> std::io::Result<Self> {
        Ok(Self {
            versions: vec![VERSION],
            wants,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
            node: node.to_owned(),
            network: Netns::current()?.cookie(),
        })
    }

    /// Why nothing can be handed over in any version that both speak.
    pub(super) fn unspoken(&self) -> Option<String> {
        let theirs = &self.versions;
        (!theirs.contains(&VERSION))
            .then(|| format!("hand-overs are spoken in version {VERSION} here, not in {theirs:?}"))
    }
}

/// Every message but the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum Word {
    /// The answer to [`Hello`].
    Welcome { program: String, process: u32 },
    /// The other answer.
    Refused { reason: String },
    /// Asks for everything from [`Word::Pod`] to [`Word::Complete`].
    Inventory,
    /// A pod; its namespace is beside it.
    Pod {
        uid: Arc<str>,
        name: Arc<str>,
        /// The path of its namespace, if that is how it was found.
        path: Option<Arc<str>>,
        /// Whether the CNI plugin had handed its namespace over.
        held: bool,
        ips: Vec<IpAddr>,
        estate: Estate,
    },
    /// More kept connections of the last pod.
    Kept { connections: Vec<Connection> },
    /// More listeners of the last pod; they are beside it.
    Listeners,
    /// A sandbox; its namespace is beside it.
    Sandbox { sandbox: Sandbox },
    /// That was all.
    Complete { pods: usize, listeners: usize },
    /// The next daemon could serve all that at once.
    Take,
    /// Nobody accepts any more; the next daemon may. The lock is beside it.
    Yours,
    /// It does.
    Serving,
}

/// The messages that carry `all`, with what is to be beside each.
pub(super) fn parcels(all: &Estates) -> Vec<(Word, Vec<BorrowedFd<'_>>)> {
    let mut parcels = Vec::new();
    for pod in &all.pods {
        let mut estate = pod.estate.clone();
        let kept = std::mem::take(&mut estate.kept);
        let path = match &pod.wanted.place {
            Place::Path(path) => Some(path.clone()),
            Place::Held(_) | Place::Search => None,
        };
        let word = Word::Pod {
            uid: pod.wanted.uid.clone(),
            name: pod.wanted.name.clone(),
            path,
            held: matches!(pod.wanted.place, Place::Held(_)),
            ips: pod.wanted.ips.to_vec(),
            estate,
        };
        parcels.push((word, vec![pod.netns.as_fd()]));
        for connections in kept.chunks(KEPT) {
            let connections = connections.to_vec();
            parcels.push((Word::Kept { connections }, Vec::new()));
        }
        for listeners in pod.listeners.chunks(LISTENERS) {
            let beside = listeners.iter().map(AsFd::as_fd).collect();
            parcels.push((Word::Listeners, beside));
        }
    }
    for known in &all.sandboxes {
        let sandbox = known.sandbox.clone();
        parcels.push((Word::Sandbox { sandbox }, vec![known.netns.as_fd()]));
    }
    let complete = Word::Complete {
        pods: all.pods.len(),
        listeners: all.listeners(),
    };
    parcels.push((complete, Vec::new()));
    parcels
}

/// Puts together again what [`parcels`] took apart.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub(super) all: Estates,
}

/// A message that does not belong where it came.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct OutOfPlace(&'static str);

impl Unpacked {
    /// Takes the next message. Whether it was the last.
    pub(super) fn add(&mut self, word: Word, mut beside: Vec<OwnedFd>) -> Result<bool, OutOfPlace> {
        match word {
            Word::Pod {
                uid,
                name,
                path,
                held,
                ips,
                estate,
            } => {
                let netns = namespace(&mut beside)?;
                let place = match path {
                    Some(path) => Place::Path(path),
                    None if held => Place::Held(netns.clone()),
                    None => Place::Search,
                };
                let wanted = Wanted {
                    uid,
                    name,
                    place,
                    ips: ips.into_iter().collect(),
                };
                self.all.pods.push(PodEstate {
                    wanted,
                    netns,
                    estate,
                    listeners: Vec::new(),
                });
            }
            Word::Kept { connections } => self.last()?.estate.kept.extend(connections),
            Word::Listeners => self.last()?.listeners.append(&mut beside),
            Word::Sandbox { sandbox } => {
                let netns = namespace(&mut beside)?;
                self.all.sandboxes.push(Known { sandbox, netns });
            }
            Word::Complete { pods, listeners } => {
                let whole = (pods, listeners) == (self.all.pods.len(), self.all.listeners());
                let odd = OutOfPlace("what came is not what was said to have been sent");
                return if whole { Ok(true) } else { Err(odd) };
            }
            _ => return Err(OutOfPlace("it is none of those that tell of pods")),
        }
        Ok(false)
    }

    /// What is whole, when the other end died before it had said all. The last pod may not be.
    pub(super) fn cut(mut self) -> Estates {
        self.all.pods.pop();
        self.all
    }

    fn last(&mut self) -> Result<&mut PodEstate, OutOfPlace> {
        let last = self.all.pods.last_mut();
        last.ok_or(OutOfPlace("it belongs to a pod, and there was none"))
    }
}

fn namespace(beside: &mut Vec<OwnedFd>) -> Result<Netns, OutOfPlace> {
    let fd = beside.pop().filter(|_| beside.is_empty());
    let none = || OutOfPlace("a namespace should have come with it");
    Netns::from_fd(fd.ok_or_else(none)?).map_err(|_| none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::plugin::Attachment;
    use smallvec::SmallVec;

    fn estates() -> Estates {
        let netns = Netns::current().expect("needs root");
        let kept = |port| Connection {
            local: ([10, 0, 0, 1], port).into(),
            remote: ([10, 0, 0, 2], 80).into(),
        };
        let pod = |uid: &str, place, listeners: usize, many: u16| PodEstate {
            wanted: Wanted {
                uid: uid.into(),
                name: "ns/p".into(),
                place,
                ips: SmallVec::from_slice(&["10.0.0.1".parse().unwrap()]),
            },
            netns: netns.clone(),
            estate: Estate {
                addresses: vec!["10.0.0.1".parse().unwrap()],
                v6: true,
                rules: "config".into(),
                generation: 7,
                kept: (0..many).map(kept).collect(),
                reset: 1,
            },
            listeners: (0..listeners)
                .map(|_| netns.as_fd().try_clone_to_owned().unwrap())
                .collect(),
        };
        let sandbox = Sandbox {
            namespace: "ns".into(),
            name: "p".into(),
            uid: "u".into(),
            network: "pods".into(),
            attachment: Attachment::default(),
            ips: Vec::new(),
        };
        Estates {
            pods: vec![
                pod("a", Place::Path("/run/netns/a".into()), 12, 0),
                pod("b", Place::Held(netns.clone()), 450, 2500),
                pod("c", Place::Search, 0, 1),
            ],
            sandboxes: vec![Known {
                sandbox,
                netns: netns.clone(),
            }],
        }
    }

    fn copy(beside: &[BorrowedFd<'_>]) -> Vec<OwnedFd> {
        let copies = beside.iter().map(|fd| fd.try_clone_to_owned().unwrap());
        copies.collect()
    }

    #[test]
    fn what_is_taken_apart_is_put_together_as_it_was() {
        let sent = estates();
        let (mut unpacked, mut done) = (Unpacked::default(), false);
        for (word, beside) in parcels(&sent) {
            assert!(!done && beside.len() <= crate::sys::seqpacket::MOST_DESCRIPTORS);
            let text = serde_json::to_vec(&word).unwrap();
            assert!(text.len() <= LARGEST, "{}", text.len());
            let word = serde_json::from_slice(&text).unwrap();
            done = unpacked.add(word, copy(&beside)).unwrap();
        }
        assert!(done);
        let came = unpacked.all;
        assert_eq!(came.listeners(), sent.listeners());
        for (came, sent) in came.pods.iter().zip(&sent.pods) {
            assert_eq!((&came.wanted, &came.estate), (&sent.wanted, &sent.estate));
            assert_eq!(came.netns, sent.netns);
            assert_eq!(came.listeners.len(), sent.listeners.len());
        }
        assert_eq!(came.sandboxes[0].sandbox, sent.sandboxes[0].sandbox);
    }

    #[test]
    fn what_was_cut_off_leaves_the_pods_that_are_whole() {
        let sent = estates();
        let mut unpacked = Unpacked::default();
        for (word, beside) in parcels(&sent).into_iter().take(7) {
            assert!(!unpacked.add(word, copy(&beside)).unwrap());
        }
        let came = unpacked.cut();
        assert_eq!(came.pods.len(), 1);
        assert_eq!(came.pods[0].listeners.len(), 12);
    }

    #[test]
    fn what_is_out_of_place_is_refused() {
        let check = |word: Word| assert!(Unpacked::default().add(word, Vec::new()).is_err());
        check(Word::Listeners);
        check(Word::Take);
        check(Word::Kept {
            connections: Vec::new(),
        });
        check(Word::Complete {
            pods: 1,
            listeners: 0,
        });
    }
}
