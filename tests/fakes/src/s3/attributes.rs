//! What can be changed about a version: tags, retention, legal hold.

use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use s3s::dto::{
    DeleteObjectTaggingInput, DeleteObjectTaggingOutput, GetObjectLegalHoldInput,
    GetObjectLegalHoldOutput, GetObjectRetentionInput, GetObjectRetentionOutput,
    GetObjectTaggingInput, GetObjectTaggingOutput, ObjectLockLegalHold, ObjectLockLegalHoldStatus,
    ObjectLockRetention, ObjectLockRetentionMode, PutObjectLegalHoldInput,
    PutObjectLegalHoldOutput, PutObjectRetentionInput, PutObjectRetentionOutput,
    PutObjectTaggingInput, PutObjectTaggingOutput, Tag, Timestamp,
};
use s3s::{S3Response, S3Result};
use time::OffsetDateTime;

use super::Call;
use super::checksums::claimed;
use super::dress::{checked_tags, name_version};
use super::entry::{Entry, Object};
use super::events::{Happening, announce};
use super::reads::find;
use super::refusal::{bad_request, forbidden, refuse};
use super::removal::may_bypass;
use super::state::{Deed, Place, State};

/// Answers GetObjectTagging.
pub(super) fn tags(
    state: &mut State,
    _call: &Call,
    input: &GetObjectTaggingInput,
) -> S3Result<S3Response<GetObjectTaggingOutput>> {
    let (entry, object) = meant(
        state,
        &Place::new(&input.bucket, &input.key),
        input.version_id.as_deref(),
    )?;
    let tag_set = object
        .tags
        .into_iter()
        .map(|(key, value)| Tag {
            key: Some(key),
            value: Some(value),
        })
        .collect();
    let output = GetObjectTaggingOutput {
        tag_set,
        version_id: None,
    };
    Ok(S3Response::with_headers(
        output,
        versioned(state, &input.bucket, &entry)?,
    ))
}

/// Answers PutObjectTagging.
pub(super) fn tag(
    state: &mut State,
    call: &Call,
    input: &PutObjectTaggingInput,
) -> S3Result<S3Response<PutObjectTaggingOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let (entry, object) = meant(state, &place, input.version_id.as_deref())?;
    let sent = input.tagging.tag_set.iter();
    let tags = checked_tags(sent.map(|tag| {
        (
            tag.key.clone().unwrap_or_default(),
            tag.value.clone().unwrap_or_default(),
        )
    }))?;
    let tags = if state.traits.keeps_tags_apart {
        tags
    } else {
        object.tags
    };
    let deed = Deed {
        call,
        cause: "PutObjectTagging",
    };
    if let Some(revised) = state.revise(&place, entry.id, &deed, |object| object.tags = tags)? {
        announce(state, &place, &revised, Happening::Tagged);
    }
    let headers = versioned(state, &input.bucket, &entry)?;
    Ok(S3Response::with_headers(
        PutObjectTaggingOutput::default(),
        headers,
    ))
}

/// Answers DeleteObjectTagging.
pub(super) fn untag(
    state: &mut State,
    call: &Call,
    input: &DeleteObjectTaggingInput,
) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let (entry, _) = meant(state, &place, input.version_id.as_deref())?;
    let deed = Deed {
        call,
        cause: "DeleteObjectTagging",
    };
    if let Some(revised) = state.revise(&place, entry.id, &deed, |object| object.tags.clear())? {
        announce(state, &place, &revised, Happening::Untagged);
    }
    let headers = versioned(state, &input.bucket, &entry)?;
    Ok(S3Response::with_headers(
        DeleteObjectTaggingOutput::default(),
        headers,
    ))
}

/// Answers GetObjectRetention.
pub(super) fn retention(
    state: &mut State,
    _call: &Call,
    input: &GetObjectRetentionInput,
) -> S3Result<S3Response<GetObjectRetentionOutput>> {
    let (_, object) = meant(
        state,
        &Place::new(&input.bucket, &input.key),
        input.version_id.as_deref(),
    )?;
    let (mode, until) = object.lock.retention.ok_or_else(no_lock)?;
    let retention = ObjectLockRetention {
        mode: Some(ObjectLockRetentionMode::from(mode)),
        retain_until_date: Some(Timestamp::from(until)),
    };
    Ok(S3Response::new(GetObjectRetentionOutput {
        retention: Some(retention),
    }))
}

/// Answers PutObjectRetention: what is locked can be locked for longer, and for less only by
/// bypass.
pub(super) fn retain(
    state: &mut State,
    call: &Call,
    input: &PutObjectRetentionInput,
) -> S3Result<S3Response<PutObjectRetentionOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    lockable(state, call, &place)?;
    let (entry, object) = meant(state, &place, input.version_id.as_deref())?;
    let wanted = input.retention.as_ref().and_then(|retention| {
        let until = OffsetDateTime::from(retention.retain_until_date.clone()?);
        Some((
            retention.mode.as_ref()?.as_str().to_owned(),
            SystemTime::from(until),
        ))
    });
    if let Some((mode, until)) = &object.lock.retention
        && *until > state.clock.now()
    {
        let longer = wanted
            .as_ref()
            .is_some_and(|(new, later)| later >= until && (new == mode || new == "COMPLIANCE"));
        if !longer && (mode == "COMPLIANCE" || !may_bypass(call)) {
            return Err(forbidden(
                "Access Denied because object protected by object lock.",
            ));
        }
    }
    let deed = Deed {
        call,
        cause: "PutObjectRetention",
    };
    state.revise(&place, entry.id, &deed, |object| {
        object.lock.retention = wanted;
    })?;
    Ok(S3Response::new(PutObjectRetentionOutput::default()))
}

/// Answers GetObjectLegalHold.
pub(super) fn legal_hold(
    state: &mut State,
    _call: &Call,
    input: &GetObjectLegalHoldInput,
) -> S3Result<S3Response<GetObjectLegalHoldOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let (_, object) = meant(state, &place, input.version_id.as_deref())?;
    if !state.bucket(&place.bucket)?.object_lock {
        return Err(no_lock());
    }
    let status = if object.lock.hold {
        ObjectLockLegalHoldStatus::ON
    } else {
        ObjectLockLegalHoldStatus::OFF
    };
    let legal_hold = ObjectLockLegalHold {
        status: Some(ObjectLockLegalHoldStatus::from_static(status)),
    };
    Ok(S3Response::new(GetObjectLegalHoldOutput {
        legal_hold: Some(legal_hold),
    }))
}

/// Answers PutObjectLegalHold.
pub(super) fn hold(
    state: &mut State,
    call: &Call,
    input: &PutObjectLegalHoldInput,
) -> S3Result<S3Response<PutObjectLegalHoldOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    lockable(state, call, &place)?;
    let (entry, _) = meant(state, &place, input.version_id.as_deref())?;
    let status = input
        .legal_hold
        .as_ref()
        .and_then(|hold| hold.status.as_ref());
    let hold = status.is_some_and(|status| status.as_str() == ObjectLockLegalHoldStatus::ON);
    let deed = Deed {
        call,
        cause: "PutObjectLegalHold",
    };
    state.revise(&place, entry.id, &deed, |object| object.lock.hold = hold)?;
    Ok(S3Response::new(PutObjectLegalHoldOutput::default()))
}

fn meant(state: &State, place: &Place, version_id: Option<&str>) -> S3Result<(Arc<Entry>, Object)> {
    find(
        state.bucket(&place.bucket)?,
        &place.key,
        version_id,
        &state.traits,
    )
}

/// Locks need a bucket that has them, and a request whose body is proved.
fn lockable(state: &State, call: &Call, place: &Place) -> S3Result<()> {
    if !state.bucket(&place.bucket)?.object_lock {
        return Err(bad_request(
            "InvalidRequest",
            "Bucket is missing Object Lock Configuration",
        ));
    }
    if claimed(&call.headers).is_none() && !call.headers.contains_key("content-md5") {
        return Err(bad_request(
            "InvalidRequest",
            "Content-MD5 OR x-amz-checksum- HTTP header is required",
        ));
    }
    Ok(())
}

fn no_lock() -> s3s::S3Error {
    let message = "The specified object does not have a ObjectLock configuration";
    refuse(
        http::StatusCode::NOT_FOUND,
        "NoSuchObjectLockConfiguration",
        message,
    )
}

fn versioned(state: &State, bucket: &str, entry: &Entry) -> S3Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    name_version(&mut headers, entry, state.bucket(bucket)?.versioning);
    Ok(headers)
}
