//! `adit check` from outside: before a fake API server, what it prints, what it asks for, and its
//! exit status.
//!
//! Run with `./scripts/test`. What concerns this machine needs root; a test that cannot run fails
//! and says why. What each rule says of which cluster is in `src/check/rules/tests.rs`.
#![expect(
    clippy::disallowed_methods,
    reason = "a test's tasks end with its runtime"
)]

#[path = "../support/mod.rs"]
mod support;

mod bed;
mod cluster;
mod failures;
mod here;
