//! What is current at the source without a list: where only the newest state counts, reading it
//! tells which version it is. Its id pins all that is read of it from then on.

use aws_smithy_types::body::SdkBody;
use replicator_core::event::EventKind;
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::{Timestamp, VersionId};
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};

use super::is_bulk;
use crate::accounts::error::Side;
use crate::clock::BootInstant;
use crate::engine::Engine;
use crate::s3_http::{ResponseHead, S3Request};
use crate::single_flight::Subscriber;
use crate::task::Task;

/// A GET of the current version that was answered, its body on the way.
#[derive(Debug)]
pub(super) struct StartedGet {
    pub(super) version: VersionRef,
    pub(super) head: ResponseHead,
    pub(super) body: SdkBody,
    /// When it was requested.
    pub(super) asked: BootInstant,
}

/// What is current, as far as a read tells.
#[derive(Debug)]
pub(super) enum SourceCurrent {
    /// A version that a message tells of.
    Told(SourceVersion, Option<Box<StartedGet>>),
    /// Another version, which a list has to bear out: it was overwritten since, or the answer is a
    /// cache's.
    Untold(VersionId),
    /// None that can be told, as behind a delete marker.
    Unknown,
}

/// Reads the version that is current.
pub(super) async fn current(
    engine: &Engine,
    task: &Task,
    reader: &Subscriber,
) -> Result<SourceCurrent, Failure> {
    // A filter by tags may leave the current version out, and take one below it.
    let may_be_taken = task.rules.iter().any(|rule| rule.filter.tags.is_empty());
    if !may_be_taken
        || task
            .events
            .iter()
            .any(|pending| pending.action != EventKind::Put)
    {
        return Ok(SourceCurrent::Unknown);
    }
    let (access, place) = (engine.access_to(&task.source)?, &task.source);
    // A body that several destinations take is read once for all of them, and a large one in parts.
    let is_read = !is_bulk(engine, task) && reader.is_alone();
    let ask = || match is_read {
        true => S3Request::get_object(Side::Source, &place.bucket, &task.source_key),
        false => S3Request::head_object(Side::Source, &place.bucket, &task.source_key),
    };
    let asked = BootInstant::now();
    let (head, body) = match access.send_for_checksums(ask).await {
        Ok(answer) => answer.split(),
        Err(refusal) if is_trouble(refusal.failure.kind) => return Err(refusal.into()),
        Err(_) => return Ok(SourceCurrent::Unknown),
    };
    let Some(entry) = entry(&head) else {
        return Ok(SourceCurrent::Unknown);
    };
    let is_told = task
        .events
        .iter()
        .any(|pending| pending.version.as_ref() == Some(&entry.version.id));
    if !is_told {
        return Ok(SourceCurrent::Untold(entry.version.id));
    }
    let opened = is_read.then(|| {
        Box::new(StartedGet {
            version: entry.version.clone(),
            head,
            body,
            asked,
        })
    });
    Ok(SourceCurrent::Told(entry, opened))
}

/// Says whether a list would meet with the same; what else is refused, a list can tell more of.
fn is_trouble(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Transient | FailureKind::Unauthenticated | FailureKind::Throttled
    )
}

/// Reads which version an answer is about; none where it does not say all of it.
fn entry(head: &ResponseHead) -> Option<SourceVersion> {
    let id = VersionId::try_from(head.version_id()?).ok()?;
    let time = Timestamp::from_unix_timestamp(head.last_modified()?.secs()).ok()?;
    let etag = Some(head.etag()?);
    let version = VersionRef::new(id, time, etag.as_ref());
    Some(SourceVersion {
        version,
        kind: VersionKind::Object,
        etag,
        size_bytes: head.content_length()?,
    })
}
