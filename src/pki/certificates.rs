//! One certificate for each identity of the node, kept fresh.
//!
//! The program says what is wanted ([`Certificates::want`]) and runs the loop
//! ([`Certificates::run`]) on its control thread; workers read [`Certificates::current`], which
//! takes no lock. What happened is told as [`Event`]s: logging and counting is the program's.
//! Decisions are made by [`ledger`](crate::pki::ledger).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, watch};

use crate::mesh::Identity;
use crate::pki::certificate::Certificate;
use crate::pki::crypto::random;
use crate::pki::facts::{CertificateStatus, Event, Standing, WaitError};
use crate::pki::issue::{IssueError, Issuer};
use crate::pki::ledger::{Entry, Ledger};

/// How many certificates are asked for at the same time.
const IN_FLIGHT: usize = 8;
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Wall clocks jump; no sleep is longer, so that a jump is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How long before an authority's end it is worth a word, and how often.
const AUTHORITY_NOTICE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const AUTHORITY_NOTICE_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

type Current = HashMap<Identity, Arc<Certificate>>;
type Observer = Box<dyn Fn(Event) + Send + Sync>;

/// The certificates of the node.
pub struct Certificates {
    issuer: Arc<dyn Issuer>,
    observer: Observer,
    current: ArcSwap<Current>,
    state: Mutex<State>,
    /// Wakes the loop when the wanted set has changed.
    wanted: Notify,
    /// Wakes those who wait when something has changed.
    changed: watch::Sender<()>,
}

struct State {
    ledger: Ledger,
    errors: HashMap<Identity, Arc<IssueError>>,
    /// When the authority's end was last told.
    noticed: Option<SystemTime>,
}

impl Certificates {
    /// Certificates from `issuer`. `observer` is called from the loop, holding no lock; it must not
    /// block.
    #[must_use]
    pub fn new(
        issuer: Arc<dyn Issuer>,
        observer: impl Fn(Event) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            issuer,
            observer: Box::new(observer),
            current: ArcSwap::default(),
            state: Mutex::new(State {
                ledger: Ledger::new(IN_FLIGHT),
                errors: HashMap::new(),
                noticed: None,
            }),
            wanted: Notify::new(),
            changed: watch::Sender::new(()),
        })
    }

    /// Says which identities the node needs from now on: others are dropped at once, new ones are
    /// fetched at once.
    pub fn want(&self, identities: HashSet<Identity>) {
        let mut state = self.state();
        let dropped = state.ledger.want(identities, SystemTime::now());
        for identity in &dropped {
            state.errors.remove(identity);
        }
        self.remove(&dropped);
        drop(state);
        self.wanted.notify_one();
        self.changed.send_replace(());
    }

    /// The certificate in force. Takes no lock; costs one look-up in a map.
    #[must_use]
    pub fn current(&self, identity: &Identity) -> Option<Arc<Certificate>> {
        self.current.load().get(identity).cloned()
    }

    /// The certificate in force, for which this waits up to `limit`.
    ///
    /// # Errors
    ///
    /// [`WaitError`] with the last attempt's failure, if there was one.
    pub async fn wait(
        &self,
        identity: &Identity,
        limit: Duration,
    ) -> Result<Arc<Certificate>, WaitError> {
        let mut changed = self.changed.subscribe();
        let arrival = async {
            loop {
                if let Some(certificate) = self.current(identity) {
                    return certificate;
                }
                if changed.changed().await.is_err() {
                    // The sender lives in `self`, so this is not reached.
                    std::future::pending::<()>().await;
                }
            }
        };
        match tokio::time::timeout(limit, arrival).await {
            Ok(certificate) => Ok(certificate),
            Err(_) => Err(self.absence(identity)),
        }
    }

    fn absence(&self, identity: &Identity) -> WaitError {
        let state = self.state();
        let identity = identity.clone();
        if state.ledger.entry(&identity).is_none() {
            return WaitError::Unwanted(identity);
        }
        match state.errors.get(&identity).cloned() {
            Some(error) => WaitError::Failing { identity, error },
            None => WaitError::Pending(identity),
        }
    }

    /// How every wanted identity stands, in the order of their names.
    #[must_use]
    pub fn report(&self) -> Vec<CertificateStatus> {
        let state = self.state();
        let current = self.current.load();
        let line = |(identity, entry): (&Identity, &Entry)| {
            let certificate = current.get(identity).cloned();
            CertificateStatus {
                identity: identity.clone(),
                standing: match (&certificate, entry.failures) {
                    (Some(_), 0) => Standing::Valid,
                    (Some(_), _) => Standing::Failing,
                    (None, 0) => Standing::Pending,
                    (None, _) => Standing::Unavailable,
                },
                certificate,
                failures: entry.failures,
                last_error: state.errors.get(identity).cloned(),
                next: entry.due,
            }
        };
        let mut report: Vec<_> = state.ledger.entries().map(line).collect();
        report.sort_unstable_by(|a, b| a.identity.cmp(&b.identity));
        report
    }

    /// Fetches and renews, for ever. One loop at a time; it may be dropped and run again.
    pub async fn run(self: Arc<Self>) {
        self.state().ledger.land();
        let mut flights = FuturesUnordered::new();
        loop {
            self.expire();
            let due = self.state().ledger.start(SystemTime::now());
            flights.extend(due.into_iter().map(|identity| self.attempt(identity)));
            let pause = self.pause();
            tokio::select! {
                Some((identity, outcome, took)) = flights.next(), if !flights.is_empty() => {
                    self.finish(&identity, outcome, took);
                }
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn attempt(
        &self,
        identity: Identity,
    ) -> (Identity, Result<Certificate, IssueError>, Duration) {
        let start = Instant::now();
        let outcome = match tokio::time::timeout(PATIENCE, self.issuer.issue(&identity)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(IssueError::Timeout(PATIENCE)),
        };
        (identity, outcome, start.elapsed())
    }

    fn finish(
        &self,
        identity: &Identity,
        outcome: Result<Certificate, IssueError>,
        took: Duration,
    ) {
        let event = match outcome {
            Ok(certificate) => self.install(identity, Arc::new(certificate), took),
            Err(error) => self.book(identity, Arc::new(error)),
        };
        self.changed.send_replace(());
        if let Some(event) = event {
            (self.observer)(event);
        }
        self.notice_authority();
    }

    /// Puts a certificate in force. `None` if nobody wants it any more.
    fn install(
        &self,
        identity: &Identity,
        certificate: Arc<Certificate>,
        took: Duration,
    ) -> Option<Event> {
        let mut state = self.state();
        let life = certificate.lifetime();
        let now = SystemTime::now();
        state.ledger.finish(identity, Some(life), now, draw())?;
        state.errors.remove(identity);
        let mut current = Current::clone(&self.current.load());
        let renewal = current
            .insert(identity.clone(), certificate.clone())
            .is_some();
        self.current.store(Arc::new(current));
        Some(Event::Issued {
            certificate,
            renewal,
            took,
        })
    }

    /// Keeps a failure in mind. `None` if nobody wants to know.
    fn book(&self, identity: &Identity, error: Arc<IssueError>) -> Option<Event> {
        let mut state = self.state();
        let now = SystemTime::now();
        let entry = state.ledger.finish(identity, None, now, draw())?;
        state.errors.insert(identity.clone(), error.clone());
        Some(Event::Failed {
            identity: identity.clone(),
            error,
            failures: entry.failures,
            retry: entry.due,
            kept_until: entry.lifetime.map(|life| life.not_after),
        })
    }

    fn expire(&self) {
        let mut state = self.state();
        let expired = state.ledger.expire(SystemTime::now());
        self.remove(&expired);
        drop(state);
        for identity in expired {
            (self.observer)(Event::Expired { identity });
        }
    }

    /// Takes certificates out of force. The caller holds the state, so that writers take turns.
    fn remove(&self, identities: &[Identity]) {
        if identities.is_empty() {
            return;
        }
        let mut current = Current::clone(&self.current.load());
        for identity in identities {
            current.remove(identity);
        }
        self.current.store(Arc::new(current));
    }

    fn notice_authority(&self) {
        let now = SystemTime::now();
        let Some(ends) = self.issuer.ends() else {
            return;
        };
        let mut state = self.state();
        let told = state
            .noticed
            .is_some_and(|at| now < at + AUTHORITY_NOTICE_EVERY);
        if ends > now + AUTHORITY_NOTICE || told {
            return;
        }
        state.noticed = Some(now);
        drop(state);
        (self.observer)(Event::AuthorityEnding { ends });
    }

    fn pause(&self) -> Duration {
        let next = self.state().ledger.next();
        let pause = next.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        pause.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }

    /// No code that holds the state can panic half-way through a change.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn draw() -> u64 {
    u64::from_ne_bytes(random())
}

#[cfg(test)]
mod tests;
