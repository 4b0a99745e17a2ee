//! What `check` needs to read the rules of event buses is allowed where buckets send to them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop")]

use replicator_config::parse;
use replicator_config::policies::{Document, DocumentKind, PolicyOptions, policies};

const OWN: &str = "arn:aws:iam::111111111111:role/s3-replicator";
const CONFIG: &str = r#"
[accounts.source]
region = "eu-west-1"
[accounts.archive]
region = "us-east-1"
role_arn = "arn:aws:iam::222222222222:role/replicator"
[[queues]]
url = "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-events"
account = "source"
dead_letter_url = "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-parked"
[[rules]]
id = "orders"
source = { account = "source", bucket = "orders" }
destination = { account = "archive", bucket = "orders-replica" }
"#;

#[test]
fn the_rules_of_event_buses_are_read_where_buckets_send_to_them() {
    let settings = parse(CONFIG).unwrap();
    let of = |event_bridge| -> Document {
        let options = PolicyOptions {
            event_bridge,
            ..PolicyOptions::default()
        };
        let documents = policies(&settings, &options).unwrap();
        let own = documents
            .into_iter()
            .find(|one| one.kind == DocumentKind::Permissions && one.attached_to == OWN);
        own.unwrap()
    };
    let (without, with) = (of(false), of(true));
    let rules = "arn:aws:events:eu-west-1:111111111111:rule/*";
    let added = [
        ("events:DescribeRule", rules),
        ("events:ListRuleNamesByTarget", "*"),
        ("events:ListTargetsByRule", rules),
        ("events:TestEventPattern", "*"),
    ];
    let more: Vec<(&str, &str)> = with
        .grants()
        .difference(&without.grants())
        .copied()
        .collect();
    assert_eq!(more, added);
}
