//! Queues: whether each is there, has the attributes that its purpose needs, and lets the daemon in.

use std::collections::HashMap;

use aws_sdk_sqs::types::QueueAttributeName;
use replicator_config::policies::queue_arn;
use replicator_config::{Account, Service};
use serde_json::{Value, json};

use super::access::{Asked, DocumentSet, Needed, ask};
use super::delivery::{self, Sender, Verdict};
use super::finding::{CheckName, Finding, Fix, Section, cli_options, shell_quoted, with_field};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::{Refusal, RefusalKind};

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::Display)]
pub(super) enum Purpose {
    /// Events come from it.
    #[strum(serialize = "events queue")]
    Events,
    /// The work of the rules goes through it.
    #[strum(serialize = "work queue")]
    Work,
    /// Hints wait in it.
    #[strum(serialize = "backfill queue")]
    Backfill,
    /// What cannot be done waits in it.
    #[strum(serialize = "dead-letter queue")]
    DeadLetter,
}

/// A queue of the file, and the account that reaches it.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueuePlace<'a> {
    pub(super) purpose: Purpose,
    pub(super) url: &'a str,
    pub(super) account: &'a Account,
}

impl<'a> QueuePlace<'a> {
    fn name(&self) -> &'a str {
        self.url.rsplit('/').next().unwrap_or(self.url)
    }

    /// Returns the ARN that the URL stands for.
    pub(super) fn arn(&self) -> String {
        queue_arn(self.account, self.url, "")
    }

    pub(super) fn title(&self) -> String {
        format!("{} {}", self.purpose, self.url)
    }

    fn set_attributes(&self, attributes: &Value) -> Fix {
        Fix::command(format!(
            "aws sqs set-queue-attributes{} --queue-url {} --attributes {}",
            cli_options(self.account, Service::Sqs),
            self.url,
            shell_quoted(&attributes.to_string())
        ))
    }
}

/// What SQS says of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct QueueAttributes {
    pub(super) arn: Option<String>,
    pub(super) policy: Option<String>,
    retention_seconds: Option<u64>,
    redrive: Option<String>,
    is_fifo: bool,
    deduplication_scope: Option<String>,
    throughput_limit: Option<String>,
    kms_key: Option<String>,
}

impl QueueAttributes {
    fn from_answer(answer: &HashMap<QueueAttributeName, String>) -> Self {
        let text = |name| answer.get(&name).filter(|text| !text.is_empty()).cloned();
        Self {
            arn: text(QueueAttributeName::QueueArn),
            policy: text(QueueAttributeName::Policy),
            retention_seconds: text(QueueAttributeName::MessageRetentionPeriod)
                .and_then(|text| text.parse().ok()),
            redrive: text(QueueAttributeName::RedrivePolicy),
            is_fifo: text(QueueAttributeName::FifoQueue).as_deref() == Some("true"),
            deduplication_scope: text(QueueAttributeName::DeduplicationScope),
            throughput_limit: text(QueueAttributeName::FifoThroughputLimit),
            kms_key: text(QueueAttributeName::KmsMasterKeyId),
        }
    }

    /// Returns how often SQS gives a message out before it moves it away.
    fn receives_max(&self) -> Option<u64> {
        let policy: Value = serde_json::from_str(self.redrive.as_deref()?).ok()?;
        let count = policy.get("maxReceiveCount")?;
        count.as_u64().or_else(|| count.as_str()?.parse().ok())
    }
}

/// Requests the attributes of a queue.
pub(super) async fn read_attributes(
    place: QueuePlace<'_>,
    clients: &AccountClients,
) -> Asked<QueueAttributes> {
    let request = clients
        .sqs
        .get_queue_attributes()
        .queue_url(place.url)
        .attribute_names(QueueAttributeName::All);
    let answer = ask(request.send()).await?;
    Ok(QueueAttributes::from_answer(
        &answer.attributes.unwrap_or_default(),
    ))
}

/// Judges what a queue answered; the senders are those of the rules' buckets, as far as they send
/// to this queue.
pub(super) fn judge(
    place: QueuePlace<'_>,
    (asked, documents): (&Asked<QueueAttributes>, &DocumentSet<'_>),
    senders: &[Sender],
    section: &mut Section,
) {
    let attributes = match asked {
        Ok(attributes) => attributes,
        Err(refusal) => {
            section.add([unread(place, refusal, documents, senders)]);
            return;
        }
    };
    section.fine("exists, and its attributes can be read");
    let before = section.findings.len();
    section.add(retention(place, attributes));
    match place.purpose {
        Purpose::Events => {
            section.add(standard(place, attributes));
            section.add(early_redrive(place, attributes));
            for sender in senders {
                let name = sender_name(sender);
                match (&sender.role, sending(place, attributes, sender, documents)) {
                    (Some(role), _) => section.skip(format!("not proved that {role} may send")),
                    (None, Some(finding)) => section.add([finding]),
                    (None, None) => section.fine(format!("its policy lets {name} send")),
                }
            }
            judge_key(place, attributes, section);
        }
        Purpose::Work | Purpose::Backfill => {
            section.add(fifo(place, attributes));
            section.add(any_redrive(place, attributes));
            section.add(throughput(place, attributes));
        }
        Purpose::DeadLetter => section.add(standard(place, attributes)),
    }
    if section.findings.len() == before {
        section.fine(format!("has the attributes of a good {}", place.purpose));
    }
}

/// Judges the key that the queue is encrypted under. S3, SNS and EventBridge have to be let in by
/// its policy, and that of the key that AWS manages for SQS can't be changed:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html#compatibility-with-aws-services>
fn judge_key(place: QueuePlace<'_>, attributes: &QueueAttributes, section: &mut Section) {
    let Some(key) = &attributes.kms_key else {
        return;
    };
    if !key.ends_with("alias/aws/sqs") {
        section.skip(format!(
            "not proved that S3, or what else sends the events, and the daemon may use the queue's \
             key {key}: only its policy says that (kms:GenerateDataKey and kms:Decrypt)"
        ));
        return;
    }
    let what = "it is encrypted under alias/aws/sqs, whose policy lets no service send";
    let why = "S3, SNS and EventBridge cannot send to it: the events are lost without a word";
    let managed = json!({"KmsMasterKeyId": "", "SqsManagedSseEnabled": "true"});
    section.add([Finding::problem(CheckName::QueueKey, place.url, what, why)
        .fixed_by([place.set_attributes(&managed)])]);
}

fn sender_name(sender: &Sender) -> String {
    match &sender.source_arn {
        Some(arn) => arn.clone(),
        None => "EventBridge".to_owned(),
    }
}

/// Judges a queue whose attributes did not come.
fn unread(
    place: QueuePlace<'_>,
    refusal: &Refusal,
    documents: &DocumentSet<'_>,
    senders: &[Sender],
) -> Finding {
    let words = &refusal.words;
    if refusal.kind == RefusalKind::Absent {
        let why = match place.purpose {
            Purpose::Events => "the bucket's events have nowhere to go, and are lost",
            Purpose::Work => "the work of the rules goes through it: nothing is replicated",
            Purpose::Backfill => "hints wait there: `backfill` has nowhere to send them",
            Purpose::DeadLetter => "what cannot be done waits there, and has no place now",
        };
        let what = format!("SQS knows no such queue: {words}");
        return Finding::problem(CheckName::QueueExists, place.url, what, why)
            .fixed_by([creation(place, senders, documents)]);
    }
    let (why, fix) = if refusal.kind == RefusalKind::Denied {
        let arn = place.arn();
        let fix = documents.fixes(refusal, Needed::of("sqs:GetQueueAttributes", &arn));
        let why = "whether the queue is as it has to be is not known; replication does without";
        (why, fix)
    } else {
        let why = "nothing is known of the queue, and the daemon will not reach it either";
        let fix = "look at the URL, the account's Region and endpoint, and this host's network";
        (why, vec![Fix::advice(fix)])
    };
    let what = format!("its attributes cannot be read: {words}");
    Finding::problem(CheckName::QueueAttributes, place.url, what, why)
        .into_unasked()
        .fixed_by(fix)
}

/// Writes the command that makes a queue as it has to be.
fn creation(place: QueuePlace<'_>, senders: &[Sender], documents: &DocumentSet<'_>) -> Fix {
    let mut attributes = json!({"MessageRetentionPeriod": RETENTION_SECONDS.to_string()});
    if matches!(place.purpose, Purpose::Work | Purpose::Backfill) {
        for (name, value) in [("FifoQueue", "true")].iter().chain(&HIGH_THROUGHPUT) {
            attributes = with_field(attributes, name, json!(value));
        }
    }
    if !senders.is_empty() {
        let arn = place.arn();
        let fixes = senders
            .iter()
            .flat_map(|sender| delivery::fixes(&arn, sender, documents));
        let statements: Vec<Value> = fixes.filter_map(Fix::into_statement).collect();
        let policy = json!({"Version": "2012-10-17", "Statement": statements});
        attributes = with_field(attributes, "Policy", json!(policy.to_string()));
    }
    Fix::command(format!(
        "aws sqs create-queue{} --queue-name {} --attributes {}",
        cli_options(place.account, Service::Sqs),
        place.name(),
        shell_quoted(&attributes.to_string())
    ))
}

// The longest that SQS keeps a message:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
const RETENTION_SECONDS: u64 = 1_209_600;

fn retention(place: QueuePlace<'_>, attributes: &QueueAttributes) -> Option<Finding> {
    let seconds = attributes.retention_seconds?;
    if seconds >= RETENTION_SECONDS {
        return None;
    }
    let what = format!(
        "it keeps messages for {}, and SQS could for 14 days",
        span(seconds)
    );
    let why = match place.purpose {
        Purpose::DeadLetter => "what waits there longer is lost, and its objects stay unreplicated",
        Purpose::Events | Purpose::Work | Purpose::Backfill => {
            "an event that waits longer than that is lost"
        }
    };
    let value = json!({"MessageRetentionPeriod": RETENTION_SECONDS.to_string()});
    Some(
        Finding::problem(CheckName::QueueRetention, place.url, what, why)
            .into_warning()
            .fixed_by([place.set_attributes(&value)]),
    )
}

fn span(seconds: u64) -> String {
    match seconds {
        ..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

// Without a work queue a message returns every 15 minutes while its destination is down: 1,000
// receives are about a week, five a quarter of an hour.
const RECEIVES_MIN: u64 = 1_000;

fn early_redrive(place: QueuePlace<'_>, attributes: &QueueAttributes) -> Option<Finding> {
    let count = attributes
        .receives_max()
        .filter(|count| *count < RECEIVES_MIN)?;
    let what = format!("SQS moves a message away after {count} receives");
    let why = "an event comes back each time its destination is down; after so many receives it is \
         gone, though nothing is wrong with it";
    let policy = attributes.redrive.as_deref().unwrap_or_default();
    let policy = serde_json::from_str(policy).unwrap_or_default();
    let policy = with_field(policy, "maxReceiveCount", json!(RECEIVES_MIN));
    let value = json!({"RedrivePolicy": policy.to_string()});
    Some(
        Finding::problem(CheckName::QueueRedrive, place.url, what, why)
            .into_warning()
            .fixed_by([place.set_attributes(&value)]),
    )
}

fn any_redrive(place: QueuePlace<'_>, attributes: &QueueAttributes) -> Option<Finding> {
    attributes.redrive.as_ref()?;
    let what = "it has a redrive policy";
    let why = "when SQS moves a message of a key away, the next one is given out at once, without \
         the wait that follows a lost worker: an older version may be written over a newer one";
    let value = json!({"RedrivePolicy": ""});
    Some(
        Finding::problem(CheckName::QueueRedrive, place.url, what, why)
            .fixed_by([place.set_attributes(&value)]),
    )
}

/// S3 sends to no FIFO queue, and what is parked has no order.
fn standard(place: QueuePlace<'_>, attributes: &QueueAttributes) -> Option<Finding> {
    attributes.is_fifo.then(|| {
        let why = "S3 sends to no FIFO queue, and what is sent there needs a message group";
        Finding::problem(CheckName::QueueType, place.url, "it is a FIFO queue", why).fixed_by([
            Fix::advice("make a standard queue, and name that in the file"),
        ])
    })
}

fn fifo(place: QueuePlace<'_>, attributes: &QueueAttributes) -> Option<Finding> {
    (!attributes.is_fifo).then(|| {
        let why = "only a FIFO queue keeps two workers from one key";
        Finding::problem(CheckName::QueueType, place.url, "it is no FIFO queue", why)
            .fixed_by([Fix::advice("make a FIFO queue, and name that in the file")])
    })
}

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/enable-high-throughput-fifo.html
const HIGH_THROUGHPUT: [(&str, &str); 2] = [
    ("DeduplicationScope", "messageGroup"),
    ("FifoThroughputLimit", "perMessageGroupId"),
];

fn throughput(place: QueuePlace<'_>, attributes: &QueueAttributes) -> Option<Finding> {
    let is_high = attributes.deduplication_scope.as_deref() == Some("messageGroup")
        && attributes.throughput_limit.as_deref() == Some("perMessageGroupId");
    if is_high || !attributes.is_fifo {
        return None;
    }
    let what = "it does not have high throughput";
    let why = "SQS takes 300 requests a second of the whole queue then: a burst of events waits";
    let value: serde_json::Map<String, Value> = HIGH_THROUGHPUT
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let value = Value::Object(value);
    Some(
        Finding::problem(CheckName::QueueThroughput, place.url, what, why)
            .into_warning()
            .fixed_by([place.set_attributes(&value)]),
    )
}

/// Judges whether a sender of events is let in.
fn sending(
    place: QueuePlace<'_>,
    attributes: &QueueAttributes,
    sender: &Sender,
    documents: &DocumentSet<'_>,
) -> Option<Finding> {
    let arn = attributes.arn.clone().unwrap_or_else(|| place.arn());
    let name = sender_name(sender);
    let why = "the events are sent, refused by the queue, and lost without a word";
    let found = |what: String, fixes: Vec<Fix>| {
        Some(Finding::problem(CheckName::QueuePolicy, &arn, what, why).fixed_by(fixes))
    };
    let letting = || delivery::fixes(&arn, sender, documents);
    match delivery::evaluate(attributes.policy.as_deref(), &arn, sender) {
        Verdict::Lets => None,
        Verdict::Lacks => found(format!("its policy does not let {name} send"), letting()),
        Verdict::Denies => found(
            format!("a Deny of its policy keeps {name} from sending"),
            vec![Fix::advice(
                "take that Deny out of the queue's policy, or except the sender from it",
            )],
        ),
        Verdict::Unreadable => found("its policy is not JSON".to_owned(), letting()),
    }
}

/// Finds out whether the daemon may use a queue, by requests that SQS has to refuse because they
/// make no sense: nothing is received, sent or deleted by them. What permissions allow is looked at
/// before. Of a server that takes more than SQS does they ask nothing either.
pub(super) async fn try_access(
    place: QueuePlace<'_>,
    clients: &AccountClients,
    documents: &DocumentSet<'_>,
    section: &mut Section,
) {
    let sqs = &clients.sqs;
    let mut refused = Vec::new();
    if place.purpose != Purpose::DeadLetter {
        let receive = sqs.receive_message().queue_url(place.url);
        let receive = receive
            .max_number_of_messages(NO_MESSAGES)
            .visibility_timeout(0)
            .wait_time_seconds(0);
        refused.push((
            CheckName::QueueReceive,
            "sqs:ReceiveMessage",
            ask(receive.send()).await.err(),
        ));
        let delete = sqs.delete_message().queue_url(place.url);
        let delete = delete.receipt_handle(NO_RECEIPT);
        refused.push((
            CheckName::QueueReceive,
            "sqs:DeleteMessage",
            ask(delete.send()).await.err(),
        ));
        let hide = sqs.change_message_visibility().queue_url(place.url);
        let hide = hide.receipt_handle(NO_RECEIPT).visibility_timeout(0);
        refused.push((
            CheckName::QueueReceive,
            "sqs:ChangeMessageVisibility",
            ask(hide.send()).await.err(),
        ));
    }
    if place.purpose != Purpose::Events {
        let send = sqs.send_message_batch().queue_url(place.url);
        let refusal = ask(send.set_entries(Some(Vec::new())).send()).await.err();
        refused.push((CheckName::QueueSend, "sqs:SendMessage", refusal));
    }
    let before = section.findings.len();
    for (check, action, refusal) in refused {
        // That its parameters are wrong, SQS says only where it is permitted.
        let refusal = refusal.filter(|refusal| refusal.kind != RefusalKind::Refused);
        section.add(refusal.map(|refusal| forbidden(place, (check, action), &refusal, documents)));
    }
    if section.findings.len() == before {
        section.fine("no permission was found to be lacking");
    }
}

// SQS takes 1 to 10, and refuses this with any permission:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
const NO_MESSAGES: i32 = 0;
const NO_RECEIPT: &str = "s3-replicator-check";

fn forbidden(
    place: QueuePlace<'_>,
    (check, action): (CheckName, &str),
    refusal: &Refusal,
    documents: &DocumentSet<'_>,
) -> Finding {
    let why = match (place.purpose, check) {
        (Purpose::DeadLetter, _) => "what cannot be done has no place, and its messages return",
        (_, CheckName::QueueSend) => "no event is routed to its worker: nothing is replicated",
        _ => "messages cannot be received, or come back after their work is done",
    };
    let fix = documents.fixes(refusal, Needed::of(action, &place.arn()));
    let found = Finding::problem(check, place.url, refusal.describe(action), why);
    found.fixed_by(fix).weighed_by(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::access::tests::{documents_of, plain_settings};
    use crate::check::finding::Severity;

    const URL: &str = "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-events";

    fn account() -> Account {
        Account {
            name: "source".to_owned(),
            region: "eu-west-1".to_owned(),
            ..Account::default()
        }
    }

    fn attributes(of: &[(QueueAttributeName, &str)]) -> QueueAttributes {
        let answer = of
            .iter()
            .map(|(name, value)| (name.clone(), (*value).to_owned()));
        QueueAttributes::from_answer(&answer.collect())
    }

    fn found(purpose: Purpose, of: &[(QueueAttributeName, &str)]) -> Vec<(CheckName, Severity)> {
        let account = account();
        let place = QueuePlace {
            purpose,
            url: URL,
            account: &account,
        };
        let (mut section, settings) = (Section::new("queue"), plain_settings());
        let documents = documents_of(&settings);
        judge(place, (&Ok(attributes(of)), &documents), &[], &mut section);
        let found = section.findings.iter();
        found.map(|found| (found.check, found.severity)).collect()
    }

    #[test]
    fn each_purpose_has_its_attributes() {
        use QueueAttributeName as Name;
        let kept = (Name::MessageRetentionPeriod, "1209600");
        let fifo = (Name::FifoQueue, "true");
        let high = [
            (Name::DeduplicationScope, "messageGroup"),
            (Name::FifoThroughputLimit, "perMessageGroupId"),
        ];
        let redrive = |count: &'static str| (Name::RedrivePolicy, count);
        let five = redrive("{\"deadLetterTargetArn\":\"x\",\"maxReceiveCount\":5}");
        let many = redrive("{\"deadLetterTargetArn\":\"x\",\"maxReceiveCount\":\"1000\"}");
        let work = |more: &[(Name, &'static str)]| [&[kept.clone(), fifo.clone()], more].concat();
        use CheckName::{QueueKey, QueueRedrive, QueueRetention, QueueThroughput, QueueType};
        use Severity::{Problem, Warning};
        let cases = [
            (Purpose::Events, vec![kept.clone()], vec![]),
            (
                Purpose::Events,
                vec![(Name::MessageRetentionPeriod, "345600")],
                vec![(QueueRetention, Warning)],
            ),
            (
                Purpose::Events,
                vec![kept.clone(), five.clone()],
                vec![(QueueRedrive, Warning)],
            ),
            (Purpose::Events, vec![kept.clone(), many.clone()], vec![]),
            (
                Purpose::Events,
                vec![kept.clone(), (Name::KmsMasterKeyId, "alias/aws/sqs")],
                vec![(QueueKey, Problem)],
            ),
            (
                Purpose::Events,
                vec![kept.clone(), (Name::KmsMasterKeyId, "alias/events")],
                vec![],
            ),
            (
                Purpose::Events,
                vec![kept.clone(), fifo.clone()],
                vec![(QueueType, Problem)],
            ),
            (Purpose::Work, work(&high), vec![]),
            (Purpose::Work, work(&[]), vec![(QueueThroughput, Warning)]),
            (
                Purpose::Work,
                work(&[high[0].clone(), high[1].clone(), many]),
                vec![(QueueRedrive, Problem)],
            ),
            (
                Purpose::Work,
                vec![kept.clone()],
                vec![(QueueType, Problem)],
            ),
            (Purpose::DeadLetter, vec![kept.clone(), five], vec![]),
        ];
        for (purpose, of, expected) in cases {
            assert_eq!(found(purpose, &of), expected, "{purpose} {of:?}");
        }
    }

    #[test]
    fn a_missing_queue_is_made_with_all_that_it_needs() {
        let account = account();
        let place = QueuePlace {
            purpose: Purpose::Events,
            url: URL,
            account: &account,
        };
        let sender = Sender {
            service: delivery::Service::Sns,
            source_arn: Some("arn:aws:sns:eu-west-1:111111111111:orders".to_owned()),
            account: None,
            role: None,
        };
        let refusal = Refusal {
            kind: RefusalKind::Absent,
            code: "AWS.SimpleQueueService.NonExistentQueue".to_owned(),
            words: "answered 400".to_owned(),
            region: None,
        };
        let (mut section, settings) = (Section::new("queue"), plain_settings());
        let documents = documents_of(&settings);
        judge(place, (&Err(refusal), &documents), &[sender], &mut section);
        let [finding] = &section.findings[..] else {
            panic!("{section:?}")
        };
        assert_eq!(finding.check, CheckName::QueueExists);
        let [Fix::Command { command }] = &finding.fix[..] else {
            panic!("{finding:?}")
        };
        for part in [
            "aws sqs create-queue --region eu-west-1 --queue-name orders-events",
            "\"MessageRetentionPeriod\":\"1209600\"",
            "arn:aws:sqs:eu-west-1:111111111111:orders-events",
            "aws:SourceArn",
        ] {
            assert!(command.contains(part), "{part} in {command}");
        }
    }
}
