//! Hints: messages of commands that found keys to look at. One reads as an event of the key and goes
//! where the work of the rule goes, so whatever acts on a key still has a message of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use replicator_config::{Queue, Settings};
use replicator_core::event::{self, Event, EventKind};
use replicator_core::object::{Key, NameError};
use replicator_core::retry;
use replicator_core::rule::{History, Rule};
use tokio::time::Instant;

use crate::ledger::records::TargetKey;
use crate::process::InvalidCommand;
use crate::s3::accounts::Accounts;
use crate::sqs::work_queues::{
    QueueAccess, QueueTrouble, WorkItem, WorkQueues, digest_words, group_of,
};

/// A key to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hint {
    /// The key at the source.
    pub(crate) key: Key,
    /// The size of the largest object that may have to be copied: large ones have slots of their own.
    pub(crate) size_bytes: u64,
}

/// Sends hints of one rule.
#[derive(Debug)]
pub(crate) struct HintSender {
    rule: Rule,
    access: Arc<QueueAccess>,
    queues: WorkQueues,
    /// Names what they are sent for, in their deduplication ids: one that is sent again within five
    /// minutes, after an answer was lost, is not another one.
    run: String,
    /// What they ask for.
    action: EventKind,
    /// How many more may be sent before the queue is asked how many wait in it.
    room: u64,
}

// So many hints may wait where events wait as well: an event comes after them, which is two seconds
// at 100 keys a second.
const WAITING_MAX: u64 = 200;

// How soon a queue without room is asked again.
const ASKED_EVERY: Duration = Duration::from_millis(500);

// Workers that work make room within seconds.
const TOLD_EVERY: Duration = Duration::from_secs(30);

// Beside the tries of each batch: some minutes, for what passes by itself.
const ATTEMPTS_MAX: u32 = 8;

impl HintSender {
    /// Prepares to send hints of a rule; nothing is sent yet.
    pub(crate) fn new(
        settings: &Settings,
        accounts: &Accounts,
        rule: &Rule,
        run: &str,
    ) -> anyhow::Result<Self> {
        let queue = find_queue(settings, rule)?;
        let Some(clients) = accounts.get(&queue.account) else {
            bail!("account {:?} is not defined", queue.account);
        };
        let access = Arc::new(QueueAccess {
            queue: queue.clone(),
            client: clients.sqs.clone(),
        });
        Ok(Self {
            rule: rule.clone(),
            queues: WorkQueues::new([Arc::clone(&access)]),
            access,
            run: run.to_owned(),
            action: EventKind::Put,
            // In a queue of their own they are in no event's way.
            room: if rule.backfill_queue.is_some() {
                u64::MAX
            } else {
                0
            },
        })
    }

    /// Has versions appended that are older than what the destination shows. Refuses where there is
    /// no history, or where rules have other ones: without message groups a hint is for all of them.
    pub(crate) fn rewriting_history(self, rules: &[Rule]) -> anyhow::Result<Self> {
        let Rule { id, source, .. } = &self.rule;
        if self.rule.history == History::Latest {
            bail!(InvalidCommand::new(format!(
                "rule {id:?} has history = \"latest\", so its replicas have no history to rewrite"
            )));
        }
        // A purge of what is newest would leave what came too late unwritten for good (the model's
        // `Pa LA R X0`).
        let deletes = |rule: &&Rule| {
            let is_there = rule.source == *source && rule.destination == self.rule.destination;
            rule.enabled && rule.version_deletes && is_there
        };
        if let Some(rule) = rules.iter().find(deletes) {
            bail!(InvalidCommand::new(format!(
                "rule {:?} has version_deletes = true, with which no history is rewritten",
                rule.id
            )));
        }
        let is_other =
            |rule: &Rule| rule.enabled && rule.id != *id && rule.source.bucket == source.bucket;
        if self.rule.work_queue.is_none() && rules.iter().any(is_other) {
            bail!(InvalidCommand::new(format!(
                "rule {id:?} has no work queue, so a hint is for all rules of {}: give it a `work_queue` to rewrite histories of its own",
                source.bucket
            )));
        }
        Ok(Self {
            action: EventKind::RewriteHistory,
            ..self
        })
    }

    /// Returns the queue that they go to.
    pub(crate) fn queue(&self) -> &Queue {
        &self.access.queue
    }

    /// Sends hints as the queue has room for them, and what was refused a few times; says now and
    /// then that it waits for room. Returns the keys whose hints no queue has, and why.
    pub(crate) async fn send(
        &mut self,
        hints: &[Hint],
        mut tell: impl FnMut(&str),
    ) -> Vec<(Key, QueueTrouble)> {
        let (mut items, mut keys, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for hint in hints {
            match self.work_item(hint) {
                Ok(item) => {
                    items.push(item);
                    keys.push(hint.key.clone());
                }
                Err(error) => failed.push((hint.key.clone(), error.to_string().into())),
            }
        }
        let mut attempt = 1;
        while let Err(reason) = self.try_send(&mut items, &mut keys, &mut tell).await {
            if attempt == ATTEMPTS_MAX {
                failed.extend(keys.into_iter().map(|key| (key, reason.clone())));
                break;
            }
            tokio::time::sleep(retry::jittered_delay(attempt, fastrand::f64())).await;
            attempt += 1;
        }
        failed
    }

    /// Sends items, and leaves those that the queue does not have yet; an error says why.
    async fn try_send(
        &mut self,
        items: &mut Vec<WorkItem>,
        keys: &mut Vec<Key>,
        tell: &mut impl FnMut(&str),
    ) -> Result<(), QueueTrouble> {
        while !items.is_empty() {
            let room = usize::try_from(self.find_room(tell).await?).unwrap_or(usize::MAX);
            let now = items.get(..room).unwrap_or(items);
            let (is_sent, trouble) = self.queues.send_and_explain(now).await;
            let taken = is_sent.iter().filter(|is_sent| **is_sent).count();
            self.room = self.room.saturating_sub(taken as u64);
            let is_left = |at: usize| !is_sent.get(at).copied().unwrap_or(false);
            retain_places(items, is_left);
            retain_places(keys, is_left);
            if taken < is_sent.len() {
                return Err(trouble.unwrap_or_else(|| UNEXPLAINED.to_owned().into()));
            }
        }
        Ok(())
    }

    /// Waits until the queue has room, and says for how many. A queue that events wait in is never
    /// filled with hints.
    async fn find_room(&mut self, tell: &mut impl FnMut(&str)) -> Result<u64, QueueTrouble> {
        let mut told = Instant::now();
        while self.room == 0 {
            let waiting = self.access.count_waiting().await?;
            self.room = WAITING_MAX.saturating_sub(waiting);
            if self.room > 0 {
                break;
            }
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                tell(&self.waiting_words(waiting));
            }
            tokio::time::sleep(ASKED_EVERY).await;
        }
        Ok(self.room)
    }

    fn waiting_words(&self, waiting: u64) -> String {
        let (queue, rule) = (self.queue().name(), &self.rule.id);
        format!(
            "waits: {waiting} messages are in the queue {queue}, and hints are sent while it has fewer than \
             {WAITING_MAX}; see that a daemon runs and takes them, and that rule {rule:?} is not paused"
        )
    }

    /// Writes a hint as its event, which asks for more than a new object if the sender does.
    fn work_item(&self, hint: &Hint) -> Result<WorkItem, NameError> {
        let target = TargetKey {
            destination: self.rule.destination.clone(),
            key: self.rule.destination_key(&hint.key)?,
        };
        let event = Event {
            action: self.action,
            ..event_of(&self.rule, hint)
        };
        let group = group_of(&target);
        Ok(WorkItem {
            url: self.access.queue.url.clone(),
            deduplication: digest_words([self.run.as_str(), &group]),
            group,
            body: event::notification_of(&event),
            again: None,
        })
    }
}

/// Returns the event that a hint reads as: that of a new object which names no version, so that no
/// ledger answers it, and the whole history of the key is looked at.
pub(crate) fn event_of(rule: &Rule, hint: &Hint) -> Event {
    Event {
        size_bytes: Some(hint.size_bytes),
        ..Event::of_key(&rule.source.bucket, &hint.key)
    }
}

const UNEXPLAINED: &str = "the queue did not say that it has the message";

/// Keeps the elements at these places.
fn retain_places<T>(elements: &mut Vec<T>, is_kept: impl Fn(usize) -> bool) {
    let mut at = 0..;
    elements.retain(|_| at.next().is_some_and(&is_kept));
}

/// Returns the queue that hints of a rule go to: its backfill queue or its work queue, or else an
/// events queue that the one daemon receives from.
fn find_queue<'s>(settings: &'s Settings, rule: &Rule) -> anyhow::Result<&'s Queue> {
    let own = rule.backfill_queue.as_ref().or(rule.work_queue.as_ref());
    let found = match own {
        Some(url) => {
            let queues = &settings.backfill_queues;
            let mut queues = queues.iter().chain(&settings.work_queues);
            queues.find(|queue| queue.url == *url)
        }
        None if !rule.enabled => bail!(InvalidCommand::new(format!(
            "rule {:?} is disabled and has no work queue: its hints would be deleted, as its events are; enable it first",
            rule.id
        ))),
        None => {
            let mut queues = settings.queues.iter();
            let own = queues.find(|queue| queue.account == rule.source.account);
            own.or(settings.queues.first())
        }
    };
    found.with_context(|| format!("rule {:?} has no queue for its hints", rule.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_keeps_its_order() {
        let mut left = vec!["a", "b", "c", "d"];
        retain_places(&mut left, |at| at % 2 == 1);
        assert_eq!(left, ["b", "d"]);
    }
}
