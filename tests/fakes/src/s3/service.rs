//! Which function answers which operation.

use std::sync::Arc;

use async_trait::async_trait;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};

use super::state::State;
use super::{Call, Shared};
use super::{
    attributes, buckets, completion, contents, multipart, reads, removal, uploads, writes,
};

/// The operations over the shared state.
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
}

impl Service {
    /// Answers at once and under the lock: no other request is ever half done.
    fn answer<I, O>(
        &self,
        request: &S3Request<I>,
        operation: fn(&mut State, &Call, &I) -> S3Result<S3Response<O>>,
    ) -> S3Result<S3Response<O>> {
        let call = request
            .extensions
            .get::<Call>()
            .cloned()
            .unwrap_or_default();
        self.shared
            .locked(|state| operation(state, &call, &request.input))
    }
}

/// Writes the methods, which differ in nothing but names.
macro_rules! operations {
    ($($method:ident: $input:ident => $output:ident by $operation:path;)*) => {
        #[async_trait]
        impl S3 for Service {
            $(async fn $method(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.answer(&request, $operation)
            })*
        }
    };
}

operations! {
    create_bucket: CreateBucketInput => CreateBucketOutput by buckets::create;
    delete_bucket: DeleteBucketInput => DeleteBucketOutput by buckets::delete;
    head_bucket: HeadBucketInput => HeadBucketOutput by buckets::head;
    get_bucket_versioning: GetBucketVersioningInput => GetBucketVersioningOutput by buckets::versioning;
    put_bucket_versioning: PutBucketVersioningInput => PutBucketVersioningOutput by buckets::set_versioning;
    get_object_lock_configuration: GetObjectLockConfigurationInput => GetObjectLockConfigurationOutput by buckets::lock;
    list_objects_v2: ListObjectsV2Input => ListObjectsV2Output by contents::list;
    get_object: GetObjectInput => GetObjectOutput by reads::get;
    head_object: HeadObjectInput => HeadObjectOutput by reads::head;
    put_object: PutObjectInput => PutObjectOutput by writes::put;
    copy_object: CopyObjectInput => CopyObjectOutput by writes::copy;
    delete_object: DeleteObjectInput => DeleteObjectOutput by removal::delete;
    delete_objects: DeleteObjectsInput => DeleteObjectsOutput by removal::delete_many;
    get_object_tagging: GetObjectTaggingInput => GetObjectTaggingOutput by attributes::tags;
    put_object_tagging: PutObjectTaggingInput => PutObjectTaggingOutput by attributes::tag;
    delete_object_tagging: DeleteObjectTaggingInput => DeleteObjectTaggingOutput by attributes::untag;
    get_object_retention: GetObjectRetentionInput => GetObjectRetentionOutput by attributes::retention;
    put_object_retention: PutObjectRetentionInput => PutObjectRetentionOutput by attributes::retain;
    get_object_legal_hold: GetObjectLegalHoldInput => GetObjectLegalHoldOutput by attributes::legal_hold;
    put_object_legal_hold: PutObjectLegalHoldInput => PutObjectLegalHoldOutput by attributes::hold;
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput by multipart::create;
    upload_part: UploadPartInput => UploadPartOutput by multipart::upload_part;
    upload_part_copy: UploadPartCopyInput => UploadPartCopyOutput by multipart::copy_part;
    complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput by completion::complete;
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput by multipart::abort;
    list_parts: ListPartsInput => ListPartsOutput by uploads::parts;
    list_multipart_uploads: ListMultipartUploadsInput => ListMultipartUploadsOutput by uploads::uploads;
}
