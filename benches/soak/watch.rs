//! What the daemons hold: by the kernel, and by their own metrics.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;

use crate::support::adit::{self, Daemons};
use crate::support::child;
use crate::support::net::Net;
use crate::tally::Tally;

/// By how many descriptors a daemon may differ from before, beside those of tunnels.
const DESCRIPTORS: f64 = 4.0;
/// How many times the tunnels of before there may be: those of certificates that were replaced live
/// on for five minutes, and a certificate is replaced each minute.
const TUNNELS: f64 = 8.0;
/// By how much memory may grow between the thirds of a run: a share, and this besides.
const GROWTH: (f64, f64) = (0.05, 3.0 * 1024.0 * 1024.0);

/// What one daemon holds when it carries nothing.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) connections: f64,
    pub(crate) streams: f64,
    tunnels: f64,
    descriptors: usize,
    threads: usize,
    memory: u64,
}

pub(crate) fn snapshots(net: &Net, daemons: &Daemons) -> Result<Vec<Snapshot>> {
    let each = (1..).zip(daemons.pids()).map(|(node, pid)| {
        let metrics = adit::get(net.node(node), 15020, "/metrics")?;
        Ok(Snapshot {
            connections: sum(&metrics, "adit_connections"),
            streams: sum(&metrics, "adit_streams"),
            tunnels: sum(&metrics, "adit_tunnels"),
            descriptors: child::descriptors(pid)?,
            threads: child::threads(pid)?,
            memory: child::rss(pid)?,
        })
    });
    each.collect()
}

/// The sum of all series of a metric.
fn sum(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Memory of both daemons over time, under load.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    samples: Vec<(Duration, Vec<u64>)>,
}

impl Watch {
    pub(crate) fn sample(&mut self, at: Duration, daemons: &Daemons) -> Result<()> {
        let pids = daemons.pids();
        let memory = pids.into_iter().map(child::rss).collect::<Result<_>>()?;
        self.samples.push((at, memory));
        Ok(())
    }

    /// The mean memory of a daemon in the second third, and in the last.
    fn thirds(&self, daemon: usize) -> (f64, f64) {
        let third = self.samples.len() / 3;
        let mean = |from: usize, to: usize| {
            let part = &self.samples[from..to];
            let sum: u64 = part.iter().map(|(_, memory)| memory[daemon]).sum();
            sum as f64 / part.len().max(1) as f64
        };
        (mean(third, 2 * third), mean(2 * third, self.samples.len()))
    }

    /// Bytes a minute, by least squares over the last two thirds.
    fn slope(&self, daemon: usize) -> f64 {
        let part = &self.samples[self.samples.len() / 3..];
        let count = part.len().max(1) as f64;
        let points = || {
            part.iter()
                .map(|(at, memory)| (at.as_secs_f64() / 60.0, memory[daemon] as f64))
        };
        let (x, y) = points().fold((0.0, 0.0), |(x, y), p| (x + p.0 / count, y + p.1 / count));
        let (over, under) = points().fold((0.0, 0.0), |(over, under), p| {
            (over + (p.0 - x) * (p.1 - y), under + (p.0 - x).powi(2))
        });
        if under > 0.0 { over / under } else { 0.0 }
    }
}

/// Finds what has been leaked.
pub(crate) fn compare(before: &[Snapshot], after: &[Snapshot], watch: &Watch, tally: &Tally) {
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        let node = index + 1;
        let others = |snapshot: &Snapshot| snapshot.descriptors as f64 - snapshot.tunnels;
        if others(after) > others(before) + DESCRIPTORS {
            let (old, new) = (others(before), others(after));
            tally.fail(format!(
                "node{node} holds {new} descriptors beside tunnels, where it held {old}"
            ));
        }
        if after.tunnels > before.tunnels.max(8.0) * TUNNELS {
            let (old, new) = (before.tunnels, after.tunnels);
            tally.fail(format!("node{node} has {new} tunnels, where it had {old}"));
        }
        // Threads of the blocking pool come and go; workers do not.
        if after.threads > before.threads + 2 {
            let (old, new) = (before.threads, after.threads);
            tally.fail(format!("node{node} has {new} threads, where it had {old}"));
        }
        let (second, last) = watch.thirds(index);
        if last > second * (1.0 + GROWTH.0) + GROWTH.1 {
            tally.fail(format!(
                "the memory of node{node} grows: {:.1} MiB in the second third, {:.1} MiB in the last",
                mebibytes(second),
                mebibytes(last)
            ));
        }
    }
}

/// Both daemons before and after.
pub(crate) fn table(before: &[Snapshot], after: &[Snapshot], watch: &Watch) -> String {
    let mut text = format!(
        "{:<6} {:>12} {:>10} {:>10} {:>12} {:>24} {:>12}\n",
        "",
        "descriptors",
        "threads",
        "tunnels",
        "MiB at rest",
        "MiB under load, 2nd/3rd",
        "KiB/min"
    );
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        let (second, last) = watch.thirds(index);
        let rest = |snapshot: &Snapshot| mebibytes(snapshot.memory as f64);
        let _ = writeln!(
            text,
            "{:<6} {:>12} {:>10} {:>10} {:>12} {:>24} {:>12.1}",
            format!("node{}", index + 1),
            format!("{} → {}", before.descriptors, after.descriptors),
            format!("{} → {}", before.threads, after.threads),
            format!("{} → {}", before.tunnels, after.tunnels),
            format!("{:.1} → {:.1}", rest(before), rest(after)),
            format!("{:.1} → {:.1}", mebibytes(second), mebibytes(last)),
            watch.slope(index) / 1024.0,
        );
    }
    text
}

fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
