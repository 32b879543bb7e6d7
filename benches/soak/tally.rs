//! What has happened: connections by kind, bytes, and what went wrong.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::traffic::Kind;

/// More findings than these say nothing new.
const MOST: usize = 50;

/// Shared by everything that takes part.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ended: AtomicBool,
    /// By kind: begun by clients, ended as they should at clients, and at servers.
    kinds: [[AtomicU64; 3]; Kind::ALL.len()],
    bytes: AtomicU64,
    /// Connections that servers hold at present.
    served: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Begun = 0,
    Client = 1,
    Server = 2,
}

impl Tally {
    /// Clients may go on from now.
    pub(crate) fn begin(&self) {
        self.ended.store(false, Ordering::Relaxed);
    }

    /// Clients make no new connections, and end those that go on.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, kind: Kind, end: End) {
        self.kinds[kind as usize][end as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn serving(&self, begins: bool) {
        if begins {
            self.served.fetch_add(1, Ordering::Relaxed);
        } else {
            self.served.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    pub(crate) fn fail(&self, words: String) {
        let mut failures = self.failures.lock().expect("no holder panics");
        if failures.len() < MOST {
            failures.push(words);
        }
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no holder panics").clone()
    }

    pub(crate) fn connections(&self) -> u64 {
        Kind::ALL
            .iter()
            .map(|&kind| self.get(kind, End::Begun))
            .sum()
    }

    fn get(&self, kind: Kind, end: End) -> u64 {
        self.kinds[kind as usize][end as usize].load(Ordering::Relaxed)
    }

    /// Whatever began must have ended as it should, at both ends.
    pub(crate) fn balance(&self) {
        for kind in Kind::ALL {
            let [begun, client, server] =
                [End::Begun, End::Client, End::Server].map(|end| self.get(kind, end));
            // Where nobody listens, and where a reset overtakes the connection, no server sees it.
            let right = match kind {
                Kind::Refused => server == 0,
                Kind::ClientReset => server <= begun,
                _ => server == begun,
            };
            if begun == 0 {
                self.fail(format!("no connection of the kind {kind:?} was made"));
            }
            if client != begun || !right {
                self.fail(format!(
                    "{kind:?}: {begun} begun, {client} ended well at the client, {server} at the server"
                ));
            }
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<14} {:>9} {:>9} {:>9}\n",
            "kind", "begun", "client ok", "server ok"
        );
        for kind in Kind::ALL {
            let [begun, client, server] =
                [End::Begun, End::Client, End::Server].map(|end| self.get(kind, end));
            let name = format!("{kind:?}");
            let _ = writeln!(text, "{name:<14} {begun:>9} {client:>9} {server:>9}");
        }
        let bytes = self.bytes.load(Ordering::Relaxed) as f64 / f64::from(1 << 30);
        let _ = writeln!(text, "{bytes:.2} GiB compared, byte by byte");
        text
    }
}
