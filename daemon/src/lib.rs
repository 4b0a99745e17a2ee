//! The daemon: messages come in from SQS, replicas go out to S3.
//!
//! In the order data flows; each folder uses only what stands below it:
//!
//! - `pipeline`: the stations put together, and the order in which they stop
//! - `backfill`: keys that miss something, found and hinted at
//! - `verify`: both sides of a rule compared
//! - `admin`: the HTTP endpoints, and the commands that read them
//! - `objects`: what became of one object, version by version
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
//!   there is progress; `rule_state`: which rules are paused, and what each saw and did
//! - `manifest`: the keys that S3 Inventory, or a list of them, names
//! - `ledger`: what is replicated, uploaded and parked, in RocksDB
//! - `s3`: clients and requests of each account, errors, checksums, XML; `process`: signals,
//!   blocking work, panics
//! - `metrics`, `failpoint`, `clock`: services of all of them

pub mod admin;
pub mod backfill;
pub mod check;
pub mod clock;
mod dispatch;
mod engine;
pub mod failpoint;
mod health;
mod kms;
pub mod ledger;
/// How much is done at once, and what several tasks do together.
///
/// - `concurrency`: task slots for each dependency, its AIMD limit and its circuit
/// - `quotas`: limits of bandwidth and requests, memory for bodies
/// - `single_flight`: one read for several destinations, one list for several keys
mod limit {
    pub(crate) mod concurrency;
    pub(crate) mod quotas;
    pub(crate) mod single_flight;
}
mod manifest;
mod metrics;
mod objects;
mod other_daemons;
mod parking;
pub mod pipeline;
#[cfg(test)]
mod poison;
pub mod process;
/// Messages of SQS: received, sent on to work queues by the router, and deleted, returned or sent to
/// the dead-letter queue at the end.
mod queue {
    pub(crate) mod ack;
    pub(crate) mod message;
    pub(crate) mod receiver;
    pub(crate) mod router;
}
mod reconcile;
mod rule_state;
/// S3 as the daemon speaks it.
///
/// - `accounts`: clients of each account, what an endpoint can do, and the one place that classifies
///   errors, those of SQS included
/// - `client`: requests on the path of each object, without the SDK
/// - `checksum`: the algorithms of S3; `xml`: its answers
mod s3 {
    pub(crate) mod accounts;
    pub(crate) mod checksum;
    pub(crate) mod client;
    pub(crate) mod xml;
}
/// What tasks need of SQS while they work: the lease on their messages, and sends to work queues.
mod sqs {
    pub(crate) mod hints;
    pub(crate) mod lease;
    pub(crate) mod work_queues;
}
mod task;
pub mod verify;
