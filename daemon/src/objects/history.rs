//! What became of each version of one key, from what both sides list and what is on record: the
//! decisions alone, without a request.

use replicator_core::compare::{Identity, KeyHistories, ShownEntry};
use replicator_core::failure::Reason;
use replicator_core::object::Timestamp;
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::rule::{History, Mismatch, Rule, Takers, VersionScope};
use replicator_core::stamp;
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;

use crate::ledger::KeyRecords;
use crate::ledger::records::{ParkedTask, Replica, ReplicaState};

/// What became of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VersionStatus {
    /// Its id at the source; absent where the source has lost it and its replica does not say it.
    pub(crate) version_id: Option<String>,
    /// Whether it is a delete marker.
    pub(crate) is_delete_marker: bool,
    /// What became of it.
    pub(crate) status: ReplicationStatus,
    /// The id of its replica.
    pub(crate) replica_version_id: Option<String>,
    /// Since when that is so: when the replica was written, or the task was parked, or else when
    /// the version was made.
    pub(crate) since: Option<String>,
    /// Why it has no replica: a reason code, or what the rule lacks.
    pub(crate) reason: Option<String>,
    /// The same in a sentence, or in the service's own words.
    pub(crate) detail: Option<String>,
    /// What puts it right.
    pub(crate) remedy: Option<String>,
}

/// The words of native replication, and one for what no rule takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "UPPERCASE")]
#[strum(serialize_all = "UPPERCASE")]
pub(crate) enum ReplicationStatus {
    /// It has no replica yet.
    Pending,
    /// It has a replica, or needs none beside that of another one.
    Completed,
    /// It is parked.
    Failed,
    /// It gets no replica.
    Skipped,
}

/// One key at both ends, oldest first, and what is on record of it.
pub(super) struct VersionedKey<'a> {
    pub(super) rules: &'a [&'a Rule],
    /// Since when versions are in scope, if that is known.
    pub(super) start: Option<Timestamp>,
    pub(super) source: Vec<SourceVersion>,
    pub(super) shown: Vec<ShownEntry>,
    pub(super) records: KeyRecords,
}

impl VersionedKey<'_> {
    /// Says what became of each version, the newest first, and which objects are no replicas.
    pub(super) fn statuses(&self) -> (Vec<VersionStatus>, Vec<String>) {
        let wanted = |entry: &SourceVersion| (entry.clone(), VersionScope::Wanted);
        let source: Vec<_> = self.source.iter().map(wanted).collect();
        let histories = KeyHistories {
            source: &source,
            shown: &self.shown,
        };
        let (replicas, identities) = histories.pair_entries();
        let mut statuses = self.gone(&identities);
        let gone = statuses.len();
        for (at, (entry, replica)) in self.source.iter().zip(&replicas).enumerate() {
            let shown = replica.and_then(|at| self.shown.get(at));
            let is_newest = at + 1 == self.source.len();
            let below = statuses.get(gone..).unwrap_or_default();
            let judged = self.judge((entry, is_newest), shown, below);
            statuses.push(judged);
        }
        statuses.reverse();
        let unmanaged = self.shown_as(&identities, Identity::Foreign);
        let id = |shown: &ShownEntry| shown.entry.version.id.to_string();
        (statuses, unmanaged.map(id).collect())
    }

    fn shown_as(
        &self,
        identities: &[Identity],
        wanted: Identity,
    ) -> impl Iterator<Item = &ShownEntry> {
        let entries = self.shown.iter().zip(identities);
        entries.filter_map(move |(shown, identity)| (*identity == wanted).then_some(shown))
    }

    /// Lists what the source has lost: its replicas, and what was lost before it was read.
    fn gone(&self, identities: &[Identity]) -> Vec<VersionStatus> {
        let is_listed =
            |version: &VersionRef| self.source.iter().any(|entry| entry.version == *version);
        let missing = |replica: &&Replica| {
            replica.state == ReplicaState::SourceMissing && !is_listed(&replica.source)
        };
        let missing = self.records.replicas.iter().filter(missing).map(|replica| {
            VersionStatus::new(&replica.source, replica.kind)
                .with_reason(ReplicationStatus::Skipped, Reason::SrcVersionNotFound)
        });
        let lost = self.shown_as(identities, Identity::Lost);
        let lost = lost.filter_map(|shown| {
            let version = &shown.claim.as_ref()?.version;
            let detail = "the source has no such version any more".to_owned();
            Some(VersionStatus {
                detail: Some(detail),
                ..VersionStatus::new(version, VersionKind::Object).replicated_by(shown)
            })
        });
        missing.chain(lost).collect()
    }

    /// Says what became of a version, by what became of those below it.
    fn judge(
        &self,
        (entry, is_newest): (&SourceVersion, bool),
        shown: Option<&ShownEntry>,
        below: &[VersionStatus],
    ) -> VersionStatus {
        let status = VersionStatus::new(&entry.version, entry.kind);
        if let Some(shown) = shown {
            return status.replicated_by(shown);
        }
        let id = &entry.version.id;
        let is_about = |task: &&ParkedTask| task.version.as_ref().is_none_or(|of| of == id);
        if let Some(task) = self.records.parked.iter().find(is_about) {
            return VersionStatus {
                since: task.since.format(&Rfc3339).ok(),
                detail: Some(task.detail.clone()),
                ..status.with_reason(ReplicationStatus::Failed, task.reason)
            };
        }
        if let Some(cause) = self.refusal(entry) {
            return status.refused(cause);
        }
        let is_of = |replica: &&Replica| replica.source == entry.version;
        if let Some(record) = self.records.replicas.iter().find(is_of) {
            return status.recorded(record);
        }
        let mut hides = below.iter().rev();
        let hides = hides.find(|other| other.status != ReplicationStatus::Skipped);
        let hides_nothing = hides.is_none_or(|other| {
            other.is_delete_marker && other.status == ReplicationStatus::Completed
        });
        if entry.kind == VersionKind::Marker && hides_nothing {
            return VersionStatus {
                status: ReplicationStatus::Completed,
                ..status
            };
        }
        let is_latest_only = self
            .rules
            .iter()
            .any(|rule| rule.history == History::Latest);
        if is_latest_only && !is_newest {
            let detail = "the rule replicates the newest version alone".to_owned();
            return VersionStatus {
                status: ReplicationStatus::Skipped,
                detail: Some(detail),
                ..status
            };
        }
        let held_back = below
            .iter()
            .find(|one| one.status == ReplicationStatus::Failed);
        let held_back = held_back.filter(|_| !is_latest_only);
        let detail = held_back.and_then(|older| {
            let id = older.version_id.as_deref()?;
            Some(format!("waits for the older version {id}, which is parked"))
        });
        VersionStatus { detail, ..status }
    }

    /// Says why no rule takes a version, as far as a list tells.
    fn refusal(&self, entry: &SourceVersion) -> Option<Mismatch> {
        let is_older = |start: Timestamp| entry.version.last_modified < start.truncate_to_second();
        if self.start.is_some_and(is_older) {
            return Some(Mismatch::Since);
        }
        let mut rules = self.rules.iter().copied();
        match entry.kind {
            VersionKind::Marker => {
                let admits = rules.next().is_some_and(Rule::admits_marker);
                (!admits).then_some(Mismatch::DeleteMarker)
            }
            VersionKind::Object => {
                let takers = Takers::find(rules, entry.size_bytes, None);
                let (_, cause) = takers.refusals.first()?;
                takers.rules.is_empty().then_some(*cause)
            }
        }
    }
}

impl VersionStatus {
    /// Returns that of a version of which nothing more is known.
    fn new(version: &VersionRef, kind: VersionKind) -> Self {
        // A compact stamp has a digest in place of the id.
        let id = version.id.as_str();
        Self {
            version_id: (!stamp::is_digest_id(id)).then(|| id.to_owned()),
            is_delete_marker: kind == VersionKind::Marker,
            status: ReplicationStatus::Pending,
            replica_version_id: None,
            since: version.last_modified.format(&Rfc3339).ok(),
            reason: None,
            detail: None,
            remedy: None,
        }
    }

    fn replicated_by(self, shown: &ShownEntry) -> Self {
        let version = &shown.entry.version;
        Self {
            status: ReplicationStatus::Completed,
            replica_version_id: Some(version.id.to_string()),
            since: version.last_modified.format(&Rfc3339).ok(),
            ..self
        }
    }

    fn with_reason(self, status: ReplicationStatus, reason: Reason) -> Self {
        Self {
            status,
            reason: Some(reason.to_string()),
            detail: Some(reason.sentence().to_owned()),
            remedy: Some(reason.remedy().to_owned()),
            ..self
        }
    }

    fn refused(self, cause: Mismatch) -> Self {
        Self {
            status: ReplicationStatus::Skipped,
            reason: Some(cause.as_str().to_owned()),
            detail: Some(cause.sentence().to_owned()),
            ..self
        }
    }

    /// Says what the ledger has of a version that has no replica at the destination.
    fn recorded(self, record: &Replica) -> Self {
        let skipped = ReplicationStatus::Skipped;
        match (record.state, record.reason) {
            (ReplicaState::Coalesced, _) => Self {
                status: ReplicationStatus::Completed,
                ..self
            },
            (ReplicaState::Replicated | ReplicaState::Deleted, _) => {
                self.with_reason(skipped, Reason::DstVersionNotFound)
            }
            (ReplicaState::Superseded, None) => self.with_reason(skipped, Reason::ArrivedLate),
            (ReplicaState::SourceMissing, None) => {
                self.with_reason(skipped, Reason::SrcVersionNotFound)
            }
            (_, Some(reason)) => self.with_reason(skipped, reason),
            (ReplicaState::Skipped, None) => Self {
                status: skipped,
                reason: Some("NoRuleTakesIt".to_owned()),
                detail: Some("no rule takes a version of its size, tags and encryption".to_owned()),
                ..self
            },
        }
    }
}
