//! The task of one connection.
//!
//! It has two parts. Setting up is a long story of many waits, told by `outbound`, `inbound` and
//! `plaintext`: a boxed future that is gone when the two ends are joined. What then lives as long
//! as the connection is [`Carrying`], which is flat and small.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::OptionFuture;

use crate::deliver::{self, Relay, Splice};
use crate::node::error::Error;
use crate::node::live::{Entered, Metered};
use crate::node::same_node::Beside;
use crate::node::worker::Worker;
use crate::task;
use crate::tunnel;

/// Spawns the task of a connection. `set_up` accounts for a connection that it does not bring to
/// be carried.
pub(crate) fn spawn(name: &'static str, set_up: impl Future<Output = Option<Carrying>> + 'static) {
    let set_up = set_up.boxed_local();
    let work = set_up.then(OptionFuture::from).map(|_| ());
    task::spawn_local(name, work).detach();
}

/// The two ends of a connection, joined.
pub(crate) enum Joined {
    /// An application and a stream of a tunnel.
    Relay(Relay<tunnel::Stream, Metered>),
    /// Two sockets.
    Splice(Splice<Metered>),
    /// The same, to or from a pod beside, of which our own daemon may tell why it refused.
    Beside(Splice<Metered>, Box<Beside>),
}

/// Carries a connection to its end, and accounts for it.
pub(crate) struct Carrying(Option<(Entered, Joined)>);

impl Carrying {
    /// Of a connection that is permitted and joined.
    pub(crate) fn new(live: Entered, joined: Joined) -> Self {
        Self(Some((live, joined)))
    }
}

impl Joined {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<deliver::End, Error>> {
        Poll::Ready(match self {
            Self::Relay(relay) => Ok(ready!(Pin::new(relay).poll(cx))),
            Self::Splice(splice) => Ok(ready!(Pin::new(splice).poll(cx))),
            Self::Beside(splice, beside) => {
                let end = ready!(Pin::new(splice).poll(cx));
                match beside.refused() {
                    Some(outcome) => Err(Error::RefusedBeside(outcome)),
                    None => Ok(end),
                }
            }
        })
    }

    /// Keeps what can be used again of a connection that has ended in order, unless another daemon
    /// may be about to serve one of its pods.
    fn keep(&mut self, worker: &Worker) {
        if let Self::Beside(splice, beside) = self
            && let Some(way) = beside.way
            && let Some((half, socket)) = splice.unpick()
            && let Some(both) = half.give_back(socket)
            && worker.is_alone()
        {
            worker.kept.give(way, both, Instant::now());
        }
    }
}

impl Future for Carrying {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let Some((live, joined)) = &mut this.0 else {
            return Poll::Ready(());
        };
        let ended = match live.poll_ended(cx) {
            Poll::Ready(cut) => Err(Error::Cut(cut)),
            Poll::Pending => ready!(joined.poll(cx)),
        };
        let connection = (*live).clone();
        if ended.as_ref().is_ok_and(|end| end.fault.is_none()) {
            joined.keep(&connection.worker);
        }
        // What is still joined is reset, and listed no more, before its record says so.
        this.0 = None;
        connection.close(ended);
        Poll::Ready(())
    }
}
