//! The log: text or JSON lines on standard output, as container runtimes collect it.
//!
//! Lines go through a bounded queue to a thread of their own. When its reader is too slow, lines
//! are dropped and counted (`adit_log_lines_dropped_total`); nobody who logs ever waits. The
//! filter can be changed while the daemon runs.

use std::io;
use std::sync::{Mutex, PoisonError};

use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Most lines that wait for the log's thread.
const QUEUED_LINES: usize = 16_384;

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
    dropped: ErrorCounter,
    _writer: WorkerGuard,
}

impl Log {
    /// Sets up the log of this process, on standard output.
    ///
    /// # Errors
    ///
    /// [`Error::Twice`] when it has one already.
    pub fn start(filter: &Filter, format: Format) -> Result<Self, Error> {
        let (writer, guard) = queue(io::stdout());
        let dropped = writer.error_counter();
        let (subscriber, handle) = subscriber(filter, format, writer);
        tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::Twice)?;
        Ok(Self {
            handle,
            first: filter.clone(),
            current: Mutex::new(filter.clone()),
            dropped,
            _writer: guard,
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
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

fn queue(to: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_LINES)
        .thread_name("adit-log")
        .finish(to)
}

/// A subscriber that writes to `writer`, and the handle by which its filter is changed.
pub(crate) fn subscriber<W>(
    filter: &Filter,
    format: Format,
    writer: W,
) -> (
    Box<dyn Subscriber + Send + Sync>,
    reload::Handle<EnvFilter, Registry>,
)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter.compile());
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(writer);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    };
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
    fn a_slow_reader_costs_lines_and_no_time() {
        struct Stuck(std::sync::mpsc::Receiver<()>);
        impl io::Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (free, held) = std::sync::mpsc::channel();
        let (writer, guard) = queue(Stuck(held));
        let dropped = writer.error_counter();
        let (subscriber, _handle) = subscriber(&Filter::default(), Format::Text, writer);
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..QUEUED_LINES + 100 {
                tracing::info!("a line");
            }
        });
        assert!(dropped.dropped_lines() >= 98, "{}", dropped.dropped_lines());
        drop(free);
        drop(guard);
    }
}
