//! Whether a set-up can work: what the file says is compared with what the services answer, for each
//! rule in the order data flows. Everything is asked without changing anything, for a bounded time,
//! and a few questions at a time. A running daemon looks in the background.

mod access;
mod buckets;
mod delivery;
mod event_bridge;
mod file;
mod finding;
mod notification;
mod objects;
mod probe;
mod queues;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::{BoxFuture, OptionFuture};
use futures::{FutureExt as _, StreamExt as _, stream};
use replicator_config::{Account, Settings};
use replicator_core::rule::{BucketRef, Rule};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::kms::configured_keys;
use crate::metrics::Metrics;
use crate::s3::accounts::{AccountClients, Accounts, AwsOverride};
use access::{Asked, DocumentSet, Signing, Signings};
use buckets::End;
use delivery::{Notifications, Topics};
use event_bridge::{BusRules, EventBus};
pub use finding::{CheckName, CheckReport, Finding, Fix, PolicyDocument, Section, Severity};
use notification::Way;
use queues::Purpose;

/// Looks at the file alone.
pub fn check_file(settings: &Settings, config: &Path) -> CheckReport {
    // What was read before is gone only where the file was taken away meanwhile.
    let text = replicator_config::read_text(config).unwrap_or_default();
    CheckReport {
        sections: vec![file::look(settings, &text, clock::now())],
    }
}

/// Looks at the file, and asks the services; with `is_probing`, writes and removes probe objects
/// too, until it is stopped.
pub async fn check_services(
    settings: &Settings,
    config: &Path,
    is_probing: bool,
    given: Option<&AwsOverride>,
    stopped: impl Future<Output = ()>,
) -> anyhow::Result<CheckReport> {
    let metrics = Metrics::new().context("cannot register metrics")?;
    let accounts = Accounts::connect(&settings.accounts, &metrics, given).await;
    let accounts = accounts.context("cannot set up TLS")?;
    let mut report = check_file(settings, config);
    let stop = CancellationToken::new();
    let asker = Asker {
        settings,
        accounts: &accounts,
        tries_queues: true,
        probing: is_probing.then(|| stop.clone()),
    };
    let mut asking = pin!(asker.ask());
    let sections = tokio::select! {
        sections = &mut asking => sections,
        () = stopped => {
            // What only asks has nothing to tidy up.
            if !is_probing {
                bail!("interrupted");
            }
            stop.cancel();
            asking.await
        }
    };
    let sections = file::place_keys(sections, settings, config);
    report.sections.extend(sections);
    Ok(report)
}

/// What the last look of a running daemon found.
#[derive(Debug, Default)]
pub(crate) struct SetUp {
    findings: Mutex<Vec<Finding>>,
}

// What is mended outside is seen after this, without a reload.
const LOOKED_AGAIN: Duration = Duration::from_secs(600);

impl SetUp {
    /// Returns what was found.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.found().clone()
    }

    fn found(&self) -> MutexGuard<'_, Vec<Finding>> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks now, after each reload, and now and then while something is found. It holds nothing
    /// up, and what it finds is said and no more.
    pub(crate) async fn watch(
        self: Arc<Self>,
        accounts: Accounts,
        mut reloads: watch::Receiver<Settings>,
        config: PathBuf,
    ) {
        loop {
            let settings = reloads.borrow_and_update().clone();
            let mut report = check_file(&settings, &config);
            let asker = Asker {
                settings: &settings,
                accounts: &accounts,
                tries_queues: false,
                probing: None,
            };
            let sections = Box::pin(asker.ask()).await;
            let sections = file::place_keys(sections, &settings, &config);
            report.sections.extend(sections);
            self.replace(report.findings().cloned().collect());
            let is_fine = self.findings().is_empty();
            let is_closed = match is_fine {
                true => reloads.changed().await.is_err(),
                false => {
                    let again = tokio::time::timeout(LOOKED_AGAIN, reloads.changed()).await;
                    again.is_ok_and(|changed| changed.is_err())
                }
            };
            if is_closed {
                return;
            }
        }
    }

    /// Takes over what was found, and logs what was not known before.
    fn replace(&self, findings: Vec<Finding>) {
        let before = std::mem::replace(&mut *self.found(), findings.clone());
        let new = findings.iter().filter(|found| !before.contains(found));
        new.for_each(Finding::log);
    }
}

// Beside the work of a daemon a few requests more do not show.
const QUESTIONS_MAX: usize = 4;

/// Asks the services of a configuration.
struct Asker<'a> {
    settings: &'a Settings,
    accounts: &'a Accounts,
    /// Whether requests are sent to queues that these have to refuse, to see whether they are
    /// denied before. The daemon's own requests show that anyway.
    tries_queues: bool,
    /// Ends the writing of probe objects, if any are written.
    probing: Option<CancellationToken>,
}

type Queues<'a> = Vec<(
    queues::QueuePlace<'a>,
    Option<Asked<queues::QueueAttributes>>,
)>;
type Buckets<'a> = BTreeMap<&'a BucketRef, buckets::BucketState>;

/// What is known of all that several rules may share.
struct Known<'a> {
    signing: Signings<'a>,
    /// The ARNs of the queues that events come from.
    events: Vec<String>,
    buckets: Buckets<'a>,
    topics: Topics,
    /// The rules of the event buses that sources may send to.
    buses: BTreeMap<&'a BucketRef, BusRules>,
    /// The enabled rules of each source.
    rules: BTreeMap<&'a BucketRef, Vec<&'a Rule>>,
}

impl<'a> Asker<'a> {
    async fn ask(&self) -> Vec<Section> {
        let (mut sections, signing) = self.ask_accounts().await;
        let queues = self.ask_queues(&signing).await;
        let buckets = self.ask_buckets(&signing).await;
        let is_of_events = |place: &&queues::QueuePlace<'_>| place.purpose == Purpose::Events;
        let places = queues.iter().map(|(place, _)| place).filter(is_of_events);
        let events: Vec<String> = places.map(queues::QueuePlace::arn).collect();
        let topics = self.ask_topics(&buckets, &events).await;
        let mut rules = BTreeMap::<_, Vec<_>>::new();
        // The events of a disabled rule with a work queue wait there, so they have to come.
        let fed = self.settings.rules.iter();
        for rule in fed.filter(|rule| rule.enabled || rule.is_waiting()) {
            rules.entry(&rule.source).or_default().push(rule);
        }
        let mut known = Known {
            events,
            signing,
            buckets,
            topics,
            buses: BTreeMap::new(),
            rules,
        };
        known.buses = self.ask_buses(&known).await;
        let mut judging = Vec::new();
        for (place, asked) in &queues {
            judging.push(self.judge_queue(&known, *place, asked.as_ref()).boxed());
        }
        for rule in self.enabled() {
            judging.push(self.judge_rule(&known, rule).boxed());
        }
        sections.extend(few_at_a_time(judging).await);
        // By now every service has answered.
        for (section, account) in sections.iter_mut().zip(self.settings.accounts.values()) {
            let clients = self.accounts.get(&account.name);
            let ahead = clients.map(|clients| clients.wire.bounds.ahead_seconds());
            section.add(ahead.and_then(|ahead| access::skewed_clock(account, ahead)));
        }
        sections
    }

    fn enabled(&self) -> impl Iterator<Item = &'a Rule> {
        self.settings.rules.iter().filter(|rule| rule.enabled)
    }

    fn reach(&self, name: &str) -> Option<(&'a Account, &'a AccountClients)> {
        Some((self.settings.accounts.get(name)?, self.accounts.get(name)?))
    }

    async fn ask_accounts(&self) -> (Vec<Section>, Signings<'a>) {
        let mut asking = Vec::new();
        for (name, account) in &self.settings.accounts {
            let clients = self.accounts.get(name);
            asking.extend(clients.map(|clients| access::identify(account, clients).boxed()));
        }
        let identities = few_at_a_time(asking).await;
        let accounts = &self.settings.accounts;
        let documents = DocumentSet::new(self.settings, accounts.keys().zip(&identities));
        let judged = accounts.values().zip(&identities);
        let judged =
            judged.map(|(account, found)| access::judge_identity(account, found, &documents));
        let (sections, signing): (Vec<Section>, Vec<Signing>) = judged.unzip();
        let names = accounts.keys().map(String::as_str);
        let by_account = names.zip(signing).collect();
        let signings = Signings {
            by_account,
            documents,
        };
        (sections, signings)
    }

    async fn ask_queues(&self, signing: &Signings<'a>) -> Queues<'a> {
        let question = |place: &queues::QueuePlace<'a>| {
            let clients = self.accounts.get(&place.account.name);
            let clients = clients.filter(|_| signing.can_sign(&place.account.name));
            Some(queues::read_attributes(*place, clients?).boxed())
        };
        ask_each(file::queue_places(self.settings), question).await
    }

    async fn ask_buckets(&self, signing: &Signings<'a>) -> Buckets<'a> {
        let sources: BTreeSet<_> = self.enabled().map(|rule| &rule.source).collect();
        let mut all: BTreeSet<_> = self.enabled().map(|rule| &rule.destination).collect();
        all.extend(&sources);
        all.retain(|bucket| signing.can_sign(&bucket.account));
        let question = |bucket: &&'a BucketRef| {
            let place = self.place(signing, bucket)?;
            Some(buckets::read_attributes(place, sources.contains(bucket)).boxed())
        };
        answered(ask_each(all, question).await)
    }

    async fn ask_topics(&self, buckets: &Buckets<'a>, ours: &[String]) -> Topics {
        let of_bucket = buckets.iter().flat_map(|(bucket, attributes)| {
            let notifications = attributes.notifications.as_ref().ok();
            let topics = notifications.into_iter().flat_map(Notifications::topics);
            topics.map(move |topic| (topic.to_owned(), *bucket))
        });
        let of_bucket: BTreeMap<String, &BucketRef> = of_bucket.collect();
        let question = |topic: &String| {
            let reached = self.reach(&of_bucket.get(topic)?.account)?;
            Some(delivery::read_topic(topic.clone(), ours, reached).boxed())
        };
        answered(ask_each(of_bucket.keys().cloned(), question).await)
    }

    /// Asks for the rules of the event buses by which events may come.
    async fn ask_buses(&self, known: &Known<'a>) -> BTreeMap<&'a BucketRef, BusRules> {
        let enabled = self.enabled();
        let ways = enabled.filter_map(|rule| Some((rule, self.way(known, rule)?)));
        let needing = ways.filter(|(_, way)| way.may_need_bus());
        let sources: BTreeSet<_> = needing.map(|(rule, _)| &rule.source).collect();
        let question = |source: &&'a BucketRef| {
            let bus = self.bus(source)?;
            Some(bus.read_rules(&known.events).boxed())
        };
        answered(ask_each(sources, question).await)
    }

    fn bus(&self, source: &BucketRef) -> Option<EventBus<'a>> {
        let (account, clients) = self.reach(&source.account)?;
        Some(EventBus { account, clients })
    }

    fn place<'k>(
        &self,
        signing: &'k Signings<'a>,
        bucket: &'a BucketRef,
    ) -> Option<buckets::BucketPlace<'k>>
    where
        'a: 'k,
    {
        let (account, clients) = self.reach(&bucket.account)?;
        Some(buckets::BucketPlace {
            bucket: bucket.bucket.as_str(),
            name: bucket,
            account,
            clients,
            principal: signing.principal(&bucket.account),
            documents: &signing.documents,
        })
    }

    async fn judge_queue(
        &self,
        known: &Known<'a>,
        place: queues::QueuePlace<'a>,
        asked: Option<&Asked<queues::QueueAttributes>>,
    ) -> Section {
        let mut section = Section::new(place.title());
        let clients = self.accounts.get(&place.account.name);
        let (Some(asked), Some(clients)) = (asked, clients) else {
            section.skip(format!("account {} cannot sign", place.account.name));
            return section;
        };
        let documents = &known.signing.documents;
        let ways = self.enabled().filter_map(|rule| self.way(known, rule));
        let senders = delivery::senders_of(ways, place);
        queues::judge(place, (asked, documents), &senders, &mut section);
        // A bucket that does not say where its events go may send them here.
        let mut buckets = known.buckets.values();
        if buckets.all(|bucket| bucket.notifications.is_ok()) {
            section.add(delivery::unused(place, &senders));
        }
        if self.tries_queues && asked.is_ok() {
            Box::pin(queues::try_access(place, clients, documents, &mut section)).await;
        }
        section
    }

    /// Returns the way of a rule's events, as far as its bucket says it.
    fn way<'k>(&self, known: &'k Known<'a>, rule: &'a Rule) -> Option<Way<'k>> {
        let (account, _) = self.reach(&rule.source.account)?;
        let attributes = known.buckets.get(&rule.source)?;
        let principal = known.signing.principal(&account.name);
        let reader = principal.map_or("the principal that signs", |one| one.arn.as_str());
        let owner = attributes.owner(account, principal);
        Some(Way {
            rule,
            rules: known.rules.get(&rule.source)?,
            account,
            owner,
            reader,
            notifications: attributes.notifications.as_ref().ok()?,
            topics: &known.topics,
            bus: known.buses.get(&rule.source),
            queues: &known.events,
        })
    }

    async fn judge_rule(&self, known: &Known<'a>, rule: &'a Rule) -> Section {
        let (source, destination) = (&rule.source, &rule.destination);
        let title = format!(
            "rule {}: s3://{} to s3://{}",
            rule.id, source.bucket, destination.bucket
        );
        let mut section = Section::new(title);
        let from = self.judge_bucket(known, (rule, End::Source), &mut section);
        if let Some((place, attributes)) = from {
            match &attributes.notifications {
                Ok(_) => section.add(self.judge_way(known, rule).await.into_iter().flatten()),
                Err(refusal) => section.add([buckets::unread(
                    (place, attributes),
                    refusal,
                    CheckName::NotificationAttributes,
                )]),
            }
            Box::pin(objects::try_source((place, attributes), rule, &mut section)).await;
        }
        let to = self.judge_bucket(known, (rule, End::Destination), &mut section);
        if let (Some(from), Some(to)) = (from, to) {
            section.add(buckets::compare_locks(from, to));
        }
        for key in configured_keys(rule) {
            if let Some(reached) = self.reach(&key.account) {
                let documents = &known.signing.documents;
                Box::pin(objects::judge_key(&key, reached, documents, &mut section)).await;
            }
        }
        if let Some(to) = to {
            Box::pin(objects::try_destination(to, rule, &mut section)).await;
            match &self.probing {
                Some(stop) => Box::pin(probe::probe(to, rule, stop, &mut section)).await,
                None => section.skip("whether it can be written: --probe shows that"),
            }
        }
        section.of_rule(rule)
    }

    async fn judge_way(&self, known: &Known<'a>, rule: &'a Rule) -> Option<Vec<Finding>> {
        let (way, bus) = (self.way(known, rule)?, self.bus(&rule.source)?);
        let bridge = Box::pin(bus.test_patterns(&way)).await;
        Some(way.judge(bridge.as_ref()))
    }

    /// Judges one of a rule's buckets, and returns it if it can be asked more.
    fn judge_bucket<'k>(
        &self,
        known: &'k Known<'a>,
        (rule, end): (&'a Rule, End),
        section: &mut Section,
    ) -> Option<buckets::Asked<'k>>
    where
        'a: 'k,
    {
        let bucket = match end {
            End::Source => &rule.source,
            End::Destination => &rule.destination,
        };
        let place = self.place(&known.signing, bucket);
        let Some((place, attributes)) = place.zip(known.buckets.get(bucket)) else {
            section.skip(format!("account {} cannot sign", bucket.account));
            return None;
        };
        buckets::judge((place, attributes), end, section).then_some((place, attributes))
    }
}

/// Asks something of each, where it can be asked.
async fn ask_each<'q, K: Send, T: Send>(
    keys: impl IntoIterator<Item = K>,
    question: impl Fn(&K) -> Option<BoxFuture<'q, T>>,
) -> Vec<(K, Option<T>)> {
    let keys: Vec<K> = keys.into_iter().collect();
    let questions = keys
        .iter()
        .map(|key| OptionFuture::from(question(key)).boxed());
    let answers = few_at_a_time(questions.collect()).await;
    keys.into_iter().zip(answers).collect()
}

fn answered<K: Ord, T>(asked: Vec<(K, Option<T>)>) -> BTreeMap<K, T> {
    let asked = asked.into_iter();
    let known = asked.filter_map(|(key, answer)| Some((key, answer?)));
    known.collect()
}

/// Waits for the answers to questions, in their order.
async fn few_at_a_time<T: Send>(questions: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let asking = stream::iter(questions).buffered(QUESTIONS_MAX);
    asking.collect().await
}
