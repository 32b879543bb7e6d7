//! The mesh is over: the daemon's own namespace is deleted, and whatever daemons there are at that
//! moment leave nothing on the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::marks::{becomes, server};
use crate::runtime::{Pod, Runtime, Sandbox, lab};
use crate::support;
use crate::support::apiserver::ApiServer;
use crate::support::{Conn, Daemon, Lab, Launch, Outcome, Played, holds_for, within};

const SOON: Duration = Duration::from_secs(15);

/// A node on which a daemon has installed the plugin, with one captured pod.
struct World {
    lab: Lab,
    server: ApiServer,
    bin: PathBuf,
    conf: PathBuf,
    flags: Vec<String>,
    sandbox: Sandbox,
    first: Daemon,
    /// Somewhere else, outside of the mesh.
    far: support::Pod,
}

impl World {
    fn new() -> Self {
        let mut lab = lab();
        let far = lab.stranger(2, "far");
        let server = server(&lab);
        server.put(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "adit-system" },
        }));
        let [bin, conf] = ["bin", "conf"].map(|name| {
            let directory = lab.dir().join(name);
            std::fs::create_dir(&directory).expect("the lab's directory is writable");
            directory
        });
        let primary = Runtime::new(&lab).primary().to_string();
        std::fs::write(conf.join("10-pods.conflist"), primary).expect("it is writable");
        let kubeconfig = lab.dir().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig("{}")).expect("it is writable");
        let pairs = [
            ("--kubeconfig", &kubeconfig),
            ("--cni-bin-dir", &bin),
            ("--cni-conf-dir", &conf),
        ];
        let flag =
            |(flag, path): (&str, &PathBuf)| [flag.to_owned(), path.to_string_lossy().into_owned()];
        let flags: Vec<_> = pairs.into_iter().flat_map(flag).collect();
        let pod = Pod::new("mesh", "a");
        server.put(pod.object(&[]));
        let first = with(&flags, lab.launch(1)).start();
        within(SOON, "the plugin is installed", || {
            // By its name: what is written there before it is moved into place is a file as well.
            match files(&conf) {
                found if found[0] == "00-adit.conflist" => Ok(()),
                found => Err(found),
            }
        });
        let runtime = Runtime::installed(&lab, &bin, &conf);
        let sandbox = Sandbox::new(&pod);
        within(SOON, "the pod starts", || runtime.add(&sandbox));
        becomes(&server, "a", &json!("enabled"));
        Self {
            lab,
            server,
            bin,
            conf,
            flags,
            sandbox,
            first,
            far,
        }
    }

    /// How another daemon of the node is started.
    fn successor(&self) -> Launch {
        with(&self.flags, self.lab.successor(1))
    }

    fn run_dir(&self) -> PathBuf {
        self.lab.launch(1).run_dir
    }

    /// The namespace is being deleted, as the API server says it of one that still has pods.
    fn is_over(&self) {
        self.server
            .edit("v1", "Namespace", "", "adit-system", |namespace| {
                namespace["metadata"]["deletionTimestamp"] = json!("2026-01-05T10:01:24Z");
            });
    }

    /// Ends the daemons, as the runtime does, and holds that nothing is left of them.
    #[track_caller]
    fn leaves_nothing(self, next: Option<Daemon>) {
        let all = std::iter::once(&self.first).chain(&next);
        all.for_each(|daemon| daemon.signal(Signal::SIGTERM));
        self.left_nothing(next);
    }

    /// The same, of daemons that were told to end.
    #[track_caller]
    fn left_nothing(mut self, mut next: Option<Daemon>) {
        let all = std::iter::once(&mut self.first).chain(&mut next);
        all.for_each(|daemon| _ = daemon.await_end(SOON * 2));
        assert!(!self.sandbox.is_captured());
        becomes(&self.server, "a", &Value::Null);
        assert_eq!(files(&self.conf), ["10-pods.conflist"]);
        assert_eq!(files(&self.bin), ["bridge", "host-local"]);
        assert_eq!(files(&self.run_dir()), [""; 0]);
    }
}

fn with(flags: &[String], launch: Launch) -> Launch {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    launch.source("kube").args(&flags)
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("it is there").flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().into_string()).collect();
    names.sort();
    names.into_iter().flatten().collect()
}

#[test]
fn a_daemon_whose_namespace_is_deleted_leaves_nothing_on_the_node() {
    let world = World::new();
    world.is_over();
    becomes(&world.server, "a", &Value::Null);
    world.leaves_nothing(None);
}

#[test]
fn two_daemons_leave_nothing_before_the_second_has_taken_over() {
    // Both are told to end at once, or the second comes when the first leaves already.
    for late in [false, true] {
        let world = World::new();
        let begin = || {
            // Nobody signs its certificates.
            let next = world.successor().args(&["--ca", "https://127.0.0.1:1"]);
            let next = next.spawn();
            next.says(&["another daemon runs"]);
            next
        };
        let early = (!late).then(begin);
        world.is_over();
        let next = early.unwrap_or_else(begin);
        world.leaves_nothing(Some(next));
    }
}

#[test]
fn two_daemons_leave_nothing_after_the_second_has_taken_over() {
    let world = World::new();
    let _server = world.far.greet(8080);
    let to = world.far.at(8080);
    let conn = Conn::dial(&world.sandbox.netns, None, to, SOON).expect("it is served");
    conn.line().expect("it is greeted");
    let mut next = world.successor().spawn();
    next.says(&["taken over"]);
    next.await_ready();
    world.is_over();
    becomes(&world.server, "a", &Value::Null);
    // The first carries it yet.
    holds_for(Duration::from_secs(2), "it goes on", || {
        conn.echoes(b"begun before").is_ok()
    });
    conn.finish();
    assert_eq!(conn.ending(), Outcome::Closed);
    world.leaves_nothing(Some(next));
}

#[test]
fn a_daemon_leaves_nothing_though_the_next_dies_in_the_middle() {
    for words in 0..3 {
        let world = World::new();
        let (next, answer) = Played::greet(&world.run_dir(), &[1]);
        assert_eq!(answer["say"], "welcome", "{answer}");
        let descriptors = (words > 0).then(|| next.inventory());
        if words > 1 {
            next.say(&json!({ "say": "take" }));
            assert_eq!(next.hear().0["say"], "yours");
        }
        world.is_over();
        world
            .first
            .says(&["the daemon's namespace is being deleted"]);
        world.first.signal(Signal::SIGTERM);
        // A second signal would end it at once.
        drop((next, descriptors));
        world.left_nothing(None);
    }
}
