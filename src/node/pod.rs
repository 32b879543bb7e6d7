//! A captured pod, as a worker serves it.

use std::sync::Arc;

use crate::node::places::Share;
use crate::sys::netns::Netns;

/// One captured pod.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Its UID.
    pub(crate) uid: Arc<str>,
    /// `namespace/name`, for people.
    pub(crate) name: Arc<str>,
    /// Its network namespace.
    pub(crate) netns: Netns,
    /// What it holds of the daemon's places.
    pub(crate) share: Arc<Share>,
}
