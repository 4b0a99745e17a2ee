//! What a checker can see.

use super::*;

#[tokio::test(start_paused = true)]
async fn every_state_that_a_key_ever_showed_is_recorded_with_who_and_why() {
    let fake = endpoint();
    let first = send_as(&fake, "ann", "PUT /versioned/key", &[], "1")
        .await
        .version();
    pass(10).await;
    send_as(
        &fake,
        "bob",
        "PUT /versioned/key",
        &[("x-amz-meta-a", "b")],
        "2",
    )
    .await;
    let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>";
    send_as(&fake, "ann", "PUT /versioned/key?tagging", &[], tags).await;
    send_as(&fake, "bob", "DELETE /versioned/key", &[], "").await;
    send_as(
        &fake,
        "bob",
        &format!("DELETE /versioned/key?versionId={first}"),
        &[],
        "",
    )
    .await;
    put(&fake, "/versioned/other", "x").await;
    let shown = fake.shown("versioned", "key");
    let seen: Vec<String> = shown
        .iter()
        .map(|shown| {
            format!(
                "{} {} {}",
                shown.caller,
                shown.cause,
                shown.current.as_deref().map_or_else(String::new, content)
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            "ann PutObject 1",
            "bob PutObject 2",
            "ann PutObjectTagging 2",
            "bob DeleteObject -",
            "bob DeleteObject -"
        ]
    );
    assert_eq!(
        shown[1].at.duration_since(shown[0].at).unwrap(),
        Duration::from_secs(10)
    );
    let tags_at = |at: usize| {
        shown[at]
            .current
            .as_ref()
            .unwrap()
            .object
            .as_ref()
            .unwrap()
            .tags
            .len()
    };
    assert_eq!(
        (tags_at(1), tags_at(2)),
        (0, 1),
        "a state is as it was then"
    );
    assert_eq!(
        shown[1]
            .current
            .as_ref()
            .unwrap()
            .object
            .as_ref()
            .unwrap()
            .user("a"),
        Some("b")
    );
    assert_eq!(fake.keys("versioned"), ["key", "other"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_can_still_be_looked_at() {
    let fake = endpoint();
    put(&fake, "/unversioned/key", "x").await;
    let id = fake.history("unversioned", "key")[0].id;
    delete(&fake, "/unversioned/key").await;
    assert!(fake.keys("unversioned").is_empty());
    assert!(fake.shown("unversioned", "key")[1].current.is_none());
    assert_eq!(content(&fake.entry(id).unwrap()), "x");
    assert!(fake.entry(id + 1).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_lands_below_shows_what_was_there_before() {
    let fake = endpoint();
    let upload = begin(&fake, "/versioned/key", &[]).await;
    let etag = part(&fake, "/versioned/key", &upload, 1, "below").await;
    put(&fake, "/versioned/key", "above").await;
    complete(&fake, "/versioned/key", &upload, &[(1, &etag)], &[]).await;
    let shown = fake.shown("versioned", "key");
    assert_eq!(shown.len(), 2);
    assert_eq!(
        (shown[1].cause, content(shown[1].current.as_ref().unwrap())),
        ("CompleteMultipartUpload", "above".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn reading_and_refused_writing_leave_no_trace() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "x").await;
    get(&fake, "/versioned/key").await;
    get(&fake, "/versioned?versions").await;
    send(&fake, "PUT /versioned/key", &[("if-none-match", "*")], "y").await;
    send(
        &fake,
        "PUT /versioned/key",
        &[("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")],
        "y",
    )
    .await;
    assert_eq!(fake.shown("versioned", "key").len(), 1);
}
