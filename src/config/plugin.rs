//! What the container runtime says to the CNI plugin, and where the daemon installs it.

use crate::cni::Environment;

/// What the runtime asks of the plugin; `None` when nobody runs us as one.
#[must_use]
pub fn plugin() -> Option<Environment> {
    #[expect(
        clippy::disallowed_methods,
        reason = "config alone reads the environment"
    )]
    let variable =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let or_nothing = |name| variable(name).unwrap_or_default();
    Some(Environment {
        command: variable("CNI_COMMAND").filter(|command| !command.is_empty())?,
        container: or_nothing("CNI_CONTAINERID"),
        netns: or_nothing("CNI_NETNS"),
        interface: or_nothing("CNI_IFNAME"),
        arguments: or_nothing("CNI_ARGS"),
    })
}
