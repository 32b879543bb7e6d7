//! One `adit node` on each of the two nodes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::child::Program;
use super::net::Net;
use super::netns::Netns;

/// Where the program is that is measured: `ADIT_BIN`, which `scripts/bench` sets to the release build,
/// else the one that cargo has built for this benchmark.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("ADIT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_adit").into(), PathBuf::from)
}

/// Both daemons.
#[derive(Debug)]
pub(crate) struct Daemons {
    /// That of node 1, then that of node 2.
    pub(crate) programs: Vec<Program>,
    /// The objects that they read.
    pub(crate) source: PathBuf,
}

impl Daemons {
    /// Writes the objects, starts both daemons, and waits until their pods are served.
    pub(crate) fn start(net: &Net, directory: &Path, args: &[String]) -> Result<Self> {
        let source = directory.join("cluster.json");
        std::fs::write(&source, serde_json::to_vec_pretty(&net.objects())?)?;
        let binary = binary();
        let mut programs = Vec::new();
        for number in [1, 2] {
            let name = format!("node{number}");
            let mut all: Vec<String> = vec!["node".into(), "--node".into(), name.clone()];
            let run_dir = directory.join(format!("run-{name}"));
            for (flag, value) in [
                ("--source", source.display().to_string()),
                ("--ca", format!("dir:{}", directory.join("ca").display())),
                ("--run-dir", run_dir.display().to_string()),
            ] {
                all.extend([flag.to_owned(), value]);
            }
            all.extend_from_slice(args);
            let log = directory.join(format!("{name}.log"));
            programs.push(
                Program::start(
                    &format!("adit {name}"),
                    net.node(number),
                    &binary,
                    &all,
                    &log,
                )
                .with_context(|| format!("cannot start {}", binary.display()))?,
            );
        }
        for (number, program) in (1..).zip(&mut programs) {
            program.await_ready(|| get(net.node(number), 15021, "/healthz/ready").is_ok())?;
        }
        Ok(Self { programs, source })
    }

    /// Their process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.programs.iter().map(Program::pid).collect()
    }
}

/// The body of a page of a daemon, if the answer is 200.
pub(crate) fn get(node: &Netns, port: u16, path: &str) -> Result<String> {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let second = Duration::from_secs(1);
    let mut stream = node.enter(|| TcpStream::connect_timeout(&to, second))?;
    stream.set_read_timeout(Some(5 * second))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nhost: adit\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("that is not HTTP")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{path} answers {head}");
    Ok(body.to_owned())
}
