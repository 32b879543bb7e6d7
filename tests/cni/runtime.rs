//! A container runtime, as far as networks go: sandboxes, and a chain of plugins executed for each
//! (CNI specification, sections 3 to 5).

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Lab, Namespace, Outcome, program};

/// Where Debian has the others.
const OTHERS: &str = "/usr/lib/cni";

static COUNTER: AtomicU32 = AtomicU32::new(1);

/// A pod as kubelet knows it before there is a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Further labels.
    pub(crate) labels: Vec<(String, String)>,
}

impl Pod {
    /// A pod with a UID of its own.
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("{process:08x}-b29f-41e7-9350-{number:012x}"),
            labels: Vec::new(),
        }
    }

    /// Its object on node 1, with the addresses that the index is to know.
    pub(crate) fn object(&self, ips: &[IpAddr]) -> Value {
        let labels: serde_json::Map<_, _> = self
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        let ips: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let phase = if ips.is_empty() { "Pending" } else { "Running" };
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": labels,
            },
            "spec": { "nodeName": "node1", "serviceAccountName": self.name },
            "status": { "phase": phase, "podIPs": ips },
        })
    }
}

/// A sandbox: a network namespace with a container id.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) pod: Pod,
    pub(crate) id: String,
    pub(crate) netns: Namespace,
}

impl Sandbox {
    /// A fresh one for this pod.
    pub(crate) fn new(pod: &Pod) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self {
            pod: pod.clone(),
            id: format!("{:x}c{number:x}", std::process::id()),
            netns: Namespace::new(&pod.name),
        }
    }

    /// Whether our rules stand in it.
    pub(crate) fn is_captured(&self) -> bool {
        let tables = self.netns.run("nft", &["list", "tables"]);
        tables.contains("table inet adit")
    }

    /// Calls a greeter from inside.
    pub(crate) fn call(&self, to: SocketAddr) -> Outcome {
        Outcome::of_call(&self.netns, to, Duration::from_secs(10))
    }
}

/// What a plugin that failed has said.
#[derive(Clone, Debug)]
pub(crate) struct Fault(pub(crate) Value);

impl Fault {
    /// Its code.
    pub(crate) fn code(&self) -> u64 {
        self.0["code"].as_u64().unwrap_or_default()
    }

    /// Its message and details.
    pub(crate) fn text(&self) -> String {
        let text = |key: &str| self.0[key].as_str().unwrap_or_default().to_owned();
        format!("{}: {}", text("msg"), text("details"))
    }
}

/// The result of a chain.
pub(crate) type Done = Result<Added, Fault>;

/// What ADD of a chain gave.
#[derive(Clone, Debug)]
pub(crate) struct Added {
    /// The result of each plugin, as it was printed.
    pub(crate) results: Vec<String>,
}

impl Added {
    /// The result of the chain, understood.
    pub(crate) fn result(&self) -> Value {
        let last = self.results.last().expect("a chain has plugins");
        serde_json::from_str(last).expect("a result is JSON")
    }

    /// The addresses given.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        let ips = self.result()["ips"].as_array().cloned().unwrap_or_default();
        let one = |ip: &Value| {
            let text = ip["address"].as_str()?;
            text.split('/').next()?.parse().ok()
        };
        ips.iter().filter_map(one).collect()
    }
}

/// A runtime on node 1 of a lab.
#[derive(Debug)]
pub(crate) struct Runtime {
    node: String,
    bin: tempfile::TempDir,
    /// Another directory of plugins.
    installed: Option<PathBuf>,
    version: String,
    plugins: Vec<Value>,
}

impl Runtime {
    /// A runtime with the chain bridge, host-local, adit.
    pub(crate) fn new(lab: &Lab) -> Self {
        let bin = tempfile::tempdir().expect("the temporary directory is writable");
        for plugin in ["bridge", "host-local"] {
            let from = Path::new(OTHERS).join(plugin);
            assert!(
                from.exists(),
                "no {from:?}: ./scripts/test installs containernetworking-plugins"
            );
            std::os::unix::fs::symlink(from, bin.path().join(plugin)).expect("it is writable");
        }
        std::os::unix::fs::symlink(program(), bin.path().join("adit")).expect("it is writable");
        let run_dir = lab.dir().join("run/node1");
        let bridge = json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": bin.path().join("ipam"),
                "ranges": [[{ "subnet": "10.2.1.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        Self {
            node: lab.node(1).netns().name().to_owned(),
            version: "1.0.0".to_owned(),
            plugins: vec![bridge, json!({ "type": "adit", "runDir": run_dir })],
            bin,
            installed: None,
        }
    }

    /// A runtime that finds its plugins in these directories, as daemons and people leave them.
    pub(crate) fn installed(lab: &Lab, bin: &Path, conf: &Path) -> Self {
        let mut runtime = Self::new(lab);
        for plugin in ["bridge", "host-local"] {
            let _ = std::os::unix::fs::symlink(Path::new(OTHERS).join(plugin), bin.join(plugin));
        }
        runtime.installed = Some(bin.to_owned());
        let first = std::fs::read_dir(conf)
            .expect("there is configuration")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|end| end == "conflist"))
            .min()
            .expect("there is a list");
        let list = std::fs::read_to_string(first).expect("it is readable");
        let list: Value = serde_json::from_str(&list).expect("it is JSON");
        runtime.plugins = list["plugins"].as_array().cloned().unwrap_or_default();
        runtime
    }

    /// Its chain but for us, as a list.
    pub(crate) fn primary(&self) -> Value {
        json!({ "cniVersion": self.version, "name": "pods", "plugins": [self.plugins[0]] })
    }

    /// Speaks another version of the specification.
    pub(crate) fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// Our entry in the chain.
    pub(crate) fn entry(&mut self) -> &mut Value {
        self.plugins.last_mut().expect("adit is the last")
    }

    /// Makes the sandbox's network; what a chain that failed has made is removed.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Done {
        let mut results = Vec::<String>::new();
        for plugin in &self.plugins {
            let previous = results.last().map(String::as_str);
            match self.execute(plugin, "ADD", Some(sandbox), previous, &[]) {
                Ok(result) => results.push(result),
                Err(fault) => {
                    self.del(sandbox);
                    return Err(fault);
                }
            }
        }
        Ok(Added { results })
    }

    /// Removes the sandbox's network.
    pub(crate) fn del(&self, sandbox: &Sandbox) {
        for plugin in self.plugins.iter().rev() {
            let done = self.execute(plugin, "DEL", Some(sandbox), None, &[]);
            assert!(done.is_ok(), "DEL never fails: {done:?}");
        }
    }

    /// Asks our plugin alone.
    pub(crate) fn ask(
        &self,
        verb: &str,
        sandbox: Option<&Sandbox>,
        previous: Option<&str>,
        more: &[(&str, Value)],
    ) -> Result<String, Fault> {
        let plugin = self.plugins.last().expect("adit is the last");
        self.execute(plugin, verb, sandbox, previous, more)
    }

    fn execute(
        &self,
        plugin: &Value,
        verb: &str,
        sandbox: Option<&Sandbox>,
        previous: Option<&str>,
        more: &[(&str, Value)],
    ) -> Result<String, Fault> {
        let mut configuration = plugin.clone();
        configuration["cniVersion"] = json!(self.version);
        configuration["name"] = json!("pods");
        for (key, value) in more {
            configuration[*key] = value.clone();
        }
        let mut text = configuration.to_string();
        if let Some(previous) = previous {
            // As it was written, byte for byte.
            text.pop();
            text += &format!(",\"prevResult\":{previous}}}");
        }
        let kind = plugin["type"].as_str().expect("plugins have a type");
        let bin = self.installed.as_deref().unwrap_or(self.bin.path());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.node))
            .arg(bin.join(kind))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", bin);
        if let Some(sandbox) = sandbox {
            let Pod {
                namespace,
                name,
                uid,
                ..
            } = &sandbox.pod;
            let id = &sandbox.id;
            command
                .env("CNI_CONTAINERID", id)
                .env("CNI_NETNS", sandbox.netns.path())
                .env("CNI_IFNAME", "eth0")
                .env(
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                         K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
                    ),
                );
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter (util-linux) can be run");
        let mut input = child.stdin.take().expect("it is piped");
        input.write_all(text.as_bytes()).expect("plugins read");
        drop(input);
        let output = child.wait_with_output().expect("plugins end");
        let printed = String::from_utf8(output.stdout).expect("results are text");
        if output.status.success() {
            return Ok(printed);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let fault = serde_json::from_str(&printed);
        Err(Fault(fault.unwrap_or_else(|e| {
            panic!("{kind} {verb} failed without an error result ({e}): {printed} {said}")
        })))
    }
}

/// A lab of two nodes whose second can reach the pods of the runtime on the first.
pub(crate) fn lab() -> Lab {
    let lab = Lab::new();
    let route = "route add 10.2.1.0/24 via 10.0.0.1\n";
    lab.node(2).netns().ip(route);
    lab
}

/// Where a daemon of the lab leaves its file of namespaces.
pub(crate) fn namespaces(lab: &Lab) -> PathBuf {
    lab.dir().join("run/node1/namespaces.json")
}
