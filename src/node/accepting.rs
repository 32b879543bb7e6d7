//! One listener of a pod on one worker: accepted on, left alone for a while, copied for the next
//! daemon.

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use crate::capture::{self, ACCEPT_PAUSE, AcceptError, Accepted, Port};
use crate::causes::Causes;
use crate::node::pod::Pod;
use crate::node::worker::Worker;
use crate::node::{inbound, outbound, plaintext};
use crate::sys::socket::Acceptor;
use crate::task::{self, Task};

/// A listener, and the task that accepts on it. It closes when this is dropped.
pub(crate) struct Accepting {
    listener: Rc<Acceptor>,
    port: Port,
    /// `None` while nobody is to accept.
    task: Option<Task>,
}

impl Accepting {
    /// Begins to accept.
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        pod: &Rc<Pod>,
        listener: Acceptor,
        port: Port,
    ) -> Self {
        let mut accepting = Self {
            listener: Rc::new(listener),
            port,
            task: None,
        };
        accepting.resume(worker, pod);
        accepting
    }

    /// Whether the listener has broken.
    pub(crate) fn is_over(&self) -> bool {
        self.task.as_ref().is_some_and(Task::is_over)
    }

    /// Accepts nothing for now.
    pub(crate) fn pause(&mut self) {
        if !self.is_over() {
            self.task = None;
        }
    }

    /// Accepts again, if it does not.
    pub(crate) fn resume(&mut self, worker: &Rc<Worker>, pod: &Rc<Pod>) {
        if self.task.is_none() {
            let (worker, pod) = (worker.clone(), pod.clone());
            let work = accept(worker, pod, self.listener.clone(), self.port);
            self.task = Some(task::spawn_local("accept", work));
        }
    }

    /// Closes it, and waits until it is closed.
    pub(crate) async fn end(self) {
        if let Some(task) = self.task {
            task.end().await;
        }
    }

    /// Another descriptor of the same listener, unless it has broken.
    pub(crate) fn copy(&self) -> Option<OwnedFd> {
        let sound = !self.is_over();
        sound.then(|| self.listener.as_fd().try_clone_to_owned().ok())?
    }
}

/// Accepts on one listener until it is dropped.
async fn accept(worker: Rc<Worker>, pod: Rc<Pod>, listener: Rc<Acceptor>, port: Port) {
    loop {
        match capture::accept(&listener, port).await {
            Ok(Accepted::Refused(refused)) => {
                tracing::info!(
                    pod = %pod.name,
                    src.addr = %refused.source,
                    dst.addr = %refused.dialled,
                    "connection to one of our own ports refused",
                );
            }
            Ok(Accepted::Captured(captured)) => {
                let (worker, pod) = (worker.clone(), pod.clone());
                match port {
                    Port::Outbound => outbound::serve(worker, pod, captured),
                    Port::Inbound => plaintext::serve(worker, pod, captured),
                    Port::Tunnel => inbound::serve(worker, pod, captured),
                }
            }
            Err(error @ AcceptError::Exhausted(_)) => {
                worker.exhausted(&pod, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The next comparison with the kernel finds it gone and makes another.
            Err(error @ AcceptError::Broken(_)) => {
                tracing::error!(pod = %pod.name, error = %Causes(&error), "listener broke");
                return;
            }
        }
    }
}
