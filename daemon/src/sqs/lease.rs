//! Leases keep messages hidden from other daemons while their work goes on. When an extension fails
//! permanently, the work is stopped: SQS is about to deliver the message to another worker.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_sqs::types::ChangeMessageVisibilityBatchRequestEntry;
use replicator_core::failure::{Failure, FailureKind, Operation};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clock::BootInstant;
use crate::metrics::{MessageOutcome, Metrics};
use crate::s3::accounts::error;

/// Extends the leases of one queue.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    shared: Arc<LeaseQueue>,
}

/// A message is hidden while this lives.
#[derive(Debug)]
pub(crate) struct Lease {
    number: u64,
    lost: CancellationToken,
    stop: CancellationToken,
    leases: Leases,
}

#[derive(Debug)]
struct LeaseQueue {
    client: aws_sdk_sqs::Client,
    url: String,
    queue: String,
    visibility: Duration,
    metrics: Metrics,
    /// The messages that are hidden for this process, by their numbers.
    held: Mutex<BTreeMap<u64, HeldMessage>>,
    /// Held by what sends confirmations.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct HeldMessage {
    receipt: String,
    /// When the message shows again unless it is extended.
    expires: BootInstant,
    /// When the last request that SQS confirmed the lease for was sent.
    confirmed: BootInstant,
    /// When SQS will extend no more.
    extendable_until: BootInstant,
    lost: CancellationToken,
    group: Option<String>,
    /// A write waits for its confirmation.
    is_awaited: bool,
    /// A write may be on its way: the leases were confirmed for one.
    may_have_written: bool,
    /// Its work is done, and DeleteMessage is on its way.
    is_deleting: bool,
    /// Fires when the message or another one of its group is lost, or goes back.
    stop: CancellationToken,
}

/// A worker's hold on a message, as its task has it.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    number: u64,
    leases: Leases,
}

tokio::task_local! {
    /// The messages of a work queue that this task works for.
    static HOLDS: Vec<Hold>;
}

/// Does some work for these messages.
pub(crate) async fn holding<T>(holds: Vec<Hold>, work: impl Future<Output = T>) -> T {
    HOLDS.scope(holds, work).await
}

/// A write goes out only on leases that SQS confirmed so lately: a worker that receives one of the
/// messages again counts on that.
pub(crate) const CONFIRMED_WITHIN: Duration = Duration::from_secs(3);

/// Makes sure that the leases of the task's messages are still held, before a write. Soon after a
/// receipt that needs no request to SQS.
pub(crate) async fn confirm_held() -> Result<(), Failure> {
    let Ok(holds) = HOLDS.try_with(Clone::clone) else {
        return Ok(());
    };
    // They are all of one message group, and so of one queue.
    let Some(leases) = holds.first().map(|hold| &hold.leases) else {
        return Ok(());
    };
    let numbers: Vec<u64> = holds.iter().map(|hold| hold.number).collect();
    leases.confirm(&numbers).await
}

/// SQS hides a message for at most 12 hours from its receipt, and an extension beyond that is an
/// error:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html>
const HIDDEN_MAX: Duration = Duration::from_secs(12 * 3600);

// SQS takes at most ten entries a batch.
const BATCH_MAX: usize = 10;

// Leases are looked at, and calls have their answer, within a sixth of their time. One is extended
// when half of it is left, or will have been before the next look, and given up when a sixth is:
// that is time for two calls, of which not both take all of theirs.
const ROUNDS: u32 = 6;
const DUE_AT: u32 = 2;
const EXPIRING_AT: u32 = 6;

// Looked at this often, a lease is given up with no less than an eighth of its time left.
const LOOKS: u32 = 24;

impl Leases {
    pub(crate) fn new(
        client: aws_sdk_sqs::Client,
        queue: &replicator_config::Queue,
        metrics: Metrics,
    ) -> Self {
        let shared = LeaseQueue {
            client,
            url: queue.url.clone(),
            queue: queue.name().to_owned(),
            visibility: queue.visibility_timeout,
            metrics,
            held: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Takes over a message that was requested at this moment, so it is hidden since then or later.
    pub(crate) fn hold(
        &self,
        number: u64,
        (receipt, group): (&str, Option<&String>),
        requested: BootInstant,
    ) -> Lease {
        let lost = CancellationToken::new();
        let mut all = self.lock_held();
        let stop = group.and_then(|group| group_token(&all, group));
        let stop = stop.unwrap_or_default();
        let held = HeldMessage {
            receipt: receipt.to_owned(),
            expires: requested + self.shared.visibility,
            confirmed: requested,
            // A call that is sent by then arrives in time.
            extendable_until: requested + HIDDEN_MAX - self.call_timeout(),
            lost: lost.clone(),
            group: group.cloned(),
            is_awaited: false,
            is_deleting: false,
            may_have_written: false,
            stop: stop.clone(),
        };
        all.insert(number, held);
        Lease {
            number,
            lost,
            stop,
            leases: self.clone(),
        }
    }

    /// Extends what is due and gives up what expires, until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        // Side by side: calls that hang must not hide that time is up.
        let work = async { tokio::join!(self.extend_due(), self.watch_expiry()) };
        let _stopped = stop.run_until_cancelled(work).await;
    }

    /// Extends leases of which one was not confirmed lately. One request after the other does that,
    /// and others that were not confirmed lately go along, those first that wait for it.
    async fn confirm(&self, numbers: &[u64]) -> Result<(), Failure> {
        self.mark_written(numbers);
        let are_fresh = |all: &Vec<(u64, HeldMessage)>| {
            all.iter()
                .all(|(_, held)| held.is_fresh() && !held.is_stopped())
        };
        if self
            .held_messages(numbers)
            .is_some_and(|all| are_fresh(&all))
        {
            return Ok(());
        }
        self.set_awaited(numbers, true);
        let turn = self.shared.turn.lock().await;
        if let Some(all) = self.held_messages(numbers).filter(|all| !are_fresh(all)) {
            let all = self.with_others(all);
            futures::future::join_all(all.chunks(BATCH_MAX).map(|batch| self.extend_batch(batch)))
                .await;
        }
        drop(turn);
        self.set_awaited(numbers, false);
        let unsure = || {
            Failure::with_source(
                FailureKind::LeaseUnsure,
                Operation::ChangeMessageVisibility,
                "the message may be another worker's",
            )
        };
        self.held_messages(numbers)
            .filter(are_fresh)
            .map(drop)
            .ok_or_else(unsure)
    }

    fn held_messages(&self, numbers: &[u64]) -> Option<Vec<(u64, HeldMessage)>> {
        let all = self.lock_held();
        numbers
            .iter()
            .map(|number| Some((*number, all.get(number)?.clone())))
            .collect()
    }

    fn mark_written(&self, numbers: &[u64]) {
        let mut all = self.lock_held();
        for number in numbers {
            if let Some(held) = all.get_mut(number) {
                held.may_have_written = true;
            }
        }
    }

    fn set_awaited(&self, numbers: &[u64], is_awaited: bool) {
        let mut all = self.lock_held();
        for number in numbers {
            if let Some(held) = all.get_mut(number) {
                held.is_awaited = is_awaited;
            }
        }
    }

    fn with_others(&self, mut all: Vec<(u64, HeldMessage)>) -> Vec<(u64, HeldMessage)> {
        let room = all.len().next_multiple_of(BATCH_MAX) - all.len();
        let held = self.lock_held();
        let is_stale = |(number, held): &(&u64, &HeldMessage)| {
            !held.is_fresh()
                && !held.is_stopped()
                && !held.is_deleting
                && !all.iter().any(|(own, _)| own == *number)
        };
        let mut others: Vec<_> = held.iter().filter(is_stale).collect();
        others.sort_by_key(|(_, held)| (!held.is_awaited, Reverse(held.confirmed.elapsed())));
        let others: Vec<_> = others
            .into_iter()
            .take(room)
            .map(|(number, held)| (*number, held.clone()))
            .collect();
        all.extend(others);
        all
    }

    async fn extend_due(&self) {
        let mut tick = tokio::time::interval(self.call_timeout());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let due = self.due(BootInstant::now());
            // All at once: what dispatch may have in flight makes some 200 batches at most.
            futures::future::join_all(due.chunks(BATCH_MAX).map(|batch| self.extend_batch(batch)))
                .await;
        }
    }

    async fn watch_expiry(&self) {
        let mut tick = tokio::time::interval(self.shared.visibility / LOOKS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.give_up_expiring(BootInstant::now());
        }
    }

    fn call_timeout(&self) -> Duration {
        self.shared.visibility / ROUNDS
    }

    fn due(&self, now: BootInstant) -> Vec<(u64, HeldMessage)> {
        let all = self.lock_held();
        let due = all
            .iter()
            .filter(|(_, held)| held.is_due(self.shared.visibility, now));
        due.map(|(number, held)| (*number, held.clone())).collect()
    }

    async fn extend_batch(&self, batch: &[(u64, HeldMessage)]) {
        let now = BootInstant::now();
        let entry = |(number, held): &(u64, HeldMessage)| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(number.to_string())
                .receipt_handle(&held.receipt)
                .visibility_timeout(
                    i32::try_from(held.extension_seconds(self.shared.visibility, now))
                        .unwrap_or(i32::MAX),
                )
                .build()
        };
        let Ok(entries) = batch.iter().map(entry).collect::<Result<Vec<_>, _>>() else {
            return;
        };
        let request = self
            .shared
            .client
            .change_message_visibility_batch()
            .queue_url(&self.shared.url)
            .set_entries(Some(entries));
        let error = match tokio::time::timeout(self.call_timeout(), request.send()).await {
            Ok(Ok(answer)) => {
                answer
                    .successful
                    .iter()
                    .for_each(|done| self.extended(&done.id, now));
                for failed in &answer.failed {
                    warn!(
                        queue = self.shared.queue,
                        code = failed.code,
                        "a lease cannot be extended"
                    );
                }
                // What SQS could not do it may do at the next round, as if the request had failed.
                let refused = answer.failed.iter().filter(|failed| failed.sender_fault);
                refused.for_each(|failed| self.lose_message(&failed.id));
                return;
            }
            Ok(Err(error)) => error::error_words(&error),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        // The next round tries again, as long as the leases have time left.
        warn!(
            queue = self.shared.queue,
            leases = batch.len(),
            error,
            "leases cannot be extended for now"
        );
    }

    fn extended(&self, id: &str, now: BootInstant) {
        let mut all = self.lock_held();
        if let Some(held) = id.parse().ok().and_then(|number: u64| all.get_mut(&number)) {
            held.expires =
                now + Duration::from_secs(held.extension_seconds(self.shared.visibility, now));
            held.confirmed = now;
        }
    }

    /// Gives up what would show again before a call could be sure to prevent it.
    fn give_up_expiring(&self, now: BootInstant) {
        let expiring: Vec<u64> = self
            .lock_held()
            .iter()
            .filter(|(_, held)| held.is_expiring(self.shared.visibility, now))
            .map(|(number, _)| *number)
            .collect();
        expiring.into_iter().for_each(|number| self.give_up(number));
    }

    fn lock_held(&self) -> MutexGuard<'_, BTreeMap<u64, HeldMessage>> {
        self.shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Loses a message that SQS does not extend: one that is being deleted may be gone.
    fn lose_message(&self, id: &str) {
        let Ok(number) = id.parse() else { return };
        let is_deleting = |held: &HeldMessage| held.is_deleting;
        if self.lock_held().get(&number).is_some_and(is_deleting) {
            drop(self.lock_held().remove(&number));
        } else {
            self.give_up(number);
        }
    }

    /// Gives a message up that shows again, and its group with it.
    fn give_up(&self, number: u64) {
        if let Some(held) = self.lock_held().remove(&number) {
            held.stop.cancel();
            self.shared
                .metrics
                .count_message(&self.shared.queue, MessageOutcome::LeaseLost);
            held.lost.cancel();
        }
    }
}

/// Returns what fires when work for a message group has to end. SQS gives out what shows again of a
/// group, whatever else of it is in flight: so its messages share one, and what is received after
/// it fired gets another.
fn group_token(all: &BTreeMap<u64, HeldMessage>, group: &String) -> Option<CancellationToken> {
    let is_of_group =
        |held: &&HeldMessage| held.group.as_ref() == Some(group) && !held.is_stopped();
    all.values().find(is_of_group).map(|held| held.stop.clone())
}

impl HeldMessage {
    fn is_due(&self, visibility: Duration, now: BootInstant) -> bool {
        // Looks come a little early or late, and one that finds just more than half must not leave
        // time for only one call.
        self.expires.since(now) < visibility / DUE_AT + visibility / ROUNDS / 2
    }

    fn is_expiring(&self, visibility: Duration, now: BootInstant) -> bool {
        self.expires.since(now) <= visibility / EXPIRING_AT
    }

    fn is_fresh(&self) -> bool {
        self.confirmed.elapsed() < CONFIRMED_WITHIN
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns the whole seconds that an extension may request.
    fn extension_seconds(&self, visibility: Duration, now: BootInstant) -> u64 {
        visibility.min(self.extendable_until.since(now)).as_secs()
    }
}

impl Lease {
    /// Returns what its task holds on to.
    pub(crate) fn to_hold(&self) -> Hold {
        Hold {
            number: self.number,
            leases: self.leases.clone(),
        }
    }

    /// Lets it run out: an extension would hide a message that goes back for another time than it
    /// is to wait.
    pub(crate) fn end(&self) {
        drop(self.leases.lock_held().remove(&self.number));
    }

    /// Fires when the message may have gone to another worker.
    pub(crate) fn lost_token(&self) -> &CancellationToken {
        &self.lost
    }

    /// Fires when work for the message has to end: it is lost, or another one of its group is lost
    /// or goes back.
    pub(crate) fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Says whether a write for the message may be on its way, or an upload begun.
    pub(crate) fn may_have_written(&self) -> bool {
        let all = self.leases.lock_held();
        all.get(&self.number)
            .is_none_or(|held| held.may_have_written)
    }

    /// Records that the message is being deleted: that SQS rejects its receipt then says nothing of
    /// its group.
    pub(crate) fn mark_deleting(&self) {
        if let Some(held) = self.leases.lock_held().get_mut(&self.number) {
            held.is_deleting = true;
        }
    }

    /// Ends the work for all that is held of its group, because it goes back: SQS will give it out
    /// whatever else of the group is in flight.
    pub(crate) fn end_group(&self) {
        self.stop.cancel();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const VISIBILITY: Duration = Duration::from_secs(120);

    fn received(requested: BootInstant) -> HeldMessage {
        let (receipt, lost) = (String::new(), CancellationToken::new());
        let (group, stop) = (None, CancellationToken::new());
        let (expires, extendable_until) = (requested + VISIBILITY, requested + HIDDEN_MAX);
        HeldMessage {
            receipt,
            expires,
            confirmed: requested,
            extendable_until,
            lost,
            group,
            is_awaited: false,
            is_deleting: false,
            may_have_written: false,
            stop,
        }
    }

    /// Returns how long after the receipt something first holds, as often as it is looked at.
    fn first(every: Duration, holds: impl Fn(BootInstant) -> bool) -> Duration {
        let began = BootInstant::now();
        (0..)
            .map(|looks| every * looks)
            .find(|time| holds(began + *time))
            .unwrap()
    }

    #[test]
    fn a_lease_that_cannot_be_extended_is_given_up_while_the_message_is_hidden() {
        let held = received(BootInstant::now());
        let given_up = first(VISIBILITY / LOOKS, |now| held.is_expiring(VISIBILITY, now));
        assert!(given_up <= VISIBILITY - VISIBILITY / 8, "{given_up:?}");
    }

    #[test]
    fn two_calls_fit_between_the_first_try_and_the_end() {
        let (held, call) = (
            received(BootInstant::now() + Duration::from_millis(1)),
            VISIBILITY / ROUNDS,
        );
        let tried = first(call, |now| held.is_due(VISIBILITY, now));
        let given_up = first(VISIBILITY / LOOKS, |now| held.is_expiring(VISIBILITY, now));
        assert!(tried + 2 * call <= given_up, "{tried:?} {given_up:?}");
    }

    /// Keeps leases of a queue that gets no requests.
    fn leases() -> Leases {
        let version = aws_sdk_sqs::config::BehaviorVersion::latest();
        let client = aws_sdk_sqs::Client::from_conf(
            aws_sdk_sqs::Config::builder()
                .behavior_version(version)
                .build(),
        );
        let queue = replicator_config::Queue {
            url: "https://sqs.eu-west-1.amazonaws.com/111111111111/work.fifo".to_owned(),
            account: "source".to_owned(),
            visibility_timeout: VISIBILITY,
            dead_letter_url: "https://sqs.eu-west-1.amazonaws.com/111111111111/parked".to_owned(),
            work_queue: None,
            backfill_queue: None,
        };
        Leases::new(client, &queue, Metrics::new().unwrap())
    }

    #[test]
    fn what_loses_one_message_of_a_group_ends_the_work_for_all_of_it() {
        let (leases, group, other) = (leases(), "group".to_owned(), "other".to_owned());
        let hold =
            |number, group| leases.hold(number, ("receipt", Some(group)), BootInstant::now());
        let (first, second, apart) = (hold(1, &group), hold(2, &group), hold(3, &other));
        leases.lose_message("2");
        assert!(second.lost_token().is_cancelled() && !first.lost_token().is_cancelled());
        let is_stopped = |lease: &Lease| lease.stop_token().is_cancelled();
        assert_eq!(
            [&first, &second, &apart].map(is_stopped),
            [true, true, false]
        );
        let again = hold(4, &group);
        assert!(!is_stopped(&again), "what is received later is held anew");
        drop((first, second));
        let beside = hold(5, &group);
        again.end_group();
        assert!(
            is_stopped(&beside) && !beside.lost_token().is_cancelled(),
            "it goes back with the other"
        );
    }

    #[test]
    fn a_message_that_is_being_deleted_takes_its_group_along_only_if_it_stays() {
        let (leases, group) = (leases(), "group".to_owned());
        let hold = |number| leases.hold(number, ("receipt", Some(&group)), BootInstant::now());
        let (deleted, next) = (hold(1), hold(2));
        deleted.mark_deleting();
        leases.lose_message("1");
        assert!(
            !next.stop_token().is_cancelled(),
            "SQS knows its receipt no more"
        );
        deleted.end_group();
        assert!(
            next.stop_token().is_cancelled(),
            "it was not deleted after all"
        );
        assert!(
            !hold(3).stop_token().is_cancelled(),
            "what is received later is held anew"
        );
    }

    #[test]
    fn a_lease_runs_out_while_the_machine_sleeps() {
        let held = received(BootInstant::now());
        assert!(!held.is_expiring(VISIBILITY, BootInstant::now()));
        clock::sleep_through(VISIBILITY);
        assert!(held.is_expiring(VISIBILITY, BootInstant::now()));
    }

    #[test]
    fn no_extension_reaches_beyond_what_sqs_allows() {
        let requested = BootInstant::now();
        let held = received(requested);
        assert_eq!(held.extension_seconds(VISIBILITY, requested), 120);
        let late = requested + HIDDEN_MAX - Duration::from_millis(30_500);
        assert_eq!(held.extension_seconds(VISIBILITY, late), 30);
    }
}
