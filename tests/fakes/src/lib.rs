//! The services that the daemon talks to, in one process: whole enough to be believed, deterministic
//! for a seed, and able to misbehave by script.
//!
//! Nothing here sleeps, asks the system for time or randomness, or spawns: time is tokio's, which a
//! test may pause, and randomness comes from a seed.

pub mod clock;
pub mod faults;
pub mod journal;
pub mod kms;
pub mod s3;
pub mod sqs;
pub mod wire;
