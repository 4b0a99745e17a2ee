//! Which entry of a key is current at the destination, by HEAD, and by the list where HEAD does not
//! tell.

use replicator_core::claim::OriginClaim;
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::Timestamp;
use replicator_core::operation::Operation;
use replicator_core::plan::VersionKind;
use replicator_core::stamp::{NAME, Stamp};

use super::attributes::KMS;
use super::listing;
use crate::accounts::AccountClients;
use crate::accounts::capabilities::Feature;
use crate::accounts::error::Side;
use crate::clock;
use crate::engine::Engine;
use crate::ledger::records::CurrentEntry;
use crate::s3_http::{ResponseHead, S3Request};
use crate::task::Task;

/// What is said of the current entry.
#[derive(Debug)]
pub(super) struct HeadResult {
    pub(super) entry: CurrentEntry,
    /// Which source version an object says that it is the replica of.
    pub(super) claim: Option<OriginClaim>,
    /// What time it is by the server's clock.
    pub(super) date: Option<Timestamp>,
    /// Whether "nothing" may be a marker, which the endpoint's 404 does not tell from it, or was
    /// not proved.
    pub(super) is_guess: bool,
}

impl HeadResult {
    /// Takes for granted that nothing is there.
    pub(super) fn guessed() -> Self {
        Self {
            is_guess: true,
            ..Self::hidden_by(CurrentEntry::Nothing, None)
        }
    }

    /// Takes what a list told: that the key has no entry. A server that fills a page before it
    /// sorts it can leave one out, and then that is as good as a guess.
    fn absent(date: Option<Timestamp>, is_sure: bool) -> Self {
        Self {
            is_guess: !is_sure,
            ..Self::hidden_by(CurrentEntry::Nothing, date)
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
pub(super) enum Expected {
    /// An object.
    Object,
    /// Nothing, or a marker.
    Hidden,
    /// Nothing; where that is not proved, or cannot be told from a marker, the caller can do
    /// without the difference.
    New,
}

/// Reads which entry is current of a key that is likely new, by one list for all neighbours that
/// wait, if they are many.
pub(super) async fn current_of_new(
    engine: &Engine,
    access: &AccountClients,
    task: &Task,
) -> Result<HeadResult, Failure> {
    // What a list leaves out the condition of the write finds.
    let may_ask = access.is_aws || access.capabilities.always_had(Feature::ConditionalPut);
    match if may_ask {
        listing::absence(engine, access, task).await?
    } else {
        None
    } {
        Some(date) => Ok(HeadResult::absent(date, access.is_aws)),
        None => read_current(access, task, Expected::New).await,
    }
}

/// Reads which entry is current.
pub(super) async fn read_current(
    access: &AccountClients,
    task: &Task,
    likely: Expected,
) -> Result<HeadResult, Failure> {
    let place = &task.target.destination;
    let tells_markers = tells_markers(access);
    // Where a 404 proves nothing, a list would have to follow.
    if likely == Expected::Hidden
        && !tells_markers
        && let Some(entry) = listed(access, task).await?
    {
        return Ok(HeadResult::hidden_by(entry, None));
    }
    let look =
        S3Request::head_object(Side::Destination, &place.bucket, &task.target.key).leaving_404();
    let refusal = match access.wire.send(look).await {
        Ok(answer) => return object(&answer.into_head(), task),
        Err(refusal) if refusal.status() == Some(404) => refusal,
        Err(refusal) => return Err(refusal.into()),
    };
    let date = refusal.date();
    if refusal.is_marker() {
        access.capabilities.told_marker();
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
        return absent(access, task).await;
    }
    Ok(HeadResult::hidden_by(
        listed(access, task).await?.ok_or_else(appeared)?,
        date,
    ))
}

fn tells_markers(access: &AccountClients) -> bool {
    access.is_aws || access.capabilities.tells_markers()
}

/// Makes sure that nothing is there after a HEAD said so: it has no text, so something in between
/// may have answered.
async fn absent(access: &AccountClients, task: &Task) -> Result<HeadResult, Failure> {
    let look = S3Request::first_byte(
        Side::Destination,
        &task.target.destination.bucket,
        &task.target.key,
    );
    match access.wire.send(look).await {
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
async fn listed(access: &AccountClients, task: &Task) -> Result<Option<CurrentEntry>, Failure> {
    let target = &task.target;
    let newest = listing::newest(
        access,
        Side::Destination,
        &target.destination.bucket,
        &target.key,
    )
    .await?;
    Ok(match newest {
        None => Some(CurrentEntry::Nothing),
        Some(entry) if entry.kind == VersionKind::Marker => {
            Some(CurrentEntry::Marker(entry.version.id.as_str().to_owned()))
        }
        Some(_) => None,
    })
}

fn object(head: &ResponseHead, task: &Task) -> Result<HeadResult, Failure> {
    let no_etag = || Failure::with_source(FailureKind::Transient, DURING, "the answer has no ETag");
    let etag = head.etag().ok_or_else(no_etag)?;
    let entry = CurrentEntry::Object {
        etag,
        version: head.version_id(),
    };
    Ok(HeadResult {
        entry,
        claim: read_claim(head, task),
        date: head.date(),
        is_guess: false,
    })
}

/// Reads the stamp, and what it is to be judged by; with one of another bucket or key the object
/// counts as foreign.
pub(super) fn read_claim(head: &ResponseHead, task: &Task) -> Option<OriginClaim> {
    let stamp = Stamp::from_header(head.user(NAME)?).ok()?;
    let written = || Timestamp::from_unix_timestamp(head.last_modified()?.secs()).ok();
    stamp
        .place
        .is_key(&task.source.bucket, &task.source_key)
        .then(|| OriginClaim {
            version: stamp.version,
            etag: head.etag(),
            has_digest: !has_own_key(head),
            size_bytes: head.content_length(),
            written: written(),
            // A date that cannot be true was dropped.
            now: Some(head.date().unwrap_or_else(clock::now)),
        })
}

/// Says whether an object is encrypted with a key of KMS or of a customer, so that its ETag is no
/// digest.
pub(super) fn has_own_key(head: &ResponseHead) -> bool {
    let is_kms = head
        .header("x-amz-server-side-encryption")
        .is_some_and(|mode| mode.starts_with(KMS));
    is_kms
        || head
            .header("x-amz-server-side-encryption-customer-algorithm")
            .is_some()
}

const DURING: Operation = Operation::HeadObject;
