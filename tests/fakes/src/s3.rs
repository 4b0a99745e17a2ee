//! S3: buckets with histories, on the protocol of the `s3s` crate.
