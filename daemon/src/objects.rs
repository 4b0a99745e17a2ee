//! What became of one object: each of its versions at each destination, in native replication's
//! words. Both buckets are listed; a replica is known by the ledger or by its stamp, and why a
//! version has none by the ledger or by the rules. It writes nothing.

mod history;

use std::collections::BTreeSet;

use anyhow::Context;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use replicator_config::Settings;
use replicator_core::compare::ShownEntry;
use replicator_core::failure::{Failure, FailureKind, Operation};
use replicator_core::object::{Bucket, Key, Timestamp};
use replicator_core::plan::{SourceVersion, VersionKind};
use replicator_core::rule::{BucketRef, DestinationMatch, Mismatch, Rule, match_rules};
use replicator_core::stamp::OriginClaim;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ledger::records::{Replica, ReplicaState, TargetKey};
use crate::ledger::{KeyRecords, Ledger, directory};
use crate::metrics::Metrics;
use crate::parking::Object;
use crate::process::run_blocking;
use crate::reconcile::listing::VersionLister;
use crate::reconcile::read_claim;
use crate::s3::accounts::error::Side;
use crate::s3::accounts::{AccountClients, Accounts};
use crate::s3::client::{ResponseHead, S3Request};
use crate::task::Original;
pub(crate) use history::VersionStatus;
use history::VersionedKey;

/// What became of an object.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ObjectStatus {
    /// The object that the question was about.
    pub(crate) object: String,
    /// Each key that it is replicated to, or is the replica of.
    pub(crate) keys: Vec<KeyReplication>,
    /// The rules of its bucket that do not take its key.
    pub(crate) refusals: Vec<RuleRefusal>,
}

/// A key of a source at one of its destinations.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct KeyReplication {
    /// The rule that decides about the key.
    pub(crate) rule: String,
    /// The key at the source.
    pub(crate) source: String,
    /// The key at the destination.
    pub(crate) destination: String,
    /// Its versions and delete markers, the newest first.
    pub(crate) versions: Vec<VersionStatus>,
    /// Version ids of objects at the destination that are no replicas.
    pub(crate) unmanaged: Vec<String>,
    /// How many older versions of the source nothing is told of.
    pub(crate) omitted: usize,
    /// How many older versions of the destination were not looked at: what they are is not known.
    #[serde(default)]
    pub(crate) unread: usize,
}

/// Why a rule does not take a key.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct RuleRefusal {
    /// The rule.
    pub(crate) rule: String,
    /// The cause, as in metrics.
    pub(crate) cause: String,
    /// The cause in a sentence.
    pub(crate) detail: String,
}

/// Which object a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectQuestion {
    object: Object,
    version: Option<String>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// No rule has its bucket, or there is no such version.
    Unknown(String),
    /// A service, or the ledger, has no answer.
    Failed(Failure),
}

/// Where the ledger is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LedgerReader<'a> {
    /// In the daemon.
    Open(&'a Ledger),
    /// Beside it.
    Beside(&'a Settings),
}

/// What a question is answered from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ObjectReader<'a> {
    pub(crate) accounts: &'a Accounts,
    pub(crate) rules: &'a [Rule],
    pub(crate) ledger: LedgerReader<'a>,
}

// Of a key with more the newest are told of.
const VERSIONS_MAX: usize = 1000;

// Each that the ledger does not know costs a HEAD. A version may be there twice, or be no replica.
const SHOWN_MAX: usize = 2 * VERSIONS_MAX;

// Several at a time, as for the keys of `verify`.
const HEADS_MAX: usize = 16;

/// Answers a question without a daemon, from the services and the ledger that is here.
pub(crate) async fn read_beside(
    settings: &Settings,
    question: &ObjectQuestion,
) -> anyhow::Result<Result<ObjectStatus, Unanswered>> {
    let metrics = Metrics::new().context("cannot register metrics")?;
    let accounts = Accounts::connect(&settings.accounts, &metrics, None).await;
    let accounts = accounts.context("cannot set up TLS")?;
    let reader = ObjectReader {
        accounts: &accounts,
        rules: &settings.rules,
        ledger: LedgerReader::Beside(settings),
    };
    Ok(reader.read(question).await)
}

impl ObjectQuestion {
    /// Reads `s3://bucket/key`, of one version with `?versionId=` behind it. Of several the last one
    /// counts, and one with no id is about all versions: so a key may have any of them itself.
    pub(crate) fn parse_uri(text: &str) -> Option<Self> {
        let (object, version) = text.rsplit_once("?versionId=").unwrap_or((text, ""));
        let object = Object::parse_url(object)?;
        let version = Some(version).filter(|version| !version.is_empty());
        Some(Self {
            object,
            version: version.map(str::to_owned),
        })
    }

    /// Leaves only what is about the version that was asked for.
    fn select(&self, found: &mut KeyReplication) {
        if let Some(version) = &self.version {
            let is_named = |id: &Option<String>| id.as_ref() == Some(version);
            found.versions.retain(|status| {
                is_named(&status.version_id) || is_named(&status.replica_version_id)
            });
            found.unmanaged.retain(|id| id == version);
        }
    }
}

impl KeyReplication {
    fn has_any(&self) -> bool {
        !self.versions.is_empty() || !self.unmanaged.is_empty()
    }
}

/// A key of a source at one destination, and the rules that compete for it.
struct KeyPlace<'a> {
    /// The first of the rules.
    lead: &'a Rule,
    rules: Vec<&'a Rule>,
    source: BucketRef,
    key: Key,
    target: TargetKey,
}

impl<'a> KeyPlace<'a> {
    /// Lists the keys that a key of the source may have at one destination.
    fn of_contest(contest: &DestinationMatch<'a>, original: &Key) -> Vec<Self> {
        let rules = &contest.candidates;
        let Some(lead) = rules.first().copied() else {
            return Vec::new();
        };
        let targets = rules.iter().map(|rule| rule.destination_key(original));
        let targets: BTreeSet<Key> = targets.filter_map(Result::ok).collect();
        let place = |key| Self {
            lead,
            rules: rules.clone(),
            source: lead.source.clone(),
            key: original.clone(),
            target: TargetKey {
                destination: contest.destination.clone(),
                key,
            },
        };
        targets.into_iter().map(place).collect()
    }
}

impl<'a> ObjectReader<'a> {
    /// Answers a question.
    pub(crate) async fn read(self, question: &ObjectQuestion) -> Result<ObjectStatus, Unanswered> {
        let Object { bucket, key } = &question.object;
        let name = format!("s3://{bucket}/{key}");
        let invalid = |_| Unanswered::Unknown(format!("{name} is no name that S3 can hold"));
        let bucket = Bucket::try_from(bucket.as_str()).map_err(invalid)?;
        let key = Key::try_from(key.as_str()).map_err(invalid)?;
        let of_source = |rule: &&Rule| rule.source.bucket == bucket;
        let refusals: Vec<RuleRefusal> = { self.rules.iter().filter(of_source) }
            .filter_map(|rule| Some((rule, rule.admits_key(&key).err()?)))
            .map(|(rule, cause)| RuleRefusal::new(rule, cause))
            .collect();
        let places = self.places(&bucket, &key);
        if places.is_empty() && refusals.is_empty() {
            let known = format!("no rule has the bucket {bucket}, or writes {name}");
            return Err(Unanswered::Unknown(known));
        }
        let mut keys = Vec::new();
        for place in &places {
            let found = self.read_place(place, question).await;
            keys.push(found.map_err(Unanswered::Failed)?);
        }
        // Of a key that no rule takes nothing is read.
        if !keys.is_empty() && !keys.iter().any(KeyReplication::has_any) {
            let which = match &question.version {
                Some(version) => format!("a version {version:?}"),
                None => "any version or delete marker".to_owned(),
            };
            let mut unknown = format!("neither side of {name} has {which}");
            let unread: usize = keys.iter().map(|found| found.unread).sum();
            if unread > 0 {
                unknown.push_str(&format!(
                    ", but {unread} older versions of the destination were not looked at"
                ));
            }
            return Err(Unanswered::Unknown(unknown));
        }
        Ok(ObjectStatus {
            object: name,
            keys,
            refusals,
        })
    }

    /// Finds the keys that an object is replicated to, and those that it is the replica of.
    fn places(self, bucket: &Bucket, key: &Key) -> Vec<KeyPlace<'a>> {
        let mut originals = vec![(bucket, key.clone())];
        for rule in self.rules {
            let is_shown = rule.destination.bucket == *bucket;
            let original = rule.original_key(key).filter(|_| is_shown);
            originals.extend(original.map(|original| (&rule.source.bucket, original)));
        }
        originals.sort_unstable();
        originals.dedup();
        let mut places = Vec::new();
        for (source, original) in originals {
            let is_original = (source, &original) == (bucket, key);
            let replicas = { match_rules(self.rules, source, &original).into_iter() }
                .flat_map(|contest| KeyPlace::of_contest(&contest, &original));
            let is_asked = |place: &KeyPlace<'_>| {
                let target = &place.target;
                is_original || (&target.destination.bucket, &target.key) == (bucket, key)
            };
            places.extend(replicas.filter(is_asked));
        }
        places
    }

    /// Reads both sides of a key. The destination comes first: a replica is there later than its
    /// original.
    async fn read_place(
        self,
        place: &KeyPlace<'a>,
        question: &ObjectQuestion,
    ) -> Result<KeyReplication, Failure> {
        let KeyPlace {
            lead,
            rules,
            source,
            key,
            target,
        } = place;
        let accounts = self.accounts;
        let from = accounts.access_to(source)?;
        let to = accounts.access_to(&target.destination)?;
        let bucket = &target.destination.bucket;
        let mut unread = list_key(to, (Side::Destination, bucket), &target.key).await?;
        let listed = list_key(from, (Side::Source, &source.bucket), key).await?;
        let shown = unread.split_off(unread.len().saturating_sub(SHOWN_MAX));
        let (records, start) = self.ledger.read(target, lead)?;
        let original = Original {
            bucket: &source.bucket,
            key,
            wraps_keys: rules.iter().any(|rule| !rule.client_side_keys.is_empty()),
        };
        let mut shown = read_claims((to, target), shown, &records, original).await?;
        for claim in shown.iter_mut().filter_map(|entry| entry.claim.as_mut()) {
            // ETags of what KMS encrypts are no digests: `verify` looks closer.
            claim.has_digest = false;
        }
        let history = VersionedKey {
            rules,
            start,
            source: listed,
            shown,
            unread,
            records,
        };
        let (versions, unmanaged) = run_blocking(|| history.statuses(VERSIONS_MAX));
        let mut found = KeyReplication {
            rule: lead.id.clone(),
            source: format!("s3://{}/{}", source.bucket, key.as_str()),
            destination: format!("s3://{bucket}/{}", target.key.as_str()),
            versions,
            unmanaged,
            omitted: history.source.len().saturating_sub(VERSIONS_MAX),
            unread: history.unread.len(),
        };
        question.select(&mut found);
        if let (Some(version), false) = (&question.version, found.has_any()) {
            found.versions.extend(history.unjudged(version));
        }
        Ok(found)
    }
}

impl LedgerReader<'_> {
    /// Reads what is on record of a key, and since when versions are in scope of its rule.
    fn read(
        self,
        target: &TargetKey,
        lead: &Rule,
    ) -> Result<(KeyRecords, Option<Timestamp>), Failure> {
        run_blocking(|| match self {
            Self::Open(ledger) => {
                let start = match lead.since {
                    Some(since) => Some(since),
                    None => ledger.known_start(&lead.id)?,
                };
                Ok((ledger.records_of(target)?, start))
            }
            Self::Beside(settings) => {
                let read = || {
                    let start = match lead.since {
                        Some(since) => Some(since),
                        None => directory::rule_start(settings, &lead.id)?,
                    };
                    Ok((directory::records_of(settings, target)?, start))
                };
                read().map_err(|error: anyhow::Error| {
                    let (kind, during) = (FailureKind::Transient, Operation::AccessLedger);
                    Failure::with_source(kind, during, error)
                })
            }
        })
    }
}

/// Lists the history of a key, oldest first.
pub(crate) async fn list_key(
    access: &AccountClients,
    at: (Side, &Bucket),
    key: &Key,
) -> Result<Vec<SourceVersion>, Failure> {
    let lister = VersionLister::of_key(access, at, key);
    let mut history = lister.history(key).await?;
    history.reverse();
    Ok(history)
}

/// Reads the headers of a version; none if the service says that it is not there.
pub(crate) async fn read_head(
    access: &AccountClients,
    call: S3Request<'_>,
) -> Result<Option<ResponseHead>, Failure> {
    match access.wire.send(call).await {
        Ok(answer) => Ok(Some(answer.into_head())),
        Err(refusal) if refusal.is_absent() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Reads which version each entry of a destination says it replicates, where that is not on record.
pub(crate) async fn read_claims(
    (access, target): (&AccountClients, &TargetKey),
    entries: Vec<SourceVersion>,
    records: &KeyRecords,
    original: Original<'_>,
) -> Result<Vec<ShownEntry>, Failure> {
    let bucket = &target.destination.bucket;
    let shown = stream::iter(entries).map(|entry| async {
        let claim = match claim_on_record(records, &entry) {
            Some(claim) => Some(claim),
            None if entry.kind == VersionKind::Marker => None,
            None => {
                let call = S3Request::head_object(Side::Destination, bucket, &target.key);
                let head = read_head(access, call.version(entry.version.id.as_str())).await?;
                head.and_then(|head| read_claim(&head, original))
            }
        };
        Ok(ShownEntry { entry, claim })
    });
    shown.buffered(HEADS_MAX).try_collect().await
}

/// Makes of a record what the stamp of the same object says.
fn claim_on_record(records: &KeyRecords, entry: &SourceVersion) -> Option<OriginClaim> {
    let id = Some(entry.version.id.as_str());
    let is_of = |replica: &&Replica| {
        replica.state == ReplicaState::Replicated && replica.destination_version.as_deref() == id
    };
    let record = records.replicas.iter().find(is_of)?;
    Some(OriginClaim {
        version: record.source.clone(),
        etag: None,
        has_digest: false,
        size_bytes: None,
        written: Some(entry.version.last_modified),
        now: None,
    })
}

impl RuleRefusal {
    fn new(rule: &Rule, cause: Mismatch) -> Self {
        Self {
            rule: rule.id.clone(),
            cause: cause.as_str().to_owned(),
            detail: cause.sentence().to_owned(),
        }
    }
}
