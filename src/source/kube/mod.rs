//! Objects from a watch of the Kubernetes API server.
//!
//! ```text
//!  thread adit-watch                                             who asks
//!  ┌ watch of Pods ─────────┐
//!  │ watch of Services      │──▶ batches, at most a few waiting ──▶ Kube::next ──▶ Update
//!  │ … seven kinds          │                                        (the same Poll as files give)
//!  └──── health of each ────┴──────────────────────────────────────▶ Kube::health
//! ```
//!
//! One thread with a runtime of its own reads and trims, so that a whole cluster can come in while
//! the daemon goes on; it waits while nobody takes what it has read. `watch` follows a kind through
//! every failure, `kept` knows what was told and so what is gone, `shape` reads the JSON, `ask`
//! makes requests, `pace` says when to ask again. kube's own watcher is not used: it goes on for
//! ever from a version that the server has refused with 410, lists from whatever a server has at
//! hand, and keeps bookmarks and `Retry-After` to itself.
//!
//! Rules: nothing is removed but by an event or a list that came to its end. Whatever fails, what
//! was last read stands. Objects count only once every kind has been listed: [`Update::synced`].

mod ask;
mod health;
mod kept;
mod kinds;
mod lines;
mod pace;
mod shape;
mod watch;

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::cluster::{Access, Clients};
use crate::source::kube::health::Board;
use crate::source::kube::kept::Kept;
use crate::source::kube::kinds::{Asked, WATCHED};
use crate::source::kube::watch::{Common, Watch};
use crate::source::{Change, Interner, Kind, Poll, Problem};
use crate::task;

pub use health::Health;

/// Batches that wait to be taken. With these, a first list is never held as a whole.
const WAITING: usize = 8;
/// Changes that are given at once.
const AT_ONCE: usize = 4096;
/// What people are shown in the place of a file.
const PLACE: &str = "kube";

/// How to watch.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the API server is, and our credentials for it.
    pub access: Access,
    /// How long a watch may be silent before it is opened anew. A server sends a bookmark at least
    /// every 75 seconds.
    pub silence: Duration,
}

/// What is new.
#[derive(Clone, Debug)]
pub struct Update {
    /// Changes, problems and notes.
    pub poll: Poll,
    /// Whether every kind has been listed to its end, with what this brings.
    pub synced: bool,
}

/// What a watch tells.
struct Batch {
    kind: Kind,
    changes: Vec<Change>,
    /// Whether a list came to its end with this.
    synced: bool,
}

/// A watch of all kinds.
#[derive(Debug)]
pub struct Kube {
    received: mpsc::Receiver<Batch>,
    board: Arc<Board>,
    waiting_for: Vec<Kind>,
    problems: Arc<[Problem]>,
    /// Ends the thread when dropped.
    _running: oneshot::Sender<()>,
}

impl Kube {
    /// Begins to watch, on a thread of its own.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let (out, received) = mpsc::channel(WAITING);
        let (running, ended) = oneshot::channel::<()>();
        let board = Arc::new(Board::new());
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let shown = board.clone();
        let work = move || {
            let common = Common {
                clients: Arc::new(Clients::new(settings.access)),
                board: shown,
                interner: Rc::new(RefCell::new(Interner::default())),
                out,
                silence: settings.silence,
            };
            let local = LocalSet::new();
            local.block_on(&runtime, async {
                let start = |asked| task::spawn_local("watch", follow(asked, common.clone()));
                let _watches: Vec<_> = WATCHED.into_iter().map(start).collect();
                let _ = ended.await;
            });
        };
        thread::Builder::new()
            .name("adit-watch".to_owned())
            .spawn(work)?;
        Ok(Self {
            received,
            board,
            waiting_for: WATCHED.iter().map(|asked| asked.kind).collect(),
            problems: Arc::new([]),
            _running: running,
        })
    }

    /// Waits for something new; `None` when the thread has ended, which it does not by itself. May
    /// be dropped while it waits.
    pub async fn next(&mut self) -> Option<Update> {
        let mut changes = Vec::new();
        let mut batch = self.received.recv().await?;
        loop {
            changes.append(&mut batch.changes);
            if batch.synced {
                self.waiting_for.retain(|kind| *kind != batch.kind);
            }
            if changes.len() >= AT_ONCE {
                break;
            }
            batch = match self.received.try_recv() {
                Ok(more) => more,
                Err(_) => break,
            };
        }
        self.report();
        let poll = Poll {
            changes,
            problems: self.problems.clone(),
            notes: Vec::new(),
        };
        let synced = self.waiting_for.is_empty();
        Some(Update { poll, synced })
    }

    /// How each watch is.
    #[must_use]
    pub fn health(&self) -> Vec<Health> {
        self.board.all()
    }

    fn report(&mut self) {
        let mut problems = Vec::new();
        let problem = |object: String, message: String| Problem {
            file: PathBuf::from(PLACE),
            line: 0,
            object,
            message,
        };
        for health in self.board.all() {
            let kind = health.kind.as_str();
            problems.extend(health.failing.map(|why| problem(String::new(), why)));
            for (key, why) in health.invalid {
                let message = format!("{why}; what it last said stands");
                problems.push(problem(key.to_string(), message));
            }
            if health.more_invalid > 0 {
                let message = format!("and {} more of kind {kind}", health.more_invalid);
                problems.push(problem(String::new(), message));
            }
        }
        if *self.problems != *problems {
            self.problems = problems.into();
        }
    }
}

/// Follows a kind. Should that panic, it is begun anew: what was told is known still.
async fn follow(asked: Asked, common: Common) {
    let kept = Rc::new(RefCell::new(Kept::new(asked.kind)));
    while !common.out.is_closed() {
        let watch = Watch::new(asked, common.clone(), kept.clone());
        let (running, over) = oneshot::channel::<()>();
        let _task = task::spawn_local("watch of a kind", async move {
            let _running = running;
            watch.run().await;
        });
        let _ = over.await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
