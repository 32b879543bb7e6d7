//! What can be seen of Adit from outside: real daemons, in real network namespaces, carrying real
//! sockets. One module per part of the promise, one test per behaviour, named for it.
//!
//! Run with `./scripts/test` (see `tests/README.md`). The tests need root; one that cannot run
//! fails and says why.

#[allow(
    dead_code,
    unused_imports,
    reason = "the harness serves several test programs, and each uses its own part"
)]
#[path = "../support/mod.rs"]
mod support;

mod ground;
