//! What a request asks for, read from its method, path, query and headers alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use percent_encoding::percent_decode_str;

/// A service of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Objects.
    S3,
    /// Queues.
    Sqs,
    /// Keys.
    Kms,
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The service that it is for.
    pub service: Service,
    /// Its name in the service's API, or `Unknown`.
    pub operation: String,
    /// The bucket; for SQS the queue's name.
    pub bucket: Option<String>,
    /// The object's key, decoded; for KMS the key's name.
    pub key: Option<String>,
    /// The version that is asked for by its id.
    pub version: Option<String>,
    /// The multipart upload; of one that begins, it is known after the answer.
    pub upload: Option<String>,
    /// The part of a multipart upload.
    pub part: Option<u32>,
    /// The source of a copy as the header has it, encoded.
    pub copy_source: Option<String>,
    /// The range of bytes that is asked for, as the header has it.
    pub range: Option<String>,
    /// Each header that is a condition, by its name in lower case.
    pub conditions: BTreeMap<String, String>,
    /// The length of the request's body.
    pub bytes: usize,
}

impl Call {
    /// Reads a request in path style, or in JSON with its operation in `X-Amz-Target`.
    pub fn of(request: &Request<Bytes>) -> Self {
        match request
            .headers()
            .get("x-amz-target")
            .and_then(|target| target.to_str().ok())
        {
            Some(target) => Self::json(target, request.body()),
            None => Self::s3(request),
        }
    }

    /// Says whether it changes what readers of the bucket see.
    pub fn writes(&self) -> bool {
        let writing = [
            "PutObject",
            "CopyObject",
            "CompleteMultipartUpload",
            "DeleteObject",
            "DeleteObjects",
            "PutObjectTagging",
            "DeleteObjectTagging",
        ];
        self.service == Service::S3 && writing.contains(&self.operation.as_str())
    }

    fn json(target: &str, body: &Bytes) -> Self {
        let (service, operation) = target.split_once('.').unwrap_or(("", target));
        let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| asked.get(name).and_then(|value| value.as_str());
        let queue = text("QueueUrl")
            .and_then(|url| url.rsplit('/').next())
            .or_else(|| text("QueueName"));
        let service = if service == "TrentService" {
            Service::Kms
        } else {
            Service::Sqs
        };
        Self {
            bucket: queue.map(str::to_owned),
            key: text("KeyId").map(str::to_owned),
            bytes: body.len(),
            ..Self::empty(service, operation)
        }
    }

    fn s3(request: &Request<Bytes>) -> Self {
        let path = request.uri().path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let (bucket, key) = (named(bucket), named(key));
        let query = Query::of(request.uri().query().unwrap_or_default());
        let copy_source = text(request.headers(), "x-amz-copy-source");
        let level = match (&bucket, &key) {
            (None, _) => Level::Service,
            (Some(_), None) => Level::Bucket,
            (Some(_), Some(_)) => Level::Object,
        };
        let operation = operation(request.method(), level, &query, copy_source.is_some());
        Self {
            bucket,
            key,
            version: query.value("versionId"),
            upload: query.value("uploadId"),
            part: query
                .value("partNumber")
                .and_then(|number| number.parse().ok()),
            copy_source,
            range: text(request.headers(), "range"),
            conditions: conditions(request.headers()),
            bytes: request.body().len(),
            ..Self::empty(Service::S3, operation)
        }
    }

    fn empty(service: Service, operation: &str) -> Self {
        Self {
            service,
            operation: operation.to_owned(),
            bucket: None,
            key: None,
            version: None,
            upload: None,
            part: None,
            copy_source: None,
            range: None,
            conditions: BTreeMap::new(),
            bytes: 0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Service,
    Bucket,
    Object,
}

/// The marker in the query that makes an operation another one; the empty one is always there.
type Row = (&'static str, Level, &'static str, &'static str);

/// S3's operations:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html>.
/// The first row that fits is it.
const OPERATIONS: &[Row] = &[
    ("GET", Level::Service, "", "ListBuckets"),
    ("GET", Level::Bucket, "versions", "ListObjectVersions"),
    ("GET", Level::Bucket, "uploads", "ListMultipartUploads"),
    ("GET", Level::Bucket, "versioning", "GetBucketVersioning"),
    ("GET", Level::Bucket, "location", "GetBucketLocation"),
    (
        "GET",
        Level::Bucket,
        "object-lock",
        "GetObjectLockConfiguration",
    ),
    (
        "GET",
        Level::Bucket,
        "notification",
        "GetBucketNotificationConfiguration",
    ),
    ("GET", Level::Bucket, "encryption", "GetBucketEncryption"),
    ("GET", Level::Bucket, "policy", "GetBucketPolicy"),
    (
        "GET",
        Level::Bucket,
        "ownershipControls",
        "GetBucketOwnershipControls",
    ),
    ("GET", Level::Bucket, "list-type", "ListObjectsV2"),
    ("GET", Level::Bucket, "", "ListObjects"),
    ("HEAD", Level::Bucket, "", "HeadBucket"),
    ("PUT", Level::Bucket, "versioning", "PutBucketVersioning"),
    (
        "PUT",
        Level::Bucket,
        "object-lock",
        "PutObjectLockConfiguration",
    ),
    (
        "PUT",
        Level::Bucket,
        "notification",
        "PutBucketNotificationConfiguration",
    ),
    ("PUT", Level::Bucket, "encryption", "PutBucketEncryption"),
    ("PUT", Level::Bucket, "policy", "PutBucketPolicy"),
    ("PUT", Level::Bucket, "", "CreateBucket"),
    ("POST", Level::Bucket, "delete", "DeleteObjects"),
    ("DELETE", Level::Bucket, "", "DeleteBucket"),
    ("GET", Level::Object, "uploadId", "ListParts"),
    ("GET", Level::Object, "tagging", "GetObjectTagging"),
    ("GET", Level::Object, "acl", "GetObjectAcl"),
    ("GET", Level::Object, "retention", "GetObjectRetention"),
    ("GET", Level::Object, "legal-hold", "GetObjectLegalHold"),
    ("GET", Level::Object, "attributes", "GetObjectAttributes"),
    ("GET", Level::Object, "", "GetObject"),
    ("HEAD", Level::Object, "", "HeadObject"),
    ("PUT", Level::Object, "uploadId", "UploadPart"),
    ("PUT", Level::Object, "tagging", "PutObjectTagging"),
    ("PUT", Level::Object, "acl", "PutObjectAcl"),
    ("PUT", Level::Object, "retention", "PutObjectRetention"),
    ("PUT", Level::Object, "legal-hold", "PutObjectLegalHold"),
    ("PUT", Level::Object, "", "PutObject"),
    ("POST", Level::Object, "uploads", "CreateMultipartUpload"),
    ("POST", Level::Object, "uploadId", "CompleteMultipartUpload"),
    ("POST", Level::Object, "restore", "RestoreObject"),
    ("DELETE", Level::Object, "uploadId", "AbortMultipartUpload"),
    ("DELETE", Level::Object, "tagging", "DeleteObjectTagging"),
    ("DELETE", Level::Object, "", "DeleteObject"),
];

fn operation(method: &Method, level: Level, query: &Query, copies: bool) -> &'static str {
    let fits = |row: &&Row| {
        row.0 == method.as_str() && row.1 == level && (row.2.is_empty() || query.has(row.2))
    };
    match OPERATIONS.iter().find(fits).map_or("Unknown", |row| row.3) {
        "PutObject" if copies => "CopyObject",
        "UploadPart" if copies => "UploadPartCopy",
        other => other,
    }
}

/// The pairs of a query, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(n, v)| (plain(n), plain(v)))
                .collect(),
        )
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found == name)
    }

    fn value(&self, name: &str) -> Option<String> {
        self.0
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.clone())
    }
}

fn named(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| plain(text))
}

fn plain(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn conditions(headers: &HeaderMap) -> BTreeMap<String, String> {
    let conditional = ["if-", "x-amz-if-", "x-amz-copy-source-if-"];
    let names = headers.keys().map(http::HeaderName::as_str);
    let names = names.filter(|name| conditional.iter().any(|prefix| name.starts_with(prefix)));
    names
        .filter_map(|name| Some((name.to_owned(), text(headers, name)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &str, path: &str, headers: &[(&str, &str)]) -> Call {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://s3.sim{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Call::of(&request.body(Bytes::from("body")).unwrap())
    }

    #[test]
    fn an_operation_is_known_by_method_level_and_query() {
        let cases = [
            ("GET", "/", "ListBuckets"),
            (
                "GET",
                "/b?versions&prefix=a%26uploads",
                "ListObjectVersions",
            ),
            ("GET", "/b/?list-type=2", "ListObjectsV2"),
            ("GET", "/b?versioning", "GetBucketVersioning"),
            ("HEAD", "/b", "HeadBucket"),
            ("GET", "/b/k?versionId=v&x-id=GetObject", "GetObject"),
            ("HEAD", "/b/versions", "HeadObject"),
            ("PUT", "/b/k?x-id=PutObject", "PutObject"),
            ("PUT", "/b/k?partNumber=3&uploadId=u", "UploadPart"),
            ("POST", "/b/k?uploads", "CreateMultipartUpload"),
            ("POST", "/b/k?uploadId=u", "CompleteMultipartUpload"),
            ("DELETE", "/b/k?uploadId=u", "AbortMultipartUpload"),
            ("DELETE", "/b/k?versionId=v", "DeleteObject"),
            ("PUT", "/b/k?tagging&versionId=v", "PutObjectTagging"),
            ("GET", "/b/k?uploadId=u", "ListParts"),
            ("PATCH", "/b/k", "Unknown"),
        ];
        for (method, path, expected) in cases {
            assert_eq!(
                call(method, path, &[]).operation,
                expected,
                "{method} {path}"
            );
        }
        let copy = [("x-amz-copy-source", "a/b%20c?versionId=v")];
        assert_eq!(call("PUT", "/b/k", &copy).operation, "CopyObject");
        assert_eq!(
            call("PUT", "/b/k?partNumber=1&uploadId=u", &copy).operation,
            "UploadPartCopy"
        );
    }

    #[test]
    fn keys_are_decoded_exactly() {
        let seen = call(
            "GET",
            "/b/a%2Fb/%2B+%20%C3%A4/%25%3F//x?versionId=a%2Bb",
            &[],
        );
        assert_eq!(seen.bucket.as_deref(), Some("b"));
        assert_eq!(seen.key.as_deref(), Some("a/b/++ ä/%?//x"));
        assert_eq!(seen.version.as_deref(), Some("a+b"));
    }

    #[test]
    fn parts_and_conditions_are_read() {
        let headers = [
            ("If-None-Match", "*"),
            ("x-amz-copy-source-if-match", "e"),
            ("x-amz-meta-if", "no"),
        ];
        let seen = call("PUT", "/b/k?partNumber=3&uploadId=u%2F1", &headers);
        assert_eq!(
            (seen.part, seen.upload.as_deref(), seen.bytes),
            (Some(3), Some("u/1"), 4)
        );
        let names: Vec<&str> = seen.conditions.keys().map(String::as_str).collect();
        assert_eq!(names, ["if-none-match", "x-amz-copy-source-if-match"]);
    }

    #[test]
    fn json_services_are_known_by_their_target() {
        let ask = |target: &str, body: &str| {
            let request = Request::builder()
                .method("POST")
                .uri("http://any.sim/")
                .header("x-amz-target", target);
            Call::of(&request.body(Bytes::from(body.to_owned())).unwrap())
        };
        let seen = ask(
            "AmazonSQS.ReceiveMessage",
            r#"{"QueueUrl":"http://sqs.sim/1/orders"}"#,
        );
        assert_eq!(
            (seen.service, seen.operation.as_str()),
            (Service::Sqs, "ReceiveMessage")
        );
        assert_eq!(seen.bucket.as_deref(), Some("orders"));
        let seen = ask("TrentService.DescribeKey", r#"{"KeyId":"arn:k"}"#);
        assert_eq!(
            (seen.service, seen.key.as_deref()),
            (Service::Kms, Some("arn:k"))
        );
    }
}
