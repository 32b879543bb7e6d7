//! Who may stay connected, of more callers than there is room for.
//!
//! Whoever reaches a port may open connections and say nothing. Were they left to wait, those who
//! have something to say would wait behind them: kubelet, whose probe then fails, and who ends the
//! program for it. So everybody is let in, and the one that goes is the oldest: of the same address
//! if that has all its seats, else of all.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::future::AbortHandle;

/// The connections of one server.
#[derive(Debug)]
pub struct Seats {
    all: usize,
    of_one: usize,
    next: u64,
    /// By age.
    taken: BTreeMap<u64, Caller>,
}

#[derive(Debug)]
struct Caller {
    /// None on a unix socket, where all callers are alike.
    source: Option<IpAddr>,
    end: AbortHandle,
}

/// One connection's place.
#[derive(Debug)]
#[must_use]
pub struct Seat(u64);

impl Seats {
    /// `all` seats, of which callers from one address have `of_one`.
    #[must_use]
    pub fn new(all: usize, of_one: usize) -> Self {
        Self {
            all,
            of_one,
            next: 0,
            taken: BTreeMap::new(),
        }
    }

    /// Seats a caller whose connection is ended by `end`; another one's may be for it.
    pub fn take(&mut self, source: Option<IpAddr>, end: AbortHandle) -> Seat {
        let source = source.map(|source| source.to_canonical());
        let same = |caller: &Caller| source.is_some() && caller.source == source;
        let of_source = || self.taken.iter().filter(|(_, caller)| same(caller));
        let oldest = if of_source().count() >= self.of_one {
            of_source().next()
        } else if self.taken.len() >= self.all {
            self.taken.iter().next()
        } else {
            None
        };
        if let Some(oldest) = oldest.map(|(&seat, _)| seat)
            && let Some(caller) = self.taken.remove(&oldest)
        {
            caller.end.abort();
        }
        let seat = self.next;
        self.next += 1;
        self.taken.insert(seat, Caller { source, end });
        Seat(seat)
    }

    /// Takes a seat back, if it is not another's by now.
    #[expect(clippy::needless_pass_by_value, reason = "it is of no more use")]
    pub fn leave(&mut self, seat: Seat) {
        self.taken.remove(&seat.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Room {
        seats: Seats,
        callers: Vec<(AbortHandle, Option<Seat>)>,
    }

    impl Room {
        /// A caller from 10.0.0.`source`; 0 is a unix socket's.
        fn come(&mut self, source: u8) {
            let (end, _) = AbortHandle::new_pair();
            let ip = (source > 0).then(|| IpAddr::from([10, 0, 0, source]));
            let seat = self.seats.take(ip, end.clone());
            self.callers.push((end, Some(seat)));
        }

        fn go(&mut self, caller: usize) {
            if let Some(seat) = self.callers[caller].1.take() {
                self.seats.leave(seat);
            }
        }

        /// Who was sent away.
        fn away(&self) -> Vec<usize> {
            let ended = |(at, (end, _)): (usize, &(AbortHandle, _))| end.is_aborted().then_some(at);
            self.callers.iter().enumerate().filter_map(ended).collect()
        }
    }

    fn room(all: usize, of_one: usize) -> Room {
        Room {
            seats: Seats::new(all, of_one),
            callers: Vec::new(),
        }
    }

    #[test]
    fn the_oldest_of_the_same_address_goes_and_then_of_all() {
        let mut room = room(4, 2);
        for source in [1, 2, 2, 2] {
            room.come(source);
        }
        assert_eq!(room.away(), [1], "one address fills its own seats alone");
        room.come(3);
        assert_eq!(room.away(), [1]);
        room.come(4);
        assert_eq!(room.away(), [0, 1], "then it is the oldest of all");
    }

    #[test]
    fn who_went_leaves_room_and_is_not_sent_away() {
        let mut room = room(2, 2);
        room.come(1);
        room.come(1);
        room.go(0);
        room.come(1);
        assert_eq!(room.away(), [0; 0]);
        room.come(1);
        room.go(1);
        assert_eq!(room.away(), [1]);
        assert_eq!(room.seats.taken.len(), 2);
    }

    #[test]
    fn callers_on_a_unix_socket_have_all_seats() {
        let mut room = room(3, 1);
        for _ in 0..3 {
            room.come(0);
        }
        assert_eq!(room.away(), [0; 0]);
        room.come(0);
        assert_eq!(room.away(), [0]);
    }

    #[test]
    fn both_writings_of_an_address_are_one() {
        let mut seats = Seats::new(9, 1);
        let (first, _) = AbortHandle::new_pair();
        let (second, _) = AbortHandle::new_pair();
        let _first = seats.take("::ffff:10.0.0.1".parse().ok(), first.clone());
        let _second = seats.take("10.0.0.1".parse().ok(), second);
        assert!(first.is_aborted());
    }
}
