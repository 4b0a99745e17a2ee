//! The envelopes a notification can arrive in: none, SNS, EventBridge, or EventBridge within SNS.

use super::fields::Fields;
use super::{Notification, Undecodable, eventbridge, json, record};

/// Opens a message as SQS delivered it.
pub(super) fn open(body: &str) -> Result<Notification, Undecodable> {
    let json = json::parse(body, "message")?;
    let fields = Fields::root(&json, "message")?;
    // https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    match fields.text("Type") {
        Some("Notification") => open_inner(fields.required("Message")?),
        Some(kind @ ("SubscriptionConfirmation" | "UnsubscribeConfirmation")) => Ok(ignoring(kind)),
        Some(_) | None => read(&fields),
    }
}

/// Opens what SNS wrapped; SNS never wraps twice.
fn open_inner(message: &str) -> Result<Notification, Undecodable> {
    let json = json::parse(message, "message.Message")?;
    read(&Fields::root(&json, "message.Message")?)
}

fn read(fields: &Fields<'_>) -> Result<Notification, Undecodable> {
    if fields.has("Records") {
        return record::read_all(fields);
    }
    if fields.has("detail-type") {
        return eventbridge::read(fields);
    }
    match fields.text("Event") {
        // S3 sends it when the bucket's notifications are configured.
        Some(event @ "s3:TestEvent") => Ok(ignoring(event)),
        Some(_) | None => Err(fields.unknown()),
    }
}

fn ignoring(event: &str) -> Notification {
    Notification { hints: Vec::new(), ignored: vec![event.to_owned()] }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::{Action, parse};

    const RECORDS: &str = r#"{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","eventName":"ObjectCreated:Put",
        "s3":{"bucket":{"name":"orders"},"object":{"key":"a+b"}}}]}"#;
    const EVENT: &str = r#"{"source":"aws.s3","detail-type":"Object Tags Added",
        "detail":{"bucket":{"name":"orders"},"object":{"key":"a+b"}}}"#;
    const TEST: &str = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2026-11-23T10:00:00.000Z",
        "Bucket":"orders","RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR"}"#;

    #[test]
    fn sns_may_stand_around_any_notification() {
        for (body, key, action) in [(RECORDS, "a b", Action::Put), (EVENT, "a+b", Action::Tags)] {
            let plain = parse(body).unwrap();
            assert_eq!((plain.hints[0].key.as_str(), plain.hints[0].action), (key, action));
            assert_eq!(parse(&sns("Notification", body)), Ok(plain));
        }
    }

    #[test]
    fn the_test_event_gives_no_hints() {
        for body in [TEST.to_owned(), sns("Notification", TEST)] {
            assert_eq!(parse(&body), Ok(ignoring("s3:TestEvent")));
        }
    }

    #[test]
    fn what_sns_says_of_itself_is_ignored_by_name() {
        for kind in ["SubscriptionConfirmation", "UnsubscribeConfirmation"] {
            assert_eq!(parse(&sns(kind, "You have chosen to subscribe")), Ok(ignoring(kind)));
        }
    }

    #[test]
    fn a_notification_without_records_gives_nothing() {
        assert_eq!(parse(r#"{"Records":[]}"#), Ok(Notification::default()));
    }

    #[test]
    fn what_is_no_notification_is_refused_with_its_place_and_without_its_text() {
        let unknown = |at: &str| format!("{at} is no S3 notification, nor an SNS or EventBridge envelope of one");
        let table = [
            ("".to_owned(), "message is not JSON: line 1 column 0".to_owned()),
            ("secret".to_owned(), "message is not JSON: line 1 column 1".to_owned()),
            ("{\"Records\":[\n}".to_owned(), "message is not JSON: line 2 column 1".to_owned()),
            ("[]".to_owned(), unknown("message")),
            ("\"secret\"".to_owned(), unknown("message")),
            ("{}".to_owned(), unknown("message")),
            (r#"{"Event":"s3:Secret"}"#.to_owned(), unknown("message")),
            (r#"{"Records":{}}"#.to_owned(), "message.Records is not a list".to_owned()),
            (r#"{"Type":"Notification"}"#.to_owned(), "message.Message is missing".to_owned()),
            (sns("Notification", "secret"), "message.Message is not JSON: line 1 column 1".to_owned()),
            (sns("Notification", "7"), unknown("message.Message")),
            (sns("Notification", &sns("Notification", RECORDS)), unknown("message.Message")),
            (sns("Secret", RECORDS), unknown("message")),
            (
                sns("Notification", &RECORDS.replace("key", "kee")),
                "message.Message.Records[0].s3.object.key is missing".to_owned(),
            ),
        ];
        for (body, expected) in table {
            assert_eq!(parse(&body).unwrap_err().to_string(), expected, "{body}");
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
