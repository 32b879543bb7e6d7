//! The loop against issuers that are slow, broken or fast in forgetting. The schedule itself is
//! tested with simulated time in `rotate` and `ledger`.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use tempfile::TempDir;

use super::*;
use crate::mesh::TrustDomain;
use crate::pki::directory::DirectoryCa;

fn named(name: &str) -> Identity {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    Identity::new(&domain, "ns", name).unwrap()
}

/// A directory authority whose will the test controls.
struct Moody {
    ca: DirectoryCa,
    delay: Duration,
    refuses: std::sync::atomic::AtomicBool,
    ends: Option<SystemTime>,
    now: AtomicUsize,
    most: AtomicUsize,
    asked: AtomicUsize,
    _directory: TempDir,
}

impl Moody {
    fn new(validity: Duration, delay: Duration) -> Self {
        let directory = TempDir::new().unwrap();
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let ca = DirectoryCa::open(directory.path(), &domain).unwrap();
        Self {
            ca: ca.with_validity(validity),
            delay,
            refuses: false.into(),
            ends: None,
            now: 0.into(),
            most: 0.into(),
            asked: 0.into(),
            _directory: directory,
        }
    }

    fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }
}

impl Issuer for Moody {
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Certificate, IssueError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(self.delay).await;
            self.now.fetch_sub(1, Ordering::SeqCst);
            if self.refuses.load(Ordering::SeqCst) {
                return Err(IssueError::Timeout(self.delay));
            }
            self.ca.issue(identity).await
        })
    }

    fn ends(&self) -> Option<SystemTime> {
        self.ends
    }
}

type Events = Arc<Mutex<Vec<Event>>>;

/// Certificates with their loop running on this thread.
fn start(issuer: Arc<Moody>) -> (Arc<Certificates>, Events, tokio::task::JoinHandle<()>) {
    let events = Events::default();
    let log = events.clone();
    let certificates = Certificates::new(issuer, move |event| log.lock().unwrap().push(event));
    let run = tokio::spawn(certificates.clone().run());
    (certificates, events, run)
}

fn only(name: &str) -> HashSet<Identity> {
    HashSet::from([named(name)])
}

const DAY: Duration = Duration::from_secs(86_400);
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_is_wanted_comes_eight_at_a_time_and_once() {
    let issuer = Arc::new(Moody::new(DAY, Duration::from_millis(20)));
    let (certificates, events, run) = start(issuer.clone());
    let wanted: HashSet<_> = (0..30).map(|n| named(&format!("sa{n}"))).collect();
    certificates.want(wanted.clone());
    certificates.want(wanted.clone());
    let waiters = wanted
        .iter()
        .map(|identity| certificates.wait(identity, SOON));
    for outcome in futures_util::future::join_all(waiters).await {
        outcome.unwrap();
    }
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 30);
    assert_eq!(issuer.most.load(Ordering::SeqCst), 8);
    let report = certificates.report();
    assert_eq!(report.len(), 30);
    for line in report {
        assert_eq!(line.standing, Standing::Valid);
        let certificate = line.certificate.unwrap();
        assert_eq!(certificate.identity(), &line.identity);
        assert!(line.next > certificate.lifetime().issued + DAY / 3);
    }
    assert_eq!(events.lock().unwrap().len(), 30);
    run.abort();
}

#[tokio::test]
async fn what_is_not_wanted_is_dropped_even_in_flight() {
    let issuer = Arc::new(Moody::new(DAY, Duration::from_millis(300)));
    let (certificates, events, run) = start(issuer);
    certificates.want(only("a"));
    certificates.wait(&named("a"), SOON).await.unwrap();
    certificates.want(only("b"));
    assert!(certificates.current(&named("a")).is_none());
    tokio::time::sleep(Duration::from_millis(10)).await;
    certificates.want(only("c"));
    certificates.wait(&named("c"), SOON).await.unwrap();
    assert!(certificates.current(&named("b")).is_none());
    assert_eq!(events.lock().unwrap().len(), 2, "b is not worth an event");
    let error = certificates
        .wait(&named("b"), Duration::from_millis(1))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "certificate_unwanted");
    run.abort();
}

#[tokio::test]
async fn who_waits_in_vain_learns_why() {
    let issuer = Arc::new(Moody::new(DAY, Duration::from_millis(300)));
    issuer.refuse(true);
    let (certificates, events, run) = start(issuer.clone());
    certificates.want(only("a"));
    let a = named("a");
    let wait = |millis| certificates.wait(&a, Duration::from_millis(millis));
    assert_eq!(
        wait(5).await.map(drop).unwrap_err().reason(),
        "certificate_pending"
    );
    let error = wait(2_000).await.map(drop).unwrap_err();
    assert_eq!(error.reason(), "timeout");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("did not answer"), "{cause}");
    assert_eq!(certificates.report()[0].standing, Standing::Unavailable);

    issuer.refuse(false);
    wait(5_000).await.unwrap();
    assert!(certificates.report()[0].last_error.is_none());
    let events = events.lock().unwrap();
    let first = |event: &Event| {
        matches!(
            event,
            Event::Failed {
                failures: 1,
                kept_until: None,
                ..
            }
        )
    };
    assert!(first(&events[0]), "{events:?}");
    let last = events.last().unwrap();
    assert!(matches!(last, Event::Issued { renewal: false, .. }));
    run.abort();
}

/// X.509 counts seconds, so this one takes some.
#[tokio::test]
async fn renewals_leave_no_gap_and_failures_keep_what_is_valid() {
    let issuer = Arc::new(Moody::new(Duration::from_secs(4), Duration::ZERO));
    let (certificates, events, run) = start(issuer.clone());
    certificates.want(only("a"));
    let first = certificates.wait(&named("a"), SOON).await.unwrap();
    let renewed = loop {
        let current = certificates.current(&named("a")).expect("no gap");
        if current.epoch() != first.epoch() {
            break current;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(SystemTime::now() < first.not_after(), "before the end");

    issuer.refuse(true);
    while SystemTime::now() < renewed.not_after() - Duration::from_millis(100) {
        let current = certificates.current(&named("a")).expect("kept");
        assert_eq!(current.epoch(), renewed.epoch());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(certificates.report()[0].standing, Standing::Failing);
    let over = async {
        while certificates.current(&named("a")).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, over)
        .await
        .expect("over is over");
    let events = events.lock().unwrap();
    let kept = |event: &Event| {
        matches!(
            event,
            Event::Failed {
                kept_until: Some(_),
                ..
            }
        )
    };
    assert!(events.iter().any(kept), "{events:?}");
    let ended = |event: &Event| matches!(event, Event::Expired { .. });
    assert_eq!(events.iter().filter(|event| ended(event)).count(), 1);
    run.abort();
}

#[tokio::test]
async fn the_loop_may_be_stopped_and_run_again() {
    let issuer = Arc::new(Moody::new(DAY, Duration::from_millis(100)));
    let (certificates, _, run) = start(issuer);
    certificates.want(only("a"));
    tokio::time::sleep(Duration::from_millis(20)).await;
    run.abort();
    let again = tokio::spawn(certificates.clone().run());
    certificates.wait(&named("a"), SOON).await.unwrap();
    again.abort();
}

#[tokio::test]
async fn an_authority_near_its_end_is_told_once() {
    let mut issuer = Moody::new(DAY, Duration::ZERO);
    issuer.ends = Some(SystemTime::now() + 20 * DAY);
    let (certificates, events, run) = start(Arc::new(issuer));
    for name in ["a", "b", "c"] {
        certificates.want(only(name));
        certificates.wait(&named(name), SOON).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let events = events.lock().unwrap();
    let told = |event: &&Event| matches!(event, Event::AuthorityEnding { .. });
    assert_eq!(events.iter().filter(told).count(), 1, "{events:?}");
    run.abort();
}
