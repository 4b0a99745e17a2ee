//! How a queue misbehaves, within what SQS allows itself.

use std::time::Duration;

/// How a queue misbehaves; not at all by default. Shares go from 0 to 1.
///
/// A FIFO queue has no duplicates, what comes late holds back its group, and only groups change
/// their order.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quirks {
    /// The share of messages that exist twice, each with a visibility of its own, so that the
    /// second is delivered even while the first is hidden or after it was deleted:
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/standard-queues-at-least-once-delivery.html>
    pub duplicates: f64,
    /// The share of messages that come late.
    pub delayed: f64,
    /// The longest that a message comes late, or that a second one comes after the first.
    pub delay_max: Duration,
    /// Whether messages come in any order and number rather than the oldest first, as many as asked
    /// for.
    pub reorder: bool,
    /// The share of entries of a batch that fail while the batch succeeds.
    pub batch_failures: f64,
    /// The share of receipts that are refused when they are used, because their message is shown
    /// again early.
    pub expired: f64,
    /// For how long a message can be hidden at most from its receipt on, where that is not the
    /// twelve hours of SQS.
    pub hidden_max: Option<Duration>,
}
