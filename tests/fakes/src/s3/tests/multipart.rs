//! Multipart uploads, and which of them is on top.

use super::*;
use crate::s3::traits::Order;

async fn uploaded(fake: &Fake, path: &str, body: &'static str) -> (String, String) {
    let upload = begin(fake, path, &[]).await;
    let etag = part(fake, path, &upload, 1, body).await;
    (upload, etag)
}

#[tokio::test(start_paused = true)]
async fn parts_become_one_object_with_the_etag_of_parts() {
    let fake = endpoint();
    let path = "/versioned/key";
    let upload = begin(
        &fake,
        path,
        &[("x-amz-meta-a", "1"), ("x-amz-tagging", "t=1")],
    )
    .await;
    let first = part(&fake, path, &upload, 1, "Hello ").await;
    let second = part(&fake, path, &upload, 2, "world").await;
    let done = complete(&fake, path, &upload, &[(1, &first), (2, &second)], &[]).await;
    assert_eq!(
        done.element("ETag"),
        "\"71c4d3d97b05c63916a0bd1840706778-2\""
    );
    let read = get(&fake, path).await;
    assert_eq!(
        (
            read.text.as_str(),
            read.header("x-amz-meta-a"),
            read.version()
        ),
        ("Hello world", "1", done.version())
    );
    let second = get(&fake, "/versioned/key?partNumber=2").await;
    assert_eq!((second.status, second.text.as_str()), (206, "world"));
    assert_eq!(second.header("x-amz-mp-parts-count"), "2");
    assert_eq!(
        get(&fake, "/versioned/key?partNumber=3").await.outcome(),
        "416 InvalidRange"
    );
}

#[tokio::test(start_paused = true)]
async fn of_uploads_and_puts_the_one_begun_last_is_current() {
    let fake = endpoint();
    let (first, etag) = uploaded(&fake, "/versioned/key", "first").await;
    pass(60).await;
    let (second, etag2) = uploaded(&fake, "/versioned/key", "second").await;
    pass(60).await;
    complete(&fake, "/versioned/key", &second, &[(1, &etag2)], &[]).await;
    complete(&fake, "/versioned/key", &first, &[(1, &etag)], &[]).await;
    assert_eq!(contents(&fake, "versioned", "key"), ["first", "second"]);
    assert_eq!(
        head(&fake, "/versioned/key").await.header("last-modified"),
        "Thu, 01 Jan 2026 00:01:00 GMT"
    );
    let (third, etag) = uploaded(&fake, "/versioned/key", "third").await;
    put(&fake, "/versioned/key", "put").await;
    delete(&fake, "/versioned/key").await;
    complete(&fake, "/versioned/key", &third, &[(1, &etag)], &[]).await;
    assert_eq!(
        contents(&fake, "versioned", "key"),
        ["first", "second", "third", "put", "-"]
    );
    assert_eq!(get(&fake, "/versioned/key").await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_order_by_completion() {
    let fake = endpoint();
    fake.set_traits(Traits {
        order: Order::LastCompleted,
        ..fake.traits()
    });
    let (upload, etag) = uploaded(&fake, "/versioned/key", "upload").await;
    pass(60).await;
    put(&fake, "/versioned/key", "put").await;
    complete(&fake, "/versioned/key", &upload, &[(1, &etag)], &[]).await;
    assert_eq!(contents(&fake, "versioned", "key"), ["put", "upload"]);
    assert_eq!(
        head(&fake, "/versioned/key").await.header("last-modified"),
        "Thu, 01 Jan 2026 00:01:00 GMT"
    );
}

#[tokio::test(start_paused = true)]
async fn without_versions_an_upload_that_was_overtaken_is_never_seen() {
    let fake = endpoint();
    let (upload, etag) = uploaded(&fake, "/suspended/key", "upload").await;
    put(&fake, "/suspended/key", "put").await;
    let done = complete(&fake, "/suspended/key", &upload, &[(1, &etag)], &[]).await;
    assert_eq!((done.status, done.version().as_str()), (200, "null"));
    assert_eq!(contents(&fake, "suspended", "key"), ["put"]);
}

#[tokio::test(start_paused = true)]
async fn the_list_of_parts_must_be_what_was_uploaded() {
    let fake = endpoint();
    let path = "/versioned/key";
    let upload = begin(&fake, path, &[]).await;
    let one = part(&fake, path, &upload, 1, "12").await;
    let two = part(&fake, path, &upload, 2, "345").await;
    for (parts, outcome) in [
        (
            &[(2, two.as_str()), (1, one.as_str())][..],
            "400 InvalidPartOrder",
        ),
        (&[(1, two.as_str())], "400 InvalidPart"),
        (&[(3, one.as_str())], "400 InvalidPart"),
        (&[], "400 MalformedXML"),
        (
            &[(1, one.as_str()), (2, two.as_str())],
            "400 EntityTooSmall",
        ),
        (&[(2, two.as_str())], "200"),
        (&[(2, two.as_str())], "404 NoSuchUpload"),
    ] {
        assert_eq!(
            complete(&fake, path, &upload, parts, &[]).await.outcome(),
            outcome,
            "{parts:?}"
        );
    }
    assert_eq!(contents(&fake, "versioned", "key"), ["345"]);
}

#[tokio::test(start_paused = true)]
async fn an_aborted_upload_is_gone_and_both_lists_tell() {
    let fake = endpoint();
    let upload = begin(&fake, "/versioned/key", &[]).await;
    let other = begin(&fake, "/versioned/other", &[]).await;
    part(&fake, "/versioned/key", &upload, 1, "123").await;
    part(&fake, "/versioned/key", &upload, 7, "45").await;
    let listed = get(
        &fake,
        &format!("/versioned/key?uploadId={upload}&max-parts=1"),
    )
    .await;
    assert_eq!(
        (listed.elements("PartNumber"), listed.element("IsTruncated")),
        (vec!["1"], "true")
    );
    let listed = get(
        &fake,
        &format!("/versioned/key?uploadId={upload}&part-number-marker=1"),
    )
    .await;
    assert_eq!(
        (listed.elements("PartNumber"), listed.element("Size")),
        (vec!["7"], "2")
    );
    assert_eq!(
        get(&fake, "/versioned?uploads").await.elements("UploadId"),
        [upload.as_str(), other.as_str()]
    );
    assert_eq!(
        get(&fake, "/versioned?uploads&prefix=ot")
            .await
            .elements("UploadId"),
        [other.as_str()]
    );
    assert_eq!(
        get(&fake, "/versioned?uploads&key-marker=key")
            .await
            .elements("UploadId"),
        [other.as_str()]
    );
    let path = format!("/versioned/key?uploadId={upload}");
    assert_eq!(delete(&fake, &path).await.outcome(), "204");
    assert_eq!(delete(&fake, &path).await.outcome(), "404 NoSuchUpload");
    assert_eq!(
        get(&fake, "/versioned?uploads").await.elements("UploadId"),
        [other.as_str()]
    );
    fake.set_traits(Traits {
        aborts_twice: true,
        ..fake.traits()
    });
    assert_eq!(delete(&fake, &path).await.outcome(), "204");
    let late = send(
        &fake,
        &format!("PUT /versioned/key?partNumber=1&uploadId={upload}"),
        &[],
        "x",
    )
    .await;
    assert_eq!(late.outcome(), "404 NoSuchUpload");
}

#[tokio::test(start_paused = true)]
async fn a_part_can_be_copied_from_an_object() {
    let fake = endpoint();
    put(&fake, "/versioned/from", "0123456789").await;
    let upload = begin(&fake, "/versioned/key", &[]).await;
    let headers = [
        ("x-amz-copy-source", "/versioned/from"),
        ("x-amz-copy-source-range", "bytes=2-5"),
    ];
    let copied = send(
        &fake,
        &format!("PUT /versioned/key?partNumber=1&uploadId={upload}"),
        &headers,
        "",
    )
    .await;
    let etag = copied.element("ETag").to_owned();
    complete(&fake, "/versioned/key", &upload, &[(1, &etag)], &[]).await;
    assert_eq!(get(&fake, "/versioned/key").await.text, "2345");
}

#[tokio::test(start_paused = true)]
async fn the_record_tells_who_began_and_who_ended_each_upload() {
    let fake = endpoint();
    let begun = send_as(&fake, "ann", "POST /versioned/key?uploads", &[], "").await;
    let id = begun.element("UploadId").to_owned();
    pass(5).await;
    let open = fake.open_uploads("versioned");
    assert_eq!(
        (
            open[0].by.as_str(),
            open[0].key.as_str(),
            &open[0].upload_id
        ),
        ("ann", "key", &id)
    );
    send_as(
        &fake,
        "bob",
        &format!("DELETE /versioned/key?uploadId={id}"),
        &[],
        "",
    )
    .await;
    assert!(fake.open_uploads("versioned").is_empty());
    let ended = fake.uploads_ended("versioned").remove(0);
    assert_eq!(
        (
            ended.begun_by.as_str(),
            ended.ended_by.as_str(),
            ended.entry
        ),
        ("ann", "bob", None)
    );
    let (upload, etag) = uploaded(&fake, "/versioned/key", "x").await;
    complete(&fake, "/versioned/key", &upload, &[(1, &etag)], &[]).await;
    let entry = fake.uploads_ended("versioned")[1].entry.unwrap();
    assert_eq!(content(&fake.entry(entry).unwrap()), "x");
}

#[tokio::test(start_paused = true)]
async fn large_objects_of_one_content_are_held_once() {
    let fake = endpoint();
    let body: &'static str = "x".repeat(1 << 20).leak();
    // From another place in memory than the part.
    send(&fake, "PUT /versioned/put", &[], body.to_owned()).await;
    fake.repeat("versioned", "put", std::iter::once("repeated".to_owned()));
    let (upload, etag) = uploaded(&fake, "/versioned/uploaded", body).await;
    complete(&fake, "/versioned/uploaded", &upload, &[(1, &etag)], &[]).await;
    let held = |key| {
        fake.history("versioned", key)[0]
            .object
            .as_ref()
            .unwrap()
            .bytes
            .as_ptr()
    };
    assert_eq!([held("repeated"), held("uploaded")], [held("put"); 2]);
}
