//! HTTP/2 for tunnels (RFC 9113): CONNECT streams on one connection, with little memory for each.
//!
//! Pure: no socket and no clock. [`Connection`] is fed with what arrived, cut anywhere, and says
//! what is to be written; the [`link`](crate::tunnel::link) around it does the I/O. It is made for
//! what tunnels do and for nothing else: no push, no priorities, no trailers of our own.
//!
//! | file | what |
//! |---|---|
//! | `frame`, `reason` | frames as bytes; error codes |
//! | `hpack`, `fields` | header blocks; the rules for heads |
//! | `flow` | windows |
//! | `table`, `pieces` | streams in little memory; what waits for them |
//! | `connection` | the machine: what arrives, what streams do, what is written |
//!
//! **Sending holds nothing.** A stream that may send writes its frame to the wire at once; what
//! waits waits with the application. **Receiving copies nothing**: DATA goes on as a slice of what
//! was received, unless it has to wait.

pub(crate) mod connection;
pub(crate) mod fields;
mod flow;
mod frame;
pub(crate) mod hpack;
mod pieces;
mod reason;
mod table;

pub(crate) use connection::{Config, Connection, Fate, Role, Room, Sink};
pub(crate) use fields::Fields;
pub use reason::{Failure, Reason};
pub(crate) use table::Slot;
