//! Lines on their way to the log's thread.
//!
//! Whoever logs appends to a buffer that it hardly ever shares and goes on; a thread of the log
//! gathers for a moment and writes all buffers at once. It is woken only when nothing waited
//! before, because waking a sleeping processor costs more than a line. What finds its buffer full
//! is dropped and counted: the reader is too slow, and nobody who logs ever waits for it.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::telemetry::line::Sink;

/// How long lines are gathered. An error does not wait.
const GATHER: Duration = Duration::from_millis(20);
/// Threads beyond so many share buffers.
const BUFFERS: usize = 16;
/// The bytes that one buffer takes.
const FULL: usize = 1 << 20;
/// What an empty buffer may keep for the next lines.
const KEPT: usize = 64 * 1024;
/// How long the end of the log is waited for: its reader may be stuck.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lines that wait to be written.
pub(crate) struct Queue {
    buffers: [Buffer; BUFFERS],
    /// Whether there may be lines in the buffers; the log's thread sleeps until then.
    waiting: AtomicBool,
    /// Whether they are to be written without gathering more.
    urgent: AtomicBool,
    /// Whether some that are in no buffer any more are being written.
    writing: AtomicBool,
    closing: AtomicBool,
    dropped: AtomicU64,
    thread: OnceLock<Thread>,
}

/// The lines of a thread. Aligned so that threads share no cache line.
#[derive(Default)]
#[repr(align(64))]
struct Buffer(Mutex<Vec<u8>>);

/// The log's thread. Dropped, it writes what waits and ends.
pub(crate) struct Writing {
    queue: Arc<Queue>,
    over: mpsc::Receiver<()>,
}

thread_local! {
    /// Which buffer this thread appends to.
    static BUFFER: Cell<usize> = Cell::new(THREADS.fetch_add(1, SeqCst) % BUFFERS);
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// A queue, and the thread that writes it to `to`.
///
/// # Errors
///
/// The system refused a thread.
pub(crate) fn start(to: impl Write + Send + 'static) -> io::Result<(Arc<Queue>, Writing)> {
    let queue = Arc::new(Queue {
        buffers: Default::default(),
        waiting: AtomicBool::default(),
        urgent: AtomicBool::default(),
        writing: AtomicBool::default(),
        closing: AtomicBool::default(),
        dropped: AtomicU64::default(),
        thread: OnceLock::new(),
    });
    let (alive, over) = mpsc::channel();
    let of_thread = queue.clone();
    let work = move || {
        of_thread.write(to);
        drop(alive);
    };
    let thread = thread::Builder::new().name("adit-log".into()).spawn(work)?;
    let _ = queue.thread.set(thread.thread().clone());
    let writing = Writing {
        queue: queue.clone(),
        over,
    };
    Ok((queue, writing))
}

impl Sink for Arc<Queue> {
    fn line(&self, level: Level, line: &[u8]) {
        let mut buffer = self.buffers[BUFFER.get()].lock();
        let after = buffer.len() + line.len();
        if after > FULL {
            drop(buffer);
            self.dropped.fetch_add(1, SeqCst);
            return;
        }
        buffer.extend_from_slice(line);
        drop(buffer);
        // Only after the append, so that who takes the flag back finds the line. The first look
        // is cheap, and right: a line that was appended after its buffer was emptied sees the flag
        // as it was put before that.
        let first = !self.waiting.load(SeqCst) && !self.waiting.swap(true, SeqCst);
        let urgent = level == Level::ERROR || after > FULL / 2;
        if (urgent && !self.urgent.swap(true, SeqCst)) || first {
            self.wake();
        }
    }
}

impl Queue {
    /// How many lines found their buffer full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(SeqCst)
    }

    /// Has everything written that was logged before; gives up after `patience`.
    pub(crate) fn flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        self.urgent.store(true, SeqCst);
        self.wake();
        while self.waiting.load(SeqCst) || self.writing.load(SeqCst) {
            if Instant::now() >= until {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The log's thread.
    fn write(&self, mut to: impl Write) {
        let mut lines = Vec::new();
        let mut closing = false;
        while !closing {
            closing = self.gather();
            self.writing.store(true, SeqCst);
            self.urgent.store(false, SeqCst);
            self.waiting.store(false, SeqCst);
            self.take(&mut lines);
            // There is nobody to tell.
            let _ = to.write_all(&lines).and_then(|()| to.flush());
            lines.clear();
            lines.shrink_to(KEPT);
            self.writing.store(false, SeqCst);
        }
    }

    /// Sleeps until there is something to write, and a little longer; whether it is the last.
    fn gather(&self) -> bool {
        let closing = || self.closing.load(SeqCst);
        while !self.waiting.load(SeqCst) && !closing() {
            thread::park();
        }
        let until = Instant::now() + GATHER;
        while !self.urgent.load(SeqCst) && !closing() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
        closing()
    }

    /// Empties all buffers into `lines`, which are empty.
    fn take(&self, lines: &mut Vec<u8>) {
        let mut other = Vec::new();
        for buffer in &self.buffers {
            if lines.is_empty() {
                std::mem::swap(&mut *buffer.lock(), lines);
            } else {
                // Copied when nobody waits for the buffer any more.
                std::mem::swap(&mut *buffer.lock(), &mut other);
                lines.extend_from_slice(&other);
                other.clear();
            }
        }
    }
}

impl Buffer {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        // An append cannot leave half a line behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl fmt::Debug for Writing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writing").finish_non_exhaustive()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.queue.closing.store(true, SeqCst);
        self.queue.wake();
        // An answer or the end of the thread, which are the same.
        let _ = self.over.recv_timeout(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written, call by call.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Written {
        fn calls(&self) -> Vec<Vec<u8>> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_of_many_threads_come_whole_and_in_order() {
        const THREADS: usize = BUFFERS + 4;
        const LINES: usize = 2000;
        let written = Written::default();
        let (queue, writing) = start(written.clone()).unwrap();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let queue = &queue;
                scope.spawn(move || {
                    for line in 0..LINES {
                        queue.line(Level::INFO, format!("{thread} {line}\n").as_bytes());
                    }
                });
            }
        });
        drop(writing);
        assert_eq!(queue.dropped(), 0);
        let mut next = [0; THREADS];
        for line in String::from_utf8(written.calls().concat()).unwrap().lines() {
            let (thread, line) = line.split_once(' ').unwrap();
            let (thread, line): (usize, usize) = (thread.parse().unwrap(), line.parse().unwrap());
            assert_eq!(line, next[thread], "of thread {thread}");
            next[thread] += 1;
        }
        assert_eq!(next, [LINES; THREADS]);
    }

    #[test]
    fn lines_are_gathered_and_errors_are_not() {
        let written = Written::default();
        let (queue, _writing) = start(written.clone()).unwrap();
        for _ in 0..100 {
            queue.line(Level::INFO, b"a line\n");
        }
        queue.flush(Duration::from_secs(10));
        let calls = written.calls();
        assert_eq!(calls.concat().len(), 700);
        // A test machine may pause, but not at each line.
        assert!(calls.len() < 50, "{} writes", calls.len());
        queue.line(Level::ERROR, b"an error\n");
        let since = Instant::now();
        while !written.calls().concat().ends_with(b"an error\n") {
            assert!(since.elapsed() < Duration::from_secs(10), "it is written");
            thread::yield_now();
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_no_time() {
        struct Stuck(mpsc::Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (free, held) = mpsc::channel();
        let (queue, writing) = start(Stuck(held)).unwrap();
        let line = [b'x'; 1024];
        // One buffer is being written, at most, and one is full.
        for _ in 0..3 * FULL / line.len() {
            queue.line(Level::INFO, &line);
        }
        assert!(queue.dropped() >= (FULL / line.len()) as u64);
        queue.flush(Duration::from_millis(10));
        drop(free);
        drop(writing);
    }
}
