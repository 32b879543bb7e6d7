//! Where the control loop's objects come from: files that are looked at, or a watch.
//!
//! Both end in the same question, [`Feed::next`], which waits for what is new. Reading happens
//! elsewhere: of files on the blocking pool, of the API server on the watch's own thread.

use std::io;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::node::config::Source;
use crate::source::Files;
use crate::source::kube::{Health, Kube, Settings, Update};
use crate::task::{self, Task};

/// How often the files are looked at: a change takes effect within a second.
const POLL: Duration = Duration::from_millis(250);

/// The objects of the cluster, as they come.
pub(crate) enum Feed {
    /// Files, and the task that looks at them.
    Files(
        mpsc::Receiver<Update>,
        #[expect(dead_code, reason = "it ends when dropped")] Task,
    ),
    /// A watch.
    Kube(Kube),
}

impl Feed {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub(crate) fn start(source: &Source) -> io::Result<Self> {
        match source {
            Source::Files(paths) => Ok(Self::files(Files::new(paths.clone()))),
            Source::Kube { access, silence } => {
                let settings = Settings {
                    access: access.clone(),
                    silence: *silence,
                };
                Kube::start(settings).map(Self::Kube)
            }
        }
    }

    fn files(mut files: Files) -> Self {
        let (said, received) = mpsc::channel(1);
        let look = async move {
            loop {
                let read = task::blocking("read sources", move || {
                    let poll = files.poll();
                    (files, poll)
                });
                let Some((back, poll)) = read.await else {
                    return;
                };
                files = back;
                // Files are read whole: after the first look nothing is missing.
                let synced = true;
                if said.send(Update { poll, synced }).await.is_err() {
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        Self::Files(received, task::spawn("poll", look))
    }

    /// Waits for what is new; it may be dropped while it waits. `None` when nothing comes any more,
    /// which is no state that this can get into by itself.
    pub(crate) async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Files(received, _) => received.recv().await,
            Self::Kube(kube) => kube.next().await,
        }
    }

    /// How each watch is; nothing for files.
    pub(crate) fn health(&self) -> Vec<Health> {
        match self {
            Self::Files(..) => Vec::new(),
            Self::Kube(kube) => kube.health(),
        }
    }
}
