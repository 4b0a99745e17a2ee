//! Replication rules: which object versions go where, and how. Priority works as in native
//! replication: every destination bucket gets the object, and between rules that name the same
//! destination bucket the highest number wins.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Deref;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strum::{EnumMessage, EnumString, IntoStaticStr, VariantArray, VariantNames};

use crate::object::{Bucket, Key, NameError, Timestamp};
use crate::plan::{SourceVersion, VersionKind};

/// One rule of the configuration, as used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The name users gave the rule; unique.
    pub id: String,
    /// Whether the rule takes part at all.
    pub enabled: bool,
    /// Decides between rules with the same destination bucket; higher wins.
    pub priority: i64,
    /// Where versions come from.
    pub source: BucketRef,
    /// Where replicas go.
    pub destination: BucketRef,
    /// The storage class of replicas; the source's own when absent.
    pub storage_class: Option<String>,
    /// What the filter's prefix becomes at the destination; unchanged when absent.
    pub rewrite: Option<String>,
    /// Which objects the rule is about.
    pub filter: Filter,
    /// Every version, or only the newest state.
    pub history: History,
    /// Versions created before this moment are out of scope; when absent, before the moment
    /// the rule was first loaded.
    pub since: Option<Timestamp>,
    /// The FIFO queue that its work goes through, by its URL; without one its only daemon works
    /// from the events queue.
    pub work_queue: Option<String>,
    /// The FIFO queue in which hints of a backfill wait until the work queue is empty; without one
    /// they go to that.
    pub backfill_queue: Option<String>,
    /// How often the lists of both buckets are compared for keys that miss something; never when
    /// absent.
    pub reconcile: Option<Duration>,
    /// What to do about objects at the destination that the replicator did not write.
    pub unmanaged_objects: UnmanagedObjects,
    /// Whether delete markers are in scope.
    pub delete_markers: bool,
    /// Whether permanent deletes of versions travel too.
    pub version_deletes: bool,
    /// How long after its message was sent a version delete is carried out at the earliest.
    pub version_delete_delay: Duration,
    /// How many replicas version deletes may remove in an hour.
    pub version_deletes_per_hour: NonZeroU32,
    /// Whether objects that are themselves replicas are replicated on.
    pub replicas: Replicas,
    /// How much it may cost to prove that a replica holds the source's bytes.
    pub verify: Verify,
    /// How replicas are encrypted.
    pub encryption: Encryption,
    /// Whether SSE-KMS encrypted sources are in scope.
    pub sse_kms_objects: bool,
    /// Keys of KMS that clients of the source wrap data keys with, and what these are wrapped with
    /// for readers of the destination: source key ARN to destination key ARN.
    pub client_side_keys: BTreeMap<String, String>,
    /// What the rule may use.
    pub limits: RateLimits,
    /// What all rules together may use of the destination.
    pub destination_limits: RateLimits,
}

/// A bucket and the account whose credentials reach it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BucketRef {
    /// A name from the `accounts` table of the configuration.
    pub account: String,
    /// The bucket.
    pub bucket: Bucket,
}

/// Which objects a rule is about; every part that is given must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The key starts with this.
    pub prefix: String,
    /// The key ends with this.
    pub suffix: String,
    /// The key matches none of these patterns, in which `*` stands for any characters.
    pub exclude: Vec<String>,
    /// The key starts with none of these, in which `*` is a character like any other.
    pub exclude_prefixes: Vec<String>,
    /// The object carries all of these tags.
    pub tags: BTreeMap<String, String>,
    /// The object carries none of these tags with one of these values.
    pub exclude_tags: BTreeMap<String, BTreeSet<String>>,
    /// The object has at least this many bytes.
    pub size_min: Option<u64>,
    /// The object has at most this many bytes.
    pub size_max: Option<u64>,
}

/// How much of a key's past the destination gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum History {
    /// Every version and marker, in the source's order.
    #[default]
    Exact,
    /// Only the newest state.
    Latest,
}

/// What to do about objects at the destination that the replicator did not write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum UnmanagedObjects {
    /// Write over them: they stay as older versions.
    #[default]
    Overwrite,
    /// Leave the key alone and record why.
    Keep,
    /// Take them for replicas where their bytes are proved equal; write over the others.
    Adopt,
}

/// Whether objects that are themselves replicas are replicated on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Replicas {
    /// They are not, as in native replication.
    #[default]
    Skip,
    /// They are: a chain.
    Replicate,
}

/// How much it may cost to prove that a replica holds the source's bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Verify {
    /// What costs no second read and little processor time; over plain HTTP, whatever it costs.
    #[default]
    Auto,
    /// Whatever it costs.
    Always,
}

/// How replicas are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// The source's own kind of encryption; KMS keys are translated by the map.
    Same {
        /// Source key ARN to destination key ARN.
        key_map: BTreeMap<String, String>,
    },
    /// Whatever the destination bucket does by default.
    BucketDefault,
    /// SSE-S3.
    S3,
    /// SSE-KMS.
    Kms {
        /// The destination's key.
        key: ReplicaKey,
        /// Exceptions to `key`: source key ARN to destination key ARN.
        key_map: BTreeMap<String, String>,
        /// Whether S3 Bucket Keys save calls to KMS.
        bucket_key: bool,
    },
    /// DSSE-KMS.
    Dsse {
        /// The destination key's ARN.
        key: String,
    },
}

/// Which key of the destination encrypts replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaKey {
    /// The one of this ARN, which may be an alias's.
    Named(String),
    /// The replica of the source object's multi-Region key in the destination's Region, as native
    /// replication's `UseSourceMultiRegionKey`.
    Related,
}

/// What a rule, or all for one destination, may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes of object bodies per second.
    pub bandwidth_bytes_per_second: Option<NonZeroU64>,
    /// Writing requests to the destination per second.
    pub requests_per_second: Option<NonZeroU32>,
}

/// Why a rule does not take an event, or a version.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    EnumMessage,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Mismatch {
    /// The key does not start with the filter's prefix.
    Prefix,
    /// The key does not end with the filter's suffix.
    Suffix,
    /// The key matches a pattern, or starts with a prefix, that the filter excludes.
    Exclude,
    /// The rule is disabled.
    Disabled,
    /// The size is outside the filter's bounds.
    Size,
    /// The tags are not those of the filter.
    Tags,
    /// The object carries a tag that the filter excludes.
    ExcludeTags,
    /// The version was created before the rule began.
    Since,
    /// The rule replicates no delete markers.
    DeleteMarker,
    /// The rule replicates no permanent deletes.
    VersionDelete,
    /// The version is a replica itself, and the rule skips those.
    Replica,
    /// The version is encrypted with KMS, without the rule's opt-in.
    SseKms,
    /// Changes of the access control list are not replicated.
    Acl,
    /// Changes of the Object Lock after the write are not replicated.
    Lock,
}

impl Mismatch {
    /// Every cause there is.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// Returns the name that metrics and logs use.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Says the cause in a sentence.
    pub fn sentence(self) -> &'static str {
        self.get_documentation().unwrap_or_default()
    }

    /// Refuses for this cause, unless what it asks for holds.
    fn unless(self, holds: bool) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(self) }
    }
}

impl Filter {
    /// Says whether a key can match, before anything else about the object is known.
    pub fn admits_key(&self, key: &Key) -> Result<(), Mismatch> {
        let key = key.as_str();
        let is_excluded = |pattern: &String| matches_pattern(pattern, key);
        let starts_excluded = |prefix: &String| key.starts_with(prefix);
        Mismatch::Prefix.unless(key.starts_with(&self.prefix))?;
        Mismatch::Suffix.unless(key.ends_with(&self.suffix))?;
        Mismatch::Exclude.unless(!self.exclude.iter().any(is_excluded))?;
        Mismatch::Exclude.unless(!self.exclude_prefixes.iter().any(starts_excluded))
    }

    /// Says whether a size is within the bounds.
    pub fn admits_size(&self, size_bytes: u64) -> Result<(), Mismatch> {
        let is_within = self.size_min.is_none_or(|min| size_bytes >= min)
            && self.size_max.is_none_or(|max| size_bytes <= max);
        Mismatch::Size.unless(is_within)
    }

    /// Says whether the tags of an object have to be read.
    pub fn needs_tags(&self) -> bool {
        !self.tags.is_empty() || !self.exclude_tags.is_empty()
    }

    /// Says whether all required tags are there, and none of the excluded ones.
    pub fn admits_tags(&self, tags: &BTreeMap<String, String>) -> Result<(), Mismatch> {
        let is_there = |(name, value)| tags.get(name) == Some(value);
        let is_among = |(name, values): (&String, &BTreeSet<String>)| {
            tags.get(name).is_some_and(|value| values.contains(value))
        };
        Mismatch::Tags.unless(self.tags.iter().all(is_there))?;
        Mismatch::ExcludeTags.unless(!self.exclude_tags.iter().any(is_among))
    }
}

impl Rule {
    /// Returns the key a replica has at the destination; a rewritten key can be one that S3
    /// cannot hold.
    pub fn destination_key(&self, key: &Key) -> Result<Key, NameError> {
        Key::try_from(self.rewrite_start(key.as_str()))
    }

    /// Rewrites a key, or what keys begin with, whether or not S3 can hold the result.
    pub fn rewrite_start(&self, start: &str) -> String {
        let Some(rewrite) = &self.rewrite else {
            return start.to_owned();
        };
        let rest = start.strip_prefix(self.filter.prefix.as_str());
        format!("{rewrite}{}", rest.unwrap_or(start))
    }

    /// Returns the key of the source whose replica has a key; none if no replica can have it.
    pub fn original_key(&self, target: &Key) -> Option<Key> {
        let prefix = self.filter.prefix.as_str();
        let rewritten = self.rewrite.as_deref().unwrap_or(prefix);
        let rest = target.as_str().strip_prefix(rewritten)?;
        Key::try_from(format!("{prefix}{rest}")).ok()
    }

    /// Says whether a key of the source bucket can be in scope. A disabled rule without a work
    /// queue refuses what it would take if it were enabled.
    pub fn admits_key(&self, key: &Key) -> Result<(), Mismatch> {
        self.filter.admits_key(key)?;
        Mismatch::Disabled.unless(self.enabled || self.is_waiting())
    }

    /// Says whether the rule is disabled and has a work queue, in which its events wait until it is
    /// enabled.
    pub fn is_waiting(&self) -> bool {
        !self.enabled && self.work_queue.is_some()
    }

    /// Says whether a delete marker of a matching key is in scope. A marker has no tags and no
    /// size, so only the key filter speaks.
    pub fn admits_marker(&self) -> bool {
        self.delete_markers
    }
}

/// The rules that compete for one destination bucket, highest priority first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationMatch<'a> {
    /// Where the replicas would go.
    pub destination: &'a BucketRef,
    /// Rules whose key filter matches, highest priority first; disabled ones only where no enabled
    /// one matches.
    pub candidates: Vec<&'a Rule>,
}

/// Finds every destination an object's key may go to, each with its competing rules.
pub fn match_rules<'a>(rules: &'a [Rule], source: &Bucket, key: &Key) -> Vec<DestinationMatch<'a>> {
    let mut matching: Vec<&Rule> = rules
        .iter()
        .filter(|rule| rule.source.bucket == *source && rule.admits_key(key).is_ok())
        .collect();
    matching.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.id.cmp(&b.id)));
    let destinations: BTreeSet<&BucketRef> =
        matching.iter().map(|rule| &rule.destination).collect();
    let candidates = |destination: &BucketRef| {
        let of_destination = matching.iter().copied();
        let mut candidates: Vec<&Rule> = of_destination
            .filter(|rule| rule.destination == *destination)
            .collect();
        if candidates.iter().any(|rule| rule.enabled) {
            candidates.retain(|rule| rule.enabled);
        }
        candidates
    };
    destinations
        .into_iter()
        .map(|destination| DestinationMatch {
            destination,
            candidates: candidates(destination),
        })
        .collect()
}

/// What competing rules make of an object version, as far as is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takers<R> {
    /// The rules that may take it, the first one first; only one where all is known of it.
    pub rules: Vec<R>,
    /// What each rule lacks that cannot take it, of those before the last of them.
    pub refusals: Vec<(R, Mismatch)>,
    /// Whether its tags, which are not known, decide about the first.
    pub need_tags: bool,
    /// Whether one of the rules takes it whatever its tags are.
    pub is_sure: bool,
}

impl<R: Deref<Target = Rule>> Takers<R> {
    /// Finds which of the candidates of a contest takes an object version: the first whose filter
    /// matches all of it. Without its tags, those that ask for some may.
    pub fn find(
        candidates: impl IntoIterator<Item = R>,
        size_bytes: u64,
        tags: Option<&BTreeMap<String, String>>,
    ) -> Self {
        let mut found = Self {
            rules: Vec::new(),
            refusals: Vec::new(),
            need_tags: false,
            is_sure: false,
        };
        for rule in candidates {
            let filter = &rule.filter;
            let admits_tags = tags.map_or(Ok(()), |tags| filter.admits_tags(tags));
            if let Err(cause) = filter.admits_size(size_bytes).and(admits_tags) {
                found.refusals.push((rule, cause));
                continue;
            }
            found.is_sure = tags.is_some() || !filter.needs_tags();
            found.need_tags |= found.rules.is_empty() && !found.is_sure;
            found.rules.push(rule);
            if found.is_sure {
                break;
            }
        }
        found
    }
}

/// Returns the ARN of a multi-Region key in a Region: primary and replicas have one id, in one
/// account. `None` for any other key.
/// <https://docs.aws.amazon.com/kms/latest/developerguide/multi-region-keys-overview.html>
pub fn related_key(arn: &str, region: &str) -> Option<String> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let [scheme, partition, service, _, account, resource] = parts.as_slice() else {
        return None;
    };
    let is_related = resource.starts_with("key/mrk-");
    is_related.then(|| format!("{scheme}:{partition}:{service}:{region}:{account}:{resource}"))
}

/// Matches a pattern in which `*` stands for any run of characters, `/` included.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(first) = pieces.next() else {
        return text.is_empty();
    };
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else {
        return rest.is_empty();
    };
    for piece in pieces {
        let Some(at) = rest.find(piece) else {
            return false;
        };
        rest = rest.get(at + piece.len()..).unwrap_or_default();
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

/// Whether an entry of the source has to have a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionScope {
    /// It has to.
    Wanted,
    /// It may have one: the rule does not take it.
    Outside,
    /// It may have one, and may be what is current: it is younger than the moment that is compared.
    Pending,
}

/// Which entries of the source a rule has to have replicas of, as far as the list tells.
#[derive(Debug, Clone)]
pub struct RuleScope {
    /// The rule.
    pub rule: String,
    /// It and the rules that may compete with it.
    pub rules: Vec<Rule>,
    /// Since when versions are in scope of them; what the rule itself says stands for what is not
    /// here.
    pub starts: BTreeMap<String, Timestamp>,
    /// Until when versions are compared.
    pub as_of: Timestamp,
}

impl RuleScope {
    /// Says what a rule is compared for, among all rules, until a moment; `start_of` says since when
    /// versions are in scope of each, as far as that is known.
    pub fn new<'a, E>(
        (rule, all): (&Rule, impl IntoIterator<Item = &'a Rule>),
        as_of: Timestamp,
        start_of: impl Fn(&Rule) -> Result<Option<Timestamp>, E>,
    ) -> Result<Self, E> {
        let (mut rules, mut starts) = (Vec::new(), BTreeMap::new());
        for other in all {
            if other.source.bucket != rule.source.bucket || other.destination != rule.destination {
                continue;
            }
            // Lists state times to the second.
            let start = start_of(other)?.map(Timestamp::truncate_to_second);
            starts.extend(start.map(|start| (other.id.clone(), start)));
            // What a disabled rule would take is compared as if it were enabled.
            let enabled = other.enabled || other.id == rule.id;
            rules.push(Rule {
                enabled,
                ..other.clone()
            });
        }
        Ok(Self {
            rule: rule.id.clone(),
            rules,
            starts,
            as_of,
        })
    }

    /// Returns the same, had the rules no start.
    #[must_use]
    pub fn without_starts(&self) -> Self {
        let rules = self.starts.keys().cloned();
        Self {
            starts: rules.map(|rule| (rule, Timestamp::UNIX_EPOCH)).collect(),
            ..self.clone()
        }
    }

    /// Lists the rules that compete with this one for a key, the first one first.
    pub fn candidates(&self, key: &Key) -> Vec<&Rule> {
        let mut rules = self.rules.iter();
        let Some(this) = rules.find(|rule| rule.id == self.rule) else {
            return Vec::new();
        };
        let contests = match_rules(&self.rules, &this.source.bucket, key);
        let mut ours = contests.into_iter();
        ours.find(|contest| *contest.destination == this.destination)
            .map_or(Vec::new(), |contest| contest.candidates)
    }

    /// Says since when versions of a key with these candidates are in scope.
    pub fn start_of(&self, candidates: &[&Rule]) -> Option<Timestamp> {
        let lead = candidates.first()?;
        let start = self.starts.get(&lead.id).or(self.starts.get(&self.rule));
        start.copied()
    }

    /// Says whether an entry of a key with these candidates has to have a replica by this rule. The
    /// first rule of a key decides on its markers and its start. What a preferred rule takes by
    /// tags is not known from the list.
    pub fn of_entry(&self, entry: &SourceVersion, candidates: &[&Rule]) -> VersionScope {
        let is_this = |rule: &&Rule| rule.id == self.rule;
        let Some(lead) = candidates.first() else {
            return VersionScope::Outside;
        };
        let is_taken = match entry.kind {
            VersionKind::Marker => is_this(lead) && lead.admits_marker(),
            VersionKind::Object => {
                let candidates = candidates.iter().copied();
                let takers = Takers::find(candidates, entry.size_bytes, None);
                takers.rules.iter().any(is_this)
            }
        };
        let start = self.start_of(candidates);
        let made = entry.version.last_modified;
        match () {
            () if !is_taken || start.is_some_and(|start| made < start) => VersionScope::Outside,
            () if made > self.as_of => VersionScope::Pending,
            () => VersionScope::Wanted,
        }
    }
}

#[cfg(test)]
mod tests;
