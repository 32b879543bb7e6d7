//! What a carrier of connections costs: direct TCP, Adit, and Envoy as HBONE sidecars, in turn
//! within one run, between pods in network namespaces. Prints one table.
//!
//!     ./scripts/bench --help
//!
//! How it is measured, and what it does not show: `benches/README.md`.

#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the daemon; this stands outside of it"
)]

#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    reason = "the benchmarks share it, and each uses its own part"
)]
mod support;

mod carrier;
mod echo;
mod hold;
mod load;
mod row;
mod table;

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tempfile::TempDir;

use carrier::{Carrier, Kind, Options};
use row::{ROWS, Row};
use support::net::Net;
use support::netns;
use table::Results;

/// Measures direct TCP, Adit and Envoy in turn, and prints a table.
#[derive(Debug, Parser)]
struct Args {
    /// Only these rows, with commas between; all unless given.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// How often each carrier is measured; the table shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement lasts, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One round of half a second: shows that everything runs, not how fast.
    #[arg(long)]
    quick: bool,
    /// Only these carriers, of direct, adit, envoy.
    #[arg(long, value_delimiter = ',', default_values = ["direct", "adit", "envoy"])]
    carriers: Vec<Kind>,
    /// The same as leaving envoy out of --carriers.
    #[arg(long)]
    without_envoy: bool,
    /// Threads of each proxy. Several numbers, with commas between, measure Adit with each of them
    /// beside direct TCP, and print a column for each.
    #[arg(long, value_delimiter = ',', default_values_t = [2])]
    workers: Vec<usize>,
    /// Idle connections that are opened for the row idle; with more than 10,000 they are watched
    /// for ten seconds.
    #[arg(long, default_value_t = 4000)]
    idle: usize,
    /// A further argument of the daemons, as --adit-arg=--same-node=hbone; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    adit_arg: Vec<String>,
    /// The congestion control of every namespace, for all carriers; the system's unless given.
    #[arg(long)]
    congestion: Option<String>,
    /// End with an error that names the targets that are missed, if any is.
    #[arg(long)]
    check: bool,
    /// Print the figures of every round, not only their medians.
    #[arg(long)]
    verbose: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if words.get(1).is_some_and(|word| word == hold::WORD) {
        return hold::program(&words[2..]);
    }
    let mut args = Args::parse();
    if args.quick {
        (args.rounds, args.seconds) = (1, 0.5);
        args.idle = args.idle.min(500);
    }
    if args.without_envoy {
        args.carriers.retain(|&kind| kind != Kind::Envoy);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "namespaces need root: run this as root"
    );
    ensure!(args.rounds > 0 && args.seconds > 0.0, "nothing to measure");
    ensure!(!args.workers.is_empty(), "no proxy works without a thread");
    ensure!(
        !args.check || args.workers.len() == 1 && args.carriers.len() == 3,
        "targets are ratios to Envoy and to direct TCP: --check needs all three carriers, and one number of workers"
    );
    let rows = choose(&args.rows)?;
    let bound;
    (args.idle, bound) = hold::allowed(args.idle)?;
    netns::sweep();
    let mut out = std::io::stdout();
    if args.workers.len() > 1 {
        let mut all: Vec<Results> = args.workers.iter().map(|_| Results::default()).collect();
        let outcome = compare(&args, &rows, &mut all);
        write!(out, "\n{}", table::by_workers(&all, &args.workers))?;
        writeln!(out, "\n{}", setting(&args, bound.as_deref()))?;
        return outcome;
    }
    let mut results = Results::default();
    let outcome = measure(&args, &rows, &mut results);
    write!(out, "\n{}", table::render(&results, &args.carriers))?;
    writeln!(out, "\n{}", setting(&args, bound.as_deref()))?;
    outcome?;
    if args.check {
        let (targets, missed) = table::checked(&results);
        if !missed.is_empty() {
            let missed = missed.join("\n  ");
            bail!("missed of {targets} targets:\n  {missed}");
        }
        writeln!(out, "\nAll {targets} targets are met.")?;
    }
    Ok(())
}

/// What was measured, and where.
fn setting(args: &Args, bound: Option<&str>) -> String {
    let sys = |key: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/{key}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let workers: Vec<_> = args.workers.iter().map(usize::to_string).collect();
    let congestion = args.congestion.clone();
    let congestion = congestion.unwrap_or_else(|| sys("net/ipv4/tcp_congestion_control"));
    let mut setting = format!(
        "Linux {}, {processors} processors; congestion control {congestion} unless a program chooses; \
         medians of {} rounds of {} s; {} threads each; {}",
        sys("kernel/osrelease"),
        args.rounds,
        args.seconds,
        workers.join(", "),
        support::adit::binary().display(),
    );
    if let Some(bound) = bound {
        setting.push_str("\n\n");
        setting.push_str(bound);
    }
    setting
}

fn choose(names: &[String]) -> Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
    let find = |name: &String| {
        let row = ROWS.iter().find(|row| row.name == name);
        row.with_context(|| format!("no row {name}; there are {}", known.join(", ")))
    };
    names.iter().map(find).collect()
}

/// The network, and the carriers in it.
struct Bench<'a> {
    args: &'a Args,
    /// What programs write, until the run ends.
    directory: TempDir,
    net: Net,
    carriers: Vec<Carrier>,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args, kinds: &[Kind]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("adit-bench-").tempdir()?;
        let mut net = Net::create(args.congestion.as_deref())?;
        let carriers = kinds.iter().map(|&kind| Carrier::create(kind, &mut net));
        Ok(Self {
            args,
            directory,
            carriers: carriers.collect::<Result<Vec<_>>>()?,
            net,
        })
    }

    /// Starts a carrier's programs, ending those of before.
    fn start(&mut self, carrier: usize, workers: usize) -> Result<()> {
        let options = Options {
            directory: self.directory.path().to_owned(),
            workers,
            adit: self.args.adit_arg.clone(),
        };
        self.carriers[carrier].start(&self.net, &options)
    }

    /// One round of a row over a carrier.
    fn run(&self, row: &Row, round: usize, carrier: usize, results: &mut Results) -> Result<()> {
        let carrier = &self.carriers[carrier];
        let load = row::Load {
            time: Duration::from_secs_f64(self.args.seconds),
            idle: self.args.idle,
            quiet: Duration::from_secs(if self.args.idle > 10_000 { 10 } else { 2 }),
            directory: self.directory.path().to_owned(),
        };
        let figures = (row.run)(carrier, &load).with_context(|| {
            format!(
                "row {} over {}:\n{}",
                row.name,
                carrier.kind,
                carrier.words()
            )
        })?;
        progress(self.args, row, round, carrier.kind, &figures)?;
        results.add(row, carrier.kind, &figures);
        Ok(())
    }
}

/// Each row, in each round over each carrier.
fn measure(args: &Args, rows: &[&Row], results: &mut Results) -> Result<()> {
    let mut bench = Bench::new(args, &args.carriers)?;
    let (workers, count) = (args.workers[0], args.carriers.len());
    for carrier in 0..count {
        bench.start(carrier, workers)?;
    }
    for row in rows {
        for round in 0..args.rounds {
            // Nobody is always first, or always after the same one.
            for turn in 0..count {
                let carrier = (turn + round) % count;
                if row.fresh {
                    bench.start(carrier, workers)?;
                }
                bench.run(row, round, carrier, results)?;
            }
        }
    }
    Ok(())
}

/// All rows with each number of workers in turn, in each round; direct TCP once each time.
fn compare(args: &Args, rows: &[&Row], all: &mut [Results]) -> Result<()> {
    let mut bench = Bench::new(args, &[Kind::Direct, Kind::Adit])?;
    bench.start(0, 1)?;
    for round in 0..args.rounds {
        for turn in 0..all.len() {
            let turn = (turn + round) % all.len();
            bench.start(1, args.workers[turn])?;
            for row in rows {
                if row.fresh {
                    bench.start(1, args.workers[turn])?;
                }
                for carrier in [0, 1] {
                    bench.run(row, round, carrier, &mut all[turn])?;
                }
            }
        }
    }
    Ok(())
}

fn progress(args: &Args, row: &Row, round: usize, kind: Kind, figures: &[f64]) -> Result<()> {
    let mut err = std::io::stderr().lock();
    write!(
        err,
        "{} round {} of {} {kind}",
        row.name,
        round + 1,
        args.rounds
    )?;
    if args.verbose {
        for (figure, value) in row.figures.iter().zip(figures) {
            write!(err, "  {} {value:.3} {}", figure.name, figure.unit)?;
        }
    }
    writeln!(err)?;
    Ok(())
}
