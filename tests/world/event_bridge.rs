//! A bridge that gives S3's own notifications the shape in which EventBridge delivers them: one
//! event an envelope, other names, and the key as it is rather than encoded.

use aws_sdk_sqs::types::Message;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::localstack::SOURCE;
use super::queue::Queue;

/// Takes notifications from its inlet and sends envelopes on, until it is dropped.
#[derive(Debug)]
pub(crate) struct Bridge {
    /// Where S3 sends its notifications.
    pub(crate) inlet: Queue,
    _pump: JoinSet<()>,
}

impl Bridge {
    /// Opens a bridge that leads to a queue.
    pub(crate) async fn open(outlet: Queue) -> Self {
        let inlet = Queue::create("notifications").await;
        let mut pump = JoinSet::new();
        pump.spawn(pump_all(inlet.clone(), outlet));
        Self { inlet, _pump: pump }
    }
}

async fn pump_all(inlet: Queue, outlet: Queue) {
    let sqs = SOURCE.sqs();
    loop {
        let request = sqs
            .receive_message()
            .queue_url(&inlet.url)
            .max_number_of_messages(10)
            .wait_time_seconds(5);
        for message in request.send().await.unwrap().messages.unwrap_or_default() {
            for envelope in envelopes(&message) {
                outlet.send(envelope.to_string()).await;
            }
            let handle = message.receipt_handle.unwrap();
            sqs.delete_message()
                .queue_url(&inlet.url)
                .receipt_handle(handle)
                .send()
                .await
                .unwrap();
        }
    }
}

/// Makes an envelope of each record; the test event that S3 sends first has none.
fn envelopes(message: &Message) -> Vec<Value> {
    let notification: Value = serde_json::from_str(message.body().unwrap_or_default()).unwrap();
    notification["Records"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(envelope)
        .collect()
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
fn envelope(record: &Value) -> Option<Value> {
    let object = &record["s3"]["object"];
    let bucket = &record["s3"]["bucket"];
    let key = percent_decode_str(object["key"].as_str()?)
        .decode_utf8()
        .ok()?
        .into_owned();
    let (detail_type, extra) = kind(record["eventName"].as_str()?)?;
    let mut detail = json!({
        "version": "0",
        "bucket": { "name": bucket["name"] },
        "object": { "key": key, "version-id": object["versionId"] },
        "request-id": record["responseElements"]["x-amz-request-id"],
        "requester": SOURCE.id,
        "source-ip-address": "127.0.0.1",
    });
    for (ours, theirs) in [
        ("size", "size"),
        ("eTag", "etag"),
        ("sequencer", "sequencer"),
    ] {
        if !object[ours].is_null() {
            detail["object"][theirs] = object[ours].clone();
        }
    }
    for (name, value) in extra {
        detail[name] = json!(value);
    }
    Some(json!({
        "version": "0",
        "id": "17793124-05d4-b198-2fde-7ededc63b103",
        "detail-type": detail_type,
        "source": "aws.s3",
        "account": SOURCE.id,
        "time": record["eventTime"],
        "region": SOURCE.region,
        "resources": [bucket["arn"]],
        "detail": detail,
    }))
}

type Kind = (&'static str, Vec<(&'static str, &'static str)>);

fn kind(event_name: &str) -> Option<Kind> {
    Some(match event_name {
        "ObjectCreated:Put" => ("Object Created", vec![("reason", "PutObject")]),
        "ObjectCreated:Copy" => ("Object Created", vec![("reason", "CopyObject")]),
        "ObjectCreated:CompleteMultipartUpload" => (
            "Object Created",
            vec![("reason", "CompleteMultipartUpload")],
        ),
        "ObjectRemoved:DeleteMarkerCreated" => (
            "Object Deleted",
            vec![
                ("reason", "DeleteObject"),
                ("deletion-type", "Delete Marker Created"),
            ],
        ),
        "ObjectRemoved:Delete" => (
            "Object Deleted",
            vec![
                ("reason", "DeleteObject"),
                ("deletion-type", "Permanently Deleted"),
            ],
        ),
        "ObjectTagging:Put" => ("Object Tags Added", vec![]),
        "ObjectTagging:Delete" => ("Object Tags Deleted", vec![]),
        "ObjectAcl:Put" => ("Object ACL Updated", vec![]),
        other => panic!("no EventBridge shape for {other}"),
    })
}
