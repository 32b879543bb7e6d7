//! The lists of plugins that the runtime reads, and our place in one. Pure.
//!
//! The runtime takes the first configuration of its directory, by name. So ours is a copy of the
//! primary network's, under a name before it and with us at its end: whoever rewrites his own file
//! cannot drop us. It keeps the network's name, by which address plugins keep their books.
//!
//! Newer runtimes read `DIRECTORY/NETWORK/*.conf` as further plugins of a list; there we are beside
//! the list and need no copy.

use serde_json::{Map, Value, json};

/// The name of our copy; before all that is in use.
pub(super) const OWN: &str = "00-adit.conflist";
/// The name of our file in the directory of a network.
pub(super) const DROP_IN: &str = "adit.conf";
/// Our type: the name of the binary.
pub(super) const TYPE: &str = "adit";

/// Our entry in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where the daemon's socket is.
    pub(crate) run_dir: String,
    /// The daemon's own namespace, which never waits for it.
    pub(crate) own_namespace: String,
    /// Namespaces that are never of the mesh.
    pub(crate) excluded: Vec<String>,
}

impl Entry {
    fn value(&self) -> Value {
        json!({
            "type": TYPE,
            "runDir": self.run_dir,
            "ownNamespace": self.own_namespace,
            "excludeNamespaces": self.excluded,
        })
    }
}

/// Why no chain can be made of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// It is being written, or broken.
    #[error("it is no JSON object")]
    Malformed,
    /// It names no network.
    #[error("it has no name")]
    NoName,
    /// Nothing in it makes a network.
    #[error("it has no plugins")]
    NoPlugins,
    /// Its version has no chains.
    #[error("its cniVersion {0:?} has no chains; 0.3.0 and later have")]
    TooOld(String),
}

/// A configuration of a network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Network {
    /// Its name.
    pub(super) name: String,
    list: Map<String, Value>,
    /// Whether the runtime may add plugins to it from its directory.
    takes_more: bool,
}

impl Network {
    /// Reads a configuration; one of a single plugin is made a list.
    pub(super) fn read(text: &[u8]) -> Result<Self, Unusable> {
        let Ok(Value::Object(mut list)) = serde_json::from_slice(text) else {
            return Err(Unusable::Malformed);
        };
        let text = |list: &Map<String, Value>, key: &str| {
            list.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        let name = text(&list, "name")
            .filter(|name| !name.is_empty())
            .ok_or(Unusable::NoName)?;
        let version = text(&list, "cniVersion").unwrap_or_default();
        if version.is_empty() || version.starts_with("0.1") || version.starts_with("0.2") {
            return Err(Unusable::TooOld(version));
        }
        let mut takes_more = !is_true(list.get("loadOnlyInlinedPlugins"));
        if !list.contains_key("plugins") {
            if text(&list, "type").is_none() {
                return Err(Unusable::NoPlugins);
            }
            takes_more = false;
            let plugin = std::mem::take(&mut list);
            list.insert("cniVersion".to_owned(), json!(version));
            list.insert("name".to_owned(), json!(name));
            list.insert("plugins".to_owned(), json!([plugin]));
        }
        let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
        let plugins = plugins.ok_or(Unusable::NoPlugins)?;
        plugins.retain(|plugin| plugin["type"] != TYPE);
        if plugins.is_empty() {
            return Err(Unusable::NoPlugins);
        }
        Ok(Self {
            name,
            list,
            takes_more,
        })
    }

    /// The list with us at its end.
    pub(super) fn with(&self, entry: &Entry) -> Vec<u8> {
        let mut list = self.list.clone();
        if let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) {
            plugins.push(entry.value());
        }
        pretty(&Value::Object(list))
    }

    /// Whether we may stand beside the list, in its directory, for a runtime that looks there.
    pub(super) fn takes_more(&self) -> bool {
        self.takes_more
    }
}

/// Our file beside a list.
pub(super) fn beside(entry: &Entry) -> Vec<u8> {
    pretty(&entry.value())
}

/// Whether the runtime reads a file of this name.
pub(super) fn is_configuration(name: &str) -> bool {
    let ends = [".conf", ".conflist", ".json"];
    ends.iter().any(|end| name.ends_with(end))
}

/// Whether a runtime, as a node's `status.nodeInfo.containerRuntimeVersion` has it, looks for
/// further plugins in a network's directory (libcni 1.3).
pub(super) fn takes_drop_ins(runtime: &str) -> bool {
    let Some((name, version)) = runtime.split_once("://") else {
        return false;
    };
    let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
    let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (number(), number()) else {
        return false;
    };
    match name {
        "containerd" => (major, minor) >= (2, 1),
        "cri-o" => (major, minor) >= (1, 34),
        _ => false,
    }
}

/// As Go's libraries read a flag that some write as text.
fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::String(text)) => text == "true",
        _ => false,
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            run_dir: "/run/adit".to_owned(),
            own_namespace: "adit-system".to_owned(),
            excluded: vec!["kube-system".to_owned()],
        }
    }

    fn types(text: &[u8]) -> Vec<String> {
        let list: Value = serde_json::from_slice(text).unwrap();
        let plugins = list["plugins"].as_array().cloned().unwrap();
        let of = |plugin: &Value| plugin["type"].as_str().unwrap().to_owned();
        plugins.iter().map(of).collect()
    }

    #[test]
    fn we_are_the_last_of_a_list_and_only_once() {
        let list = br#"{"cniVersion":"0.3.1","name":"k8s-pod-network","disableCheck":true,
            "plugins":[{"type":"calico","mtu":0,"ipam":{"type":"calico-ipam"}},
                       {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
        let network = Network::read(list).unwrap();
        assert_eq!(
            (&*network.name, network.takes_more()),
            ("k8s-pod-network", true)
        );
        let ours = network.with(&entry());
        assert_eq!(types(&ours), ["calico", "portmap", "adit"]);
        let again = Network::read(&ours).unwrap();
        assert_eq!(
            again.with(&entry()),
            ours,
            "what is ours already is not doubled"
        );
        let value: Value = serde_json::from_slice(&ours).unwrap();
        assert_eq!(value["disableCheck"], true);
        assert_eq!(value["cniVersion"], "0.3.1");
        assert_eq!(value["plugins"][0]["ipam"]["type"], "calico-ipam");
        assert_eq!(
            value["plugins"][2]["excludeNamespaces"],
            json!(["kube-system"])
        );
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let single = br#"{"cniVersion":"1.0.0","name":"pods","type":"bridge","isGateway":true}"#;
        let network = Network::read(single).unwrap();
        assert!(!network.takes_more(), "runtimes look beside lists alone");
        let ours = network.with(&entry());
        assert_eq!(types(&ours), ["bridge", "adit"]);
        let value: Value = serde_json::from_slice(&ours).unwrap();
        assert_eq!(
            (&value["name"], &value["cniVersion"]),
            (&json!("pods"), &json!("1.0.0"))
        );
    }

    #[test]
    fn what_makes_no_chain_is_told() {
        let check =
            |text: &str, expect| assert_eq!(Network::read(text.as_bytes()).err(), Some(expect));
        check("", Unusable::Malformed);
        check("[]", Unusable::Malformed);
        check(
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]"#,
            Unusable::Malformed,
        );
        check(
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#,
            Unusable::NoName,
        );
        check(r#"{"cniVersion":"1.0.0","name":"n"}"#, Unusable::NoPlugins);
        check(
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
            Unusable::NoPlugins,
        );
        check(
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"adit"}]}"#,
            Unusable::NoPlugins,
        );
        check(
            r#"{"cniVersion":"0.2.0","name":"n","type":"a"}"#,
            Unusable::TooOld("0.2.0".into()),
        );
        let closed = br#"{"cniVersion":"1.0.0","name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"a"}]}"#;
        assert!(!Network::read(closed).unwrap().takes_more());
    }

    #[test]
    fn runtimes_that_look_beside_lists_are_known_by_version() {
        for (runtime, takes) in [
            ("containerd://2.1.0", true),
            ("containerd://2.1.0-rc.1", true),
            ("containerd://v2.2.1+k3s1", true),
            ("containerd://3.0.0", true),
            ("containerd://2.0.5", false),
            ("containerd://1.7.27", false),
            ("cri-o://1.34.0", true),
            ("cri-o://1.33.2", false),
            ("docker://28.0.0", false),
            ("containerd://", false),
            ("", false),
        ] {
            assert_eq!(takes_drop_ins(runtime), takes, "{runtime}");
        }
    }
}
