//! What a worker does every now and then: it brings the counters of all up to date with what goes on
//! here, and gives up what is not to be kept.

use std::cell::Cell;
use std::time::Instant;

use crate::node::live::Connection;
use crate::node::worker::Worker;
use crate::pipe::Spare;
use crate::tunnel;

/// What of a worker is in the counters of all.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// Tunnels, streams and connections.
    gauges: Cell<[i64; 3]>,
    /// Tunnels made.
    made: Cell<u64>,
    /// Descriptors of no pod.
    own: Cell<usize>,
}

impl Worker {
    /// Brings the counters up to date with connections that go on.
    pub(crate) fn count(&self, counted: &Counted) {
        self.live.each(Connection::flush);
        self.kept.expire(Instant::now());
        Spare::settle();
        let daemon = &self.shared.metrics.daemon;
        let certificates = &self.shared.certificates;
        let places = &self.shared.places;
        let short = places.is_short();
        self.pool.retire(|key| {
            let current = certificates.current(&key.own);
            short || current.is_some_and(|now| now.epoch() != key.epoch)
        });
        self.count_own(counted);
        let (tunnels, streams) = self.pool.load();
        let now = [tunnels, streams, self.live.len()].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let before = counted.gauges.replace(now);
        let gauges = [
            &daemon.tunnels.outbound,
            &daemon.streams.outbound,
            &daemon.connections,
        ];
        for (gauge, (now, before)) in gauges.into_iter().zip(now.into_iter().zip(before)) {
            gauge.inc_by(now - before);
        }
        let made = self.pool.made();
        let before = counted.made.replace(made);
        daemon.tunnels_opened.outbound.inc_by(made - before);
        self.look_at_unread();
    }

    /// Takes places for the descriptors of no pod. Also at once when listeners come: were they
    /// counted later, connections would have those places by then.
    pub(crate) fn count_own(&self, counted: &Counted) {
        let own = self.pool.load().0 + self.listening();
        let before = counted.own.replace(own);
        self.shared.places.recount(before, own);
    }

    /// Gives up streams if too much waits for readers, and tells of those that were given up.
    fn look_at_unread(&self) {
        let waiting = &self.shared.limits.waiting;
        waiting.relieve();
        let daemon = &self.shared.metrics.daemon;
        let bytes = i64::try_from(waiting.bytes()).unwrap_or(i64::MAX);
        daemon.tunnel_unread.set(bytes);
        let Some(shed) = tunnel::take_shed() else {
            return;
        };
        daemon.streams_shed.inc_by(shed.streams);
        tracing::warn!(
            streams = shed.streams,
            pod.addr = %shed.pod,
            peer.addr = %shed.peer,
            most = waiting.most(),
            mend = "see why the application does not read what its peer sends; an eighth of the \
                    daemon's memory may wait, 1 GiB at most",
            "connections reset: too many bytes wait for readers",
        );
    }
}
