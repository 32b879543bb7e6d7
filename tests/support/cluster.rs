//! The file of Kubernetes objects that the daemons of a lab read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Objects in memory; [`publish`](Cluster::publish) writes them all at once.
#[derive(Debug)]
pub(crate) struct Cluster {
    path: PathBuf,
    objects: BTreeMap<Key, Value>,
}

/// Kind, namespace, name.
type Key = (String, String, String);

impl Cluster {
    /// An empty cluster, to be written to `path`.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            objects: BTreeMap::new(),
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds or replaces an object.
    pub(crate) fn put(&mut self, object: Value) {
        self.objects.insert(key(&object), object);
    }

    /// Adds or replaces the objects of a YAML text.
    #[track_caller]
    pub(crate) fn apply(&mut self, yaml: &str) {
        for document in yaml.split("\n---\n") {
            let object = serde_saphyr::from_str(document).expect("the test's YAML is well formed");
            self.put(object);
        }
    }

    /// Changes an object that is there.
    #[track_caller]
    pub(crate) fn edit(
        &mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl Fn(&mut Value),
    ) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let object = self.objects.get_mut(&key);
        change(object.unwrap_or_else(|| panic!("there is no {kind} {namespace}/{name}")));
    }

    /// Removes an object that is there, and gives it.
    #[track_caller]
    pub(crate) fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> Value {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let object = self.objects.remove(&key);
        object.unwrap_or_else(|| panic!("there is no {kind} {namespace}/{name}"))
    }

    /// Sets a label of an object, or takes it away.
    pub(crate) fn label(
        &mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        key: &str,
        value: Option<&str>,
    ) {
        self.edit(kind, namespace, name, |object| {
            let labels = &mut object["metadata"]["labels"];
            match value {
                Some(value) => labels[key] = json!(value),
                None => drop(labels.as_object_mut().and_then(|l| l.remove(key))),
            }
        });
    }

    /// The whole as YAML documents.
    pub(crate) fn yaml(&self) -> String {
        let documents = self.objects.values().map(to_yaml);
        documents.collect::<Vec<_>>().join("---\n")
    }

    /// All objects.
    pub(crate) fn objects(&self) -> Vec<Value> {
        self.objects.values().cloned().collect()
    }

    /// Puts the objects in the place of the file, which readers see whole, before or after.
    pub(crate) fn publish(&self) {
        self.publish_text(&self.yaml());
    }

    /// Puts any text in the place of the file.
    pub(crate) fn publish_text(&self, text: &str) {
        let new = self.path.with_extension("new");
        std::fs::write(&new, text).expect("the lab's directory is writable");
        std::fs::rename(&new, &self.path).expect("both are in one directory");
    }
}

fn key(object: &Value) -> Key {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    (
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"]),
    )
}

/// The endpoints of a service, from which its EndpointSlices are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slice {
    /// Name of the service's port and number on the endpoints.
    pub(crate) ports: Vec<(&'static str, u16)>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// One address behind a service.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    /// Its pod, and the pod's place; `None` for an address that is no pod's.
    pub(crate) pod: Option<Place>,
    pub(crate) ready: bool,
}

/// A pod and where it runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) zone: String,
}

impl Slice {
    /// The slices, one per family that occurs, as Kubernetes makes them.
    pub(crate) fn objects(&self, namespace: &str, service: &str) -> Vec<Value> {
        let family = |v6: bool| {
            let endpoints: Vec<Value> = self
                .endpoints
                .iter()
                .filter(|e| e.ip.is_ipv6() == v6)
                .map(|e| e.object(namespace))
                .collect();
            let ports: Vec<Value> = self
                .ports
                .iter()
                .map(|(name, port)| json!({ "name": name, "port": port, "protocol": "TCP" }))
                .collect();
            let kind = if v6 { "IPv6" } else { "IPv4" };
            (!endpoints.is_empty()).then(|| {
                json!({
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": format!("{service}-{}", kind.to_lowercase()),
                        "namespace": namespace,
                        "labels": { "kubernetes.io/service-name": service },
                    },
                    "addressType": kind,
                    "endpoints": endpoints,
                    "ports": ports,
                })
            })
        };
        [family(false), family(true)]
            .into_iter()
            .flatten()
            .collect()
    }
}

impl Endpoint {
    fn object(&self, namespace: &str) -> Value {
        let mut endpoint = json!({
            "addresses": [self.ip.to_string()],
            "conditions": { "ready": self.ready, "serving": self.ready, "terminating": false },
        });
        if let Some(Place { pod, node, zone }) = &self.pod {
            endpoint["targetRef"] = json!({ "kind": "Pod", "namespace": namespace, "name": pod });
            endpoint["nodeName"] = json!(node);
            endpoint["zone"] = json!(zone);
        }
        endpoint
    }
}

/// Block-style YAML, as `kubectl -o yaml` prints it, ending in a line feed.
pub(crate) fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(&mut text, value, 0);
    text
}

fn write_yaml(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(text, "{:indent$}{}:", "", scalar(key));
                write_nested(text, value, indent);
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut inner = String::new();
                match item {
                    Value::Object(map) if map.is_empty() => inner.push_str("{}"),
                    Value::Array(items) if items.is_empty() => inner.push_str("[]"),
                    item => write_yaml(&mut inner, item, indent + 2),
                }
                // The first line of the item stands on the line of its dash.
                let _ = writeln!(text, "{:indent$}- {}", "", inner.trim());
            }
        }
        other => {
            let _ = writeln!(text, "{}", plain(other));
        }
    }
}

fn write_nested(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if map.is_empty() => text.push_str(" {}\n"),
        Value::Array(items) if items.is_empty() => text.push_str(" []\n"),
        Value::Object(_) => {
            text.push('\n');
            write_yaml(text, value, indent + 2);
        }
        Value::Array(_) => {
            text.push('\n');
            write_yaml(text, value, indent);
        }
        other => {
            let _ = writeln!(text, " {}", plain(other));
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// A string as a plain scalar where that is safe, else in double quotes.
fn scalar(text: &str) -> String {
    let safe = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_lowercase().as_str());
    if safe {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}
