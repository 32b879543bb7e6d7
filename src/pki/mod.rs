//! Keys and certificates: who may say that it is a workload of this node.
//!
//! [`Certificates`] keeps one [`Certificate`] for each identity that is present on the node, and
//! gets them from an [`Issuer`]; [`directory::DirectoryCa`] is the issuer that needs nothing but a
//! directory, [`remote::RemoteCa`] the one that asks another program. [`crate::tunnel`] builds TLS from a certificate and checks its peers with
//! [`identity_of`] and [`verify_path`].
//!
//! Rules: when to renew is decided by [`rotate`], which knows neither clock nor chance. A renewal
//! that fails changes nothing but a fact that the program is told ([`Event`]). A private key is
//! never formatted, and leaves memory only for the file of the directory's root.

pub mod authority;
mod certificate;
mod certificates;
mod crypto;
pub mod csr;
pub mod directory;
mod facts;
pub mod grpc;
mod issue;
mod ledger;
mod name;
pub mod remote;
pub mod rotate;

pub use certificate::{Certificate, Parts, UnusableCertificate};
pub use certificates::Certificates;
pub use crypto::{provider, verify_path};
pub use facts::{CertificateStatus, Event, Standing, WaitError};
pub use issue::{IssueError, Issuer, Request};
pub use name::{NameError, identity_of};
