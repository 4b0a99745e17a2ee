//! Filters: which objects a rule is about.

use std::collections::BTreeMap;

use replicator_core::rule::Filter;

use crate::diagnostics::Problems;
use crate::reader::{Field, Scalar};
use crate::{schema, units};

/// Checks the filter of a rule; without one, everything matches.
pub(super) fn settle(written: &Field<schema::Filter>, problems: &mut Problems<'_>) -> Filter {
    let Some(written) = written.present_value() else {
        return Filter::default();
    };
    let mut size =
        |field: &Field<Scalar>| field.parse_with(problems, |Scalar(text)| units::parse_size(text));
    let (size_min, size_max) = (size(&written.size_min), size(&written.size_max));
    if let (Some(min), Some(max)) = (size_min, size_max)
        && min > max
    {
        problems.add_problem(
            &written.size_min.spot,
            "is more than size_max, so no object matches; swap or widen them",
        );
    }
    Filter {
        prefix: written
            .prefix
            .parse_with(problems, |text| key_part(text))
            .unwrap_or_default(),
        suffix: written
            .suffix
            .parse_with(problems, |text| key_part(text))
            .unwrap_or_default(),
        exclude: exclude(&written.exclude, problems),
        tags: tags(&written.tags, problems),
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

fn exclude(written: &Field<Vec<Field<String>>>, problems: &mut Problems<'_>) -> Vec<String> {
    let patterns = written.present_value().into_iter().flatten();
    patterns
        .filter_map(|field| field.parse_with(problems, |text| pattern(text)))
        .collect()
}

fn pattern(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("empty, so it excludes nothing; remove it".to_owned());
    }
    if text.chars().all(|c| c == '*') {
        return Err(format!(
            "{text:?} excludes every key; disable the rule with enabled = false"
        ));
    }
    Ok(text.to_owned())
}

fn tags(
    written: &Field<BTreeMap<String, Field<String>>>,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, String> {
    let Some(tags) = written.present_value() else {
        return BTreeMap::new();
    };
    if tags.len() > TAGS_MAX {
        problems.add_problem(
            &written.spot,
            format!(
                "has {} tags, and an object has {TAGS_MAX} at most; drop some",
                tags.len()
            ),
        );
    }
    tags.iter()
        .filter_map(|(key, value)| Some((key.clone(), tag(key, value, problems)?)))
        .collect()
}

fn tag(key: &str, value: &Field<String>, problems: &mut Problems<'_>) -> Option<String> {
    if !(1..=TAG_KEY_CHARS_MAX).contains(&key.chars().count()) {
        problems.add_problem(
            &value.spot,
            format!("the key of a tag has 1 to {TAG_KEY_CHARS_MAX} characters"),
        );
    }
    value.parse_with(problems, |text| {
        if text.chars().count() > TAG_VALUE_CHARS_MAX {
            return Err(format!(
                "the value of a tag has {TAG_VALUE_CHARS_MAX} characters at most"
            ));
        }
        Ok(text.clone())
    })
}
