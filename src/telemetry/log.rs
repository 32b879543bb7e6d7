//! The log: text or JSON lines on standard output, as container runtimes collect it.
//!
//! Lines go through a bounded queue to a thread of their own ([`queue`]). When its reader is too
//! slow, lines are dropped and counted (`adit_log_lines_dropped_total`); nobody who logs ever
//! waits. The filter can be changed while the daemon runs.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::telemetry::line::{Lines, Sink};
use crate::telemetry::queue::{self, Queue, Writing};

/// What a process that must end at once waits for its log.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `2026-11-23T06:00:00Z  INFO target: message field=value`.
    #[default]
    Text,
    /// One JSON object per line, fields at its top level.
    Json,
}

/// Which lines are written: directives of the form `LEVEL` or `TARGET=LEVEL`, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

/// Why the log cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directive is not understood.
    #[error("{text:?} is not a log filter: {detail}; write for example info, or info,access=debug")]
    Filter {
        /// The whole filter.
        text: String,
        /// What is wrong with it.
        detail: String,
    },
    /// This process has a log already.
    #[error("the log is already set up")]
    Twice,
    /// The system refused a thread.
    #[error("cannot start the log's thread")]
    Thread(#[source] io::Error),
}

impl Filter {
    /// Checks a filter.
    ///
    /// # Errors
    ///
    /// [`Error::Filter`]. A lone word that is no level is refused, although the library would take
    /// it for the name of a target: who writes `verbose` wants to be told.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |detail: String| Error::Filter {
            text: text.to_owned(),
            detail,
        };
        let directives: Vec<_> = text.split(',').map(str::trim).collect();
        for directive in &directives {
            let lone = !directive.contains(['=', '[']);
            let level = directive.parse::<tracing::metadata::LevelFilter>();
            if directive.is_empty() || (lone && level.is_err()) {
                return Err(wrong(format!(
                    "{directive:?} is none of off, error, warn, info, debug, trace"
                )));
            }
        }
        let filter = directives.join(",");
        EnvFilter::try_new(&filter).map_err(|cause| wrong(cause.to_string()))?;
        Ok(Self(filter))
    }

    /// The same with a target's lines from `info` on, unless it says itself what is wanted of that
    /// target: for records that nobody means to lose who wants a quiet log.
    #[must_use]
    pub fn keeping(self, target: &str) -> Self {
        let names = |directive: &str| directive.split(['=', '[']).next() == Some(target);
        match self.0.split(',').any(names) {
            true => self,
            false => Self(format!("{},{target}=info", self.0)),
        }
    }

    /// The filter in text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn compile(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl Default for Filter {
    /// `info`.
    fn default() -> Self {
        Self("info".to_owned())
    }
}

/// The running log. Dropping it writes what is queued; keep it until the process ends.
#[derive(Debug)]
pub struct Log {
    handle: reload::Handle<EnvFilter, Registry>,
    first: Filter,
    current: Mutex<Filter>,
    queue: Arc<Queue>,
    _writing: Writing,
}

/// Counts the lines that found the queue full.
#[derive(Clone, Debug)]
pub struct Dropped(Arc<Queue>);

impl Dropped {
    /// How many so far.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.0.dropped()
    }
}

/// The queue of this process's log.
static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// Has everything written that was logged before, for a process that is about to abort. A reader
/// that is stuck is not waited for.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(LAST_WORDS);
    }
}

impl Log {
    /// Sets up the log of this process, on standard output.
    ///
    /// # Errors
    ///
    /// [`Error::Twice`] when it has one already; [`Error::Thread`].
    pub fn start(filter: &Filter, format: Format) -> Result<Self, Error> {
        let (queue, writing) = queue::start(io::stdout()).map_err(Error::Thread)?;
        let (subscriber, handle) = subscriber(filter, format, queue.clone());
        tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::Twice)?;
        let _ = QUEUE.set(queue.clone());
        Ok(Self {
            handle,
            first: filter.clone(),
            current: Mutex::new(filter.clone()),
            queue,
            _writing: writing,
        })
    }

    /// The filter in force.
    #[must_use]
    pub fn filter(&self) -> Filter {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another filter in force; `None` goes back to the one at the start.
    ///
    /// # Errors
    ///
    /// [`Error::Filter`]; the filter in force stays.
    pub fn change(&self, text: Option<&str>) -> Result<Filter, Error> {
        let filter = text.map_or_else(|| Ok(self.first.clone()), Filter::parse)?;
        // The subscriber lives as long as the process, so that the handle cannot dangle.
        let _ = self.handle.reload(filter.compile());
        let current = self.current.lock();
        *current.unwrap_or_else(PoisonError::into_inner) = filter.clone();
        Ok(filter)
    }

    /// Counts the lines that found the queue full.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        Dropped(self.queue.clone())
    }
}

/// A subscriber that writes lines to `to`, and the handle by which its filter is changed.
pub(crate) fn subscriber(
    filter: &Filter,
    format: Format,
    to: impl Sink,
) -> (
    Box<dyn Subscriber + Send + Sync>,
    reload::Handle<EnvFilter, Registry>,
) {
    let (filter, handle) = reload::Layer::new(filter.compile());
    let lines = Lines { format, to };
    let subscriber = Registry::default().with(filter).with(lines);
    (Box::new(subscriber), handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, valid: bool) {
        let parsed = Filter::parse(text);
        assert_eq!(parsed.is_ok(), valid, "{text:?} gave {parsed:?}");
    }

    #[test]
    fn filters_are_levels_and_targets_with_levels() {
        check("info", true);
        check("INFO", true);
        check("off", true);
        check("info,access=debug", true);
        check("warn, h2=trace", true);
        check("adit::tunnel=debug", true);
        check("verbose", false);
        check("", false);
        check("info,", false);
        check("access=loud", false);
    }

    #[test]
    fn a_target_is_kept_unless_it_is_named() {
        let check = |text: &str, expect: &str| {
            let kept = Filter::parse(text).unwrap().keeping("audit");
            assert_eq!(kept.as_str(), expect);
            assert_eq!(Filter::parse(expect).unwrap(), kept);
        };
        check("error", "error,audit=info");
        check("off,auditor=warn", "off,auditor=warn,audit=info");
        check("warn,audit=off", "warn,audit=off");
    }
}
