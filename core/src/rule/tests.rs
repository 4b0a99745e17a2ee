//! The priority, filter and rewriting rules, held against what native replication promises.

use proptest::prelude::*;

use super::*;

#[test]
fn every_destination_gets_the_object() {
    let rules = [
        rule("a", 1, "tokyo"),
        rule("b", 2, "paris"),
        rule("c", 3, "tokyo"),
    ];
    assert_eq!(
        winners(&rules, "k"),
        [("paris", vec!["b"]), ("tokyo", vec!["c", "a"])]
    );
}

#[test]
fn priority_decides_only_between_rules_of_one_destination() {
    let rules = [
        rule("low", -5, "tokyo"),
        rule("high", 1_000, "paris"),
        rule("middle", 10, "tokyo"),
    ];
    assert_eq!(
        winners(&rules, "k"),
        [("paris", vec!["high"]), ("tokyo", vec!["middle", "low"])]
    );
}

#[test]
fn equal_priorities_are_decided_by_id_whatever_the_order_of_the_file() {
    let mut rules = [rule("b", 1, "tokyo"), rule("a", 1, "tokyo")];
    assert_eq!(winners(&rules, "k"), [("tokyo", vec!["a", "b"])]);
    rules.reverse();
    assert_eq!(winners(&rules, "k"), [("tokyo", vec!["a", "b"])]);
}

#[test]
fn a_disabled_rule_takes_no_part_however_high_its_priority() {
    let rules = [
        Rule {
            enabled: false,
            ..rule("off", 99, "tokyo")
        },
        rule("on", 1, "tokyo"),
    ];
    assert_eq!(winners(&rules, "k"), [("tokyo", vec!["on"])]);
    assert_eq!(winners(&rules[..1], "k"), []);
}

#[test]
fn a_disabled_rule_refuses_for_that_only_what_its_filter_takes() {
    let filter = Filter {
        prefix: "in/".to_owned(),
        ..Filter::default()
    };
    let off = Rule {
        enabled: false,
        filter,
        ..rule("off", 1, "tokyo")
    };
    let refusal = |text| key(text).map(|key| off.admits_key(&key));
    assert_eq!(refusal("in/a"), Some(Err(Mismatch::Disabled)));
    assert_eq!(refusal("out/a"), Some(Err(Mismatch::Prefix)));
}

#[test]
fn a_disabled_rule_with_a_work_queue_keeps_what_no_enabled_one_takes() {
    let off = Rule {
        enabled: false,
        work_queue: Some("work".to_owned()),
        ..rule("off", 99, "tokyo")
    };
    let rules = [off, rule("on", 1, "tokyo"), rule("other", 1, "paris")];
    assert_eq!(winners(&rules[..1], "k"), [("tokyo", vec!["off"])]);
    assert_eq!(
        winners(&rules, "k"),
        [("paris", vec!["other"]), ("tokyo", vec!["on"])]
    );
}

#[test]
fn a_rule_is_about_its_own_source_bucket_only() {
    let other = Rule {
        source: place("other-orders"),
        ..rule("a", 1, "tokyo")
    };
    assert_eq!(winners(&[other], "k"), []);
}

#[test]
fn a_rule_whose_filter_refuses_the_key_leaves_the_destination_to_the_next() {
    let logs = Filter {
        prefix: "logs/".to_owned(),
        ..Filter::default()
    };
    let rules = [
        Rule {
            filter: logs,
            ..rule("logs", 9, "tokyo")
        },
        rule("all", 1, "tokyo"),
    ];
    assert_eq!(winners(&rules, "logs/1"), [("tokyo", vec!["logs", "all"])]);
    assert_eq!(winners(&rules, "invoices/1"), [("tokyo", vec!["all"])]);
}

#[test]
fn every_given_part_of_a_filter_must_match() {
    let filter = Filter {
        prefix: "in/".to_owned(),
        suffix: ".csv".to_owned(),
        exclude: vec!["*/tmp/*".to_owned(), "in/_*".to_owned()],
        ..Filter::default()
    };
    let table = [
        ("in/a.csv", Ok(())),
        ("in/a.CSV", Err(Mismatch::Suffix)),
        ("in/a.json", Err(Mismatch::Suffix)),
        ("out/in/a.csv", Err(Mismatch::Prefix)),
        ("in/x/tmp/a.csv", Err(Mismatch::Exclude)),
        ("in/_hidden.csv", Err(Mismatch::Exclude)),
        ("in/x/_shown.csv", Ok(())),
    ];
    for (text, admitted) in table {
        assert_eq!(
            key(text).map(|key| filter.admits_key(&key)),
            Some(admitted),
            "{text}"
        );
    }
}

#[test]
fn an_empty_filter_admits_everything() {
    let filter = Filter::default();
    assert_eq!(
        key("any/thing").map(|key| filter.admits_key(&key)),
        Some(Ok(()))
    );
    assert_eq!(
        [0, u64::MAX].map(|size| filter.admits_size(size)),
        [Ok(()); 2]
    );
    let tagged = [tags(&[]), tags(&[("tier", "gold")])];
    assert_eq!(tagged.map(|tags| filter.admits_tags(&tags)), [Ok(()); 2]);
}

#[test]
fn both_bounds_of_a_size_are_inclusive() {
    let filter = Filter {
        size_min: Some(10),
        size_max: Some(20),
        ..Filter::default()
    };
    assert_eq!(
        [9, 10, 20, 21].map(|size| filter.admits_size(size)),
        [Err(Mismatch::Size), Ok(()), Ok(()), Err(Mismatch::Size)]
    );
}

#[test]
fn all_wanted_tags_must_be_there_with_their_values() {
    let filter = Filter {
        tags: tags(&[("tier", "gold"), ("team", "ops")]),
        ..Filter::default()
    };
    let more = tags(&[("tier", "gold"), ("team", "ops"), ("more", "1")]);
    assert_eq!(filter.admits_tags(&more), Ok(()));
    let others: [&[(&str, &str)]; 3] = [
        &[("tier", "gold")],
        &[("tier", "gold"), ("team", "dev")],
        &[("Tier", "gold"), ("team", "ops")],
    ];
    for other in others {
        assert_eq!(filter.admits_tags(&tags(other)), Err(Mismatch::Tags));
    }
}

#[test]
fn an_excluded_prefix_is_exact_where_a_pattern_has_no_escape() {
    let filter = Filter {
        prefix: "in/".to_owned(),
        exclude_prefixes: vec!["in/tmp*/".to_owned(), "in/draft".to_owned()],
        ..Filter::default()
    };
    let table = [
        ("in/tmp*/a", Err(Mismatch::Exclude)),
        ("in/tmp1/a", Ok(())),
        ("in/drafts/a", Err(Mismatch::Exclude)),
        ("in/a/draft", Ok(())),
    ];
    for (text, admitted) in table {
        let admits = key(text).map(|key| filter.admits_key(&key));
        assert_eq!(admits, Some(admitted), "{text}");
    }
}

#[test]
fn one_excluded_value_of_a_tag_keeps_an_object_out() {
    let values = |values: &[&str]| values.iter().map(ToString::to_string).collect();
    let filter = Filter {
        tags: tags(&[("team", "ops")]),
        exclude_tags: BTreeMap::from([
            ("tier".to_owned(), values(&["scratch", "test"])),
            ("state".to_owned(), values(&["void"])),
        ]),
        ..Filter::default()
    };
    assert!(filter.needs_tags() && !Filter::default().needs_tags());
    let excluded = Err(Mismatch::ExcludeTags);
    let table: [(&[(&str, &str)], _); 5] = [
        (&[("team", "ops")], Ok(())),
        (&[("team", "ops"), ("tier", "gold")], Ok(())),
        (&[("team", "ops"), ("tier", "test")], excluded),
        (
            &[("team", "ops"), ("tier", "gold"), ("state", "void")],
            excluded,
        ),
        (&[("tier", "gold")], Err(Mismatch::Tags)),
    ];
    for (carried, admitted) in table {
        assert_eq!(filter.admits_tags(&tags(carried)), admitted, "{carried:?}");
    }
    let alone = Filter {
        tags: BTreeMap::new(),
        ..filter
    };
    assert!(alone.needs_tags() && alone.admits_tags(&tags(&[])).is_ok());
}

#[test]
fn markers_need_the_opt_in_as_natively() {
    let silent = rule("a", 1, "tokyo");
    assert!(!silent.admits_marker());
    assert!(
        Rule {
            delete_markers: true,
            ..silent
        }
        .admits_marker()
    );
}

#[test]
fn a_pattern_is_anchored_at_both_ends_and_its_star_crosses_slashes() {
    let table = [
        ("", "", true),
        ("", "a", false),
        ("*", "", true),
        ("*", "a/b", true),
        ("a", "ab", false),
        ("b", "ab", false),
        ("a*", "a", true),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("*.tmp", "x/y.tmp", true),
        ("*.tmp", "x.tmp.bak", false),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("**", "x", true),
        ("ü*é", "ü-é", true),
    ];
    for (pattern, text, matches) in table {
        assert_eq!(matches_pattern(pattern, text), matches, "{pattern} {text}");
    }
}

#[test]
fn a_rewritten_key_exchanges_the_prefix_of_the_filter() {
    let rewritten = |prefix: &str, rewrite: Option<&str>, text: &str| {
        let filter = Filter {
            prefix: prefix.to_owned(),
            ..Filter::default()
        };
        let rule = Rule {
            filter,
            rewrite: rewrite.map(str::to_owned),
            ..rule("a", 1, "tokyo")
        };
        key(text)
            .and_then(|key| rule.destination_key(&key).ok())
            .map(|key| key.to_string())
    };
    assert_eq!(rewritten("in/", None, "in/a").as_deref(), Some("in/a"));
    assert_eq!(
        rewritten("in/", Some("out/"), "in/in/a").as_deref(),
        Some("out/in/a")
    );
    assert_eq!(rewritten("in/", Some(""), "in/a").as_deref(), Some("a"));
    assert_eq!(
        rewritten("", Some("all/"), "in/a").as_deref(),
        Some("all/in/a")
    );
}

proptest! {
    #[test]
    fn patterns_mean_what_the_plain_definition_says(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
        prop_assert_eq!(matches_pattern(&pattern, &text), matches_by_definition(&pattern, &text));
    }

    #[test]
    fn a_contest_lists_each_matching_rule_once_and_highest_first(
        drawn in proptest::collection::vec((-2..3i64, 0..3usize, any::<bool>()), 0..12),
    ) {
        let names = ["oslo", "paris", "tokyo"];
        let build = |(number, (priority, at, enabled)): (usize, (i64, usize, bool))| {
            let bucket = names.get(at).copied().unwrap_or_default();
            Rule { enabled, ..rule(&number.to_string(), priority, bucket) }
        };
        let rules: Vec<Rule> = drawn.into_iter().enumerate().map(build).collect();
        let source = place("orders").bucket;
        let key = Key::try_from("k")?;
        let contests = match_rules(&rules, &source, &key);
        let listed: Vec<&Rule> = contests.iter().flat_map(|contest| contest.candidates.clone()).collect();
        prop_assert_eq!(listed.len(), rules.iter().filter(|rule| rule.enabled).count());
        prop_assert!(contests.is_sorted_by(|a, b| a.destination < b.destination));
        for contest in &contests {
            let belongs = |rule: &&Rule| rule.enabled && rule.destination == *contest.destination;
            prop_assert!(contest.candidates.iter().all(belongs));
            prop_assert!(contest.candidates.is_sorted_by(|a, b| (-a.priority, &a.id) < (-b.priority, &b.id)));
        }
    }
}

#[test]
fn the_first_rule_that_matches_all_of_a_version_takes_it() {
    let filtered = |id: &str, filter: Filter| Rule {
        filter,
        ..rule(id, 1, "tokyo")
    };
    let small = Filter {
        size_max: Some(9),
        ..Filter::default()
    };
    let gold = Filter {
        tags: tags(&[("tier", "gold")]),
        ..Filter::default()
    };
    let rules = [
        filtered("small", small),
        filtered("gold", gold),
        filtered("rest", Filter::default()),
        filtered("never", Filter::default()),
    ];
    let find = |size_bytes, tags| {
        let Takers {
            rules,
            refusals,
            need_tags,
            is_sure,
        } = Takers::find(rules.iter(), size_bytes, tags);
        let ids: Vec<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
        (ids, refusals.len(), need_tags, is_sure)
    };
    assert_eq!(find(9, None), (vec!["small"], 0, false, true));
    assert_eq!(find(10, None), (vec!["gold", "rest"], 1, true, true));
    let gold = tags(&[("tier", "gold")]);
    assert_eq!(find(10, Some(&gold)), (vec!["gold"], 1, false, true));
    assert_eq!(find(10, Some(&tags(&[]))), (vec!["rest"], 2, false, true));
    let tagged = Takers::find(rules.get(1..2).unwrap_or_default(), 10, None);
    assert!(tagged.need_tags && !tagged.is_sure);
    let refused = Takers::find(rules.get(..2).unwrap_or_default(), 10, Some(&tags(&[])));
    let causes: Vec<Mismatch> = refused.refusals.iter().map(|(_, cause)| *cause).collect();
    assert_eq!(causes, [Mismatch::Size, Mismatch::Tags]);
    assert!(refused.rules.is_empty() && !refused.is_sure);
}

fn matches_by_definition(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => text
            .char_indices()
            .map(|(at, _)| at)
            .chain([text.len()])
            .any(|at| {
                matches_by_definition(
                    pattern.get(1..).unwrap_or_default(),
                    text.get(at..).unwrap_or_default(),
                )
            }),
        Some(letter) => text
            .strip_prefix(letter)
            .is_some_and(|rest| matches_by_definition(pattern.get(1..).unwrap_or_default(), rest)),
    }
}

fn winners<'a>(rules: &'a [Rule], text: &str) -> Vec<(&'a str, Vec<&'a str>)> {
    let source = place("orders").bucket;
    let found = key(text)
        .map(|key| match_rules(rules, &source, &key))
        .unwrap_or_default();
    let ids = |contest: &DestinationMatch<'a>| {
        contest
            .candidates
            .iter()
            .map(|rule| rule.id.as_str())
            .collect()
    };
    found
        .iter()
        .map(|contest| (contest.destination.bucket.as_str(), ids(contest)))
        .collect()
}

fn rule(id: &str, priority: i64, destination: &str) -> Rule {
    Rule {
        id: id.to_owned(),
        enabled: true,
        priority,
        source: place("orders"),
        destination: place(destination),
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
        version_delete_delay: Duration::ZERO,
        version_deletes_per_hour: NonZeroU32::MAX,
        replicas: Replicas::Skip,
        verify: Verify::Auto,
        encryption: Encryption::BucketDefault,
        sse_kms_objects: false,
        client_side_keys: BTreeMap::new(),
        limits: RateLimits::default(),
        destination_limits: RateLimits::default(),
    }
}

fn key(text: &str) -> Option<Key> {
    Key::try_from(text).ok()
}

fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn place(bucket: &str) -> BucketRef {
    BucketRef {
        account: "one".to_owned(),
        bucket: Bucket::try_from(bucket).expect("a bucket name"),
    }
}

#[test]
fn a_multi_region_key_has_the_same_id_in_each_region() {
    let related = |arn| related_key(arn, "us-east-1");
    assert_eq!(
        related("arn:aws:kms:eu-west-1:111111111111:key/mrk-1234").as_deref(),
        Some("arn:aws:kms:us-east-1:111111111111:key/mrk-1234")
    );
    for other in [
        "arn:aws:kms:eu-west-1:111111111111:key/1234",
        "arn:aws:kms:eu-west-1:111111111111:alias/mrk-1234",
        "mrk-1234",
        "",
    ] {
        assert_eq!(related(other), None, "{other}");
    }
}
