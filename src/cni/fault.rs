//! What the runtime is told when something is not done: the CNI error result, with its codes.

use std::fmt::Display;
use std::io;
use std::path::Path;

use serde_json::json;

use crate::cni::absent::Waits;
use crate::cni::ask::Unreachable;

/// An error result. Runtimes show message and details to people, in the pod's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    code: u32,
    message: String,
    details: String,
}

/// Codes below 100 are the specification's.
mod code {
    pub(super) const VERSION: u32 = 1;
    pub(super) const ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const DECODE: u32 = 6;
    pub(super) const CONFIGURATION: u32 = 7;
    pub(super) const AGAIN: u32 = 11;
    pub(super) const UNAVAILABLE: u32 = 50;
    pub(super) const REFUSED: u32 = 100;
}

impl Fault {
    fn new(code: u32, message: impl Into<String>, details: impl Display) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.to_string(),
        }
    }

    /// The configuration cannot be read from standard input.
    pub(crate) fn input(cause: io::Error) -> Self {
        Self::new(code::IO, "cannot read the network configuration", cause)
    }

    /// The configuration is not JSON.
    pub(crate) fn decode(cause: impl Display) -> Self {
        Self::new(code::DECODE, "the network configuration is no JSON", cause)
    }

    /// The configuration cannot be what was meant.
    pub(crate) fn configuration(message: &str, details: impl Display) -> Self {
        Self::new(code::CONFIGURATION, message, details)
    }

    /// The configuration is of a version that is not spoken.
    pub(crate) fn version(asked: &str, spoken: &[&str]) -> Self {
        let message = format!("CNI version {asked:?} is not spoken");
        let details = format!("set the chain's cniVersion to one of {}", spoken.join(", "));
        Self::new(code::VERSION, message, details)
    }

    /// A variable is missing or makes no sense.
    pub(crate) fn environment(message: String) -> Self {
        let details = "the container runtime sets CNI_COMMAND and what belongs to it; people have \
                       no use for this command but `adit cni uninstall`";
        Self::new(code::ENVIRONMENT, message, details)
    }

    /// The pod's namespace cannot be opened.
    pub(crate) fn netns(path: &Path, cause: io::Error) -> Self {
        let message = format!("cannot open the pod's network namespace {}", path.display());
        Self::new(code::IO, message, cause)
    }

    /// The daemon says that the pod must not start now.
    pub(crate) fn refused(reason: &str) -> Self {
        Self::new(code::REFUSED, "the pod cannot be captured", reason)
    }

    /// The daemon is away, and the pod may be one of the mesh.
    pub(crate) fn unreachable(away: &Unreachable, waits: &Waits) -> Self {
        Self::new(
            code::AGAIN,
            "the pod waits for the adit daemon of this node",
            format_args!("{away}; {waits}"),
        )
    }

    /// No pod of the mesh can be added.
    pub(crate) fn unavailable(details: String) -> Self {
        let message = "the adit daemon of this node takes no pods";
        Self::new(code::UNAVAILABLE, message, details)
    }

    /// As the runtime reads it, in the version that it speaks.
    pub(crate) fn render(&self, version: &str) -> Vec<u8> {
        let result = json!({
            "cniVersion": version,
            "code": self.code,
            "msg": format!("adit: {}", self.message),
            "details": self.details,
        });
        result.to_string().into_bytes()
    }
}
