//! The `istio_tcp_*` counters of connections.
//!
//! A worker asks its [`Recorder`] once per connection. The recorder finds the series of the two
//! workloads in its own cache, by the addresses of the shared objects, and the connection then
//! adds to counters that no other worker writes; a scrape adds the workers up. Only a pair of
//! workloads that a worker has not seen before takes the registry's lock.
//!
//! Series end ([`Traffic::expire`]) when they have been idle and what they are about is gone. A
//! worker may hold a series just then, so that ending is agreed on: the worker first counts its
//! connection as live, then looks whether the series was retired; the registry first retires it,
//! then looks for live connections. At least one of them sees the other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

use crate::mesh::{Direction, Flow, Identity, Path, Service, Workload};
use crate::telemetry::metrics::labels::{Flagged, Labels, Member};
use crate::telemetry::{Flag, Outcome};

/// How long a series of something that is gone stays for one more scrape.
const IDLE: Duration = Duration::from_secs(300);
/// Most series; what comes after is counted under the label value `overflow`.
const SERIES: usize = 20_000;
/// Most pairs a worker remembers before it starts its cache afresh.
const CACHED: usize = 4_096;

/// The registry of all series. A clone is the same registry.
#[derive(Clone)]
pub struct Traffic(Arc<Registry>);

struct Registry {
    cluster_domain: Box<str>,
    workers: usize,
    started: Instant,
    limit: usize,
    series: Mutex<HashMap<Arc<Labels>, Arc<Series>>>,
}

/// The counters of one label set, a shard per worker.
struct Series {
    labels: Arc<Labels>,
    shards: Box<[Shard]>,
    retired: AtomicBool,
    /// The registry's start.
    started: Instant,
}

/// What one worker has counted. Aligned so that workers share no cache line.
#[derive(Default)]
#[repr(align(64))]
struct Shard {
    opened: AtomicU64,
    /// From source to destination.
    requested: AtomicU64,
    /// From destination to source.
    responded: AtomicU64,
    closed: [AtomicU64; Flag::ALL.len()],
    failed: [AtomicU64; Flag::ALL.len()],
    live: AtomicU64,
    /// Seconds since the registry's start.
    last_used: AtomicU64,
}

impl Traffic {
    /// An empty registry.
    #[must_use]
    pub fn new(workers: usize, cluster_domain: &str, now: Instant) -> Self {
        Self::with_limit(workers, cluster_domain, now, SERIES)
    }

    fn with_limit(workers: usize, cluster_domain: &str, now: Instant, limit: usize) -> Self {
        Self(Arc::new(Registry {
            cluster_domain: cluster_domain.into(),
            workers: workers.max(1),
            started: now,
            limit,
            series: Mutex::default(),
        }))
    }

    /// The recorder of one worker; workers are numbered from zero.
    #[must_use]
    pub fn recorder(&self, worker: usize) -> Recorder {
        let shard = worker % self.0.workers;
        Recorder {
            traffic: self.clone(),
            shard,
            number: shard.try_into().expect("a machine has fewer cores"),
            cache: RefCell::default(),
        }
    }

    /// Ends the series that have been idle for five minutes, have no live connection, and are
    /// about something that is gone. Returns how many went.
    pub fn expire(&self, now: Instant, is_alive: impl Fn(Member<'_>) -> bool) -> usize {
        let idle_since = self.seconds(now).saturating_sub(IDLE.as_secs());
        let mut series = self.lock();
        let before = series.len();
        series.retain(|labels, series| {
            series.last_used() > idle_since || labels.members().all(&is_alive) || !series.retire()
        });
        before - series.len()
    }

    /// How many series there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing has been counted yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds or makes the series of a flow, and counts a live connection in it before the lock is
    /// given back.
    fn join(&self, flow: &Flow, shard: usize, now: u64) -> Arc<Series> {
        let labels = Labels::new(flow, &self.0.cluster_domain);
        let mut all = self.lock();
        let full = all.len() >= self.0.limit && !all.contains_key(&labels);
        let labels = if full {
            Labels::overflow(flow.direction)
        } else {
            labels
        };
        let series = if let Some(series) = all.get(&labels) {
            series.clone()
        } else {
            let labels = Arc::new(labels);
            let series = Arc::new(Series::new(labels.clone(), &self.0));
            all.insert(labels, series.clone());
            series
        };
        series.shards[shard].join(now);
        series
    }

    fn seconds(&self, now: Instant) -> u64 {
        seconds(self.0.started, now)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<Labels>, Arc<Series>>> {
        self.0.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seconds(started: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(started).as_secs()
}

impl Series {
    fn new(labels: Arc<Labels>, registry: &Registry) -> Self {
        Self {
            labels,
            shards: (0..registry.workers).map(|_| Shard::default()).collect(),
            retired: AtomicBool::new(false),
            started: registry.started,
        }
    }

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        let load = |shard| counter(shard).load(Ordering::Relaxed);
        self.shards.iter().map(load).sum()
    }

    fn last_used(&self) -> u64 {
        let load = |shard: &Shard| shard.last_used.load(Ordering::Relaxed);
        self.shards.iter().map(load).max().unwrap_or_default()
    }

    /// Retires it, unless a connection lives. See the head of this file for the order.
    fn retire(&self) -> bool {
        self.retired.store(true, Ordering::SeqCst);
        let live = |shard: &Shard| shard.live.load(Ordering::SeqCst) > 0;
        let lives = self.shards.iter().any(live);
        if lives {
            self.retired.store(false, Ordering::SeqCst);
        }
        !lives
    }

    /// Counts a live connection, unless the series was retired.
    fn join(&self, shard: usize, now: u64) -> bool {
        self.shards[shard].join(now);
        let joined = !self.retired.load(Ordering::SeqCst);
        if !joined {
            self.shards[shard].live.fetch_sub(1, Ordering::SeqCst);
        }
        joined
    }
}

impl Shard {
    fn join(&self, now: u64) {
        self.live.fetch_add(1, Ordering::SeqCst);
        self.last_used.store(now, Ordering::Relaxed);
    }
}

/// One worker's way to the counters.
pub struct Recorder {
    traffic: Traffic,
    shard: usize,
    /// The same number.
    number: u32,
    cache: RefCell<HashMap<u64, (Pair, Arc<Series>), Mixed>>,
}

impl Recorder {
    /// Counts a connection as opened, and returns where it counts the rest of its life.
    #[must_use]
    pub fn opened(&self, flow: &Flow, now: Instant) -> Opened {
        let seconds = self.traffic.seconds(now);
        let key = Pair::key(flow);
        let mut cache = self.cache.borrow_mut();
        let cached = cache
            .get(&key)
            .filter(|(pair, series)| pair.is(flow) && series.join(self.shard, seconds));
        let series = if let Some((_, series)) = cached {
            series.clone()
        } else {
            let series = self.traffic.join(flow, self.shard, seconds);
            if cache.len() >= CACHED {
                cache.clear();
            }
            cache.insert(key, (Pair::of(flow), series.clone()));
            series
        };
        series.shards[self.shard]
            .opened
            .fetch_add(1, Ordering::Relaxed);
        Opened {
            series,
            shard: self.number,
            ended: false,
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

/// A connection that has been counted as opened. Dropped without [`Opened::closed`], it counts
/// as closed with no flag.
pub struct Opened {
    series: Arc<Series>,
    shard: u32,
    ended: bool,
}

impl Opened {
    /// Adds bytes that have moved since the last call.
    ///
    /// Istio's names look from the service: `received` is what the source sent, `sent` is what the
    /// destination answered, for both reporters alike.
    pub fn moved(&self, source_to_destination: u64, destination_to_source: u64) {
        let shard = self.shard();
        let add = |counter: &AtomicU64, n| counter.fetch_add(n, Ordering::Relaxed);
        add(&shard.requested, source_to_destination);
        add(&shard.responded, destination_to_source);
    }

    /// Counts the end.
    pub fn closed(mut self, outcome: Outcome, now: Instant) {
        self.end(outcome);
        let seconds = seconds(self.series.started, now);
        self.shard().last_used.store(seconds, Ordering::Relaxed);
    }

    fn end(&mut self, outcome: Outcome) {
        self.ended = true;
        let shard = self.shard();
        let flag = outcome.flag().index();
        shard.closed[flag].fetch_add(1, Ordering::Relaxed);
        if outcome.failed() {
            shard.failed[flag].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn shard(&self) -> &Shard {
        &self.series.shards[self.shard as usize]
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::Drained);
        }
        self.shard().live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

/// What a worker has found the series of, without any text: objects of the index by address (kept
/// alive here, so that an address is not used again), and a proven identity by value.
struct Pair {
    direction: Direction,
    path: Path,
    identity: Option<Identity>,
    source: Option<Arc<Workload>>,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
}

impl Pair {
    fn of(flow: &Flow) -> Self {
        Self {
            direction: flow.direction,
            path: flow.path,
            identity: flow.source.identity.clone(),
            source: flow.source.workload.clone(),
            destination: flow.destination.workload.clone(),
            service: flow.destination.service.clone(),
        }
    }

    /// Whether it is the pair of `flow`.
    fn is(&self, flow: &Flow) -> bool {
        self.direction == flow.direction
            && self.path == flow.path
            && address(&self.source) == address(&flow.source.workload)
            && address(&self.destination) == address(&flow.destination.workload)
            && address(&self.service) == address(&flow.destination.service)
            && self.identity == flow.source.identity
    }

    /// Where the pair of `flow` is in the cache. Two pairs with one key take each other's place,
    /// which costs time and nothing else; so identities, which would have to be read, stay out.
    fn key(flow: &Flow) -> u64 {
        let parts = [
            address(&flow.source.workload),
            address(&flow.destination.workload),
            address(&flow.destination.service),
            flow.direction as usize,
            flow.path as usize,
        ];
        parts.into_iter().fold(0, |key: u64, part| {
            // An odd number without pattern (2^64 divided by the golden ratio) spreads the bits.
            (key.rotate_left(23) ^ part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }
}

fn address<T>(of: &Option<Arc<T>>) -> usize {
    of.as_ref().map_or(0, |of| Arc::as_ptr(of).addr())
}

/// A hasher of keys that are mixed already.
type Mixed = BuildHasherDefault<Already>;

#[derive(Default)]
struct Already(u64);

impl Hasher for Already {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key ^ (key >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").finish_non_exhaustive()
    }
}

/// A counter that ends connections, by flag.
type ByFlag = fn(&Shard) -> &[AtomicU64; Flag::ALL.len()];
/// A counter without a flag.
type Plain = fn(&Shard) -> &AtomicU64;

/// The counters of living connections: name, help, and where the number is.
const PLAIN: [(&str, &str, Plain); 3] = [
    (
        "istio_tcp_connections_opened",
        "TCP connections opened",
        |shard| &shard.opened,
    ),
    (
        "istio_tcp_received_bytes",
        "Bytes that sources sent to destinations over TCP",
        |shard| &shard.requested,
    ),
    (
        "istio_tcp_sent_bytes",
        "Bytes that destinations sent to sources over TCP",
        |shard| &shard.responded,
    ),
];

/// The counters of ended connections.
const FLAGGED: [(&str, &str, ByFlag); 2] = [
    (
        "istio_tcp_connections_closed",
        "TCP connections that ended, failed ones included",
        |shard| &shard.closed,
    ),
    (
        "istio_tcp_connections_failed",
        "TCP connections that never reached the application they were for",
        |shard| &shard.failed,
    ),
];

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // Workers that meet a new pair wait for the lock, so the text is written without it.
        let all: Vec<_> = self.lock().values().cloned().collect();
        for (name, help, counter) in PLAIN {
            let kind = MetricType::Counter;
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for series in &all {
                metric
                    .encode_family(&Flagged(&series.labels, Flag::None.as_str()))?
                    .encode_counter(&series.sum(counter), NO_EXEMPLAR)?;
            }
        }
        for (name, help, counter) in FLAGGED {
            let kind = MetricType::Counter;
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (series, flag) in all.iter().flat_map(|s| Flag::ALL.map(|flag| (s, flag))) {
                let count = series.sum(|shard| &counter(shard)[flag.index()]);
                if count > 0 {
                    metric
                        .encode_family(&Flagged(&series.labels, flag.as_str()))?
                        .encode_counter(&count, NO_EXEMPLAR)?;
                }
            }
        }
        Ok(())
    }
}

const NO_EXEMPLAR: Option<&Exemplar<[(&str, &str); 0], u64>> = None;

#[cfg(test)]
mod tests;
