//! Asks a node's admin server, or reads files, and prints what a person wants to know.
//!
//! A question is a [`Page`]; [`api::ask`](crate::api::ask) fetches it, `table` and `status` lay it out;
//! `offline` answers without a node, from the files that a node would read. With
//! [`Output::Json`] the answer is printed as the node gave it, so that scripts see fields that
//! this program is too old to know.

mod offline;
mod status;
mod table;

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::api::ask;
use crate::api::explain::Explanation;

pub use crate::api::ask::Target;
pub use offline::Offline;

/// Why there is nothing to print, or it could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node did not answer.
    #[error(transparent)]
    Ask(#[from] ask::Error),
    /// The question makes no sense, to the files at hand.
    #[error("no answer from these files")]
    Question(#[from] crate::explain::Error),
    /// The node's version differs too much.
    #[error("the answer is not understood; is the node of another version?")]
    NotUnderstood(#[source] serde_json::Error),
    /// The answer could not be printed.
    #[error("cannot print")]
    Print(#[from] io::Error),
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Columns, for eyes.
    #[default]
    Table,
    /// JSON, for programs.
    Json,
}

/// What a node can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The node on one screen.
    Status,
    /// Every pod known.
    Workloads,
    /// Every service known.
    Services,
    /// Every policy.
    Policies,
    /// This node's pods of the mesh.
    Pods,
    /// This node's certificates.
    Certificates,
    /// The connections alive.
    Connections,
}

impl Page {
    /// Where the admin server has it.
    fn path(self) -> &'static str {
        match self {
            Self::Status => "/status",
            Self::Workloads => "/workloads",
            Self::Services => "/services",
            Self::Policies => "/policies",
            Self::Pods => "/pods",
            Self::Certificates => "/certificates",
            Self::Connections => "/connections",
        }
    }
}

/// Asks a node for a page and prints it; of a list, only what is in `namespace` if one is given.
///
/// # Errors
///
/// The node could not be asked, or `to` could not be written to.
pub fn show(
    page: Page,
    namespace: Option<&str>,
    node: &Target,
    output: Output,
    to: &mut dyn Write,
) -> Result<(), Error> {
    let mut answer = node.ask(page.path())?;
    if let (Some(wanted), Value::Array(items)) = (namespace, &mut answer) {
        items.retain(|item| item["namespace"] == wanted);
    }
    match output {
        Output::Json => print_json(&answer, to)?,
        Output::Table => {
            let text = match page {
                Page::Status => status::screen(&read(answer)?),
                Page::Workloads => table::workloads(read(answer)?),
                Page::Services => table::services(read(answer)?),
                Page::Policies => table::policies(read(answer)?),
                Page::Pods => table::pods(read(answer)?),
                Page::Certificates => table::certificates(read(answer)?, now()),
                Page::Connections => table::connections(read(answer)?),
            };
            to.write_all(text.as_bytes())?;
        }
    }
    Ok(())
}

/// Asks a node what policy says to a connection, and prints the answer.
///
/// # Errors
///
/// The node could not be asked, there is no such question, or `to` could not be written to.
pub fn explain(
    (source, destination): (&str, &str),
    node: &Target,
    output: Output,
    to: &mut dyn Write,
) -> Result<(), Error> {
    let (source, destination) = (ask::encode(source), ask::encode(destination));
    let answer = node.ask(&format!("/explain?src={source}&dst={destination}"))?;
    match output {
        Output::Json => print_json(&answer, to)?,
        Output::Table => write!(to, "{}", read::<Explanation>(answer)?)?,
    }
    Ok(())
}

fn print_json(value: &Value, to: &mut dyn Write) -> io::Result<()> {
    writeln!(to, "{value:#}")
}

fn read<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, Error> {
    serde_json::from_value(answer).map_err(Error::NotUnderstood)
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
