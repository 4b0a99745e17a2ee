//! Which entry of a key is current at the destination, by HEAD, and by the list where HEAD does not tell.

use replicator_core::claim::Claim;
use replicator_core::failure::{Failure, Kind as FailureKind};
use replicator_core::object::Timestamp;
use replicator_core::operation::Operation;
use replicator_core::plan::Kind;
use replicator_core::stamp::{NAME, Stamp};

use super::attributes::KMS;
use super::listing;
use crate::accounts::Access;
use crate::accounts::capabilities::Ability;
use crate::accounts::refusal::Side;
use crate::clock;
use crate::engine::Engine;
use crate::ledger::records::Entry;
use crate::task::Task;
use crate::wire::{Call, Head};

/// What is said of the current entry.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) entry: Entry,
    /// Which source version an object says that it is the replica of.
    pub(super) claim: Option<Claim>,
    /// What time it is by the server's clock.
    pub(super) date: Option<Timestamp>,
    /// Whether "nothing" may be a marker, which the endpoint's 404 does not tell from it, or was not proved.
    pub(super) is_guess: bool,
}

impl Current {
    /// Takes for granted that nothing is there.
    pub(super) fn guessed() -> Self {
        Self { is_guess: true, ..Self::hidden(Entry::Nothing, None) }
    }

    /// Takes what a list told: that the key has no entry. A server that fills a page before it sorts it can leave one out,
    /// and then that is as good as a guess.
    fn absent(date: Option<Timestamp>, is_sure: bool) -> Self {
        Self { is_guess: !is_sure, ..Self::hidden(Entry::Nothing, date) }
    }

    fn hidden(entry: Entry, date: Option<Timestamp>) -> Self {
        Self { entry, claim: None, date, is_guess: false }
    }
}

/// What is likely there, which decides the first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Likely {
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
pub(super) async fn current_of_new(engine: &Engine, access: &Access, task: &Task) -> Result<Current, Failure> {
    // What a list leaves out the condition of the write finds.
    let may_ask = access.is_aws || access.capabilities.always_had(Ability::ConditionalPut);
    match if may_ask { listing::absence(engine, access, task).await? } else { None } {
        Some(date) => Ok(Current::absent(date, access.is_aws)),
        None => current(access, task, Likely::New).await,
    }
}

/// Reads which entry is current.
pub(super) async fn current(access: &Access, task: &Task, likely: Likely) -> Result<Current, Failure> {
    let place = &task.lane.destination;
    let tells_markers = tells_markers(access);
    // Where a 404 proves nothing, a list would have to follow.
    if likely == Likely::Hidden
        && !tells_markers
        && let Some(entry) = listed(access, task).await?
    {
        return Ok(Current::hidden(entry, None));
    }
    let look = Call::head(Side::Destination, &place.bucket, &task.lane.key).leaving_404();
    let refusal = match access.wire.send(look).await {
        Ok(answer) => return object(&answer.into_head(), task),
        Err(refusal) if refusal.status() == Some(404) => refusal,
        Err(refusal) => return Err(refusal.into()),
    };
    let date = refusal.date();
    if refusal.is_marker() {
        access.capabilities.told_marker();
        if let Some(marker) = refusal.header("x-amz-version-id") {
            return Ok(Current::hidden(Entry::Marker(marker.to_owned()), date));
        }
    } else if likely == Likely::New && refusal.is_signed() {
        return Ok(Current { date, ..Current::guessed() });
    } else if tells_markers {
        return absent(access, task).await;
    }
    Ok(Current::hidden(listed(access, task).await?.ok_or_else(appeared)?, date))
}

fn tells_markers(access: &Access) -> bool {
    access.is_aws || access.capabilities.tells_markers()
}

/// Makes sure that nothing is there after a HEAD said so: it has no text, so something in between may have answered.
async fn absent(access: &Access, task: &Task) -> Result<Current, Failure> {
    let look = Call::first_byte(Side::Destination, &task.lane.destination.bucket, &task.lane.key);
    match access.wire.send(look).await {
        Err(refusal) if refusal.is_absent() && !refusal.is_marker() => {
            Ok(Current::hidden(Entry::Nothing, refusal.date()))
        }
        Err(refusal) if refusal.is_absent() => Err(appeared()),
        Err(refusal) => Err(refusal.into()),
        Ok(_) => Err(appeared()),
    }
}

fn appeared() -> Failure {
    Failure::caused(FailureKind::Conflict, DURING, "an entry appeared behind the 404")
}

/// Reads from the list what hides a key, where HEAD does not tell a marker from nothing; none if an
/// object is there.
async fn listed(access: &Access, task: &Task) -> Result<Option<Entry>, Failure> {
    let lane = &task.lane;
    let newest = listing::newest(access, Side::Destination, &lane.destination.bucket, &lane.key).await?;
    Ok(match newest {
        None => Some(Entry::Nothing),
        Some(entry) if entry.kind == Kind::Marker => Some(Entry::Marker(entry.version.id.as_str().to_owned())),
        Some(_) => None,
    })
}

fn object(head: &Head, task: &Task) -> Result<Current, Failure> {
    let no_etag = || Failure::caused(FailureKind::Transient, DURING, "the answer has no ETag");
    let etag = head.etag().ok_or_else(no_etag)?;
    let entry = Entry::Object { etag, version: head.version_id() };
    Ok(Current { entry, claim: claim(head, task), date: head.date(), is_guess: false })
}

/// Reads the stamp, and what it is to be judged by; with one of another bucket or key the object
/// counts as foreign.
pub(super) fn claim(head: &Head, task: &Task) -> Option<Claim> {
    let stamp = Stamp::decode(head.user(NAME)?).ok()?;
    let written = || Timestamp::from_unix_timestamp(head.last_modified()?.secs()).ok();
    stamp.place.is(&task.source.bucket, &task.source_key).then(|| Claim {
        version: stamp.version,
        etag: head.etag(),
        has_digest: !has_own_key(head),
        size_bytes: head.content_length(),
        written: written(),
        // A date that cannot be true was dropped.
        now: Some(head.date().unwrap_or_else(clock::now)),
    })
}

/// Says whether an object is encrypted with a key of KMS or of a customer, so that its ETag is no digest.
pub(super) fn has_own_key(head: &Head) -> bool {
    let is_kms = head.header("x-amz-server-side-encryption").is_some_and(|mode| mode.starts_with(KMS));
    is_kms || head.header("x-amz-server-side-encryption-customer-algorithm").is_some()
}

const DURING: Operation = Operation::HeadObject;
