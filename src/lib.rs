//! Adit: one daemon per Kubernetes node that carries pods' TCP traffic through mutually
//! authenticated tunnels.
//!
//! A connection makes a journey, **capture → identify → authorize → tunnel → deliver**, and five
//! modules bear these names. Programs walk the journey; ground is what both stand on.
//! ARCHITECTURE.md tells a connection's way file by file; `tests/architecture.rs` holds the layers.
#![deny(clippy::unwrap_used, clippy::disallowed_methods)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod cli;
pub mod config;

pub mod check;
pub mod cni;
pub mod control;
pub mod inspect;
pub mod node;

pub mod explain;

pub mod authorize;
pub mod capture;
pub mod deliver;
pub mod identify;
pub mod tunnel;

pub mod pki;
pub mod source;
pub mod telemetry;

pub mod api;
pub mod cluster;
pub mod pipe;
pub mod task;

pub mod causes;
pub mod mesh;
pub mod quota;
pub mod sys;
