//! What our own processes tell each other and people, as plain serialisable values.
//!
//! No I/O, no clock, no logging: the node fills these in, the command line reads or prints them.

pub mod explain;
