//! What can be seen of Adit from outside: real daemons, in real network namespaces, carrying real
//! sockets. One module per part of the promise, one test per behaviour, named for it.
//!
//! Run with `./scripts/test` (see `tests/README.md`). The tests need root; one that cannot run
//! fails and says why.
#![expect(
    clippy::disallowed_methods,
    reason = "a test's tasks end with its runtime"
)]

#[path = "../support/mod.rs"]
mod support;

mod capture;
mod charge;
mod congestion;
mod enrolment;
mod files;
mod ground;
mod handover;
mod identity;
mod index;
mod kept;
mod leaving;
mod lifecycle;
mod limits;
mod policy;
mod review;
mod same_node;
mod telemetry;
mod tunnel;

/// Within this a change of the files takes effect: a second by promise, and half a one for a
/// machine that runs other tests meanwhile.
const RELOAD: std::time::Duration = std::time::Duration::from_millis(1500);
/// Within this drift of the kernel's state is found and mended: ten seconds by promise, and two
/// for a machine that runs other tests meanwhile.
const VERIFY: std::time::Duration = std::time::Duration::from_secs(12);

/// The application's address that a connection was for: on the tunnel path `dst.addr` is the tunnel
/// port in front of it.
fn target(record: &support::Record) -> String {
    let inner = record.text("dst.hbone_addr");
    if inner.is_empty() {
        record.text("dst.addr")
    } else {
        inner
    }
}

/// Why a connection ended, in the stable word of its access record.
fn reason(record: &support::Record) -> String {
    record.text("reason")
}
