//! Retries of parked tasks where there are work queues: nothing acts on a key without its message,
//! so each is sent to its work queue, along with what is on record of it. From then on the queue
//! holds it, and the ledger's record is removed.

use std::sync::Arc;

use replicator_core::event::{self, Event};
use replicator_core::failure::error_chain;
use replicator_core::object::Timestamp;
use tracing::warn;

use super::retry_scan::{RetryCandidate, RetryScan};
use super::{Completion, Dispatch};
use crate::engine::Engine;
use crate::ledger::records::ParkedTask;
use crate::message::{Again, ParkedBefore};
use crate::work_queues::{WorkItem, digest_words, group_of};
use crate::{clock, process::run_blocking};

impl Dispatch {
    /// Sends what a sweep found to the work queues; the sweep goes on after that.
    pub(super) fn send_retries(&mut self, targets: Vec<RetryCandidate>, rest: Option<RetryScan>) {
        let engine = Arc::clone(&self.engine);
        self.running.spawn(async move {
            send(&engine, targets).await;
            Completion::Sent(rest)
        });
    }
}

async fn send(engine: &Engine, targets: Vec<RetryCandidate>) {
    let now = clock::now();
    let (mut items, mut parked) = (Vec::new(), Vec::new());
    for revived in targets {
        let url = revived
            .task
            .and_then(|task| task.rules.primary.work_queue.clone());
        for task in revived.parked {
            if let Some(url) = &url {
                items.push(item(url, &task, now));
                parked.push(task);
            }
        }
    }
    let sent = engine.work_queues.send_all(&items).await;
    let sent: Vec<ParkedTask> = parked
        .into_iter()
        .zip(sent)
        .filter_map(|(task, sent)| sent.then_some(task))
        .collect();
    for task in sent {
        let forgotten = run_blocking(|| {
            engine
                .ledger
                .remove_parked(&task.target, |parked| *parked == task)
        });
        if let Err(failure) = forgotten {
            warn!(error = error_chain(&failure), "cannot write to the ledger");
        }
    }
}

fn item(url: &str, task: &ParkedTask, now: Timestamp) -> WorkItem {
    let event = Event {
        bucket: task.source.bucket.clone(),
        key: task.source_key.clone(),
        version: task.version.clone(),
        action: task.action,
        sequencer: None,
        time: None,
        size_bytes: None,
    };
    let group = group_of(&task.target);
    let version = task.version.as_ref().map_or("", |version| version.as_str());
    let deduplication = digest_words([
        "retry",
        &group,
        task.action.as_str(),
        version,
        &now.unix_timestamp_nanos().to_string(),
    ]);
    let parked = ParkedBefore {
        since: task.since,
        tries: task.tries.saturating_add(1),
    };
    WorkItem {
        url: url.to_owned(),
        group,
        deduplication,
        body: event::notification_of(&event),
        again: Some(Again::Parked(parked)),
    }
}
