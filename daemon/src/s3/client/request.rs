//! A request before it is signed: its operation, its object, and how long it may take.

use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_types::body::SdkBody;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_core::failure::Operation::{
    self, CreateMultipartUpload, GetObject, GetObjectTagging, HeadObject, ListObjectVersions,
    PutObject, UploadPart,
};
use replicator_core::failure::ResponseInfo;
use replicator_core::object::{Bucket, ETag, Key};
use replicator_core::parts::Part;

use crate::s3::accounts::error::Side;
use crate::s3::client::Endpoint;
use crate::s3::client::REQUEST_TIMEOUT;
use crate::s3::client::body::{BodyChunks, Outgoing};
use crate::s3::client::response::{ExpectedObject, ResponseHead, S3Error, Span};

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct S3Request<'a> {
    pub(super) side: Side,
    /// The operation by S3's own name.
    pub(super) operation: Operation,
    pub(super) timeout: Duration,
    pub(super) attempts_max: u32,
    pub(super) bucket: &'a Bucket,
    /// A header that cannot hold what it was given: without it the request would be another one.
    pub(super) unwritable: Option<String>,
    pub(super) body: Option<BodyChunks>,
    method: Method,
    key: Option<&'a Key>,
    query: String,
    headers: HeaderMap,
    /// What the answer to a read is compared with.
    expected: Option<ExpectedObject>,
    /// Whether the caller proves a 404 without a text itself.
    leaves_404: bool,
}

/// Which entries of a bucket to list.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PageRequest<'a> {
    pub(crate) prefix: Option<&'a str>,
    /// The entry after which it begins; without a version after all entries of the key.
    pub(crate) key_marker: Option<&'a str>,
    pub(crate) version_marker: Option<&'a str>,
    pub(crate) entries_max: u32,
    /// Whether keys come with escapes, because XML cannot hold every character.
    pub(crate) is_encoded: bool,
}

/// Requests the checksums of an object that is read.
pub(crate) const CHECKSUM_MODE: &str = "x-amz-checksum-mode";

const FIRST_BYTE: Part = Part {
    number: 1,
    offset: 0,
    len: 1,
};

// The first try and two more, as the SDK's.
const ATTEMPTS_MAX: u32 = 3;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("s3-replicator/", env!("CARGO_PKG_VERSION")));

// What RFC 3986 calls unreserved stays as it is.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const PATH: &AsciiSet = &VALUE.remove(b'/');

impl<'a> S3Request<'a> {
    /// Requests an object.
    pub(crate) fn get_object(side: Side, bucket: &'a Bucket, key: &'a Key) -> Self {
        Self::new(side, GetObject, Method::GET, bucket, Some(key)).query("x-id", "GetObject")
    }

    /// Requests the headers of an object.
    pub(crate) fn head_object(side: Side, bucket: &'a Bucket, key: &'a Key) -> Self {
        Self::new(side, HeadObject, Method::HEAD, bucket, Some(key))
    }

    /// Requests the first byte of an object: unlike that of a HEAD, its refusal has a text.
    pub(crate) fn first_byte(side: Side, bucket: &'a Bucket, key: &'a Key) -> Self {
        Self::get_object(side, bucket, key).bytes(FIRST_BYTE)
    }

    /// Requests the tags of an object.
    pub(crate) fn tags(side: Side, bucket: &'a Bucket, key: &'a Key) -> Self {
        Self::new(side, GetObjectTagging, Method::GET, bucket, Some(key)).add_flag("tagging")
    }

    /// Requests a page of a bucket's versions.
    pub(crate) fn list(side: Side, bucket: &'a Bucket, page: &PageRequest<'_>) -> Self {
        let call =
            Self::new(side, ListObjectVersions, Method::GET, bucket, None).add_flag("versions");
        let maximum = page.entries_max.to_string();
        let parameters = [
            ("encoding-type", page.is_encoded.then_some("url")),
            ("key-marker", page.key_marker),
            ("max-keys", Some(maximum.as_str())),
            ("prefix", page.prefix),
            ("version-id-marker", page.version_marker),
        ];
        parameters
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .fold(call, |call, (name, value)| call.query(name, value))
    }

    /// Writes an object; sent once, because after a lost answer only a fresh read shows whether to
    /// send it again (protocol rule 5).
    pub(crate) fn put_object(bucket: &'a Bucket, key: &'a Key, body: BodyChunks) -> Self {
        let call = Self::new(Side::Write, PutObject, Method::PUT, bucket, Some(key))
            .query("x-id", "PutObject");
        Self {
            attempts_max: 1,
            ..call.carrying(body)
        }
    }

    /// Begins an upload; sent once, because an upload whose id was lost stays open until a
    /// lifecycle rule ends it.
    pub(crate) fn create_multipart_upload(bucket: &'a Bucket, key: &'a Key) -> Self {
        let call = Self::new(
            Side::Prepare,
            CreateMultipartUpload,
            Method::POST,
            bucket,
            Some(key),
        );
        Self {
            attempts_max: 1,
            expected: None,
            ..call.add_flag("uploads")
        }
    }

    /// Uploads a part, which no reader sees: safe to repeat.
    pub(crate) fn part(
        bucket: &'a Bucket,
        key: &'a Key,
        (upload, number): (&str, u32),
        body: BodyChunks,
    ) -> Self {
        let call = Self::new(Side::Prepare, UploadPart, Method::PUT, bucket, Some(key))
            .query("x-id", "UploadPart");
        let call = call
            .query("partNumber", &number.to_string())
            .query("uploadId", upload);
        call.carrying(body)
    }

    /// Returns the request for the first byte of what a HEAD is about; none for other requests.
    pub(super) fn of_first_byte(&self) -> Option<Self> {
        let get = Self {
            attempts_max: 1,
            method: Method::GET,
            ..self.clone()
        };
        // S3 takes no range beside the number of a part.
        let is_part = |expected: &ExpectedObject| matches!(expected.span, Span::UploadedPart);
        let has_part = self.expected.as_ref().is_some_and(is_part);
        (self.method == Method::HEAD).then(|| if has_part { get } else { get.bytes(FIRST_BYTE) })
    }

    /// Says whether a refusal leaves open which server sent it, and why. One for too many requests
    /// is not followed by another request.
    pub(super) fn wants_reason(&self, refusal: &S3Error) -> bool {
        let Some(ResponseInfo {
            status,
            is_own: false,
        }) = refusal.failure.answer
        else {
            return false;
        };
        ((400..500).contains(&status) || status == 501) && status != 429 && !self.leaves(refusal)
    }

    /// Says whether a refusal is a 404 that the caller proves itself.
    pub(super) fn leaves(&self, refusal: &S3Error) -> bool {
        self.leaves_404 && refusal.status() == Some(404)
    }

    /// Names the headers beyond a plain request, its checksums and conditions.
    pub(super) fn named_headers(&self) -> String {
        let is_plain = |name: &&str| {
            let plain = ["x-amz-meta-", "x-amz-checksum-", "x-amz-content-"];
            !name.starts_with("x-amz-") || plain.iter().any(|plain| name.starts_with(plain))
        };
        let names: Vec<&str> = self
            .headers
            .keys()
            .map(HeaderName::as_str)
            .filter(|name| !is_plain(name))
            .collect();
        names.join(", ")
    }

    fn new(
        side: Side,
        operation: Operation,
        method: Method,
        bucket: &'a Bucket,
        key: Option<&'a Key>,
    ) -> Self {
        Self {
            side,
            operation,
            timeout: REQUEST_TIMEOUT,
            attempts_max: ATTEMPTS_MAX,
            bucket,
            unwritable: None,
            body: None,
            method,
            key,
            query: String::new(),
            headers: HeaderMap::from_iter([(USER_AGENT, AGENT)]),
            expected: Some(ExpectedObject::default()),
            leaves_404: false,
        }
    }

    fn carrying(mut self, body: BodyChunks) -> Self {
        self.headers.insert(CONTENT_LENGTH, body.len().into());
        Self {
            body: Some(body),
            expected: None,
            ..self
        }
    }

    /// Leaves it to the caller to prove a 404.
    pub(crate) fn leaving_404(self) -> Self {
        Self {
            leaves_404: true,
            ..self
        }
    }

    /// Sets the time within which it has to be answered.
    pub(crate) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Requests one version.
    pub(crate) fn version(self, id: &str) -> Self {
        self.with_expected(|expected| expected.version = Some(id.to_owned()))
            .query("versionId", id)
    }

    /// Requests an object of this ETag, where it is known, and this size.
    pub(crate) fn identified(self, etag: Option<&ETag>, size_bytes: u64) -> Self {
        let call = self.header("if-match", etag.map(ETag::to_quoted).as_deref());
        call.with_expected(|expected| {
            expected.etag = etag.cloned();
            expected.size_bytes = Some(size_bytes);
        })
    }

    /// Requests some of the bytes; an empty object has no range to name.
    pub(crate) fn bytes(self, part: Part) -> Self {
        if part.len == 0 {
            return self;
        }
        self.with_expected(|expected| expected.span = Span::Bytes(part))
            .header("range", Some(&part.range()))
    }

    /// Requests one of the parts in which the object was uploaded.
    pub(crate) fn uploaded_part(self, number: u32) -> Self {
        self.with_expected(|expected| expected.span = Span::UploadedPart)
            .query("partNumber", &number.to_string())
    }

    fn with_expected(mut self, set: impl FnOnce(&mut ExpectedObject)) -> Self {
        if let Some(expected) = &mut self.expected {
            set(expected);
        }
        self
    }

    /// Says in which way an answer is not what was requested, if it is not.
    pub(super) fn mismatch(&self, head: &ResponseHead) -> Option<String> {
        self.expected.as_ref()?.mismatch(head)
    }

    /// Adds a header, if there is one.
    pub(crate) fn header(mut self, name: &str, value: Option<&str>) -> Self {
        let Some(value) = value else { return self };
        match (
            HeaderName::try_from(name),
            HeaderValue::from_bytes(value.as_bytes()),
        ) {
            (Ok(name), Ok(value)) => drop(self.headers.insert(name, value)),
            _ => self.unwritable = Some(name.to_owned()),
        }
        self
    }

    /// Adds headers, byte for byte.
    pub(crate) fn headers(mut self, all: HeaderMap) -> Self {
        self.headers.extend(all);
        self
    }

    /// Requests the checksums too.
    pub(crate) fn checksums(self) -> Self {
        self.header(CHECKSUM_MODE, Some("ENABLED"))
    }

    fn add_flag(mut self, name: &str) -> Self {
        self.query
            .push(if self.query.is_empty() { '?' } else { '&' });
        self.query.push_str(name);
        self
    }

    fn query(self, name: &str, value: &str) -> Self {
        let mut named = self.add_flag(name);
        named.query.push('=');
        named.query.extend(utf8_percent_encode(value, VALUE));
        named
    }

    /// Builds the HTTP request, to be signed.
    pub(super) fn request(&self, endpoint: &Endpoint) -> Result<Request<SdkBody>, BoxError> {
        let key = self.key.map_or("", Key::as_str);
        let mut uri = String::with_capacity(endpoint.url.len() + self.query.len() + 2 * key.len());
        uri.push_str(&endpoint.url);
        uri.push('/');
        uri.extend(utf8_percent_encode(key, PATH));
        uri.push_str(&self.query);
        let body = self.body.as_ref().map_or_else(SdkBody::empty, |body| {
            SdkBody::from_body_1_x(Outgoing::from(body))
        });
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(uri)
            .body(body)?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}
