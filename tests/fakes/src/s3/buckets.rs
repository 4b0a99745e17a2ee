//! Buckets and their versioning.

use http::{HeaderMap, StatusCode};
use s3s::dto::{
    BucketVersioningStatus, CreateBucketInput, CreateBucketOutput, DeleteBucketInput,
    DeleteBucketOutput, GetBucketVersioningInput, GetBucketVersioningOutput,
    GetObjectLockConfigurationInput, GetObjectLockConfigurationOutput, HeadBucketInput,
    HeadBucketOutput, ObjectLockConfiguration, ObjectLockEnabled, PutBucketVersioningInput,
    PutBucketVersioningOutput,
};
use s3s::{S3Response, S3Result};

use super::Call;
use super::entry::Versioning;
use super::refusal::{bad_request, refuse};
use super::state::{Bucket, State, set};

/// Answers CreateBucket.
pub(super) fn create(
    state: &mut State,
    _call: &Call,
    input: &CreateBucketInput,
) -> S3Result<S3Response<CreateBucketOutput>> {
    if state.buckets.contains_key(&input.bucket) {
        let message = "the bucket is there already, and yours";
        return Err(refuse(
            StatusCode::CONFLICT,
            "BucketAlreadyOwnedByYou",
            message,
        ));
    }
    let locked = input.object_lock_enabled_for_bucket.unwrap_or(false);
    // Object Lock needs versions, so such a bucket is made with them.
    let versioning = if locked {
        Versioning::Enabled
    } else {
        Versioning::Unversioned
    };
    state.buckets.insert(
        input.bucket.clone(),
        Bucket {
            object_lock: locked,
            ..Bucket::new(versioning)
        },
    );
    let output = CreateBucketOutput {
        location: Some(format!("/{}", input.bucket)),
    };
    Ok(S3Response::new(output))
}

/// Answers DeleteBucket.
pub(super) fn delete(
    state: &mut State,
    _call: &Call,
    input: &DeleteBucketInput,
) -> S3Result<S3Response<DeleteBucketOutput>> {
    let bucket = state.bucket(&input.bucket)?;
    if bucket
        .keys
        .values()
        .any(|history| !history.entries.is_empty())
    {
        let message = "the bucket still has versions or delete markers";
        return Err(refuse(StatusCode::CONFLICT, "BucketNotEmpty", message));
    }
    state.buckets.remove(&input.bucket);
    Ok(S3Response::new(DeleteBucketOutput::default()))
}

/// Answers HeadBucket.
pub(super) fn head(
    state: &mut State,
    _call: &Call,
    input: &HeadBucketInput,
) -> S3Result<S3Response<HeadBucketOutput>> {
    let _exists = state.bucket(&input.bucket)?;
    let mut headers = HeaderMap::new();
    set(&mut headers, "x-amz-bucket-region", "us-east-1");
    Ok(S3Response::with_headers(
        HeadBucketOutput::default(),
        headers,
    ))
}

/// Answers GetBucketVersioning.
pub(super) fn versioning(
    state: &mut State,
    _call: &Call,
    input: &GetBucketVersioningInput,
) -> S3Result<S3Response<GetBucketVersioningOutput>> {
    let status = match state.bucket(&input.bucket)?.versioning {
        Versioning::Unversioned => None,
        Versioning::Enabled => Some(BucketVersioningStatus::ENABLED),
        Versioning::Suspended => Some(BucketVersioningStatus::SUSPENDED),
    };
    let status = status.map(BucketVersioningStatus::from_static);
    Ok(S3Response::new(GetBucketVersioningOutput {
        status,
        ..Default::default()
    }))
}

/// Answers PutBucketVersioning.
pub(super) fn set_versioning(
    state: &mut State,
    _call: &Call,
    input: &PutBucketVersioningInput,
) -> S3Result<S3Response<PutBucketVersioningOutput>> {
    let bucket = state.bucket_mut(&input.bucket)?;
    let versioning = match input
        .versioning_configuration
        .status
        .as_ref()
        .map(BucketVersioningStatus::as_str)
    {
        Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
        Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
        _ => {
            return Err(bad_request(
                "IllegalVersioningConfigurationException",
                "the status is no status",
            ));
        }
    };
    if bucket.object_lock && versioning == Versioning::Suspended {
        let message = "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.";
        return Err(refuse(StatusCode::CONFLICT, "InvalidBucketState", message));
    }
    bucket.versioning = versioning;
    Ok(S3Response::new(PutBucketVersioningOutput::default()))
}

/// Answers GetObjectLockConfiguration.
pub(super) fn lock(
    state: &mut State,
    _call: &Call,
    input: &GetObjectLockConfigurationInput,
) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
    if !state.bucket(&input.bucket)?.object_lock {
        let message = "Object Lock configuration does not exist for this bucket";
        return Err(refuse(
            StatusCode::NOT_FOUND,
            "ObjectLockConfigurationNotFoundError",
            message,
        ));
    }
    let enabled = ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED);
    let configuration = ObjectLockConfiguration {
        object_lock_enabled: Some(enabled),
        rule: None,
    };
    Ok(S3Response::new(GetObjectLockConfigurationOutput {
        object_lock_configuration: Some(configuration),
    }))
}
