//! A request as the journal keeps it: its operation, its bucket and key, and the principal that
//! sent it.

use std::collections::BTreeMap;

use http::{HeaderMap, Method, Request, StatusCode};
use percent_encoding::percent_decode_str;

use super::faults::Fault;

/// One request that went through the proxy.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// The first segment of an S3 path.
    pub(crate) bucket: String,
    /// The rest of an S3 path, decoded.
    pub(crate) key: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) headers: HeaderMap,
    /// From the signature's scope: `s3`, `sqs`, `sts`.
    pub(crate) service: String,
    /// The access key that signed.
    pub(crate) signer: String,
    /// The body of a request to STS, which is a form, to SQS or to KMS; other bodies pass unread.
    pub(crate) body: String,
    pub(crate) fault: Option<Fault>,
    pub(crate) status: Option<StatusCode>,
}

impl Seen {
    /// Reads what a request says about itself.
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let path = request.uri().path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let (signer, service) = scope(request.headers());
        Self {
            method: request.method().clone(),
            bucket: bucket.to_owned(),
            key: decoded(key),
            query: query(request.uri().query().unwrap_or_default()),
            headers: request.headers().clone(),
            service,
            signer,
            body: String::new(),
            fault: None,
            status: None,
        }
    }

    /// Names the S3 operation, as its documentation does.
    pub(crate) fn operation(&self) -> &'static str {
        let with = |name| self.query.contains_key(name);
        let copies = self.headers.contains_key("x-amz-copy-source");
        match self.method.as_str() {
            _ if self.service == "sqs" => self.queue_operation(),
            _ if self.service != "s3" => "other",
            "GET" if self.key.is_empty() => self.bucket_operation(),
            "GET" if with("tagging") => "GetObjectTagging",
            "GET" if with("acl") => "GetObjectAcl",
            "GET" if with("attributes") => "GetObjectAttributes",
            "GET" if with("uploadId") => "ListParts",
            "GET" if with("retention") => "GetObjectRetention",
            "GET" if with("legal-hold") => "GetObjectLegalHold",
            "GET" => "GetObject",
            "HEAD" if self.key.is_empty() => "HeadBucket",
            "HEAD" => "HeadObject",
            "PUT" if with("tagging") => "PutObjectTagging",
            "PUT" if with("partNumber") && copies => "UploadPartCopy",
            "PUT" if with("partNumber") => "UploadPart",
            "PUT" if copies => "CopyObject",
            "PUT" if !self.key.is_empty() && self.query.keys().all(|name| name == "x-id") => {
                "PutObject"
            }
            "POST" if with("uploads") => "CreateMultipartUpload",
            "POST" if with("uploadId") => "CompleteMultipartUpload",
            "DELETE" if with("tagging") => "DeleteObjectTagging",
            "DELETE" if with("uploadId") => "AbortMultipartUpload",
            "DELETE" => "DeleteObject",
            _ => "other",
        }
    }

    /// Names the reads of a bucket.
    fn bucket_operation(&self) -> &'static str {
        let all = [
            ("notification", "GetBucketNotificationConfiguration"),
            ("object-lock", "GetObjectLockConfiguration"),
            ("uploads", "ListMultipartUploads"),
            ("versioning", "GetBucketVersioning"),
            ("versions", "ListObjectVersions"),
        ];
        let found = all
            .into_iter()
            .find(|(name, _)| self.query.contains_key(*name));
        found.map_or("other", |(_, operation)| operation)
    }

    /// Names the SQS operations that the daemon uses.
    fn queue_operation(&self) -> &'static str {
        let all = [
            "ReceiveMessage",
            "DeleteMessageBatch",
            "ChangeMessageVisibilityBatch",
            "SendMessageBatch",
            "SendMessage",
            "DeleteMessage",
            "ChangeMessageVisibility",
            "GetQueueAttributes",
        ];
        let target = self.header("x-amz-target");
        all.into_iter()
            .find(|name| target.strip_prefix("AmazonSQS.") == Some(*name))
            .unwrap_or("other")
    }

    /// Says whether this asks a bucket for an operation.
    pub(crate) fn is(&self, bucket: &str, operation: &str) -> bool {
        self.bucket == bucket && self.operation() == operation
    }

    /// Returns a field of a form, empty when absent.
    pub(crate) fn form(&self, name: &str) -> String {
        query(&self.body).remove(name).unwrap_or_default()
    }

    /// Returns a header's value, empty when absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decoded(k), decoded(v)))
        .collect()
}

/// Reads `Credential=KEY/DATE/REGION/SERVICE/aws4_request`; an SigV4A scope has no Region.
fn scope(headers: &HeaderMap) -> (String, String) {
    let authorization = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let credential = authorization
        .split_once("Credential=")
        .map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = credential
        .split(',')
        .next()
        .unwrap_or_default()
        .split('/')
        .collect();
    let service = fields.iter().rev().nth(1).copied().unwrap_or_default();
    (
        fields.first().copied().unwrap_or_default().to_owned(),
        service.to_owned(),
    )
}
