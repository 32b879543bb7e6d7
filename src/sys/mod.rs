//! The kernel, wrapped: every system call that the standard library does not offer, and the only
//! `unsafe` of the crate.
//!
//! Nothing here decides anything. A function does one thing to the kernel and says what happened.
#![allow(unsafe_code)]

pub mod netlink;
pub mod netns;
pub mod process;
pub mod route;
pub mod seqpacket;
pub mod sockdiag;
pub mod socket;
