//! One request to the API server, and why it failed.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;

use crate::causes::Causes;
use crate::cluster::client;
use crate::source::Kind;

/// How long the head of an answer, or the next part of a list, may take.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

/// The longest explanation that is read.
const EXPLANATION: usize = 64 << 10;

/// Why a kind could not be listed or watched just now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("there is no client")]
    Client(#[source] client::Error),
    #[error("the API server does not answer")]
    Unreachable(#[source] Box<kube::Error>),
    #[error("the API server was silent for {0:?}")]
    Silent(Duration),
    #[error("the connection to the API server broke")]
    Broken(#[source] Box<kube::Error>),
    #[error("the API server does not take our credentials (401): {message}")]
    Unauthorized { message: String },
    #[error("{message} (403): grant list and watch of it to the daemon's service account")]
    Forbidden { message: String },
    #[error("the API server asks for patience (429): {message}")]
    Throttled {
        message: String,
        after: Option<Duration>,
    },
    /// The version to go on from is gone, or the server's store was put back.
    #[error("the API server has no history from where the watch was; listing anew")]
    Gone,
    #[error("the API server answers {code}: {message}")]
    Status {
        code: u16,
        message: String,
        after: Option<Duration>,
    },
    #[error("the API server's answer is malformed: {0}")]
    Malformed(String),
    #[error("the API server ends watches at once")]
    Hasty,
    #[error("{0} is defined, but not served yet")]
    NotServed(&'static str),
}

impl Failure {
    /// A stable word for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Client(_) => "no_client",
            Self::Unreachable(_) => "unreachable",
            Self::Silent(_) => "silent",
            Self::Broken(_) => "broken",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::Throttled { .. } => "throttled",
            Self::Gone => "gone",
            Self::Status { .. } => "status",
            Self::Malformed(_) => "malformed",
            Self::Hasty => "hasty",
            Self::NotServed(_) => "not_served",
        }
    }

    /// How long the server wants us to wait.
    pub(super) fn after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { after, .. } | Self::Status { after, .. } => *after,
            _ => None,
        }
    }

    /// Whether the server refuses the very question.
    pub(super) fn refuses(&self) -> bool {
        let code = match self {
            Self::Status { code, .. } => *code,
            _ => 0,
        };
        matches!(code, 400 | 422)
    }

    /// Whether the server does not serve what was asked for.
    pub(super) fn not_found(&self) -> bool {
        matches!(self, Self::Status { code: 404, .. })
    }

    /// What a status that is no success means.
    pub(super) fn status(code: u16, message: String, after: Option<Duration>) -> Self {
        match code {
            401 => Self::Unauthorized { message },
            403 => Self::Forbidden { message },
            410 => Self::Gone,
            429 => Self::Throttled { message, after },
            _ => Self::Status {
                code,
                message,
                after,
            },
        }
    }
}

/// Asks for `path_and_query` and gives the body of the answer; of a kind, or of anything.
pub(super) async fn ask(
    client: &Client,
    path_and_query: &str,
    metadata_of: Option<Form>,
) -> Result<Body, Failure> {
    let accept = metadata_of.map_or("application/json", Form::accept);
    let request = Request::get(path_and_query)
        .header(ACCEPT, accept)
        .body(Body::empty())
        .map_err(|error| Failure::Malformed(error.to_string()))?;
    let answer = tokio::time::timeout(ANSWER, client.send(request)).await;
    let response = answer
        .map_err(|_| Failure::Silent(ANSWER))?
        .map_err(|error| Failure::Unreachable(Box::new(error)))?;
    if response.status() == StatusCode::OK {
        return Ok(response.into_body());
    }
    Err(refusal(response).await)
}

/// In which form objects are asked for, when only their metadata is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    List,
    Watch,
}

impl Form {
    fn accept(self) -> &'static str {
        match self {
            Self::List => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Self::Watch => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        }
    }
}

async fn refusal(response: Response<Body>) -> Failure {
    #[derive(Deserialize)]
    struct Status {
        message: Option<String>,
    }
    let code = response.status().as_u16();
    let after = response.headers().get(RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
    let after = after.map(Duration::from_secs);
    let body = http_body_util::Limited::new(response.into_body(), EXPLANATION);
    let body = tokio::time::timeout(ANSWER, body.collect()).await;
    let bytes = match body {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    };
    let status = serde_json::from_slice::<Status>(&bytes).ok();
    let message = status.and_then(|status| status.message).unwrap_or_else(|| {
        let text = String::from_utf8_lossy(&bytes);
        text.trim().chars().take(200).collect()
    });
    Failure::status(code, message, after)
}

/// Reads a whole body, which may take as long as it goes on.
pub(super) async fn whole(mut body: Body) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::time::timeout(ANSWER, body.frame()).await;
        match frame.map_err(|_| Failure::Silent(ANSWER))? {
            None => return Ok(bytes),
            Some(Err(error)) => return Err(Failure::Broken(Box::new(error))),
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
        }
    }
}

/// What a kind's failure means to a person.
pub(super) fn explain(kind: Kind, failure: &Failure, read_once: bool) -> String {
    let stands = if read_once {
        "what was last read stands"
    } else {
        "pods are served only once it has been read"
    };
    format!(
        "{} cannot be watched: {}; {stands}",
        kind.as_str(),
        Causes(failure)
    )
}
