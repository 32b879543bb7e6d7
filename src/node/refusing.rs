//! Connections that are turned away because there is no room for them: counted, and told seldom.
//!
//! There is no access record of them. Whoever floods would fill the log as well, and the records of
//! others would be lost.

use std::net::SocketAddr;
use std::time::Instant;

use crate::capture::AcceptError;
use crate::causes::Causes;
use crate::mesh::Direction;
use crate::node::live::Room;
use crate::node::pod::Pod;
use crate::node::sources::TUNNELS;
use crate::node::worker::Worker;
use crate::quota::Seldom;
use crate::telemetry::metrics::Reason;

/// What there are too many of. Who is turned away is closed, and so reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TooMany {
    /// Connections of the pod.
    OfPod,
    /// Connections from the source to the pod.
    OfSource,
    /// Tunnels from the source.
    Tunnels,
}

impl TooMany {
    /// How many there are.
    pub(crate) const KINDS: usize = 3;

    /// A stable word for metrics.
    fn reason(self) -> &'static str {
        match self {
            Self::OfPod => "pod_share",
            Self::OfSource => "source_share",
            Self::Tunnels => "source_tunnels",
        }
    }
}

/// That accepting fails, told seldom.
#[derive(Debug)]
pub(crate) struct Exhaustion {
    began: Instant,
    seldom: Seldom,
}

impl Exhaustion {
    /// It has not failed yet.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            seldom: Seldom::default(),
        }
    }
}

impl Worker {
    /// Room for one more connection of a pod, if it may have it, and if `source` may that calls it.
    /// Else it is turned away.
    pub(crate) fn room(&self, pod: &Pod, way: Direction, source: SocketAddr) -> Option<Room> {
        let (free, workers) = (self.shared.places.free(), self.shared.workers);
        let ends = (source.ip(), pod.netns.cookie());
        let arrives = way == Direction::Inbound;
        let called = arrives.then(|| self.sources.call(ends, free, workers));
        let admitted = match (called, pod.share.admit()) {
            (Some(None), _) => Err(TooMany::OfSource),
            (_, None) => Err(TooMany::OfPod),
            (called, Some(place)) => Ok(Room {
                place,
                _called: called.flatten(),
            }),
        };
        match admitted {
            Ok(room) => Some(room),
            Err(which) => {
                self.turned_away(pod, source, which);
                None
            }
        }
    }

    /// Counts a connection that was turned away, and says so now and then.
    pub(crate) fn turned_away(&self, pod: &Pod, source: SocketAddr, which: TooMany) {
        let places = &self.shared.places;
        let reason = which.reason();
        let refused = &self.shared.metrics.daemon.connections_refused;
        refused.get_or_create(&Reason { reason }).inc();
        let Some(times) = pod.share.complain(which) else {
            return;
        };
        let (pod, held, src) = (&*pod.name, pod.share.held(), source.ip());
        let (most, free) = (places.most(), places.free());
        match which {
            TooMany::OfPod => tracing::warn!(
                pod, src.addr = %src, reason, times, held, free, most,
                mend = "see what opens them; more are possible with a higher limit of open files \
                        (ulimit -n, LimitNOFILE of the container runtime) or more memory",
                "connections refused: the pod holds its share of this daemon's",
            ),
            TooMany::OfSource => tracing::warn!(
                pod, src.addr = %src, reason, times, held, free, most,
                mend = "see what opens them at the source's address",
                "connections refused: their source holds its share of this daemon's",
            ),
            TooMany::Tunnels => tracing::warn!(
                pod, src.addr = %src, reason, times, most = TUNNELS,
                mend = "see what opens them at the source's address: a tunnel has room for many",
                "tunnels refused: their source has too many to this pod",
            ),
        }
    }

    /// Says now and then that nothing can be accepted.
    pub(crate) fn exhausted(&self, pod: &Pod, error: &AcceptError) {
        let Exhaustion { began, seldom } = &self.exhaustion;
        if let Some(times) = seldom.complain(began.elapsed()) {
            tracing::warn!(
                pod = %pod.name,
                times,
                error = %Causes(error),
                mend = "raise the limit of open files (ulimit -n, LimitNOFILE of the container \
                        runtime) or fs.file-max; what comes waits meanwhile",
                "accept failed",
            );
        }
    }
}
