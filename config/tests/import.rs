//! Imported rules take what S3's own take: the samples become exactly the files beside them, and
//! random configurations are held against a reading of S3's semantics that shares no code with the
//! translation.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that can't go on should stop"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use replicator_config::{ImportOptions, import, parse};
use replicator_core::object::{Bucket, Key};
use replicator_core::rule::{Rule, match_rules};
use serde_json::{Value, json};

const BUCKET: &str = "orders";

#[test]
fn each_sample_becomes_the_file_beside_it() {
    let mut count = 0;
    for file in samples() {
        let text = import(&fs::read_to_string(&file).unwrap(), &options()).unwrap();
        let expected = fs::read_to_string(file.with_extension("toml")).unwrap();
        assert_eq!(text, expected, "{}", file.display());
        let loaded = parse(&text);
        assert!(loaded.is_ok(), "{}: {loaded:?}", file.display());
        count += 1;
    }
    assert!(count > 4);
}

#[test]
fn the_first_version_replicates_the_markers_of_users() {
    let rules = imported(&sample("first_version"));
    assert!(rules.iter().all(|rule| rule.delete_markers));
    let rules = imported(&sample("priorities"));
    assert!(rules.iter().all(|rule| !rule.delete_markers));
    assert_eq!(rules.iter().filter(|rule| rule.enabled).count(), 2);
}

#[test]
fn what_is_not_known_is_left_for_the_checks_to_refuse() {
    let options = ImportOptions {
        bucket: BUCKET.to_owned(),
        ..ImportOptions::default()
    };
    let text = import(&sample("exclusions"), &options).unwrap();
    let invalid = parse(&text).unwrap_err();
    let missing = invalid.problems();
    assert_eq!(missing.len(), 10, "{invalid}");
    for problem in missing {
        let named = format!("# - {}", problem.path);
        assert!(text.contains(&named), "{problem}");
        assert!(problem.message.contains("write it like"), "{problem}");
    }
}

#[test]
fn rules_that_do_not_fit_together_here_are_told_of() {
    let mut native: Value = serde_json::from_str(&sample("priorities")).unwrap();
    native["Rules"][0]["DeleteMarkerReplication"]["Status"] = "Enabled".into();
    let text = import(&native.to_string(), &options()).unwrap();
    assert!(text.contains("# - rules[1].delete_markers (rule \"gold\"): not the same as"));
}

#[test]
fn an_element_that_is_not_known_is_refused_with_its_path() {
    let at = "ReplicationConfiguration.Rules[0]";
    for (path, element) in [
        ("", "ResponseMetadata"),
        ("", "ReplicationConfiguration.Rule"),
        (at, "Filters"),
        (at, "Filter.Suffix"),
        (at, "SourceSelectionCriteria.Others"),
        (at, "Destination.ReplicationTime.EventThreshold"),
    ] {
        let path = [path, element].join(if path.is_empty() { "" } else { "." });
        let error = refusal(&path, json!({"Status": "Enabled"}));
        assert!(
            error.starts_with(&format!("{path}: unknown field")),
            "{error}"
        );
    }
}

#[test]
fn a_value_that_s3_does_not_have_is_refused_with_its_path() {
    let cases = [
        ("Status", json!("Paused"), "unknown variant `Paused`"),
        ("Prefix", json!("a/"), "stands beside a Filter"),
        (
            "Filter.Tag",
            json!({"Key": "a", "Value": "b"}),
            "has several of Prefix",
        ),
        (
            "Filter",
            json!({"Not": {}}),
            "has none or several of Prefix, Tag and Or",
        ),
        (
            "Destination.Bucket",
            json!("orders"),
            "\"orders\" is not the ARN of a bucket",
        ),
        (
            "Destination.AccessControlTranslation.Owner",
            json!("Source"),
            "unknown variant `Source`",
        ),
    ];
    for (element, value, expected) in cases {
        let error = refusal(
            &format!("ReplicationConfiguration.Rules[0].{element}"),
            value,
        );
        assert!(
            error.contains("Rules[0]") && error.contains(expected),
            "{error}"
        );
    }
}

/// Sets an element of a configuration that is sound otherwise, and returns the refusal.
fn refusal(path: &str, value: Value) -> String {
    let mut native: Value = serde_json::from_str(&sample("every_element")).unwrap();
    let path = path.replace("[0]", ".0");
    let (table, element) = path.rsplit_once('.').unwrap_or(("", &path));
    let pointer: String = table
        .split('.')
        .filter(|step| !step.is_empty())
        .map(|step| format!("/{step}"))
        .collect();
    native.pointer_mut(&pointer).unwrap()[element] = value;
    import(&native.to_string(), &options())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_rule_cannot_write_lines_of_its_own() {
    let id = "a\"\n[accounts.evil]\nregion = \"x\u{7f}";
    let mut native: Value = serde_json::from_str(&sample("every_element")).unwrap();
    let rule = &mut native["ReplicationConfiguration"]["Rules"][0];
    rule["ID"] = id.into();
    rule["Filter"] = json!({"Prefix": "\u{1}\"\\\n'"});
    let rules = imported(&native.to_string());
    assert_eq!(
        (rules[0].id.as_str(), rules[0].filter.prefix.as_str()),
        (id, "\u{1}\"\\\n'")
    );
}

proptest! {
    #[test]
    fn imported_rules_take_what_those_of_s3_take(
        native in configuration(),
        objects in prop::collection::vec(object(), 16),
    ) {
        let rules = imported(&native.to_string());
        for object in &objects {
            prop_assert_eq!(ours(&rules, object), natively(&native, object), "{:?} under {}", object, native);
        }
    }
}

/// What happens at the source.
#[derive(Debug, Clone)]
struct Object {
    key: String,
    /// The tags of an object; a delete marker has none.
    tags: Option<BTreeMap<String, String>>,
}

/// The rule that takes an object for each destination bucket, as this daemon chooses.
fn ours(rules: &[Rule], object: &Object) -> BTreeSet<(String, String)> {
    let key = Key::try_from(object.key.as_str()).unwrap();
    let mut taken = BTreeSet::new();
    for found in match_rules(rules, &Bucket::try_from(BUCKET).unwrap(), &key) {
        let takes = |rule: &Rule| match &object.tags {
            Some(tags) => rule.filter.admits_tags(tags).is_ok(),
            None => rule.admits_marker(),
        };
        let rule = found.candidates.iter().find(|rule| takes(rule));
        let bucket = found.destination.bucket.as_str().to_owned();
        taken.extend(rule.map(|rule| (bucket, rule.id.clone())));
    }
    taken
}

/// The same as S3's documentation says it.
fn natively(native: &Value, object: &Object) -> BTreeSet<(String, String)> {
    let mut winners: BTreeMap<String, (i64, String)> = BTreeMap::new();
    for rule in native["Rules"].as_array().unwrap() {
        let is_marked =
            rule["DeleteMarkerReplication"]["Status"] == "Enabled" || rule["Filter"].is_null();
        let takes = rule["Status"] == "Enabled"
            && selects(rule, object)
            && (object.tags.is_some() || is_marked);
        if !takes {
            continue;
        }
        let bucket = rule["Destination"]["Bucket"]
            .as_str()
            .unwrap()
            .replace("arn:aws:s3:::", "");
        let priority = rule["Priority"].as_i64().unwrap();
        let entry = (priority, rule["ID"].as_str().unwrap().to_owned());
        let winner = winners.entry(bucket).or_insert_with(|| entry.clone());
        if priority > winner.0 {
            *winner = entry;
        }
    }
    winners
        .into_iter()
        .map(|(bucket, (_, id))| (bucket, id))
        .collect()
}

fn selects(rule: &Value, object: &Object) -> bool {
    let filter = &rule["Filter"];
    let parts = [filter, &filter["And"]];
    let prefixes = [&rule["Prefix"], &parts[0]["Prefix"], &parts[1]["Prefix"]];
    let is_at = prefixes.iter().all(|prefix| {
        prefix
            .as_str()
            .is_none_or(|prefix| object.key.starts_with(prefix))
    });
    let wanted = std::iter::once(&filter["Tag"])
        .chain(filter["And"]["Tags"].as_array().into_iter().flatten());
    let is_tagged = wanted
        .filter(|tag| !tag.is_null())
        .all(|tag| has(object, tag));
    is_at && is_tagged && !parts.iter().any(|part| is_excluded(&part["Not"], object))
}

fn is_excluded(not: &Value, object: &Object) -> bool {
    let list = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let prefixes = [vec![not["Prefix"].clone()], list(&not["Or"]["Prefixes"])].concat();
    let tags = [vec![not["Tag"].clone()], list(&not["Or"]["Tags"])].concat();
    let starts = |prefix: &Value| {
        prefix
            .as_str()
            .is_some_and(|prefix| object.key.starts_with(prefix))
    };
    prefixes.iter().any(starts) || tags.iter().any(|tag| has(object, tag))
}

fn has(object: &Object, tag: &Value) -> bool {
    let (Some(tags), Some(key)) = (&object.tags, tag["Key"].as_str()) else {
        return false;
    };
    tags.get(key).map(String::as_str) == tag["Value"].as_str()
}

const PREFIXES: [&str; 4] = ["", "a/", "a/b/", "b*"];
const EXCLUDED: [&str; 5] = ["a/b/c", "b*c", "z", "a/b/*", "a/x"];
const ENDS: [&str; 6] = ["", "c", "*", "x/y", "b/c", "z"];
/// An excluded tag is never one that a rule asks for: such a rule takes nothing, and is refused.
const WANTED: [(&str, &str); 2] = [("t", "gold"), ("team", "ops")];
const UNWANTED: [(&str, &str); 3] = [("t", "scratch"), ("t", "test"), ("u", "x")];

fn object() -> impl Strategy<Value = Object> {
    let starts = [PREFIXES.as_slice(), &EXCLUDED].concat();
    let tags = subsequence([WANTED.as_slice(), &UNWANTED].concat(), 0..=5);
    (
        select(starts),
        select(ENDS.to_vec()),
        proptest::option::weighted(0.8, tags),
    )
        .prop_map(|(start, end, tags)| Object {
            key: format!("{start}{end}.csv"),
            tags: tags.map(|tags| {
                tags.into_iter()
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect()
            }),
        })
}

/// Rules with priorities of their own; those of one bucket agree on delete markers, as ours have to.
fn configuration() -> impl Strategy<Value = Value> {
    let rule = (
        select(vec!["one", "two"]),
        prop::bool::weighted(0.8),
        filter(),
    );
    (
        prop::collection::vec(rule, 1..6),
        any::<bool>(),
        Just((1..7).collect::<Vec<i64>>()).prop_shuffle(),
    )
        .prop_map(|(rules, are_marked, priorities)| {
            let rules = rules.into_iter().zip(priorities).map(
                |((bucket, is_enabled, filter), priority)| {
                    let status = |on: bool| if on { "Enabled" } else { "Disabled" };
                    let mut rule = json!({
                        "ID": format!("rule {priority}"),
                        "Priority": priority,
                        "Status": status(is_enabled),
                        "Destination": {"Bucket": format!("arn:aws:s3:::{bucket}")},
                    });
                    // With tags S3 takes no delete markers, and in its first form no exclusion.
                    let with_markers = are_marked && bucket == "one";
                    let (prefix, _, (excluded, _)) = &filter;
                    if with_markers && excluded.is_empty() {
                        rule["Prefix"] = prefix.as_str().into();
                        return rule;
                    }
                    rule["DeleteMarkerReplication"] = json!({"Status": status(with_markers)});
                    rule["Filter"] = match with_markers {
                        true => written((prefix.clone(), vec![], (excluded.clone(), vec![]))),
                        false => written(filter),
                    };
                    rule
                },
            );
            json!({"Role": "arn:aws:iam::111111111111:role/r", "Rules": rules.collect::<Vec<_>>()})
        })
}

type Parts = (
    String,
    Vec<(&'static str, &'static str)>,
    (Vec<&'static str>, Vec<(&'static str, &'static str)>),
);

fn filter() -> impl Strategy<Value = Parts> {
    let excluded = (
        subsequence(EXCLUDED.to_vec(), 0..=2),
        subsequence(UNWANTED.to_vec(), 0..=3),
    );
    (
        select(PREFIXES.to_vec()),
        subsequence(WANTED.to_vec(), 0..=2),
        excluded,
    )
        .prop_map(|(prefix, tags, excluded)| (prefix.to_owned(), tags, excluded))
}

/// A filter in the shortest form that S3 has for it.
fn written((prefix, tags, (prefixes, unwanted)): Parts) -> Value {
    let tag = |(key, value): &(&str, &str)| json!({"Key": key, "Value": value});
    let tags: Vec<Value> = tags.iter().map(tag).collect();
    let unwanted: Vec<Value> = unwanted.iter().map(tag).collect();
    let not = match (prefixes.as_slice(), unwanted.as_slice()) {
        ([], []) => Value::Null,
        ([prefix], []) => json!({"Prefix": prefix}),
        ([], [tag]) => json!({"Tag": tag}),
        _ => json!({"Or": {"Prefixes": prefixes, "Tags": unwanted}}),
    };
    match (prefix.as_str(), tags.as_slice(), not) {
        ("", [], Value::Null) => json!({}),
        (_, [], Value::Null) => json!({"Prefix": prefix}),
        ("", [tag], Value::Null) => json!({"Tag": tag}),
        ("", [], not) => json!({"Not": not}),
        (_, _, Value::Null) => json!({"And": {"Prefix": prefix, "Tags": tags}}),
        (_, _, not) => json!({"And": {"Prefix": prefix, "Tags": tags, "Not": not}}),
    }
}

fn options() -> ImportOptions {
    let queue = |name: &str| format!("https://sqs.eu-west-1.amazonaws.com/111111111111/{name}");
    ImportOptions {
        bucket: BUCKET.to_owned(),
        region: Some("eu-west-1".to_owned()),
        destination_region: Some("us-east-2".to_owned()),
        queue_url: Some(queue("orders-events")),
        dead_letter_url: Some(queue("orders-parked")),
        since: Some("2026-11-30T12:00:00Z".to_owned()),
    }
}

fn imported(native: &str) -> Vec<Rule> {
    let text = import(native, &options()).unwrap();
    parse(&text)
        .map_err(|invalid| format!("{invalid}\n{text}"))
        .unwrap()
        .rules
}

fn samples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/native");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect()
}

fn sample(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/native");
    fs::read_to_string(folder.join(name).with_extension("json")).unwrap()
}
