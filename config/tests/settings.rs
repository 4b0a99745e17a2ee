//! What a file means: every default, and every value that is written.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use replicator_config::{
    Account, ApiToken, ConditionalWrites, Queue, Service, ServiceEndpoints, Settings, load, parse,
};
use replicator_core::object::{Bucket, Timestamp};
use replicator_core::rule::{
    BucketRef, Encryption, Filter, History, RateLimits, ReplicaKey, Replicas, Rule,
    UnmanagedObjects, Verify,
};

const EXAMPLE: &str = include_str!("../example.toml");

#[test]
fn the_least_file_has_every_default() {
    let settings = parse(include_str!("../samples/valid/minimal.toml")).unwrap();
    let expected = Settings {
        state_dir: "/var/lib/s3-replicator".into(),
        listen: "127.0.0.1:9478".parse().unwrap(),
        listen_hosts: Vec::new(),
        api_token_file: None,
        memory_bytes: 256 * 1024 * 1024,
        drain_timeout: Duration::from_secs(30),
        accounts: BTreeMap::from([("here".to_owned(), account("here", "eu-west-1"))]),
        queues: vec![Queue {
            url: "https://sqs.eu-west-1.amazonaws.com/111111111111/events".to_owned(),
            account: "here".to_owned(),
            visibility_timeout: Duration::from_secs(120),
            dead_letter_url: "https://sqs.eu-west-1.amazonaws.com/111111111111/parked".to_owned(),
            work_queue: None,
            backfill_queue: None,
        }],
        work_queues: Vec::new(),
        backfill_queues: Vec::new(),
        rules: vec![rule(
            "all",
            place("here", "orders"),
            place("here", "orders-replica"),
        )],
    };
    assert_eq!(settings, expected);
}

#[test]
fn lines_of_the_example_that_show_defaults_change_nothing() {
    let shows_default = |line: &&str| line.trim_end().ends_with("# default");
    let rest: Vec<&str> = EXAMPLE
        .lines()
        .filter(|line| !shows_default(line))
        .collect();
    assert!(EXAMPLE.lines().filter(shows_default).count() > 15);
    assert_eq!(parse(EXAMPLE).unwrap(), parse(&rest.join("\n")).unwrap());
}

#[test]
fn what_the_example_says_arrives() {
    let settings = parse(EXAMPLE).unwrap();
    let expected = Rule {
        storage_class: Some("STANDARD_IA".to_owned()),
        rewrite: Some("replica/".to_owned()),
        filter: Filter {
            prefix: "invoices/".to_owned(),
            suffix: ".parquet".to_owned(),
            exclude: vec!["*/_temporary/*".to_owned(), "*.crc".to_owned()],
            exclude_prefixes: vec!["invoices/tmp/".to_owned()],
            tags: BTreeMap::from([("tier".to_owned(), "gold".to_owned())]),
            exclude_tags: BTreeMap::from([(
                "state".to_owned(),
                BTreeSet::from(["draft".to_owned(), "void".to_owned()]),
            )]),
            size_min: Some(1),
            size_max: Some(5 << 40),
        },
        since: Some(Timestamp::from_unix_timestamp(1_767_225_600).unwrap()),
        encryption: Encryption::Kms {
            key: ReplicaKey::Named(
                "arn:aws:kms:us-east-1:222222222222:key/1234abcd-12ab-34cd-56ef-1234567890ab"
                    .to_owned(),
            ),
            key_map: BTreeMap::from([(
                "arn:aws:kms:eu-west-1:111111111111:key/0987dcba-09fe-87dc-65ba-ab0987654321"
                    .to_owned(),
                "arn:aws:kms:us-east-1:222222222222:alias/gold".to_owned(),
            )]),
            bucket_key: true,
        },
        client_side_keys: BTreeMap::from([(
            "arn:aws:kms:eu-west-1:111111111111:key/5678dcba-09fe-87dc-65ba-ab0987654321"
                .to_owned(),
            "arn:aws:kms:us-east-1:222222222222:key/5678abcd-12ab-34cd-56ef-1234567890ab"
                .to_owned(),
        )]),
        limits: RateLimits {
            bandwidth_bytes_per_second: NonZeroU64::new(200 << 20),
            requests_per_second: NonZeroU32::new(800),
        },
        destination_limits: RateLimits {
            bandwidth_bytes_per_second: NonZeroU64::new(500 << 20),
            requests_per_second: NonZeroU32::new(2000),
        },
        reconcile: Some(Duration::from_secs(86_400)),
        work_queue: Some(
            "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-work.fifo".to_owned(),
        ),
        backfill_queue: Some(
            "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-backfill.fifo".to_owned(),
        ),
        ..rule(
            "orders",
            place("source", "orders"),
            place("archive", "orders-replica"),
        )
    };
    assert_eq!(settings.rules.last(), Some(&expected));
    let archive = Account {
        role_arn: Some("arn:aws:iam::222222222222:role/replicator".to_owned()),
        external_id: Some("orders-archive".to_owned()),
        profile: Some("platform".to_owned()),
        owner: Some("222222222222".to_owned()),
        ..account("archive", "us-east-1")
    };
    assert_eq!(settings.accounts.get("archive"), Some(&archive));
    let queue = settings.queues.first().unwrap();
    assert_eq!(queue.name(), "orders-events");
    assert_eq!(
        queue.dead_letter_url,
        "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-parked"
    );
}

#[test]
fn what_departs_from_the_defaults_arrives() {
    let mut text = include_str!("../samples/valid/minimal.toml").to_owned();
    text.push_str(
        r#"
enabled = false
priority = -7
history = "latest"
reconcile = "24h"
unmanaged_objects = "keep"
delete_markers = true
version_deletes = true
version_delete_delay = "0s"
version_deletes_per_hour = 5
replicas = "replicate"
verify = "always"
encryption = { mode = "bucket-default" }
sse_kms_objects = true
"#,
    );
    let expected = Rule {
        enabled: false,
        priority: -7,
        history: History::Latest,
        work_queue: None,
        backfill_queue: None,
        reconcile: Some(Duration::from_secs(86_400)),
        unmanaged_objects: UnmanagedObjects::Keep,
        delete_markers: true,
        version_deletes: true,
        version_delete_delay: Duration::ZERO,
        version_deletes_per_hour: NonZeroU32::new(5).unwrap(),
        replicas: Replicas::Replicate,
        verify: Verify::Always,
        encryption: Encryption::BucketDefault,
        sse_kms_objects: true,
        ..rule(
            "all",
            place("here", "orders"),
            place("here", "orders-replica"),
        )
    };
    assert_eq!(parse(&text).unwrap().rules, [expected]);
}

#[test]
fn what_may_be_written_in_more_than_one_way_means_the_same() {
    let settings = sample("ways_of_writing.toml");
    assert_eq!(settings.memory_bytes, 16 << 20);
    assert_eq!(settings.drain_timeout, Duration::from_secs(90));
    let [first, second] = settings.rules.as_slice() else {
        panic!("two rules")
    };
    assert_eq!(
        first.since,
        Some(Timestamp::from_unix_timestamp(1_767_225_600).unwrap())
    );
    assert_eq!(
        second.since,
        first.since.map(|since| since + Duration::from_millis(500))
    );
    assert_eq!(
        (first.filter.size_min, first.filter.size_max),
        (Some(0), Some(1_500_000_000))
    );
    let key = "arn:aws-us-gov:kms:us-gov-west-1:111111111111:key/1234".to_owned();
    assert_eq!(second.encryption, Encryption::Dsse { key });
}

#[test]
fn the_related_key_is_a_key_by_itself() {
    let settings = sample("fan_out_and_chain.toml");
    let expected = Encryption::Kms {
        key: ReplicaKey::Related,
        key_map: BTreeMap::new(),
        bucket_key: false,
    };
    assert_eq!(settings.rules.first().unwrap().encryption, expected);
}

#[test]
fn an_endpoint_serves_every_service_that_has_none_of_its_own() {
    let settings = sample("fan_out_and_chain.toml");
    let store = settings.accounts.get("garage").unwrap();
    assert_eq!(
        store.endpoint_of(Service::Kms),
        Some("http://10.0.0.7:3900")
    );
    assert!(store.path_style);
    assert_eq!(store.conditional_writes, ConditionalWrites::Off);
    let settings = sample("ways_of_writing.toml");
    let here = settings.accounts.get("here").unwrap();
    assert_eq!(
        here.endpoint_of(Service::Sqs),
        Some("http://localhost:9324")
    );
    assert_eq!(here.endpoint_of(Service::S3), None);
    assert!(!here.path_style);
    assert_eq!(here.conditional_writes, ConditionalWrites::On);
    assert_eq!(here.owner.as_deref(), Some("111111111111"));
    assert_eq!(settings.listen_hosts, ["replicator.internal"]);
}

fn sample(name: &str) -> Settings {
    load(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("samples/valid")
            .join(name),
    )
    .unwrap()
}

/// An account as it is when the file gives its Region alone.
fn account(name: &str, region: &str) -> Account {
    Account {
        name: name.to_owned(),
        region: region.to_owned(),
        role_arn: None,
        external_id: None,
        profile: None,
        endpoint: None,
        endpoints: ServiceEndpoints::default(),
        path_style: false,
        conditional_writes: ConditionalWrites::Auto,
        owner: None,
        use_dualstack: false,
        use_fips: false,
        access_points: BTreeMap::new(),
    }
}

fn place(account: &str, bucket: &str) -> BucketRef {
    BucketRef {
        account: account.to_owned(),
        bucket: Bucket::try_from(bucket).unwrap(),
    }
}

/// A rule as it is when the file gives its id and places alone.
fn rule(id: &str, source: BucketRef, destination: BucketRef) -> Rule {
    Rule {
        id: id.to_owned(),
        enabled: true,
        priority: 0,
        source,
        destination,
        storage_class: None,
        rewrite: None,
        filter: Filter::default(),
        history: History::Exact,
        since: None,
        work_queue: None,
        backfill_queue: None,
        reconcile: None,
        unmanaged_objects: UnmanagedObjects::Overwrite,
        delete_markers: false,
        version_deletes: false,
        version_delete_delay: Duration::from_secs(900),
        version_deletes_per_hour: NonZeroU32::new(1000).unwrap(),
        replicas: Replicas::Skip,
        verify: Verify::Auto,
        encryption: Encryption::Same {
            key_map: BTreeMap::new(),
        },
        sse_kms_objects: false,
        client_side_keys: BTreeMap::new(),
        limits: RateLimits::default(),
        destination_limits: RateLimits::default(),
    }
}

#[test]
fn a_disabled_rule_has_a_work_queue_only_where_enabled_ones_may_have_one() {
    let queue = "work_queue = \"https://sqs.eu-west-1.amazonaws.com/111111111111/work.fifo\"\n";
    let file = |first: &str, second: &str| {
        let minimal = include_str!("../samples/valid/minimal.toml");
        let rule = minimal.split_once("[[rules]]").unwrap().1;
        let other = rule.replace("\"all\"", "\"other\"");
        let text = format!("{minimal}\n{first}\n[[rules]]{other}\n{second}\n");
        let settings = parse(&text).unwrap();
        let own = |rule: &Rule| rule.work_queue.is_some();
        let has: Vec<bool> = settings.rules.iter().map(own).collect();
        (has, settings.work_queues.len())
    };
    let off = "enabled = false\n";
    let disabled = format!("{off}{queue}");
    assert_eq!(file("priority = 1", &disabled), (vec![false, false], 0));
    assert_eq!(file(off, &disabled), (vec![false, true], 1));
    assert_eq!(
        file(&format!("priority = 1\n{queue}"), &disabled),
        (vec![true, true], 1)
    );
}

fn token_of(text: &str, mode: u32) -> Result<ApiToken, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    ApiToken::read_file(file.path())
}

#[test]
fn a_token_that_others_may_read_or_that_can_be_guessed_is_refused() {
    let secret = "0123456789abcdef0123456789abcdef";
    let token = token_of(&format!("{secret}\n"), 0o600).unwrap();
    assert_eq!(token.as_str(), secret);
    assert!(!format!("{token:?}").contains(secret));
    assert!(token_of(secret, 0o640).is_ok());
    let refused = token_of(secret, 0o644).unwrap_err();
    assert!(refused.contains("chmod 640"), "{refused}");
    for guessable in ["", "secret", &secret.replace('a', " "), &secret[1..]] {
        let refused = token_of(guessable, 0o600).unwrap_err();
        assert!(refused.contains("openssl rand"), "{refused}");
        assert!(
            guessable.is_empty() || !refused.contains(guessable),
            "{refused}"
        );
    }
    let refused = token_of(&secret.repeat(200), 0o600).unwrap_err();
    assert!(refused.contains("32 to 4096"), "{refused}");
}
