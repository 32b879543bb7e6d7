//! x
mod limits;
mod rotation;
mod rules;
mod store;
