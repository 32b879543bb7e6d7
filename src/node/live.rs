//! The connections one worker carries now: listed on request, ended when they must end.
//!
//! A connection is here from the moment it is permitted, also while its destination is being
//! dialled: what changes meanwhile must find it. Its task does everything from there on inside
//! [`Connection::unless_ended`]. Dropping that work resets both sides, so ending a connection is
//! telling it why.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use crate::authorize::{Denial, Permit};
use crate::mesh::Direction;
use crate::node::account::Tally;
use crate::node::error::Error;

/// Why the node ends a connection that could have gone on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A changed policy denies it now, for this reason.
    PolicyChanged(Denial),
    /// Its pod is released or gone.
    PodReleased,
    /// The daemon ends, and its time to drain is over.
    Drained,
}

impl Cut {
    /// A stable word for records and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::PolicyChanged(_) => "policy_changed",
            Self::PodReleased => "pod_released",
            Self::Drained => "drained",
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PolicyChanged(denial) => write!(f, "policy changed: {denial}"),
            Self::PodReleased => f.write_str("its pod is released or gone"),
            Self::Drained => f.write_str("the time to drain is over"),
        }
    }
}

/// One connection under way.
pub(crate) struct Connection {
    /// Unique in this daemon, also in the access record.
    pub(crate) id: u64,
    /// The captured pod it was accepted in.
    pub(crate) pod: Arc<str>,
    /// What was permitted.
    pub(crate) permit: Rc<Permit>,
    /// Bytes so far, and where they are counted.
    pub(crate) tally: Rc<Tally>,
    /// When it was accepted.
    pub(crate) since: Instant,
    cut: RefCell<Option<Cut>>,
    wake: Notify,
}

impl Connection {
    /// Does `work`, unless the node ends this connection before; then `work` is dropped.
    pub(crate) async fn unless_ended<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            cut = self.ended() => Err(Error::Cut(cut)),
            done = work => done,
        }
    }

    async fn ended(&self) -> Cut {
        loop {
            if let Some(cut) = &*self.cut.borrow() {
                return cut.clone();
            }
            self.wake.notified().await;
        }
    }

    /// Ends the connection; the first reason stands.
    pub(crate) fn end(&self, why: Cut) {
        self.cut.borrow_mut().get_or_insert(why);
        self.wake.notify_one();
    }
}

/// All connections of one worker.
#[derive(Default)]
pub(crate) struct Live {
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
}

impl Live {
    /// Registers a connection for as long as the guard lives.
    pub(crate) fn enter(
        self: &Rc<Self>,
        id: u64,
        pod: &Arc<str>,
        permit: &Rc<Permit>,
        tally: &Rc<Tally>,
        since: Instant,
    ) -> Entered {
        let connection = Rc::new(Connection {
            id,
            pod: pod.clone(),
            permit: permit.clone(),
            tally: tally.clone(),
            since,
            cut: RefCell::default(),
            wake: Notify::new(),
        });
        self.connections.borrow_mut().insert(id, connection.clone());
        Entered {
            live: self.clone(),
            connection,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// How many there are in one pod.
    pub(crate) fn in_pod(&self, pod: &str) -> usize {
        self.connections
            .borrow()
            .values()
            .filter(|c| &*c.pod == pod)
            .count()
    }

    /// Every connection, for a listing.
    pub(crate) fn all(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// Ends each connection for which `why` has a reason.
    pub(crate) fn end(&self, why: impl Fn(&Connection) -> Option<Cut>) -> usize {
        let mut ended = 0;
        for connection in self.connections.borrow().values() {
            if let Some(cut) = why(connection) {
                connection.end(cut);
                ended += 1;
            }
        }
        ended
    }

    /// Ends each *inbound* connection for which there is a denial now.
    pub(crate) fn revoke(&self, denied: impl Fn(&Connection) -> Option<Denial>) -> usize {
        self.end(|connection| {
            let inbound = connection.permit.flow().direction == Direction::Inbound;
            let denial = inbound.then(|| denied(connection)).flatten();
            denial.map(Cut::PolicyChanged)
        })
    }
}

/// A connection that is registered as live; leaves the register when dropped.
pub(crate) struct Entered {
    live: Rc<Live>,
    connection: Rc<Connection>,
}

impl std::ops::Deref for Entered {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.live
            .connections
            .borrow_mut()
            .remove(&self.connection.id);
    }
}
