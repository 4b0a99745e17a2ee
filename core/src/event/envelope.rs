//! The envelopes a notification can arrive in: none, SNS, EventBridge, or EventBridge within SNS.

use super::fields::JsonObject;
use super::{DecodeError, Handshake, Notification, eventbridge, json, record};

/// Opens a message as SQS delivered it.
pub(super) fn open(body: &str) -> Result<Notification, DecodeError> {
    let json = json::parse_strict(body, "message")?;
    let fields = JsonObject::root_object(&json, "message")?;
    // https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    match fields.text("Type") {
        Some("Notification") => open_inner(fields.required_text("Message")?),
        Some(kind) if HANDSHAKES.contains(&kind) => Ok(ignored_notification(kind)),
        Some(_) | None => read_notification(&fields),
    }
}

const HANDSHAKES: [&str; 2] = ["SubscriptionConfirmation", "UnsubscribeConfirmation"];

/// Reads the SNS message about its subscription. It may be forged, and its texts are free-form, so
/// only a topic's name and an address within AWS get through.
pub(super) fn read_handshake(body: &str) -> Option<Handshake> {
    let json = json::parse_strict(body, "message").ok()?;
    let fields = JsonObject::root_object(&json, "message").ok()?;
    let told = fields.text("Type")?;
    let kind = HANDSHAKES.into_iter().find(|kind| *kind == told)?;
    let topic = fields
        .text("TopicArn")
        .filter(|arn| arn.starts_with("arn:aws") && is_plain(arn, 512));
    let url = fields
        .text("SubscribeURL")
        .filter(|url| is_of_sns(url) && is_plain(url, 2048));
    Some(Handshake {
        kind,
        topic: topic.unwrap_or("unknown").to_owned(),
        url: url.map(str::to_owned),
    })
}

/// Says whether an address is one of SNS, in any partition of AWS.
fn is_of_sns(url: &str) -> bool {
    let host = url
        .strip_prefix("https://sns.")
        .and_then(|rest| rest.split_once("/?"))
        .map(|(host, _)| host);
    let is_label = |label: &str| {
        label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let domains = [".amazonaws.com", ".amazonaws.com.cn"];
    host.is_some_and(|host| {
        domains
            .iter()
            .any(|domain| host.strip_suffix(domain).is_some_and(is_label))
    })
}

/// Says whether a text can be shown as it is.
fn is_plain(text: &str, bytes_max: usize) -> bool {
    let is_harmless =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'`' | b'\\');
    text.len() <= bytes_max && text.bytes().all(is_harmless)
}

/// Opens what SNS wrapped; SNS never wraps twice.
fn open_inner(message: &str) -> Result<Notification, DecodeError> {
    let json = json::parse_strict(message, "message.Message")?;
    read_notification(&JsonObject::root_object(&json, "message.Message")?)
}

fn read_notification(fields: &JsonObject<'_>) -> Result<Notification, DecodeError> {
    if fields.has("Records") {
        return record::read_all(fields);
    }
    if fields.has("detail-type") {
        return eventbridge::read(fields);
    }
    match fields.text("Event") {
        // S3 sends it when the bucket's notifications are configured.
        Some(event @ "s3:TestEvent") => Ok(ignored_notification(event)),
        Some(_) | None => Err(fields.unknown()),
    }
}

fn ignored_notification(event: &str) -> Notification {
    Notification {
        events: Vec::new(),
        ignored: vec![event.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::{EventKind, parse_notification};

    const RECORDS: &str = r#"{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","eventName":"ObjectCreated:Put",
        "s3":{"bucket":{"name":"orders"},"object":{"key":"a+b"}}}]}"#;
    const EVENT: &str = r#"{"source":"aws.s3","detail-type":"Object Tags Added",
        "detail":{"bucket":{"name":"orders"},"object":{"key":"a+b"}}}"#;
    const TEST: &str = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2026-11-23T10:00:00.000Z",
        "Bucket":"orders","RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR"}"#;

    #[test]
    fn sns_may_stand_around_any_notification() {
        for (body, key, action) in [
            (RECORDS, "a b", EventKind::Put),
            (EVENT, "a+b", EventKind::Tags),
        ] {
            let plain = parse_notification(body).unwrap();
            assert_eq!(
                (plain.events[0].key.as_str(), plain.events[0].action),
                (key, action)
            );
            assert_eq!(parse_notification(&sns("Notification", body)), Ok(plain));
        }
    }

    #[test]
    fn the_test_event_gives_no_hints() {
        for body in [TEST.to_owned(), sns("Notification", TEST)] {
            assert_eq!(
                parse_notification(&body),
                Ok(ignored_notification("s3:TestEvent"))
            );
        }
    }

    #[test]
    fn what_sns_says_of_itself_is_ignored_by_name() {
        for kind in ["SubscriptionConfirmation", "UnsubscribeConfirmation"] {
            assert_eq!(
                parse_notification(&sns(kind, "You have chosen to subscribe")),
                Ok(ignored_notification(kind))
            );
        }
    }

    #[test]
    fn what_sns_asks_is_read_as_far_as_it_is_harmless() {
        let told = |url: &str, topic: &str| {
            json!({ "Type": "SubscriptionConfirmation", "TopicArn": topic, "SubscribeURL": url, "Token": "t" })
                .to_string()
        };
        let (own, topic) = (
            "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=t",
            "arn:aws:sns:x:1:orders",
        );
        let read = read_handshake(&told(own, topic)).unwrap();
        assert_eq!(
            (read.kind, read.topic.as_str(), read.url.as_deref()),
            ("SubscriptionConfirmation", topic, Some(own))
        );
        let foreign = [
            "https://sns.eu-west-1.amazonaws.com.evil.example/?Action=ConfirmSubscription",
            "https://sns.evil.example/x.amazonaws.com/?Action=ConfirmSubscription",
            "https://sns.user@evil.amazonaws.com/?x",
            "http://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription",
            "https://sns.eu-west-1.amazonaws.com/?\u{1b}[2J",
        ];
        for url in foreign {
            let read = read_handshake(&told(url, "two words")).unwrap();
            assert_eq!((read.topic.as_str(), read.url), ("unknown", None), "{url}");
        }
        assert_eq!(read_handshake(&sns("Notification", RECORDS)), None);
        assert_eq!(read_handshake("no JSON"), None);
    }

    #[test]
    fn a_notification_without_records_gives_nothing() {
        assert_eq!(
            parse_notification(r#"{"Records":[]}"#),
            Ok(Notification::default())
        );
    }

    #[test]
    fn what_is_no_notification_is_refused_with_its_place_and_without_its_text() {
        let unknown = |at: &str| {
            format!("{at} is no S3 notification, nor an SNS or EventBridge envelope of one")
        };
        let table = [
            (
                "".to_owned(),
                "message is not JSON: line 1 column 0".to_owned(),
            ),
            (
                "secret".to_owned(),
                "message is not JSON: line 1 column 1".to_owned(),
            ),
            (
                "{\"Records\":[\n}".to_owned(),
                "message is not JSON: line 2 column 1".to_owned(),
            ),
            ("[]".to_owned(), unknown("message")),
            ("\"secret\"".to_owned(), unknown("message")),
            ("{}".to_owned(), unknown("message")),
            (r#"{"Event":"s3:Secret"}"#.to_owned(), unknown("message")),
            (
                r#"{"Records":{}}"#.to_owned(),
                "message.Records is not a list".to_owned(),
            ),
            (
                r#"{"Type":"Notification"}"#.to_owned(),
                "message.Message is missing".to_owned(),
            ),
            (
                sns("Notification", "secret"),
                "message.Message is not JSON: line 1 column 1".to_owned(),
            ),
            (sns("Notification", "7"), unknown("message.Message")),
            (
                sns("Notification", &sns("Notification", RECORDS)),
                unknown("message.Message"),
            ),
            (sns("Secret", RECORDS), unknown("message")),
            (
                sns("Notification", &RECORDS.replace("key", "kee")),
                "message.Message.Records[0].s3.object.key is missing".to_owned(),
            ),
        ];
        for (body, expected) in table {
            assert_eq!(
                parse_notification(&body).unwrap_err().to_string(),
                expected,
                "{body}"
            );
        }
    }

    fn sns(kind: &str, message: &str) -> String {
        let envelope = json!({
            "Type": kind, "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
            "TopicArn": "arn:aws:sns:eu-west-1:111111111111:orders", "Subject": "Amazon S3 Notification",
            "Message": message, "Timestamp": "2026-11-23T10:00:00.000Z", "SignatureVersion": "1",
            "Signature": "EXAMPLEw6JRN", "SigningCertURL": "https://example.com/cert.pem",
            "UnsubscribeURL": "https://example.com/unsubscribe"
        });
        envelope.to_string()
    }
}
