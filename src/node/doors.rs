//! Where this daemon is to be reached: its ports, and its sockets in the run directory.
//!
//! While two daemons live on a node each door is one's alone. The ports of a namespace are the next
//! daemon's from its first word on, so that whoever asks them for readiness asks that one; the
//! sockets in the run directory go with the pods.

use std::fs;
use std::rc::Rc;

use tokio::sync::{mpsc, watch};

use crate::causes::Causes;
use crate::node::admin::Desk;
use crate::node::handover::{self, Wish};
use crate::node::plugin::{self, Asked};
use crate::node::start::StartError;
use crate::task::{self, Task};
use crate::telemetry::http::{self, Listener};

/// What comes in through the doors.
pub(crate) struct Callers {
    /// From the CNI plugin.
    pub(crate) plugin: mpsc::UnboundedReceiver<Asked>,
    /// From the next daemon.
    pub(crate) successor: mpsc::UnboundedReceiver<Wish>,
}

/// All doors, open or not.
pub(crate) struct Doors {
    desk: Rc<Desk>,
    /// Whether the mesh is over, for the installer of the CNI plugin.
    over: watch::Receiver<bool>,
    asked: mpsc::UnboundedSender<Asked>,
    wishes: mpsc::UnboundedSender<Wish>,
    /// Admin, metrics and readiness.
    ports: Vec<Task>,
    /// Whether these are the next daemon's.
    lent: bool,
    admin: Option<Task>,
    plugin: Option<Task>,
    handover: Option<Task>,
    install: Option<Task>,
    /// Why one could not be opened, when last told.
    told: Option<String>,
}

impl Doors {
    /// All closed. Once the mesh is `over`, the CNI plugin is removed instead of installed.
    pub(crate) fn new(desk: Rc<Desk>, over: watch::Receiver<bool>) -> (Self, Callers) {
        let (asked, plugin) = mpsc::unbounded_channel();
        let (wishes, successor) = mpsc::unbounded_channel();
        let doors = Self {
            desk,
            over,
            asked,
            wishes,
            ports: Vec::new(),
            lent: false,
            admin: None,
            plugin: None,
            handover: None,
            install: None,
            told: None,
        };
        (doors, Callers { plugin, successor })
    }

    /// Opens all of them, for a daemon that is to be alone on its node.
    pub(crate) fn open(&mut self) -> Result<(), StartError> {
        let path = self.desk.config.admin_socket();
        let admin = Listener::unix(&path).map_err(not_here)?;
        self.admin = Some(self.admin_server(admin));
        self.open_ports()?;
        self.open_here()
    }

    /// Opens the ports, if they are not open.
    pub(crate) fn open_ports(&mut self) -> Result<(), StartError> {
        if !self.ports.is_empty() {
            return Ok(());
        }
        let config = &self.desk.config;
        let tcp = |purpose, address, flag| {
            Listener::tcp(address).map_err(|cause: http::Error| cause.of(purpose, flag))
        };
        let admin = tcp("admin", config.admin, "--admin")?;
        let metrics = tcp("metrics", config.metrics, "--metrics")?;
        let ready = tcp("readiness", config.ready, "--ready")?;
        let desk = self.desk.clone();
        let metrics = http_server(metrics, move |request| {
            let response = http::admin::metrics(&*desk, &request);
            async move { response }
        });
        let desk = self.desk.clone();
        let ready = http_server(ready, move |request| {
            let response = http::admin::ready(&*desk, &request);
            async move { response }
        });
        self.ports = vec![self.admin_server(admin), metrics, ready];
        Ok(())
    }

    /// Opens what is in the run directory and not open, in the place of whoever served there; and
    /// sees to the CNI plugin from now on.
    fn open_here(&mut self) -> Result<(), StartError> {
        let config = &self.desk.config;
        if self.admin.is_none() {
            let admin = Listener::unix_instead(&config.admin_socket()).map_err(not_here)?;
            self.admin = Some(self.admin_server(admin));
        }
        let config = &self.desk.config;
        if self.plugin.is_none() {
            let socket = config.plugin_socket();
            let served = plugin::serve(&socket, self.asked.clone());
            self.plugin = Some(served.map_err(|cause| StartError::Plugin(socket, cause))?);
        }
        if self.handover.is_none() {
            let socket = config.handover_socket();
            let served = handover::serve(&socket, self.wishes.clone());
            self.handover = Some(served.map_err(|cause| StartError::RunDir(socket, cause))?);
        }
        if let (None, Some(install)) = (&self.install, config.install.clone()) {
            let installed = self.desk.shared.metrics.daemon.plugin_installed.clone();
            let keep = plugin::keep(config.clone(), install, installed, self.over.clone());
            self.install = Some(task::spawn("install", keep));
        }
        Ok(())
    }

    /// Opens whatever should be open in a daemon in charge and is not. Called again and again: who
    /// has what is missing may be about to end.
    pub(crate) fn tend(&mut self) {
        let here = self.open_here();
        let ports = |()| if self.lent { Ok(()) } else { self.open_ports() };
        match here.and_then(ports) {
            Ok(()) => self.told = None,
            Err(error) => {
                let why = Causes(&error).to_string();
                if self.told.as_ref() != Some(&why) {
                    tracing::error!(error = %why, "cannot be reached, will try again");
                }
                self.told = Some(why);
            }
        }
    }

    /// Lets go of the ports.
    pub(crate) fn lend_ports(&mut self) {
        self.ports.clear();
        self.lent = true;
    }

    /// Opens everything again in a daemon that is alone again. What is in the run directory was
    /// another's since, if it was `handed`.
    pub(crate) fn return_to(&mut self, handed: bool) {
        self.lent = false;
        if handed {
            self.admin = None;
            self.plugin = None;
            self.handover = None;
        }
        self.tend();
    }

    /// The next daemon stands at the sockets in the run directory now. Who found this one there
    /// before is still answered.
    pub(crate) fn stand_aside(&mut self) {
        self.install = None;
        self.close_handover();
    }

    /// No daemon is to take over from this one any more.
    pub(crate) fn close_handover(&mut self) {
        self.handover = None;
    }

    /// The same, and the socket's path goes, which otherwise stays for whoever is next: the node is
    /// left for good.
    pub(crate) fn leave(&mut self) {
        self.close_handover();
        let _ = fs::remove_file(self.desk.config.handover_socket());
    }

    fn admin_server(&self, listener: Listener) -> Task {
        let desk = self.desk.clone();
        http_server(listener, move |request| {
            let desk = desk.clone();
            async move { http::admin::admin(&*desk, request).await }
        })
    }
}

fn not_here(cause: http::Error) -> http::Unserved {
    cause.of("admin", "--run-dir")
}

fn http_server<A>(listener: Listener, route: impl Fn(http::Request) -> A + 'static) -> Task
where
    A: Future<Output = http::Response> + 'static,
{
    task::spawn_local("http", async move {
        let Err(error) = http::serve(listener, route).await;
        tracing::error!(error = %error, "an admin server ended");
    })
}
