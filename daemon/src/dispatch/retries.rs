//! Retries of parked tasks where there are work queues: nothing acts on a key without its message,
//! so each is sent to its work queue, along with what is on record of it. From then on the queue
//! holds it, and the ledger's record is removed.

use std::sync::Arc;

use replicator_core::event::{self, Hint};
use replicator_core::failure::chain;
use replicator_core::object::Timestamp;
use tracing::warn;

use super::redrive::{Revived, Sweep};
use super::{Dispatch, Event};
use crate::engine::Engine;
use crate::ledger::records::ParkedTask;
use crate::message::{Again, Parked};
use crate::work_queues::{WorkItem, digest, group_of};
use crate::{blocking, clock};

impl Dispatch {
    /// Sends what a sweep found to the work queues; the sweep goes on after that.
    pub(super) fn send_retries(&mut self, lanes: Vec<Revived>, rest: Option<Sweep>) {
        let engine = Arc::clone(&self.engine);
        self.running.spawn(async move {
            send(&engine, lanes).await;
            Event::Sent(rest)
        });
    }
}

async fn send(engine: &Engine, lanes: Vec<Revived>) {
    let now = clock::now();
    let (mut items, mut parked) = (Vec::new(), Vec::new());
    for revived in lanes {
        let url = revived.task.and_then(|task| task.rules.lead.work_queue.clone());
        for task in revived.parked {
            if let Some(url) = &url {
                items.push(item(url, &task, now));
                parked.push(task);
            }
        }
    }
    let sent = engine.work_queues.send(&items).await;
    let sent: Vec<ParkedTask> = parked.into_iter().zip(sent).filter_map(|(task, sent)| sent.then_some(task)).collect();
    for task in sent {
        let forgotten = blocking::run(|| engine.ledger.unpark(&task.lane, |parked| *parked == task));
        if let Err(failure) = forgotten {
            warn!(error = chain(&failure), "cannot write to the ledger");
        }
    }
}

fn item(url: &str, task: &ParkedTask, now: Timestamp) -> WorkItem {
    let hint = Hint {
        bucket: task.source.bucket.clone(),
        key: task.source_key.clone(),
        version: task.version.clone(),
        action: task.action,
        sequencer: None,
        time: None,
        size_bytes: None,
    };
    let group = group_of(&task.lane);
    let version = task.version.as_ref().map_or("", |version| version.as_str());
    let deduplication =
        digest(["retry", &group, task.action.as_str(), version, &now.unix_timestamp_nanos().to_string()]);
    let parked = Parked { since: task.since, tries: task.tries.saturating_add(1) };
    WorkItem {
        url: url.to_owned(),
        group,
        deduplication,
        body: event::notification_of(&hint),
        again: Some(Again::Parked(parked)),
    }
}
