//! DeleteObject and DeleteObjects, and what Object Lock says to them.

use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    ETagCondition, Error,
};
use s3s::{S3Response, S3Result};

use super::Call;
use super::conditions::{Write, check, text};
use super::entry::{Entry, Versioning};
use super::minting::is_version_id;
use super::refusal::{bad_request, forbidden};
use super::state::{Deed, Place, State, set};

/// Answers DeleteObject.
pub(super) fn delete(
    state: &mut State,
    call: &Call,
    input: &DeleteObjectInput,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let deleted = delete_one(
        state,
        &Deed {
            call,
            cause: "DeleteObject",
        },
        &place,
        input.version_id.as_deref(),
    )?;
    let mut headers = HeaderMap::new();
    if deleted.marker {
        set(&mut headers, "x-amz-delete-marker", "true");
    }
    if let Some(version_id) = &deleted.version_id {
        set(&mut headers, "x-amz-version-id", version_id);
    }
    Ok(S3Response::with_headers(
        DeleteObjectOutput::default(),
        headers,
    ))
}

/// Answers DeleteObjects: each key stands for itself.
pub(super) fn delete_many(
    state: &mut State,
    call: &Call,
    input: &DeleteObjectsInput,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let _exists = state.bucket(&input.bucket)?;
    let mut output = DeleteObjectsOutput::default();
    for wanted in &input.delete.objects {
        let place = Place::new(&input.bucket, &wanted.key);
        let mut own = Call {
            headers: HeaderMap::new(),
            ..call.clone()
        };
        if let Some(bypass) = call.headers.get(BYPASS) {
            own.headers.insert(BYPASS, bypass.clone());
        }
        if let Some(Ok(etag)) = wanted
            .e_tag
            .as_ref()
            .map(|etag| ETagCondition::ETag(etag.clone()).to_http_header())
        {
            own.headers.insert("if-match", etag);
        }
        let deed = Deed {
            call: &own,
            cause: "DeleteObjects",
        };
        match delete_one(state, &deed, &place, wanted.version_id.as_deref()) {
            Ok(deleted) => output.deleted.get_or_insert_default().push(DeletedObject {
                delete_marker: deleted.marker.then_some(true),
                delete_marker_version_id: deleted.version_id.filter(|_| deleted.marker),
                key: Some(wanted.key.clone()),
                version_id: wanted.version_id.clone(),
            }),
            Err(error) => output.errors.get_or_insert_default().push(Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(wanted.key.clone()),
                message: error.message().map(str::to_owned),
                version_id: wanted.version_id.clone(),
            }),
        }
    }
    Ok(S3Response::new(output))
}

/// What a delete did: whether a marker was made or removed, and which version that was.
struct Deleted {
    marker: bool,
    version_id: Option<String>,
}

fn delete_one(
    state: &mut State,
    deed: &Deed<'_>,
    place: &Place,
    version_id: Option<&str>,
) -> S3Result<Deleted> {
    let versioning = state.bucket(&place.bucket)?.versioning;
    if version_id.is_some_and(|id| !is_version_id(id)) {
        return Err(bad_request(
            "InvalidArgument",
            "Invalid version id specified",
        ));
    }
    check(state, Write::Delete, place, deed.call)?;
    match version_id {
        Some(id) => remove_version(state, deed, place, id),
        None if versioning == Versioning::Unversioned => {
            remove_version(state, deed, place, "null")?;
            Ok(Deleted {
                marker: false,
                version_id: None,
            })
        }
        None => {
            let draft = state.draft(None);
            let marker = state.land(place, draft, deed)?;
            Ok(Deleted {
                marker: true,
                version_id: Some(marker.version_id.clone()),
            })
        }
    }
}

/// Removes an exact version. That it was not there is no error.
fn remove_version(
    state: &mut State,
    deed: &Deed<'_>,
    place: &Place,
    version_id: &str,
) -> S3Result<Deleted> {
    let named = Some(version_id.to_owned());
    let Some(entry) = state
        .bucket(&place.bucket)?
        .version(&place.key, version_id)
        .map(Arc::clone)
    else {
        let known = state.traits.removes_twice || version_id == "null";
        let gone = Deleted {
            marker: false,
            version_id: named,
        };
        return if known {
            Ok(gone)
        } else {
            Err(bad_request(
                "InvalidArgument",
                "Invalid version id specified",
            ))
        };
    };
    unlocked(&entry, deed.call, state.clock.now())?;
    state.remove(place, &entry, deed)?;
    Ok(Deleted {
        marker: entry.is_marker(),
        version_id: named,
    })
}

/// Refuses to remove what Object Lock protects.
fn unlocked(entry: &Entry, call: &Call, now: SystemTime) -> S3Result<()> {
    let Some(object) = &entry.object else {
        return Ok(());
    };
    let bypass = may_bypass(call);
    let retained = match &object.lock.retention {
        Some((mode, until)) => *until > now && (mode == "COMPLIANCE" || !bypass),
        None => false,
    };
    if retained || object.lock.hold {
        return Err(forbidden(
            "Access Denied because object protected by object lock.",
        ));
    }
    Ok(())
}

const BYPASS: &str = "x-amz-bypass-governance-retention";

/// Says whether retention in governance mode is to be overridden.
pub(super) fn may_bypass(call: &Call) -> bool {
    text(&call.headers, BYPASS).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}
