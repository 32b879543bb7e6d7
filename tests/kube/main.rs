//! The daemon on a Kubernetes API: what its index says, and that it goes on saying it whatever the
//! API server does.
//!
//! `ground` and `index` run against the fake server of `tests/support/apiserver`, or, when
//! `KUBEBUILDER_ASSETS` names a directory with `etcd` and `kube-apiserver`, against those: `ground`
//! holds that the fake one answers as the real one does. `faults`
//! needs a server that does wrong on command, and so the fake one. Run with `./scripts/test`, which
//! says at its end which it was. The tests need root; one that cannot run fails and says why.
#![expect(
    clippy::disallowed_methods,
    reason = "a test's tasks end with its runtime"
)]

#[path = "../support/mod.rs"]
mod support;

mod bed;
mod faults;
mod ground;
mod index;
