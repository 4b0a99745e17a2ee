//! Which of the competing rules takes a version: the first, by priority, whose filter matches all
//! of it. None takes a replica of what is at the key that it would be copied to: two daemons in
//! opposite directions would copy each of them back and forth without end.

use std::sync::Arc;

use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::VersionId;
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::rule::{Mismatch, Replicas, Rule, Takers};
use replicator_core::stamp::{self, NAME, Stamp};

use crate::ledger::records::{ReplicaState, TargetKey};
use crate::reconcile::Context;
use crate::reconcile::execute::copy::CopyJob;
use crate::reconcile::object::attributes::{Attributes, STAMP, Stated};
use crate::reconcile::object::envelope::may_be_rewrapped;
use crate::reconcile::object::tags::{self, Tags};
use crate::reconcile::object::version_reader::VersionReader;
use crate::reconcile::observe::listing;
use crate::s3::accounts::error::Side;
use crate::s3::checksum::{CRC64_NVME, crc64_stated};
use crate::s3::client::{ResponseHead, S3Error};

/// The rule that takes a version, and the tags where they had to be read.
pub(super) struct SelectedRule {
    pub(super) rule: Arc<Rule>,
    pub(super) tags: Option<Tags>,
}

/// What each rule lacks in a version that none takes; nothing where the version goes to another key
/// of the destination.
pub(super) type Refusals = Vec<(Arc<Rule>, Mismatch)>;

/// Chooses, or says why no rule takes the version.
pub(super) async fn rule_for(
    cx: Context<'_>,
    version: &SourceVersion,
) -> Result<Result<SelectedRule, Refusals>, Failure> {
    let (task, mut tags) = (cx.task, None);
    let find = |tags: Option<&Tags>| {
        let rules = task.rules.iter().cloned();
        Takers::find(rules, version.size_bytes, tags)
    };
    let mut takers = find(None);
    if takers.need_tags {
        let read = tags::read_source(cx, &version.version.id).await?;
        takers = find(Some(tags.insert(read)));
    }
    let Takers {
        rules,
        mut refusals,
        ..
    } = takers;
    let Some(rule) = rules.into_iter().next() else {
        return Ok(Err(refusals));
    };
    if rule.replicas == Replicas::Skip && is_replica(cx, version)? {
        refusals.push((rule, Mismatch::Replica));
        return Ok(Err(refusals));
    }
    // The version is this rule's, whichever key it has there: a key of another key stands back.
    let here = rule
        .destination_key(&task.source_key)
        .is_ok_and(|key| key == task.target.key);
    Ok(match here {
        true => Ok(SelectedRule { rule, tags }),
        false => Err(Refusals::new()),
    })
}

/// Says whether this daemon wrote the source version itself, for another rule. The stamp on it
/// would be no proof: any client can write one.
fn is_replica(cx: Context<'_>, version: &SourceVersion) -> Result<bool, Failure> {
    let target = TargetKey {
        destination: cx.task.source.clone(),
        key: cx.task.source_key.clone(),
    };
    let id = version.version.id.as_str();
    Ok(cx
        .engine
        .ledger
        .replicas_of(&target)?
        .iter()
        .any(|replica| {
            replica.state == ReplicaState::Replicated
                && replica.destination_version.as_deref() == Some(id)
        }))
}

impl CopyJob<'_> {
    /// Refuses a replica of what the destination holds. Its stamp alone proves nothing, so the
    /// original is looked up; and because a restore (CopyObject of an older version) takes the
    /// stamp along, the original has to be current, or the object to stand where the replica of
    /// that original stands.
    pub(super) async fn check_origin(&self, attributes: &Attributes) -> Result<(), Failure> {
        let Some(stamp) = self.claimed_origin(attributes) else {
            return Ok(());
        };
        let Some(version) = self.version_of(&stamp).await? else {
            return Ok(());
        };
        let id = &version.id;
        let current = self.look_up(None).await?;
        let is_current = current
            .as_ref()
            .is_some_and(|head| head.version_id().as_deref().unwrap_or("null") == id.as_str());
        let original = if is_current {
            current
        } else {
            self.look_up(Some(id)).await?
        };
        let Some(original) = original else {
            return Ok(());
        };
        // The same bytes, made when the stamp says: then nothing is lost by not copying them back.
        let made = original
            .last_modified()
            .is_some_and(|made| made.secs() == version.last_modified.unix_timestamp());
        if !made || !self.is_same(attributes, &version, &original).await? {
            return Ok(());
        }
        match is_current || !self.is_restored(&version).await? {
            true => Err(Failure::new(
                FailureKind::Ineligible(Reason::SrcObjectNotEligible),
                Operation::CheckOrigin,
            )),
            false => Ok(()),
        }
    }

    /// Finds the version that a stamp names; a compact one needs the destination's list beside it.
    async fn version_of(&self, stamp: &Stamp) -> Result<Option<VersionRef>, Failure> {
        if matches!(stamp.place, stamp::OriginKey::Full(..)) {
            return Ok(Some(stamp.version.clone()));
        }
        let listed = listing::list_history(self.cx, Side::Destination).await?;
        Ok(listed
            .into_iter()
            .map(|entry| entry.version)
            .find(|version| stamp::names_version(&stamp.version, version)))
    }

    /// Reads a version of the destination, or what is current; none if there is no object.
    async fn look_up(&self, version: Option<&VersionId>) -> Result<Option<ResponseHead>, Failure> {
        let call = || {
            let call = self.cx.head(Side::Destination);
            match version {
                Some(version) => call.version(version.as_str()),
                None => call,
            }
        };
        match self.cx.destination.send_for_checksums(call).await {
            Ok(answer) => Ok(Some(answer.into_head())),
            // Not there, or under a customer's key.
            Err(refusal)
                if refusal.is_absent()
                    || refusal.failure.kind
                        == FailureKind::NeedsOperator(Reason::RequestRefused) =>
            {
                Ok(None)
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Says whether the source had a replica of the same version, or of a newer one, before this
    /// object. Replicas are written in the order of their originals, so this one is a copy that a
    /// user of the source made of an older one.
    async fn is_restored(&self, own: &VersionRef) -> Result<bool, Failure> {
        let history = listing::list_history(self.cx, Side::Source).await?;
        let below = history
            .iter()
            .skip_while(|entry| entry.version != self.version.version)
            .skip(1);
        for entry in below
            .filter(|entry| entry.kind == VersionKind::Object)
            .take(LOOKS_MAX)
        {
            let head = match VersionReader::new(self.cx, Side::Source, entry)
                .head()
                .await
            {
                Ok(head) => head,
                // Removed since it was listed, or under a customer's key: no replica.
                Err(S3Error { failure, .. })
                    if matches!(
                        failure.kind,
                        FailureKind::SourceVersionMissing
                            | FailureKind::PreconditionFailed
                            | FailureKind::Ineligible(_)
                    ) =>
                {
                    continue;
                }
                Err(refusal) => return Err(refusal.into()),
            };
            let Some(other) = head.user(NAME).and_then(|text| self.origin_in(text)) else {
                continue;
            };
            let other = other.version;
            if stamp::names_version(&other, own) || other.last_modified > own.last_modified {
                return Ok(true);
            }
            // Of two originals made in one second either may be the older.
            if other.last_modified < own.last_modified {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Compares with what this may be a replica of, by what both sides state; where they state
    /// nothing, by the bytes.
    async fn is_same(
        &self,
        attributes: &Attributes,
        version: &VersionRef,
        original: &ResponseHead,
    ) -> Result<bool, Failure> {
        // Its bytes are not the original's: the data key was wrapped anew.
        if may_be_rewrapped(original) && !self.rule.client_side_keys.is_empty() {
            return Ok(true);
        }
        let (etag, size_bytes) = (original.etag(), original.content_length());
        if size_bytes != Some(self.version.size_bytes) {
            return Ok(false);
        }
        // Equal ETags are MD5s of equal bytes; under KMS, and in parts, others say nothing.
        if etag.is_some() && etag == self.version.etag {
            return Ok(true);
        }
        let Some(own) = attributes.stated.iter().find_map(Stated::crc64) else {
            return Ok(false);
        };
        if let Some(stated) = original.header(CRC64_NVME) {
            return Ok(crc64_stated(stated) == Some(own));
        }
        let size_bytes = self.version.size_bytes;
        let version = SourceVersion {
            version: version.clone(),
            kind: VersionKind::Object,
            etag,
            size_bytes,
        };
        let original = VersionReader::new(self.cx, Side::Destination, &version);
        Ok(original.read_through(self.rule, None).await?.crc64 == own)
    }

    /// Returns the stamp of what claims to come from where it would go now, unless the rule
    /// replicates replicas.
    pub(super) fn claimed_origin(&self, attributes: &Attributes) -> Option<Stamp> {
        let skips_replicas = self.rule.replicas != Replicas::Replicate;
        let stamp = attributes
            .reader_headers
            .get(STAMP)
            .filter(|_| skips_replicas)?;
        stamp.to_str().ok().and_then(|text| self.origin_in(text))
    }

    /// Reads a stamp that names a version of the destination's key.
    fn origin_in(&self, text: &str) -> Option<Stamp> {
        let target = &self.cx.task.target;
        Stamp::from_header(text)
            .ok()
            .filter(|stamp| stamp.place.is_key(&target.destination.bucket, &target.key))
    }
}

// A user that overwrote an object more often between two replicas restores it without the daemon.
const LOOKS_MAX: usize = 100;
