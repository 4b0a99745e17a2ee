//! Filters: which keys, sizes and tags a rule is about.

use std::collections::{BTreeMap, BTreeSet};

use replicator_core::rule::Filter;

use crate::diagnostics::Problems;
use crate::reader::{Field, Scalar};
use crate::{schema, values};

/// Checks the filter of a rule; without one, it is about every object.
pub(super) fn resolve(written: &Field<schema::Filter>, problems: &mut Problems<'_>) -> Filter {
    let Some(written) = written.present_value() else {
        return Filter::default();
    };
    let mut size = |field: &Field<Scalar>| field.parse_with(problems, values::parse_size);
    let (size_min, size_max) = (size(&written.size_min), size(&written.size_max));
    if let (Some(min), Some(max)) = (size_min, size_max)
        && min > max
    {
        let message = "is more than size_max, so no object matches; swap or widen them";
        problems.add_problem(&written.size_min.spot, message);
    }
    let mut key_part = |field: &Field<String>| field.parse_with(problems, key_part);
    let (prefix, suffix) = (key_part(&written.prefix), key_part(&written.suffix));
    let prefix = prefix.unwrap_or_default();
    let tags = tags(&written.tags, problems);
    Filter {
        suffix: suffix.unwrap_or_default(),
        exclude: written.exclude.parse_each(problems, pattern),
        exclude_prefixes: written
            .exclude_prefixes
            .parse_each(problems, |text| excluded_prefix(text, &prefix)),
        exclude_tags: excluded_tags(&written.exclude_tags, &tags, problems),
        prefix,
        tags,
        size_min,
        size_max,
    }
}

/// Checks the start or the end of a key.
pub(super) fn key_part(text: &str) -> Result<String, String> {
    if text.starts_with("s3://") {
        return Err(format!(
            "{text:?} is a URL; write the part of the keys alone, like \"invoices/\""
        ));
    }
    if text.len() > KEY_BYTES_MAX {
        return Err(format!(
            "is {} bytes long, and no key is longer than {KEY_BYTES_MAX}; shorten it",
            text.len()
        ));
    }
    Ok(text.to_owned())
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
const KEY_BYTES_MAX: usize = 1024;

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
const TAGS_MAX: usize = 10;
const TAG_KEY_CHARS_MAX: usize = 128;
const TAG_VALUE_CHARS_MAX: usize = 256;

const EXCLUDES_ALL: &str = "excludes every key; disable the rule with enabled = false";

fn pattern(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("empty, so it excludes nothing; remove it".to_owned());
    }
    if text.chars().all(|c| c == '*') {
        return Err(format!("{text:?} {EXCLUDES_ALL}"));
    }
    Ok(text.to_owned())
}

/// Checks an excluded prefix against the prefix that the rule is about.
fn excluded_prefix(text: &str, prefix: &str) -> Result<String, String> {
    if prefix.starts_with(text) {
        return Err(format!("{text:?} {EXCLUDES_ALL}"));
    }
    key_part(text)
}

fn tags(
    written: &Field<BTreeMap<String, Field<String>>>,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, String> {
    let Some(tags) = written.present_value() else {
        return BTreeMap::new();
    };
    if tags.len() > TAGS_MAX {
        let count = tags.len();
        let message = format!("has {count} tags, and an object has {TAGS_MAX} at most; drop some");
        problems.add_problem(&written.spot, message);
    }
    tags.iter()
        .filter_map(|(key, value)| {
            refuse_tag_key(key, value, problems);
            Some((key.clone(), value.parse_with(problems, tag_value)?))
        })
        .collect()
}

/// Checks the tags that keep an object out, against those that it has to have.
fn excluded_tags(
    written: &Field<BTreeMap<String, Field<Vec<Field<String>>>>>,
    wanted: &BTreeMap<String, String>,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut excluded = BTreeMap::new();
    for (key, values) in written.present_value().into_iter().flatten() {
        refuse_tag_key(key, values, problems);
        if values.present_value().is_some_and(Vec::is_empty) {
            let message = "empty, so it excludes nothing; remove it";
            problems.add_problem(&values.spot, message);
        }
        let values = values.parse_each(problems, |text| {
            let value = tag_value(text)?;
            match wanted.get(key) {
                Some(wanted) if *wanted == value => Err(format!(
                    "{value:?} is what filter.tags asks for, so no object matches; remove one of them"
                )),
                _ => Ok(value),
            }
        });
        excluded.insert(key.clone(), values.into_iter().collect());
    }
    excluded
}

fn refuse_tag_key<T>(key: &str, value: &Field<T>, problems: &mut Problems<'_>) {
    if !(1..=TAG_KEY_CHARS_MAX).contains(&key.chars().count()) {
        let message = format!("the key of a tag has 1 to {TAG_KEY_CHARS_MAX} characters");
        problems.add_problem(&value.spot, message);
    }
}

fn tag_value(text: &str) -> Result<String, String> {
    match text.chars().count() {
        ..=TAG_VALUE_CHARS_MAX => Ok(text.to_owned()),
        _ => Err(format!(
            "the value of a tag has {TAG_VALUE_CHARS_MAX} characters at most"
        )),
    }
}
