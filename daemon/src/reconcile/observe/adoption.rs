//! Objects at the destination that another tool wrote, such as native replication or rclone. Where
//! the rule says `unmanaged_objects = "adopt"`, one whose bytes are proved to be those of a version
//! of the source is its replica. Equal sizes prove nothing: what counts is S3's own word, equal
//! digests, or checksums of both objects.

use replicator_core::compare::{has_content_of, possible_originals};
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::object::{Bucket, Key};
use replicator_core::plan::{Current, SourceVersion, VersionRef};
use replicator_core::rule::{Rule, UnmanagedObjects};
use replicator_core::stamp::OriginClaim;
use tracing::{info, warn};

use crate::ledger::records::CurrentEntry;
use crate::reconcile::Context;
use crate::reconcile::object::attributes::stated_checksums;
use crate::reconcile::object::envelope::may_be_rewrapped;
use crate::reconcile::observe::destination::DestinationView;
use crate::reconcile::observe::head::Lookup;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::Side;
use crate::s3::client::{ResponseHead, S3Request};

/// An object without a stamp, and where its original would be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnstampedObject<'a> {
    /// What the destination lists.
    pub(crate) entry: &'a SourceVersion,
    /// Where it is.
    pub(crate) shown: (&'a AccountClients, &'a Bucket, &'a Key),
    /// Where its original would be.
    pub(crate) source: (&'a AccountClients, &'a Bucket, &'a Key),
}

// Each costs a HEAD. An object of which more versions have the size is mostly the replica of the
// newest, and what is not proved is written again.
const CANDIDATES_MAX: usize = 16;

impl UnstampedObject<'_> {
    /// Claims what it is the replica of, where the rule adopts such objects.
    pub(crate) async fn claim<'s>(
        &self,
        rule: &Rule,
        head: &ResponseHead,
        listed: impl Iterator<Item = &'s SourceVersion>,
        newer: &[VersionRef],
    ) -> Result<Option<OriginClaim>, Failure> {
        if rule.unmanaged_objects != UnmanagedObjects::Adopt {
            return Ok(None);
        }
        let listed: Vec<SourceVersion> = listed.cloned().collect();
        let found = self.find_original(head, &listed, newer).await?;
        Ok(found.map(OriginClaim::of_version))
    }

    /// Finds the version whose bytes it is proved to have, given its headers; none where nothing
    /// proves it.
    async fn find_original(
        &self,
        head: &ResponseHead,
        listed: &[SourceVersion],
        newer: &[VersionRef],
    ) -> Result<Option<VersionRef>, Failure> {
        let candidates = || possible_originals(self.entry, listed, newer);
        if is_native_replica(head) {
            let is_same = |other: &&SourceVersion| other.version.id == self.entry.version.id;
            if let Some(original) = candidates().find(is_same) {
                return Ok(Some(original.version.clone()));
            }
        }
        let mut stated = None;
        for candidate in candidates().take(CANDIDATES_MAX) {
            if has_content_of(self.entry, candidate) {
                return Ok(Some(candidate.version.clone()));
            }
            if stated.is_none() {
                stated = read_stated(self.shown, Side::Destination, self.entry).await?;
            }
            let Some(stated) = &stated else {
                return Ok(None);
            };
            let original = read_stated(self.source, Side::Source, candidate).await?;
            if original.is_some_and(|original| states_same_bytes(&original, stated)) {
                return Ok(Some(candidate.version.clone()));
            }
        }
        Ok(None)
    }
}

/// Says whether S3 states that it wrote an object as a replica; it keeps the original's version id.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/replication-status.html>
fn is_native_replica(head: &ResponseHead) -> bool {
    head.header("x-amz-replication-status") == Some("REPLICA")
        && head.version_id().is_some_and(|id| id != "null")
}

/// Reads the headers of a version, checksums included; none where it cannot be read, or is gone.
async fn read_stated(
    (access, bucket, key): (&AccountClients, &Bucket, &Key),
    side: Side,
    entry: &SourceVersion,
) -> Result<Option<ResponseHead>, Failure> {
    let (id, etag) = (entry.version.id.as_str(), entry.etag.as_ref());
    let call = || {
        let head = S3Request::head_object(side, bucket, key).version(id);
        head.identified(etag, entry.size_bytes)
    };
    match access.send_for_checksums(call).await {
        Ok(answer) => Ok(Some(answer.into_head())),
        Err(refusal) if refusal.is_absent() => Ok(None),
        // Under a customer's key.
        Err(refusal) if matches!(refusal.failure.kind, FailureKind::Ineligible(_)) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Says whether two answers prove that two objects have the same bytes: they state one checksum of
/// the whole, or of equal parts, and contradict each other in none of the whole.
fn states_same_bytes(one: &ResponseHead, other: &ResponseHead) -> bool {
    let (ours, theirs) = (stated_checksums(one), stated_checksums(other));
    let mut is_proved = false;
    for stated in &ours {
        let same_kind = theirs
            .iter()
            .find(|other| (stated.header, stated.parts) == (other.header, other.parts));
        let Some(other) = same_kind else { continue };
        if stated.value == other.value {
            is_proved = true;
        } else if stated.parts.is_none() {
            return false;
        }
    }
    is_proved
}

/// Says whether what is current may be a replica that another tool wrote.
pub(super) fn may_adopt(rule: &Rule, shown: &DestinationView) -> bool {
    let is_unknown = matches!(
        shown.known.current,
        Current::Object {
            replica_of: None,
            ..
        }
    );
    is_unknown && rule.unmanaged_objects == UnmanagedObjects::Adopt
}

/// Says of an object that is current that it is not adopted.
pub(super) fn report_foreign(cx: Context<'_>, shown: &DestinationView) {
    let CurrentEntry::Object { version, .. } = &shown.snapshot.entry else {
        return;
    };
    if !may_adopt(cx.rule(), shown) {
        return;
    }
    cx.count_failed(Reason::DstObjectForeign);
    let (rule, key) = (&cx.rule().id, &cx.task.target.key);
    let (object, reason) = (version.as_deref(), Reason::DstObjectForeign.as_str());
    warn!(rule, %key, object, reason, "nothing proves that the object is a replica, it is not adopted");
}

impl Lookup<'_> {
    /// Says which version an object without a stamp is the replica of, where the rule adopts such
    /// objects.
    pub(super) async fn find_original(
        &self,
        entry: &SourceVersion,
        head: &ResponseHead,
        newer: &[VersionRef],
    ) -> Result<Option<VersionRef>, Failure> {
        let (rule, id) = (self.cx.rule(), entry.version.id.as_str());
        // The bytes of such an object say nothing of the data key in its metadata.
        let is_rewritten = self.cx.task.original().wraps_keys && may_be_rewrapped(head);
        let adopts = rule.unmanaged_objects == UnmanagedObjects::Adopt && !is_rewritten;
        if !adopts || self.is_refuted(Some(id))? {
            return Ok(None);
        }
        let object = UnstampedObject {
            entry,
            shown: self.cx.at(Side::Destination),
            source: self.cx.at(Side::Source),
        };
        let found = object.find_original(head, self.listed, newer).await?;
        if let Some(original) = &found {
            let (rule, key, version) = (&rule.id, &self.cx.task.target.key, &original.id);
            info!(rule, %key, %version, replica = id, "an object that another tool wrote is adopted");
        }
        Ok(found)
    }
}
