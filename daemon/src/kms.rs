//! The KMS keys that rules use, and what KMS says of each: asked at start, on reload and every few
//! minutes. A key that KMS says cannot be used parks what needs it before that is read; once it
//! can be used, what is parked for it is tried again. Without an answer nothing changes.

pub(crate) mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, future, stream};
use parking_lot::Mutex;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::Timestamp;
use replicator_core::rule::{Encryption, ReplicaKey, Rule, related_key};
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use utoipa::ToSchema;

use crate::clock;
use crate::s3::accounts::Accounts;
pub(crate) use requests::KeyReport;
use requests::ask;

/// The keys of all rules in force.
#[derive(Debug)]
pub(crate) struct Keys {
    accounts: Accounts,
    table: Mutex<Table>,
    /// Notified when a key may have changed.
    suspected: Notify,
    /// Notified when something is to be tried again.
    pub(crate) recovered: Notify,
    /// Cancelled when the keys were asked about for the first time, or do not answer.
    first_asked: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    /// By rule.
    keys: BTreeMap<String, Vec<WatchedKey>>,
    /// Which parked tasks are to be tried again, by rule and reason.
    to_retry: BTreeSet<(String, Reason)>,
}

/// A key as a rule uses it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyUse {
    pub(crate) side: KeySide,
    pub(crate) account: String,
    /// As the configuration has it, or an object.
    pub(crate) name: String,
}

/// The key that a replica is written under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResolvedKey {
    /// As the configuration has it, which may be an alias.
    pub(crate) name: String,
    /// Which key that is, where KMS has said so.
    pub(crate) arn: Option<String>,
}

/// What a key is used for.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    strum::Display,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum KeySide {
    /// Reading objects of the source.
    Source,
    /// Writing replicas.
    Destination,
}

#[derive(Debug)]
struct WatchedKey {
    key: KeyUse,
    /// Absent where the configuration names it.
    learned: Option<LearnedKey>,
    state: KeyState,
    since: Timestamp,
    /// When KMS last said something definite.
    confirmed: Instant,
    arn: Option<String>,
    detail: String,
}

/// What a key is known from that the configuration does not name.
#[derive(Debug)]
struct LearnedKey {
    /// The key of the object, which it is itself, or is related to.
    of_object: String,
    /// When an object last had it.
    used: Instant,
}

/// Whether a key can be used, as far as KMS says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum KeyState {
    /// KMS has said nothing definite.
    Unknown,
    /// It can be used.
    Usable,
    /// Its state, or its kind, does not let it be used.
    Invalid,
    /// There is no such key.
    Missing,
}

/// A key of a rule, for `status`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyStatus {
    /// The rule.
    pub rule: String,
    /// What the rule uses it for.
    pub side: KeySide,
    /// The key as the configuration has it, or an object of the source.
    pub key: String,
    /// The key's ARN, as KMS says.
    pub arn: Option<String>,
    /// Whether it can be used.
    pub state: KeyState,
    /// Since when that is known.
    #[schema(format = DateTime)]
    pub since: Option<String>,
    /// What KMS says beyond that.
    pub detail: String,
}

// DescribeKey and the dry runs cost nothing, and their quota is a thousand times as large:
// https://docs.aws.amazon.com/kms/latest/developerguide/requests-per-second.html
const ASKED_EVERY: Duration = Duration::from_secs(180);

// A key that is repaired is waited for.
const ASKED_EVERY_IF_BAD: Duration = Duration::from_secs(30);

// Refusals of S3 come by the hundred.
const ASKED_AT_MOST_EVERY: Duration = Duration::from_secs(10);

// Reading waits for the first answers, and not for a KMS that gives none.
const FIRST_ASKED_WITHIN: Duration = Duration::from_secs(5);

// A key that nothing is heard of any more may have been repaired: S3 says so, or refuses.
const BELIEVED_FOR: Duration = Duration::from_secs(900);

// Keys asked about at a time.
const QUESTIONS_MAX: usize = 8;

// A writer of the source can name any number of keys; those of the configuration come on top.
const LEARNED_MAX: usize = 100;

// While one of a rule's keys cannot be used, each small object of the rule costs a HEAD more. One
// that no object had for a day is likely a retired one; what is parked for it is tried every hour
// all the same.
const LEARNED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

impl KeySide {
    /// Names what is parked for a key of this side.
    fn reasons(self) -> &'static [Reason] {
        match self {
            Self::Source => &[Reason::SrcKmsKeyInvalidState],
            Self::Destination => &[Reason::DstKmsKeyInvalidState, Reason::DstKmsKeyNotFound],
        }
    }
}

impl ResolvedKey {
    /// Returns what a write names.
    pub(crate) fn id(&self) -> &str {
        self.arn.as_deref().unwrap_or(&self.name)
    }
}

impl KeyState {
    fn is_bad(self) -> bool {
        matches!(self, Self::Invalid | Self::Missing)
    }
}

impl Keys {
    pub(crate) fn new(accounts: Accounts) -> Self {
        Self {
            accounts,
            table: Mutex::default(),
            suspected: Notify::new(),
            recovered: Notify::new(),
            first_asked: CancellationToken::new(),
        }
    }

    /// Takes over which keys the rules use; what is known of a key that stays is kept.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        let mut table = self.table.lock();
        let mut before = std::mem::take(&mut table.keys);
        for rule in rules {
            let (mut configured, old) = (configured_keys(rule), before.remove(&rule.id));
            let mut keys: Vec<WatchedKey> = old.unwrap_or_default();
            keys.retain(|known| configured.remove(&known.key) || known.learned.is_some());
            let new = configured.into_iter();
            keys.extend(new.map(|key| WatchedKey::new(key, None)));
            if !keys.is_empty() {
                table.keys.insert(rule.id.clone(), keys);
            }
        }
        drop(table);
        self.suspected.notify_one();
    }

    /// Asks about every key until `stop` is cancelled. Without keys nothing is sent.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let patience = async {
            tokio::time::sleep(FIRST_ASKED_WITHIN).await;
            self.first_asked.cancel();
        };
        let rounds = async {
            loop {
                let _suspected =
                    tokio::time::timeout(self.pause(), self.suspected.notified()).await;
                self.ask_all().await;
                self.first_asked.cancel();
                tokio::time::sleep(ASKED_AT_MOST_EVERY).await;
            }
        };
        stop.run_until_cancelled(future::join(patience, rounds))
            .await;
    }

    fn pause(&self) -> Duration {
        let table = self.table.lock();
        let is_bad = table.keys.values().flatten().any(|key| key.state.is_bad());
        if is_bad {
            ASKED_EVERY_IF_BAD
        } else {
            ASKED_EVERY
        }
    }

    async fn ask_all(&self) {
        let keys: BTreeSet<KeyUse> = {
            let mut table = self.table.lock();
            let of_rules = table.keys.values_mut();
            of_rules.for_each(|keys| keys.retain(|known| !known.is_retired()));
            let keys = table.keys.values().flatten();
            keys.map(|known| known.key.clone()).collect()
        };
        let asked = stream::iter(keys).for_each_concurrent(QUESTIONS_MAX, async |key| {
            if let Some(access) = self.accounts.get(&key.account) {
                let answer = ask(&access.kms, key.side, &key.name).await;
                self.record(&key, &answer);
            }
        });
        asked.await;
    }

    fn record(&self, key: &KeyUse, answer: &KeyReport) {
        let mut table = self.table.lock();
        let Table { keys, to_retry } = &mut *table;
        let of_rules = keys
            .iter_mut()
            .flat_map(|(rule, keys)| keys.iter_mut().map(move |known| (rule, known)));
        for (rule, known) in of_rules.filter(|(_, known)| known.key == *key) {
            let before = known.state;
            known.learn(answer);
            if before == known.state {
                continue;
            }
            log(rule, known);
            if before.is_bad() && known.state == KeyState::Usable {
                let reasons = key.side.reasons().iter();
                to_retry.extend(reasons.map(|reason| (rule.clone(), *reason)));
                self.recovered.notify_one();
            }
        }
    }

    /// Takes a rule and a reason of which what is parked is to be tried again.
    pub(crate) fn take_recovered(&self) -> Option<(String, Reason)> {
        self.table.lock().to_retry.pop_first()
    }

    /// Waits until the keys of a rule were asked about once, if it uses any.
    pub(crate) async fn first_asked(&self, rule: &Rule) {
        if self.table.lock().keys.contains_key(&rule.id) {
            self.first_asked.cancelled().await;
        }
    }

    /// Has the keys asked about soon: S3 refused one.
    pub(crate) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Says whether a rule uses a key that cannot be used: then the key that an object needs is
    /// found out before it is read.
    pub(crate) fn has_bad(&self, rule: &Rule) -> bool {
        let table = self.table.lock();
        let keys = table.keys.get(&rule.id);
        keys.is_some_and(|keys| keys.iter().any(WatchedKey::is_refused))
    }

    /// Resolves a key that replicas are written under, unless it cannot be used.
    pub(crate) fn for_replica(&self, rule: &Rule, name: String) -> Result<ResolvedKey, Failure> {
        let arn = self.usable(rule, KeySide::Destination, &name)?;
        Ok(ResolvedKey { name, arn })
    }

    /// Notes which key an object of the source is encrypted with, and refuses one that cannot be
    /// used.
    pub(crate) fn for_reading(&self, rule: &Rule, name: &str) -> Result<(), Failure> {
        self.note_key(rule, name);
        self.usable(rule, KeySide::Source, name).map(drop)
    }

    fn usable(&self, rule: &Rule, side: KeySide, name: &str) -> Result<Option<String>, Failure> {
        let table = self.table.lock();
        let keys = table.keys.get(&rule.id).into_iter().flatten();
        let is_it = |known: &&WatchedKey| known.key.side == side && known.key.name == name;
        let Some(known) = { keys }.find(is_it) else {
            return Ok(None);
        };
        if !known.is_refused() {
            return Ok(known.arn.clone());
        }
        let reason = match (side, known.state) {
            (KeySide::Source, _) => Reason::SrcKmsKeyInvalidState,
            (KeySide::Destination, KeyState::Missing) => Reason::DstKmsKeyNotFound,
            (KeySide::Destination, _) => Reason::DstKmsKeyInvalidState,
        };
        let cause = format!("{name}: {}", known.detail);
        let kind = FailureKind::NeedsOperator(reason);
        Err(Failure::with_source(kind, Operation::DescribeKey, cause))
    }

    /// Watches the key of an object, and the one that is related to it, from now on.
    fn note_key(&self, rule: &Rule, name: &str) {
        let key = |side, account: &str, name| KeyUse {
            side,
            account: account.to_owned(),
            name,
        };
        let mut table = self.table.lock();
        let keys = table.keys.values().flatten();
        let count = keys.filter(|known| known.learned.is_some()).count();
        let own = table.keys.entry(rule.id.clone()).or_default();
        let with_it = own.iter_mut().filter_map(|known| known.learned.as_mut());
        for known in with_it.filter(|known| known.of_object == name) {
            known.used = Instant::now();
        }
        let learned = || LearnedKey {
            of_object: name.to_owned(),
            used: Instant::now(),
        };
        let is_known =
            |known: &WatchedKey| known.key.side == KeySide::Source && known.key.name == name;
        if count >= LEARNED_MAX || own.iter().any(is_known) {
            return;
        }
        let source = key(KeySide::Source, &rule.source.account, name.to_owned());
        own.push(WatchedKey::new(source, Some(learned())));
        let account = &rule.destination.account;
        let related = self.related(rule, name);
        let related = related.map(|related| key(KeySide::Destination, account, related));
        own.extend(related.map(|related| WatchedKey::new(related, Some(learned()))));
        drop(table);
        self.suspected.notify_one();
    }

    fn related(&self, rule: &Rule, name: &str) -> Option<String> {
        let is_related = matches!(
            &rule.encryption,
            Encryption::Kms { key: ReplicaKey::Related, key_map, .. } if !key_map.contains_key(name)
        );
        let access = self.accounts.get(&rule.destination.account);
        access
            .filter(|_| is_related)
            .and_then(|access| related_key(name, access.region()))
    }

    /// Lists what is known.
    pub(crate) fn statuses(&self) -> Vec<KeyStatus> {
        let table = self.table.lock();
        let keys = table.keys.iter();
        let of_rule = |(rule, keys): (&String, &Vec<WatchedKey>)| {
            let status = |known: &WatchedKey| KeyStatus {
                rule: rule.clone(),
                side: known.key.side,
                key: known.key.name.clone(),
                arn: known.arn.clone(),
                state: known.state,
                since: known.since.format(&Rfc3339).ok(),
                detail: known.detail.clone(),
            };
            keys.iter().map(status).collect::<Vec<_>>()
        };
        keys.flat_map(of_rule).collect()
    }
}

impl WatchedKey {
    fn new(key: KeyUse, learned: Option<LearnedKey>) -> Self {
        Self {
            key,
            learned,
            state: KeyState::Unknown,
            since: clock::now(),
            confirmed: Instant::now(),
            arn: None,
            detail: "not asked about yet".to_owned(),
        }
    }

    /// Says whether it cannot be used, by what KMS said a short while ago.
    fn is_refused(&self) -> bool {
        self.state.is_bad() && self.confirmed.elapsed() < BELIEVED_FOR
    }

    /// Says whether no object had it for so long that none is likely to.
    fn is_retired(&self) -> bool {
        let learned = self.learned.as_ref();
        learned.is_some_and(|learned| learned.used.elapsed() >= LEARNED_FOR)
    }

    /// Takes over what an answer says for certain.
    fn learn(&mut self, answer: &KeyReport) {
        if answer.state.is_some() {
            self.confirmed = Instant::now();
        }
        let state = answer.state.unwrap_or(self.state);
        if answer.state.is_some() || state == KeyState::Unknown {
            self.detail.clone_from(&answer.detail);
        }
        if answer.arn.is_some() {
            self.arn.clone_from(&answer.arn);
        }
        if state != self.state {
            (self.state, self.since) = (state, clock::now());
        }
    }
}

fn log(rule: &str, known: &WatchedKey) {
    let WatchedKey {
        key, state, detail, ..
    } = known;
    let (KeyUse { side, name, .. }, detail) = (key, detail.as_str());
    if state.is_bad() {
        warn!(rule, %side, key = name, %state, detail, "KMS key cannot be used, what needs it is parked");
    } else {
        info!(rule, %side, key = name, %state, detail, "KMS key can be used");
    }
}

/// Lists the keys that the configuration names for a rule.
pub(crate) fn configured_keys(rule: &Rule) -> BTreeSet<KeyUse> {
    let (own, key_map) = match &rule.encryption {
        Encryption::Same { key_map } => (None, Some(key_map)),
        Encryption::BucketDefault | Encryption::S3 => (None, None),
        Encryption::Dsse { key } => (Some(key), None),
        Encryption::Kms { key, key_map, .. } => match key {
            ReplicaKey::Named(key) => (Some(key), Some(key_map)),
            ReplicaKey::Related => (None, Some(key_map)),
        },
    };
    let key = |side, account: &str, name: &String| KeyUse {
        side,
        account: account.to_owned(),
        name: name.clone(),
    };
    let (source, destination) = (&rule.source.account, &rule.destination.account);
    let mapped = key_map.into_iter().flatten();
    let mapped = mapped.flat_map(|(from, to)| {
        [
            key(KeySide::Source, source, from),
            key(KeySide::Destination, destination, to),
        ]
    });
    let own = own.map(|own| key(KeySide::Destination, destination, own));
    own.into_iter().chain(mapped).collect()
}
