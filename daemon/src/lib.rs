//! The daemon: messages come in from SQS, replicas go out to S3.
//!
//! In the order data flows; each folder uses only what stands below it:
//!
//! - `pipeline`: the stations put together, and the order in which they stop
//! - `admin`: the HTTP endpoints, and the commands that read them
//! - `check`: whether the set-up can work, as the file and the services say
//! - `dispatch`: one task per target key, from its messages to its result
//! - `queue`: messages: received, routed to work queues, deleted, returned or dead-lettered
//! - `reconcile`: brings one target key up to date: `observe`, `execute`, and one `object`
//! - `engine`: what tasks share
//! - `parking`: when a key is parked and tried again
//! - `task`: the unit of work, and the rules in force
//! - `limit`: task slots, rates and memory; reads and lists that several tasks share
//! - `sqs`: visibility timeouts, sends to FIFO queues; `kms`: the states of keys; `other_daemons`:
//!   the wait after an unclean stop, and a second daemon where only one may be; `health`: whether
//!   there is progress; `pauses`: rules whose events wait
//! - `ledger`: what is replicated, uploaded and parked, in RocksDB
//! - `s3`: clients and requests of each account, errors, checksums, XML; `process`: signals,
//!   blocking work, panics; `activity`: what each rule saw, did and did not take
//! - `metrics`, `failpoint`, `clock`: services of all of them

mod activity;
pub mod admin;
pub mod check;
pub mod clock;
mod dispatch;
mod engine;
pub mod failpoint;
mod health;
mod kms;
pub mod ledger;
mod limit;
mod metrics;
mod other_daemons;
mod parking;
mod pauses;
pub mod pipeline;
#[cfg(test)]
mod poison;
pub mod process;
mod queue;
mod reconcile;
mod s3;
mod sqs;
mod task;
