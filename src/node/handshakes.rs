//! Whose tunnel handshakes go on now, and whose wait.
//!
//! Whoever reaches a pod's tunnel port may begin a handshake and fall silent until its deadline.
//! Nobody has proven anything by then but an address, so places are given out by address: who
//! holds all of its own holds up itself alone, not the other pods nor the other peers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::node::error::Error;

/// Handshakes of one worker that go on at the same time.
const AT_ONCE: usize = 512;
/// The same, of one source address. A source is a pod, which makes one tunnel to each destination
/// and worker.
const OF_ONE_SOURCE: usize = 16;
/// Handshakes of one source address that go on or wait; more are refused.
const IN_LINE: usize = 512;
/// How long one waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// The handshakes of one worker.
pub(crate) struct Handshakes {
    places: Semaphore,
    lines: RefCell<HashMap<IpAddr, Rc<Line>>>,
}

/// Those of one source.
struct Line {
    places: Semaphore,
    length: Cell<usize>,
}

/// One handshake in its line.
struct InLine<'a> {
    all: &'a Handshakes,
    source: IpAddr,
    line: Rc<Line>,
}

impl Handshakes {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            places: Semaphore::new(AT_ONCE),
            lines: RefCell::default(),
        }
    }

    /// Does a handshake with `source` when it has its turn.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`] when the line is too long or too slow; else the handshake's own.
    pub(crate) async fn in_turn<T>(
        &self,
        source: IpAddr,
        handshake: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let place = self.queue(source)?;
        // Its own place first: who waits for that must not hold one of all.
        let turn = async {
            let own = place.line.places.acquire().await;
            (own, self.places.acquire().await)
        };
        let turn = tokio::time::timeout(PATIENCE, turn).await;
        let _turn = turn.map_err(|_| Error::Overloaded)?;
        handshake.await
    }

    fn queue(&self, source: IpAddr) -> Result<InLine<'_>, Error> {
        let mut lines = self.lines.borrow_mut();
        let line = lines.entry(source).or_insert_with(|| {
            Rc::new(Line {
                places: Semaphore::new(OF_ONE_SOURCE),
                length: Cell::new(0),
            })
        });
        if line.length.get() == IN_LINE {
            return Err(Error::Overloaded);
        }
        line.length.set(line.length.get() + 1);
        Ok(InLine {
            all: self,
            source,
            line: line.clone(),
        })
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let length = self.line.length.get() - 1;
        self.line.length.set(length);
        if length == 0 {
            self.all.lines.borrow_mut().remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::future::pending;

    #[test]
    fn a_source_that_falls_silent_holds_up_itself_alone() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        runtime.block_on(async {
            let handshakes = Handshakes::new();
            let (silent, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
            let mut waiting: Vec<_> = (0..IN_LINE)
                .map(|_| Box::pin(handshakes.in_turn(silent, pending::<Result<(), Error>>())))
                .collect();
            for one in &mut waiting {
                assert!(one.now_or_never().is_none());
            }
            let done = || async { Ok::<_, Error>(()) };
            let refused = handshakes.in_turn(silent, done()).now_or_never();
            assert!(matches!(refused, Some(Err(Error::Overloaded))));
            let served = handshakes.in_turn(other, done()).now_or_never();
            assert!(matches!(served, Some(Ok(()))));
            drop(waiting);
            let again = handshakes.in_turn(silent, done()).now_or_never();
            assert!(matches!(again, Some(Ok(()))));
            assert!(handshakes.lines.borrow().is_empty());
        });
    }
}
