//! Event notifications.

use super::*;
use crate::s3::traits::Sequencers;
use serde_json::Value;

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn every_change_is_announced_by_its_name() {
    let fake = endpoint();
    let heard = listen(&fake, "versioned");
    tokio::time::advance(Duration::from_millis(5)).await;
    let version = put(&fake, "/versioned/key", "123").await.version();
    send(
        &fake,
        "PUT /versioned/copy",
        &[("x-amz-copy-source", "/versioned/key")],
        "",
    )
    .await;
    let upload = begin(&fake, "/versioned/parts", &[]).await;
    let etag = part(&fake, "/versioned/parts", &upload, 1, "p").await;
    complete(&fake, "/versioned/parts", &upload, &[(1, &etag)], &[]).await;
    let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>";
    send(&fake, "PUT /versioned/key?tagging", &[], tags).await;
    delete(&fake, "/versioned/key?tagging").await;
    let marker = delete(&fake, "/versioned/key").await.version();
    delete(&fake, &format!("/versioned/key?versionId={version}")).await;
    let heard = heard.lock().unwrap().clone();
    let names: Vec<&str> = heard
        .iter()
        .map(|record| text(&record["eventName"]))
        .collect();
    assert_eq!(
        names,
        [
            "ObjectCreated:Put",
            "ObjectCreated:Copy",
            "ObjectCreated:CompleteMultipartUpload",
            "ObjectTagging:Put",
            "ObjectTagging:Delete",
            "ObjectRemoved:DeleteMarkerCreated",
            "ObjectRemoved:Delete",
        ]
    );
    let object = &heard[0]["s3"]["object"];
    assert_eq!(
        (text(&object["versionId"]), &object["size"]),
        (version.as_str(), &3.into())
    );
    assert_eq!(text(&object["eTag"]), "202cb962ac59075b964b07152d234b70");
    assert_eq!(
        (text(&heard[0]["eventTime"]), text(&heard[0]["eventSource"])),
        ("2026-01-01T00:00:00.005Z", "aws:s3")
    );
    assert_eq!(text(&heard[0]["s3"]["bucket"]["name"]), "versioned");
    assert_eq!(text(&heard[5]["s3"]["object"]["versionId"]), marker);
    assert_eq!(text(&heard[6]["s3"]["object"]["versionId"]), version);
    let ordered: Vec<bool> = heard
        .iter()
        .map(|record| record["s3"]["object"]["sequencer"].is_string())
        .collect();
    assert_eq!(ordered, [true, true, true, false, false, true, true]);
}

#[tokio::test(start_paused = true)]
async fn what_fails_or_changes_nothing_is_not_announced() {
    let fake = endpoint();
    let heard = listen(&fake, "versioned");
    send(&fake, "PUT /versioned/key", &[("if-match", "\"x\"")], "x").await;
    begin(&fake, "/versioned/key", &[]).await;
    get(&fake, "/versioned/key").await;
    assert!(heard.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn keys_are_encoded_as_in_forms_and_versions_named_only_where_they_are_kept() {
    let fake = endpoint();
    let heard = listen(&fake, "unversioned");
    put(&fake, "/unversioned/red%20flower/%C3%A9%2B1.jpg", "x").await;
    delete(&fake, "/unversioned/red%20flower/%C3%A9%2B1.jpg").await;
    let heard = heard.lock().unwrap().clone();
    assert_eq!(
        text(&heard[0]["s3"]["object"]["key"]),
        "red+flower/%C3%A9%2B1.jpg"
    );
    assert!(heard[0]["s3"]["object"]["versionId"].is_null());
    assert_eq!(text(&heard[1]["eventName"]), "ObjectRemoved:Delete");
}

#[tokio::test(start_paused = true)]
async fn sequencers_rise_when_padded_and_mislead_as_numbers() {
    let fake = endpoint();
    let heard = listen(&fake, "versioned");
    for _ in 0..60 {
        put(&fake, "/versioned/key", "x").await;
    }
    let heard = heard.lock().unwrap().clone();
    let all: Vec<&str> = heard
        .iter()
        .map(|record| text(&record["s3"]["object"]["sequencer"]))
        .collect();
    let padded: Vec<String> = all
        .iter()
        .map(|sequencer| format!("{sequencer:0<32}"))
        .collect();
    assert!(padded.is_sorted_by(|one, other| one < other), "{all:?}");
    let numbers: Vec<u128> = all
        .iter()
        .map(|sequencer| u128::from_str_radix(sequencer, 16).unwrap())
        .collect();
    assert!(
        !numbers.is_sorted(),
        "as numbers they must mislead: {all:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_say_nothing_of_order() {
    let fake = endpoint();
    let heard = listen(&fake, "versioned");
    fake.set_traits(Traits {
        sequencers: Sequencers::Constant,
        ..fake.traits()
    });
    for _ in 0..2 {
        put(&fake, "/versioned/key", "x").await;
    }
    let heard = heard.lock().unwrap().clone();
    let found: Vec<&Value> = heard
        .iter()
        .map(|record| &record["s3"]["object"]["sequencer"])
        .collect();
    assert_eq!(found[0], found[1]);
    assert!(found[0].is_string());
}

#[tokio::test(start_paused = true)]
async fn every_sink_of_a_bucket_hears_and_no_other() {
    let fake = endpoint();
    let (one, two, other) = (
        listen(&fake, "versioned"),
        listen(&fake, "versioned"),
        listen(&fake, "suspended"),
    );
    put(&fake, "/versioned/key", "x").await;
    assert_eq!(
        [one, two, other].map(|heard| heard.lock().unwrap().len()),
        [1, 1, 0]
    );
}
