//! Which entry of a key is current at the destination, by HEAD, and by the list where HEAD does not tell.

use std::time::Duration;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use replicator_core::failure::{Failure, Kind as FailureKind};
use replicator_core::object::ETag;
use replicator_core::plan::{Kind, VersionRef};
use replicator_core::stamp::{NAME, Stamp};

use super::basis::Entry;
use super::dated::Dated;
use super::listing;
use crate::accounts::Access;
use crate::accounts::refusal::{Side, failure};
use crate::task::Task;

/// What is said of the current entry.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) entry: Entry,
    /// Which source version an object is the replica of, by its stamp.
    pub(super) stamp: Option<VersionRef>,
    /// How old it is, by the server's clock.
    pub(super) age: Option<Duration>,
}

impl Current {
    fn hidden(entry: Entry) -> Self {
        Self { entry, stamp: None, age: None }
    }
}

/// Reads which entry is current.
pub(super) async fn current(access: &Access, task: &Task) -> Result<Current, Failure> {
    let place = &task.lane.destination;
    let request = access.s3.head_object().bucket(place.bucket.as_str()).key(task.lane.key.as_str());
    let dated = Dated::default();
    let error = match request.customize().interceptor(dated.clone()).send().await {
        Ok(head) => return object(&head, task, &dated),
        Err(error) => error,
    };
    let Some(answer) = error.raw_response().filter(|answer| answer.status().as_u16() == 404) else {
        return Err(failure(Side::Destination, DURING, error));
    };
    if answer.headers().get("x-amz-delete-marker") == Some("true") {
        access.capabilities.told_marker();
        if let Some(marker) = answer.headers().get("x-amz-version-id") {
            return Ok(Current::hidden(Entry::Marker(marker.to_owned())));
        }
    } else if access.is_aws || access.capabilities.tells_markers() {
        return Ok(Current::hidden(Entry::Nothing));
    }
    listed(access, task).await
}

/// Asks the list for what hides a key, where HEAD does not tell a marker from nothing.
async fn listed(access: &Access, task: &Task) -> Result<Current, Failure> {
    let lane = &task.lane;
    let newest = listing::newest(access, Side::Destination, &lane.destination.bucket, &lane.key).await?;
    match newest {
        None => Ok(Current::hidden(Entry::Nothing)),
        Some(entry) if entry.kind == Kind::Marker => {
            Ok(Current::hidden(Entry::Marker(entry.version.id.as_str().to_owned())))
        }
        Some(_) => Err(Failure::caused(FailureKind::Conflict, DURING, "an object appeared behind the 404")),
    }
}

fn object(head: &HeadObjectOutput, task: &Task, dated: &Dated) -> Result<Current, Failure> {
    let etag = head.e_tag().and_then(|etag| ETag::try_from(etag).ok());
    let etag = etag.ok_or_else(|| Failure::caused(FailureKind::Transient, DURING, "the answer has no ETag"))?;
    // An object uploaded in parts is dated by the beginning of its upload, not by its appearance:
    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
    let age = head.last_modified.as_ref().filter(|_| !etag.has_parts()).and_then(|then| dated.age(then));
    let entry = Entry::Object { etag, version: head.version_id.clone() };
    Ok(Current { entry, stamp: origin(head, task), age })
}

/// Reads the stamp; one of another bucket makes the object a stranger.
pub(super) fn origin(head: &HeadObjectOutput, task: &Task) -> Option<VersionRef> {
    let text = head.metadata.as_ref()?.get(NAME)?;
    let stamp = Stamp::decode(text).ok()?;
    (stamp.bucket == task.source.bucket).then_some(stamp.version)
}

const DURING: &str = "HeadObject";
