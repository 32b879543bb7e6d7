//! The `adit` program: arguments in, exit status out. An error is printed once, with its causes.

use std::process::ExitCode;

/// Long-lived with many small buffers: jemalloc gives back what a burst took.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    adit::cli::run(std::env::args_os()).unwrap_or_else(|error| {
        eprintln!("adit: {error:#}");
        ExitCode::FAILURE
    })
}
