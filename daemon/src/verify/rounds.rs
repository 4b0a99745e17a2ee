//! `reconcile` in a rule: now and then the lists of both buckets are compared, slowly, and keys that
//! miss something are looked at, because an event may be lost. With a work queue each piece of a
//! round is a message of the rule's own group, so one daemon works on it at a time, and another goes
//! on with it after a crash. Without one the one daemon keeps the place itself.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use replicator_core::event::{self, Event, EventKind};
use replicator_core::failure::{Failure, FailureKind, Operation, error_chain};
use replicator_core::object::{Key, Timestamp};
use replicator_core::rule::{Rule, RuleScope};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Verifier;
use super::keys::{KeyPairs, ListedKey};
use crate::clock;
use crate::dispatch::Command;
use crate::engine::Engine;
use crate::ledger::records::TargetKey;
use crate::queue::message::{AckAction, AckRequest, Message};
use crate::reconcile::listing::KeyRange;
use crate::rule_state::FinishedRound;
use crate::sqs::work_queues::{WorkItem, digest_words, group_of, round_group_of};
use crate::task::Ruleset;

/// Compares all keys of rules, each when it is time.
#[derive(Debug)]
pub(crate) struct Rounds {
    engine: Arc<Engine>,
    rules: watch::Receiver<Arc<Ruleset>>,
    /// Messages of work queues, each for a piece of a round.
    messages: mpsc::Receiver<Message>,
    acks: mpsc::Sender<AckRequest>,
    /// The dispatch, which looks at keys where there is no work queue.
    commands: mpsc::Sender<Command>,
    drain: CancellationToken,
}

/// A round of a rule, as its messages have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Round {
    rule: String,
    /// Which one it is: how many intervals the time has.
    number: i64,
    /// The last key that was compared.
    after: Option<String>,
    keys: u64,
    hints: u64,
}

// Comparisons of rules that wait for one of another rule; their messages are leased meanwhile.
const ROUNDS_MAX: usize = 8;

// How often it is looked whether a round is due: an interval has an hour at least.
const LOOKED_EVERY: Duration = Duration::from_secs(60);

// So much is done again after a crash, at the most; far below the 12 hours for which SQS hides a
// message.
const PIECE_TIME: Duration = Duration::from_secs(300);

// Events come first: a rule without a limit gets no more hints than this a second.
const HINTS_PER_SECOND: u32 = 10;

// A piece that fails so often is given up; the next round begins anew.
const DELIVERIES_MAX: u32 = 10;
const FAILED_FIRST: Duration = Duration::from_secs(60);

impl Rounds {
    /// Begins to compare the keys of rules now and then, and returns where the messages for that go.
    pub(crate) fn start(
        (engine, rules): (&Arc<Engine>, &watch::Receiver<Arc<Ruleset>>),
        (acks, ask): (&mpsc::Sender<AckRequest>, &mpsc::Sender<Command>),
        drain: &CancellationToken,
        work: &mut JoinSet<()>,
    ) -> mpsc::Sender<Message> {
        let (pass, messages) = mpsc::channel(ROUNDS_MAX);
        let rounds = Self {
            engine: Arc::clone(engine),
            rules: rules.clone(),
            messages,
            acks: acks.clone(),
            commands: ask.clone(),
            drain: drain.clone(),
        };
        work.spawn(rounds.run());
        pass
    }

    /// Works until the daemon stops.
    async fn run(mut self) {
        let drain = self.drain.clone();
        let mut begun: HashMap<String, i64> = HashMap::new();
        let mut looks = tokio::time::interval(LOOKED_EVERY);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                Some(message) = self.messages.recv() => self.work(message).await,
                _ = looks.tick() => {
                    for round in self.due(&mut begun) {
                        let _drained = drain.run_until_cancelled(Box::pin(self.begin(round))).await;
                    }
                }
            }
        }
        self.messages.close();
        while let Some(message) = self.messages.recv().await {
            self.acknowledge(message, AckAction::ReturnAfter(Duration::ZERO))
                .await;
        }
    }

    /// Lists the rounds whose time has come since they were looked for last.
    fn due(&self, begun: &mut HashMap<String, i64>) -> Vec<Round> {
        let (now, rules) = (clock::now(), Arc::clone(&self.rules.borrow()));
        let due = rules.iter().filter_map(|rule| {
            let number = round_number(rule, now)?;
            let before = begun.insert(rule.id.clone(), number);
            let is_due = before.is_some_and(|before| before < number);
            (is_due && !self.engine.pauses.is_paused(rule)).then(|| Round {
                rule: rule.id.clone(),
                number,
                after: None,
                keys: 0,
                hints: 0,
            })
        });
        due.collect()
    }

    /// Begins a round: by a message, of which all daemons send the same, or here.
    async fn begin(&self, mut round: Round) {
        let rules = Arc::clone(&self.rules.borrow());
        let Some(rule) = find_rule(&rules, &round) else {
            return;
        };
        if let Some(item) = round.message(rule) {
            self.engine.work_queues.send_all(&[item]).await;
            return;
        }
        loop {
            match self.compare_piece(&rules, rule, &mut round).await {
                Ok(true) => return self.finish(&round),
                Ok(false) => {}
                Err(failure) => return warn_broken(&round, &failure),
            }
        }
    }

    /// Does the piece of a message, and sends the next one.
    async fn work(&self, message: Message) {
        let rules = Arc::clone(&self.rules.borrow());
        let round = serde_json::from_str::<Round>(&message.body).ok();
        let Some((rule, mut round)) = round.and_then(|round| {
            let rule = find_rule(&rules, &round)?;
            (!self.engine.pauses.is_paused(rule)).then_some((rule, round))
        }) else {
            return self.acknowledge(message, AckAction::Delete).await;
        };
        let lost = message.lease.stop_token();
        let piece = Box::pin(self.compare_piece(&rules, rule, &mut round));
        let result = tokio::select! {
            biased;
            result = piece => result,
            () = lost.cancelled() => return,
            () = self.drain.cancelled() => {
                let back = AckAction::ReturnAfter(Duration::ZERO);
                return self.acknowledge(message, back).await;
            }
        };
        let action = match result {
            Ok(true) => {
                self.finish(&round);
                AckAction::Delete
            }
            Ok(false) => AckAction::Forward(round.message(rule).into_iter().collect()),
            Err(failure) => {
                warn_broken(&round, &failure);
                match message.receive_count > DELIVERIES_MAX {
                    true => AckAction::Delete,
                    false => AckAction::ReturnAfter(message.redelivery_delay(FAILED_FIRST)),
                }
            }
        };
        self.acknowledge(message, action).await;
    }

    /// Compares keys for a while; says whether the round is through.
    async fn compare_piece(
        &self,
        rules: &Ruleset,
        rule: &Rule,
        round: &mut Round,
    ) -> Result<bool, Failure> {
        let verifier = Verifier {
            scope: self.scope_of(rules, rule)?,
            rule,
            source: self.engine.access_to(&rule.source)?,
            destination: self.engine.access_to(&rule.destination)?,
            parked: None,
            deep: None,
        };
        let range = KeyRange {
            after: round.after.clone(),
            until: None,
        };
        let ends = (verifier.source, verifier.destination);
        let pairs = KeyPairs::new(rule, ends, None).map_err(|error| trouble(error.to_string()))?;
        let (mut pairs, begun) = (pairs.within(&range), Instant::now());
        while let Some(listed) = pairs.next_pair().await? {
            let key = listed.key().clone();
            let outcome = match listed {
                ListedKey::Pair(pair) => {
                    let pair = verifier.pair(pair);
                    round.keys += u64::from(pair.wanted().next().is_some());
                    match verifier.is_doubtful(&pair) {
                        true => Some(Box::pin(verifier.compare(pair)).await?),
                        false => None,
                    }
                }
                refused @ ListedKey::Refused(_) => verifier.compare_listed(refused).await?,
            };
            if outcome.is_some_and(|outcome| outcome.hint(rule).is_some()) {
                self.hint(rule, round, &key).await?;
                round.hints += 1;
            }
            round.after = Some(key.as_str().to_owned());
            if begun.elapsed() > PIECE_TIME {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Says which versions count, as the daemon counts them.
    fn scope_of(&self, rules: &Ruleset, rule: &Rule) -> Result<RuleScope, Failure> {
        let now = clock::now();
        let start_of = |rule: &Rule| match rule.since {
            Some(since) => Ok(Some(since)),
            None => self.engine.ledger.rule_start(&rule.id, now).map(Some),
        };
        let as_of = now - super::PENDING_FOR;
        RuleScope::new((rule, rules.iter()), as_of, start_of)
    }

    /// Has a key looked at.
    async fn hint(&self, rule: &Rule, round: &Round, key: &Key) -> Result<(), Failure> {
        let event = Event {
            bucket: rule.source.bucket.clone(),
            key: key.clone(),
            version: None,
            action: EventKind::Put,
            sequencer: None,
            time: None,
            size_bytes: None,
        };
        let limit = rule.limits.requests_per_second.map(NonZeroU32::get);
        let a_second = limit.unwrap_or(u32::MAX).min(HINTS_PER_SECOND);
        tokio::time::sleep(Duration::from_secs(1) / a_second).await;
        let Some(url) = rule.work_queue.clone() else {
            return self.look_at(event).await;
        };
        let target = TargetKey {
            destination: rule.destination.clone(),
            key: { rule.destination_key(key) }.map_err(|error| trouble(error.to_string()))?,
        };
        let group = group_of(&target);
        let item = WorkItem {
            url,
            deduplication: digest_words([&*rule.id, &round.number.to_string(), &group]),
            group,
            body: event::notification_of(&event),
            again: None,
        };
        match self.engine.work_queues.send_all(&[item]).await.first() {
            Some(true) => Ok(()),
            _ => Err(trouble("the work queue takes no hint".to_owned())),
        }
    }

    /// Has the dispatch look at a key, as soon as it has room for that.
    async fn look_at(&self, event: Event) -> Result<(), Failure> {
        loop {
            let (answer, taken) = oneshot::channel();
            let command = Command::Look(Box::new(event.clone()), answer);
            let is_sent = self.commands.send(command).await.is_ok();
            match taken.await {
                Ok(true) => return Ok(()),
                Ok(false) if is_sent => tokio::time::sleep(Duration::from_secs(1)).await,
                Ok(false) | Err(_) => return Err(trouble("the daemon stops".to_owned())),
            }
        }
    }

    fn finish(&self, round: &Round) {
        let Round {
            rule, keys, hints, ..
        } = round;
        info!(rule, keys, hints, "compared all keys of the rule");
        let finished = FinishedRound {
            ended: clock::now(),
            keys: *keys,
            hints: *hints,
        };
        self.engine.activity.record_reconciled(rule, finished);
    }

    async fn acknowledge(&self, message: Message, action: AckAction) {
        let _sent = self.acks.send(AckRequest { message, action }).await;
    }
}

impl Round {
    /// Returns the message for what is left of it; none where there is no work queue.
    fn message(&self, rule: &Rule) -> Option<WorkItem> {
        let (number, after) = (self.number.to_string(), self.after.as_deref());
        let words = [&*self.rule, &*number, after.unwrap_or_default()];
        Some(WorkItem {
            url: rule.work_queue.clone()?,
            group: round_group_of(&self.rule),
            deduplication: digest_words(words),
            body: serde_json::to_string(self).ok()?,
            again: None,
        })
    }
}

/// Finds the rule of a round, unless it has none by now.
fn find_rule<'r>(rules: &'r Ruleset, round: &Round) -> Option<&'r Rule> {
    let is_meant = |rule: &&Rule| rule.id == round.rule && rule.enabled && rule.reconcile.is_some();
    rules.iter().find(is_meant)
}

/// Counts the intervals of a rule until now: so all daemons begin a round at the same time. The rules
/// begin at different times.
fn round_number(rule: &Rule, now: Timestamp) -> Option<i64> {
    let interval = i64::try_from(rule.reconcile?.as_secs()).ok()?;
    let digest = digest_words([rule.id.as_str()]);
    let offset = i64::from_str_radix(digest.get(..8)?, 16).ok()?;
    (now.unix_timestamp() - offset % interval).checked_div(interval)
}

fn trouble(words: String) -> Failure {
    Failure::with_source(FailureKind::Transient, Operation::Reconcile, words)
}

fn warn_broken(round: &Round, failure: &Failure) {
    let (rule, error) = (&round.rule, error_chain(failure));
    warn!(
        rule,
        error, "the comparison of all keys of the rule is broken off"
    );
}
