//! EventBridge between a bucket and a queue: the rules of the bucket's default event bus that have a
//! queue of the file as their target, and which events a rule of ours needs match their patterns, as
//! EventBridge itself says.

use replicator_config::Account;
use replicator_config::policies::{DocumentKind, bucket_arn};
use serde_json::{Value, json};

use super::access;
use super::buckets::{event_name, pattern, samples};
use super::finding::{CheckName, Finding, Fix, shell_quoted, with_field};
use super::notification::{Coverage, EventNeed, Way, needs};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::{Refusal, RefusalKind};
use crate::s3::client::PlainText;

/// A rule of an event bus that has a queue of the file as its target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BusRule {
    /// As DescribeRule returns it.
    described: Value,
    /// Its targets, as ListTargetsByRule returns them.
    targets: Vec<Value>,
    /// The ARNs of the queues of the file.
    queues: Vec<String>,
}

/// The rules that lead to a queue of the file, or why they are not known.
pub(super) type BusRules = Result<Vec<BusRule>, BusRefusal>;

/// A request to EventBridge that was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BusRefusal {
    action: String,
    resource: String,
    refusal: Refusal,
}

// What an event becomes where the target has one of these. The whole event is no change.
const CHANGES: [(&str, &str); 3] = [
    ("Input", ""),
    ("InputPath", "$"),
    ("InputTransformer", "<aws.events.event.json>"),
];

impl BusRule {
    fn text(&self, name: &str) -> &str {
        let field = self.described.get(name).and_then(Value::as_str);
        field.unwrap_or_default()
    }

    // https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_DescribeRule.html
    fn is_enabled(&self) -> bool {
        self.text("State").starts_with("ENABLED")
    }

    /// Lists its targets that are queues of the file.
    fn ours(&self) -> impl Iterator<Item = &Value> {
        let queues = &self.queues;
        let targets = self.targets.iter();
        targets.filter(|target| queues.iter().any(|queue| target_arn(target) == queue))
    }

    /// Lists its ARN, and the role that it sends as if it has one, for each time it sends to a queue.
    pub(super) fn senders(&self, queue: &str) -> Vec<(String, Option<String>)> {
        let of_queue = self.ours().filter(|target| target_arn(target) == queue);
        let role = |target: &Value| Some(target.get("RoleArn")?.as_str()?.to_owned());
        let sender = |target| (self.text("Arn").to_owned(), role(target));
        of_queue.map(sender).collect()
    }

    /// Says whether some queue of the file gets events of the rule as they are; by a schedule alone
    /// it gets none.
    fn is_usable(&self) -> bool {
        let has_pattern = !self.text("EventPattern").is_empty();
        has_pattern && self.is_enabled() && self.ours().any(|target| change_of(target).is_none())
    }

    /// Says whether its pattern is about one bucket, and its targets are all ours, so that another
    /// pattern changes nothing for others.
    fn is_for(&self, bucket: &str) -> bool {
        let pattern: Value = serde_json::from_str(self.text("EventPattern")).unwrap_or_default();
        pattern.pointer("/detail/bucket/name") == Some(&json!([bucket]))
            && self.ours().count() == self.targets.len()
    }
}

fn target_arn(target: &Value) -> &str {
    target
        .get("Arn")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Returns what makes something else of the events that a target gets.
fn change_of(target: &Value) -> Option<&'static str> {
    let is_change = |(name, whole): &(&str, &str)| {
        let value = target.get(*name)?;
        let value = value.get("InputTemplate").unwrap_or(value);
        (value.as_str().map(str::trim) != Some(*whole)).then_some(())
    };
    let found = CHANGES.iter().find(|change| is_change(change).is_some());
    found.map(|(name, _)| *name)
}

// A target has a handful of rules, a rule five targets:
// https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-quota.html
const PAGES_MAX: usize = 20;

/// Where a bucket's events go: the default event bus of its Region, in its owner's account.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventBus<'a> {
    pub(super) account: &'a Account,
    pub(super) clients: &'a AccountClients,
}

impl EventBus<'_> {
    /// Reads the rules that have one of the queues as their target.
    pub(super) async fn read_rules(self, queues: &[String]) -> BusRules {
        let mut names: Vec<String> = Vec::new();
        for queue in queues {
            let asked = json!({"TargetArn": queue});
            let found = self
                .list("ListRuleNamesByTarget", asked, "RuleNames")
                .await?;
            names.extend(found.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        names.sort();
        names.dedup();
        let mut rules = Vec::new();
        for name in names {
            let described = self.ask("DescribeRule", &json!({"Name": name})).await?;
            let targets = self.list("ListTargetsByRule", json!({"Rule": name}), "Targets");
            rules.push(BusRule {
                described,
                targets: targets.await?,
                queues: queues.to_vec(),
            });
        }
        Ok(rules)
    }

    /// Finds out which of the events that a rule needs match the patterns of the usable rules.
    pub(super) async fn test_patterns(self, way: &Way<'_>) -> Option<Bridge> {
        let mut rules = match way.bus? {
            Ok(rules) => rules.clone(),
            Err(refusal) => return Some(Bridge::Unread(refusal.clone())),
        };
        rules.retain(|rule| way.may_match(rule.text("EventPattern")));
        let mut passed = Vec::new();
        for need in needs(way.rule) {
            match self.match_all(&rules, &samples(way, need)).await {
                Ok(true) => passed.push(need.event),
                Ok(false) => {}
                Err(refusal) => return Some(Bridge::Unread(refusal)),
            }
        }
        Some(Bridge::Read { rules, passed })
    }

    /// Says whether each of the events matches the pattern of some usable rule.
    async fn match_all(self, rules: &[BusRule], events: &[Value]) -> Result<bool, BusRefusal> {
        for event in events {
            let mut is_matched = false;
            for rule in rules.iter().filter(|rule| rule.is_usable()) {
                let pattern = rule.text("EventPattern");
                let asked = json!({"EventPattern": pattern, "Event": event.to_string()});
                let answer = self.ask("TestEventPattern", &asked).await?;
                is_matched |= answer.get("Result") == Some(&json!(true));
            }
            if !is_matched {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Requests a list, page by page.
    async fn list(
        self,
        operation: &str,
        asked: Value,
        name: &str,
    ) -> Result<Vec<Value>, BusRefusal> {
        let mut listed = Vec::new();
        let mut asked = asked;
        for _ in 0..PAGES_MAX {
            let answer = self.ask(operation, &asked).await?;
            let Some(page) = answer.get(name).and_then(Value::as_array) else {
                return Err(self.refused(
                    operation,
                    &asked,
                    Refusal::silent("the answer has no list"),
                ));
            };
            listed.extend(page.iter().cloned());
            match answer.get("NextToken").filter(|token| token.is_string()) {
                Some(token) => asked = with_field(asked, "NextToken", token.clone()),
                None => return Ok(listed),
            }
        }
        let refusal = Refusal::silent("it has more than are read");
        Err(self.refused(operation, &asked, refusal))
    }

    /// Sends a request. Four of them are no reason for one more client of the SDK: EventBridge takes
    /// and answers JSON.
    async fn ask(self, operation: &str, asked: &Value) -> Result<Value, BusRefusal> {
        let region = self.account.region.as_str();
        let url = self.account.service_url("events", region);
        let (target, json) = (format!("AWSEvents.{operation}"), asked.to_string());
        let text = PlainText::Json {
            target: &target,
            json: &json,
        };
        let sent = self.clients.wire.send_text(&url, (region, "events"), text);
        let sent = tokio::time::timeout(access::ASK_TIMEOUT, Box::pin(sent)).await;
        let answer = sent
            .unwrap_or_else(|_elapsed| Err(Refusal::unanswered(access::ASK_TIMEOUT)))
            .and_then(|text| {
                serde_json::from_str(&text).map_err(|error| Refusal::silent(error.to_string()))
            });
        answer.map_err(|refusal| self.refused(operation, asked, refusal))
    }

    /// Names the permission that a request needs; two of the four are not about single rules:
    /// <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazoneventbridge.html>
    fn refused(self, operation: &str, asked: &Value, refusal: Refusal) -> BusRefusal {
        let is_of_rule = asked.get("Name").or(asked.get("Rule")).is_some();
        let rules = format!("arn:*:events:{}:*:rule/*", self.account.region);
        BusRefusal {
            action: format!("events:{operation}"),
            resource: if is_of_rule { rules } else { "*".to_owned() },
            refusal,
        }
    }
}

/// What EventBridge says of the way of a rule's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bridge {
    /// The rules that lead to a queue of the file, and the events that match some pattern of those
    /// that pass them on as they are.
    Read {
        rules: Vec<BusRule>,
        passed: Vec<&'static str>,
    },
    /// Some question was not answered.
    Unread(BusRefusal),
}

// Where nothing of the bucket comes.
const WHY_NOTHING: &str =
    "no event of this bucket comes to the daemon, and nothing of it is replicated";

impl Bridge {
    /// Judges what comes by the bus of what does not come otherwise; nothing where that is all that
    /// there is to say.
    pub(super) fn judge(&self, way: &Way<'_>, others: &Coverage) -> Option<Vec<Finding>> {
        let is_bridged = way.notifications.is_bridged;
        if is_bridged && way.is_foreign() {
            return Some(vec![unproved(way)]);
        }
        let (rules, passed) = match self {
            Self::Read { rules, passed } => (rules.as_slice(), passed),
            Self::Unread(refusal) => return is_bridged.then(|| vec![unread(way, refusal)]),
        };
        let is_only_way = !others.is_reached && !way.may_pass_topics();
        if !is_bridged {
            let is_right = is_only_way && !passed.is_empty();
            return is_right.then(|| vec![switched_off(way, rules)]);
        }
        if rules.is_empty() {
            return is_only_way.then(|| vec![without_rule(way)]);
        }
        let missing = others.gaps().filter(|need| !passed.contains(&need.event));
        let missing: Vec<EventNeed> = missing.collect();
        if missing.is_empty() {
            return Some(Vec::new());
        }
        let mut found: Vec<Finding> = rules.iter().filter_map(|rule| blocked(way, rule)).collect();
        // Of what a rule that is blocked would pass on nothing is known.
        if rules.iter().any(BusRule::is_usable) || found.is_empty() {
            found.extend(unmatched(way, rules, &missing));
        }
        Some(found)
    }
}

fn found(way: &Way<'_>, what: String, why: &str) -> Finding {
    Finding::problem(CheckName::NotificationEventBridge, way.bucket(), what, why)
}

fn unproved(way: &Way<'_>) -> Finding {
    let owner = way.owner.as_deref().unwrap_or("its owner");
    let what = format!(
        "not proved: its events go to the event bus of account {owner}, whose rules {} cannot ask for",
        way.reader
    );
    let why = "a rule that is missing, or too narrow, loses events without a word";
    let queue = way.queues.first().map_or("the queue", String::as_str);
    let advice = format!(
        "see there that a rule with the pattern {} leads to {queue}, directly or by another bus",
        pattern(way)
    );
    found(way, what, why)
        .into_warning()
        .fixed_by([Fix::advice(advice)])
}

fn unread(way: &Way<'_>, refused: &BusRefusal) -> Finding {
    let BusRefusal {
        action,
        resource,
        refusal,
    } = refused;
    let what = format!("its events go to EventBridge: {}", refusal.describe(action));
    let why = "whether a rule passes the events on to the queue is not known";
    let partition = bucket_arn(way.account, "");
    let partition = partition.split(':').nth(1).unwrap_or("aws");
    let account = way.reader.split(':').nth(4).unwrap_or("*");
    let resource = resource
        .replacen("arn:*", &format!("arn:{partition}"), 1)
        .replacen(":*:rule", &format!(":{account}:rule"), 1);
    let statement = json!({"Effect": "Allow", "Action": action, "Resource": resource});
    let fix = match refusal.kind == RefusalKind::Denied {
        true => Fix::statement(DocumentKind::Permissions, way.reader, statement),
        false => look(way),
    };
    found(way, what, why).into_unasked().fixed_by([fix])
}

fn look(way: &Way<'_>) -> Fix {
    let queue = way.queues.first().map_or("the queue", String::as_str);
    command(
        way,
        "list-rule-names-by-target",
        &format!("--target-arn {queue}"),
    )
}

fn switched_off(way: &Way<'_>, rules: &[BusRule]) -> Finding {
    let what = format!(
        "it sends nothing to EventBridge, whose rule {} would pass its events on",
        names(rules.iter().filter(|rule| rule.is_usable()))
    );
    found(way, what, WHY_NOTHING).fixed_by([way.bridging()])
}

fn without_rule(way: &Way<'_>) -> Finding {
    let Some(queue) = way.queue_of_region() else {
        let region = &way.account.region;
        let what = format!(
            "not proved: its events go to EventBridge, and no queue of the file is in {region}, so \
             that another event bus is between, which is not asked"
        );
        let why = "a rule that is missing, or too narrow, loses events without a word";
        return found(way, what, why).into_warning().fixed_by([look(way)]);
    };
    let what = format!("no rule of the default event bus has {queue} as its target");
    let name: String = format!("s3-replicator-{}", way.rule.source.bucket)
        .chars()
        .take(NAME_CHARS_MAX)
        .collect();
    let targets = json!([{"Id": "s3-replicator", "Arn": queue}]).to_string();
    let targets = format!("--rule {name} --targets {}", shell_quoted(&targets));
    found(way, what, WHY_NOTHING).fixed_by([
        put_rule(way, &name, &[]),
        command(way, "put-targets", &targets),
    ])
}

// https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutRule.html
const NAME_CHARS_MAX: usize = 64;

/// Finds what keeps a rule from passing on any event as it is.
fn blocked(way: &Way<'_>, rule: &BusRule) -> Option<Finding> {
    let name = rule.text("Name");
    if !rule.is_enabled() {
        let what = format!("its EventBridge rule {name} is disabled");
        let why = "what it matches does not come to the queue";
        let enable = command(way, "enable-rule", &format!("--name {name}"));
        return Some(found(way, what, why).fixed_by([enable]));
    }
    let changed = rule
        .ours()
        .find_map(|target| Some((target, change_of(target)?)));
    let (target, change) = changed.filter(|_| !rule.is_usable())?;
    let what = format!(
        "its EventBridge rule {name} passes its events on changed: {} has {change}",
        target_arn(target)
    );
    let why = "what is no event of S3 any more is not understood, and nothing of it is replicated";
    let mut plain = target.clone();
    if let Some(fields) = plain.as_object_mut() {
        fields.retain(|name, _| CHANGES.iter().all(|(change, _)| name != change));
    }
    let targets = shell_quoted(&json!([plain]).to_string());
    let put = command(
        way,
        "put-targets",
        &format!("--rule {name} --targets {targets}"),
    );
    Some(found(way, what, why).fixed_by([put]))
}

/// Judges events that match no pattern, those apart that need not.
fn unmatched(way: &Way<'_>, rules: &[BusRule], missing: &[EventNeed]) -> Vec<Finding> {
    let bucket = way.rule.source.bucket.as_str();
    let (vital, others): (Vec<_>, Vec<_>) = missing.iter().partition(|need| need.is_vital);
    let report = |needs: &[&EventNeed], why: &str| {
        let events: Vec<String> = needs.iter().map(|need| event_name(need.event)).collect();
        let what = format!(
            "the pattern of its EventBridge rule {} does not match {}, for keys with prefix {:?}",
            names(rules.iter()),
            events.join(", "),
            way.rule.filter.prefix
        );
        let own = rules.iter().find(|rule| rule.is_for(bucket));
        let fix = match own.or(rules.first()) {
            Some(rule) if own.is_some() => put_rule(way, rule.text("Name"), &kept(rule)),
            Some(_) | None => Fix::advice(format!(
                "it is for more than this bucket or queue: make a rule beside it, with the target \
                 {} and the pattern {}",
                way.queues.first().map_or("the queue", String::as_str),
                pattern(way)
            )),
        };
        Finding::problem(CheckName::NotificationEvents, way.bucket(), what, why).fixed_by([fix])
    };
    let why = "what such events tell of is not replicated, and nothing reports it";
    let vital = (!vital.is_empty()).then(|| report(&vital, why));
    let why = "what the source's lifecycle deletes stays at the destination, unless that is what \
         is meant";
    let others = (!others.is_empty()).then(|| report(&others, why).into_warning());
    vital.into_iter().chain(others).collect()
}

fn names<'r>(rules: impl Iterator<Item = &'r BusRule>) -> String {
    rules
        .map(|rule| rule.text("Name"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Returns what PutRule would otherwise take away from a rule.
fn kept(rule: &BusRule) -> Vec<(&'static str, &str)> {
    let options = [("--description", "Description"), ("--role-arn", "RoleArn")];
    let values = options.map(|(option, name)| (option, rule.text(name)));
    values
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .collect()
}

fn put_rule(way: &Way<'_>, name: &str, kept: &[(&str, &str)]) -> Fix {
    let pattern = shell_quoted(&pattern(way).to_string());
    let kept = kept
        .iter()
        .map(|(option, text)| format!(" {option} {}", shell_quoted(text)));
    let kept: String = kept.collect();
    command(
        way,
        "put-rule",
        &format!("--name {name} --event-pattern {pattern}{kept}"),
    )
}

fn command(way: &Way<'_>, operation: &str, rest: &str) -> Fix {
    let endpoint = way.account.endpoint.iter();
    let endpoint: String = endpoint
        .map(|url| format!(" --endpoint-url {url}"))
        .collect();
    let region = &way.account.region;
    Fix::command(format!(
        "aws events {operation} --region {region}{endpoint} {rest}"
    ))
}

#[cfg(test)]
mod tests {
    use replicator_core::rule::Rule;

    use super::*;
    use crate::check::delivery::{Notifications, Topics};
    use crate::check::finding::Severity::{Problem, Unasked, Warning};
    use crate::check::notification::cover;

    const QUEUE: &str = "arn:aws:sqs:eu-west-1:111111111111:orders-events";
    const READER: &str = "arn:aws:iam::111111111111:role/s3-replicator";

    fn rule() -> Rule {
        let text = "[accounts.a]\nregion = \"eu-west-1\"\n[accounts.b]\nregion = \"us-east-1\"\n\
             [[queues]]\nurl = \"https://sqs.eu-west-1.amazonaws.com/111111111111/orders-events\"\n\
             account = \"a\"\n\
             dead_letter_url = \"https://sqs.eu-west-1.amazonaws.com/111111111111/parked\"\n\
             [[rules]]\nid = \"orders\"\nsource = { account = \"a\", bucket = \"orders\" }\n\
             destination = { account = \"b\", bucket = \"replicas\" }\ndelete_markers = true\n\
             version_deletes = true\nfilter = { prefix = \"in/\" }\n";
        let settings = replicator_config::parse(text).unwrap_or_else(|error| panic!("{error}"));
        settings.rules.into_iter().next().unwrap()
    }

    fn bus_rule(state: &str, change: Value) -> BusRule {
        let mut target = json!({"Id": "queue", "Arn": QUEUE});
        target
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        BusRule {
            described: json!({"Name": "orders", "State": state, "EventPattern": "{}"}),
            targets: vec![target],
            queues: vec![QUEUE.to_owned()],
        }
    }

    /// Judges a bucket whose events come by EventBridge or not at all.
    fn judged(bridge: &Bridge, change: impl Fn(&mut Way<'_>)) -> Option<Vec<Finding>> {
        let rule = rule();
        let account = Account {
            name: "a".to_owned(),
            region: "eu-west-1".to_owned(),
            ..Account::default()
        };
        let notifications = Notifications {
            targets: Vec::new(),
            is_bridged: true,
        };
        let mut way = Way {
            rule: &rule,
            rules: &[&rule],
            account: &account,
            owner: Some("111111111111".to_owned()),
            reader: READER,
            notifications: &notifications,
            topics: &Topics::new(),
            bus: None,
            queues: &[QUEUE.to_owned()],
        };
        change(&mut way);
        bridge.judge(&way, &cover(way.rule, &[]))
    }

    fn severities(found: Option<Vec<Finding>>) -> Vec<(CheckName, crate::check::Severity)> {
        let found = found.unwrap_or_default().into_iter();
        found.map(|one| (one.check, one.severity)).collect()
    }

    #[test]
    fn every_event_that_is_asked_about_is_one_that_the_daemon_reads() {
        let mut events = Vec::new();
        judged(&Bridge::Unread(silent()), |way| {
            let needs = needs(way.rule);
            for event in needs.iter().flat_map(|need| samples(way, *need)) {
                replicator_core::event::parse_notification(&event.to_string())
                    .unwrap_or_else(|error| panic!("{event}: {error}"));
            }
        });
        let rule = rule();
        events.extend(needs(&rule).iter().map(|need| event_name(need.event)));
        events.sort();
        events.dedup();
        assert_eq!(events.len(), needs(&rule).len(), "{events:?}");
    }

    fn silent() -> BusRefusal {
        BusRefusal {
            action: "events:DescribeRule".to_owned(),
            resource: "arn:*:events:eu-west-1:*:rule/*".to_owned(),
            refusal: Refusal::silent("no answer"),
        }
    }

    #[test]
    fn what_a_target_makes_of_an_event_is_found_unless_it_is_the_event() {
        let cases = [
            (json!({}), None),
            (json!({"InputPath": "$"}), None),
            (json!({"InputPath": "$.detail"}), Some("InputPath")),
            (json!({"Input": "{}"}), Some("Input")),
            (
                json!({"InputTransformer": {"InputTemplate": " <aws.events.event.json> "}}),
                None,
            ),
            (
                json!({"InputTransformer": {"InputTemplate": "\"<key>\""}}),
                Some("InputTransformer"),
            ),
        ];
        for (target, expected) in cases {
            assert_eq!(change_of(&target), expected, "{target}");
            let rule = bus_rule("ENABLED", target);
            assert_eq!(rule.is_usable(), expected.is_none());
        }
        let managed = "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS";
        assert!(bus_rule(managed, json!({})).is_usable());
        assert!(!bus_rule("DISABLED", json!({})).is_usable());
    }

    #[test]
    fn what_cannot_be_asked_is_not_said_to_be_missing() {
        let check = CheckName::NotificationEventBridge;
        let none = Bridge::Read {
            rules: Vec::new(),
            passed: Vec::new(),
        };
        let unread = Bridge::Unread(silent());
        let same = |_: &mut Way<'_>| ();
        let foreign = |way: &mut Way<'_>| way.owner = Some("222222222222".to_owned());
        let elsewhere = |way: &mut Way<'_>| way.queues = &[];
        assert_eq!(severities(judged(&none, same)), [(check, Problem)]);
        assert_eq!(severities(judged(&unread, same)), [(check, Unasked)]);
        assert_eq!(severities(judged(&none, foreign)), [(check, Warning)]);
        assert_eq!(severities(judged(&none, elsewhere)), [(check, Warning)]);
    }

    #[test]
    fn a_pattern_that_names_other_buckets_says_nothing_of_this_one() {
        let bridge = Bridge::Unread(silent());
        let _found = judged(&bridge, |way| {
            let of = |detail: Value| way.may_match(&json!({"detail": detail}).to_string());
            let named = |names: Value| of(json!({"bucket": {"name": names}}));
            assert!(named(json!([way.rule.source.bucket.as_str()])));
            assert!(named(json!([{"prefix": "x"}])) && of(json!({})));
            assert!(!named(json!(["another"])));
        });
    }

    #[test]
    fn all_needed_events_have_to_match_and_each_that_does_not_is_named() {
        let rules = [bus_rule("ENABLED", json!({}))];
        let rule = rule();
        let all: Vec<&str> = needs(&rule).iter().map(|need| need.event).collect();
        let of = |passed: &[&'static str]| {
            let bridge = Bridge::Read {
                rules: rules.to_vec(),
                passed: passed.to_vec(),
            };
            judged(&bridge, |_| ()).unwrap()
        };
        assert_eq!(of(&all), []);
        let kept: Vec<&str> = all
            .iter()
            .copied()
            .filter(|one| !one.ends_with("Removed:Delete"))
            .collect();
        let [found] = &of(&kept)[..] else {
            panic!("one is missing")
        };
        assert_eq!(found.check, CheckName::NotificationEvents);
        let name = "\"Object Deleted\" (DeleteObject, Permanently Deleted)";
        assert!(found.what.contains(name), "{}", found.what);
        let vital = severities(Some(of(&[])));
        let events = CheckName::NotificationEvents;
        assert_eq!(vital, [(events, Problem), (events, Warning)]);
    }
}
