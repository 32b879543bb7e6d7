//! Which tunnel carries the next stream.
//!
//! A worker keeps its tunnels by [`Key`]: two pods never share one, nor two issues of a pod's
//! certificate, nor two identities behind one address. For each key at most one handshake is
//! under way; who comes meanwhile waits for it and shares its outcome, also a failure.
//! A handshake is a task of its own: it blocks no other key, and goes on when those who asked
//! for it have gone.
//!
//! A tunnel that takes nothing more (full for ever, GOAWAY, idle too long) leaves the pool and
//! ends with its last stream; one whose pod or destination is gone is cut by [`Pool::retain`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::authorize::Permit;
use crate::mesh::{Identity, PodAddr, TunnelAddr};
use crate::pki::Certificate;
use crate::sys::netns::Netns;
use crate::sys::socket::Lane;
use crate::task::{self, Task};
use crate::tunnel::client::{self, Tunnel};
use crate::tunnel::connect::ConnectHead;
use crate::tunnel::error::Error;
use crate::tunnel::link::{Link, Place};
use crate::tunnel::stream::Stream;
use crate::tunnel::{Limits, tls};

/// How many handshakes one open sees at most, when each new tunnel is full before its turn.
const ROUNDS: usize = 8;

/// The pod a tunnel leaves from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Where its sockets live.
    pub netns: Netns,
    /// The address it speaks from.
    pub address: IpAddr,
    /// By what it proves its identity.
    pub certificate: Arc<Certificate>,
}

/// What makes tunnels interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The cookie of the source pod's network namespace.
    pub origin: u64,
    /// The source's address.
    pub address: IpAddr,
    /// Which issue of the source's certificate.
    pub epoch: u64,
    /// The source's identity.
    pub own: Identity,
    /// The destination's tunnel port.
    pub via: TunnelAddr,
    /// The identity that the destination must prove.
    pub peer: Identity,
}

/// The tunnels of one worker. Clones share them.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    limits: Limits,
    /// Whose tunnels they are.
    lane: Lane,
    slots: RefCell<HashMap<Key, Slot>>,
    made: Cell<u64>,
}

#[derive(Default)]
struct Slot {
    tunnels: Vec<(Rc<Tunnel>, Task)>,
    attempt: Option<(Rc<Attempt>, Task)>,
}

/// A handshake under way, and those who wait for it.
#[derive(Default)]
struct Attempt {
    outcome: RefCell<Option<Result<Rc<Tunnel>, Error>>>,
    done: Notify,
}

/// Where an open goes again, if its stream is turned away unseen.
#[derive(Clone)]
pub(crate) struct Way {
    pool: Pool,
    key: Key,
    origin: Origin,
    head: ConnectHead,
}

impl Pool {
    /// An empty pool, of one worker among all.
    #[must_use]
    pub fn new(limits: Limits, lane: Lane) -> Self {
        Self(Rc::new(Inner {
            limits,
            lane,
            slots: RefCell::default(),
            made: Cell::default(),
        }))
    }

    /// Opens a stream to `to` through the tunnel port `via`, as the permit's flow allows. Returns
    /// when CONNECT is queued: bytes may be sent at once, [`Stream::accepted`] tells the answer.
    ///
    /// The destination must prove the identity of the flow's destination workload.
    ///
    /// # Errors
    ///
    /// No tunnel could be made; the same error goes to all who waited for the same handshake.
    pub async fn open(
        &self,
        permit: &Permit,
        origin: &Origin,
        to: PodAddr,
        via: TunnelAddr,
        head: &ConnectHead,
    ) -> Result<Stream, Error> {
        let workload = permit
            .flow()
            .destination
            .workload
            .as_ref()
            .ok_or(Error::NoDestination)?;
        if head.authority() != Ok(to.get()) {
            return Err(Error::NoDestination);
        }
        let key = Key {
            origin: origin.netns.cookie(),
            address: origin.address,
            epoch: origin.certificate.epoch(),
            own: origin.certificate.identity().clone(),
            via,
            peer: workload.identity.clone(),
        };
        let way = Way {
            pool: self.clone(),
            key,
            origin: origin.clone(),
            head: head.clone(),
        };
        if let Some(tunnel) = self.pick(&way.key, None) {
            return Ok(Stream::opening(way.on(&tunnel)?, way));
        }
        // Boxed, because the caller's future lives as long as its connection.
        Box::pin(async move { Ok(Stream::opening(way.open(None).await?, way)) }).await
    }

    /// Keeps the tunnels for which `keep` holds, and cuts the others with all their streams.
    pub fn retain(&self, mut keep: impl FnMut(&Key) -> bool) {
        self.0.slots.borrow_mut().retain(|key, slot| {
            let kept = keep(key);
            if !kept {
                slot.cut();
            }
            kept
        });
    }

    /// Closes the tunnels without streams for which `stale` holds: whoever dials next would not use
    /// them, and so would keep them open for nothing until they had idled long enough.
    pub fn retire(&self, stale: impl Fn(&Key) -> bool) {
        self.0.slots.borrow_mut().retain(|key, slot| {
            if stale(key) {
                slot.tunnels.retain(|(tunnel, _)| tunnel.streams() > 0);
            }
            !slot.tunnels.is_empty() || slot.attempt.is_some()
        });
    }

    /// How many tunnels there are, and how many streams they carry.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        let slots = self.0.slots.borrow();
        let tunnels = slots.values().flat_map(|slot| &slot.tunnels);
        tunnels.fold((0, 0), |(count, streams), (tunnel, _)| {
            (count + 1, streams + tunnel.streams())
        })
    }

    /// How many tunnels have been made since the pool was.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.0.made.get()
    }

    /// The handshake under way for a key, begun now if there is none.
    fn attempt(&self, key: &Key, origin: &Origin) -> Rc<Attempt> {
        let mut slots = self.0.slots.borrow_mut();
        let slot = slots.entry(key.clone()).or_default();
        if let Some((attempt, _)) = &slot.attempt {
            return attempt.clone();
        }
        let attempt = Rc::<Attempt>::default();
        let life = Life {
            pool: self.clone(),
            key: key.clone(),
            attempt: attempt.clone(),
        };
        let work = run(life, origin.clone());
        slot.attempt = Some((attempt.clone(), task::spawn_local("tunnel", work)));
        attempt
    }

    /// A tunnel with room for one more stream, if there is one other than `avoid`.
    fn pick(&self, key: &Key, avoid: Option<&Rc<Link>>) -> Option<Rc<Tunnel>> {
        let slots = self.0.slots.borrow();
        let tunnels = slots.get(key).map_or(&[][..], |slot| &slot.tunnels);
        let avoided = |tunnel: &Tunnel| avoid.is_some_and(|link| tunnel.is_on(link));
        let mut tunnels = tunnels.iter().map(|(tunnel, _)| tunnel);
        tunnels
            .find(|tunnel| tunnel.has_room() && !avoided(tunnel))
            .cloned()
    }

    /// Puts a tunnel where opens find it.
    fn admit(&self, key: &Key, tunnel: &Rc<Tunnel>) {
        let mut slots = self.0.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else {
            return;
        };
        if let Some((_, task)) = slot.attempt.take() {
            slot.tunnels.push((tunnel.clone(), task));
        }
    }

    /// Forgets an attempt that failed, or the tunnel that came of it and has ended: this very one.
    fn forget(&self, key: &Key, attempt: &Rc<Attempt>) {
        let mut slots = self.0.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else {
            return;
        };
        if let Some((_, task)) = slot.attempt.take_if(|(own, _)| Rc::ptr_eq(own, attempt)) {
            task.detach();
        }
        if let Some(Ok(ended)) = &*attempt.outcome.borrow() {
            let is_it = |(tunnel, _): &(Rc<Tunnel>, Task)| Rc::ptr_eq(tunnel, ended);
            if let Some(at) = slot.tunnels.iter().position(is_it) {
                slot.tunnels.swap_remove(at).1.detach();
            }
        }
        if slot.tunnels.is_empty() && slot.attempt.is_none() {
            slots.remove(key);
        }
    }
}

impl Slot {
    fn cut(&mut self) {
        for (tunnel, task) in self.tunnels.drain(..) {
            tunnel.closed();
            drop(task);
        }
        if let Some((attempt, _task)) = self.attempt.take() {
            attempt.finish(Err(Error::Closed));
        }
    }
}

impl Attempt {
    fn finish(&self, outcome: Result<Rc<Tunnel>, Error>) {
        self.outcome.borrow_mut().get_or_insert(outcome);
        self.done.notify_waiters();
    }

    async fn outcome(&self) -> Result<Rc<Tunnel>, Error> {
        loop {
            let done = self.done.notified();
            if let Some(outcome) = &*self.outcome.borrow() {
                return outcome.clone();
            }
            done.await;
        }
    }
}

/// A tunnel's place in the pool: given up however its task ends, also by a panic. Who waits for a
/// tunnel that nobody makes any more would wait for ever.
struct Life {
    pool: Pool,
    key: Key,
    attempt: Rc<Attempt>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.pool.forget(&self.key, &self.attempt);
        self.attempt.finish(Err(Error::Closed));
    }
}

/// A tunnel's life: its handshake, told to all who wait, then its drive to the end.
async fn run(life: Life, origin: Origin) {
    let Life { pool, key, attempt } = &life;
    let config = tls::client_config(&origin.certificate, &key.peer);
    let Inner { limits, lane, .. } = &*pool.0;
    let connected = Box::pin(client::connect(&origin, key.via, config, limits, *lane)).await;
    drop(origin);
    let (tunnel, driver) = match connected {
        Ok(made) => made,
        Err(error) => {
            pool.forget(key, attempt);
            attempt.finish(Err(error));
            return;
        }
    };
    pool.0.made.set(pool.0.made.get() + 1);
    pool.admit(key, &tunnel);
    attempt.finish(Ok(tunnel));
    driver.await;
}

impl Way {
    pub(crate) fn limits(&self) -> &Limits {
        &self.pool.0.limits
    }

    fn on(&self, tunnel: &Tunnel) -> Result<Place, Error> {
        tunnel.open(&self.head)
    }

    /// Opens a stream on a tunnel with room, or on a new one, but not on `avoid`.
    pub(crate) async fn open(&self, avoid: Option<&Rc<Link>>) -> Result<Place, Error> {
        for _ in 0..ROUNDS {
            if let Some(tunnel) = self.pool.pick(&self.key, avoid) {
                return self.on(&tunnel);
            }
            let attempt = self.pool.attempt(&self.key, &self.origin);
            let tunnel = attempt.outcome().await?;
            if tunnel.has_room() {
                return self.on(&tunnel);
            }
            if let Some(end) = tunnel.end() {
                return Err(end);
            }
        }
        Err(Error::Timeout(self.pool.0.limits.handshake))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::TrustDomain;
    use tokio::runtime::{Builder, LocalOptions};

    #[test]
    fn a_handshake_that_panics_fails_those_who_wait_and_leaves_nothing_behind() {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().build_local(LocalOptions::default());
        runtime.unwrap().block_on(async {
            let identity = Identity::new(&TrustDomain::parse("t").unwrap(), "ns", "sa").unwrap();
            let via = TunnelAddr::new(std::net::SocketAddr::from(([10, 0, 0, 1], 15008)));
            let key = Key {
                origin: 1,
                address: via.ip(),
                epoch: 1,
                own: identity.clone(),
                via,
                peer: identity,
            };
            let pool = Pool::new(Limits::default(), Lane::ALONE);
            let attempt = Rc::<Attempt>::default();
            let life = Life {
                pool: pool.clone(),
                key: key.clone(),
                attempt: attempt.clone(),
            };
            let work = async move {
                let _life = life;
                panic!("meant, by a test");
            };
            let slot = Slot {
                tunnels: Vec::new(),
                attempt: Some((attempt.clone(), task::spawn_local("tunnel", work))),
            };
            pool.0.slots.borrow_mut().insert(key, slot);
            let outcome = attempt.outcome().await;
            assert!(matches!(outcome, Err(Error::Closed)));
            assert!(pool.0.slots.borrow().is_empty());
        });
    }
}
