//! Where a case plays: a store with buckets of each kind, and a corner in them that no other case
//! uses.

mod fifo;
mod keys;
mod queue;

use std::sync::{Arc, Mutex};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    BucketVersioningStatus, CompletedMultipartUpload, CompletedPart, EncodingType,
    VersioningConfiguration,
};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::AfterDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

use crate::stores::Way;

pub(crate) use fifo::{system, words};
pub(crate) use keys::KeyState;
pub(crate) use queue::{Queue, receipt, said};

/// A store to be asked.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) store: &'static str,
    pub(crate) s3: aws_sdk_s3::Client,
    pub(crate) way: Way,
    /// Keeps versions.
    pub(crate) bucket: String,
    /// Never kept any.
    pub(crate) unversioned: String,
    /// Keeps versions, and locks objects.
    pub(crate) locked: String,
    corner: String,
}

/// What a write made.
pub(crate) struct Written {
    pub(crate) version: String,
    pub(crate) etag: String,
}

impl Ground {
    /// Makes the buckets.
    pub(crate) async fn prepare(store: &'static str, way: Way) -> Self {
        let name = |kind: &str| format!("conformance-{}-{kind}", std::process::id());
        let ground = Self {
            store,
            s3: way.s3(),
            way,
            bucket: name("versioned"),
            unversioned: name("unversioned"),
            locked: name("locked"),
            corner: String::new(),
        };
        for bucket in [&ground.bucket, &ground.unversioned] {
            ground
                .s3
                .create_bucket()
                .bucket(bucket)
                .send()
                .await
                .unwrap();
        }
        ground
            .set_versioning(&ground.bucket, BucketVersioningStatus::Enabled)
            .await;
        let lockable = ground
            .s3
            .create_bucket()
            .bucket(&ground.locked)
            .object_lock_enabled_for_bucket(true);
        lockable.send().await.unwrap();
        ground
    }

    /// The corner of a case.
    pub(crate) fn of_case(&self, number: usize) -> Self {
        Self {
            corner: format!("case-{number}/"),
            ..self.clone()
        }
    }

    /// A name of the case's own.
    fn own_name(&self) -> String {
        format!("{}-{}", self.bucket, self.corner.trim_matches('/'))
    }

    /// A bucket of the case's own.
    pub(crate) async fn own_bucket(&self) -> String {
        let name = self.own_name();
        self.s3.create_bucket().bucket(&name).send().await.unwrap();
        name
    }

    pub(crate) async fn set_versioning(&self, bucket: &str, status: BucketVersioningStatus) {
        let configuration = VersioningConfiguration::builder().status(status).build();
        let request = self
            .s3
            .put_bucket_versioning()
            .bucket(bucket)
            .versioning_configuration(configuration);
        request.send().await.unwrap();
    }

    /// The key of this name in the case's corner.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.corner)
    }

    /// Puts so many bytes, which tell the object from others.
    pub(crate) async fn put(&self, name: &str, bytes: usize) -> Written {
        let request = self
            .s3
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(name));
        let answer = request.body(content(bytes)).send().await.unwrap();
        Written {
            version: answer.version_id.clone().unwrap_or_default(),
            etag: answer.e_tag.clone().unwrap_or_default(),
        }
    }

    /// Writes a delete marker.
    pub(crate) async fn mark(&self, name: &str) -> String {
        let answer = self
            .s3
            .delete_object()
            .bucket(&self.bucket)
            .key(self.key(name))
            .send()
            .await
            .unwrap();
        answer.version_id.unwrap_or_default()
    }

    /// Keys in each state that a condition can meet: `nothing`, `object` of one byte, `marker` over
    /// it.
    pub(crate) async fn three_states(&self) -> Written {
        self.put("marker", 1).await;
        self.mark("marker").await;
        self.put("object", 1).await
    }

    /// Begins an upload.
    pub(crate) async fn begin(&self, name: &str) -> String {
        let request = self
            .s3
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(name));
        request.send().await.unwrap().upload_id.unwrap()
    }

    /// Uploads a part of so many bytes.
    pub(crate) async fn part(
        &self,
        name: &str,
        upload: &str,
        number: i32,
        bytes: usize,
    ) -> CompletedPart {
        let request = self
            .s3
            .upload_part()
            .bucket(&self.bucket)
            .key(self.key(name));
        let request = request
            .upload_id(upload)
            .part_number(number)
            .body(content(bytes));
        let etag = request.send().await.unwrap().e_tag.unwrap();
        CompletedPart::builder()
            .part_number(number)
            .e_tag(etag)
            .build()
    }

    /// Begins an upload of one part.
    pub(crate) async fn upload(
        &self,
        name: &str,
        bytes: usize,
    ) -> (String, CompletedMultipartUpload) {
        let upload = self.begin(name).await;
        let part = self.part(name, &upload, 1, bytes).await;
        (
            upload,
            CompletedMultipartUpload::builder().parts(part).build(),
        )
    }

    /// Completes an upload without a condition.
    pub(crate) async fn complete(
        &self,
        name: &str,
        (upload, parts): (String, CompletedMultipartUpload),
    ) {
        let request = self
            .s3
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(name));
        request
            .upload_id(upload)
            .multipart_upload(parts)
            .send()
            .await
            .unwrap();
    }

    /// The history of a key, newest first: sizes, and a dash for each marker.
    pub(crate) async fn history(&self, name: &str) -> String {
        let page = self
            .page(&self.bucket, &self.key(name), &Page::default())
            .await;
        page.iter()
            .map(|entry| entry.what.clone())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// What is current: its size, a dash for a marker, or nothing.
    pub(crate) async fn current(&self, name: &str) -> String {
        let head = self
            .s3
            .head_object()
            .bucket(&self.bucket)
            .key(self.key(name))
            .send()
            .await;
        head.map_or("-".to_owned(), |head| {
            head.content_length.unwrap_or(0).to_string()
        })
    }

    /// Entries below a prefix, in the order of the answer's text.
    pub(crate) async fn page(&self, bucket: &str, prefix: &str, page: &Page) -> Vec<Entry> {
        let text = self.page_text(bucket, prefix, page).await;
        let marked = text
            .replace("<Version>", "\u{1}v")
            .replace("<DeleteMarker>", "\u{1}m");
        let entry = |text: &str| Entry {
            what: if text.starts_with('v') {
                element(text, "Size")
            } else {
                "-".to_owned()
            },
            key: element(text, "Key"),
            is_latest: element(text, "IsLatest") == "true",
        };
        marked.split('\u{1}').skip(1).map(entry).collect()
    }

    pub(crate) async fn page_text(&self, bucket: &str, prefix: &str, page: &Page) -> String {
        let capture = Capture::default();
        let request = self
            .s3
            .list_object_versions()
            .bucket(bucket)
            .prefix(prefix)
            .set_max_keys(page.max);
        let request = request.set_key_marker(page.from.clone().map(|from| from.0));
        let request = request.set_version_id_marker(page.from.clone().map(|from| from.1));
        let request = request.set_encoding_type(page.encoded.then_some(EncodingType::Url));
        // The SDK may stumble over a text that is not XML; the text is there all the same.
        drop(
            request
                .customize()
                .interceptor(capture.clone())
                .send()
                .await,
        );
        let text = capture.text.lock().unwrap().clone();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Which page of a list.
#[derive(Default)]
pub(crate) struct Page {
    pub(crate) max: Option<i32>,
    pub(crate) from: Option<(String, String)>,
    pub(crate) encoded: bool,
}

/// An entry of a list.
pub(crate) struct Entry {
    /// Its size, or a dash for a marker.
    pub(crate) what: String,
    pub(crate) key: String,
    pub(crate) is_latest: bool,
}

/// A body of so many bytes.
pub(crate) fn content(bytes: usize) -> ByteStream {
    ByteStream::from(vec![b'x'; bytes])
}

/// The text of an element.
pub(crate) fn element(text: &str, name: &str) -> String {
    let rest = text.split_once(&format!("<{name}>"));
    rest.and_then(|(_, rest)| rest.split_once("</"))
        .map_or(String::new(), |(text, _)| text.to_owned())
}

/// Keeps the text of an answer: the SDK parts versions from markers and loses their order.
#[derive(Debug, Clone, Default)]
struct Capture {
    text: Arc<Mutex<Vec<u8>>>,
}

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for Capture {
    fn name(&self) -> &'static str {
        "Capture"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *self.text.lock().unwrap() = context
            .response()
            .body()
            .bytes()
            .unwrap_or_default()
            .to_vec();
        Ok(())
    }
}
