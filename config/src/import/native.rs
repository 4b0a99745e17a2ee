//! A replication configuration of S3 as `aws s3api get-bucket-replication` prints it: every element
//! that S3 has, and no other.
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ReplicationConfiguration.html>

use replicator_core::rule;
use serde::Deserialize;

/// A configuration, alone or below its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct NativeDocument {
    pub(super) replication_configuration: Option<Configuration>,
    pub(super) role: Option<String>,
    pub(super) rules: Option<Vec<NativeRule>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Configuration {
    pub(super) role: String,
    pub(super) rules: Vec<NativeRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct NativeRule {
    #[serde(rename = "ID")]
    pub(super) id: Option<String>,
    pub(super) priority: Option<i64>,
    /// Of the first version of the schema, which has no filter.
    pub(super) prefix: Option<String>,
    pub(super) filter: Option<NativeFilter>,
    pub(super) status: NativeStatus,
    pub(super) source_selection_criteria: Option<SourceSelectionCriteria>,
    pub(super) existing_object_replication: Option<Switch>,
    pub(super) destination: Destination,
    pub(super) delete_marker_replication: Option<Switch>,
}

/// Of its elements S3 takes one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct NativeFilter {
    pub(super) prefix: Option<String>,
    pub(super) tag: Option<Tag>,
    pub(super) and: Option<And>,
    pub(super) not: Option<Not>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct And {
    pub(super) prefix: Option<String>,
    #[serde(default)]
    pub(super) tags: Vec<Tag>,
    pub(super) not: Option<Not>,
}

/// Of its elements S3 takes one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Not {
    pub(super) prefix: Option<String>,
    pub(super) tag: Option<Tag>,
    pub(super) or: Option<Or>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Or {
    #[serde(default)]
    pub(super) prefixes: Vec<String>,
    #[serde(default)]
    pub(super) tags: Vec<Tag>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Tag {
    pub(super) key: String,
    pub(super) value: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct SourceSelectionCriteria {
    pub(super) sse_kms_encrypted_objects: Option<Switch>,
    pub(super) replica_modifications: Option<Switch>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Destination {
    pub(super) bucket: String,
    pub(super) account: Option<String>,
    pub(super) storage_class: Option<String>,
    pub(super) access_control_translation: Option<AccessControlTranslation>,
    pub(super) encryption_configuration: Option<EncryptionConfiguration>,
    pub(super) replication_time: Option<ReplicationTime>,
    pub(super) metrics: Option<NativeMetrics>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct AccessControlTranslation {
    #[serde(rename = "Owner")]
    pub(super) _owner: Owner,
}

#[derive(Debug, Deserialize)]
pub(super) enum Owner {
    Destination,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct EncryptionConfiguration {
    #[serde(rename = "ReplicaKmsKeyID")]
    pub(super) replica_kms_key_id: Option<String>,
    pub(super) use_source_multi_region_key: Option<Switch>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct ReplicationTime {
    status: NativeStatus,
    time: Option<Minutes>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct NativeMetrics {
    status: NativeStatus,
    event_threshold: Option<Minutes>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Minutes {
    minutes: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Switch {
    status: NativeStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum NativeStatus {
    Enabled,
    Disabled,
}

impl NativeStatus {
    pub(super) fn is_enabled(self) -> bool {
        self == Self::Enabled
    }
}

impl Switch {
    /// Says whether an element is there and enabled.
    pub(super) fn is_on(switch: Option<&Self>) -> bool {
        switch.is_some_and(|switch| switch.status.is_enabled())
    }
}

impl Destination {
    /// Returns the minutes after which S3 tells of what is not replicated yet, if it does.
    pub(super) fn minutes(&self) -> Option<u32> {
        let time = self.replication_time.as_ref();
        let time = time.filter(|time| time.status.is_enabled());
        let metrics = self.metrics.as_ref();
        let metrics = metrics.filter(|metrics| metrics.status.is_enabled());
        let minutes = match (time, metrics) {
            (Some(time), _) => time.time.as_ref(),
            (None, Some(metrics)) => metrics.event_threshold.as_ref(),
            (None, None) => return None,
        };
        let minutes = minutes.and_then(|minutes| minutes.minutes);
        Some(minutes.unwrap_or(MINUTES))
    }
}

// The only value that S3 takes:
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ReplicationTimeValue.html
const MINUTES: u32 = 15;

/// An element of a rule, as a path below it, and why it can't be translated.
pub(super) type Untranslatable = (&'static str, String);

impl NativeFilter {
    /// Says in our words what the filter selects.
    pub(super) fn selection(&self) -> Result<rule::Filter, Untranslatable> {
        let Self {
            prefix,
            tag,
            and,
            not,
        } = self;
        let are_there = [
            prefix.is_some(),
            tag.is_some(),
            and.is_some(),
            not.is_some(),
        ];
        if count(&are_there) > 1 {
            let why = "has several of Prefix, Tag, And and Not, and S3 takes one";
            return Err((".Filter", why.to_owned()));
        }
        let nothing = And::default();
        let and = and.as_ref().unwrap_or(&nothing);
        let prefix = prefix.as_ref().or(and.prefix.as_ref());
        let mut selection = rule::Filter {
            prefix: prefix.cloned().unwrap_or_default(),
            ..rule::Filter::default()
        };
        for Tag { key, value } in tag.iter().chain(&and.tags) {
            let other = selection.tags.insert(key.clone(), value.clone());
            if other.is_some_and(|other| other != *value) {
                let why = format!("asks for two values of the tag {key:?}, and an object has one");
                return Err((".Filter.And.Tags", why));
            }
        }
        match (not, &and.not) {
            (Some(not), _) => not.exclude_from(&mut selection, ".Filter.Not")?,
            (None, Some(not)) => not.exclude_from(&mut selection, ".Filter.And.Not")?,
            (None, None) => {}
        }
        Ok(selection)
    }
}

impl Not {
    fn exclude_from(
        &self,
        selection: &mut rule::Filter,
        at: &'static str,
    ) -> Result<(), Untranslatable> {
        let Self { prefix, tag, or } = self;
        if count(&[prefix.is_some(), tag.is_some(), or.is_some()]) != 1 {
            let why = "has none or several of Prefix, Tag and Or, and S3 takes one";
            return Err((at, why.to_owned()));
        }
        let nothing = Or::default();
        let or = or.as_ref().unwrap_or(&nothing);
        let prefixes = prefix.iter().chain(&or.prefixes).cloned();
        selection.exclude_prefixes = prefixes.collect();
        for Tag { key, value } in tag.iter().chain(&or.tags) {
            let values = selection.exclude_tags.entry(key.clone()).or_default();
            values.insert(value.clone());
        }
        Ok(())
    }
}

fn count(are_there: &[bool]) -> usize {
    are_there.iter().filter(|is_there| **is_there).count()
}
