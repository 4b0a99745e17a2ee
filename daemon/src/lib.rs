//! The daemon: messages come in from SQS, replicas go out to S3.
//!
//! In the order data flows; each file uses only what stands at its own level or below:
//!
//! - `pipeline`: the stations put together, and the order in which they stop
//! - `status`, `failures`: the commands that show the running daemon's state and parked tasks;
//!   `admin`: the HTTP endpoints that they read
//! - `receiver`, `router`, `dispatch`, `ack`: the stations; `work_queues`: sends to FIFO queues
//! - `runner`: one task at work; `ruleset`: what an event means; `parking`: the schedule of parked
//!   tasks; `task`, `message`: what travels; `hidden_events`: bound on events left in their queue
//! - `reconcile`: bringing one key at one destination up to date
//! - `engine`: what tasks share; `predecessor`: the wait after an unclean stop; `second_daemon`:
//!   detects a second daemon where only one may be
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
mod hidden_events;
mod lease;
pub mod ledger;
mod limits;
mod message;
mod metrics;
mod parking;
pub mod pipeline;
#[cfg(test)]
mod poison;
mod predecessor;
pub mod process;
mod receiver;
mod reconcile;
mod retries;
mod router;
mod ruleset;
mod runner;
mod s3_http;
mod second_daemon;
mod single_flight;
pub mod status;
mod task;
mod work_queues;
mod xml;
