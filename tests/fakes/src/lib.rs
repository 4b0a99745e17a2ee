//! The services that the daemon talks to, in one process: whole enough to be believed,
//! deterministic for a seed, and able to misbehave by script.
//!
//! Nothing here asks the system for time or randomness: time is tokio's, which a test may pause,
//! and randomness comes from a seed. Only `net` spawns, and only `wire` opens sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a world that is broken ends its test at once"
)]

pub mod clock;
pub mod faults;
pub mod journal;
pub mod kms;
pub mod net;
pub mod s3;
pub mod sqs;
pub mod wire;

#[cfg(test)]
mod together;
