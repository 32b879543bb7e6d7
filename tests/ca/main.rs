//! The certificate authority of a cluster: real `adit control` processes before a fake API server,
//! asked by callers of every kind, by `adit node`'s own client, and by daemons that carry traffic.
//! `either` runs before real servers when `KUBEBUILDER_ASSETS` names them.
//!
//! Run with `./scripts/test`. The tests need root; one that cannot run fails and says why.
#![expect(
    clippy::disallowed_methods,
    reason = "a test's tasks end with its runtime"
)]

#[path = "../support/mod.rs"]
mod support;

mod bed;
mod caller;
mod client;
mod either;
mod mesh;
mod refusals;
mod root;
mod rotation;
