//! Follows one kind: lists it, watches it, and begins again where that fails.
//!
//! ```text
//!            ┌───────────── gone, went back in time ◀───────────┐
//!            ▼                                                  │
//!  no version ── streaming list, or list in pages ──▶ version ──┴─▶ watch ──┐
//!      ▲                                                ▲                   │ ended, broken, silent
//!      └── list failed: begin it anew                   └───────────────────┘
//! ```
//!
//! A watch goes on from the version of the last line, so nothing is missed; where the server has no
//! history from there, everything is listed anew, and only the end of that list removes what is
//! not there any more ([`Kept`]). Lists ask for the most recent state, never for whatever a server
//! has at hand: a second server that is behind must not take the index back in time.
//!
//! A bookmark comes at least every 75 seconds on a watch that is alive, so one that is silent for
//! longer is not trusted and opened anew; and if that one is silent, too, everything is listed anew.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use tokio::sync::mpsc;

use crate::cluster::Clients;
use crate::cluster::client::Generation;
use crate::cluster::encoded;
use crate::source::Interner;
use crate::source::kube::Batch;
use crate::source::kube::ask::{self, ANSWER, Failure, Form};
use crate::source::kube::health::Board;
use crate::source::kube::kept::Kept;
use crate::source::kube::kinds::Asked;
use crate::source::kube::lines::Lines;
use crate::source::kube::pace::Pace;
use crate::source::kube::shape::{self, Item, Line};

/// Objects in one page of a list.
const PAGE: usize = 500;
/// Changes that are told at once, so that a first list is neither one piece nor thousands.
const BATCH: usize = 256;
/// A watch that ends sooner than this ended because something is wrong.
const HASTY: Duration = Duration::from_secs(1);
/// How often a kind that the cluster does not know is looked for.
const ABSENT: Duration = Duration::from_secs(15);
/// Failures in a row before people are told: one is nothing, servers restart.
const TOLD: u32 = 2;

/// What all watches share.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) clients: Arc<Clients>,
    pub(super) board: Arc<Board>,
    pub(super) interner: Rc<RefCell<Interner>>,
    pub(super) out: mpsc::Sender<Batch>,
    /// How long a watch may be silent.
    pub(super) silence: Duration,
}

/// The watch of one kind.
pub(super) struct Watch {
    asked: Asked,
    common: Common,
    kept: Rc<RefCell<Kept>>,
    pace: Pace,
    /// Where to go on from.
    position: Option<String>,
    /// Which of the paths is asked.
    path: usize,
    /// Whether the server sends initial events, as far as is known.
    streaming: bool,
    /// The client in use.
    generation: Option<Generation>,
}

/// How a turn ended, if not in failure.
enum Next {
    /// At once again.
    Again,
    /// After a while again.
    Later(Duration),
    /// Nobody listens any more.
    Over,
}

impl Watch {
    pub(super) fn new(asked: Asked, common: Common, kept: Rc<RefCell<Kept>>) -> Self {
        Self {
            asked,
            common,
            kept,
            pace: Pace::default(),
            position: None,
            path: 0,
            streaming: true,
            generation: None,
        }
    }

    /// Follows the kind until nobody listens any more.
    pub(super) async fn run(mut self) {
        loop {
            let wait = match self.turn().await {
                Ok(Next::Again) => Duration::ZERO,
                Ok(Next::Over) => return,
                Ok(Next::Later(wait)) => wait,
                Err(failure) => self.failed(&failure),
            };
            // What came before a failure is good.
            if self.flush(false).await.is_err() {
                return;
            }
            if wait > Duration::ZERO {
                tokio::time::sleep(wait).await;
            }
            if self.common.out.is_closed() {
                return;
            }
        }
    }

    async fn turn(&mut self) -> Result<Next, Failure> {
        let client = self.common.clients.client().await;
        let (client, generation) = client.map_err(Failure::Client)?;
        self.generation = Some(generation);
        let began = Instant::now();
        let watching = self.position.is_some() || self.streaming;
        let turn = match self.position.clone() {
            Some(version) => self.watch(&client, &version).await,
            None if self.streaming => self.stream(&client).await,
            None => self.pages(&client).await,
        };
        match turn {
            Err(failure) if failure.not_found() => self.not_found(&client, failure).await,
            Ok(Next::Again) if watching && self.position.is_some() && began.elapsed() < HASTY => {
                Ok(Next::Later(HASTY))
            }
            Ok(Next::Again) => {
                if watching && self.position.is_some() {
                    self.pace.succeeded();
                }
                Ok(Next::Again)
            }
            turn => turn,
        }
    }

    /// Notes a failure; how long to wait.
    fn failed(&mut self, failure: &Failure) -> Duration {
        match failure {
            Failure::Gone => self.position = None,
            // Opened anew and silent from its beginning: to a server whose store was put back, the
            // version is of the future, and it says nothing until it gets there.
            Failure::Silent(_) if self.pace.failures() > 0 => self.position = None,
            _ => {}
        }
        let renew = match failure {
            Failure::Unauthorized { .. } => true,
            // The authority may have changed, or the address.
            Failure::Unreachable(_) => self.pace.failures() >= 2,
            _ => false,
        };
        if let Some(generation) = self.generation.filter(|_| renew) {
            self.common.clients.renew(generation);
        }
        let wait = self.pace.failed(failure.after(), chance());
        let told = self.pace.failures() >= TOLD;
        let kind = self.asked.kind;
        self.common.board.change(kind, |health| {
            health.connected = false;
            *health.errors.entry(failure.reason()).or_default() += 1;
            if told {
                health.failing = Some(ask::explain(kind, failure, health.synced));
            }
        });
        self.wake();
        wait
    }

    /// Lists in pages, each of which is small.
    async fn pages(&mut self, client: &Client) -> Result<Next, Failure> {
        self.begin();
        let mut next = String::new();
        loop {
            let mut query = format!("{}?limit={PAGE}", self.path());
            if !next.is_empty() {
                query = format!("{query}&continue={}", encoded(&next));
            }
            let form = self.asked.metadata.then_some(Form::List);
            let bytes = ask::whole(ask::ask(client, &query, form).await?).await?;
            let text = std::str::from_utf8(&bytes);
            let text = text.map_err(|error| Failure::Malformed(error.to_string()))?;
            let page = {
                let mut interner = self.common.interner.borrow_mut();
                shape::page(self.asked.kind, text, &mut interner).map_err(Failure::Malformed)?
            };
            self.take(page.items);
            self.heard();
            if let Some(more) = page.next {
                next = more;
                if self.flush(false).await.is_err() {
                    return Ok(Next::Over);
                }
                continue;
            }
            if page.version.is_empty() {
                return Err(Failure::Malformed("a list without a version".to_owned()));
            }
            self.position = Some(page.version);
            return Ok(self.listed().await);
        }
    }

    /// Asks for a list that comes as a watch, and goes on with it as that.
    async fn stream(&mut self, client: &Client) -> Result<Next, Failure> {
        let query = format!(
            "{}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true\
             &resourceVersionMatch=NotOlderThan&timeoutSeconds={}",
            self.path(),
            seconds()
        );
        let form = self.asked.metadata.then_some(Form::Watch);
        match ask::ask(client, &query, form).await {
            Ok(body) => {
                self.begin();
                self.follow(body).await
            }
            Err(failure) if failure.refuses() => {
                self.streaming = false;
                Ok(Next::Again)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn watch(&mut self, client: &Client, version: &str) -> Result<Next, Failure> {
        let query = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            self.path(),
            encoded(version),
            seconds()
        );
        let form = self.asked.metadata.then_some(Form::Watch);
        let body = ask::ask(client, &query, form).await?;
        self.connected();
        self.follow(body).await
    }

    /// Reads a watch to its end. While there is no version, its events are a list.
    async fn follow(&mut self, mut body: Body) -> Result<Next, Failure> {
        let mut lines = Lines::default();
        loop {
            // What is there already is told together.
            let frame = match body.frame().now_or_never() {
                Some(frame) if self.kept.borrow().pending() < BATCH => frame,
                ready => {
                    if self.flush(false).await.is_err() {
                        return Ok(Next::Over);
                    }
                    match ready {
                        Some(frame) => frame,
                        None => self.await_frame(&mut body).await?,
                    }
                }
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Err(Failure::Broken(Box::new(error))),
                None if self.position.is_none() => return Err(Failure::Hasty),
                None => return Ok(Next::Again),
            };
            lines.push(frame.data_ref().map_or(&[], |data| data));
            while let Some(line) = lines.next().map_err(Failure::Malformed)? {
                match self.line(line) {
                    Ok(false) => {}
                    Ok(true) => {
                        if let Next::Over = self.listed().await {
                            return Ok(Next::Over);
                        }
                        self.connected();
                    }
                    Err(failure) => return self.unless_streaming(failure),
                }
            }
        }
    }

    async fn await_frame(
        &mut self,
        body: &mut Body,
    ) -> Result<Option<Result<hyper::body::Frame<bytes::Bytes>, kube::Error>>, Failure> {
        let patience = match self.position {
            Some(_) => self.common.silence,
            None => ANSWER,
        };
        match tokio::time::timeout(patience, body.frame()).await {
            Ok(frame) => Ok(frame),
            // An old server may not know that it was asked to tell where the list ends.
            Err(_) if self.position.is_none() => {
                self.streaming = false;
                Err(Failure::Silent(patience))
            }
            Err(_) => Err(Failure::Silent(patience)),
        }
    }

    /// An answer that is no streaming list is from a server that does not know them.
    fn unless_streaming(&mut self, failure: Failure) -> Result<Next, Failure> {
        if self.position.is_none() && failure.refuses() {
            self.streaming = false;
            return Ok(Next::Again);
        }
        Err(failure)
    }

    /// Takes in a line; whether it ended the initial events.
    fn line(&mut self, text: &str) -> Result<bool, Failure> {
        let kind = self.asked.kind;
        let line = {
            let mut interner = self.common.interner.borrow_mut();
            shape::line(kind, text, &mut interner).map_err(Failure::Malformed)?
        };
        let mut kept = self.kept.borrow_mut();
        let (version, end) = match line {
            Line::Upsert(item, version) => {
                kept.take(item);
                (version, false)
            }
            // The server has not understood that it was asked for a list.
            Line::Bookmark { end: false, .. } if self.position.is_none() => {
                let message = "a list that is none".to_owned();
                return Err(Failure::status(400, message, None));
            }
            // In a list as well: a server whose cache is behind shows what that has, and what
            // happened since, before it says that the list ends.
            Line::Gone(item, version) => {
                if let Some(key) = item.key {
                    kept.gone(key);
                }
                (version, false)
            }
            Line::Bookmark { version, end } => (version, end),
            Line::Error { code, message } => return Err(Failure::status(code, message, None)),
        };
        drop(kept);
        self.heard();
        if let Some(position) = &mut self.position {
            if went_back(position, &version) {
                return Err(Failure::Gone);
            }
            if !version.is_empty() {
                *position = version;
            }
            // A server that always ends right after a list must not be listed for ever.
            self.pace.succeeded();
            return Ok(false);
        }
        if end {
            self.position = Some(version);
        }
        Ok(end)
    }

    /// The kind is not served: for now, or at all.
    async fn not_found(&mut self, client: &Client, failure: Failure) -> Result<Next, Failure> {
        let Some(definition) = self.asked.definition else {
            return Err(failure);
        };
        self.position = None;
        self.path = (self.path + 1) % self.asked.paths.len();
        if self.path != 0 {
            return Ok(Next::Again);
        }
        let mut absent = false;
        let kind = self.asked.kind;
        self.common
            .board
            .change(kind, |health| absent = health.absent);
        if !absent {
            // A server that has just started may not know yet what it serves, and to take that for
            // an absence would be to do without policies that are there.
            let path = format!(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}",
                encoded(definition)
            );
            match ask::ask(client, &path, None).await {
                Ok(_) => return Err(Failure::NotServed(definition)),
                Err(failure) if failure.not_found() => {}
                // Who may not ask has to take the server at its word.
                Err(Failure::Forbidden { .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
        self.pace.succeeded();
        let known = self.kept.borrow().len();
        self.common.board.change(kind, |health| {
            health.absent = true;
            health.connected = true;
            health.heard = Some(Instant::now());
            health.failing = (known > 0).then(|| {
                format!(
                    "the cluster does not know {} any more; the {known} that were last read stand \
                     until the daemon is started anew",
                    kind.as_str()
                )
            });
        });
        if self.flush(true).await.is_err() {
            return Ok(Next::Over);
        }
        let share = (chance() >> 40) as f64 / (1u64 << 24) as f64;
        Ok(Next::Later(ABSENT.mul_f64(0.75 + share / 2.0)))
    }

    fn take(&mut self, items: Vec<Item>) {
        let mut kept = self.kept.borrow_mut();
        items.into_iter().for_each(|item| kept.take(item));
    }

    fn begin(&mut self) {
        self.kept.borrow_mut().begin();
        self.common.board.change(self.asked.kind, |health| {
            health.relists += u64::from(health.synced);
        });
    }

    /// The list is whole.
    async fn listed(&mut self) -> Next {
        self.kept.borrow_mut().done();
        match self.flush(true).await {
            Ok(()) => Next::Again,
            Err(_) => Next::Over,
        }
    }

    fn connected(&mut self) {
        self.common.board.change(self.asked.kind, |health| {
            health.connected = true;
            health.absent = false;
            health.failing = None;
        });
        self.wake();
    }

    fn heard(&self) {
        self.common.board.change(self.asked.kind, |health| {
            health.heard = Some(Instant::now());
        });
    }

    /// Tells what is pending; `synced` says that with this a list is whole.
    async fn flush(&mut self, synced: bool) -> Result<(), mpsc::error::SendError<()>> {
        if self.kept.borrow().pending() == 0 && !synced {
            return Ok(());
        }
        self.note(synced);
        self.common.interner.borrow_mut().sweep();
        // Room first, so that what is taken out is told, whatever ends this task.
        let room = self.common.out.reserve().await?;
        room.send(Batch {
            kind: self.asked.kind,
            changes: self.kept.borrow_mut().tell(),
            synced,
        });
        Ok(())
    }

    fn note(&self, synced: bool) {
        let kept = self.kept.borrow();
        self.common.board.change(self.asked.kind, |health| {
            health.objects = kept.len();
            health.synced |= synced;
            health.set_invalid(kept.invalid());
        });
    }

    /// Lets the listener look at how things are.
    fn wake(&self) {
        // A full queue wakes it, too.
        let _ = self.common.out.try_send(Batch {
            kind: self.asked.kind,
            changes: Vec::new(),
            synced: false,
        });
    }

    fn path(&self) -> &'static str {
        self.asked.paths[self.path]
    }
}

/// Versions only grow. One that is less than where the watch was is of a store that was put back.
fn went_back(position: &str, version: &str) -> bool {
    match (position.parse::<u64>(), version.parse::<u64>()) {
        (Ok(position), Ok(version)) => version < position,
        _ => false,
    }
}

/// How long the server is to keep a watch, so that not all nodes' end together.
fn seconds() -> u64 {
    270 + chance() % 60
}

/// 64 random bits.
fn chance() -> u64 {
    RandomState::new().hash_one(())
}
