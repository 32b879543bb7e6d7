//! What carries the connections: each has three pods of its own in the one network, a client and a
//! server near it on node 1, and a server far from it on node 2.

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::echo::{self, Servers};
use crate::support::adit::Daemons;
use crate::support::child::{self, Program};
use crate::support::envoy::{self, Authority, Credential, Sidecar, Tunnel};
use crate::support::net::{Net, Pod};

/// Where Envoy takes tunnels.
const TUNNEL: u16 = 15008;
/// What is added to a port for the listener of a client's sidecar that leads to the near server.
const NEAR: u16 = 1000;

/// Which carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Nothing between the pods but the kernel.
    Direct,
    /// One `adit node` per node.
    Adit,
    /// One Envoy per pod.
    Envoy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct TCP",
            Self::Adit => "Adit",
            Self::Envoy => "Envoy",
        })
    }
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the client's node.
    Near,
    /// On the other one.
    Far,
}

/// How carriers are started.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) directory: PathBuf,
    pub(crate) workers: usize,
    pub(crate) adit: Vec<String>,
}

/// A carrier with its pods and the servers in them.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub(crate) kind: Kind,
    client: Arc<Pod>,
    near: (Arc<Pod>, Servers),
    far: (Arc<Pod>, Servers),
    running: Running,
}

#[derive(Debug)]
enum Running {
    Nothing,
    Adit(Daemons),
    Envoy(Vec<Program>),
}

impl Carrier {
    /// Makes the pods and starts the servers in them.
    pub(crate) fn create(kind: Kind, net: &mut Net) -> Result<Self> {
        let enrolled = kind == Kind::Adit;
        let prefix = match kind {
            Kind::Direct => "direct",
            Kind::Adit => "adit",
            Kind::Envoy => "envoy",
        };
        let mut pod = |node, name| net.pod(node, &format!("{prefix}-{name}"), enrolled);
        let (client, near, far) = (pod(1, "client")?, pod(1, "near")?, pod(2, "far")?);
        let serve = |pod: Arc<Pod>| -> Result<_> {
            let servers = Servers::start(&pod.netns)?;
            Ok((pod, servers))
        };
        Ok(Self {
            kind,
            client,
            near: serve(near)?,
            far: serve(far)?,
            running: Running::Nothing,
        })
    }

    /// Starts its programs, ending those of before, and waits until both servers can be reached.
    pub(crate) fn start(&mut self, net: &Net, options: &Options) -> Result<()> {
        self.running = Running::Nothing;
        self.running = match self.kind {
            Kind::Direct => Running::Nothing,
            Kind::Adit => {
                let mut args = vec![format!("--workers={}", options.workers)];
                args.extend_from_slice(&options.adit);
                Running::Adit(Daemons::start(net, &options.directory, &args)?)
            }
            Kind::Envoy => Running::Envoy(self.sidecars(options)?),
        };
        for place in [Place::Near, Place::Far] {
            self.await_path(place)
                .with_context(|| format!("{} to {place:?}:\n{}", self.kind, self.words()))?;
        }
        Ok(())
    }

    /// Where a client dials to reach a port of a server.
    pub(crate) fn address(&self, place: Place, port: u16) -> SocketAddr {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match (self.kind, place) {
            (Kind::Envoy, Place::Far) => (loopback, port).into(),
            (Kind::Envoy, Place::Near) => (loopback, port + NEAR).into(),
            (_, Place::Far) => (self.far.0.v4, port).into(),
            (_, Place::Near) => (self.near.0.v4, port).into(),
        }
    }

    /// The pod of the clients.
    pub(crate) fn client(&self) -> &Pod {
        &self.client
    }

    /// The pod of a server.
    pub(crate) fn server(&self, place: Place) -> &Pod {
        match place {
            Place::Near => &self.near.0,
            Place::Far => &self.far.0,
        }
    }

    /// The servers of a place.
    pub(crate) fn servers(&self, place: Place) -> &Servers {
        match place {
            Place::Near => &self.near.1,
            Place::Far => &self.far.1,
        }
    }

    /// Processor time that its programs have used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.pids().into_iter().map(child::cpu).sum()
    }

    /// Memory that the programs of the client's and the far server's side hold, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.pids().into_iter().map(child::rss).sum()
    }

    /// How many descriptors its programs hold.
    pub(crate) fn descriptors(&self) -> Result<usize> {
        let pids = self.pids().into_iter();
        pids.map(child::descriptors).sum()
    }

    /// The last words of its programs.
    pub(crate) fn words(&self) -> String {
        let programs = match &self.running {
            Running::Nothing => return String::new(),
            Running::Adit(daemons) => &daemons.programs,
            Running::Envoy(sidecars) => sidecars,
        };
        let words: Vec<_> = programs.iter().map(Program::words).collect();
        words.join("\n--\n")
    }

    fn pids(&self) -> Vec<u32> {
        match &self.running {
            Running::Nothing => Vec::new(),
            Running::Adit(daemons) => daemons.pids(),
            Running::Envoy(sidecars) => sidecars.iter().map(Program::pid).collect(),
        }
    }

    fn sidecars(&self, options: &Options) -> Result<Vec<Program>> {
        let binary = envoy::binary()?;
        let authority = Authority::create(&options.directory)?;
        let mut tunnels = Vec::new();
        for (place, (pod, _)) in [(Place::Near, &self.near), (Place::Far, &self.far)] {
            tunnels.extend(echo::ports().map(|port| Tunnel {
                listen: self.address(place, port),
                to: (pod.v4, port).into(),
                via: (pod.v4, TUNNEL).into(),
                expect: pod.identity(),
            }));
        }
        let mut sidecars = Vec::new();
        for pod in [&self.client, &self.near.0, &self.far.0] {
            let credential: Credential = authority.issue(&pod.identity(), &pod.name)?;
            let sidecar = Sidecar {
                credential: &credential,
                trusts: "cluster.local",
                log: None,
            };
            let configuration = if Arc::ptr_eq(pod, &self.client) {
                sidecar.client(&tunnels)
            } else {
                sidecar.server((pod.v4, TUNNEL).into())
            };
            let path = options.directory.join(format!("{}.json", pod.name));
            envoy::write(&path, &configuration)?;
            sidecars.push(Program::start(
                &format!("envoy of {}", pod.name),
                &pod.netns,
                &binary,
                &envoy::arguments(&path, options.workers),
                &options.directory.join(format!("{}.log", pod.name)),
            )?);
        }
        Ok(sidecars)
    }

    /// Waits until one exchange succeeds.
    fn await_path(&self, place: Place) -> Result<()> {
        let to = self.address(place, echo::BLOCKING);
        let patience = Duration::from_secs(2);
        let exchange = || -> Result<()> {
            let mut stream = TcpStream::connect_timeout(&to, patience)?;
            stream.set_read_timeout(Some(patience))?;
            stream.write_all(b"?")?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            ensure!(answer == *b"?", "that is no echo");
            Ok(())
        };
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match self.client.netns.enter(exchange) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}
