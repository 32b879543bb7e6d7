//! What the CNI plugin and the daemon of its node say to each other, and what the daemon leaves
//! written for a plugin that finds it away.
//!
//! One message and one answer per conversation, as JSON over the socket [`SOCKET`] in the run
//! directory. [`Request::Add`] and [`Request::Check`] have the pod's network namespace beside
//! them, as a descriptor. Both ends are one binary, but not always of one version: a plugin that
//! is executed while its daemon is upgraded speaks to another.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The name of the socket in the run directory.
pub const SOCKET: &str = "cni.sock";
/// The name of the file of namespaces in the run directory.
pub const NAMESPACES: &str = "namespaces.json";
/// The largest message, in bytes.
pub const LARGEST: usize = 192 * 1024;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// A sandbox was made: capture its pod if it is of the mesh, before anything runs in it.
    Add(Sandbox),
    /// Whether a sandbox is as [`Request::Add`] left it.
    Check(Sandbox),
    /// A sandbox goes.
    Del(Attachment),
    /// Of this network, these sandboxes are all there are.
    Gc {
        /// The network's name.
        network: String,
        /// Those that are left.
        left: Vec<Attachment>,
    },
    /// Whether pods can be taken.
    Status,
}

/// An interface of a container, as the runtime names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: the sandbox.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

/// The sandbox of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID; empty where the runtime does not tell.
    pub uid: String,
    /// The network's name.
    pub network: String,
    /// By what the runtime calls it.
    pub attachment: Attachment,
    /// The addresses that the plugins before us gave it.
    pub ips: Vec<IpAddr>,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The pod is captured: its containers may start.
    Enrolled,
    /// The pod is none of ours, for this reason: its containers may start.
    Bypass {
        /// A stable word.
        reason: String,
    },
    /// The pod must not start now; why, for people.
    Refused {
        /// One sentence.
        reason: String,
    },
    /// The daemon cannot tell: decide as if it were away.
    Unknown {
        /// One sentence.
        reason: String,
    },
    /// Heard.
    Done,
}

/// What the daemon leaves written, so that its absence holds up the pods of the mesh alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// The form of this file, [`Namespaces::VERSION`].
    pub version: u32,
    /// The boot it was written in (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// Namespaces of which a pod may belong to the mesh: those with an enrolment label, and those
    /// of a pod with one.
    pub enrolled: BTreeSet<String>,
    /// All others.
    pub others: BTreeSet<String>,
}

impl Namespaces {
    /// The form that is written, and the only one that is read.
    pub const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_as_they_are() {
        let check = |request: Request, json: &str| {
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
        };
        let attachment = Attachment {
            container: "c1".into(),
            interface: "eth0".into(),
        };
        let sandbox = Sandbox {
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: "u1".into(),
            network: "pods".into(),
            attachment: attachment.clone(),
            ips: vec!["10.1.1.2".parse().unwrap()],
        };
        check(
            Request::Add(sandbox),
            r#"{"verb":"add","namespace":"shop","name":"web-0","uid":"u1","network":"pods","attachment":{"container":"c1","interface":"eth0"},"ips":["10.1.1.2"]}"#,
        );
        check(
            Request::Del(attachment),
            r#"{"verb":"del","container":"c1","interface":"eth0"}"#,
        );
        check(Request::Status, r#"{"verb":"status"}"#);
        let bypass = Answer::Bypass {
            reason: "not_labelled".into(),
        };
        assert_eq!(
            serde_json::to_string(&bypass).unwrap(),
            r#"{"answer":"bypass","reason":"not_labelled"}"#
        );
    }
}
