//! The node daemon (a stub of this worktree: the lead owns it).

pub mod config;

pub use config::Config;

/// Why the node daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Stub.
    #[error("this worktree has no node daemon")]
    Stub,
}

/// Runs the node daemon to its end.
///
/// # Errors
///
/// Always, here.
pub fn run(_config: Config) -> Result<(), Error> {
    Err(Error::Stub)
}
