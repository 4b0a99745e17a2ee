//! Which entry of a key is current at the destination, by HEAD, and by the list where HEAD does not
//! tell; and which source version an entry is the replica of: by the ledger, or else by its stamp,
//! if the source confirms that.

use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::{ETag, Timestamp};
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::stamp::{self, NAME, Stamp};
use replicator_core::stamp::{Belief, ClaimRejection, OriginClaim};
use tracing::warn;

use crate::clock;
use crate::ledger::records::{CurrentEntry, Replica, ReplicaState};
use crate::reconcile::Context;
use crate::reconcile::object::attributes::KMS;
use crate::reconcile::object::envelope::may_be_rewrapped;
use crate::reconcile::object::version_reader::VersionReader;
use crate::reconcile::observe::listing;
use crate::reconcile::transient;
use crate::s3::accounts::capabilities::Feature;
use crate::s3::accounts::error::Side;
use crate::s3::client::{ResponseHead, S3Request};
use crate::task::{Original, Task};

/// What an answer states about the current entry.
#[derive(Debug)]
pub(in crate::reconcile) struct HeadResult {
    pub(in crate::reconcile) entry: CurrentEntry,
    /// Which source version an object says that it is the replica of.
    pub(in crate::reconcile) claim: Option<OriginClaim>,
    /// What time it is by the server's clock.
    pub(in crate::reconcile) date: Option<Timestamp>,
    /// Whether "nothing" may be a marker, which the endpoint's 404 does not tell from it, or was
    /// not proved.
    pub(in crate::reconcile) is_guess: bool,
}

impl HeadResult {
    /// Takes for granted that nothing is there.
    pub(in crate::reconcile) fn guessed() -> Self {
        Self {
            is_guess: true,
            ..Self::hidden_by(CurrentEntry::Nothing, None)
        }
    }

    fn hidden_by(entry: CurrentEntry, date: Option<Timestamp>) -> Self {
        Self {
            entry,
            claim: None,
            date,
            is_guess: false,
        }
    }
}

/// What is likely there, which decides the first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) enum Expected {
    /// An object.
    Object,
    /// Nothing, or a marker.
    Hidden,
    /// Nothing; where that is not proved, or may be a marker, the caller can do without the
    /// difference.
    New,
}

/// Reads which entry is current.
pub(in crate::reconcile) async fn read_current(
    cx: Context<'_>,
    likely: Expected,
) -> Result<HeadResult, Failure> {
    let access = cx.destination;
    let tells_markers = access.is_aws || access.capabilities.sends_marker_headers();
    // Where a 404 proves nothing, a list would have to follow.
    if likely == Expected::Hidden
        && !tells_markers
        && let Some(entry) = listed(cx).await?
    {
        return Ok(HeadResult::hidden_by(entry, None));
    }
    if likely == Expected::New && listing::is_unlisted(cx).await? {
        return Ok(HeadResult::guessed());
    }
    let head = cx.head(Side::Destination).leaving_404();
    let refusal = match access.wire.send(head).await {
        Ok(answer) => return object(&answer.into_head(), cx.task),
        Err(refusal) if refusal.status() == Some(404) => refusal,
        Err(refusal) => return Err(refusal.into()),
    };
    let date = refusal.date();
    if refusal.is_marker() {
        access.capabilities.record_marker_header();
        if let Some(marker) = refusal.header("x-amz-version-id") {
            return Ok(HeadResult::hidden_by(
                CurrentEntry::Marker(marker.to_owned()),
                date,
            ));
        }
    } else if likely == Expected::New && refusal.is_signed() {
        return Ok(HeadResult {
            date,
            ..HeadResult::guessed()
        });
    } else if tells_markers {
        return absent(cx).await;
    }
    Ok(HeadResult::hidden_by(
        listed(cx).await?.ok_or_else(appeared)?,
        date,
    ))
}

/// Confirms the 404 of a HEAD: it has no text, so a proxy may have answered.
async fn absent(cx: Context<'_>) -> Result<HeadResult, Failure> {
    let target = &cx.task.target;
    let bucket = &target.destination.bucket;
    let look = S3Request::first_byte(Side::Destination, bucket, &target.key);
    match cx.destination.wire.send(look).await {
        Err(refusal) if refusal.is_absent() && !refusal.is_marker() => {
            Ok(HeadResult::hidden_by(CurrentEntry::Nothing, refusal.date()))
        }
        Err(refusal) if refusal.is_absent() => Err(appeared()),
        Err(refusal) => Err(refusal.into()),
        Ok(_) => Err(appeared()),
    }
}

fn appeared() -> Failure {
    Failure::with_source(
        FailureKind::PreconditionFailed,
        DURING,
        "an entry appeared behind the 404",
    )
}

/// Reads from the list what hides a key, where HEAD does not tell a marker from nothing; none if an
/// object is there.
async fn listed(cx: Context<'_>) -> Result<Option<CurrentEntry>, Failure> {
    Ok(match listing::newest(cx, Side::Destination).await? {
        None => Some(CurrentEntry::Nothing),
        Some(entry) if entry.kind == VersionKind::Marker => {
            Some(CurrentEntry::Marker(entry.version.id.as_str().to_owned()))
        }
        Some(_) => None,
    })
}

fn object(head: &ResponseHead, task: &Task) -> Result<HeadResult, Failure> {
    let no_etag = || transient(DURING, "the answer has no ETag");
    let etag = head.etag().ok_or_else(no_etag)?;
    let entry = CurrentEntry::Object {
        etag,
        version: head.version_id(),
    };
    Ok(HeadResult {
        entry,
        claim: read_claim(head, task.original()),
        date: head.date(),
        is_guess: false,
    })
}

/// Reads the stamp, and what it is to be judged by; with one of another bucket or key the object
/// counts as foreign.
pub(crate) fn read_claim(head: &ResponseHead, original: Original<'_>) -> Option<OriginClaim> {
    let stamp = Stamp::from_header(head.user(NAME)?).ok()?;
    let written = || Timestamp::from_unix_timestamp(head.last_modified()?.secs()).ok();
    // Its bytes are not the source's, where a rule has its data key wrapped anew.
    let is_rewritten = original.wraps_keys && may_be_rewrapped(head);
    stamp
        .place
        .is_key(original.bucket, original.key)
        .then(|| OriginClaim {
            version: stamp.version,
            etag: head.etag(),
            has_digest: !has_own_key(head) && !is_rewritten,
            size_bytes: head.content_length().filter(|_| !is_rewritten),
            written: written(),
            // A date that cannot be true was dropped.
            now: Some(head.date().unwrap_or_else(clock::now)),
        })
}

/// Says whether an object is encrypted with a key of KMS or of a customer, so that its ETag is no
/// digest.
pub(crate) fn has_own_key(head: &ResponseHead) -> bool {
    let is_kms = head
        .header("x-amz-server-side-encryption")
        .is_some_and(|mode| mode.starts_with(KMS));
    is_kms
        || head
            .header("x-amz-server-side-encryption-customer-algorithm")
            .is_some()
}

const DURING: Operation = Operation::HeadObject;

/// What it takes to identify an entry of the destination's history.
pub(in crate::reconcile) struct Lookup<'a> {
    pub(in crate::reconcile) cx: Context<'a>,
    /// All that the source has of the key, oldest first.
    pub(in crate::reconcile) listed: &'a [SourceVersion],
    /// What time it is at the destination, or later.
    pub(in crate::reconcile) now: Option<Timestamp>,
}

impl Lookup<'_> {
    /// Says whether two daemons may write one marker twice: where deletes have no conditions. Where
    /// versions are deleted permanently, what stood between two markers may have gone.
    pub(in crate::reconcile) fn may_double_markers(&self) -> bool {
        let is_guarded = self
            .cx
            .destination
            .capabilities
            .always_had(Feature::ConditionalDelete);
        !is_guarded && !self.cx.rule().version_deletes
    }

    /// Returns the record of a replica that is found there.
    pub(in crate::reconcile) fn found_replica(
        &self,
        source: VersionRef,
        destination_version: Option<String>,
        etag: Option<ETag>,
    ) -> Replica {
        Replica {
            found: self.now,
            ..replicated_record(source, destination_version, etag)
        }
    }

    /// Says which version an object is the replica of, if its stamp is confirmed. Else it counts as
    /// unmanaged, and that is logged: the destination's owner may take it for a replica.
    pub(in crate::reconcile) async fn confirm_claim(
        &self,
        claim: OriginClaim,
        id: Option<&str>,
    ) -> Result<Option<VersionRef>, Failure> {
        let read = claim.clone();
        let claim = OriginClaim {
            version: self.named(claim.version),
            ..claim
        };
        let belief = match claim.judge(self.listed) {
            // What was read of its bytes counts more than its stamp.
            Ok(_) if self.is_refuted(id)? => Err(ClaimRejection::Content),
            Ok(Belief::Undigested) if self.original_has_digest(&claim.version).await? => {
                Err(ClaimRejection::Content)
            }
            belief => belief,
        };
        let Err(doubt) = belief else {
            return Ok(Some(claim.version));
        };
        self.read_again(&read, id).await?;
        self.cx.count_failed(Reason::StampNotBorneOut);
        let (rule, reason) = (&self.cx.rule().id, Reason::StampNotBorneOut.as_str());
        let (key, replica) = (&self.cx.task.target.key, id.unwrap_or("none"));
        let version = &claim.version.id;
        warn!(rule, %key, %version, replica, reason, error = %doubt, "the stamp is not confirmed, the object counts as unmanaged");
        Ok(None)
    }

    /// Makes sure that an object is as it was read: on one answer that something in between spoilt,
    /// its replica would be overwritten as a foreign object.
    async fn read_again(&self, read: &OriginClaim, id: Option<&str>) -> Result<(), Failure> {
        let Some(id) = id else { return Ok(()) };
        let again = self
            .head(id)
            .await?
            .and_then(|head| read_claim(&head, self.cx.task.original()));
        match again.is_some_and(|again| again.is_of_same(read)) {
            true => Ok(()),
            false => {
                let words = "two answers say different things of one version";
                Err(transient(Operation::HeadObject, words))
            }
        }
    }

    /// Sends a HEAD of a version of the key; none if it is not there any more.
    async fn head(&self, id: &str) -> Result<Option<ResponseHead>, Failure> {
        let call = self.cx.head(Side::Destination).version(id);
        match self.cx.destination.wire.send(call).await {
            Ok(answer) => Ok(Some(answer.into_head())),
            Err(refusal) if refusal.is_absent() => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Returns the version that a stamp means. A compact one says of a version that the source has
    /// lost no more than its time, unless a message is about it.
    fn named(&self, stated: VersionRef) -> VersionRef {
        let is_named = |version: &&VersionRef| stamp::names_version(&stated, version);
        let listed = self.listed.iter().map(|entry| &entry.version);
        if let Some(version) = { listed }.find(is_named) {
            return version.clone();
        }
        let events = self.cx.task.events.iter();
        let ids = events.filter_map(|pending| pending.version.clone());
        ids.map(|id| VersionRef::new(id, stated.last_modified, None))
            .find(|version| stamp::names_version(&stated, version))
            .unwrap_or(stated)
    }

    pub(super) fn is_refuted(&self, id: Option<&str>) -> Result<bool, Failure> {
        id.map_or(Ok(false), |id| {
            self.cx.engine.ledger.is_refuted(&self.cx.task.target, id)
        })
    }

    /// Says whether the ETag of a version of the source is a digest of its content, which no list
    /// states.
    async fn original_has_digest(&self, version: &VersionRef) -> Result<bool, Failure> {
        let Some(entry) = self.listed.iter().find(|entry| entry.version == *version) else {
            return Ok(false);
        };
        match VersionReader::new(self.cx, Side::Source, entry)
            .head()
            .await
            .map_err(Failure::from)
        {
            Ok(head) => Ok(!has_own_key(&head)),
            // Under a customer's key it cannot be read, and has no replica.
            Err(Failure {
                kind:
                    FailureKind::Ineligible(_) | FailureKind::NeedsOperator(Reason::RequestRefused),
                ..
            }) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// Says which source version an entry of the destination is the replica of, and records what
    /// only its stamp knew, unless a newer entry is a replica of the same; `None` when it cannot be
    /// one.
    pub(in crate::reconcile) async fn identify(
        &self,
        entry: SourceVersion,
        replicas: &mut Vec<Replica>,
        newer: &[VersionRef],
    ) -> Result<Option<VersionRef>, Failure> {
        let id = entry.version.id.as_str();
        if let Some(replica) = replica_by_version(replicas, Some(id)) {
            return Ok(Some(replica.source.clone()));
        }
        if entry.kind == VersionKind::Marker {
            return Ok(None);
        }
        // Else it was removed since it was listed.
        let Some(head) = self.head(id).await? else {
            return Ok(None);
        };
        let claim = read_claim(&head, self.cx.task.original());
        let is_stamped = claim.is_some();
        let source = match claim {
            Some(claim) => self.confirm_claim(claim, Some(id)).await?,
            None => self.find_original(&entry, &head, newer).await?,
        };
        let Some(source) = source else {
            return Ok(None);
        };
        // Of two replicas of one version the newer is what readers see, and what tags have to go
        // to.
        if !newer.contains(&source) {
            let found = self.found_replica(source.clone(), Some(id.to_owned()), entry.etag.clone());
            let found = Replica {
                adopted: !is_stamped,
                ..found
            };
            record_found(self.cx, found, replicas)?;
        }
        Ok(Some(source))
    }
}

/// Records a replica that the ledger did not have: another daemon wrote it, or the ledger was lost.
pub(in crate::reconcile) fn record_found(
    cx: Context<'_>,
    replica: Replica,
    replicas: &mut Vec<Replica>,
) -> Result<(), Failure> {
    cx.record(&replica)?;
    replicas.retain(|other| other.source != replica.source);
    replicas.push(replica);
    Ok(())
}

pub(in crate::reconcile) fn replicated_record(
    source: VersionRef,
    destination_version: Option<String>,
    etag: Option<ETag>,
) -> Replica {
    Replica {
        destination_version,
        etag,
        ..Replica::new(source, VersionKind::Object, ReplicaState::Replicated)
    }
}

pub(in crate::reconcile) fn replica_by_version<'a>(
    replicas: &'a [Replica],
    version: Option<&str>,
) -> Option<&'a Replica> {
    let version = version?;
    replicas.iter().find(|replica| {
        replica.state == ReplicaState::Replicated
            && replica.destination_version.as_deref() == Some(version)
    })
}
