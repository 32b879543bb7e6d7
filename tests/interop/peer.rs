//! The peers as programs: started in a pod, asked what they have seen, and ended.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::envoy::{self, Credential, Sidecar, Tunnel};
use crate::support::{Lab, Pod, within};

/// How long a peer may take to start or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A command that runs in a pod, and ends with this process.
fn inside(pod: &Pod, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", pod.netns().path().display()))
        .args(["setpriv", "--pdeathsig", "KILL"])
        .arg(program);
    command
}

/// A child that is killed with this, and whose words are shown when the test has failed.
#[derive(Debug)]
struct Program {
    child: Child,
    words: PathBuf,
}

impl Program {
    fn start(mut command: Command, words: &Path) -> Self {
        let file = File::create(words).expect("the lab's directory is writable");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor is free"))
            .stderr(file)
            .spawn()
            .expect("nsenter (util-linux) can be run");
        let words = words.to_owned();
        Self { child, words }
    }

    fn words(&self) -> String {
        std::fs::read_to_string(&self.words).unwrap_or_default()
    }

    #[track_caller]
    fn await_port(&mut self, pod: &Pod, port: u16) {
        within(PATIENCE, "the peer listens", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the peer ended at its start, {status}:\n{}", self.words());
            }
            let sockets = pod.netns().run("ss", &["-Hltn"]);
            let end = format!(":{port} ");
            if sockets.contains(&end) {
                Ok(())
            } else {
                Err(sockets)
            }
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the peer's words:\n{}", self.words());
        }
    }
}

/// A running Envoy.
#[derive(Debug)]
pub(crate) struct Envoy {
    _program: Program,
    log: PathBuf,
}

impl Envoy {
    /// One that opens tunnels.
    pub(crate) fn client(lab: &Lab, pod: &Pod, credential: &Credential, tunnel: &Tunnel) -> Self {
        Self::start(
            lab,
            pod,
            credential,
            "cluster.local",
            tunnel.listen.port(),
            |sidecar| sidecar.client(std::slice::from_ref(tunnel)),
        )
    }

    /// One that takes tunnels of clients of the trust domain `trusts`.
    pub(crate) fn server(lab: &Lab, pod: &Pod, credential: &Credential, trusts: &str) -> Self {
        let at = pod.at(crate::TUNNEL);
        Self::start(lab, pod, credential, trusts, at.port(), |sidecar| {
            sidecar.server(at)
        })
    }

    fn start(
        lab: &Lab,
        pod: &Pod,
        credential: &Credential,
        trusts: &str,
        port: u16,
        configuration: impl FnOnce(&Sidecar<'_>) -> serde_json::Value,
    ) -> Self {
        let binary = envoy::binary().unwrap_or_else(|e| panic!("{e}"));
        let (log, path) = (
            lab.dir().join("envoy-access.log"),
            lab.dir().join("envoy.json"),
        );
        let sidecar = Sidecar {
            credential,
            trusts,
            log: Some(&log),
        };
        envoy::write(&path, &configuration(&sidecar)).expect("the lab's directory is writable");
        let mut command = inside(pod, &binary);
        command.args(envoy::arguments(&path, 1));
        let mut program = Program::start(command, &lab.dir().join("envoy.log"));
        program.await_port(pod, port);
        Self {
            _program: program,
            log,
        }
    }

    /// Waits for a line of its access log that holds all of `words`. It writes them with a delay.
    #[track_caller]
    pub(crate) fn logs(&self, words: &[&str]) {
        within(PATIENCE, &format!("Envoy logs {words:?}"), || {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let found = log
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)));
            if found { Ok(()) } else { Err(log) }
        });
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/interop")
        .join(name)
}

/// Node.js with one of the scripts.
fn node(pod: &Pod, name: &str, credential: &Credential) -> Command {
    let mut command = inside(pod, Path::new("node"));
    command
        .arg(script(name))
        .args([&credential.root, &credential.certificate, &credential.key]);
    command
}

/// What a client on Node.js has got.
#[derive(Debug)]
pub(crate) struct NodeClient {
    pub(crate) received: Vec<u8>,
    pub(crate) said: String,
}

impl NodeClient {
    /// Sends `bytes` through a tunnel, ends, and reads to the end.
    pub(crate) fn run(pod: &Pod, credential: &Credential, tunnel: &Tunnel, bytes: &[u8]) -> Self {
        let mut child = node(pod, "client.mjs", credential)
            .args([tunnel.via.ip().to_string(), tunnel.via.port().to_string()])
            .args([tunnel.to.to_string(), tunnel.expect.clone()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter (util-linux) can be run");
        let mut stdin = child.stdin.take().expect("it is piped");
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A client that has failed reads nothing; what it says tells why.
                let _ = stdin.write_all(bytes);
            });
            child.wait_with_output().expect("it ends")
        });
        Self {
            received: output.stdout,
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A running server on Node.js.
#[derive(Debug)]
pub(crate) struct NodeServer(Program);

impl NodeServer {
    /// Takes tunnels in the pod.
    pub(crate) fn start(lab: &Lab, pod: &Pod, credential: &Credential) -> Self {
        let mut command = node(pod, "server.mjs", credential);
        command.args([pod.ip().to_string(), crate::TUNNEL.to_string()]);
        let mut program = Program::start(command, &lab.dir().join("node.log"));
        program.await_port(pod, crate::TUNNEL);
        Self(program)
    }

    /// What it has printed.
    pub(crate) fn said(&self) -> String {
        self.0.words()
    }
}
