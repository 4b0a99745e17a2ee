//! `s3-replicator verify`: compares both sides of a rule, version by version. Two lists, sorted by
//! key, are merged; only replicas that the lists do not prove equal are read, by HEAD. It writes
//! nothing, and runs beside the daemon.

mod deep;
pub(crate) mod keys;
pub mod records;
mod report;
pub(crate) mod rounds;

use std::io::Write as _;

use anyhow::{Context, bail, ensure};
use futures::{Stream, StreamExt as _, stream};
use replicator_config::{Settings, suggest_nearest};
use replicator_core::compare::{
    Difference, HistoryDifference, KeyHistories, VersionPair, may_be_equal, pair_equal,
};
use replicator_core::failure::Failure;
use replicator_core::object::{self, Bucket, Key, Timestamp, VersionId};
use replicator_core::plan::{SourceVersion, VersionKind};
use replicator_core::rule::{History, Rule, RuleScope, VersionScope};

use crate::admin::failures::{ParkedVersions, parked_versions};
use crate::clock;
use crate::ledger::directory::rule_start;
use crate::metrics::Metrics;
use crate::objects::read_head;
use crate::process::{InvalidCommand, Log};
use crate::s3::accounts::error::Side;
use crate::s3::accounts::{AccountClients, Accounts, AwsOverride};
use crate::s3::client::{ResponseHead, S3Request};
use crate::sqs::hints::{Hint, HintSender};
pub use deep::SampleShare;
use keys::{KeyPairs, ListedKey, ListedPair, list_pair};
use report::{Compared, Explanation, KeyOutcome, Line, VerifyReport, to_rfc3339};

/// What is compared, and how.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct VerifyOptions {
    /// The rule
    #[arg(long, value_name = "RULE")]
    pub rule: String,
    /// Only keys of the source that begin with this
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Only versions created since then; the rule's own start when left out
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: Option<Timestamp>,
    /// Only versions created until then; 15 minutes ago when left out
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub as_of: Option<Timestamp>,
    /// Compare metadata, tags, Object Lock, encryption and checksums too: four requests a version
    #[arg(long)]
    pub deep: bool,
    /// Compare this share of the keys so, like 1%; the lists of all others are compared all the same
    #[arg(long, value_name = "SHARE", requires = "deep")]
    pub sample: Option<SampleShare>,
    /// Which keys a sample takes: the same each time, others for another number
    #[arg(long, value_name = "NUMBER", requires = "sample", default_value_t = 0)]
    pub seed: u64,
    /// Have keys looked at that miss their newest state; what else differs stays
    #[arg(long)]
    pub repair: bool,
    /// Print JSON, an object per line
    #[arg(long)]
    pub json: bool,
}

fn parse_time(text: &str) -> Result<Timestamp, &'static str> {
    object::parse_rfc3339(text).ok_or("not a time like 2026-11-30T12:00:00Z")
}

// What native replication promises 99.9 % of its objects within: younger versions may be on their
// way. https://aws.amazon.com/s3/sla-rtc/
const PENDING_FOR: time::Duration = time::Duration::minutes(15);

// HEADs of different keys at a time.
const KEYS_MAX: usize = 32;

/// Compares both sides, and prints each difference as it is found, then the sum; returns the exit
/// code.
pub async fn verify(
    settings: &Settings,
    options: &VerifyOptions,
    given: Option<&AwsOverride>,
    mut print: impl FnMut(&str),
) -> anyhow::Result<u8> {
    let metrics = Metrics::new().context("cannot register metrics")?;
    let accounts = Accounts::connect(&settings.accounts, &metrics, given).await;
    let accounts = accounts.context("cannot set up TLS")?;
    let rule = find_rule(settings, &options.rule)?;
    let verifier = Verifier {
        scope: scope_of(settings, options, rule)?,
        rule,
        source: accounts.access_to(&rule.source)?,
        destination: accounts.access_to(&rule.destination)?,
        // Beside a daemon that a test reaches otherwise, none listens.
        parked: match given {
            None => parked_versions(settings, &rule.id).await,
            Some(_) => None,
        },
        deep: { options.deep }.then(|| Deep::from(options)),
    };
    let run = clock::now().unix_timestamp_nanos().to_string();
    let hints = || HintSender::new(settings, &accounts, rule, &run);
    let hints = options.repair.then(hints).transpose()?;
    let prefix = options.prefix.as_deref();
    let report = verifier.run((prefix, hints), |line| {
        let text = if options.json {
            line.json().ok()
        } else {
            line.text()
        };
        text.iter().for_each(|text| print(text));
    });
    let report = Box::pin(report).await?;
    print(&if options.json {
        report.json()?
    } else {
        report.text()
    });
    Ok(report.exit_code())
}

/// Says which versions are compared.
pub(crate) fn scope_of(
    settings: &Settings,
    options: &VerifyOptions,
    rule: &Rule,
) -> anyhow::Result<RuleScope> {
    let start_of = |rule: &Rule| match options.since.or(rule.since) {
        Some(since) => Ok(Some(since)),
        None => rule_start(settings, &rule.id),
    };
    let as_of = options.as_of.unwrap_or_else(|| clock::now() - PENDING_FOR);
    let scope = RuleScope::new((rule, &settings.rules), as_of, start_of)?;
    let Some(start) = scope.starts.get(&rule.id) else {
        bail!(InvalidCommand::new(format!(
            "rule {:?} has no since, and no ledger here says when it was first loaded; set `since` in the rule (or give --since to verify)",
            rule.id
        )));
    };
    let [since, until] = [*start, as_of].map(to_rfc3339);
    ensure!(
        *start < as_of,
        InvalidCommand::new(format!(
            "no version is created both since {since} and until {until}; give an earlier --since or a later --as-of"
        ))
    );
    Ok(scope)
}

pub(crate) fn find_rule<'s>(settings: &'s Settings, id: &str) -> anyhow::Result<&'s Rule> {
    if let Some(rule) = settings.rules.iter().find(|rule| rule.id == id) {
        return Ok(rule);
    }
    let known = settings.rules.iter().map(|rule| rule.id.as_str());
    let hint = suggest_nearest(id, known);
    bail!(InvalidCommand::new(format!(
        "no rule is called {id:?}; {hint}"
    )))
}

struct Verifier<'a> {
    scope: RuleScope,
    rule: &'a Rule,
    source: &'a AccountClients,
    destination: &'a AccountClients,
    /// Why versions are parked; none where no daemon answers.
    parked: Option<ParkedVersions>,
    /// Of which keys all is compared, if of any.
    deep: Option<Deep>,
}

/// Of which keys all is compared: of all, or of a sample.
struct Deep {
    sample: Option<SampleShare>,
    seed: u64,
}

impl From<&VerifyOptions> for Deep {
    fn from(options: &VerifyOptions) -> Self {
        let VerifyOptions { sample, seed, .. } = *options;
        Self { sample, seed }
    }
}

impl Deep {
    fn takes(&self, key: &Key) -> bool {
        self.sample.is_none_or(|share| share.takes(key, self.seed))
    }
}

/// One key as both sides list it, oldest first.
struct Pair {
    key: Key,
    target: Key,
    source: Vec<(SourceVersion, VersionScope)>,
    shown: Vec<SourceVersion>,
}

impl Pair {
    fn wanted(&self) -> impl DoubleEndedIterator<Item = &SourceVersion> {
        let entries = self.source.iter();
        let wanted = entries.filter(|(_, scope)| *scope == VersionScope::Wanted);
        wanted.map(|(entry, _)| entry)
    }
}

/// What the lists, and stamps, tell of a key.
struct Judged {
    findings: Vec<HistoryDifference>,
    /// Each version beside its replica.
    replicas: Vec<(SourceVersion, SourceVersion)>,
}

/// Has a key looked at, if that mends it; says whether, if it differs at all.
async fn mend(
    hints: &mut HintSender,
    rule: &Rule,
    outcome: &KeyOutcome,
) -> anyhow::Result<Option<bool>> {
    if !outcome.differs() {
        return Ok(None);
    }
    let Some(hint) = outcome.hint(rule) else {
        return Ok(Some(false));
    };
    let tell = |words: &str| {
        let _infallible = writeln!(Log, "{words}");
    };
    let failed = hints.send(std::slice::from_ref(&hint), tell).await;
    match failed.first() {
        Some((_, why)) => bail!("the queue did not take the hint for {}: {why}", hint.key),
        None => Ok(Some(true)),
    }
}

/// Returns the keys of two lists up to the first page that cannot be read.
fn keys_of(both: KeyPairs<'_>) -> impl Stream<Item = Result<ListedKey, Failure>> {
    stream::unfold(Some(both), |both| async move {
        let mut both = both?;
        match both.next_pair().await {
            Ok(Some(listed)) => Some((Ok(listed), Some(both))),
            Ok(None) => None,
            Err(failure) => Some((Err(failure), None)),
        }
    })
}

impl<'a> Verifier<'a> {
    async fn run(
        &self,
        (prefix, mut hints): (Option<&str>, Option<HintSender>),
        mut tell: impl FnMut(&Line),
    ) -> anyhow::Result<VerifyReport> {
        let unlisted = self.parked.as_ref().map(|parked| parked.unlisted);
        let mut report = VerifyReport::new(&self.scope, unlisted);
        report.prefix = prefix.unwrap_or(&self.rule.filter.prefix).to_owned();
        let both = KeyPairs::new(self.rule, self.ends(), prefix)?;
        let outcomes = keys_of(both).map(|listed| async { self.compare_listed(listed?).await });
        let mut outcomes = std::pin::pin!(outcomes.buffered(KEYS_MAX));
        while let Some(outcome) = outcomes.next().await {
            let outcome = outcome.context("broken off, so this proves nothing")?;
            let Some(outcome) = outcome else { continue };
            report.count(&outcome);
            for line in outcome.lines(self.rule) {
                report.add(&line);
                tell(&line);
            }
            if let Some(hints) = &mut hints {
                report.count_repair(mend(hints, self.rule, &outcome).await?);
            }
        }
        Ok(report)
    }

    fn ends(&self) -> (&'a AccountClients, &'a AccountClients) {
        (self.source, self.destination)
    }

    /// Compares what the lists have of a key; none if it is not compared, and not in scope.
    async fn compare_listed(&self, listed: ListedKey) -> Result<Option<KeyOutcome>, Failure> {
        match listed {
            ListedKey::Pair(pair) => self.compare(self.pair(pair)).await.map(Some),
            ListedKey::Refused(refused) => {
                let is_in_scope = refused.is_in_scope(&self.scope);
                Ok(is_in_scope.then_some(KeyOutcome::Refused(refused)))
            }
        }
    }

    /// Compares a key whose lists leave a doubt; says whether it has anything in scope, and returns
    /// the hint that brings what it misses.
    async fn find_hint(&self, listed: ListedKey) -> Result<(bool, Option<Hint>), Failure> {
        let (counts, outcome) = match listed {
            ListedKey::Pair(pair) => {
                let pair = self.pair(pair);
                let counts = pair.wanted().next().is_some();
                if !self.is_doubtful(&pair) {
                    return Ok((counts, None));
                }
                (counts, Some(self.compare(pair).await?))
            }
            refused @ ListedKey::Refused(_) => (false, self.compare_listed(refused).await?),
        };
        let hint = outcome.and_then(|outcome| outcome.hint(self.rule));
        Ok((counts, hint))
    }

    async fn compare(&self, mut pair: Pair) -> Result<KeyOutcome, Failure> {
        let mut judged = self.judge(&mut pair).await?;
        if !judged.findings.is_empty() {
            // The two lists are of different moments.
            pair = match list_pair(self.rule, self.ends(), pair.key).await? {
                ListedKey::Pair(listed) => self.pair(listed),
                ListedKey::Refused(refused) => return Ok(KeyOutcome::Refused(refused)),
            };
            judged = self.judge(&mut pair).await?;
        }
        let mut findings = Vec::new();
        for finding in judged.findings {
            let reason = self.explain(&pair, &finding).await?;
            findings.push((finding, reason));
        }
        let mut compared = Compared {
            pair,
            findings,
            deep: 0,
            uncompared: Vec::new(),
        };
        let is_deep = |deep: &Deep| deep.takes(&compared.pair.key);
        if self.deep.as_ref().is_some_and(is_deep) {
            Box::pin(self.compare_deep(&mut compared, &judged.replicas)).await?;
        }
        Ok(KeyOutcome::Compared(compared))
    }

    /// Says whether the lists of a key leave a doubt that all in scope is there. What is younger, the
    /// key's own events bring.
    fn is_doubtful(&self, pair: &Pair) -> bool {
        let is_pending = |(_, scope): &(_, VersionScope)| *scope == VersionScope::Pending;
        let (wanted, shown) = self.compared_entries(pair);
        !pair.source.iter().any(is_pending) && !may_be_equal(&wanted, &shown)
    }

    async fn judge(&self, pair: &mut Pair) -> Result<Judged, Failure> {
        let owned = |pairs: Vec<VersionPair<'_>>| {
            let pairs = pairs.into_iter();
            pairs
                .map(|(one, other)| (one.clone(), other.clone()))
                .collect()
        };
        let replicas = self.pair_listed(pair).map(owned);
        if let Some(replicas) = replicas {
            let findings = Vec::new();
            return Ok(Judged { findings, replicas });
        }
        let shown = self.read_shown(pair).await?;
        let histories = KeyHistories {
            source: &pair.source,
            shown: &shown,
        };
        Ok(Judged {
            findings: histories.compare(self.rule.history),
            replicas: owned(histories.pair_replicas(self.rule.history)),
        })
    }

    /// Says of each entry whether it has to have a replica.
    fn pair(&self, listed: ListedPair) -> Pair {
        let ListedPair {
            key,
            target,
            source,
            shown,
        } = listed;
        let candidates = self.scope.candidates(&key);
        let scope_of = |entry: SourceVersion| {
            let scope = self.scope.of_entry(&entry, &candidates);
            (entry, scope)
        };
        Pair {
            source: source.into_iter().map(scope_of).collect(),
            key,
            target,
            shown,
        }
    }

    /// Returns each version beside its replica, if the lists prove that all have one.
    fn pair_listed<'p>(&self, pair: &'p Pair) -> Option<Vec<VersionPair<'p>>> {
        let is_pending = |(_, scope): &(_, VersionScope)| *scope == VersionScope::Pending;
        if pair.source.iter().any(is_pending) {
            return None;
        }
        let (wanted, shown) = self.compared_entries(pair);
        pair_equal(&wanted, &shown)
    }

    /// Returns what has to have a replica, and what the destination has; in latest mode of each the
    /// last.
    fn compared_entries<'p>(
        &self,
        pair: &'p Pair,
    ) -> (Vec<&'p SourceVersion>, Vec<&'p SourceVersion>) {
        let wanted = pair.wanted();
        let (mut wanted, mut shown): (Vec<_>, Vec<_>) =
            (wanted.collect(), pair.shown.iter().collect());
        if self.rule.history == History::Latest {
            wanted.drain(..wanted.len().saturating_sub(1));
            shown.drain(..shown.len().saturating_sub(1));
        }
        (wanted, shown)
    }

    pub(super) fn head_of<'c>(&'c self, side: Side, key: &'c Key) -> S3Request<'c> {
        S3Request::head_object(side, self.at(side).1, key)
    }

    pub(super) fn at(&self, side: Side) -> (&AccountClients, &Bucket) {
        match side {
            Side::Source => (self.source, &self.rule.source.bucket),
            Side::Destination | Side::Write | Side::Prepare => {
                (self.destination, &self.rule.destination.bucket)
            }
        }
    }

    async fn read_source(
        &self,
        key: &Key,
        id: &VersionId,
    ) -> Result<Option<ResponseHead>, Failure> {
        let head = self.head_of(Side::Source, key);
        read_head(self.source, head.version(id.as_str())).await
    }

    /// Says why a version is missing, where that is known.
    async fn explain(
        &self,
        pair: &Pair,
        finding: &HistoryDifference,
    ) -> Result<Option<Explanation>, Failure> {
        let Some(version) = finding.source.as_ref() else {
            return Ok(None);
        };
        if finding.difference != Difference::Missing {
            return Ok(None);
        }
        let mut entries = pair.source.iter().map(|(entry, _)| entry);
        let is_object = |entry: &SourceVersion| entry.kind == VersionKind::Object;
        let entry = entries.find(|entry| entry.version == *version);
        if entry.is_some_and(is_object)
            && let Some(entry) = entry
            && let Some(reason) = self.why_not_eligible(&pair.key, entry).await?
        {
            return Ok(Some(Explanation::Skipped(reason)));
        }
        let parked = self.parked.as_ref();
        let reason = parked.and_then(|parked| parked.reason(&pair.key, &version.id));
        Ok(reason.cloned().map(Explanation::Parked))
    }
}
