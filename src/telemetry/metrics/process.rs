//! What the kernel knows about this process, read when somebody asks, and the log's losses.
//!
//! Names and units are those of Prometheus's own client libraries. A value that `/proc` does not
//! give is left out rather than reported as zero.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::telemetry::log::Dropped;

/// Reads `/proc/self` at each scrape.
#[derive(Debug)]
pub(crate) struct Process {
    dropped: Option<Dropped>,
    page: u64,
    tick: f64,
}

impl Process {
    /// A collector; `dropped` counts the lines that the log had no room for.
    pub(crate) fn new(dropped: Option<Dropped>) -> Self {
        use nix::unistd::{SysconfVar, sysconf};
        let ask = |var, default| sysconf(var).ok().flatten().unwrap_or(default);
        let tick = ask(SysconfVar::CLK_TCK, 100);
        Self {
            dropped,
            page: ask(SysconfVar::PAGE_SIZE, 4096).unsigned_abs(),
            tick: f64::from(u32::try_from(tick).unwrap_or(100)),
        }
    }

    /// Resident bytes and CPU seconds.
    fn stat(&self) -> Option<(u64, f64, f64)> {
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot: f64 = boot.trim().parse().ok()?;
        Some((
            stat.rss_pages * self.page,
            stat.cpu_ticks / self.tick,
            boot + stat.start_ticks / self.tick,
        ))
    }
}

/// The fields of proc_pid_stat(5) that are reported.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    start_ticks: f64,
    rss_pages: u64,
}

impl Stat {
    /// Parses `/proc/PID/stat`. The command's name may hold anything, a `)` included.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        // The first field here is the third of the man page.
        let field = |number: usize| rest.split(' ').nth(number - 3);
        let user: f64 = field(14)?.parse().ok()?;
        let system: f64 = field(15)?.parse().ok()?;
        Some(Self {
            cpu_ticks: user + system,
            start_ticks: field(22)?.parse().ok()?,
            rss_pages: field(24)?.parse().ok()?,
        })
    }
}

/// Open descriptors, without the one that reads the directory.
fn open_fds() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(open.saturating_sub(1)).ok()
}

/// The soft limit of descriptors.
fn max_fds() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE)
        .ok()
        .map(|(soft, _)| soft)
}

impl Collector for Process {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut put = |name: &str, help: &str, metric: &dyn Value| metric.put(&mut to, name, help);
        if let Some(open) = open_fds() {
            put(
                "process_open_fds",
                "Open file descriptors",
                &ConstGauge::new(open),
            )?;
        }
        if let Some(max) = max_fds() {
            put(
                "process_max_fds",
                "Most file descriptors that may be open",
                &ConstGauge::new(max),
            )?;
        }
        if let Some((rss, cpu, start)) = self.stat() {
            put(
                "process_resident_memory_bytes",
                "Resident memory",
                &ConstGauge::new(rss),
            )?;
            put(
                "process_cpu_seconds",
                "User and system CPU time",
                &ConstCounter::new(cpu),
            )?;
            put(
                "process_start_time_seconds",
                "When the process started, in seconds since 1970",
                &ConstGauge::new(start),
            )?;
        }
        let dropped = self.dropped.as_ref().map_or(0, Dropped::lines);
        put(
            "adit_log_lines_dropped",
            "Log lines and access records dropped because the log's reader was too slow",
            &ConstCounter::new(dropped),
        )
    }
}

/// A metric that is made for one scrape.
trait Value {
    fn put(&self, to: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> fmt::Result;
}

impl<M: EncodeMetric> Value for M {
    fn put(&self, to: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> fmt::Result {
        self.encode(to.encode_descriptor(name, help, None, self.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_named_to_confuse_is_no_matter() {
        let text = "42 (a) b) (c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 3 0 777 9 321 99";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                cpu_ticks: 200.0,
                start_ticks: 777.0,
                rss_pages: 321
            })
        );
        assert_eq!(Stat::parse("42 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
