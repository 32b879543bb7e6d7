//! What a carrier of connections costs: direct TCP, Adit, and Envoy as HBONE sidecars, in turn
//! within one run, between pods in network namespaces. Prints one table.
//!
//!     cargo bench --bench dataplane -- --help
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
mod load;
mod row;
mod table;

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

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
    /// Threads of each proxy.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Idle connections that are opened for the row idle.
    #[arg(long, default_value_t = 4000)]
    idle: usize,
    /// A further argument of the daemons, as --adit-arg=--same-node=hbone; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    adit_arg: Vec<String>,
    /// End with an error when a target is missed.
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
    let rows = choose(&args.rows)?;
    allow_descriptors(args.idle)?;
    netns::sweep();

    let mut results = Results::default();
    let outcome = measure(&args, &rows, &mut results);
    let mut out = std::io::stdout().lock();
    write!(out, "\n{}", table::render(&results, &args.carriers))?;
    outcome?;
    let missed = table::missed(&results);
    if args.check && !missed.is_empty() {
        bail!("missed: {}", missed.join("; "));
    }
    Ok(())
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

/// Client and server live in this process: two descriptors for each connection.
fn allow_descriptors(idle: usize) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    let needed = u64::try_from(2 * idle + 500)?;
    ensure!(
        needed <= hard,
        "{idle} idle connections need {needed} descriptors; this process may have {hard}"
    );
    Ok(())
}

fn measure(args: &Args, rows: &[&Row], results: &mut Results) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("adit-bench-").tempdir()?;
    let options = Options {
        directory: directory.path().to_owned(),
        workers: args.workers,
        adit: args.adit_arg.clone(),
    };
    let mut net = Net::create()?;
    let mut carriers = args
        .carriers
        .iter()
        .map(|&kind| Carrier::create(kind, &mut net))
        .collect::<Result<Vec<_>>>()?;
    for carrier in &mut carriers {
        carrier.start(&net, &options)?;
    }
    let load = row::Load {
        time: Duration::from_secs_f64(args.seconds),
        idle: args.idle,
    };
    for row in rows {
        for round in 0..args.rounds {
            // Nobody is always first, or always after the same one.
            for turn in 0..carriers.len() {
                let count = carriers.len();
                let carrier = &mut carriers[(turn + round) % count];
                if row.fresh {
                    carrier.start(&net, &options)?;
                }
                let figures = (row.run)(carrier, &load).with_context(|| {
                    format!(
                        "row {} over {}:\n{}",
                        row.name,
                        carrier.kind,
                        carrier.words()
                    )
                })?;
                progress(args, row, round, carrier.kind, &figures)?;
                results.add(row, carrier.kind, &figures);
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
