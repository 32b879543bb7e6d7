//! Asking the API server: with a limit of time, and with credentials that may have changed.

use std::time::Duration;

use kube::Client;

use crate::cluster::{Access, Clients, client};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the API server gave no answer to work with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no way to ask.
    #[error("there is no access to the Kubernetes API")]
    Access(#[source] client::Error),
    /// We may not do that.
    #[error("the API server does not let us {attempt} ({status}): check the role of this account")]
    Forbidden {
        /// What was tried.
        attempt: &'static str,
        /// The server's words.
        status: String,
    },
    /// It could not be asked, or answered with an error.
    #[error("cannot {attempt}")]
    Failed {
        /// What was tried.
        attempt: &'static str,
        /// What came instead.
        #[source]
        cause: Box<kube::Error>,
    },
    /// No answer.
    #[error("cannot {attempt}: no answer from the API server within {PATIENCE:?}")]
    Silent {
        /// What was tried.
        attempt: &'static str,
    },
}

impl Error {
    /// The status code of the server's own refusal.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Failed { cause, .. } => match &**cause {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The API server, as this program asks it.
pub(crate) struct Kube {
    clients: Clients,
}

impl Kube {
    /// Asks by this access; nothing is reached yet.
    pub(crate) fn new(access: Access) -> Self {
        Self {
            clients: Clients::new(access),
        }
    }

    /// A client for a conversation that lasts.
    pub(crate) async fn client(&self) -> Result<(Client, client::Generation), Error> {
        self.clients.client().await.map_err(Error::Access)
    }

    /// Says that a client was refused: the next one is made from what the files say then.
    pub(crate) fn renew(&self, generation: client::Generation) {
        self.clients.renew(generation);
    }

    /// Does one thing; `attempt` follows "cannot".
    pub(crate) async fn ask<T, F>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(Client) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let (client, generation) = self.clients.client().await.map_err(Error::Access)?;
        let outcome = tokio::time::timeout(PATIENCE, work(client)).await;
        let cause = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(cause)) => cause,
            Err(_) => {
                self.clients.renew(generation);
                return Err(Error::Silent { attempt });
            }
        };
        let (code, status) = match &cause {
            kube::Error::Api(status) => (status.code, status.message.clone()),
            // It may be the authority that was exchanged, or the address.
            _ => (401, String::new()),
        };
        if code == 401 {
            self.clients.renew(generation);
        }
        if code == 403 {
            return Err(Error::Forbidden { attempt, status });
        }
        let cause = Box::new(cause);
        Err(Error::Failed { attempt, cause })
    }
}
