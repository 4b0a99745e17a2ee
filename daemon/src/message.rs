//! A message's stages of life: received, in hand while its tasks work, settled.

use std::sync::Arc;
use std::time::Duration;

use replicator_config::Queue;
use replicator_core::event::Notification;
use replicator_core::failure::Reason;

use crate::lease::Lease;

/// A queue and the client that reaches it.
#[derive(Debug, Clone)]
pub(crate) struct QueueAccess {
    pub(crate) queue: Queue,
    pub(crate) client: aws_sdk_sqs::Client,
}

/// A message as it was received, hidden from others while it lives.
#[derive(Debug)]
pub(crate) struct Message {
    /// Unique in this process.
    pub(crate) number: u64,
    pub(crate) queue: Arc<QueueAccess>,
    pub(crate) id: String,
    pub(crate) receipt: String,
    pub(crate) body: String,
    /// It was delivered before: something may have begun that is not in the ledger.
    pub(crate) redelivered: bool,
    pub(crate) lease: Lease,
}

/// A message and what it says.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) message: Message,
    pub(crate) notification: Notification,
}

/// A message that nobody works on any more, and what the queue shall do with it.
#[derive(Debug)]
pub(crate) struct Settlement {
    pub(crate) message: Message,
    pub(crate) disposal: Disposal,
}

/// What the queue shall do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disposal {
    /// Delete it: each of its tasks is settled.
    Delete,
    /// Keep it where parked messages are kept, then delete it.
    Park(Reason, String),
    /// Its tasks are parked in the ledger: pass it to the dead-letter queue if there is one.
    Pass(Reason),
    /// Deliver it again after this time.
    Release(Duration),
}
