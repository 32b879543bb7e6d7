//! The bytes that wait for readers, in all tunnels of a daemon, and whose are given up when they are
//! too many.
//!
//! A stream's window bounds what waits for its reader, and a tunnel's window what waits in all its
//! streams ([`window`](crate::tunnel::window)); but of tunnels there are many. When all that waits is
//! more than the daemon has memory for, the longest queues go: of the pod, or of the peer, for which
//! most waits, the tunnels with most, and of these the streams with most. So whoever makes this
//! daemon hold bytes loses his own connections, and a reader that keeps up loses nothing.
//!
//! Each worker knows its own tunnels, and tells all others what waits in them in steps, so that a
//! tunnel in which little waits touches nothing shared. A worker gives up what is above its part; so
//! all together hold little more than the bound, which is what one turn reads.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;

use crate::tunnel::link::Link;

/// By how much a worker's bytes change before it tells.
const STEP: usize = 256 * 1024;

/// What waits in all tunnels of a daemon.
#[derive(Debug)]
pub struct Waiting {
    most: usize,
    workers: usize,
    all: AtomicUsize,
}

/// Streams of this worker that were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shed {
    /// How many.
    pub streams: u64,
    /// The pod of the last of them.
    pub pod: IpAddr,
    /// The peer of the last of them.
    pub peer: IpAddr,
}

/// The two ends of a tunnel: our pod's address, and the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) pod: IpAddr,
    pub(crate) peer: IpAddr,
}

impl Ends {
    /// Those of a connected socket.
    pub(crate) fn of(tcp: &TcpStream) -> io::Result<Self> {
        Ok(Self {
            pod: tcp.local_addr()?.ip().to_canonical(),
            peer: tcp.peer_addr()?.ip().to_canonical(),
        })
    }
}

#[derive(Default)]
struct Here {
    links: RefCell<Vec<Weak<Link>>>,
    bytes: Cell<usize>,
    /// What of them all others know.
    told: Cell<usize>,
    shed: Cell<Option<Shed>>,
}

thread_local! {
    /// This worker's.
    static HERE: Here = Here::default();
}

impl Waiting {
    /// Nothing waits; `most` bytes may, on so many workers.
    #[must_use]
    pub fn new(most: usize, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            workers: workers.max(1),
            all: AtomicUsize::new(0),
        })
    }

    /// How many bytes wait, to some hundred KiB.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// How many may.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether windows should be small, because half of it is used.
    pub(crate) fn is_pressed(&self) -> bool {
        self.bytes() > self.most / 2
    }

    /// Gives up this worker's longest queues, if too much waits. Asked for now and then, since a
    /// worker to which nothing comes does not find out by itself.
    pub fn relieve(&self) {
        let all = self.bytes();
        if all <= self.most {
            return;
        }
        HERE.with(|here| {
            let mut excess = excess(all, here.bytes.get(), self.most, self.workers);
            while excess > 0 {
                let links: Vec<_> = here
                    .links
                    .borrow()
                    .iter()
                    .filter_map(Weak::upgrade)
                    .collect();
                let held: Vec<_> = links.iter().map(|link| (link.ends, link.waits())).collect();
                let mut freed = 0;
                for at in longest(&held) {
                    let (bytes, streams) = links[at].shed(excess - freed);
                    here.note(links[at].ends, streams);
                    freed += bytes;
                    if freed >= excess {
                        break;
                    }
                }
                if freed == 0 {
                    return;
                }
                excess = excess.saturating_sub(freed);
            }
        });
    }

    /// What waits in a tunnel of this worker was `before`, and is `now`.
    pub(crate) fn recount(&self, before: usize, now: usize) {
        // At a thread's end its tunnels may outlive what it knows of them.
        let _ = HERE.try_with(|here| {
            let bytes = here.bytes.get() + now - before;
            here.bytes.set(bytes);
            let told = here.told.get();
            if bytes >= told + STEP {
                self.all.fetch_add(bytes - told, Ordering::Relaxed);
                here.told.set(bytes);
            } else if bytes + STEP <= told || bytes == 0 && told > 0 {
                self.all.fetch_sub(told - bytes, Ordering::Relaxed);
                here.told.set(bytes);
            }
        });
    }
}

/// The streams that this worker gave up since it was last asked.
#[must_use]
pub fn take_shed() -> Option<Shed> {
    HERE.with(|here| here.shed.take())
}

/// Makes a tunnel known to its worker.
pub(crate) fn register(link: &Rc<Link>) {
    HERE.with(|here| {
        let mut links = here.links.borrow_mut();
        if links.len() == links.capacity() {
            links.retain(|link| link.strong_count() > 0);
        }
        links.push(Rc::downgrade(link));
    });
}

impl Here {
    fn note(&self, ends: Ends, streams: usize) {
        let before = self.shed.get().map_or(0, |shed| shed.streams);
        if streams > 0 {
            self.shed.set(Some(Shed {
                streams: before + streams as u64,
                pod: ends.pod,
                peer: ends.peer,
            }));
        }
    }
}

/// How much a worker has to give up that has `here` of `all` bytes: as much as is above its part, but
/// no more than makes all of it seven eighths of the most.
fn excess(all: usize, here: usize, most: usize, workers: usize) -> usize {
    let part = most / workers;
    let above = all.saturating_sub(most - most / 8);
    above.min(here.saturating_sub(part - part / 8))
}

/// The tunnels of the pod, or of the peer, for which most waits; that with most first.
fn longest(held: &[(Ends, usize)]) -> Vec<usize> {
    /// The address with most, and how much that is.
    fn most(held: &[(Ends, usize)], of: impl Fn(&Ends) -> IpAddr) -> Option<(usize, IpAddr)> {
        let mut sums: HashMap<IpAddr, usize> = HashMap::new();
        for (ends, bytes) in held {
            *sums.entry(of(ends)).or_default() += bytes;
        }
        let sums = sums.into_iter().map(|(address, sum)| (sum, address));
        sums.max()
    }
    let (pod, peer) = (most(held, |ends| ends.pod), most(held, |ends| ends.peer));
    let is_theirs = |ends: &Ends| match (pod, peer) {
        (Some(pod), Some(peer)) if peer.0 > pod.0 => ends.peer == peer.1,
        (Some(pod), _) => ends.pod == pod.1,
        (None, _) => false,
    };
    let all = held.iter().enumerate();
    let mut theirs: Vec<_> = all
        .filter(|(_, (ends, bytes))| *bytes > 0 && is_theirs(ends))
        .map(|(at, _)| at)
        .collect();
    theirs.sort_by_key(|at| std::cmp::Reverse(held[*at].1));
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_gives_up_what_is_above_its_part() {
        assert_eq!(excess(800, 800, 1000, 1), 0);
        assert_eq!(excess(1200, 1200, 1000, 1), 325);
        assert_eq!(excess(1200, 100, 1000, 4), 0, "others hold it");
        assert_eq!(excess(1200, 1100, 1000, 4), 325);
        assert_eq!(excess(1200, 240, 1000, 4), 21);
    }

    #[test]
    fn the_longest_queue_is_found_however_it_is_spread() {
        let check = |held: &[(u8, u8, usize)], expect: &[usize]| {
            let ip = |last| IpAddr::from([10, 0, 0, last]);
            let held: Vec<_> = held
                .iter()
                .map(|(pod, peer, bytes)| {
                    let (pod, peer) = (ip(*pod), ip(*peer));
                    (Ends { pod, peer }, *bytes)
                })
                .collect();
            assert_eq!(longest(&held), expect);
        };
        check(&[], &[]);
        check(&[(1, 11, 0)], &[]);
        check(&[(1, 11, 500), (2, 12, 900)], &[1]);
        // A peer that fills tunnels to many pods, and a pod that reads from nobody.
        check(&[(1, 11, 500), (2, 12, 300), (3, 12, 301)], &[2, 1]);
        check(&[(1, 11, 500), (2, 12, 301), (2, 13, 300)], &[1, 2]);
    }
}
