//! `reconcile` in a rule: now and then the lists of both buckets are compared, slowly, and keys that
//! miss something are looked at, because an event may be lost. With a work queue each piece of a
//! round is a message of the rule's own group, so one daemon works on it at a time, and another goes
//! on with it after a crash. Without one the one daemon keeps the place itself. This loop alone knows
//! what is under way; a piece is compared beside it.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use replicator_core::event;
use replicator_core::failure::{Failure, Operation, error_chain};
use replicator_core::object::Timestamp;
use replicator_core::rule::{Rule, RuleScope};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Verifier;
use super::keys::KeyPairs;
use crate::clock;
use crate::dispatch::{Command, Look};
use crate::engine::Engine;
use crate::ledger::records::TargetKey;
use crate::queue::message::{AckAction, AckRequest, Message};
use crate::reconcile::listing::KeyRange;
use crate::reconcile::transient;
use crate::rule_state::{Round, SeenRounds};
use crate::sqs::hints::{self, Hint};
use crate::sqs::work_queues::{WorkItem, digest_words, group_of, round_group_of};
use crate::task::Ruleset;

/// Compares all keys of rules, each when it is time.
#[derive(Debug)]
pub(crate) struct Rounds {
    comparer: Comparer,
    /// Messages of work queues, each for a piece of a round.
    messages: mpsc::Receiver<Message>,
    acks: mpsc::Sender<AckRequest>,
    drain: CancellationToken,
    seen: SeenRounds,
    /// The interval in which each rule was looked at last.
    looked: HashMap<String, i64>,
    waiting: VecDeque<Piece>,
    at_work: Option<Piece>,
    work: JoinSet<(Round, Option<Result<bool, Failure>>)>,
}

/// A piece of a round that waits, or is at work.
#[derive(Debug)]
struct Piece {
    round: Round,
    /// What it came with; none where there is no work queue.
    message: Option<Message>,
    /// When it may begin.
    due: Instant,
}

/// Compares pieces.
#[derive(Debug, Clone)]
struct Comparer {
    engine: Arc<Engine>,
    rules: watch::Receiver<Arc<Ruleset>>,
    /// The dispatch, which looks at keys where there is no work queue.
    commands: mpsc::Sender<Command>,
}

// Messages that wait for a piece of another rule; they are leased meanwhile.
const ROUNDS_MAX: usize = 8;

// How often it is looked whether a round is due: an interval has an hour at least.
const LOOKED_EVERY: Duration = Duration::from_secs(60);

// So much is done again after a crash, at the most; far below the 12 hours for which SQS hides a
// message.
const PIECE_TIME: Duration = Duration::from_secs(180);

// Clocks of hosts differ by less than an interval.
const CLOCKS_APART_MAX: i64 = 1;

// Events come first: a rule without a limit gets no more hints than this a second.
const HINTS_PER_SECOND: u32 = 10;

// A piece that fails so often is given up, after an hour or two; the next round begins anew.
const FAILURES_MAX: u32 = 10;

const DURING: Operation = Operation::Reconcile;

impl Rounds {
    /// Begins to compare the keys of rules now and then, and returns where the messages for that go.
    pub(crate) fn start(
        (engine, rules): (&Arc<Engine>, &watch::Receiver<Arc<Ruleset>>),
        (acks, ask): (&mpsc::Sender<AckRequest>, &mpsc::Sender<Command>),
        drain: &CancellationToken,
        work: &mut JoinSet<()>,
    ) -> mpsc::Sender<Message> {
        let (pass, messages) = mpsc::channel(ROUNDS_MAX);
        let comparer = Comparer {
            engine: Arc::clone(engine),
            rules: rules.clone(),
            commands: ask.clone(),
        };
        let rounds = Self {
            comparer,
            messages,
            acks: acks.clone(),
            drain: drain.clone(),
            seen: SeenRounds::default(),
            looked: HashMap::new(),
            waiting: VecDeque::new(),
            at_work: None,
            work: JoinSet::new(),
        };
        work.spawn(rounds.run());
        pass
    }

    /// Works until the daemon stops.
    async fn run(mut self) {
        let drain = self.drain.clone();
        let mut received = Vec::new();
        let mut looks = tokio::time::interval(LOOKED_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_next().await;
            let held = self.waiting.iter().filter(|piece| piece.message.is_some());
            let room = ROUNDS_MAX.saturating_sub(held.count());
            // All that is there is known before a piece or a round begins.
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                1.. = self.messages.recv_many(&mut received, room), if room > 0 => {
                    for message in received.drain(..) {
                        self.receive(message).await;
                    }
                }
                Some(ended) = self.work.join_next() => self.ended(ended.ok()).await,
                _ = looks.tick() => {
                    let _drained = drain.run_until_cancelled(self.begin_due()).await;
                }
            }
        }
        self.work.shutdown().await;
        self.messages.close();
        while let Some(piece) = self.at_work.take().or_else(|| self.waiting.pop_front()) {
            self.settle(piece.message, AckAction::ReturnAfter(Duration::ZERO))
                .await;
        }
        while let Some(message) = self.messages.recv().await {
            self.settle(Some(message), AckAction::ReturnAfter(Duration::ZERO))
                .await;
        }
    }

    /// Begins the rounds whose time has come since it was looked last: by a message, of which all
    /// daemons send the same, or here. None begins while one of its rule is under way.
    async fn begin_due(&mut self) {
        let rules = self.comparer.rules();
        let mut messages = Vec::new();
        for rule in rules.iter().filter(|rule| rule.enabled) {
            let Some(number) = self.number_max(rule).map(|most| most - CLOCKS_APART_MAX) else {
                continue;
            };
            let before = self.looked.insert(rule.id.clone(), number);
            let is_due = before.is_some_and(|before| before < number)
                && !self.comparer.engine.pauses.is_paused(rule);
            if !is_due || self.is_under_way(&rule.id, number) {
                continue;
            }
            let round = Round::new(&rule.id, number);
            match message_of(&round, rule) {
                Some(message) => messages.push(message),
                None => self.admit(round, None),
            }
        }
        self.comparer.engine.work_queues.send_all(&messages).await;
    }

    /// Says whether a round of a rule is under way, as far as this daemon saw, or this one was.
    fn is_under_way(&self, rule: &str, number: i64) -> bool {
        let mut pieces = self.at_work.iter().chain(&self.waiting);
        pieces.any(|piece| piece.round.rule == rule) || self.seen.is_under_way(rule, number)
    }

    /// Returns the greatest number that a round of a rule can have by now; what a longer interval
    /// gives no more is forgotten.
    fn number_max(&mut self, rule: &Rule) -> Option<i64> {
        let number = round_number(rule, clock::now())?.saturating_add(CLOCKS_APART_MAX);
        self.seen.forget_beyond(&rule.id, number);
        Some(number)
    }

    async fn receive(&mut self, message: Message) {
        let rules = self.comparer.rules();
        let round = serde_json::from_str::<Round>(&message.body).ok();
        // Any writer of the queue can send one, and the interval may be another by now.
        let is_possible = |round: &Round| {
            let number = find_rule(&rules, round).and_then(|rule| self.number_max(rule));
            number.is_some_and(|number| round.number <= number)
        };
        match round.filter(is_possible) {
            Some(round) => self.admit(round, Some(message)),
            None => self.settle(Some(message), AckAction::Delete).await,
        }
    }

    fn admit(&mut self, round: Round, message: Option<Message>) {
        self.seen.note(&round);
        self.waiting.push_back(Piece {
            due: Instant::now() + round.backoff(),
            round,
            message,
        });
    }

    /// Begins the next piece that may begin now, unless one is at work.
    async fn start_next(&mut self) {
        while self.at_work.is_none()
            && let Some(piece) = self.take_next()
        {
            match self.refusal(&piece) {
                Some(action) => self.settle(piece.message, action).await,
                None => self.start_piece(piece),
            }
        }
    }

    /// Takes out the next piece that has no reason to wait here.
    fn take_next(&mut self) -> Option<Piece> {
        let (now, rules) = (Instant::now(), self.comparer.rules());
        let is_paused = |round: &Round| {
            let rule = find_rule(&rules, round);
            rule.is_some_and(|rule| self.comparer.engine.pauses.is_paused(rule))
        };
        let is_ready =
            |piece: &Piece| piece.message.is_some() || piece.due <= now && !is_paused(&piece.round);
        let at = self.waiting.iter().position(is_ready)?;
        self.waiting.remove(at)
    }

    /// Says what becomes of a piece that does not begin.
    fn refusal(&self, piece: &Piece) -> Option<AckAction> {
        let rules = self.comparer.rules();
        let rule = find_rule(&rules, &piece.round);
        let Some(rule) = rule.filter(|_| self.seen.is_current(&piece.round)) else {
            return Some(AckAction::Delete);
        };
        let message = piece.message.as_ref()?;
        if message.lease.stop_token().is_cancelled() {
            return Some(AckAction::ReturnAfter(Duration::ZERO));
        }
        if self.comparer.engine.pauses.is_paused(rule) {
            return Some(AckAction::ReturnAfter(message.pause_delay()));
        }
        // FIFO queues delay no single message: what failed is hidden when it comes first.
        let waits = piece.round.failures > 0 && !message.is_redelivered();
        waits.then(|| AckAction::ReturnAfter(piece.round.backoff()))
    }

    fn start_piece(&mut self, piece: Piece) {
        let (comparer, mut round) = (self.comparer.clone(), piece.round.clone());
        let lease = piece.message.as_ref().map(|message| &message.lease);
        let lost = lease.map(|lease| lease.stop_token().clone());
        let lost = lost.unwrap_or_default();
        self.work.spawn(async move {
            let compared = Box::pin(comparer.compare_piece(&mut round));
            let result = lost.run_until_cancelled(compared).await;
            (round, result)
        });
        self.at_work = Some(piece);
    }

    /// Goes on after a piece; one whose lease was lost is another daemon's.
    async fn ended(&mut self, ended: Option<(Round, Option<Result<bool, Failure>>)>) {
        let (Some(piece), Some((mut round, Some(result)))) = (self.at_work.take(), ended) else {
            return;
        };
        if round.after != piece.round.after {
            round.failures = 0;
        }
        match result {
            Ok(true) => self.finish(&round),
            Ok(false) => return self.go_on(round, piece).await,
            Err(failure) => {
                warn_broken(&round, &failure);
                round.failures = round.failures.saturating_add(1);
                if round.failures <= FAILURES_MAX {
                    return self.go_on(round, piece).await;
                }
            }
        }
        self.seen.end(&round);
        self.settle(piece.message, AckAction::Delete).await;
    }

    /// Has the rest of a round done, unless an older one is under way by now.
    async fn go_on(&mut self, round: Round, piece: Piece) {
        let rules = self.comparer.rules();
        let rule = find_rule(&rules, &round).filter(|_| self.seen.is_current(&round));
        let action = match (rule, &piece.message) {
            (None, _) => AckAction::Delete,
            (Some(_), None) => return self.admit(round, None),
            // The same again would be left out as a repetition.
            (Some(_), Some(_)) if round == piece.round => AckAction::ReturnAfter(Duration::ZERO),
            (Some(rule), Some(_)) => {
                AckAction::Forward(message_of(&round, rule).into_iter().collect())
            }
        };
        self.settle(piece.message, action).await;
    }

    fn finish(&self, round: &Round) {
        let (rule, keys, hints) = (&round.rule, round.keys, round.hints);
        info!(rule, keys, hints, "compared all keys of the rule");
        self.comparer.engine.activity.record_reconciled(round);
    }

    async fn settle(&self, message: Option<Message>, action: AckAction) {
        if let Some(message) = message {
            let _sent = self.acks.send(AckRequest { message, action }).await;
        }
    }
}

impl Comparer {
    fn rules(&self) -> Arc<Ruleset> {
        Arc::clone(&self.rules.borrow())
    }

    /// Compares keys for a while; says whether the round is through.
    async fn compare_piece(&self, round: &mut Round) -> Result<bool, Failure> {
        let (rules, deadline) = (self.rules(), Instant::now() + PIECE_TIME);
        let Some(rule) = find_rule(&rules, round) else {
            return Ok(false);
        };
        let verifier = self.verifier(&rules, rule)?;
        let range = KeyRange {
            after: round.after.clone(),
            until: None,
        };
        let ends = (verifier.source, verifier.destination);
        let pairs = KeyPairs::new(rule, ends, None)
            .map_err(|error| transient(DURING, error.to_string()))?;
        let mut pairs = pairs.within(&range).stopping_at(deadline);
        let is_in_force = || {
            let is_same = Arc::ptr_eq(&rules, &self.rules.borrow());
            is_same && !self.engine.pauses.is_paused(rule)
        };
        while let Some(listed) = pairs.next_pair().await? {
            if !is_in_force() {
                return Ok(false);
            }
            let key = listed.key().clone();
            let (counts, hint) = Box::pin(verifier.find_hint(listed)).await?;
            let may_wait = || is_in_force() && Instant::now() < deadline;
            if let Some(hint) = &hint
                && !self.hint((rule, round.number), hint, may_wait).await?
            {
                return Ok(false);
            }
            round.keys = round.keys.saturating_add(u64::from(counts));
            round.hints = round.hints.saturating_add(u64::from(hint.is_some()));
            round.after = Some(key.as_str().to_owned());
        }
        let stopped_after = pairs.stopped_after().map(|key| key.as_str().to_owned());
        let is_through = stopped_after.is_none();
        round.after = stopped_after.or(round.after.take());
        Ok(is_through)
    }

    fn verifier<'a>(&'a self, rules: &Ruleset, rule: &'a Rule) -> Result<Verifier<'a>, Failure> {
        Ok(Verifier {
            scope: self.scope_of(rules, rule)?,
            rule,
            source: self.engine.access_to(&rule.source)?,
            destination: self.engine.access_to(&rule.destination)?,
            parked: None,
            deep: None,
        })
    }

    /// Says which versions count, as the daemon counts them.
    fn scope_of(&self, rules: &Ruleset, rule: &Rule) -> Result<RuleScope, Failure> {
        let start_of = |rule: &Rule| match rule.since {
            Some(since) => Ok(Some(since)),
            None => self.engine.ledger.known_start(&rule.id),
        };
        let as_of = clock::now() - super::PENDING_FOR;
        RuleScope::new((rule, rules.iter()), as_of, start_of)
    }

    /// Has a key looked at; returns false if there is no room for that as long as it may wait.
    async fn hint(
        &self,
        (rule, number): (&Rule, i64),
        hint: &Hint,
        may_wait: impl Fn() -> bool,
    ) -> Result<bool, Failure> {
        // One that S3 cannot hold gets no hint.
        let Ok(key) = rule.destination_key(&hint.key) else {
            return Ok(true);
        };
        let destination = rule.destination.clone();
        let look = Look {
            target: TargetKey { destination, key },
            event: hints::event_of(rule, hint),
        };
        let limit = rule.limits.requests_per_second.map(NonZeroU32::get);
        let a_second = limit.unwrap_or(u32::MAX).min(HINTS_PER_SECOND);
        tokio::time::sleep(Duration::from_secs(1) / a_second).await;
        let Some(url) = rule.work_queue.clone() else {
            return self.look_at(look, may_wait).await;
        };
        let group = group_of(&look.target);
        let item = WorkItem {
            url,
            deduplication: digest_words([&*rule.id, &number.to_string(), &group]),
            group,
            body: event::notification_of(&look.event),
            again: None,
        };
        match self.engine.work_queues.send_all(&[item]).await.first() {
            Some(true) => Ok(true),
            _ => Err(transient(DURING, "the work queue takes no hint")),
        }
    }

    /// Has the dispatch look at a key, as soon as it has room for that.
    async fn look_at(&self, look: Look, may_wait: impl Fn() -> bool) -> Result<bool, Failure> {
        loop {
            let (answer, taken) = oneshot::channel();
            let command = Command::Look(Box::new(look.clone()), answer);
            let is_sent = self.commands.send(command).await.is_ok();
            match taken.await {
                Ok(true) => return Ok(true),
                Ok(false) if is_sent && !may_wait() => return Ok(false),
                Ok(false) if is_sent => tokio::time::sleep(Duration::from_secs(1)).await,
                Ok(false) | Err(_) => return Err(transient(DURING, "the daemon stops")),
            }
        }
    }
}

/// Returns the message for what is left of a round; none where there is no work queue.
fn message_of(round: &Round, rule: &Rule) -> Option<WorkItem> {
    let (number, failures) = (round.number.to_string(), round.failures.to_string());
    let after = round.after.as_deref().unwrap_or_default();
    let words = [&*round.rule, &*number, after, &*failures];
    Some(WorkItem {
        url: rule.work_queue.clone()?,
        group: round_group_of(&round.rule),
        deduplication: digest_words(words),
        body: serde_json::to_string(round).ok()?,
        again: None,
    })
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

fn warn_broken(round: &Round, failure: &Failure) {
    let (rule, error) = (&round.rule, error_chain(failure));
    warn!(
        rule,
        error, "the comparison of all keys of the rule is broken off"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_and_each_failure_there_is_another_message() {
        let mut rule = crate::task::tests::rules(&[("orders", "orders", "replicas")]).remove(0);
        rule.work_queue = Some("work.fifo".to_owned());
        let id = |after: Option<&str>, failures| {
            let round = Round {
                after: after.map(str::to_owned),
                failures,
                ..Round::new("orders", 1)
            };
            message_of(&round, &rule).unwrap().deduplication
        };
        assert_ne!(id(None, 0), id(Some("a"), 0));
        assert_ne!(id(Some("a"), 0), id(Some("a"), 1));
    }
}
