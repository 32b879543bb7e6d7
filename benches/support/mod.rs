//! What the benchmarks share: a network of namespaces, programs that run in it, and what the kernel
//! says of them.
//!
//! The tests have a harness of their own (`tests/support`), made to ask about behaviour. This one is
//! made to stay out of the way of what is measured.

pub(crate) mod adit;
pub(crate) mod child;
pub(crate) mod envoy;
pub(crate) mod net;
pub(crate) mod netns;
