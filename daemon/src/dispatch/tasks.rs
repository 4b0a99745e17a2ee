//! What happens to the tasks of messages: they arrive, begin when their key is free, and end. Then
//! it is decided what becomes of their messages.

use std::sync::Arc;
use std::time::Duration;

use replicator_core::event::{self, Event};
use replicator_core::retry::LANDING;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::in_flight::{self, Behind, KeyQueue, QueuedEvent};
use super::{Completion, Dispatch, KEYS_BESIDE_LOOKS_MAX, LOOKS_MAX, Look};
use crate::dispatch::runner::{self, TaskResult};
use crate::ledger::records::TargetKey;
use crate::metrics::MessageOutcome;
use crate::queue::message::{AckAction, AckRequest, Message, ReceivedMessage};
use crate::sqs::lease;
use crate::sqs::work_queues::{Again, WorkItem, digest_words, group_of};
use crate::task::Task;

// So soon after its rule is resumed, what waits here goes on.
const HELD_CHECKED_EVERY: Duration = Duration::from_secs(60);

// The rounds of other rules are ahead of it, or the daemon stops.
const ROUND_TRIED_AFTER: Duration = Duration::from_secs(60);

impl Dispatch {
    /// Takes the tasks of a message in flight, or lets it go at once.
    pub(super) async fn delivered(&mut self, delivery: ReceivedMessage) {
        let message = &delivery.message;
        if message.is_round() {
            return self.pass_round(delivery.message).await;
        }
        if message.group.is_some() && message.lease.stop_token().is_cancelled() {
            // Another one of its group went back, and may be another worker's by now.
            let action = AckAction::ReturnAfter(Duration::ZERO);
            return self.acknowledge(delivery.message, action).await;
        }
        let rules = Arc::clone(&self.rules.borrow());
        let (message, events, action) = delivery.read(&rules, &self.engine.metrics);
        // What is possible is done; the message is kept for what is not.
        let mut tasks: Vec<Task> = events
            .iter()
            .flat_map(|event| self.engine.tasks_for(&rules, event))
            .collect();
        if tasks.is_empty() && action == AckAction::Delete {
            self.engine
                .metrics
                .count_message(message.queue.queue.name(), MessageOutcome::Ignored);
        }
        let elsewhere = drain_elsewhere((&message, &events), &mut tasks);
        if tasks.is_empty() && !elsewhere.is_empty() {
            // The rules have changed since it was routed: its work is at another key now.
            return self
                .acknowledge(message, AckAction::Forward(elsewhere))
                .await;
        }
        tasks.retain(|task| !self.completed.has_done(&message.id, task));
        if tasks.is_empty() {
            debug!(message_id = message.id, "nothing to do");
            if action == AckAction::Delete {
                self.engine.watchdog.record_progress();
            }
            return self.acknowledge(message, action).await;
        }
        self.take(message, action, tasks).await;
    }

    /// Hands over a message that is about all keys of a rule, and of no key.
    async fn pass_round(&mut self, message: Message) {
        let refused = match self.rounds.try_send(message) {
            Ok(()) => return,
            Err(TrySendError::Full(message) | TrySendError::Closed(message)) => message,
        };
        let action = AckAction::ReturnAfter(refused.redelivery_delay(ROUND_TRIED_AFTER));
        self.acknowledge(refused, action).await;
    }

    /// Looks at a key that no message names; returns false if there is no room for it.
    pub(super) fn look_at(&mut self, look: &Look) -> bool {
        let rules = Arc::clone(&self.rules.borrow());
        let mut tasks = rules.tasks_for(&look.event).into_iter();
        let Some(task) = tasks.find(|task| task.target == look.target) else {
            return true;
        };
        let is_look = |event: &&QueuedEvent| {
            event.behind == Behind::Nothing && event.task.rules.primary.id == task.rules.primary.id
        };
        let looks = |queue: &KeyQueue| queue.events().filter(is_look).count();
        let has_room = self.targets.len() < KEYS_BESIDE_LOOKS_MAX
            && self.targets.values().map(looks).sum::<usize>() < LOOKS_MAX;
        if has_room {
            // It may have been written, and its message lost.
            let redelivered = true;
            let task = Task {
                redelivered,
                ..task
            };
            self.enqueue_task(Behind::Nothing, task);
        }
        has_room
    }

    async fn take(&mut self, message: Message, action: AckAction, tasks: Vec<Task>) {
        let (number, is_work) = (message.number, message.group.is_some());
        let takes_over = (is_work && message.is_redelivered()).then_some(message.received);
        let parked = message.again.and_then(Again::parked);
        let mut delayed = Vec::with_capacity(tasks.len());
        for mut task in tasks {
            // The router has let the time pass for what is in a work queue.
            let delay = match is_work {
                true => Duration::ZERO,
                false => message.delay_left(&task),
            };
            task.redelivered = message.is_repeated();
            task.receive_count = message.receive_count;
            task.takes_over = takes_over;
            task.events
                .iter_mut()
                .for_each(|pending| pending.parked = parked);
            delayed.push((task, delay));
        }
        self.handed_back.forget(&message.id);
        self.in_flight.take(message, action, delayed.len());
        for (task, delay) in delayed {
            if delay.is_zero() {
                self.enqueue_task(Behind::Message(number), task);
            } else {
                self.put_off(number, &task, delay).await;
            }
        }
    }

    /// Lets a version delete wait in the events queue.
    async fn put_off(&mut self, number: u64, task: &Task, delay: Duration) {
        let (delayed, metrics) = (&mut self.delayed, &self.engine.metrics);
        let handed_back = &mut self.handed_back;
        let closed = self.in_flight.close(number, |message| {
            let action = delayed.disposal(message, delay, metrics);
            for pending in &task.events {
                handed_back.record(message, &action, (task, pending));
            }
            action
        });
        if let Some(AckRequest { message, action }) = closed {
            self.acknowledge(message, action).await;
        }
    }

    pub(super) fn enqueue_task(&mut self, behind: Behind, task: Task) {
        if self.targets.is_empty() {
            self.engine.watchdog.work_arrived();
        }
        let target = task.target.clone();
        self.targets
            .entry(target.clone())
            .or_default()
            .add(behind, task);
        self.start(&target);
    }

    /// Starts what waits at a key, unless the key is busy.
    pub(super) fn start(&mut self, target: &TargetKey) {
        let Some(queue) = self.targets.get_mut(target) else {
            return;
        };
        // Events whose lease was lost while they waited are another worker's.
        self.in_flight
            .forget_lost(queue.waiting().iter().filter_map(QueuedEvent::message));
        let in_flight = &self.in_flight;
        let is_held = |event: &QueuedEvent| {
            let message = event.message();
            message.is_none_or(|number| in_flight.holds_lease(number))
        };
        let Some(task) = queue.begin(is_held) else {
            if queue.is_free() {
                self.targets.remove(target);
            }
            return;
        };
        let messages = || queue.working().iter().filter_map(QueuedEvent::message);
        let stops = messages()
            .filter_map(|number| in_flight.stop_token(number))
            .collect();
        let holds = messages()
            .filter_map(|number| in_flight.to_hold(number))
            .collect();
        let (engine, halt) = (Arc::clone(&self.engine), self.halt.clone());
        self.running.spawn(async move {
            let result = tokio::select! {
                biased;
                result = lease::holding(holds, runner::work(&engine, &task)) => result,
                () = any(stops) => TaskResult::Cancelled,
                () = halt.cancelled() => TaskResult::Cancelled,
            };
            Completion::Ended(task.target, result)
        });
    }

    pub(super) async fn ended(&mut self, target: TargetKey, result: TaskResult) {
        let Some(queue) = self.targets.get_mut(&target) else {
            return;
        };
        let events = queue.end();
        if !matches!(result, TaskResult::Done(_)) {
            self.engine.second_daemon.is_unsure();
        }
        match result {
            TaskResult::Done(report) => {
                self.engine.watchdog.record_progress();
                debug!(key = target.key.as_str(), written = report.written, bytes = report.bytes, outcomes = ?report.outcomes, "key is up to date");
                self.record_completed(&events);
                self.close(&events, |_| AckAction::Delete).await;
            }
            TaskResult::Parked(reason) => {
                self.engine.watchdog.record_progress();
                self.close(&events, |message| message.parked(reason)).await;
            }
            TaskResult::Returned(delay) => {
                self.engine.watchdog.record_return();
                let mut events = self.with_rest_of_group(&target, events);
                self.keep_own(&target, &mut events, delay);
                self.close(&events, |message| {
                    AckAction::ReturnAfter(message.redelivery_delay(delay))
                })
                .await;
            }
            TaskResult::Unavailable(delay) => {
                self.engine.watchdog.record_progress();
                self.turned_away(&target, events, delay).await;
            }
            TaskResult::Held => {
                self.engine.watchdog.record_progress();
                self.held(&target, events).await;
            }
            TaskResult::Cancelled => self.cancelled(&target, events).await,
        }
        self.start(&target);
    }

    /// Lets go of messages that are lost. Those of a work queue go back with the rest of their
    /// group: the next worker waits, because they are redeliveries. Else what is left goes on when
    /// the key's last write can no longer land.
    async fn cancelled(&mut self, target: &TargetKey, events: Vec<QueuedEvent>) {
        let goes_back = self.engine.work_queues.are_used() && !self.halt.is_cancelled();
        let events = match goes_back {
            true => self.with_rest_of_group(target, events),
            false => events,
        };
        self.in_flight
            .forget_lost(events.iter().filter_map(QueuedEvent::message));
        if goes_back {
            return self
                .close(&events, |_| AckAction::ReturnAfter(Duration::ZERO))
                .await;
        }
        let kept = in_flight::kept_of(events, |number| self.in_flight.holds_lease(number));
        if let Some(queue) = self.targets.get_mut(target) {
            queue.drain(kept);
            self.resume_after(target, LANDING);
        }
    }

    /// Adds what waits at a key of a work queue: while one message of a group is hidden for a
    /// while, or lost, SQS gives it out again whatever else of the group is in work here. So none
    /// is.
    fn with_rest_of_group(
        &mut self,
        target: &TargetKey,
        mut events: Vec<QueuedEvent>,
    ) -> Vec<QueuedEvent> {
        if self.engine.work_queues.are_used()
            && let Some(queue) = self.targets.get_mut(target)
        {
            events.extend(queue.take_waiting());
        }
        events
    }

    /// Gives back what a paused rule keeps from being done.
    async fn held(&mut self, target: &TargetKey, events: Vec<QueuedEvent>) {
        let mut events = self.with_rest_of_group(target, events);
        self.keep_own(target, &mut events, HELD_CHECKED_EVERY);
        self.close(&events, |message| {
            AckAction::ReturnAfter(message.pause_delay())
        })
        .await;
    }

    /// Keeps what nothing would bring again, to be done after a while, unless the daemon stops.
    fn keep_own(&mut self, target: &TargetKey, events: &mut Vec<QueuedEvent>, delay: Duration) {
        if self.deliveries.is_closed() {
            return;
        }
        let is_own = |event: &mut QueuedEvent| event.behind == Behind::Nothing;
        let kept: Vec<QueuedEvent> = events.extract_if(.., is_own).collect();
        if let Some(queue) = self.targets.get_mut(target).filter(|_| !kept.is_empty()) {
            queue.pause(kept);
            self.resume_after(target, delay);
        }
    }

    /// Gives back what can't be worked on for now, or keeps it for so long where it came from a
    /// work queue: one that gets a message anew shows it at once.
    async fn turned_away(
        &mut self,
        target: &TargetKey,
        mut events: Vec<QueuedEvent>,
        delay: Duration,
    ) {
        let is_kept = self.engine.work_queues.are_used() && !self.deliveries.is_closed();
        match self.targets.get_mut(target).filter(|_| is_kept) {
            Some(queue) => {
                queue.pause(events);
                self.resume_after(target, delay);
            }
            None => {
                self.keep_own(target, &mut events, delay);
                self.close(&events, |message| {
                    message.given_back(message.redelivery_delay(delay))
                })
                .await;
            }
        }
    }

    /// Gives back what waits for a destination to answer: a drain does not wait for that.
    pub(super) async fn give_back_paused(&mut self) {
        let paused = self.targets.extract_if(.., |_, queue| queue.is_paused());
        let events: Vec<QueuedEvent> = paused
            .flat_map(|(_, mut queue)| queue.take_waiting())
            .collect();
        self.close(&events, |message| message.given_back(Duration::ZERO))
            .await;
    }

    fn resume_after(&mut self, target: &TargetKey, delay: Duration) {
        let (target, halt) = (target.clone(), self.halt.clone());
        self.running.spawn(async move {
            let _halted = halt.run_until_cancelled(tokio::time::sleep(delay)).await;
            Completion::Resumed(target)
        });
    }

    pub(super) fn resumed(&mut self, target: &TargetKey) {
        if let Some(queue) = self.targets.get_mut(target) {
            queue.resume();
        }
        self.start(target);
    }

    /// Closes one task of each event's message.
    async fn close(&mut self, events: &[QueuedEvent], action: impl Fn(&Message) -> AckAction) {
        for event in events {
            let Some(number) = event.message() else {
                continue;
            };
            let handed_back = &mut self.handed_back;
            let closed = self.in_flight.close(number, |message| {
                let action = action(message);
                handed_back.record(message, &action, (&event.task, &event.pending));
                action
            });
            if let Some(AckRequest { message, action }) = closed {
                self.acknowledge(message, action).await;
            }
        }
    }

    /// Records what is done of messages that have more tasks, in case they have to go back for
    /// those.
    fn record_completed(&mut self, events: &[QueuedEvent]) {
        for event in events {
            if let Some(id) = event
                .message()
                .and_then(|number| self.in_flight.id_if_shared(number))
            {
                self.completed.record(id, &event.task, &event.pending);
            }
        }
    }

    /// Hands a message to the ack station, which outlives this loop: the loop holds one of its
    /// senders.
    pub(super) async fn acknowledge(&mut self, message: Message, action: AckAction) {
        if !matches!(action, AckAction::ReturnAfter(_)) {
            self.completed.forget_message(&message.id);
            self.handed_back.forget(&message.id);
        }
        let _sent = self.acks.send(AckRequest { message, action }).await;
    }
}

/// Takes out the tasks that are not of the message's group, and returns the messages that their
/// work queues would get. A request to rewrite the history of a key that is not among them is not
/// passed on to others: an event is written as it was read, as by the router.
fn drain_elsewhere(
    (message, events): (&Message, &[Event]),
    tasks: &mut Vec<Task>,
) -> Vec<WorkItem> {
    let Some(group) = &message.group else {
        return Vec::new();
    };
    let body = match events {
        [event] => event::notification_of(event),
        _ => message.body.clone(),
    };
    tasks
        .extract_if(.., |task| group_of(&task.target) != *group)
        .filter_map(|task| {
            let other = group_of(&task.target);
            Some(WorkItem {
                url: task.rules.primary.work_queue.clone()?,
                deduplication: digest_words([message.id.as_str(), &other]),
                group: other,
                body: body.clone(),
                again: message.again,
            })
        })
        .collect()
}

/// Waits until one of these fires.
async fn any(tokens: Vec<CancellationToken>) {
    if tokens.is_empty() {
        return std::future::pending().await;
    }
    let each = tokens
        .into_iter()
        .map(|token| Box::pin(token.cancelled_owned()));
    futures::future::select_all(each).await;
}
