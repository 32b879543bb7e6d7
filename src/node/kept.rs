//! Connections between two pods of this node that are kept for the next pair of applications.
//!
//! Where both ends of a same-node connection are one worker's, as most are (`sys/socket/lane.rs`),
//! its directions end without a FIN ([`deliver::Half`](crate::deliver::Half)), and it comes here.
//! Short connections then cost the two that the applications make, and none between. Each is judged
//! and accounted for as the first one was: what is kept is the way, not the permission.
//!
//! They are few, and none is used again when a second has passed since its handshake: whoever filters
//! handshakes between pods, a NetworkPolicy for one, is asked again that soon. What ends one of the
//! two pods ends them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::deliver::Half;
use crate::mesh::TunnelAddr;
use crate::sys::socket::AppSocket;

/// How many a worker keeps; one more takes the place of the oldest.
const MOST: usize = 64;
/// How long after its handshake one is used again.
const LIFE: Duration = Duration::from_secs(1);

/// What makes them interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The cookie of the namespace they leave.
    pub(crate) from: u64,
    /// The address they come from there.
    pub(crate) source: IpAddr,
    /// The cookie of the namespace they lead to.
    pub(crate) to: u64,
    /// The tunnel port there.
    pub(crate) via: TunnelAddr,
}

/// What both ends of one know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) key: Key,
    /// The address it comes from, with its port.
    pub(crate) local: SocketAddr,
    /// When it was dialled.
    pub(crate) born: Instant,
}

impl Way {
    /// Whether it may be used again.
    fn is_young(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.born) < LIFE
    }
}

/// One that nobody uses.
pub(crate) struct Idle {
    pub(crate) way: Way,
    pub(crate) dialled: AppSocket,
    pub(crate) accepted: AppSocket,
}

/// The accepting end's part of one that has just been dialled.
pub(crate) type Seat = (Way, Half);

/// All of one worker.
#[derive(Default)]
pub(crate) struct Kept {
    idle: RefCell<Vec<Idle>>,
    /// Namespaces that were let go within [`LIFE`], and when: what was dialled before may still come.
    gone: RefCell<Vec<(u64, Instant)>>,
    /// By both addresses, as the accepting end sees them.
    seats: RefCell<HashMap<(SocketAddr, SocketAddr), Seat>>,
}

impl Kept {
    /// One that nobody uses and that still stands.
    pub(crate) fn take(&self, key: Key, now: Instant) -> Option<Idle> {
        let mut all = self.idle.borrow_mut();
        while let Some(at) = all.iter().rposition(|idle| idle.way.key == key) {
            let mut idle = all.swap_remove(at);
            let stands = idle.dialled.is_quiet() && idle.accepted.is_quiet();
            if stands && idle.way.is_young(now) {
                // Not to be waited for: an application that is dialled on behalf of these bytes
                // acknowledges late if they do not go with the end of its handshake.
                idle.accepted.begin_again();
                return Some(idle);
            }
        }
        None
    }

    /// Keeps one for the next use.
    pub(crate) fn give(&self, way: Way, both: (AppSocket, AppSocket), now: Instant) {
        let (dialled, accepted) = both;
        let mut all = self.idle.borrow_mut();
        if !way.is_young(now) || self.is_gone(way) {
            return;
        }
        if all.len() == MOST
            && let Some(oldest) = (0..MOST).min_by_key(|at| all[*at].way.born)
        {
            all.swap_remove(oldest);
        }
        all.push(Idle {
            way,
            dialled,
            accepted,
        });
    }

    /// Closes those whose time is over.
    pub(crate) fn expire(&self, now: Instant) {
        self.idle.borrow_mut().retain(|idle| idle.way.is_young(now));
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < LIFE;
        self.gone.borrow_mut().retain(|(_, at)| is_fresh(*at));
    }

    /// Closes those of a namespace, and keeps none that was dialled before `now`: of a connection
    /// whose one end is over, the other one's application may end later.
    pub(crate) fn forget(&self, cookie: u64, now: Instant) {
        self.gone.borrow_mut().push((cookie, now));
        let mut all = self.idle.borrow_mut();
        all.retain(|idle| !self.is_gone(idle.way));
    }

    fn is_gone(&self, Way { key, born, .. }: Way) -> bool {
        let gone = self.gone.borrow();
        let mut gone = gone.iter().filter(|(_, at)| born <= *at);
        gone.any(|(cookie, _)| [key.from, key.to].contains(cookie))
    }

    /// Closes all.
    pub(crate) fn clear(&self) {
        self.idle.borrow_mut().clear();
    }

    /// Lays the accepting end's half ready, until the guard goes. The other half is the caller's.
    pub(crate) fn seat(self: &Rc<Self>, way: Way) -> (Seated, Half) {
        let (own, other) = Half::pair();
        let ends = (way.local, way.key.via.get());
        self.seats.borrow_mut().insert(ends, (way, other));
        let seated = Seated {
            kept: self.clone(),
            ends,
        };
        (seated, own)
    }

    /// The half of a connection between these ends, if this worker has dialled it.
    pub(crate) fn claim(&self, source: SocketAddr, via: SocketAddr) -> Option<Seat> {
        self.seats.borrow_mut().remove(&(source, via))
    }
}

/// Takes back what nobody has claimed.
pub(crate) struct Seated {
    kept: Rc<Kept>,
    ends: (SocketAddr, SocketAddr),
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.kept.seats.borrow_mut().remove(&self.ends);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn both() -> (AppSocket, AppSocket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap());
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        let resetting = |tcp| AppSocket::resetting(tcp).unwrap();
        (resetting(dialled.unwrap()), resetting(accepted.unwrap().0))
    }

    fn way(from: u64, to: u64, born: Instant) -> Way {
        let addr = SocketAddr::from(([10, 0, 0, 1], 15008));
        let key = Key {
            from,
            source: addr.ip(),
            to,
            via: TunnelAddr::new(addr),
        };
        let local = addr;
        Way { key, local, born }
    }

    #[tokio::test]
    async fn one_is_taken_while_it_is_young_and_by_its_key_alone() {
        let (kept, now) = (Kept::default(), Instant::now());
        kept.give(way(1, 2, now), both().await, now);
        assert!(kept.take(way(2, 1, now).key, now).is_none());
        assert!(kept.take(way(1, 2, now).key, now).is_some());
        assert!(kept.take(way(1, 2, now).key, now).is_none(), "one's alone");
        kept.give(way(1, 2, now), both().await, now);
        assert!(kept.take(way(1, 2, now).key, now + LIFE).is_none());
        kept.give(way(1, 2, now), both().await, now + LIFE);
        assert!(kept.idle.borrow().is_empty());
    }

    #[tokio::test]
    async fn the_oldest_gives_way() {
        let (kept, now) = (Kept::default(), Instant::now());
        let at = |count: usize| now + Duration::from_micros(count as u64);
        for count in 0..=MOST {
            kept.give(way(1, 2, at(count)), both().await, at(count));
        }
        let idle = kept.idle.borrow();
        assert_eq!(idle.len(), MOST);
        assert!(idle.iter().all(|idle| idle.way.born > now));
    }

    #[tokio::test]
    async fn one_on_which_something_has_come_is_not_taken() {
        let (kept, now) = (Kept::default(), Instant::now());
        for ends in [false, true] {
            let (dialled, accepted) = both().await;
            let other = socket2::SockRef::from(dialled.tcp()).try_clone().unwrap();
            kept.give(way(1, 2, now), (dialled, accepted), now);
            if ends {
                other.shutdown(std::net::Shutdown::Write).unwrap();
            } else {
                other.send(b"x").unwrap();
            }
            assert!(kept.take(way(1, 2, now).key, now).is_none());
        }
    }

    #[tokio::test]
    async fn a_namespace_that_is_let_go_takes_along_what_comes_back_later() {
        let (kept, now) = (Kept::default(), Instant::now());
        let later = now + Duration::from_millis(1);
        for (from, to) in [(1, 2), (3, 1), (3, 2)] {
            kept.give(way(from, to, now), both().await, now);
        }
        kept.forget(1, now);
        assert_eq!(kept.idle.borrow().len(), 1);
        kept.give(way(2, 1, now), both().await, later);
        assert!(kept.take(way(2, 1, now).key, later).is_none());
        // It is served again.
        kept.give(way(2, 1, later), both().await, later);
        assert!(kept.take(way(2, 1, now).key, later).is_some());
        kept.expire(now + LIFE);
        assert!(kept.gone.borrow().is_empty());
    }
}
