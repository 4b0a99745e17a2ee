//! What stands between a bucket and a queue: the bucket's notifications, the queue's policy, which has to let the sender of the
//! events in, and a topic's subscriptions. Policies are evaluated as far as they say it by names, and
//! in the sender's favour where they do not.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_s3::operation::get_bucket_notification_configuration::GetBucketNotificationConfigurationOutput;
use aws_sdk_s3::types::{Event, FilterRuleName, NotificationConfigurationFilter};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_config::Account;
use replicator_config::policies::{DocumentKind, bucket_arn};
use serde_json::{Value, json};

use super::access::{self, Asked, DocumentSet};
use super::finding::{CheckName, Finding, Fix, with_field};
use super::notification::Way;
use super::queues;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::{Refusal, RefusalKind};
use crate::s3::client::PlainText;
use crate::s3::xml::{self, NotXml};

/// What a bucket says of its notifications.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Notifications {
    pub(super) targets: Vec<NotificationTarget>,
    /// Whether all events go to EventBridge.
    pub(super) is_bridged: bool,
}

/// One place that a bucket sends events to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotificationTarget {
    pub(super) kind: Kind,
    pub(super) arn: String,
    pub(super) id: Option<String>,
    pub(super) events: Vec<String>,
    pub(super) prefix: String,
    pub(super) suffix: String,
}

/// The kind of a place that events go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Queue,
    Topic,
    Function,
}

/// The queues that each topic passes on to, by the topic's ARN.
pub(super) type Topics = BTreeMap<String, Asked<Vec<String>>>;

impl Notifications {
    pub(super) fn from_answer(answer: &GetBucketNotificationConfigurationOutput) -> Self {
        let queues = answer.queue_configurations().iter().map(|one| {
            let named = (Kind::Queue, one.queue_arn(), one.id());
            target(named, one.events(), one.filter())
        });
        let topics = answer.topic_configurations().iter().map(|one| {
            let named = (Kind::Topic, one.topic_arn(), one.id());
            target(named, one.events(), one.filter())
        });
        let functions = answer.lambda_function_configurations().iter().map(|one| {
            let named = (Kind::Function, one.lambda_function_arn(), one.id());
            target(named, one.events(), one.filter())
        });
        Self {
            targets: queues.chain(topics).chain(functions).collect(),
            is_bridged: answer.event_bridge_configuration().is_some(),
        }
    }

    /// Lists the topics that events go to.
    pub(super) fn topics(&self) -> impl Iterator<Item = &str> {
        let topics = self.targets.iter().filter(|one| one.kind == Kind::Topic);
        topics.map(|one| one.arn.as_str())
    }
}

fn target(
    (kind, arn, id): (Kind, &str, Option<&str>),
    events: &[Event],
    filter: Option<&NotificationConfigurationFilter>,
) -> NotificationTarget {
    let rules = filter.and_then(|filter| filter.key());
    let rules = rules.map(|key| key.filter_rules()).unwrap_or_default();
    let value = |name: &FilterRuleName| {
        let named = |found: &FilterRuleName| found.as_str().eq_ignore_ascii_case(name.as_str());
        let rule = rules.iter().find(|rule| rule.name().is_some_and(named));
        rule.and_then(|rule| rule.value())
            .unwrap_or_default()
            .to_owned()
    };
    NotificationTarget {
        kind,
        arn: arn.to_owned(),
        id: id.map(str::to_owned),
        events: events
            .iter()
            .map(|event| event.as_str().to_owned())
            .collect(),
        prefix: value(&FilterRuleName::Prefix),
        suffix: value(&FilterRuleName::Suffix),
    }
}

/// What sends events to a queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sender {
    pub(super) service: Service,
    /// The bucket, topic or EventBridge rule; there is none where the rule is not known.
    pub(super) source_arn: Option<String>,
    /// The role that an EventBridge rule assumes to send, whose permissions are not known.
    pub(super) role: Option<String>,
    /// The AWS account that the bucket is in, where that is known.
    pub(super) account: Option<String>,
}

/// A service of AWS that sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    S3,
    Sns,
    EventBridge,
}

impl Service {
    fn principal(self) -> &'static str {
        match self {
            Self::S3 => "s3.amazonaws.com",
            Self::Sns => "sns.amazonaws.com",
            Self::EventBridge => "events.amazonaws.com",
        }
    }
}

/// Lists what sends events to a queue, or is to once the notifications are right.
pub(super) fn senders_of<'w>(
    ways: impl Iterator<Item = Way<'w>>,
    place: queues::QueuePlace<'_>,
) -> Vec<Sender> {
    let arn = place.arn();
    let ways = ways.filter(|_| place.purpose == queues::Purpose::Events);
    let senders: BTreeSet<Sender> = ways.flat_map(|way| senders(&way, &arn)).collect();
    senders.into_iter().collect()
}

fn senders(way: &Way<'_>, queue: &str) -> Vec<Sender> {
    let sender = |service, source_arn| Sender {
        service,
        source_arn,
        role: None,
        account: way.owner.clone(),
    };
    let bucket = bucket_arn(way.account, way.rule.source.bucket.as_str());
    let ours = way.ours();
    let leads_here = |topic: &str| {
        let queues = way.topics.get(topic).and_then(|asked| asked.as_ref().ok());
        queues.is_some_and(|queues| queues.iter().any(|one| one == queue))
    };
    let senders = ours.iter().filter_map(|target| match target.kind {
        Kind::Queue if target.arn == queue => Some(sender(Service::S3, Some(bucket.clone()))),
        Kind::Topic if leads_here(&target.arn) => {
            Some(sender(Service::Sns, Some(target.arn.clone())))
        }
        Kind::Queue | Kind::Topic | Kind::Function => None,
    });
    let mut senders: Vec<Sender> = senders.collect();
    let on_bus = way.bus_rules().flat_map(|rule| rule.senders(queue));
    senders.extend(on_bus.map(|(rule, role)| Sender {
        role,
        ..sender(Service::EventBridge, Some(rule))
    }));
    let is_next = || way.queue_of_region().as_deref() == Some(queue);
    if !ours.is_empty() || !senders.is_empty() || !is_next() {
        return senders;
    }
    let topics: Vec<&str> = way.notifications.topics().collect();
    vec![match (way.notifications.is_bridged, topics.as_slice()) {
        (true, _) => sender(Service::EventBridge, None),
        (false, [topic]) => sender(Service::Sns, Some((*topic).to_owned())),
        (false, _) => sender(Service::S3, Some(bucket)),
    }]
}

/// Finds a queue that gets no events.
pub(super) fn unused(place: queues::QueuePlace<'_>, senders: &[Sender]) -> Option<Finding> {
    if place.purpose != queues::Purpose::Events || !senders.is_empty() {
        return None;
    }
    let what = "no bucket of an enabled rule sends events to it";
    let why = "it is polled for nothing, or the bucket that is meant sends its events elsewhere";
    let fix = "send a bucket's events to it, or take it out of the file";
    let finding = Finding::problem(CheckName::QueueUsed, place.url, what, why).into_warning();
    Some(finding.fixed_by([Fix::advice(fix)]))
}

/// What a policy says of a sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A statement lets it send.
    Lets,
    /// No statement does.
    Lacks,
    /// A statement denies it.
    Denies,
    /// It is no policy.
    Unreadable,
}

/// Evaluates a queue's policy for a sender.
pub(super) fn evaluate(policy: Option<&str>, queue_arn: &str, sender: &Sender) -> Verdict {
    let Some(text) = policy.filter(|text| !text.trim().is_empty()) else {
        return Verdict::Lacks;
    };
    let Ok(policy) = serde_json::from_str::<Value>(text) else {
        return Verdict::Unreadable;
    };
    let statements = list(field(&policy, "Statement"));
    let applies = |statement: &&&Value, effect: &str, unknown_holds: bool| {
        field(statement, "Effect") == effect
            && names_principal(statement, sender.service)
            && names(statement, ("Action", "NotAction"), "sqs:SendMessage", true)
            && names(statement, ("Resource", "NotResource"), queue_arn, false)
            && holds(field(statement, "Condition"), sender, unknown_holds)
    };
    if statements.iter().any(|one| applies(&one, "Deny", false)) {
        Verdict::Denies
    } else if statements.iter().any(|one| applies(&one, "Allow", true)) {
        Verdict::Lets
    } else {
        Verdict::Lacks
    }
}

/// Returns the statement that lets SNS or EventBridge send, which `policies` knows nothing of: the
/// configuration does not name what stands between bucket and queue.
fn statement(queue_arn: &str, sender: &Sender) -> Value {
    let statement = json!({
        "Effect": "Allow",
        "Principal": {"Service": sender.service.principal()},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
    });
    let condition = match (&sender.source_arn, queue_arn.split(':').collect::<Vec<_>>()) {
        (Some(arn), _) => json!({"ArnEquals": {"aws:SourceArn": arn}}),
        // Any account's rules send by this principal.
        (None, parts) => match parts.as_slice() {
            [_, partition, _, region, owner, ..] => {
                let rules = format!("arn:{partition}:events:{region}:{owner}:rule/*");
                json!({"ArnLike": {"aws:SourceArn": rules}})
            }
            _ => return statement,
        },
    };
    with_field(statement, "Condition", condition)
}

/// Returns what is to be added to a queue's policy.
pub(super) fn fixes(queue_arn: &str, sender: &Sender, documents: &DocumentSet<'_>) -> Vec<Fix> {
    match sender.service {
        Service::S3 => documents.of_sender(queue_arn),
        Service::Sns | Service::EventBridge => {
            let statement = statement(queue_arn, sender);
            let kind = DocumentKind::QueuePolicy;
            vec![Fix::statement(kind, queue_arn, statement)]
        }
    }
}

/// One value, or several of them.
fn list(value: &Value) -> Vec<&Value> {
    match value.as_array() {
        Some(values) => values.iter().collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

fn field<'v>(object: &'v Value, name: &str) -> &'v Value {
    object.get(name).unwrap_or(&Value::Null)
}

fn names_principal(statement: &Value, service: Service) -> bool {
    let principal = field(statement, "Principal");
    let is_any = |value: &Value| value == "*";
    is_any(principal)
        || list(field(principal, "AWS")).into_iter().any(is_any)
        || list(field(principal, "Service"))
            .into_iter()
            .any(|name| name == service.principal())
}

/// Says whether a statement names something, by patterns, or by all that are not named.
fn names(statement: &Value, (is, is_not): (&str, &str), name: &str, ignores_case: bool) -> bool {
    let found = |key: &str| {
        list(field(statement, key))
            .into_iter()
            .filter_map(Value::as_str)
            .any(|pattern| matches_glob(pattern, name, ignores_case))
    };
    match statement.get(is_not) {
        Some(_) => !found(is_not),
        None => found(is),
    }
}

/// Says whether conditions hold for a sender; those that nothing is known of count as told.
fn holds(conditions: &Value, sender: &Sender, unknown_holds: bool) -> bool {
    let Some(operators) = conditions.as_object() else {
        return true;
    };
    let mut single = operators.iter().flat_map(|(operator, keys)| {
        let keys = keys.as_object().into_iter().flatten();
        keys.map(move |(key, values)| (operator.as_str(), key.as_str(), values))
    });
    single.all(|(operator, key, values)| {
        let known = match key.to_ascii_lowercase().as_str() {
            "aws:sourcearn" => sender.source_arn.as_deref(),
            "aws:sourceaccount" => sender.account.as_deref(),
            _ => None,
        };
        known
            .and_then(|known| compare(operator, values, known))
            .unwrap_or(unknown_holds)
    })
}

/// Compares a value with those of a condition; `None` for an operator of another kind.
fn compare(operator: &str, values: &Value, known: &str) -> Option<bool> {
    let operator = operator.trim_end_matches("IfExists");
    let operator = operator.rsplit(':').next().unwrap_or(operator);
    let any = |matches: &dyn Fn(&str) -> bool| {
        list(values)
            .into_iter()
            .filter_map(Value::as_str)
            .any(matches)
    };
    let glob = |pattern: &str| matches_glob(pattern, known, false);
    match operator {
        "ArnEquals" | "ArnLike" | "StringLike" => Some(any(&glob)),
        "StringEquals" => Some(any(&|value| value == known)),
        "StringEqualsIgnoreCase" => Some(any(&|value| value.eq_ignore_ascii_case(known))),
        "ArnNotEquals" | "ArnNotLike" | "StringNotLike" => Some(!any(&glob)),
        "StringNotEquals" => Some(!any(&|value| value == known)),
        _ => None,
    }
}

/// Matches a pattern in which `*` stands for any characters and `?` for one.
fn matches_glob(pattern: &str, text: &str, ignores_case: bool) -> bool {
    let fold = |text: &str| -> Vec<char> {
        if ignores_case {
            text.to_ascii_lowercase().chars().collect()
        } else {
            text.chars().collect()
        }
    };
    let (pattern, text) = (fold(pattern), fold(text));
    // The characters of the text that each beginning of the pattern may end before.
    let mut ends = vec![false; text.len() + 1];
    if let Some(first) = ends.first_mut() {
        *first = true;
    }
    for sign in pattern {
        let mut next = vec![false; ends.len()];
        let mut is_reached = false;
        for (at, end) in next.iter_mut().enumerate() {
            let before = at.checked_sub(1);
            let is_before = before.and_then(|at| ends.get(at)).copied().unwrap_or(false);
            let here = before.and_then(|at| text.get(at));
            is_reached |= ends.get(at).copied().unwrap_or(false);
            *end = match sign {
                '*' => is_reached,
                '?' => is_before,
                letter => is_before && here == Some(&letter),
            };
        }
        ends = next;
    }
    ends.last().copied().unwrap_or(false)
}

/// Reports a topic of which it is not known where it leads.
pub(super) fn unread_topic(topic: &str, refusal: &Refusal, reader: &str) -> Finding {
    let what = format!(
        "the subscriptions of the topic could not be read: {}",
        refusal.words
    );
    let why = "whether the topic passes the events on to the queue is not known";
    let statement =
        json!({"Effect": "Allow", "Action": "sns:ListSubscriptionsByTopic", "Resource": topic});
    let fix = match refusal.kind == RefusalKind::Denied {
        true => Fix::statement(DocumentKind::Permissions, reader, statement),
        false => Fix::command(format!(
            "aws sns list-subscriptions-by-topic --topic-arn {topic}"
        )),
    };
    Finding::problem(CheckName::NotificationTopic, topic, what, why)
        .into_unasked()
        .fixed_by([fix])
}

// A topic has 12.5 million subscriptions at most, and one that feeds a queue has a few:
// https://docs.aws.amazon.com/general/latest/gr/sns.html
const PAGES_MAX: usize = 20;

/// Requests the queues that a topic passes on to. One request is no reason for one more client of
/// the SDK: SNS takes forms, and answers with XML.
pub(super) async fn read_topic(
    topic: String,
    ours: &[String],
    (account, clients): (&Account, &AccountClients),
) -> Asked<Vec<String>> {
    let region = topic.split(':').nth(3).unwrap_or(&account.region);
    let url = account.service_url("sns", region);
    let mut queues = Vec::new();
    let mut token: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let mut form = format!(
            "Action=ListSubscriptionsByTopic&Version=2010-03-31&TopicArn={}",
            utf8_percent_encode(&topic, NON_ALPHANUMERIC)
        );
        if let Some(token) = &token {
            form.push_str("&NextToken=");
            form.extend(utf8_percent_encode(token, NON_ALPHANUMERIC));
        }
        let sent = clients
            .wire
            .send_text(&url, (region, "sns"), PlainText::Form(&form));
        let text = tokio::time::timeout(access::ASK_TIMEOUT, Box::pin(sent)).await;
        let text = text.map_err(|_elapsed| Refusal::unanswered(access::ASK_TIMEOUT))??;
        let page = parse_subscriptions(&text);
        let (page, next) = page.map_err(|error| Refusal::silent(error.to_string()))?;
        queues.extend(page);
        if next.is_none() {
            return Ok(queues);
        }
        token = next;
    }
    cut_off(queues, ours)
}

/// Returns the queues of the subscriptions that were read, of more: where none of ours is among them
/// it is not known whether one is subscribed.
fn cut_off(queues: Vec<String>, ours: &[String]) -> Asked<Vec<String>> {
    match queues.iter().any(|queue| ours.contains(queue)) {
        true => Ok(queues),
        false => Err(Refusal::silent("it has more subscriptions than are read")),
    }
}

/// Reads a page of subscriptions: the queues that are subscribed, and where the next page begins.
fn parse_subscriptions(text: &str) -> Result<(Vec<String>, Option<String>), NotXml> {
    let mut queues = Vec::new();
    let mut next = None;
    let mut endpoint = None;
    let mut is_queue = false;
    xml::visit_elements(text, |path, text| {
        match path {
            [.., "member", "Endpoint"] => endpoint = Some(text.into_owned()),
            [.., "member", "Protocol"] => is_queue = text == "sqs",
            [.., "Subscriptions", "member"] => {
                queues.extend(endpoint.take().filter(|_| is_queue));
            }
            [.., "NextToken"] if !text.is_empty() => next = Some(text.into_owned()),
            _ => {}
        }
        Ok::<_, NotXml>(())
    })?;
    Ok((queues, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: &str = "arn:aws:sqs:eu-west-1:111111111111:orders-events";
    const BUCKET: &str = "arn:aws:s3:::orders";

    fn s3() -> Sender {
        Sender {
            service: Service::S3,
            source_arn: Some(BUCKET.to_owned()),
            account: Some("111111111111".to_owned()),
            role: None,
        }
    }

    fn of_s3() -> Value {
        json!({
            "Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"},
            "Action": "sqs:SendMessage", "Resource": QUEUE,
            "Condition": {
                "ArnEquals": {"aws:SourceArn": BUCKET},
                "StringEquals": {"aws:SourceAccount": "111111111111"},
            },
        })
    }

    fn of(statements: Value) -> Verdict {
        let policy = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
        evaluate(Some(&policy), QUEUE, &s3())
    }

    #[test]
    fn the_statement_that_is_printed_lets_its_sender_send() {
        let topic = "arn:aws:sns:eu-west-1:111111111111:orders";
        let senders = [
            Sender {
                service: Service::Sns,
                source_arn: Some(topic.to_owned()),
                account: None,
                role: None,
            },
            Sender {
                service: Service::EventBridge,
                source_arn: None,
                account: None,
                role: None,
            },
        ];
        for sender in &senders {
            let policy = json!({"Statement": statement(QUEUE, sender)}).to_string();
            assert_eq!(evaluate(Some(&policy), QUEUE, sender), Verdict::Lets);
            for other in senders
                .iter()
                .filter(|other| other.service != sender.service)
            {
                assert_eq!(evaluate(Some(&policy), QUEUE, other), Verdict::Lacks);
            }
            assert_eq!(evaluate(None, QUEUE, sender), Verdict::Lacks);
            assert_eq!(evaluate(Some("{"), QUEUE, sender), Verdict::Unreadable);
        }
    }

    #[test]
    fn a_statement_counts_only_if_every_part_of_it_names_the_sender() {
        let good = of_s3();
        let with = |key: &str, value: Value| {
            let mut changed = good.clone();
            changed[key] = value;
            of(changed)
        };
        let cases = [
            ("Principal", json!("*"), Verdict::Lets),
            ("Principal", json!({"AWS": ["*"]}), Verdict::Lets),
            (
                "Principal",
                json!({"AWS": "arn:aws:iam::1:root"}),
                Verdict::Lacks,
            ),
            (
                "Principal",
                json!({"Service": ["sns.amazonaws.com", "s3.amazonaws.com"]}),
                Verdict::Lets,
            ),
            ("Action", json!("SQS:SendMessage"), Verdict::Lets),
            ("Action", json!(["sqs:*"]), Verdict::Lets),
            ("Action", json!("sqs:SendMessageBatch"), Verdict::Lacks),
            ("Action", json!("sqs:ReceiveMessage"), Verdict::Lacks),
            ("Resource", json!("arn:aws:sqs:*:*:orders-*"), Verdict::Lets),
            (
                "Resource",
                json!("arn:aws:sqs:eu-west-1:111111111111:other"),
                Verdict::Lacks,
            ),
            ("Condition", Value::Null, Verdict::Lets),
            (
                "Condition",
                json!({"ArnLike": {"aws:SourceArn": "arn:aws:s3:*:*:ord*"}}),
                Verdict::Lets,
            ),
            (
                "Condition",
                json!({"ArnEquals": {"aws:SourceArn": "arn:aws:s3:::invoices"}}),
                Verdict::Lacks,
            ),
            (
                "Condition",
                json!({"StringEquals": {"AWS:SourceAccount": "222222222222"}}),
                Verdict::Lacks,
            ),
            (
                "Condition",
                json!({"Bool": {"aws:SecureTransport": "true"}}),
                Verdict::Lets,
            ),
            ("Effect", json!("Deny"), Verdict::Denies),
        ];
        for (key, value, expected) in cases {
            assert_eq!(with(key, value.clone()), expected, "{key} = {value}");
        }
    }

    #[test]
    fn a_deny_counts_where_it_surely_is_about_the_sender() {
        let deny = |condition: Value| {
            let deny = json!({
                "Effect": "Deny", "Principal": "*", "Action": "*", "Resource": QUEUE,
                "Condition": condition,
            });
            of(json!([of_s3(), deny]))
        };
        let plain = json!({"Bool": {"aws:SecureTransport": "false"}});
        assert_eq!(deny(plain), Verdict::Lets);
        let others = json!({"ArnNotEquals": {"aws:SourceArn": BUCKET}});
        assert_eq!(deny(others), Verdict::Lets);
        let all_but = json!({"ArnNotEquals": {"aws:SourceArn": "arn:aws:s3:::invoices"}});
        assert_eq!(deny(all_but), Verdict::Denies);
    }

    #[test]
    fn a_pattern_matches_as_iam_does() {
        let cases = [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("**a", "ba", true),
            ("", "a", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                matches_glob(pattern, text, false),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_queue_beyond_the_subscriptions_that_are_read_is_not_said_to_be_missing() {
        let (ours, other) = ([QUEUE.to_owned()], ["other".to_owned()]);
        assert!(cut_off(ours.to_vec(), &ours).is_ok());
        assert!(cut_off(other.to_vec(), &ours).is_err());
    }

    #[test]
    fn subscriptions_are_read_page_by_page() {
        let member = |protocol: &str, endpoint: &str| {
            format!(
                "<member><Protocol>{protocol}</Protocol><Endpoint>{endpoint}</Endpoint></member>"
            )
        };
        let text = format!(
            "<ListSubscriptionsByTopicResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\">\
             <ListSubscriptionsByTopicResult><Subscriptions>{}{}</Subscriptions>\
             <NextToken>more</NextToken></ListSubscriptionsByTopicResult>\
             </ListSubscriptionsByTopicResponse>",
            member("email", "a@b"),
            member("sqs", QUEUE)
        );
        let (queues, next) = parse_subscriptions(&text).unwrap();
        assert_eq!(
            (queues, next.as_deref()),
            (vec![QUEUE.to_owned()], Some("more"))
        );
        assert!(parse_subscriptions("<a>").is_err());
    }
}
