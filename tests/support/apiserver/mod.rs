//! A fake Kubernetes API server: real TCP, real HTTP, real semantics of lists and watches, and
//! every fault on command.
//!
//! ```text
//! let api = ApiServer::start(Options::default());
//! api.put(json!({ "apiVersion": "v1", "kind": "Pod", … }));     // as it stands, status and all
//! api.fail("pods", Call::List, 1, Fault::Status(429, Some(1)));   // the next list of pods
//! api.break_watches("pods", Break::MidLine);                      // all that run now
//! std::fs::write(path, api.kubeconfig(Some("token")))…            // for KUBECONFIG
//! ```
//!
//! The store ([`store`]) knows no types: an object is JSON with `apiVersion`, `kind` and
//! `metadata`. Through HTTP ([`routes`]) objects are created, replaced, patched and deleted as the
//! real server does it: 409 for what is there already or was written against an older version,
//! status only through its subresource, definitions that make resources appear. Watches
//! ([`watch`]) read the history from any version that is not compacted, send bookmarks, and send
//! initial events where [`Options::streaming`] says so. Service accounts get tokens, and reviews
//! know them ([`tokens`]).
//!
//! It runs on a thread of its own until dropped, in a network namespace where one is given.

mod cluster;
mod routes;
mod server;
mod store;
mod tokens;
mod watch;

pub(crate) use cluster::Synthetic;
pub(crate) use server::{ApiServer, Break, Call, Fault, Options, Review};
pub(crate) use store::Resource;
