//! What users do to the source bucket: seeded operations on few keys, with contents that recur.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use fastrand::Rng;

use crate::sim::SOURCE;

/// One thing that a user does.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Writes an object in one piece.
    Put {
        key: String,
        body: Body,
        dress: Dress,
    },
    /// Begins an upload in parts of this size; it is completed after so many more operations.
    Upload {
        key: String,
        body: Body,
        part_bytes: usize,
        later: usize,
    },
    /// Copies what is current at one key to another.
    Copy { from: String, to: String },
    /// Deletes, so that a delete marker hides what was there.
    Mark { key: String },
    /// Deletes one version permanently: the n-th from the newest.
    Purge { key: String, nth: usize },
    /// Changes the tags of a version, the n-th object from the newest, or takes them all away.
    Tag {
        key: String,
        nth: usize,
        value: Option<u8>,
    },
}

/// What an object holds: a letter, so many times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Body {
    letter: u8,
    len: usize,
}

/// What an object carries beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dress {
    /// Nothing.
    Plain,
    /// System headers, some user metadata, tags.
    Rich,
    /// User metadata that leave room for a compact stamp only, told apart by a number.
    Full(u32),
}

/// What may happen in a workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) keys: usize,
    pub(crate) ops: usize,
    /// Versions are deleted permanently.
    pub(crate) purges: bool,
    /// Tags change after the write.
    pub(crate) tags: bool,
    /// Some objects are replicated in parts.
    pub(crate) large: bool,
    /// Some objects leave room for a compact stamp only.
    pub(crate) full: bool,
}

// The largest object that travels in one part:
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
const PART_BYTES: usize = 5 << 20;

// The smallest object that the daemons here replicate in parts: of their 64 MiB an eighth is a
// part.
const LARGE_BYTES: usize = (8 << 20) + 1;

// More than comes in one piece from a socket.
const MEDIUM_BYTES: usize = 100_000;

/// Draws a workload: each operation with the pause before it.
pub(crate) fn draw(rng: &mut Rng, shape: Shape) -> Vec<(Duration, Op)> {
    (0..shape.ops)
        .map(|_| (pause(rng), op(rng, shape)))
        .collect()
}

/// Mostly in quick succession, sometimes after minutes.
fn pause(rng: &mut Rng) -> Duration {
    match rng.u8(..10) {
        0..=5 => Duration::from_millis(rng.u64(..2_000)),
        6..=8 => Duration::from_millis(rng.u64(..30_000)),
        _ => Duration::from_secs(rng.u64(..600)),
    }
}

fn op(rng: &mut Rng, shape: Shape) -> Op {
    let key = key(rng, shape);
    match rng.u8(..20) {
        0..=8 => Op::Put {
            key,
            body: body(rng, shape),
            dress: dress(rng, shape),
        },
        9..=13 => Op::Mark { key },
        14 => upload(rng, shape, key),
        15 => Op::Copy {
            from: key.clone(),
            to: self::key(rng, shape),
        },
        16 | 17 if shape.purges => Op::Purge {
            key,
            nth: rng.usize(..3),
        },
        18 | 19 if shape.tags => tag(rng.u8(..4), rng, key),
        _ => Op::Put {
            key,
            body: body(rng, shape),
            dress: Dress::Plain,
        },
    }
}

/// Mostly what is current gets other tags. Drawn apart, so that what follows is as it was.
fn tag(value: u8, rng: &Rng, key: String) -> Op {
    let mut apart = Rng::with_seed(!rng.get_seed());
    let nth = [0, 0, 0, 1, 1, 2][apart.usize(..6)];
    Op::Tag {
        key,
        nth,
        value: (apart.u8(..6) > 0).then_some(value),
    }
}

/// The same content comes in one part and in two, as it also comes without an upload.
fn upload(rng: &mut Rng, shape: Shape, key: String) -> Op {
    let mut body = body(rng, shape);
    if shape.large && rng.bool() {
        body.len = LARGE_BYTES;
    }
    let part_bytes = [PART_BYTES, LARGE_BYTES][rng.usize(..2)];
    Op::Upload {
        key,
        body,
        part_bytes,
        later: rng.usize(..4),
    }
}

fn key(rng: &mut Rng, shape: Shape) -> String {
    // One of them is the beginning of another, and one needs every kind of escape.
    ["a", "a/b", "c d+e%20ü\"'"]
        .get(rng.usize(..shape.keys))
        .unwrap()
        .to_string()
}

fn body(rng: &mut Rng, shape: Shape) -> Body {
    let len = match rng.u8(..20) {
        0 => 0,
        1 if shape.large => LARGE_BYTES,
        2 if shape.large => PART_BYTES,
        3 => MEDIUM_BYTES,
        _ => 3,
    };
    Body {
        letter: b'a' + rng.u8(..3),
        len,
    }
}

fn dress(rng: &mut Rng, shape: Shape) -> Dress {
    match rng.u8(..6) {
        0 if shape.full => Dress::Full(rng.u32(..)),
        1 | 2 => Dress::Rich,
        _ => Dress::Plain,
    }
}

impl Op {
    /// Writes an object; a large one in two parts, and so large that it is replicated in parts.
    pub(crate) fn put(key: &str, body: Body, is_large: bool) -> Self {
        let key = key.to_owned();
        match is_large {
            true => Self::Upload {
                key,
                body: Body {
                    len: LARGE_BYTES,
                    ..body
                },
                part_bytes: PART_BYTES,
                later: 0,
            },
            false => Self::Put {
                key,
                body,
                dress: Dress::Plain,
            },
        }
    }
}

impl Body {
    /// Returns a small one; those of numbers that follow one another differ.
    pub(crate) fn numbered(number: usize) -> Self {
        let letter = (b'a'..=b'z').nth(number % 26).unwrap();
        Self { letter, len: 3 }
    }

    fn stream(self) -> ByteStream {
        ByteStream::from(vec![self.letter; self.len])
    }
}

/// A user at work on the source bucket.
#[derive(Debug)]
pub(crate) struct User {
    client: Client,
    /// Uploads begun and not completed yet, each with how many operations it still waits for.
    begun: Vec<(usize, Begun)>,
}

#[derive(Debug, Clone)]
struct Begun {
    key: String,
    upload: String,
    /// The parts, by their number.
    parts: Vec<CompletedPart>,
}

impl User {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            begun: Vec::new(),
        }
    }

    /// Does one thing, and completes the uploads whose time has come.
    pub(crate) async fn act(&mut self, op: &Op) {
        match op {
            Op::Put { key, body, dress } => self.put(key, *body, *dress).await,
            Op::Upload {
                key,
                body,
                part_bytes,
                later,
            } => {
                let begun = self.begin(key, *body, *part_bytes).await;
                self.begun.push((*later + 1, begun));
            }
            Op::Copy { from, to } => self.copy(from, to).await,
            Op::Mark { key } => {
                self.client
                    .delete_object()
                    .bucket(SOURCE)
                    .key(key)
                    .send()
                    .await
                    .unwrap();
            }
            Op::Purge { key, nth } => self.purge(key, *nth).await,
            Op::Tag { key, nth, value } => self.tag(key, *nth, *value).await,
        }
        self.begun
            .iter_mut()
            .for_each(|(left, _)| *left = left.saturating_sub(1));
        self.complete(|left| left == 0).await;
    }

    /// Completes what is left.
    pub(crate) async fn finish(&mut self) {
        self.complete(|_| true).await;
    }

    async fn put(&self, key: &str, body: Body, dress: Dress) {
        let put = self
            .client
            .put_object()
            .bucket(SOURCE)
            .key(key)
            .body(body.stream());
        let put = match dress {
            Dress::Plain => put,
            Dress::Rich => put
                .content_type("text/plain")
                .cache_control("max-age=3")
                .metadata("owner", "=?UTF-8?B?w7w=?=")
                .tagging("tier=gold&n=%2B"),
            Dress::Full(number) => {
                put.metadata("all", format!("{number:010}{}", "x".repeat(1_970)))
            }
        };
        put.send().await.unwrap();
    }

    async fn begin(&self, key: &str, body: Body, part_bytes: usize) -> Begun {
        let created = self
            .client
            .create_multipart_upload()
            .bucket(SOURCE)
            .key(key)
            .send()
            .await
            .unwrap();
        let upload = created.upload_id.unwrap();
        let mut parts = Vec::new();
        // An object without bytes has one part all the same.
        for from in (0..body.len.max(1)).step_by(part_bytes) {
            let len = part_bytes.min(body.len - from);
            let number = i32::try_from(parts.len()).unwrap() + 1;
            let part = self
                .client
                .upload_part()
                .bucket(SOURCE)
                .key(key)
                .upload_id(&upload)
                .part_number(number);
            let etag = part
                .body(Body { len, ..body }.stream())
                .send()
                .await
                .unwrap()
                .e_tag
                .unwrap();
            parts.push(
                CompletedPart::builder()
                    .part_number(number)
                    .e_tag(etag)
                    .build(),
            );
        }
        Begun {
            key: key.to_owned(),
            upload,
            parts,
        }
    }

    async fn complete(&mut self, is_due: impl Fn(usize) -> bool) {
        let due = self
            .begun
            .extract_if(.., |(left, _)| is_due(*left))
            .map(|(_, begun)| begun)
            .collect::<Vec<_>>();
        for Begun { key, upload, parts } in due {
            let parts = CompletedMultipartUpload::builder()
                .set_parts(Some(parts))
                .build();
            let complete = self
                .client
                .complete_multipart_upload()
                .bucket(SOURCE)
                .key(key)
                .upload_id(upload);
            complete.multipart_upload(parts).send().await.unwrap();
        }
    }

    /// Copies what is there; a key that shows nothing cannot be copied.
    async fn copy(&self, from: &str, to: &str) {
        let Ok(head) = self
            .client
            .head_object()
            .bucket(SOURCE)
            .key(from)
            .send()
            .await
        else {
            return;
        };
        let version = head.version_id.unwrap();
        // Of an object that nothing but its content tells apart there is only one.
        if head
            .metadata
            .is_some_and(|metadata| metadata.contains_key("all"))
        {
            return;
        }
        let from = percent_encoding::utf8_percent_encode(from, percent_encoding::NON_ALPHANUMERIC);
        let source = format!("{SOURCE}/{from}?versionId={version}");
        self.client
            .copy_object()
            .bucket(SOURCE)
            .key(to)
            .copy_source(source)
            .send()
            .await
            .unwrap();
    }

    async fn purge(&self, key: &str, nth: usize) {
        let list = self
            .client
            .list_object_versions()
            .bucket(SOURCE)
            .prefix(key)
            .send()
            .await
            .unwrap();
        let versions = list
            .versions()
            .iter()
            .map(|version| (version.key(), version.version_id()));
        let markers = list
            .delete_markers()
            .iter()
            .map(|marker| (marker.key(), marker.version_id()));
        let of_key = versions
            .chain(markers)
            .filter(|(found, _)| *found == Some(key));
        let Some(id) = of_key.filter_map(|(_, id)| id).nth(nth) else {
            return;
        };
        self.client
            .delete_object()
            .bucket(SOURCE)
            .key(key)
            .version_id(id)
            .send()
            .await
            .unwrap();
    }

    async fn tag(&self, key: &str, nth: usize, value: Option<u8>) {
        let list = self
            .client
            .list_object_versions()
            .bucket(SOURCE)
            .prefix(key)
            .send()
            .await
            .unwrap();
        let of_key = list
            .versions()
            .iter()
            .filter(|version| version.key() == Some(key));
        let Some(id) = of_key.filter_map(|version| version.version_id()).nth(nth) else {
            return;
        };
        let Some(value) = value else {
            self.client
                .delete_object_tagging()
                .bucket(SOURCE)
                .key(key)
                .version_id(id)
                .send()
                .await
                .unwrap();
            return;
        };
        let tag = aws_sdk_s3::types::Tag::builder()
            .key("tier")
            .value(value.to_string())
            .build()
            .unwrap();
        let tagging = aws_sdk_s3::types::Tagging::builder()
            .tag_set(tag)
            .build()
            .unwrap();
        let put = self
            .client
            .put_object_tagging()
            .bucket(SOURCE)
            .key(key)
            .version_id(id);
        put.tagging(tagging).send().await.unwrap();
    }
}
