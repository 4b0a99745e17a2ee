//! What a checker can see.

use super::*;
use crate::s3::entry::Shown;

#[tokio::test(start_paused = true)]
async fn every_state_that_a_key_ever_showed_is_recorded_with_who_and_why() {
    let fake = endpoint();
    let seen: Vec<String> = many_states(&fake)
        .await
        .iter()
        .map(|shown| {
            let current = shown.current.as_deref().map_or_else(String::new, content);
            format!("{} {} {current}", shown.caller, shown.cause)
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
    assert_eq!(fake.keys("versioned"), ["key", "other"]);
}

#[tokio::test(start_paused = true)]
async fn a_state_is_as_it_was_then() {
    let shown = many_states(&endpoint()).await;
    assert_eq!(
        shown[1].at.duration_since(shown[0].at).unwrap(),
        Duration::from_secs(10)
    );
    let object = |at: usize| {
        let current = shown[at].current.as_ref().unwrap();
        current.object.as_ref().unwrap()
    };
    assert_eq!((object(1).tags.len(), object(2).tags.len()), (0, 1));
    assert_eq!(object(1).user("a"), Some("b"));
}

/// Has two users write, tag, hide and remove a key, and returns what it showed.
async fn many_states(fake: &Fake) -> Vec<Shown> {
    let key = "/versioned/key";
    let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>";
    let first = send_as(fake, "ann", &format!("PUT {key}"), &[], "1").await;
    let (tag, purge) = (
        format!("PUT {key}?tagging"),
        format!("DELETE {key}?versionId={}", first.version()),
    );
    pass(10).await;
    let meta = [("x-amz-meta-a", "b")];
    send_as(fake, "bob", &format!("PUT {key}"), &meta, "2").await;
    send_as(fake, "ann", &tag, &[], tags).await;
    send_as(fake, "bob", &format!("DELETE {key}"), &[], "").await;
    send_as(fake, "bob", &purge, &[], "").await;
    put(fake, "/versioned/other", "x").await;
    fake.shown("versioned", "key")
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
