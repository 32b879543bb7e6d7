//! The Kubernetes API server as such: how it is reached.
//!
//! What is asked of it is the business of who asks: [`source`](crate::source) watches objects.

pub mod client;
mod query;

pub use client::{Access, Clients};
pub use query::encoded;
