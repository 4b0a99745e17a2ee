//! Objects as they were put, read whole and in ranges.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_was_put_comes_back_with_all_that_came_with_it() {
    let fake = endpoint();
    let sent = [
        ("content-type", "text/x-poem"),
        ("cache-control", "no-store"),
        ("content-disposition", "attachment"),
        ("content-encoding", "identity"),
        ("content-language", "la"),
        ("expires", "never, they say"),
        ("x-amz-website-redirect-location", "/elsewhere"),
        ("x-amz-meta-author", "Catullus"),
        ("x-amz-storage-class", "STANDARD_IA"),
    ];
    let etag = send(&fake, "PUT /versioned/key", &sent, "odi et amo")
        .await
        .header("etag")
        .to_owned();
    assert_eq!(etag, "\"7489903b323903737664d46d20a3a5f6\"");
    for answer in [
        get(&fake, "/versioned/key").await,
        head(&fake, "/versioned/key").await,
    ] {
        assert_eq!(answer.status, 200);
        for (name, value) in sent {
            assert_eq!(answer.header(name), value, "{name}");
        }
        assert_eq!(answer.header("etag"), etag);
        assert_eq!(answer.header("content-length"), "10");
        assert_eq!(
            answer.header("last-modified"),
            "Thu, 01 Jan 2026 00:00:00 GMT"
        );
    }
    assert_eq!(get(&fake, "/versioned/key").await.text, "odi et amo");
    assert_eq!(head(&fake, "/versioned/key").await.text, "");
}

#[tokio::test(start_paused = true)]
async fn an_object_without_a_type_has_the_one_of_s3() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "x").await;
    let answer = head(&fake, "/versioned/key").await;
    assert_eq!(answer.header("content-type"), "binary/octet-stream");
    assert_eq!(answer.header("x-amz-storage-class"), "");
    assert_eq!(answer.header("x-amz-server-side-encryption"), "AES256");
}

#[tokio::test(start_paused = true)]
async fn the_date_is_that_of_the_fakes_clock() {
    let fake = endpoint();
    pass(3600).await;
    assert_eq!(
        get(&fake, "/versioned/key").await.header("date"),
        "Thu, 01 Jan 2026 01:00:00 GMT"
    );
}

#[tokio::test(start_paused = true)]
async fn ranges_are_parts_of_the_object() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "0123456789").await;
    for (range, text, shown) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
        ("bytes=8-99", "89", "bytes 8-9/10"),
    ] {
        let answer = send(&fake, "GET /versioned/key", &[("range", range)], "").await;
        assert_eq!(
            (
                answer.status,
                answer.text.as_str(),
                answer.header("content-range")
            ),
            (206, text, shown),
            "{range}"
        );
    }
    let answer = send(&fake, "HEAD /versioned/key", &[("range", "bytes=0-0")], "").await;
    assert_eq!((answer.status, answer.header("content-length")), (206, "1"));
    let answer = send(&fake, "GET /versioned/key", &[("range", "bytes=10-")], "").await;
    assert_eq!(answer.outcome(), "416 InvalidRange");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_named_precisely() {
    let fake = endpoint();
    let nowhere = "/versioned/key?versionId=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    assert_eq!(
        get(&fake, "/versioned/key").await.outcome(),
        "404 NoSuchKey"
    );
    assert_eq!(get(&fake, nowhere).await.outcome(), "404 NoSuchVersion");
    assert_eq!(
        get(&fake, "/versioned/key?versionId=x").await.outcome(),
        "400 InvalidArgument"
    );
    assert_eq!(
        get(&fake, "/another/key").await.outcome(),
        "404 NoSuchBucket"
    );
    assert_eq!(
        put(&fake, "/another/key", "x").await.outcome(),
        "404 NoSuchBucket"
    );
    assert_eq!(head(&fake, "/versioned/key").await.outcome(), "404");
}

#[tokio::test(start_paused = true)]
async fn an_archived_object_is_not_read() {
    let fake = endpoint();
    send(
        &fake,
        "PUT /versioned/key",
        &[("x-amz-storage-class", "GLACIER")],
        "x",
    )
    .await;
    assert_eq!(
        get(&fake, "/versioned/key").await.outcome(),
        "403 InvalidObjectState"
    );
    assert_eq!(head(&fake, "/versioned/key").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn too_much_user_metadata_is_refused() {
    let fake = endpoint();
    let (fits, over) = ("x".repeat(2047), "x".repeat(2048));
    let answer = send(&fake, "PUT /versioned/key", &[("x-amz-meta-a", &fits)], "").await;
    assert_eq!(answer.status, 200);
    let answer = send(&fake, "PUT /versioned/key", &[("x-amz-meta-a", &over)], "").await;
    assert_eq!(answer.outcome(), "400 MetadataTooLarge");
}

#[tokio::test(start_paused = true)]
async fn a_copy_keeps_metadata_and_tags_and_nothing_else() {
    let fake = endpoint();
    let sent = [
        ("x-amz-meta-a", "1"),
        ("x-amz-tagging", "t=1"),
        ("x-amz-storage-class", "STANDARD_IA"),
    ];
    let version = send(&fake, "PUT /versioned/from", &sent, "x")
        .await
        .version();
    put(&fake, "/versioned/from", "newer").await;
    let from = format!("/versioned/from?versionId={version}");
    let answer = send(
        &fake,
        "PUT /unversioned/to",
        &[("x-amz-copy-source", &from)],
        "",
    )
    .await;
    assert_eq!(
        (answer.status, answer.header("x-amz-copy-source-version-id")),
        (200, version.as_str())
    );
    assert_eq!(
        answer.element("ETag"),
        "\"9dd4e461268c8034f5c8564e155c67a6\""
    );
    let copy = get(&fake, "/unversioned/to").await;
    assert_eq!(
        (
            copy.text.as_str(),
            copy.header("x-amz-meta-a"),
            copy.header("x-amz-tagging-count")
        ),
        ("x", "1", "1")
    );
    assert_eq!(copy.header("x-amz-storage-class"), "");
}

#[tokio::test(start_paused = true)]
async fn a_copy_replaces_what_it_is_told_to() {
    let fake = endpoint();
    let sent = [("x-amz-meta-a", "1"), ("x-amz-tagging", "t=1")];
    send(&fake, "PUT /versioned/key", &sent, "x").await;
    let source = ("x-amz-copy-source", "/versioned/key");
    assert_eq!(
        send(&fake, "PUT /versioned/key", &[source], "")
            .await
            .outcome(),
        "400 InvalidRequest"
    );
    let directives = [
        source,
        ("x-amz-metadata-directive", "REPLACE"),
        ("x-amz-tagging-directive", "REPLACE"),
    ];
    let headers = [&directives[..], &[("x-amz-meta-b", "2")]].concat();
    assert_eq!(
        send(&fake, "PUT /versioned/key", &headers, "").await.status,
        200
    );
    let copy = head(&fake, "/versioned/key").await;
    let seen = [
        copy.header("x-amz-meta-a"),
        copy.header("x-amz-meta-b"),
        copy.header("x-amz-tagging-count"),
    ];
    assert_eq!(seen, ["", "2", ""]);
    assert_eq!(contents(&fake, "versioned", "key"), ["x", "x"]);
}
