//! The comparison against histories that are written by hand, and against random ones that are
//! replicated by the planner's rules and then broken in one place.

use proptest::prelude::*;

use super::*;
use crate::object::{ETag, Timestamp};

fn etag(content: &str) -> ETag {
    let digest = format!(
        "{:032x}",
        content
            .bytes()
            .fold(7, |sum: u64, byte| sum * 31 + u64::from(byte))
    );
    ETag::try_from(digest).expect("not empty")
}

fn moment(second: usize) -> Timestamp {
    Timestamp::UNIX_EPOCH + time::Duration::seconds(i64::try_from(second).expect("small"))
}

fn entry(id: &str, second: usize, content: Option<&str>) -> SourceVersion {
    let id = VersionId::try_from(id.to_owned()).expect("valid");
    SourceVersion {
        version: VersionRef::new(id, moment(second), None),
        kind: content.map_or(VersionKind::Marker, |_| VersionKind::Object),
        etag: content.map(etag),
        size_bytes: content.map_or(0, |content| content.len() as u64),
    }
}

/// Reads a history of the source: `m` is a marker, another word an object of that content, in
/// brackets what is outside of the rule, with `?` before it what is too young.
fn source(text: &str) -> Vec<(SourceVersion, VersionScope)> {
    let words = text.split_whitespace().enumerate();
    let read = |(at, word): (usize, &str)| {
        let content = word.trim_matches(['[', ']', '?']);
        let content = Some(content).filter(|content| *content != "m");
        let scope = match word.chars().next() {
            Some('[') => VersionScope::Outside,
            Some('?') => VersionScope::Pending,
            _ => VersionScope::Wanted,
        };
        (entry(&format!("v{at}"), at, content), scope)
    };
    words.map(read).collect()
}

/// Reads a history of the destination: `m` is a marker, a number the replica of that entry, `+` with
/// a number the same without a stamp, `lost` the replica of a version that the source has lost,
/// another word a foreign object; `!` after a number says other content, `>` another size.
fn shown(text: &str, source: &[(SourceVersion, VersionScope)]) -> Vec<ShownEntry> {
    let words = text.split_whitespace().enumerate();
    let read = |(at, word): (usize, &str)| {
        let number = word.trim_matches(['+', '!', '>']).parse::<usize>();
        let original = number.ok().and_then(|number| source.get(number));
        let id = format!("r{at}");
        let mut entry = match original {
            Some((original, _)) => SourceVersion {
                version: entry(&id, 100 + at, None).version,
                ..original.clone()
            },
            None => entry(&id, 100 + at, Some(word).filter(|word| *word != "m")),
        };
        if word.ends_with('!') {
            entry.etag = Some(etag("other"));
        }
        if word.ends_with('>') {
            entry.size_bytes += 1;
        }
        let lost = VersionRef::new(VersionId::try_from("gone").expect("valid"), moment(0), None);
        let version = match original {
            Some((original, _)) => Some(original.version.clone()),
            None => (word == "lost").then_some(lost),
        };
        let claim = version.filter(|_| !word.starts_with('+'));
        let claim = claim.map(|version| OriginClaim {
            version,
            etag: entry.etag.clone(),
            has_digest: true,
            size_bytes: Some(entry.size_bytes),
            written: Some(moment(100 + at)),
            now: Some(moment(1000)),
        });
        ShownEntry { entry, claim }
    };
    words.map(read).collect()
}

/// Compares two histories, and writes the differences as `missing v1` or `extra r3`.
fn differences(history: (&str, &str), mode: History) -> Vec<String> {
    let source = source(history.0);
    let shown = shown(history.1, &source);
    let histories = KeyHistories {
        source: &source,
        shown: &shown,
    };
    let name = |finding: &HistoryDifference| {
        let difference: &str = finding.difference.into();
        let replica = finding.replica.as_ref().map(VersionId::as_str);
        let version = finding.source.as_ref().map(|version| version.id.as_str());
        format!("{difference} {}", replica.or(version).unwrap_or("nothing"))
    };
    histories.compare(mode).iter().map(name).collect()
}

#[test]
fn full_histories_are_equal_or_differ_in_what_is_named() {
    let table: &[(&str, &str, &[&str])] = &[
        ("", "", &[]),
        ("a b c", "0 1 2", &[]),
        ("a b c", "+0 +1 +2", &[]),
        ("a a", "+0 +1", &[]),
        ("a m b", "0 m 2", &[]),
        ("m a m m b m", "1 m 4 m", &[]),
        ("[a] b", "1", &[]),
        ("[a] b", "0 1", &[]),
        ("a [b]", "0", &[]),
        ("a [b]", "0 1", &[]),
        ("a [m]", "0", &[]),
        ("a [m]", "0 m", &["extra r1"]),
        ("a ?b", "0", &[]),
        ("a ?b", "0 1", &[]),
        ("a ?m", "0 m", &[]),
        ("a ?b", "1", &["missing v0"]),
        ("a b c", "0 2", &["missing v1"]),
        ("a b c", "0 1", &["missing v2"]),
        ("a", "", &["missing v0"]),
        ("a m b", "0 2", &["missing v1"]),
        ("a m", "0", &["missing v1"]),
        ("a m", "0 m 0", &["extra r2"]),
        ("a", "0 m", &["extra r1"]),
        ("a", "0 0", &["extra r1"]),
        ("a b", "0 1 0", &["order r2"]),
        ("a b", "1 0", &["order r1"]),
        // A marker, or a later version, that the source took back.
        ("a", "0 m 0", &[]),
        ("a", "0 lost 0", &[]),
        ("a", "0 lost", &["extra r1"]),
        ("a", "lost 0", &[]),
        ("a b", "0! 1", &["bytes r0"]),
        ("a b", "0 1>", &["size r1"]),
        ("a b", "0 foreign 1", &["foreign r1"]),
        ("a b", "0 1 foreign", &["foreign r2"]),
    ];
    for (source, shown, expected) in table {
        let found = differences((source, shown), History::Exact);
        assert_eq!(found, *expected, "{source} | {shown}");
    }
}

#[test]
fn in_latest_mode_what_is_current_has_to_be_equal() {
    let table: &[(&str, &str, &[&str])] = &[
        ("a b c", "2", &[]),
        ("a b c", "foreign 0! 2", &[]),
        ("a b c", "0 1", &["missing v2"]),
        ("a b c", "", &["missing v2"]),
        ("a b c", "2!", &["bytes r0"]),
        ("a b c", "2 foreign", &["foreign r1"]),
        ("a b m", "", &[]),
        ("a b m", "1 m", &[]),
        ("a b m", "1", &["extra r0"]),
        ("a b", "1 m", &["extra r1"]),
    ];
    for (source, shown, expected) in table {
        let found = differences((source, shown), History::Latest);
        assert_eq!(found, *expected, "{source} | {shown}");
    }
}

#[test]
fn lists_prove_a_key_equal_by_digests_alone() {
    let is_proved = |wanted: &str, replicas: &str| {
        let source = source(wanted);
        let shown = shown(replicas, &source);
        let wanted: Vec<&SourceVersion> = source.iter().map(|(entry, _)| entry).collect();
        let shown: Vec<&SourceVersion> = shown.iter().map(|shown| &shown.entry).collect();
        proves_equal(&wanted, &shown)
    };
    for (wanted, replicas) in [("a b", "0 1"), ("m a m m b m", "1 m 4 m m"), ("", "m")] {
        assert!(is_proved(wanted, replicas), "{wanted} | {replicas}");
    }
    for (wanted, replicas) in [
        ("a b", "0"),
        ("a b", "1 0"),
        ("a b", "0 1!"),
        ("a b", "0 1>"),
        ("a m b", "0 1"),
        ("a", "0 m"),
    ] {
        assert!(!is_proved(wanted, replicas), "{wanted} | {replicas}");
    }
    let in_parts = SourceVersion {
        etag: ETag::try_from("9b2cf535f27731c974343645a3985328-2").ok(),
        ..entry("v0", 0, Some("a"))
    };
    assert!(!proves_equal(&[&in_parts], &[&in_parts]));
}

/// Lists by their ids the versions that an object of content `a` may be the replica of.
fn originals(written: usize, source: &[SourceVersion], newer: &[usize]) -> Vec<String> {
    let object = entry("r", written, Some("a"));
    let newer: Vec<VersionRef> = newer.iter().map(|at| source[*at].version.clone()).collect();
    possible_originals(&object, source, &newer)
        .map(|entry| entry.version.id.to_string())
        .collect()
}

#[test]
fn an_object_is_the_replica_of_the_newest_version_that_it_can_be() {
    let source: Vec<SourceVersion> = ["a", "b", "m", "bb", "a"]
        .iter()
        .enumerate()
        .map(|(at, word)| {
            entry(
                &format!("v{at}"),
                at * 100,
                Some(*word).filter(|word| *word != "m"),
            )
        })
        .collect();
    assert_eq!(originals(1_000, &source, &[]), ["v4", "v1", "v0"]);
    assert_eq!(
        originals(1_000, &source, &[4]),
        ["v1", "v0"],
        "below the replica of the newest"
    );
    assert_eq!(originals(1_000, &source, &[4, 1]), ["v0"]);
    assert_eq!(
        originals(300, &source, &[]),
        ["v1", "v0"],
        "it is older than the newest"
    );
    assert_eq!(
        originals(345, &source, &[]),
        ["v4", "v1", "v0"],
        "clocks differ"
    );
    let lost = VersionRef::new(VersionId::try_from("gone").unwrap(), moment(90), None);
    let object = entry("r", 1_000, Some("a"));
    let below: Vec<_> = possible_originals(&object, &source, &[lost]).collect();
    assert_eq!(
        below,
        [&source[0]],
        "below the replica of a version that is gone"
    );
}

fn histories() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec!["a", "b", "c", "m"]);
    prop::collection::vec(words, 1..8).prop_map(|words| words.join(" "))
}

/// Replicates a history: every object, and a marker above an object.
fn replicate(source: &str) -> Vec<String> {
    let mut replicas: Vec<String> = Vec::new();
    for (at, word) in source.split_whitespace().enumerate() {
        match word {
            "m" if replicas.last().is_none_or(|last| last == "m") => {}
            "m" => replicas.push("m".to_owned()),
            _ => replicas.push(at.to_string()),
        }
    }
    replicas
}

proptest! {
    #[test]
    fn a_replicated_history_has_no_difference(source in histories()) {
        let replicas = replicate(&source).join(" ");
        let found = differences((&source, &replicas), History::Exact);
        prop_assert!(found.is_empty(), "{source} | {replicas}: {found:?}");
    }

    #[test]
    fn whatever_is_taken_out_or_swapped_is_found(
        source in histories(),
        at in any::<prop::sample::Index>(),
        is_swap in any::<bool>(),
    ) {
        let mut replicas = replicate(&source);
        prop_assume!(!replicas.is_empty());
        let at = at.index(replicas.len());
        if is_swap && at + 1 < replicas.len() {
            replicas.swap(at, at + 1);
        } else {
            replicas.remove(at);
        }
        let broken = replicas.join(" ");
        let found = differences((&source, &broken), History::Exact);
        prop_assert!(!found.is_empty(), "{source} | {broken}");
    }

    #[test]
    fn objects_that_are_identified_from_the_newest_on_stand_in_the_sources_order(
        words in histories(),
        kept in prop::collection::vec(any::<bool>(), 8),
        spacing in prop::sample::select(vec![1, 100]),
    ) {
        let source: Vec<SourceVersion> = words
            .split_whitespace()
            .enumerate()
            .map(|(at, word)| entry(&format!("v{at}"), at * spacing, Some(word).filter(|word| *word != "m")))
            .collect();
        // A tool copied some of the versions, each right when it was made.
        let copied = source.iter().zip(&kept).filter(|(entry, kept)| **kept && entry.kind == VersionKind::Object);
        let copied: Vec<SourceVersion> = copied.map(|(entry, _)| entry.clone()).collect();
        let mut newer: Vec<VersionRef> = Vec::new();
        for object in copied.iter().rev() {
            let original = possible_originals(object, &source, &newer).find(|entry| has_content_of(object, entry));
            let original = original.expect("there is one left for each");
            let place = |version: &VersionRef| source.iter().position(|entry| entry.version == *version);
            prop_assert!(newer.last().is_none_or(|last| place(&original.version) < place(last)));
            // Far apart in time, it is the very version.
            prop_assert!(spacing == 1 || original.version == object.version);
            newer.push(original.version.clone());
        }
    }
}

#[test]
fn lists_leave_a_doubt_where_a_replica_is_older_smaller_or_not_in_its_place() {
    let entries = |text: &str| -> Vec<SourceVersion> {
        let words = text.split_whitespace().enumerate();
        let read = |(at, word): (usize, &str)| {
            let (content, second) = word.split_once('@').unwrap_or((word, "0"));
            let content = Some(content).filter(|content| *content != "m");
            entry(&format!("v{at}"), second.parse().unwrap_or(0), content)
        };
        words.map(read).collect()
    };
    let is_fine = |source: &str, shown: &str| {
        let (source, shown) = (entries(source), entries(shown));
        let (source, shown): (Vec<_>, Vec<_>) = (source.iter().collect(), shown.iter().collect());
        may_be_equal(&source, &shown)
    };
    for (source, shown) in [
        ("", ""),
        ("", "lost"),
        ("aa@1 b@2", "cc@3 d@4"),
        ("aa@1 m@2 b@3", "aa@1 m@2 b@3"),
        ("m@1 aa@2", "aa@3"),
        ("b@5", "lost@1 aa@2 b@6"),
    ] {
        assert!(is_fine(source, shown), "{source} and {shown}");
    }
    for (source, shown) in [
        ("aa@1", ""),
        ("aa@1 b@2", "aa@3"),
        ("aa@1 b@2", "b@3"),
        ("aa@1 b@2", "b@3 aa@4"),
        ("aa@1 m@2", "aa@3"),
        ("b@5", "b@4"),
        ("b@5", "b@6 other@7"),
    ] {
        assert!(!is_fine(source, shown), "{source} and {shown}");
    }
}

#[test]
fn only_what_is_below_a_proved_replica_is_late() {
    let count = |wanted: &str, shown: &str| {
        let list = |text: &str| -> Vec<SourceVersion> {
            { source(text).into_iter() }
                .map(|(entry, _)| entry)
                .collect()
        };
        let (wanted, shown) = (list(wanted), list(shown));
        let (wanted, shown): (Vec<_>, Vec<_>) = (wanted.iter().collect(), shown.iter().collect());
        count_late(&wanted, &shown)
    };
    assert_eq!(count("one two three", "three"), 2);
    assert_eq!(count("one m two m three", "two three"), 1);
    assert_eq!(count("one two three", "one"), 0, "the others come in order");
    assert_eq!(count("one two three", ""), 0);
    // Nothing tells what the destination shows.
    assert_eq!(count("one two three", "else"), 2);
    assert_eq!(count("one two three", "one else"), 1);
    assert_eq!(count("one m", "m"), 1);
}
