//! The daemon's side of the CNI plugin: the socket it is asked on, the sandboxes it is told of, and
//! what a plugin that finds the daemon away goes by.
//!
//! [`serve`] turns conversations into [`Asked`]s for the control loop, which alone decides
//! ([`control`](crate::node)). [`Sandboxes`] and [`decide`] are pure. [`keep`] keeps the plugin
//! installed on the node; [`uninstall`] removes it.

mod chain;
mod forward;
mod install;
mod keep;
mod namespaces;
mod sandboxes;
mod server;

pub(crate) use forward::forward;
pub use install::uninstall;
pub(crate) use keep::keep;
pub(crate) use namespaces::Left;
pub(crate) use sandboxes::{Decision, Known, Sandboxes, decide};
pub(crate) use server::{Asked, serve};
