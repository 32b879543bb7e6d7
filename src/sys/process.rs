//! Limits of the process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit on open descriptors to the hard one: a node's connections take several
/// each, and the soft limit of most systems is meant for programs with `select(2)`.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Not being able to is no fault: the limit in force then holds.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
