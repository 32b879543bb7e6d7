//! A captured socket that nobody has taken on yet.

use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// A socket that is reset if it is dropped before something relays it: the application at its
/// other end must not take a refusal for an orderly end.
#[derive(Debug)]
pub(crate) struct ResetOnDrop(Option<TcpStream>);

impl ResetOnDrop {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self(Some(socket))
    }

    /// Hands the socket on.
    pub(crate) fn into_inner(mut self) -> TcpStream {
        self.0.take().expect("taken only here, by value")
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            // A socket that cannot be set is broken already.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}
