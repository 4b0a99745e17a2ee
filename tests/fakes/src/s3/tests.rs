//! Behaviour by behaviour, in plain requests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};

use super::Fake;
use super::entry::{Entry, Versioning};
use super::traits::Traits;
use crate::clock::Clock;

mod attributes;
mod checksums;
mod conditions;
mod encryption;
mod events;
mod listing;
mod multipart;
mod objects;
mod records;
mod requests;
mod versioning;

/// The start of 2026.
const START: u64 = 1_767_225_600;

/// An endpoint with a bucket of each kind, named after it.
fn endpoint() -> Fake {
    let fake = Fake::new(Clock::starting_at_unix(START), 7);
    fake.create_bucket("versioned", Versioning::Enabled);
    fake.create_bucket("suspended", Versioning::Suspended);
    fake.create_bucket("unversioned", Versioning::Unversioned);
    fake.set_traits(Traits {
        part_bytes_min: 3,
        ..Traits::aws()
    });
    fake
}

/// An answer, taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn version(&self) -> String {
        assert!(self.status < 300, "{self:?}");
        self.header("x-amz-version-id").to_owned()
    }

    /// The text of the first element of this name.
    fn element(&self, name: &str) -> &str {
        self.elements(name).first().copied().unwrap_or_default()
    }

    fn elements(&self, name: &str) -> Vec<&str> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let rest = self.text.split(&open).skip(1);
        rest.map(|rest| rest.split(&close).next().unwrap())
            .collect()
    }

    /// Status and code, as in `412 PreconditionFailed`.
    fn outcome(&self) -> String {
        format!("{} {}", self.status, self.element("Code"))
            .trim()
            .to_owned()
    }
}

async fn send(fake: &Fake, line: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    send_as(fake, "tester", line, headers, body).await
}

/// Sends a request whose first line is like `PUT /bucket/key`.
async fn send_as(
    fake: &Fake,
    who: &str,
    line: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "s3.test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, body) = fake
        .call(request.body(body.into()).unwrap(), who)
        .await
        .into_parts();
    // Quotes may be escaped or not, which is the same.
    let text = String::from_utf8_lossy(&body).replace("&quot;", "\"");
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        text,
    }
}

async fn get(fake: &Fake, path: &str) -> Answer {
    send(fake, &format!("GET {path}"), &[], "").await
}

async fn head(fake: &Fake, path: &str) -> Answer {
    send(fake, &format!("HEAD {path}"), &[], "").await
}

async fn put(fake: &Fake, path: &str, body: &'static str) -> Answer {
    send(fake, &format!("PUT {path}"), &[], body).await
}

async fn delete(fake: &Fake, path: &str) -> Answer {
    send(fake, &format!("DELETE {path}"), &[], "").await
}

/// Begins an upload and returns its id.
async fn begin(fake: &Fake, path: &str, headers: &[(&str, &str)]) -> String {
    let answer = send(fake, &format!("POST {path}?uploads"), headers, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.element("UploadId").to_owned()
}

/// Uploads a part and returns its ETag.
async fn part(fake: &Fake, path: &str, upload: &str, number: u32, body: &'static str) -> String {
    let answer = send(
        fake,
        &format!("PUT {path}?partNumber={number}&uploadId={upload}"),
        &[],
        body,
    )
    .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.header("etag").to_owned()
}

/// Completes an upload of these parts.
async fn complete(
    fake: &Fake,
    path: &str,
    upload: &str,
    parts: &[(u32, &str)],
    headers: &[(&str, &str)],
) -> Answer {
    let listed: String = parts
        .iter()
        .map(|(number, etag)| {
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
        })
        .collect();
    let body = format!("<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>");
    send(
        fake,
        &format!("POST {path}?uploadId={upload}"),
        headers,
        body,
    )
    .await
}

/// The contents of a key, oldest first; a marker is a dash.
fn contents(fake: &Fake, bucket: &str, key: &str) -> Vec<String> {
    fake.history(bucket, key)
        .iter()
        .map(|entry| content(entry))
        .collect()
}

fn content(entry: &Entry) -> String {
    let object = entry.object.as_ref();
    object.map_or("-".to_owned(), |object| {
        String::from_utf8_lossy(&object.bytes).into_owned()
    })
}

/// Collects what a bucket's notifications say.
fn listen(fake: &Fake, bucket: &str) -> Arc<Mutex<Vec<serde_json::Value>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let sink = move |text: String| {
        let message: serde_json::Value = serde_json::from_str(&text).unwrap();
        ear.lock().unwrap().push(message["Records"][0].clone());
    };
    fake.notify(bucket, Arc::new(sink));
    heard
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}
