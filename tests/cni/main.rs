//! The CNI plugin and the daemon, as a container runtime meets them: Debian's plugins make the
//! pod's interface, `adit` is the last of the chain, and each is executed by the book.
//!
//! Run with `./scripts/test`; needs root and `containernetworking-plugins`. A test that cannot run
//! fails and says why.
#![expect(
    clippy::disallowed_methods,
    reason = "a test's tasks end with its runtime"
)]

#[path = "../support/mod.rs"]
mod support;

mod absent;
mod away;
mod chain;
mod handover;
mod install;
mod leaving;
mod marks;
mod probes;
mod processes;
mod runtime;
mod search;
mod transitions;
