//! The configuration that the runtime gives on standard input, and what it wants back.
//!
//! Pure. The result of the plugins before us is not understood but for the addresses in it, and
//! goes back byte for byte: numbers, order and fields that we have never heard of are the
//! runtime's.

use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::api::plugin::Attachment;
use crate::cni::fault::Fault;

/// Versions that are spoken: those that have chains, and one form of result.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The key of the result of the plugins before us.
const PREVIOUS: &str = "prevResult";

/// Our entry in the chain, completed by the runtime.
#[derive(Debug)]
pub(crate) struct Configuration<'a> {
    fields: Fields,
    previous: Option<&'a [u8]>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    prev_result: Option<Previous>,
    #[serde(default = "run_dir")]
    run_dir: String,
    #[serde(default = "own_namespace")]
    own_namespace: String,
    #[serde(default = "excluded")]
    exclude_namespaces: Vec<String>,
    #[serde(default)]
    gate: bool,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Valid>>,
}

fn run_dir() -> String {
    "/run/adit".to_owned()
}

fn own_namespace() -> String {
    "adit-system".to_owned()
}

fn excluded() -> Vec<String> {
    vec!["kube-system".to_owned()]
}

/// What matters to us of a result.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Previous {
    interfaces: Vec<Interface>,
    ips: Vec<Address>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Interface {
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Address {
    address: String,
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    interface: String,
}

impl<'a> Configuration<'a> {
    /// Reads it.
    pub(crate) fn read(text: &'a [u8]) -> Result<Self, Fault> {
        let fields: Fields = serde_json::from_slice(text).map_err(Fault::decode)?;
        if !VERSIONS.contains(&&*fields.cni_version) {
            return Err(Fault::version(&fields.cni_version, &VERSIONS));
        }
        let previous = fields
            .prev_result
            .as_ref()
            .and_then(|_| value_of(PREVIOUS, text));
        Ok(Self { fields, previous })
    }

    /// The result of the plugins before us, as it was written.
    pub(crate) fn previous(&self) -> Result<&'a [u8], Fault> {
        self.previous.ok_or_else(|| {
            Fault::configuration(
                "there is no prevResult",
                "adit makes no interfaces: name it after the plugins that do, in a list of plugins",
            )
        })
    }

    /// The pod's addresses: those of interfaces inside it, or of none in particular.
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>, Fault> {
        let Some(previous) = &self.fields.prev_result else {
            return Ok(Vec::new());
        };
        let inside = |address: &&Address| {
            let interface = address.interface.and_then(|at| previous.interfaces.get(at));
            interface.is_none_or(|interface| !interface.sandbox.is_empty())
        };
        let read = |address: &Address| {
            let text = &address.address;
            let ip = text.split('/').next().unwrap_or(text);
            ip.parse::<IpAddr>().map_err(|cause| {
                Fault::configuration(
                    "prevResult has an address that is none",
                    format_args!("{text:?}: {cause}"),
                )
            })
        };
        previous.ips.iter().filter(inside).map(read).collect()
    }

    /// The name of the network.
    pub(crate) fn network(&self) -> &str {
        &self.fields.name
    }

    /// The daemon's run directory.
    pub(crate) fn run_dir(&self) -> &Path {
        Path::new(&self.fields.run_dir)
    }

    /// Whether pods of this namespace are never of the mesh.
    pub(crate) fn excludes(&self, namespace: &str) -> bool {
        let mut excluded = self.fields.exclude_namespaces.iter();
        excluded.any(|one| one == namespace)
    }

    /// Whether this is the daemon's own namespace, which must never wait for the daemon.
    pub(crate) fn is_own(&self, namespace: &str) -> bool {
        self.fields.own_namespace == namespace
    }

    /// Whether the network is to count as not ready while the daemon is away.
    pub(crate) fn gates(&self) -> bool {
        self.fields.gate
    }

    /// What is left of this network; `None` when the runtime does not tell.
    pub(crate) fn valid_attachments(&self) -> Option<Vec<Attachment>> {
        let valid = self.fields.valid.as_ref()?;
        let attachment = |one: &Valid| Attachment {
            container: one.container.clone(),
            interface: one.interface.clone(),
        };
        Some(valid.iter().map(attachment).collect())
    }
}

/// The answer to VERSION.
pub(crate) fn versions(text: &[u8]) -> Vec<u8> {
    let answer = json!({ "cniVersion": version_of(text), "supportedVersions": VERSIONS });
    answer.to_string().into_bytes()
}

/// The version that the runtime speaks; the newest of ours if it does not say.
pub(crate) fn version_of(text: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        cni_version: String,
    }
    let newest = || VERSIONS[VERSIONS.len() - 1].to_owned();
    serde_json::from_slice(text).map_or_else(|_| newest(), |asked: Asked| asked.cni_version)
}

/// The bytes of the value of `key` in the JSON object `text`; of the last, should it be there more
/// than once, as readers have it.
fn value_of<'a>(key: &str, text: &'a [u8]) -> Option<&'a [u8]> {
    let mut rest = skip(text, b'{')?;
    let mut found = None;
    loop {
        let (name, after) = parse::<String>(rest)?;
        let value = space(skip(after, b':')?);
        let (IgnoredAny, after) = parse(value)?;
        if name == key {
            found = Some(value.get(..value.len() - after.len())?);
        }
        match skip(after, b',') {
            Some(next) => rest = next,
            None => return found,
        }
    }
}

/// Reads one value, and gives what stands behind it.
fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Option<(T, &'a [u8])> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, text.get(values.byte_offset()..)?))
}

fn space(text: &[u8]) -> &[u8] {
    text.trim_ascii_start()
}

fn skip(text: &[u8], sign: u8) -> Option<&[u8]> {
    space(text).strip_prefix(&[sign])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHAIN: &str = r#"{
        "cniVersion": "1.0.0", "name": "pods", "type": "adit", "runDir": "/run/x",
        "prevResult": {"ips": [
            {"address": "10.1.1.2/24", "interface": 2}, {"address": "10.1.1.1/24", "interface": 0},
            {"address": "fd00::2/64"}],
          "big": 12345678901234567890.10, "cniVersion": "1.0.0",
          "interfaces": [{"name": "br0"}, {"name": "veth"}, {"name": "eth0", "sandbox": "/n"}]},
        "args": {"prevResult": 1}
    }"#;

    #[test]
    fn what_was_said_before_goes_back_byte_for_byte() {
        let configuration = Configuration::read(CHAIN.as_bytes()).unwrap();
        let previous = std::str::from_utf8(configuration.previous().unwrap()).unwrap();
        assert!(previous.starts_with(r#"{"ips": ["#), "{previous}");
        assert!(previous.ends_with(r#""sandbox": "/n"}]}"#), "{previous}");
        assert!(previous.contains("12345678901234567890.10"), "{previous}");
        assert_eq!(configuration.network(), "pods");
        assert_eq!(configuration.run_dir(), Path::new("/run/x"));
        let addresses = configuration.addresses().unwrap();
        let expect = ["10.1.1.2", "fd00::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(addresses, expect);
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let text = br#"{"cniVersion":"0.4.0","name":"n","type":"adit","prevResult":null}"#;
        let configuration = Configuration::read(text).unwrap();
        assert!(configuration.previous().is_err());
        assert_eq!(configuration.run_dir(), Path::new("/run/adit"));
        assert!(configuration.excludes("kube-system") && !configuration.excludes("shop"));
        assert!(configuration.is_own("adit-system") && !configuration.is_own("shop"));
        assert!(configuration.valid_attachments().is_none());
        let text = br#"{"cniVersion":"1.1.0","name":"n","type":"adit",
            "cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}"#;
        let left = Configuration::read(text)
            .unwrap()
            .valid_attachments()
            .unwrap();
        assert_eq!((&*left[0].container, &*left[0].interface), ("c", "eth0"));
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_its_code() {
        let check = |text: &str, code: u64| {
            let fault = Configuration::read(text.as_bytes()).unwrap_err();
            let rendered = fault.render("1.0.0");
            let rendered: serde_json::Value = serde_json::from_slice(&rendered).unwrap();
            assert_eq!(rendered["code"], code, "{text}: {rendered}");
            assert_eq!(rendered["cniVersion"], "1.0.0");
        };
        check("", 6);
        check("7", 6);
        check(r#"{"name":"n"}"#, 1);
        check(r#"{"cniVersion":"0.2.0","name":"n"}"#, 1);
        check(r#"{"cniVersion":"9.0.0","name":"n"}"#, 1);
        check(r#"{"cniVersion":"1.0.0","name":"n"} x"#, 6);
        check(r#"{"cniVersion":"1.0.0","prevResult":7}"#, 6);
    }

    #[test]
    fn versions_are_told_in_the_version_that_was_asked_in() {
        let told = |text: &str| String::from_utf8(versions(text.as_bytes())).unwrap();
        let all = r#""supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]"#;
        let expect = |version| format!(r#"{{"cniVersion":"{version}",{all}}}"#);
        assert_eq!(told(r#"{"cniVersion":"0.4.0"}"#), expect("0.4.0"));
        assert_eq!(told(""), expect("1.1.0"));
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            "\\PC{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map("\\PC{0,8}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_value_is_found_as_it_was_written(
            before in json(), value in json(), after in json(), pretty: bool
        ) {
            let text = |value: &serde_json::Value| if pretty {
                serde_json::to_string_pretty(value).unwrap()
            } else {
                value.to_string()
            };
            let (key, value) = (serde_json::to_string("a\"\u{e9}").unwrap(), text(&value));
            let (before, after) = (text(&before), text(&after));
            let whole = format!("\n{{ \"prevResult\" : {before} , \"prevResult\":{value}\t,{key}:{after}}} ");
            let found = value_of(PREVIOUS, whole.as_bytes()).unwrap();
            prop_assert_eq!(std::str::from_utf8(found).unwrap(), value);
        }

        #[test]
        fn no_text_is_too_much(text in "\\PC{0,64}") {
            let _ = value_of(PREVIOUS, text.as_bytes());
            let _ = Configuration::read(text.as_bytes());
        }
    }
}
