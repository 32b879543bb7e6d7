//! PeerAuthentication (`security.istio.io/v1`), as it was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::mesh::Selector;
use crate::mesh::policy::json::{Fields, selector};
use crate::mesh::policy::value::port;
use crate::mesh::policy::{Notice, NoticeKind, PolicyName, dry_run};

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Its namespace and name.
    pub name: PolicyName,
    /// Which workloads it binds; `None` for its whole namespace, or the whole mesh when that is
    /// the root namespace. `None` also where the selector could not be read.
    pub selector: Option<Selector>,
    /// What it demands.
    pub requirement: Requirement,
    /// `metadata.creationTimestamp`; of several policies of one level the oldest stands.
    pub created: Option<Arc<str>>,
    /// What its author should know.
    pub notices: Vec<Notice>,
}

/// What a PeerAuthentication demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Modes that were understood.
    Modes {
        /// `mtls.mode`
        mode: Mode,
        /// `portLevelMtls`, by the workload's port. Only a policy with a selector has any.
        ports: BTreeMap<u16, Mode>,
    },
    /// It could not be understood: STRICT on every port, whatever other policies say.
    Unreadable {
        /// The field that was not understood, and why.
        why: String,
    },
}

/// Whether peers must prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// As the next wider level says; PERMISSIVE where none says anything.
    #[default]
    Unset,
    /// As [`Permissive`](Self::Permissive): a tunnel is not turned away. Istio's ambient mode
    /// does not serve it otherwise either.
    Disable,
    /// Plaintext and tunnels are both taken.
    Permissive,
    /// Only peers with an identity are taken.
    Strict,
}

impl Mode {
    /// As policies say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "UNSET",
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        }
    }
}

impl PeerAuthentication {
    /// Reads a policy from the parts of its object. Never fails; see the
    /// [module](crate::mesh::policy) for what stands in for parts that cannot be understood.
    #[must_use]
    pub fn read<K: AsRef<str>, V: AsRef<str>>(
        name: &str,
        namespace: &str,
        annotations: impl IntoIterator<Item = (K, V)>,
        spec: &Value,
    ) -> Self {
        let (selector, requirement) = match selector(spec) {
            Ok(selector) => {
                let modes = modes(spec, selector.is_some());
                (selector, modes)
            }
            Err(why) => (None, Err(why)),
        };
        let requirement = requirement.unwrap_or_else(|why| Requirement::Unreadable { why });
        let mut notices = remarks(&requirement);
        if dry_run(annotations) != Ok(false) {
            notices.push(Notice {
                kind: NoticeKind::OtherEffect,
                text: "annotation istio.io/dry-run is not for this kind: enforced".to_owned(),
            });
        }
        Self {
            name: PolicyName::new(namespace, name),
            selector,
            requirement,
            created: None,
            notices,
        }
    }

    /// The same policy with its `metadata.creationTimestamp`.
    ///
    /// Kubernetes writes it as RFC 3339 in UTC with whole seconds (`2026-01-31T12:00:00Z`), so
    /// that texts sort as times do. Any other form counts as absent; such a policy is younger
    /// than all that have a time.
    #[must_use]
    pub fn created(mut self, timestamp: Option<&str>) -> Self {
        let form = "0000-00-00T00:00:00Z";
        let fits = |text: &&str| {
            text.len() == form.len()
                && text
                    .bytes()
                    .zip(form.bytes())
                    .all(|(byte, form)| match form {
                        b'0' => byte.is_ascii_digit(),
                        other => byte == other,
                    })
        };
        self.created = timestamp.filter(fits).map(Into::into);
        self
    }
}

fn modes(spec: &Value, has_selector: bool) -> Result<Requirement, String> {
    let spec = Fields::open(
        spec,
        "spec".to_owned(),
        &["mtls", "portLevelMtls", "selector"],
    )?;
    let path = spec.at("portLevelMtls");
    let mut ports = BTreeMap::new();
    match spec.value("portLevelMtls") {
        Value::Null => {}
        Value::Object(map) => {
            for (key, value) in map {
                let port = port(key).map_err(|why| format!("{path} {why}"))?;
                ports.insert(port, mode(value, format!("{path}.{key}"))?);
            }
        }
        _ => return Err(format!("{path} is not an object")),
    }
    if !has_selector && !ports.is_empty() {
        return Err(format!("{path} is set without a selector"));
    }
    Ok(Requirement::Modes {
        mode: mode(spec.value("mtls"), spec.at("mtls"))?,
        ports,
    })
}

fn mode(value: &Value, path: String) -> Result<Mode, String> {
    let fields = Fields::open(value, path, &["mode"])?;
    match fields.text("mode")? {
        None | Some("UNSET") => Ok(Mode::Unset),
        Some("DISABLE") => Ok(Mode::Disable),
        Some("PERMISSIVE") => Ok(Mode::Permissive),
        Some("STRICT") => Ok(Mode::Strict),
        Some(other) => Err(format!("{} is {other:?}, no known mode", fields.at("mode"))),
    }
}

fn remarks(requirement: &Requirement) -> Vec<Notice> {
    match requirement {
        Requirement::Unreadable { why } => vec![Notice {
            kind: NoticeKind::NotUnderstood,
            text: format!("{why}; STRICT is demanded of every peer of the workloads it binds"),
        }],
        Requirement::Modes { mode, ports } => {
            let mut all = std::iter::once(mode).chain(ports.values());
            let disables = all.any(|mode| *mode == Mode::Disable);
            let notice = disables.then(|| Notice {
                kind: NoticeKind::OtherEffect,
                text: "mode DISABLE acts as PERMISSIVE: tunnels are still taken".to_owned(),
            });
            notice.into_iter().collect()
        }
    }
}
