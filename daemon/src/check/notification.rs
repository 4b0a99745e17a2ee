//! Notifications: whether a bucket's events, of every type and key that a rule needs, come to a queue
//! of the file: directly, by SNS, or, as `event_bridge` finds, by EventBridge.

use std::collections::BTreeSet;

use percent_encoding::percent_decode_str;
use replicator_config::{Account, Service};
use replicator_core::rule::Rule;
use serde_json::{Value, json};

use super::delivery::{Kind, NotificationTarget, Notifications, Topics, unread_topic};
use super::event_bridge::{Bridge, BusRule, BusRules};
use super::finding::{CheckName, Finding, Fix, cli_options, shell_quoted, with_field};
use crate::s3::accounts::error::Refusal;

impl NotificationTarget {
    /// Says whether it gets an event type, which may be one of several of its kind.
    fn has_event(&self, event: &str) -> bool {
        self.events.iter().any(|own| {
            own == event
                || own
                    .strip_suffix('*')
                    .is_some_and(|family| event.starts_with(family))
        })
    }

    /// Says whether it gets the events of every key that a rule is about. Filters are written with
    /// escapes where a key has characters that a URL has not.
    fn covers(&self, rule: &Rule) -> bool {
        let covers = |own: &str, covers: &dyn Fn(&str) -> bool| {
            let spaced = own.replace('+', " ");
            let decoded = percent_decode_str(&spaced).decode_utf8_lossy().into_owned();
            covers(own) || covers(&decoded)
        };
        covers(&self.prefix, &|own| rule.filter.prefix.starts_with(own))
            && covers(&self.suffix, &|own| rule.filter.suffix.ends_with(own))
    }

    fn to_json(&self) -> Value {
        let name = match self.kind {
            Kind::Queue => "QueueArn",
            Kind::Topic => "TopicArn",
            Kind::Function => "LambdaFunctionArn",
        };
        let mut one = json!({name: self.arn, "Events": self.events});
        if let Some(id) = &self.id {
            one = with_field(one, "Id", json!(id));
        }
        let parts = [("prefix", &self.prefix), ("suffix", &self.suffix)];
        let parts = parts.into_iter().filter(|(_, value)| !value.is_empty());
        let rules: Vec<Value> = parts
            .map(|(name, value)| json!({"Name": name, "Value": value}))
            .collect();
        if !rules.is_empty() {
            one = with_field(one, "Filter", json!({"Key": {"FilterRules": rules}}));
        }
        one
    }
}

/// An event type that a rule needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventNeed {
    pub(super) event: &'static str,
    /// Whether objects differ for good without it; else that may be what was meant.
    pub(super) is_vital: bool,
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-how-to-event-types-and-destinations.html
const CREATED: [&str; 4] = [
    "s3:ObjectCreated:Put",
    "s3:ObjectCreated:Post",
    "s3:ObjectCreated:Copy",
    "s3:ObjectCreated:CompleteMultipartUpload",
];
const TAGGED: [&str; 2] = ["s3:ObjectTagging:Put", "s3:ObjectTagging:Delete"];

/// Lists the event types that a rule needs.
pub(super) fn needs(rule: &Rule) -> Vec<EventNeed> {
    let need = |event, is_vital| EventNeed { event, is_vital };
    let plain = CREATED.into_iter().chain(TAGGED);
    let mut needs: Vec<EventNeed> = plain.map(|event| need(event, true)).collect();
    if rule.delete_markers {
        needs.push(need("s3:ObjectRemoved:DeleteMarkerCreated", true));
        needs.push(need("s3:LifecycleExpiration:DeleteMarkerCreated", false));
    }
    if rule.version_deletes {
        needs.push(need("s3:ObjectRemoved:Delete", true));
        needs.push(need("s3:LifecycleExpiration:Delete", false));
    }
    needs
}

/// What a rule's bucket does with the events that the rule needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Coverage {
    /// Whether any events come to a queue of the file.
    pub(super) is_reached: bool,
    /// Needed event types that no target of ours gets, and whether each is vital.
    missing: Vec<EventNeed>,
    /// Needed event types of which only the events of some keys come.
    filtered: Vec<EventNeed>,
}

impl Coverage {
    /// Lists what does not come, or not for every key.
    pub(super) fn gaps(&self) -> impl Iterator<Item = EventNeed> {
        self.missing.iter().chain(&self.filtered).copied()
    }
}

/// Compares what a rule needs with the targets that lead to a queue of the file.
pub(super) fn cover(rule: &Rule, ours: &[&NotificationTarget]) -> Coverage {
    let mut coverage = Coverage {
        is_reached: !ours.is_empty(),
        ..Coverage::default()
    };
    for need in needs(rule) {
        let mut having = ours.iter().filter(|target| target.has_event(need.event));
        let mut is_there = false;
        let is_covered = having.any(|target| {
            is_there = true;
            target.covers(rule)
        });
        if !is_there {
            coverage.missing.push(need);
        } else if !is_covered {
            coverage.filtered.push(need);
        }
    }
    coverage
}

/// A rule's bucket, its notifications, and what they may lead to.
#[derive(Debug)]
pub(super) struct Way<'a> {
    pub(super) rule: &'a Rule,
    /// All enabled rules of the bucket: a configuration is one for all of them.
    pub(super) rules: &'a [&'a Rule],
    pub(super) account: &'a Account,
    /// The AWS account that owns the bucket, where that is known.
    pub(super) owner: Option<String>,
    /// The principal that asks.
    pub(super) reader: &'a str,
    pub(super) notifications: &'a Notifications,
    pub(super) topics: &'a Topics,
    /// The rules of the bucket's event bus, where events may come by it.
    pub(super) bus: Option<&'a BusRules>,
    /// The ARNs of the queues that events may come from.
    pub(super) queues: &'a [String],
}

impl<'a> Way<'a> {
    /// Says whether another account's event bus gets the events, which the principal cannot ask.
    pub(super) fn is_foreign(&self) -> bool {
        let own = self.reader.split(':').nth(4);
        own.is_some() && own != self.owner.as_deref()
    }

    /// Says whether a pattern of EventBridge may be about the bucket: it names it, or none as it is.
    pub(super) fn may_match(&self, pattern: &str) -> bool {
        let pattern: Value = serde_json::from_str(pattern).unwrap_or_default();
        let names = pattern.pointer("/detail/bucket/name");
        names.and_then(Value::as_array).is_none_or(|names| {
            let bucket = self.rule.source.bucket.as_str();
            let mut names = names.iter();
            names.any(|name| name.as_str().is_none_or(|name| name == bucket))
        })
    }

    /// Lists the targets that lead to a queue of the file, as far as that is known.
    pub(super) fn ours(&self) -> Vec<&'a NotificationTarget> {
        let is_ours = |target: &&NotificationTarget| match target.kind {
            Kind::Queue => self.queues.contains(&target.arn),
            Kind::Topic => match self.topics.get(&target.arn) {
                Some(Ok(queues)) => queues.iter().any(|queue| self.queues.contains(queue)),
                Some(Err(_)) | None => false,
            },
            Kind::Function => false,
        };
        self.notifications.targets.iter().filter(is_ours).collect()
    }

    /// Lists the topics of which it is not known where they lead.
    fn unknown_topics(&self) -> impl Iterator<Item = (&'a str, &'a Refusal)> {
        let topics = self.topics;
        self.notifications
            .topics()
            .filter_map(move |topic| Some((topic, topics.get(topic)?.as_ref().err()?)))
    }

    /// Lists the rules of the bucket's event bus that lead to a queue of the file.
    pub(super) fn bus_rules(&self) -> impl Iterator<Item = &'a BusRule> {
        let known = self.bus.and_then(|rules| rules.as_ref().ok());
        known.into_iter().flatten()
    }

    /// Says whether events may come by EventBridge: not all that the rule needs come by other ways,
    /// and the bucket sends to EventBridge, or to nothing, which may be what is wrong.
    pub(super) fn may_need_bus(&self) -> bool {
        let coverage = cover(self.rule, &self.ours());
        // A store of another endpoint than EventBridge's has none.
        let is_bus_near = self.account.endpoint_of(Service::S3) == self.account.endpoint.as_deref();
        let is_told = self.notifications.is_bridged;
        coverage.gaps().next().is_some() && (is_told || !coverage.is_reached && is_bus_near)
    }

    /// Judges the way of the events; an empty answer is a good one. What EventBridge passes on is
    /// known of a bucket that may need it.
    pub(super) fn judge(&self, bridge: Option<&Bridge>) -> Vec<Finding> {
        let ours = self.ours();
        let coverage = cover(self.rule, &ours);
        let by_bus = bridge.and_then(|bridge| bridge.judge(self, &coverage));
        by_bus.unwrap_or_else(|| self.judge_targets(&ours, &coverage))
    }

    /// Says whether a topic of which that is not known may pass events on to a queue of the file.
    pub(super) fn may_pass_topics(&self) -> bool {
        self.unknown_topics().next().is_some()
    }

    /// Judges the targets that lead to a queue of the file, or may: what would still be lacking if
    /// each topic of which that is not known led there, is lacking.
    fn judge_targets(&self, ours: &[&NotificationTarget], coverage: &Coverage) -> Vec<Finding> {
        let unknown: Vec<_> = self.unknown_topics().collect();
        let is_unknown = |target: &&NotificationTarget| {
            target.kind == Kind::Topic && unknown.iter().any(|(topic, _)| *topic == target.arn)
        };
        let targets = self.notifications.targets.iter();
        let possible: Vec<_> = { ours.iter().copied() }
            .chain(targets.filter(is_unknown))
            .collect();
        let best = cover(self.rule, &possible);
        if !best.is_reached {
            return vec![self.unreached()];
        }
        let mut found = Vec::new();
        if best != *coverage {
            for (topic, refusal) in &unknown {
                found.push(unread_topic(topic, refusal, self.reader));
            }
        }
        found.extend(self.lacking(&possible, &best.missing));
        if !best.filtered.is_empty() {
            found.push(self.narrow(&possible, &best.filtered));
        }
        found
    }

    pub(super) fn bucket(&self) -> String {
        format!("s3://{}", self.rule.source.bucket)
    }

    fn unreached(&self) -> Finding {
        let topics: Vec<&str> = self.notifications.topics().collect();
        let others: Vec<&str> = self
            .notifications
            .targets
            .iter()
            .map(|target| target.arn.as_str())
            .collect();
        let why = "no event of this bucket comes to the daemon, and nothing of it is replicated";
        if let ([topic], Some(queue)) = (topics.as_slice(), self.queues.first()) {
            let what = format!("its topic {topic} does not pass its events on to {queue}");
            let endpoint = self.account.endpoint.iter();
            let endpoint: String = endpoint
                .map(|url| format!(" --endpoint-url {url}"))
                .collect();
            let command = format!(
                "aws sns subscribe --region {}{endpoint} --topic-arn {topic} --protocol sqs --notification-endpoint {queue}",
                self.account.region
            );
            return Finding::problem(CheckName::NotificationTopic, self.bucket(), what, why)
                .fixed_by([Fix::command(command)]);
        }
        let what = if others.is_empty() {
            "it sends no events to any queue or topic".to_owned()
        } else {
            format!("it sends its events elsewhere: {}", others.join(", "))
        };
        Finding::problem(CheckName::NotificationTarget, self.bucket(), what, why)
            .fixed_by(self.fix(&[]))
    }

    /// Judges event types that do not come, those apart that need not.
    fn lacking(&self, ours: &[&NotificationTarget], missing: &[EventNeed]) -> Vec<Finding> {
        let (vital, others): (Vec<_>, Vec<_>) = missing.iter().partition(|need| need.is_vital);
        let found = |needs: &[&EventNeed], why: &str| {
            let what = format!("it does not send {}", names(needs));
            Finding::problem(CheckName::NotificationEvents, self.bucket(), what, why)
                .fixed_by(self.fix(ours))
        };
        let why = "what such events tell of is not replicated, and nothing reports it";
        let vital = (!vital.is_empty()).then(|| found(&vital, why));
        let why = "what the source's lifecycle deletes stays at the destination, unless that is \
             what is meant";
        let others = (!others.is_empty()).then(|| found(&others, why).into_warning());
        vital.into_iter().chain(others).collect()
    }

    fn narrow(&self, ours: &[&NotificationTarget], filtered: &[EventNeed]) -> Finding {
        let filters: BTreeSet<String> = ours
            .iter()
            .map(|target| format!("prefix {:?} suffix {:?}", target.prefix, target.suffix))
            .collect();
        let filter = &self.rule.filter;
        let what = format!(
            "{} come for other keys than those with prefix {:?} and suffix {:?}, which the rule is \
             about: the notification has {}",
            names(&filtered.iter().collect::<Vec<_>>()),
            filter.prefix,
            filter.suffix,
            filters.into_iter().collect::<Vec<_>>().join("; ")
        );
        let why = "the events of the other keys are not sent: these are not replicated";
        Finding::problem(CheckName::NotificationFilter, self.bucket(), what, why)
            .fixed_by(self.fix(ours))
    }

    /// Writes the command that has the bucket send its events to EventBridge too.
    pub(super) fn bridging(&self) -> Fix {
        let whole = self.configuration(&self.notifications.targets);
        self.replacing(&with_field(whole, "EventBridgeConfiguration", json!({})))
    }

    fn replacing(&self, configuration: &Value) -> Fix {
        Fix::command(format!(
            "aws s3api put-bucket-notification-configuration{} --bucket {} --notification-configuration {}",
            cli_options(self.account, Service::S3),
            self.rule.source.bucket,
            shell_quoted(&configuration.to_string())
        ))
    }

    /// Writes the command that puts the whole configuration right; it replaces what is there, so
    /// all of that which may stay is in it. One type of event goes to one target only:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-how-to-filtering.html>
    fn fix(&self, ours: &[&NotificationTarget]) -> Vec<Fix> {
        let wanted = self.wanted(ours);
        let Some(wanted) = wanted else {
            let text = "name an events queue of the bucket's Region in the file";
            return vec![Fix::advice(text)];
        };
        let mut kept = vec![wanted.clone()];
        let mut losers = BTreeSet::new();
        let others = self.notifications.targets.iter();
        for other in others.filter(|other| !is_same(other, &wanted)) {
            let left = left_beside(other, &wanted);
            if left.events.len() < other.events.len() {
                losers.insert(other.arn.clone());
            }
            kept.extend(Some(left).filter(|left| !left.events.is_empty()));
        }
        let losers: Vec<String> = losers.into_iter().collect();
        let advice = (!losers.is_empty()).then(|| {
            Fix::advice(format!(
                "first see whether {} is still needed: S3 sends one type of event to one target, \
                 and this takes it from there; an SNS topic or EventBridge serves both",
                losers.join(", ")
            ))
        });
        let command = self.replacing(&self.configuration(&kept));
        advice.into_iter().chain([command]).collect()
    }

    fn configuration(&self, targets: &[NotificationTarget]) -> Value {
        let of = |kind| -> Vec<Value> {
            let of_kind = targets.iter().filter(|target| target.kind == kind);
            of_kind.map(NotificationTarget::to_json).collect()
        };
        let lists = [
            ("QueueConfigurations", of(Kind::Queue)),
            ("TopicConfigurations", of(Kind::Topic)),
            ("LambdaFunctionConfigurations", of(Kind::Function)),
        ];
        let mut whole = json!({});
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            whole = with_field(whole, name, json!(list));
        }
        if self.notifications.is_bridged {
            whole = with_field(whole, "EventBridgeConfiguration", json!({}));
        }
        whole
    }

    /// Returns the one target that all rules of the bucket need, where ours are now.
    fn wanted(&self, ours: &[&NotificationTarget]) -> Option<NotificationTarget> {
        let (kind, arn) = match ours.first() {
            Some(target) => (target.kind, target.arn.clone()),
            None => (Kind::Queue, self.queue_of_region()?),
        };
        // It takes the place of those that are of the same target, and is as wide as they are.
        let is_merged = |target: &&&NotificationTarget| (target.kind, &target.arn) == (kind, &arn);
        let merged: Vec<&NotificationTarget> = ours.iter().filter(is_merged).copied().collect();
        let mut events: BTreeSet<String> = merged
            .iter()
            .flat_map(|target| target.events.iter().cloned())
            .collect();
        let needed = self.rules.iter().flat_map(|rule| needs(rule));
        events.extend(needed.map(|need| family(need.event)));
        let families = events.clone();
        let is_within = |event: &String| {
            let of_family = |other: &String| other.ends_with('*') && *other == family(event);
            !event.ends_with('*') && families.iter().any(of_family)
        };
        events.retain(|event| !is_within(event));
        let prefixes = self.rules.iter().map(|rule| rule.filter.prefix.as_str());
        let prefixes = prefixes.chain(merged.iter().map(|target| target.prefix.as_str()));
        let reversed = |text: &str| text.chars().rev().collect::<String>();
        let suffixes: Vec<String> = self
            .rules
            .iter()
            .map(|rule| reversed(&rule.filter.suffix))
            .chain(merged.iter().map(|target| reversed(&target.suffix)))
            .collect();
        Some(NotificationTarget {
            kind,
            arn,
            id: Some("s3-replicator".to_owned()),
            events: events.into_iter().collect(),
            prefix: common_start(prefixes),
            suffix: reversed(&common_start(suffixes.iter().map(String::as_str))),
        })
    }

    /// S3 sends directly only to queues of the bucket's own Region.
    pub(super) fn queue_of_region(&self) -> Option<String> {
        let is_near = |arn: &&String| arn.split(':').nth(3) == Some(&self.account.region);
        self.queues.iter().find(is_near).cloned()
    }
}

fn is_same(one: &NotificationTarget, other: &NotificationTarget) -> bool {
    (one.kind, &one.arn) == (other.kind, &other.arn)
}

/// Takes away from a target what another one is to get.
fn left_beside(target: &NotificationTarget, wanted: &NotificationTarget) -> NotificationTarget {
    let meets = |a: &str, b: &str| a.starts_with(b) || b.starts_with(a);
    let mut left = target.clone();
    if meets(&target.prefix, &wanted.prefix) {
        left.events.retain(|event| !overlaps(event, &wanted.events));
    }
    left
}

fn names(needs: &[&EventNeed]) -> String {
    let names: Vec<&str> = needs.iter().map(|need| need.event).collect();
    names.join(", ")
}

/// Returns the name for all event types of a kind.
fn family(event: &str) -> String {
    let (family, _) = event.rsplit_once(':').unwrap_or((event, ""));
    format!("{family}:*")
}

fn overlaps(event: &str, events: &[String]) -> bool {
    events.iter().any(|other| {
        let is_all = other.ends_with('*') || event.ends_with('*');
        other == event || is_all && family(other) == family(event)
    })
}

pub(super) fn common_start<'a>(mut texts: impl Iterator<Item = &'a str>) -> String {
    let first = texts.next().unwrap_or_default().to_owned();
    texts.fold(first, |common, text| {
        let same = common.chars().zip(text.chars());
        let same = same.take_while(|(a, b)| a == b);
        same.map(|(char, _)| char).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::access::{ASK_TIMEOUT, Asked};

    const QUEUE: &str = "arn:aws:sqs:eu-west-1:111111111111:orders-events";
    const OTHER: &str = "arn:aws:sqs:eu-west-1:111111111111:elsewhere";
    const TOPIC: &str = "arn:aws:sns:eu-west-1:111111111111:orders";

    fn rule(rest: &str) -> Rule {
        let text = format!(
            "[accounts.a]\nregion = \"eu-west-1\"\n[accounts.b]\nregion = \"us-east-1\"\n\
             [[queues]]\nurl = \"https://sqs.eu-west-1.amazonaws.com/111111111111/orders-events\"\n\
             account = \"a\"\n\
             dead_letter_url = \"https://sqs.eu-west-1.amazonaws.com/111111111111/parked\"\n\
             [[rules]]\nid = \"orders\"\nsource = {{ account = \"a\", bucket = \"orders\" }}\n\
             destination = {{ account = \"b\", bucket = \"replicas\" }}\n{rest}\n"
        );
        let settings = replicator_config::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        settings.rules.into_iter().next().unwrap()
    }

    fn to(arn: &str, events: &[&str]) -> NotificationTarget {
        let kind = if arn.contains(":sns:") {
            Kind::Topic
        } else {
            Kind::Queue
        };
        NotificationTarget {
            kind,
            arn: arn.to_owned(),
            id: None,
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            prefix: String::new(),
            suffix: String::new(),
        }
    }

    fn filtered(prefix: &str, suffix: &str) -> NotificationTarget {
        NotificationTarget {
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            ..to(QUEUE, &ALL)
        }
    }

    const ALL: [&str; 4] = [
        "s3:ObjectCreated:*",
        "s3:ObjectRemoved:*",
        "s3:ObjectTagging:*",
        "s3:LifecycleExpiration:*",
    ];
    const PLAIN: [&str; 2] = ["s3:ObjectCreated:*", "s3:ObjectTagging:*"];

    /// Judges, and judges again after the printed command.
    fn judged(rule: &Rule, notifications: Notifications, topics: &Topics) -> Vec<Finding> {
        let account = Account {
            name: "a".to_owned(),
            region: "eu-west-1".to_owned(),
            ..Account::default()
        };
        let queues = [QUEUE.to_owned()];
        let judge = |notifications: &Notifications| {
            let way = Way {
                rule,
                rules: &[rule],
                account: &account,
                owner: None,
                reader: "the principal that signs",
                notifications,
                topics,
                bus: None,
                queues: &queues,
            };
            way.judge(None)
        };
        let found = judge(&notifications);
        let fixes = found.iter().flat_map(|finding| &finding.fix);
        for repaired in fixes.filter_map(applied) {
            assert_eq!(judge(&repaired), [], "after {repaired:?}");
            assert_eq!(repaired.is_bridged, notifications.is_bridged);
        }
        found
    }

    /// Does what `aws s3api put-bucket-notification-configuration` would.
    fn applied(fix: &Fix) -> Option<Notifications> {
        let Fix::Command { command } = fix else {
            return None;
        };
        let (_, json) = command.split_once("--notification-configuration ")?;
        let whole: Value = serde_json::from_str(json.trim_matches('\'')).unwrap();
        let list = |name: &str| whole[name].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let target = |kind, key: &str, one: &Value| {
            let rules = one["Filter"]["Key"]["FilterRules"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let value = |name| {
                rules
                    .iter()
                    .find(|rule| rule["Name"] == name)
                    .map(|rule| text(&rule["Value"]))
            };
            NotificationTarget {
                kind,
                arn: text(&one[key]),
                id: None,
                events: one["Events"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(&text)
                    .collect(),
                prefix: value("prefix").unwrap_or_default(),
                suffix: value("suffix").unwrap_or_default(),
            }
        };
        let queues = list("QueueConfigurations");
        let queues = queues
            .iter()
            .map(|one| target(Kind::Queue, "QueueArn", one));
        let topics = list("TopicConfigurations");
        let topics = topics
            .iter()
            .map(|one| target(Kind::Topic, "TopicArn", one));
        Some(Notifications {
            targets: queues.chain(topics).collect(),
            is_bridged: whole.get("EventBridgeConfiguration").is_some(),
        })
    }

    fn checks(rest: &str, targets: &[NotificationTarget]) -> Vec<CheckName> {
        let notifications = Notifications {
            targets: targets.to_vec(),
            is_bridged: false,
        };
        let found = judged(&rule(rest), notifications, &Topics::new());
        found.into_iter().map(|found| found.check).collect()
    }

    #[test]
    fn every_type_of_event_that_a_rule_needs_has_to_come() {
        use CheckName::{NotificationEvents as Events, NotificationTarget as Elsewhere};
        let (markers, deletes) = ("delete_markers = true", "version_deletes = true");
        let put = ["s3:ObjectCreated:Put", "s3:ObjectTagging:*"];
        let with = |more: &'static str| [PLAIN.as_slice(), &[more]].concat();
        let cases: [(&str, Vec<NotificationTarget>, Vec<CheckName>); 12] = [
            ("", vec![to(QUEUE, &PLAIN)], vec![]),
            ("", vec![], vec![Elsewhere]),
            ("", vec![to(OTHER, &ALL)], vec![Elsewhere]),
            ("", vec![to(QUEUE, &put)], vec![Events]),
            ("", vec![to(QUEUE, &["s3:ObjectCreated:*"])], vec![Events]),
            (
                "",
                vec![
                    to(QUEUE, &["s3:ObjectCreated:*"]),
                    to(QUEUE, &["s3:ObjectTagging:*"]),
                ],
                vec![],
            ),
            (markers, vec![to(QUEUE, &ALL)], vec![]),
            (markers, vec![to(QUEUE, &PLAIN)], vec![Events, Events]),
            (
                markers,
                vec![to(QUEUE, &with("s3:ObjectRemoved:*"))],
                vec![Events],
            ),
            (
                deletes,
                vec![to(QUEUE, &with("s3:ObjectRemoved:DeleteMarkerCreated"))],
                vec![Events, Events],
            ),
            (deletes, vec![to(QUEUE, &ALL)], vec![]),
            (
                "",
                vec![to(QUEUE, &PLAIN), to(OTHER, &["s3:ObjectAcl:Put"])],
                vec![],
            ),
        ];
        for (rest, targets, expected) in cases {
            assert_eq!(checks(rest, &targets), expected, "{rest} {targets:?}");
        }
    }

    #[test]
    fn a_filter_has_to_let_every_key_of_the_rule_through() {
        use CheckName::NotificationFilter as Filter;
        let rule = "filter = { prefix = \"in/2026/\", suffix = \".tar.gz\" }";
        let cases = [
            (filtered("", ""), vec![]),
            (filtered("in/", ".gz"), vec![]),
            (filtered("in/2026/", ".tar.gz"), vec![]),
            (filtered("in%2F2026%2F", ""), vec![]),
            (filtered("in/2026/11/", ""), vec![Filter]),
            (filtered("out/", ""), vec![Filter]),
            (filtered("", ".json"), vec![Filter]),
            (filtered("", "x.tar.gz"), vec![Filter]),
        ];
        for (target, expected) in cases {
            assert_eq!(
                checks(rule, std::slice::from_ref(&target)),
                expected,
                "{target:?}"
            );
        }
    }

    #[test]
    fn what_may_stay_is_in_the_command_that_replaces_the_configuration() {
        let acl = to(OTHER, &["s3:ObjectAcl:Put", "s3:ObjectCreated:Put"]);
        let notifications = Notifications {
            targets: vec![acl],
            is_bridged: false,
        };
        let found = judged(&rule(""), notifications, &Topics::new());
        let [Fix::Advice { text }, command] = &found[0].fix[..] else {
            panic!("{found:?}")
        };
        assert!(text.contains(OTHER), "{text}");
        let kept = applied(command).unwrap();
        let kept = kept
            .targets
            .iter()
            .find(|target| target.arn == OTHER)
            .unwrap();
        assert_eq!(kept.events, ["s3:ObjectAcl:Put"]);
    }

    #[test]
    fn a_topic_counts_where_the_queue_is_subscribed() {
        let notifications = || Notifications {
            targets: vec![to(TOPIC, &PLAIN)],
            is_bridged: false,
        };
        let of = |queues: Asked<Vec<String>>| {
            let topics = Topics::from([(TOPIC.to_owned(), queues)]);
            let found = judged(&rule(""), notifications(), &topics);
            let found = found.into_iter();
            found
                .map(|found| (found.check, found.severity))
                .collect::<Vec<_>>()
        };
        use crate::check::finding::Severity::{Problem, Unasked};
        assert_eq!(of(Ok(vec![QUEUE.to_owned()])), []);
        let check = CheckName::NotificationTopic;
        assert_eq!(of(Ok(vec![OTHER.to_owned()])), [(check, Problem)]);
        let silent = Refusal::unanswered(ASK_TIMEOUT);
        assert_eq!(of(Err(silent)), [(check, Unasked)]);
    }

    #[test]
    fn what_a_topic_may_pass_on_that_is_not_known_is_not_said_to_be_missing() {
        use crate::check::finding::Severity::{Problem, Unasked};
        let of = |direct: &[&str], by_topic: &[&str]| {
            let notifications = Notifications {
                targets: vec![to(QUEUE, direct), to(TOPIC, by_topic)],
                is_bridged: false,
            };
            let silent = Err(Refusal::unanswered(ASK_TIMEOUT));
            let topics = Topics::from([(TOPIC.to_owned(), silent)]);
            let found = judged(&rule(""), notifications, &topics).into_iter();
            found
                .map(|found| (found.check, found.severity))
                .collect::<Vec<_>>()
        };
        let (created, tagged) = (["s3:ObjectCreated:*"], ["s3:ObjectTagging:*"]);
        let unknown = (CheckName::NotificationTopic, Unasked);
        assert_eq!(of(&created, &tagged), [unknown]);
        let acl = ["s3:ObjectAcl:Put"];
        assert_eq!(of(&PLAIN, &acl), []);
        assert_eq!(
            of(&created, &acl),
            [(CheckName::NotificationEvents, Problem)]
        );
    }
}
