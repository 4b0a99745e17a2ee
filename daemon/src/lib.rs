//! The daemon: messages come in from SQS, replicas go out to S3.
//!
//! In the order data flows; each file uses only what stands at its own level or below:
//!
//! - `process`: what is set up with the operating system at the start; `pipeline`: the stations put
//!   together, and the order in which they stop; `signals`: what tells it to
//! - `status`, `failures`: what the running daemon says of itself and of what is parked, `admin`:
//!   how it says it
//! - `receiver`, `router`, `dispatch`, `ack`: the stations; `work_queues`: what the router sends
//!   to, and retries
//! - `runner`: one task at work; `task`, `message`: what travels, and what an event means
//! - `reconcile`: bringing one key at one destination up to date
//! - `engine`: what tasks share; `parking`: when a key is parked, and tried again;
//!   `other_daemons`: what a start has to wait for, and a second daemon where there may be one
//!   only; `lease`, `ledger`, `limits`, `concurrency`, `single_flight`, `budget`, `fair_queue`,
//!   `batcher`, `ttl_set`, `accounts`, `s3_http`, `checksum`, `health`, `metrics`, `clock`,
//!   `blocking`, `failpoint`, `panics`, `xml`: the services

mod accounts;
mod ack;
pub mod admin;
mod batcher;
mod blocking;
mod budget;
mod checksum;
pub mod clock;
mod concurrency;
mod dispatch;
mod engine;
pub mod failpoint;
pub mod failures;
mod fair_queue;
mod health;
mod lease;
pub mod ledger;
mod limits;
mod message;
mod metrics;
mod other_daemons;
pub mod panics;
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
mod signals;
mod single_flight;
pub mod status;
mod task;
mod ttl_set;
mod work_queues;
mod xml;
