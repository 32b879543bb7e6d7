//! Many connections that do nothing, held by programs of their own in the pods, so that what a
//! process may have of descriptors bounds the carrier alone, not the load.
//!
//! The programs are this benchmark itself, started with `hold` as its first argument. A client
//! dials, makes one exchange on each connection, says how many it holds, and closes all of them by
//! ending.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::carrier::{Carrier, Kind, Place};
use crate::echo;
use crate::load::{MESSAGE, dial};
use crate::support::child::Program;
use crate::support::net::Pod;

/// The first argument of the programs.
pub(crate) const WORD: &str = "hold";
/// Descriptors that a process needs beside those of the connections: listeners, tunnels, its own.
const BESIDE: usize = 600;

/// What the connections cost.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) connections: usize,
    /// Bytes of the carrier's programs for each.
    pub(crate) memory: f64,
    /// Processor seconds of the carrier for each, to open it with one exchange.
    pub(crate) open: f64,
    /// Processor seconds a second for all of them, when nothing happens.
    pub(crate) idle: f64,
    /// Processor seconds for each, to close it.
    pub(crate) close: f64,
    /// From the clients' end until the carrier has given all descriptors back.
    pub(crate) closing: Duration,
}

/// How many of the connections that are asked for a carrier may hold here, one descriptor each in
/// each of its programs, and what bounds it. Raises this process's limit, and so that of all
/// programs it starts, as far as it may.
pub(crate) fn allowed(asked: usize) -> Result<(usize, Option<String>)> {
    let wanted = u64::try_from(asked + BESIDE)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < wanted {
        // For those with CAP_SYS_RESOURCE.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted);
    } else if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let room = usize::try_from(hard)?.saturating_sub(BESIDE);
    ensure!(room > 0, "a process may have {hard} descriptors here");
    let bound = (room < asked).then(|| {
        format!(
            "{room} idle connections, not {asked}: a process may have {hard} descriptors here, \
             and to raise that takes CAP_SYS_RESOURCE"
        )
    });
    Ok((asked.min(room), bound))
}

/// Opens connections, waits, closes them.
pub(crate) fn measure(
    carrier: &Carrier,
    connections: usize,
    quiet: Duration,
    directory: &Path,
) -> Result<Held> {
    if carrier.kind == Kind::Direct {
        return Ok(Held::default());
    }
    // Each program gets a port of its own, so that nobody runs out of addresses either.
    let share = connections
        .div_ceil(echo::HELD.len())
        .max(connections.min(4000));
    let shares = (0..connections)
        .step_by(share)
        .map(|from| share.min(connections - from));
    let shares: Vec<(u16, usize)> = echo::HELD.zip(shares).collect();
    let start = |role: &str, pod: &Pod, args: &[String]| {
        let name = format!("{role} {}", args.join(" "));
        let log = directory.join(format!("{role}-{}.log", args[0].replace(':', "-")));
        let mut all = vec![WORD.to_owned(), role.to_owned()];
        all.extend_from_slice(args);
        Program::start(&name, &pod.netns, &std::env::current_exe()?, &all, &log)
    };
    let mut servers = Vec::new();
    for (port, _) in &shares {
        let mut server = start("server", carrier.server(Place::Far), &[port.to_string()])?;
        let log = "listening";
        for _ in 0..500 {
            if server.words() == log {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        ensure!(server.runs() && server.words() == log, "{}", server.words());
        servers.push(server);
    }
    // What the first connections cost is not what each of them costs.
    let first = carrier.client().netns.enter(|| -> Result<Vec<TcpStream>> {
        let to = carrier.address(Place::Far, shares[0].0);
        (0..16).map(|_| open(to)).collect()
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let (memory, cpu, descriptors) = (carrier.memory()?, carrier.cpu()?, carrier.descriptors()?);
    let mut clients = Vec::new();
    for (port, count) in &shares {
        let to = carrier.address(Place::Far, *port);
        let args = [to.to_string(), count.to_string()];
        clients.push(start("clients", carrier.client(), &args)?);
    }
    let mut held = Held::default();
    for client in &mut clients {
        held.connections += await_held(client)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let each = held.connections as f64;
    held.open = (carrier.cpu()? - cpu).as_secs_f64() / each;
    held.memory = carrier.memory()?.saturating_sub(memory) as f64 / each;
    let (cpu, begin) = (carrier.cpu()?, Instant::now());
    std::thread::sleep(quiet);
    held.idle = (carrier.cpu()? - cpu).as_secs_f64() / begin.elapsed().as_secs_f64();
    let (cpu, begin) = (carrier.cpu()?, Instant::now());
    drop(clients);
    // Tunnels stay for the next connections, some for each thousand.
    let left = descriptors + held.connections / 50 + 16;
    while carrier.descriptors()? > left {
        ensure!(
            begin.elapsed() < Duration::from_secs(60),
            "{} descriptors are not given back after a minute",
            carrier.descriptors()? - descriptors
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    held.closing = begin.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    held.close = (carrier.cpu()? - cpu).as_secs_f64() / each;
    drop((first, servers));
    Ok(held)
}

/// Waits for a client to say how many connections it holds.
fn await_held(client: &mut Program) -> Result<usize> {
    let end = Instant::now() + Duration::from_secs(180);
    loop {
        let words = client.words();
        if let Some(count) = words.strip_prefix("held ") {
            return count.trim().parse().context("clients print a number");
        }
        if !client.runs() || Instant::now() > end {
            bail!("connections cannot be held: {}", client.words());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = dial(to)?;
    stream.write_all(&MESSAGE)?;
    stream.read_exact(&mut [0; MESSAGE.len()])?;
    Ok(stream)
}

/// What the programs do: `server PORT`, or `clients ADDRESS COUNT`.
pub(crate) fn program(args: &[String]) -> Result<()> {
    let mut out = std::io::stdout();
    match args {
        [role, port] if role == "server" => {
            let listener = echo::bind(port.parse()?)?;
            writeln!(out, "listening")?;
            echo::echo_all(&[listener])
        }
        [role, to, count] if role == "clients" => {
            let (to, count) = (to.parse()?, count.parse()?);
            let mut streams = Vec::with_capacity(count);
            for at in 0..count {
                streams.push(open(to).with_context(|| format!("connection {at} of {count}"))?);
            }
            writeln!(out, "held {}", streams.len())?;
            loop {
                std::thread::park();
            }
        }
        _ => bail!("hold server PORT, or hold clients ADDRESS COUNT"),
    }
}
