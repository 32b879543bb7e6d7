//! The certificate authority of a cluster: `adit control`.
//!
//! ```text
//!  node ── TLS, gRPC ─▶ serving ─▶ service ─▶ rules (pure) ─▶ sign ─▶ audit record
//!                                    │  ▲                       ▲
//!                 TokenReview ◀──────┘  └── pods (watch)        │
//!                 Secret ─▶ keeper ── authority in force ───────┘──▶ ConfigMap with the roots
//! ```
//!
//! Any number of replicas run side by side and share nothing but the API server's objects. A key is
//! made once, at the first start, or is brought by the user. Rotating roots is a person's decision
//! ([`ca`], which may run anywhere); what makes it safe is decided by `rotation`.

pub mod ca;
pub mod config;
mod keeper;
mod kube;
mod limits;
mod pods;
mod rotation;
mod rules;
mod service;
mod serving;
mod start;
mod store;

pub use config::{Config, KeySpec};
pub use start::{StartError, run};
