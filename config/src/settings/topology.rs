//! What only shows between rules: replicas that come back to where they started, rules that compete
//! for the same keys without agreeing on them, sources that meet under one key, and buckets with
//! two names.

mod cycles;
mod doors;
mod keys;
mod meetings;
mod namesakes;
mod quotas;
mod rivals;
mod work_queues;

use std::collections::BTreeMap;

use replicator_core::rule::{BucketRef, Rule};

use super::accounts::{Account, Service};
use super::rules::Draft;
use crate::diagnostics::Problems;

/// Checks rules against each other.
pub(super) fn check(
    drafts: &[Draft<'_>],
    accounts: &BTreeMap<String, Account>,
    problems: &mut Problems<'_>,
) {
    let hops: Vec<_> = drafts
        .iter()
        .map(|draft| Edge::new(draft, accounts))
        .collect();
    cycles::refuse(&hops, problems);
    let enabled: Vec<_> = hops.iter().filter(|hop| hop.rule().enabled).collect();
    for (index, hop) in enabled.iter().enumerate() {
        let (earlier, _) = enabled.split_at(index);
        doors::refuse(hop, earlier, problems);
        namesakes::refuse(hop, earlier, problems);
        meetings::refuse(hop, earlier, problems);
        rivals::refuse(hop, earlier, problems);
        quotas::refuse(hop, earlier, problems);
        work_queues::refuse(hop, earlier, problems);
    }
}

/// A rule as a step from bucket to bucket.
#[derive(Debug)]
struct Edge<'a> {
    draft: &'a Draft<'a>,
    source: BucketId<'a>,
    destination: BucketId<'a>,
}

/// A bucket, whichever account reaches it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct BucketId<'a> {
    namespace: String,
    bucket: &'a str,
}

impl<'a> Edge<'a> {
    fn new(draft: &'a Draft<'a>, accounts: &BTreeMap<String, Account>) -> Self {
        let site = |place: &'a BucketRef| BucketId {
            namespace: namespace(place, accounts),
            bucket: place.bucket.as_str(),
        };
        Self {
            draft,
            source: site(&draft.rule.source),
            destination: site(&draft.rule.destination),
        }
    }

    fn rule(&self) -> &'a Rule {
        &self.draft.rule
    }
}

/// Names the space in which a bucket's name is unique: an endpoint, or a partition of AWS.
/// https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
fn namespace(place: &BucketRef, accounts: &BTreeMap<String, Account>) -> String {
    let Some(account) = accounts.get(&place.account) else {
        return place.account.clone();
    };
    if let Some(endpoint) = account.endpoint_of(Service::S3) {
        return endpoint.to_lowercase();
    }
    let partition = ["cn-", "us-gov-"]
        .into_iter()
        .find(|partition| account.region.starts_with(partition));
    partition.unwrap_or("aws").to_owned()
}
