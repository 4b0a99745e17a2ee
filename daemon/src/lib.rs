//! The daemon: messages come in from SQS, replicas go out to S3.
//!
//! In the order data flows; each file uses only what stands at its own level or below:
//!
//! - `pipeline`: the stations put together, and the order in which they stop
//! - `status`, `failures`: the commands that show the running daemon's state and parked tasks;
//!   `admin`: the HTTP endpoints that they read
//! - `receiver`, `router`, `dispatch`, `ack`: the stations; `work_queues`: sends to FIFO queues
//! - `runner`: one task at work; `task`, `message`: what travels, and what an event means
//! - `reconcile`: bringing one key at one destination up to date
//! - `engine`: what tasks share; `parking`: when a key is parked, and tried again;
//!   `other_daemons`: the wait after an unclean stop, and a second daemon where only one may be
//! - `lease`, `ledger`, `limits`, `concurrency`, `single_flight`, `budget`, `batcher`, `accounts`,
//!   `s3_http`, `checksum`, `health`, `metrics`, `clock`, `process`, `failpoint`, `xml`: the services

mod accounts;
mod ack;
pub mod admin;
mod batcher;
mod budget;
mod checksum;
pub mod clock;
mod concurrency;
mod dispatch;
mod engine;
pub mod failpoint;
pub mod failures;
mod health;
mod lease;
pub mod ledger;
mod limits;
mod message;
mod metrics;
mod other_daemons;
mod parking;
pub mod pipeline;
#[cfg(test)]
mod poison;
pub mod process;
mod receiver;
mod reconcile;
mod router;
mod runner;
mod s3_http;
mod single_flight;
pub mod status;
mod task;
mod work_queues;
mod xml;
