//! `check` against LocalStack: a set-up that is right passes, and each way to break it is found by
//! name, with the service's words, why it matters and what puts it right.

mod broken;
mod probes;

use std::fs;
use std::process::Output;

use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};

use crate::world::config::{Config, free_address};
use crate::world::daemon::{Daemon, printed, run};
use crate::world::faults::{Fault, Faults};
use crate::world::localstack::{ARCHIVE, Account, SOURCE, unique};
use crate::world::queue::Queue;
use crate::world::{Feed, World, eventually, http};

/// What `check --json` said.
#[derive(Debug)]
struct Checked {
    code: i32,
    findings: Vec<Value>,
}

impl Checked {
    fn names(&self) -> Vec<&str> {
        let names = self
            .findings
            .iter()
            .map(|found| found["check"].as_str().unwrap());
        names.collect()
    }

    /// Returns the one finding of a name, all parts of which are said.
    fn one(&self, severity: &str, check: &str) -> &Value {
        let mut of_name = self.findings.iter().filter(|found| found["check"] == check);
        let found = of_name
            .next()
            .unwrap_or_else(|| panic!("{check} is not in {self:#?}"));
        assert_eq!(of_name.next(), None, "{self:#?}");
        assert_eq!(found["severity"], severity, "{found:#}");
        for part in ["where", "what", "why"] {
            assert_ne!(found[part], "", "{found:#}");
        }
        assert_ne!(found["fix"], json!([]), "{found:#}");
        found
    }
}

async fn check(config: &Config) -> Checked {
    let output = run(&["check", "--json"], config.write()).await;
    read(&output)
}

fn read(output: &Output) -> Checked {
    let text = printed(output);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let sections = report["sections"].as_array().unwrap();
    let findings = sections
        .iter()
        .flat_map(|one| one["findings"].as_array().unwrap().clone());
    Checked {
        code: output.status.code().unwrap(),
        findings: findings.collect(),
    }
}

/// Makes a world in which nothing is wrong, and an object in it.
async fn right(feed: Feed) -> World {
    let world = World::fed_by(feed).await;
    let retention = (
        QueueAttributeName::MessageRetentionPeriod,
        "1209600".to_owned(),
    );
    for queue in [&world.queue, &world.parked] {
        set(queue, [retention.clone()]).await;
    }
    let service = match feed {
        Feed::Direct => "s3.amazonaws.com",
        Feed::Sns | Feed::SnsRaw => "sns.amazonaws.com",
        Feed::EventBridge => "events.amazonaws.com",
    };
    let statement = json!({
        "Effect": "Allow", "Principal": {"Service": service}, "Action": "sqs:SendMessage",
        "Resource": world.queue.arn(),
    });
    allow(&world.queue, &statement).await;
    if feed == Feed::Direct {
        notify(&world, &world.queue.arn(), &ALL, None).await;
    }
    world.put("orders/1", "one").await;
    world
}

const ALL: [&str; 4] = [
    "s3:ObjectCreated:*",
    "s3:ObjectRemoved:*",
    "s3:ObjectTagging:*",
    "s3:LifecycleExpiration:*",
];

async fn set<const N: usize>(queue: &Queue, attributes: [(QueueAttributeName, String); N]) {
    let request = SOURCE.sqs().set_queue_attributes().queue_url(&queue.url);
    let request = request.set_attributes(Some(attributes.into()));
    request.send().await.unwrap();
}

/// Makes a statement the whole policy of a queue.
async fn allow(queue: &Queue, statement: &Value) {
    let policy = json!({"Version": "2012-10-17", "Statement": [statement]}).to_string();
    set(queue, [(QueueAttributeName::Policy, policy)]).await;
}

/// Sends some events of the source bucket to a queue.
async fn notify(world: &World, arn: &str, events: &[&str], prefix: Option<&str>) {
    let mut queue = json!({"QueueArn": arn, "Events": events});
    if let Some(prefix) = prefix {
        queue["Filter"] = json!({"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}});
    }
    configure(&world.source, &json!({"QueueConfigurations": [queue]})).await;
}

/// Does what `aws s3api put-bucket-notification-configuration` does with such a text.
async fn configure(bucket: &str, whole: &Value) {
    use aws_sdk_s3::types::{
        Event, FilterRule, FilterRuleName, NotificationConfiguration,
        NotificationConfigurationFilter, QueueConfiguration, S3KeyFilter,
    };
    let mut configuration = NotificationConfiguration::builder();
    for one in whole["QueueConfigurations"].as_array().unwrap() {
        let events = one["Events"].as_array().unwrap().iter();
        let events = events.map(|event| Event::from(event.as_str().unwrap()));
        let rules = one["Filter"]["Key"]["FilterRules"].as_array().cloned();
        let rules = rules.unwrap_or_default().into_iter().map(|rule| {
            let name = FilterRuleName::from(rule["Name"].as_str().unwrap());
            let value = rule["Value"].as_str().unwrap();
            FilterRule::builder().name(name).value(value).build()
        });
        let key = S3KeyFilter::builder()
            .set_filter_rules(Some(rules.collect()))
            .build();
        let filter = NotificationConfigurationFilter::builder().key(key).build();
        let queue = QueueConfiguration::builder()
            .queue_arn(one["QueueArn"].as_str().unwrap())
            .set_events(Some(events.collect()))
            .filter(filter);
        configuration = configuration.queue_configurations(queue.build().unwrap());
    }
    let s3 = SOURCE.s3();
    let request = s3.put_bucket_notification_configuration().bucket(bucket);
    let request = request.notification_configuration(configuration.build());
    request.send().await.unwrap();
}

async fn set_versioning(account: Account, bucket: &str, status: BucketVersioningStatus) {
    let versioning = VersioningConfiguration::builder().status(status).build();
    let s3 = account.s3();
    let request = s3.put_bucket_versioning().bucket(bucket);
    request
        .versioning_configuration(versioning)
        .send()
        .await
        .unwrap();
}

/// Reads the JSON that a command has as its last argument.
fn argument(command: &str) -> Value {
    let (_, json) = command
        .rsplit_once(" '")
        .unwrap_or_else(|| panic!("{command}"));
    serde_json::from_str(json.trim_end_matches('\'')).unwrap()
}

fn commands(finding: &Value) -> Vec<&str> {
    let fixes = finding["fix"].as_array().unwrap().iter();
    fixes.filter_map(|fix| fix["command"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_up_that_is_right_passes() {
    for feed in [Feed::Direct, Feed::Sns, Feed::SnsRaw] {
        let world = right(feed).await;
        let config = world.config();
        let checked = check(&config).await;
        assert_eq!(checked.code, 0, "{feed:?} {checked:#?}");
        let lifecycle = ["notification-events"];
        // The topic's notification lacks the lifecycle's events, which may be meant.
        let expected: &[&str] = if feed == Feed::Direct {
            &[]
        } else {
            &lifecycle
        };
        assert_eq!(checked.names(), expected, "{feed:?} {checked:#?}");
        let output = run(&["check"], &config.path).await;
        let text = printed(&output);
        assert!(text.contains("  ok       exists"), "{text}");
        assert!(text.contains("0 problems"), "{text}");
        assert!(text.contains("rule orders"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_queues_is_found_and_its_fix_puts_it_right() {
    let world = right(Feed::Direct).await;
    let config = world.config();

    set(&world.queue, [(QueueAttributeName::Policy, String::new())]).await;
    let checked = check(&config).await;
    assert_eq!((checked.code, checked.names()), (1, vec!["queue-policy"]));
    let found = checked.one("problem", "queue-policy");
    let fix = &found["fix"][0];
    assert_eq!(fix["document"]["kind"], "queue-policy");
    assert_eq!(fix["document"]["attached_to"], world.queue.arn());
    allow(&world.queue, &fix["statement"]).await;
    assert_eq!(check(&config).await.names(), [""; 0]);

    let mut other = fix["statement"].clone();
    other["Condition"]["ArnEquals"]["aws:SourceArn"] = json!("arn:aws:s3:::another");
    allow(&world.queue, &other).await;
    assert_eq!(check(&config).await.names(), ["queue-policy"]);
    allow(&world.queue, &fix["statement"]).await;

    let short = (
        QueueAttributeName::MessageRetentionPeriod,
        "345600".to_owned(),
    );
    set(&world.parked, [short]).await;
    let checked = check(&config).await;
    assert_eq!(checked.code, 0, "{checked:#?}");
    let found = checked.one("warning", "queue-retention");
    assert_eq!(found["where"], world.parked.url);
    assert_eq!(
        argument(commands(found)[0])["MessageRetentionPeriod"],
        "1209600"
    );

    for gone in [
        &mut |config: &mut Config| config.queue_url.push_str("-gone"),
        &mut |config: &mut Config| config.dead_letter_url.push_str("-gone"),
    ] as [&mut dyn FnMut(&mut Config); 2]
    {
        let mut config = world.config();
        gone(&mut config);
        let checked = check(&config).await;
        assert_eq!(checked.code, 1, "{checked:#?}");
        let found = checked.one("problem", "queue-exists");
        let command = commands(found)[0];
        assert!(command.contains("aws sqs create-queue"), "{command}");
        assert!(command.contains("-gone"), "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_work_queue_has_high_throughput_and_no_redrive_policy() {
    let mut world = right(Feed::Direct).await;
    world.work = Some(Queue::create_fifo("work").await);
    let work = world.work.clone().unwrap();
    let redrive = json!({"deadLetterTargetArn": Queue::create_fifo("dead").await.arn(), "maxReceiveCount": 5});
    set(
        &work,
        [(QueueAttributeName::RedrivePolicy, redrive.to_string())],
    )
    .await;
    let checked = check(&world.config()).await;
    assert_eq!(checked.code, 1, "{checked:#?}");
    checked.one("warning", "queue-throughput");
    let found = checked.one("problem", "queue-redrive");
    assert_eq!(argument(commands(found)[0])["RedrivePolicy"], "");
    for fix in ["queue-throughput", "queue-retention", "queue-redrive"] {
        let fix = argument(
            commands(
                checked
                    .findings
                    .iter()
                    .find(|one| one["check"] == fix)
                    .unwrap(),
            )[0],
        );
        for (name, value) in fix.as_object().unwrap() {
            let value = value.as_str().unwrap().to_owned();
            set(&work, [(QueueAttributeName::from(name.as_str()), value)]).await;
        }
    }
    let checked = check(&world.config()).await;
    assert_eq!(checked.names(), [""; 0], "{checked:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_that_lose_events_are_found_and_their_fix_puts_them_right() {
    let world = right(Feed::Direct).await;
    let elsewhere = Queue::create("elsewhere").await;
    let (own, other) = (world.queue.arn(), elsewhere.arn());
    let put = ["s3:ObjectCreated:Put"];
    let cases: [(&str, &str, &[&str], Option<&str>); 3] = [
        ("notification-target", &other, &ALL, None),
        ("notification-events", &own, &put, None),
        ("notification-filter", &own, &ALL, Some("invoices/")),
    ];
    for (check_name, arn, events, prefix) in cases {
        notify(&world, arn, events, prefix).await;
        let checked = check(&world.config()).await;
        assert_eq!(checked.code, 1, "{checked:#?}");
        let found = checked
            .findings
            .iter()
            .find(|one| one["check"] == check_name);
        let found = found.unwrap_or_else(|| panic!("{check_name}: {checked:#?}"));
        assert_eq!(found["severity"], "problem");
        assert_eq!(found["rule"], "orders");
        let command = commands(found)[0];
        assert!(
            command.contains("aws s3api put-bucket-notification-configuration"),
            "{command}"
        );
        configure(&world.source, &argument(command)).await;
        let checked = check(&world.config()).await;
        assert_eq!(checked.names(), [""; 0], "after {command}: {checked:#?}");
    }
    SOURCE.silence(&world.source).await;
    check(&world.config())
        .await
        .one("problem", "notification-target");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_passes_nothing_on_is_found() {
    let world = right(Feed::Direct).await;
    let elsewhere = Queue::create("elsewhere").await;
    let topic = SOURCE
        .create_topic(&unique("events"), &elsewhere.url, false)
        .await;
    SOURCE.notify(&world.source, &topic).await;
    let checked = check(&world.config()).await;
    assert_eq!(checked.code, 1, "{checked:#?}");
    let found = checked.one("problem", "notification-topic");
    let command = commands(found)[0];
    assert!(command.starts_with("aws sns subscribe"), "{command}");
    assert!(
        command.contains(&topic) && command.contains(&world.queue.arn()),
        "{command}"
    );
    let policy = checked.one("problem", "queue-policy");
    let principal = &policy["fix"][0]["statement"]["Principal"]["Service"];
    assert_eq!(principal, "sns.amazonaws.com");
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_without_versions_or_locks_or_at_all_are_found() {
    let world = right(Feed::Direct).await;
    let config = world.config();
    for (account, bucket, name) in [
        (SOURCE, &world.source, "source-versioning"),
        (ARCHIVE, &world.archive, "destination-versioning"),
    ] {
        set_versioning(account, bucket, BucketVersioningStatus::Suspended).await;
        let checked = check(&config).await;
        assert_eq!(checked.code, 1, "{checked:#?}");
        let found = checked.one("problem", name);
        let command = commands(found)[0];
        assert!(command.contains("put-bucket-versioning"), "{command}");
        assert!(command.contains(bucket.as_str()), "{command}");
        set_versioning(account, bucket, BucketVersioningStatus::Enabled).await;
    }
    let mut gone = config.clone();
    gone.rules[0].destination = unique("gone");
    let checked = check(&gone).await;
    let found = checked.one("problem", "bucket-exists");
    let create = commands(found)[0];
    assert!(create.contains(&gone.rules[0].destination), "{create}");

    let mut locked = config.clone();
    locked.rules[0].source = unique("locked");
    let s3 = SOURCE.s3();
    let request = s3.create_bucket().bucket(&locked.rules[0].source);
    let location = aws_sdk_s3::types::CreateBucketConfiguration::builder()
        .location_constraint(SOURCE.region.into())
        .build();
    let request = request.create_bucket_configuration(location);
    request
        .object_lock_enabled_for_bucket(true)
        .send()
        .await
        .unwrap();
    let checked = check(&locked).await;
    let found = checked.one("problem", "object-lock");
    let command = commands(found)[0];
    assert!(
        command.contains("put-object-lock-configuration"),
        "{command}"
    );
    checked.one("warning", "source-objects");
    checked.one("problem", "notification-target");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_lacks_is_named_with_its_document() {
    let world = right(Feed::Direct).await;
    ARCHIVE
        .s3()
        .put_object()
        .bucket(&world.archive)
        .key("orders/1")
        .send()
        .await
        .unwrap();
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    assert_eq!(check(&config).await.code, 0);
    let (source, archive) = (&world.source, &world.archive);
    let cases = [
        (
            source,
            "ListObjectVersions",
            "source-list",
            "s3:ListBucketVersions",
        ),
        (source, "GetObject", "source-read", "s3:GetObjectVersion"),
        (
            source,
            "GetObjectTagging",
            "source-tags",
            "s3:GetObjectVersionTagging",
        ),
        (
            archive,
            "ListObjectVersions",
            "destination-list",
            "s3:ListBucketVersions",
        ),
        (
            archive,
            "GetBucketVersioning",
            "destination-versioning",
            "s3:GetBucketVersioning",
        ),
    ];
    for (bucket, operation, name, action) in cases {
        let on = bucket.clone();
        faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
            seen.is(&on, operation)
        });
        let checked = check(&config).await;
        assert_eq!(checked.code, 1, "{operation}: {checked:#?}");
        let found = checked.one("problem", name);
        let fix = &found["fix"][0];
        assert_eq!(fix["statement"]["Action"], action, "{found:#}");
        assert_eq!(fix["document"]["kind"], "permissions", "{found:#}");
        let resource = fix["statement"]["Resource"].as_str().unwrap();
        assert!(resource.contains(bucket.as_str()), "{found:#}");
        faults.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_object_that_the_rule_takes_is_read_at_the_source() {
    let world = right(Feed::Direct).await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    config.rules[0].filter = "tags = { tier = \"gold\" }".to_owned();
    let put = |key: &str, tags: &str| {
        let put = SOURCE.s3().put_object().bucket(&world.source).key(key);
        let put = put.tagging(tags);
        put.body(aws_sdk_s3::primitives::ByteStream::from_static(b"body"))
    };
    let encrypted = put("a-encrypted", "tier=gold").ssekms_key_id(&world.source_key);
    let kms = aws_sdk_s3::types::ServerSideEncryption::AwsKms;
    encrypted.server_side_encryption(kms).send().await.unwrap();
    put("b-tagged", "tier=silver").send().await.unwrap();
    put("c-taken", "tier=gold").send().await.unwrap();
    let source = world.source.clone();
    faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
        seen.is(&source, "GetObject") && seen.key != "c-taken"
    });
    let text = config.text();
    let text = text.replace("sse_kms_objects = true", "sse_kms_objects = false");
    fs::write(&config.path, text).unwrap();
    let checked = read(&run(&["check", "--json"], &config.path).await);
    assert_eq!(checked.names(), [""; 0], "{checked:#?}");
    let journal = faults.journal();
    let read = journal
        .iter()
        .filter(|seen| seen.is(&world.source, "GetObject"));
    let keys: Vec<&str> = read.map(|seen| seen.key.as_str()).collect();
    assert_eq!(keys, ["c-taken"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_may_not_be_used_is_found_without_using_it() {
    let world = right(Feed::Direct).await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    for (operation, name) in [
        ("ReceiveMessage", "queue-receive"),
        ("DeleteMessage", "queue-receive"),
        ("ChangeMessageVisibility", "queue-receive"),
        ("SendMessageBatch", "queue-send"),
    ] {
        faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
            seen.header("x-amz-target").ends_with(operation)
        });
        let checked = check(&config).await;
        let found = checked.one("problem", name);
        let action = format!("sqs:{}", operation.trim_end_matches("Batch"));
        assert_eq!(found["fix"][0]["statement"]["Action"], action, "{found:#}");
        faults.clear();
    }
    assert_eq!(world.parked.depth().await, 0, "nothing was sent there");
    // A server with other limits than those of SQS finds nothing to do in them either.
    for seen in faults.journal() {
        let body: Value = serde_json::from_str(&seen.body).unwrap_or_default();
        match seen.operation() {
            "ReceiveMessage" => assert_eq!(body["MaxNumberOfMessages"], 0, "{body}"),
            "SendMessageBatch" => assert_eq!(body["Entries"], json!([]), "{body}"),
            operation => assert_ne!(operation, "SendMessage", "{body}"),
        }
    }
    let events = world.queue.depth().await;
    let waiting = world.queue.take().await.len();
    assert_eq!(
        i64::try_from(waiting),
        Ok(events),
        "none was hidden by a receiver"
    );
    assert!(waiting > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_alone_gets_warnings_without_a_request() {
    let world = right(Feed::Direct).await;
    let mut config = world.config();
    config.endpoint = format!("http://{}", free_address());
    config.rules[0].filter = "prefix = \"/orders/*\"".to_owned();
    let output = run(&["check", "--offline", "--json"], config.write()).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let found = report["sections"][0]["findings"].as_array().unwrap();
    let names: Vec<_> = found
        .iter()
        .map(|found| found["check"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["prefix-slash", "prefix-wildcard"]);
    assert!(
        found[0]["where"].as_str().unwrap().starts_with("line "),
        "{text}"
    );
    config.rules[0].filter = "prefix = \"none/\"".to_owned();
    config.endpoint = world.config().endpoint;
    let checked = check(&config).await;
    assert_eq!(checked.code, 0);
    checked.one("warning", "source-objects");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_and_a_bad_file_have_exit_codes_of_their_own() {
    let world = World::new().await;
    let mut config = world.config();
    config.endpoint = format!("http://{}", free_address());
    let checked = check(&config).await;
    assert_eq!(checked.code, 2, "{checked:#?}");
    assert!(!checked.findings.is_empty());
    let unasked = checked
        .findings
        .iter()
        .all(|found| found["severity"] == "unasked");
    assert!(unasked, "{checked:#?}");
    fs::write(&config.path, "surprise = 1").unwrap();
    for command in [
        &["check"][..],
        &["check", "--offline"],
        &["run"],
        &["status"],
    ] {
        let output = run(command, &config.path).await;
        assert_eq!(
            output.status.code(),
            Some(78),
            "{command:?}: {}",
            printed(&output)
        );
    }
    let missing = config.path.with_file_name("missing.toml");
    assert_eq!(run(&["check"], &missing).await.status.code(), Some(78));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_shows_what_may_not_work_until_it_is_mended() {
    let world = right(Feed::Direct).await;
    set(&world.queue, [(QueueAttributeName::Policy, String::new())]).await;
    let config = world.config();
    let daemon = Daemon::spawn_with(&config, &[("S3_REPLICATOR_NO_CHECK", "false")]);
    let daemon = daemon.ready().await;
    let found = async || {
        let labels = [
            ("rule", ""),
            ("check", "queue-policy"),
            ("severity", "problem"),
        ];
        daemon.metrics().await.sum("check_findings", &labels)
    };
    eventually("the finding is in the metrics", async || {
        found().await == 1.0
    })
    .await;
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains("the set-up may not work"));
    assert!(
        line.is_some_and(|line| line.contains("queue-policy") && line.contains("WARN")),
        "{log}"
    );
    assert_eq!(daemon.page("healthz").await, Some(200));
    let text = printed(&run(&["status"], &config.path).await);
    assert!(text.contains("queue-policy"), "{text}");
    let page = http::get(&format!("http://{}/", config.listen))
        .await
        .unwrap()
        .1;
    assert!(page.contains("queue-policy"), "{page}");
    let status = http::get(&format!("http://{}/status", config.listen))
        .await
        .unwrap()
        .1;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["findings"][0]["check"], "queue-policy", "{status:#}");
    allow(&world.queue, &status["findings"][0]["fix"][0]["statement"]).await;
    daemon.signal("HUP").await;
    eventually("the finding is gone", async || found().await == 0.0).await;
    world.put("orders/2", "two").await;
    world.drained(&daemon).await;
    assert!(world.replica_exists("orders/2").await);
}
