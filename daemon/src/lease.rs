//! Leases keep messages hidden from other daemons while their work goes on. When an extension
//! fails for good, the work is stopped: the message is about to be someone else's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_sqs::types::ChangeMessageVisibilityBatchRequestEntry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::metrics::{MessageOutcome, Metrics};

/// Keeps the leases of one queue alive.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    shared: Arc<Shared>,
}

/// A message is hidden while this lives.
#[derive(Debug)]
pub(crate) struct Lease {
    number: u64,
    lost: CancellationToken,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: aws_sdk_sqs::Client,
    url: String,
    queue: String,
    visibility: Duration,
    metrics: Metrics,
    held: Mutex<HashMap<u64, Held>>,
}

#[derive(Debug, Clone)]
struct Held {
    receipt: String,
    /// When the message shows again unless it is extended.
    expires: Instant,
    /// When SQS will extend no more.
    last: Instant,
    lost: CancellationToken,
}

/// SQS hides a message for at most 12 hours from its receipt, and an extension beyond that is an
/// error: <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html>
const HIDDEN_MAX: Duration = Duration::from_secs(12 * 3600);

// SQS takes at most ten entries a batch.
const BATCH_MAX: usize = 10;

impl Leases {
    pub(crate) fn new(client: aws_sdk_sqs::Client, queue: &replicator_config::Queue, metrics: Metrics) -> Self {
        let shared = Shared {
            client,
            url: queue.url.clone(),
            queue: queue.name().to_owned(),
            visibility: queue.visibility_timeout,
            metrics,
            held: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes over a message that was received at `received`.
    pub(crate) fn hold(&self, number: u64, receipt: &str, received: Instant) -> Lease {
        let lost = CancellationToken::new();
        let held = Held {
            receipt: receipt.to_owned(),
            expires: received + self.shared.visibility,
            last: received + HIDDEN_MAX,
            lost: lost.clone(),
        };
        if let Ok(mut all) = self.shared.held.lock() {
            all.insert(number, held);
        }
        Lease { number, lost, shared: Arc::clone(&self.shared) }
    }

    /// Extends what is due until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(self.shared.visibility / 6);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.round().await;
        }
    }

    async fn round(&self) {
        let now = Instant::now();
        for batch in self.due(now).chunks(BATCH_MAX) {
            self.extend(batch).await;
        }
        self.drop_expired(Instant::now());
    }

    /// Returns what has used up half of its time.
    fn due(&self, now: Instant) -> Vec<(u64, Held)> {
        let Ok(held) = self.shared.held.lock() else { return Vec::new() };
        let is_due = |held: &Held| held.expires.saturating_duration_since(now) < self.shared.visibility / 2;
        held.iter().filter(|(_, held)| is_due(held)).map(|(number, held)| (*number, held.clone())).collect()
    }

    async fn extend(&self, batch: &[(u64, Held)]) {
        let now = Instant::now();
        let entries: Result<Vec<_>, _> = batch
            .iter()
            .map(|(number, held)| {
                let wanted = self.shared.visibility.min(held.last.saturating_duration_since(now));
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(number.to_string())
                    .receipt_handle(&held.receipt)
                    .visibility_timeout(i32::try_from(wanted.as_secs()).unwrap_or(i32::MAX))
                    .build()
            })
            .collect();
        let Ok(entries) = entries else { return };
        let request =
            self.shared.client.change_message_visibility_batch().queue_url(&self.shared.url).set_entries(Some(entries));
        match request.send().await {
            Ok(answer) => {
                for done in &answer.successful {
                    self.extended(&done.id, now);
                }
                for failed in &answer.failed {
                    warn!(queue = self.shared.queue, code = failed.code, "a lease cannot be extended");
                    self.lose(&failed.id);
                }
            }
            // The leases have half of their time left: the next rounds try again.
            Err(error) => {
                warn!(
                    queue = self.shared.queue,
                    error = crate::lane::chain(&error),
                    "leases cannot be extended for now"
                );
            }
        }
    }

    fn extended(&self, id: &str, now: Instant) {
        let Ok(mut all) = self.shared.held.lock() else { return };
        if let Some(held) = id.parse().ok().and_then(|number: u64| all.get_mut(&number)) {
            held.expires = (now + self.shared.visibility).min(held.last);
        }
    }

    fn lose(&self, id: &str) {
        let Ok(mut all) = self.shared.held.lock() else { return };
        if let Some(held) = id.parse().ok().and_then(|number: u64| all.remove(&number)) {
            self.shared.give_up(&held);
        }
    }

    /// Gives up what will show again before the next round could extend it.
    fn drop_expired(&self, now: Instant) {
        let Ok(mut all) = self.shared.held.lock() else { return };
        let margin = self.shared.visibility / 6;
        all.retain(|_, held| {
            let lives = held.expires.saturating_duration_since(now) > margin;
            if !lives {
                self.shared.give_up(held);
            }
            lives
        });
    }
}

impl Shared {
    fn give_up(&self, held: &Held) {
        self.metrics.message(&self.queue, MessageOutcome::LeaseLost);
        held.lost.cancel();
    }
}

impl Lease {
    /// Fires when the message may be someone else's.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Ok(mut all) = self.shared.held.lock() {
            all.remove(&self.number);
        }
    }
}
