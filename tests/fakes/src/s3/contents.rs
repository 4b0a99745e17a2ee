//! ListObjectsV2: what is current, without delete markers.

use s3s::dto::{ETag, ListObjectsV2Input, ListObjectsV2Output, Object as ListedObject, Timestamp};
use s3s::{S3Response, S3Result};

use super::Call;
use super::entry::Entry;
use super::events::form_encoded;
use super::refusal::not_implemented;
use super::state::State;
use super::times::whole_seconds;

// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
const PAGE_MAX: i32 = 1000;

/// Answers ListObjectsV2; the token is the last key of the page before.
pub(super) fn list(
    state: &mut State,
    _call: &Call,
    input: &ListObjectsV2Input,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    if input
        .delimiter
        .as_ref()
        .is_some_and(|delimiter| !delimiter.is_empty())
    {
        return Err(not_implemented(
            "the fake lists objects without a delimiter",
        ));
    }
    let encoded = input
        .encoding_type
        .as_ref()
        .is_some_and(|kind| kind.as_str() == "url");
    let shown = |key: &str| {
        if encoded {
            form_encoded(key)
        } else {
            key.to_owned()
        }
    };
    let after = input
        .continuation_token
        .as_deref()
        .or(input.start_after.as_deref())
        .unwrap_or_default();
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let max = usize::try_from(input.max_keys.unwrap_or(PAGE_MAX).clamp(0, PAGE_MAX)).unwrap_or(0);
    let bucket = state.bucket(&input.bucket)?;
    let mut found: Vec<(&String, &Entry)> = bucket
        .keys
        .iter()
        .filter(|(key, _)| key.as_str() > after && key.starts_with(prefix))
        .filter_map(|(key, history)| Some((key, history.entries.last()?.as_ref())))
        .filter(|(_, entry)| !entry.is_marker())
        .take(max + 1)
        .collect();
    let more = found.len() > max && max > 0;
    found.truncate(max);
    let output = ListObjectsV2Output {
        name: Some(input.bucket.clone()),
        prefix: Some(shown(prefix)),
        max_keys: i32::try_from(max).ok(),
        key_count: i32::try_from(found.len()).ok(),
        is_truncated: Some(more),
        continuation_token: input.continuation_token.clone(),
        next_continuation_token: found.last().filter(|_| more).map(|(key, _)| (*key).clone()),
        encoding_type: input.encoding_type.clone(),
        start_after: input.start_after.as_deref().map(shown),
        contents: Some(
            found
                .into_iter()
                .map(|(key, entry)| listed(shown(key), entry))
                .collect(),
        ),
        ..Default::default()
    };
    Ok(S3Response::new(output))
}

fn listed(key: String, entry: &Entry) -> ListedObject {
    let object = entry.object.as_ref();
    ListedObject {
        key: Some(key),
        e_tag: object.map(|object| ETag::Strong(object.etag.clone())),
        size: object.and_then(|object| i64::try_from(object.bytes.len()).ok()),
        last_modified: Some(Timestamp::from(whole_seconds(entry.last_modified))),
        storage_class: object.map(|object| object.storage_class.clone().into()),
        ..Default::default()
    }
}
