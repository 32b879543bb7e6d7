//! A cluster without nodes: the API server with its tokens and pods, and replicas of `adit control`.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::caller::Caller;
use crate::support::apiserver::{ApiServer, Options};
use crate::support::{Namespace, eventually, poll};

/// The program under test.
const ADIT: &str = env!("CARGO_BIN_EXE_adit");
/// How long a replica may take until it is ready.
pub(crate) const START: Duration = Duration::from_secs(15);
/// How soon a replica sees a change of the Secret, the ConfigMap or its files.
pub(crate) const SOON: Duration = Duration::from_secs(12);

/// Token to the status of its review.
type Tokens = Arc<Mutex<BTreeMap<String, Value>>>;

/// The whole, before the fake server. Everything goes when it is dropped.
pub(crate) struct Bed {
    pub(crate) api: ApiServer,
    pub(crate) place: Place,
    tokens: Tokens,
}

/// Where replicas run: their files, and the network that they are in.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    namespace: Option<Arc<Namespace>>,
}

impl Bed {
    /// An empty cluster on this machine's loopback.
    pub(crate) fn new() -> Self {
        Self::within(None)
    }

    /// An empty cluster whose API server and replicas are in a namespace.
    pub(crate) fn within(namespace: Option<Arc<Namespace>>) -> Self {
        let tokens = Tokens::default();
        let api = ApiServer::start(Options {
            tls: true,
            namespace: namespace.clone(),
            ..Options::default()
        });
        let known = tokens.clone();
        api.review(Arc::new(move |token, audiences| {
            let known = known.lock().expect("no test panics while it holds this");
            match known.get(token) {
                Some(status) => answer(status, audiences),
                None => json!({ "authenticated": false, "error": "unknown token" }),
            }
        }));
        let place = Place::new(&api.kubeconfig("{token: control}"), namespace);
        let bed = Self { api, place, tokens };
        bed.node("worker-1");
        bed.node("worker-2");
        bed
    }

    /// A cluster with a pod of `shop/cart` on worker-1, and a replica.
    #[track_caller]
    pub(crate) fn shop() -> (Self, Control) {
        let bed = Self::new();
        bed.pod("worker-1", "shop", "cart-1", "cart");
        let control = bed.start("control", &[]);
        (bed, control)
    }

    /// Where a path of this test is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// Starts a replica with further arguments, and does not wait.
    pub(crate) fn spawn(&self, name: &str, args: &[&str]) -> Control {
        self.place.spawn(name, args)
    }

    /// The same, on these ports: of requests, metrics and readiness.
    pub(crate) fn spawn_at(&self, name: &str, ports: [u16; 3], args: &[&str]) -> Control {
        self.place.spawn_at(name, ports, args)
    }

    /// Starts a replica and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, args: &[&str]) -> Control {
        self.place.start(name, args)
    }

    /// Runs `adit ca STEP`; whether it was done, and everything that it printed.
    pub(crate) fn ca(&self, step: &str) -> (bool, String) {
        self.place.ca(step)
    }

    /// Gives a token a meaning: the status of its TokenReview. The audiences in it are those that
    /// it was made for.
    pub(crate) fn token(&self, token: &str, status: Value) {
        let mut tokens = self
            .tokens
            .lock()
            .expect("no test panics while it holds this");
        tokens.insert(token.to_owned(), status);
    }

    /// Gives the token `NODE-token` the meaning that the daemon's token on that node has.
    pub(crate) fn node(&self, node: &str) {
        self.token(&format!("{node}-token"), daemon(node));
    }

    /// Puts a running pod on a node.
    pub(crate) fn pod(&self, node: &str, namespace: &str, name: &str, account: &str) {
        self.api.put(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name },
            "spec": { "nodeName": node, "serviceAccountName": account, "containers": [] },
            "status": { "phase": "Running" },
        }));
    }

    /// The published roots; empty before they are.
    pub(crate) fn bundle(&self) -> String {
        let map = self
            .api
            .object("v1", "ConfigMap", "adit-system", "adit-ca-root");
        let bundle = map.map(|map| map["data"]["root-cert.pem"].clone());
        let bundle = bundle.and_then(|text| text.as_str().map(str::to_owned));
        bundle.unwrap_or_default()
    }

    /// The Secret.
    pub(crate) fn secret(&self) -> Option<Value> {
        self.api.object("v1", "Secret", "adit-system", "adit-ca")
    }

    /// What the Secret holds, by name.
    #[track_caller]
    pub(crate) fn secret_keys(&self) -> Vec<String> {
        let secret = self.secret().expect("it is there");
        let data = secret["data"].as_object().expect("it has data");
        data.keys().cloned().collect()
    }

    /// Somebody who asks a replica, with the roots published now and the token of worker-1.
    pub(crate) fn caller(&self, control: &Control) -> Caller {
        Caller::new(control.address(), &self.bundle(), "worker-1-token")
    }
}

impl Place {
    /// Where replicas find their API server by this kubeconfig.
    pub(crate) fn new(kubeconfig: &str, namespace: Option<Arc<Namespace>>) -> Self {
        let dir = tempfile::Builder::new().prefix("adit-ca-").tempdir();
        let dir = dir.expect("the temporary directory is writable");
        let place = Self { dir, namespace };
        std::fs::write(place.kubeconfig(), kubeconfig).expect("the directory is writable");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// The program under test, to be run here.
    fn program(&self) -> Command {
        let mut command = match &self.namespace {
            None => Command::new("setpriv"),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace.path().display()));
                command.arg("setpriv");
                command
            }
        };
        // Both replace themselves, so that the child's id is the program's own; and the kernel ends
        // it with the test, however that ends.
        command.args(["--pdeathsig", "KILL", ADIT]);
        command
    }

    /// Starts a replica with further arguments, and does not wait.
    pub(crate) fn spawn(&self, name: &str, args: &[&str]) -> Control {
        let ports = free_ports(self.namespace.as_deref());
        self.spawn_at(name, ports, args)
    }

    /// The same, on these ports: of requests, metrics and readiness.
    pub(crate) fn spawn_at(&self, name: &str, ports: [u16; 3], args: &[&str]) -> Control {
        let log = self.path(&format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.expect("the directory is writable");
        let mut command = self.program();
        let on = |port| SocketAddr::from(([0, 0, 0, 0], port)).to_string();
        command
            .args(["control", "--log-format", "json", "--name", "127.0.0.1"])
            .args(["--namespace", "adit-system"])
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--listen", &on(ports[0]), "--metrics", &on(ports[1])])
            .args(["--ready", &on(ports[2])])
            .args(args);
        clean(&mut command);
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor is free"))
            .stderr(file)
            .spawn()
            .expect("setpriv (util-linux) can be run");
        Control {
            name: name.to_owned(),
            child,
            log,
            ports,
            namespace: self.namespace.clone(),
        }
    }

    /// Starts a replica and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, args: &[&str]) -> Control {
        let mut control = self.spawn(name, args);
        control.await_ready();
        control
    }

    /// Runs `adit ca STEP`; whether it was done, and everything that it printed.
    pub(crate) fn ca(&self, step: &str) -> (bool, String) {
        let mut command = self.program();
        command
            .args(["ca", step, "--namespace", "adit-system", "--kubeconfig"])
            .arg(self.kubeconfig());
        clean(&mut command);
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().expect("the program under test is built");
        let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        (status.success(), text)
    }
}

/// The review of the token that the node's daemon has.
pub(crate) fn daemon(node: &str) -> Value {
    json!({
        "authenticated": true,
        "audiences": ["adit-ca"],
        "user": {
            "username": "system:serviceaccount:adit-system:adit-node",
            "uid": "9b1c",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/node-name": [node],
                "authentication.kubernetes.io/node-uid": ["77aa"],
                "authentication.kubernetes.io/pod-name": [format!("adit-node-{node}")],
                "authentication.kubernetes.io/pod-uid": ["31d0"],
            },
        },
    })
}

/// As the server answers: of the audiences that were asked for, those that the token is for; not
/// authenticated when there is none.
fn answer(status: &Value, asked: &[String]) -> Value {
    let mut status = status.clone();
    if status["authenticated"] != true {
        return status;
    }
    let made = status["audiences"].as_array().cloned().unwrap_or_default();
    let both: Vec<_> = made
        .into_iter()
        .filter(|audience| asked.iter().any(|asked| *audience == json!(asked)))
        .collect();
    if both.is_empty() && status["ignores audiences"].is_null() {
        return json!({ "authenticated": false, "error": "token audiences do not fit" });
    }
    if let Some(map) = status.as_object_mut() {
        map.remove("ignores audiences");
        map.insert("audiences".to_owned(), json!(both));
    }
    status
}

/// Ports that are free, and below those of which the kernel gives any connection one: a replica
/// binds them some time later, while other tests connect.
fn free_ports(namespace: Option<&Namespace>) -> [u16; 3] {
    let draw = || {
        let random = RandomState::new().hash_one(0) % 20_000;
        12_000 + u16::try_from(random).expect("it is less")
    };
    let bind = || TcpListener::bind(("0.0.0.0", draw())).ok();
    let find = || {
        let bound = [(); 3].map(|()| (0..1000).find_map(|_| bind()).expect("a port is free"));
        bound.map(|listener| listener.local_addr().expect("it is bound").port())
    };
    match namespace {
        Some(namespace) => namespace.enter(find),
        None => find(),
    }
}

/// Takes away what could steer the program from outside the test.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy().into_owned();
        if known.starts_with("ADIT_") || known.starts_with("KUBE") || known == "POD_NAMESPACE" {
            command.env_remove(name);
        }
    }
    command.env_remove("HOME");
}

/// A running replica. It is killed when dropped; its log is shown when the test has failed.
pub(crate) struct Control {
    name: String,
    child: Child,
    log: PathBuf,
    ports: [u16; 3],
    namespace: Option<Arc<Namespace>>,
}

impl Control {
    /// Where certificates are asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[0]))
    }

    /// Its ports, for one that takes its place.
    pub(crate) fn ports(&self) -> [u16; 3] {
        self.ports
    }

    /// Whether it says that it is ready, and what else it says.
    pub(crate) fn ready(&self) -> (bool, String) {
        match self.get(self.ports[2], "/healthz/ready") {
            Ok(answer) => (answer.starts_with("HTTP/1.1 200"), answer),
            Err(error) => (false, error.to_string()),
        }
    }

    /// Waits until it is ready.
    #[track_caller]
    pub(crate) fn await_ready(&mut self) {
        let ready = poll(START, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended: {status}\n{}", self.name, self.text());
            }
            self.ready().0.then_some(())
        });
        assert!(
            ready.is_some(),
            "{} is not ready: {}",
            self.name,
            self.ready().1
        );
    }

    /// The value of a metric; 0 without one.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let page = self
            .get(self.ports[1], "/metrics")
            .expect("metrics are served");
        let value = page
            .lines()
            .find_map(|l| l.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }

    fn get(&self, port: u16, path: &str) -> std::io::Result<String> {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        match &self.namespace {
            Some(namespace) => namespace.enter(ask),
            None => ask(),
        }
    }

    /// Everything that it has printed.
    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The records with this message, oldest first.
    pub(crate) fn records(&self, message: &str) -> Vec<Value> {
        let text = self.text();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    }

    /// Waits for a record with this message of which `fits` holds.
    #[track_caller]
    pub(crate) fn await_record(&self, message: &str, fits: impl Fn(&Value) -> bool) {
        eventually(SOON, &format!("{} says {message:?}", self.name), || {
            self.records(message).iter().any(&fits)
        });
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid is positive");
        kill(Pid::from_raw(pid), signal).expect("it is our child");
    }

    /// Whether it has ended well.
    pub(crate) fn ended(&mut self) -> Option<bool> {
        let ended = self.child.try_wait().expect("it is our child");
        ended.map(|status| status.success())
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let text = self.text();
            let lines: Vec<_> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- log of {}:\n{}", self.name, tail.join("\n"));
        }
    }
}

/// Replaces a file as the kubelet does: readers see the old one or the new one.
pub(crate) fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).expect("the directory is writable");
    std::fs::rename(&new, path).expect("both are in one directory");
}
