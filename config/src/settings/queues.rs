//! Queues: where events come from.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use replicator_core::rule::Rule;

use super::accounts::{self, Account, Service};
use crate::diagnostics::Problems;
use crate::schema::Field;
use crate::{schema, values};

/// A queue of event notifications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// The URL that SQS gives.
    pub url: String,
    /// The name of the account whose credentials reach it.
    pub account: String,
    /// How long a message stays hidden before its lease has to be renewed.
    pub visibility_timeout: Duration,
    /// The queue that gets what can't be routed or done.
    pub dead_letter_url: String,
    /// The FIFO queue that the work of the rules goes through which name none of their own.
    pub work_queue: Option<String>,
    /// The FIFO queue in which their hints wait.
    pub backfill_queue: Option<String>,
}

impl Queue {
    /// Returns the name of the queue, the last segment of its URL.
    pub fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or(&self.url)
    }

    /// Says whether it has message groups, which SQS makes part of the name.
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-queue-message-identifiers.html>
    pub fn is_fifo(&self) -> bool {
        self.url.ends_with(".fifo")
    }
}

/// Checks every queue, alone and against the others.
pub(super) fn resolve(
    written: &Field<Vec<Field<schema::Queue>>>,
    accounts: &BTreeMap<String, Account>,
    problems: &mut Problems<'_>,
) -> Vec<Queue> {
    let written = written.elements();
    let queues = written
        .iter()
        .filter_map(|written| queue(written, accounts, problems))
        .collect();
    refuse_shared_urls(&written, problems);
    queues
}

/// Takes their work queues from disabled rules where the enabled ones have none: one daemon does
/// all the work then.
pub(super) fn drop_idle(rules: &mut [Rule]) {
    let mut enabled = rules.iter().filter(|rule| rule.enabled).peekable();
    if enabled.peek().is_some() && enabled.all(|rule| rule.work_queue.is_none()) {
        for rule in rules {
            (rule.work_queue, rule.backfill_queue) = (None, None);
        }
    }
}

/// Returns the work queues of the rules, each once; those of disabled ones too, in which their
/// events wait.
pub(super) fn work_queues(queues: &[Queue], rules: &[Rule]) -> Vec<Queue> {
    let urls: BTreeSet<&String> = rules
        .iter()
        .filter_map(|rule| rule.work_queue.as_ref())
        .collect();
    let work_queue = |url: &String| {
        Some(Queue {
            url: url.clone(),
            work_queue: None,
            backfill_queue: None,
            ..naming(queues, url)?.clone()
        })
    };
    urls.into_iter().filter_map(work_queue).collect()
}

/// Returns the backfill queues of the rules, each once, with the work queue that it is for.
pub(super) fn backfill_queues(queues: &[Queue], rules: &[Rule]) -> Vec<Queue> {
    let urls = rules
        .iter()
        .filter_map(|rule| rule.backfill_queue.as_ref().zip(rule.work_queue.as_ref()));
    let urls: BTreeMap<&String, &String> = urls.collect();
    let backfill_queue = |(url, work_queue): (&String, &String)| {
        Some(Queue {
            url: url.clone(),
            work_queue: Some(work_queue.clone()),
            backfill_queue: None,
            ..naming(queues, work_queue)?.clone()
        })
    };
    urls.into_iter().filter_map(backfill_queue).collect()
}

/// Returns the queue whose account reaches a work queue: one that names it, or else the first.
pub(super) fn naming<'a>(queues: &'a [Queue], work_queue: &String) -> Option<&'a Queue> {
    queues
        .iter()
        .find(|queue| queue.work_queue.as_ref() == Some(work_queue))
        .or(queues.first())
}

const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(120);

// A lease is renewed by requests that take a moment themselves.
const VISIBILITY_TIMEOUT_MIN: Duration = Duration::from_secs(5);

// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
const VISIBILITY_TIMEOUT_MAX: Duration = Duration::from_secs(12 * 60 * 60);

fn queue(
    written: &schema::Queue,
    accounts: &BTreeMap<String, Account>,
    problems: &mut Problems<'_>,
) -> Option<Queue> {
    let remedy = "give the URL of the queue";
    let url = written
        .url
        .require_with(remedy, problems, values::queue_url);
    let account = accounts::resolve_account_name(&written.account, accounts, problems);
    let visibility_timeout = written
        .visibility_timeout
        .parse_with(problems, visibility_timeout);
    let remedy = "give the URL of a queue that keeps what can't be routed or done";
    let dead_letter_url = &written.dead_letter_url;
    let dead_letter_url = dead_letter_url.require_with(remedy, problems, values::queue_url);
    let work_queue = written
        .work_queue
        .parse_with(problems, values::work_queue_url);
    let backfill_queue = &written.backfill_queue;
    if written.work_queue.is_absent() {
        backfill_queue.refuse_present(problems, BESIDE_NONE);
    }
    let backfill_queue = backfill_queue.parse_with(problems, values::work_queue_url);
    if backfill_queue.is_some() && backfill_queue == work_queue {
        let message = "is the work queue itself; name a queue of its own, or leave it out";
        problems.add_problem(&written.backfill_queue.spot, message);
    }
    let reached = account.as_ref().and_then(|name| accounts.get(name));
    let fifo = [&written.work_queue, &written.backfill_queue];
    for field in [&written.url, &written.dead_letter_url]
        .into_iter()
        .chain(fifo)
    {
        refuse_elsewhere(field, reached, problems);
    }
    Some(Queue {
        url: url?,
        account: account?,
        visibility_timeout: visibility_timeout.unwrap_or(VISIBILITY_TIMEOUT),
        dead_letter_url: dead_letter_url?,
        backfill_queue: backfill_queue.filter(|_| work_queue.is_some()),
        work_queue,
    })
}

/// What is wrong with a backfill queue that is for no work queue.
pub(super) const BESIDE_NONE: &str =
    "there is no work_queue that hints could wait for here; name one, or leave it out";

/// Requests are signed for the account's Region and sent there, by one client for all its queues.
pub(super) fn refuse_elsewhere(
    url: &Field<String>,
    account: Option<&Account>,
    problems: &mut Problems<'_>,
) {
    let Some(account) = account.filter(|account| account.endpoint_of(Service::Sqs).is_none())
    else {
        return;
    };
    let (name, own) = (&account.name, &account.region);
    let named = url
        .present_value()
        .and_then(|url| values::queue_region(url));
    if let Some(region) = named.filter(|region| region != own && !own.is_empty()) {
        let message = format!(
            "is in {region}, and account {name:?} in {own}; name an account of that Region"
        );
        problems.add_problem(&url.spot, message);
    }
}

fn visibility_timeout(text: &str) -> Result<Duration, String> {
    let timeout = values::parse_time_span(text)?;
    if (VISIBILITY_TIMEOUT_MIN..=VISIBILITY_TIMEOUT_MAX).contains(&timeout) {
        return Ok(timeout);
    }
    Err(format!(
        "{text:?} is outside 5s to 12h, which is what SQS and the renewal of leases allow"
    ))
}

/// A queue is read once, and what is parked must not come back as news.
fn refuse_shared_urls(queues: &[&schema::Queue], problems: &mut Problems<'_>) {
    let url = |field: &Field<String>| {
        let url = field.present_value()?;
        Some(url.trim_end_matches('/').to_owned())
    };
    for (index, queue) in queues.iter().enumerate() {
        let (own, parked) = (url(&queue.url), url(&queue.dead_letter_url));
        if own.is_some()
            && queues
                .iter()
                .take(index)
                .any(|other| url(&other.url) == own)
        {
            let message = "another queue has the same url; remove one of them";
            problems.add_problem(&queue.url.spot, message);
        }
        if parked.is_some() && queues.iter().any(|other| url(&other.url) == parked) {
            let message = "is a queue that events come from; name a queue of its own";
            problems.add_problem(&queue.dead_letter_url.spot, message);
        }
    }
}
