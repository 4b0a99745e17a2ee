//! What the file alone shows: nothing that it may not say, and much that is rarely meant; which
//! queues it names.

use std::path::Path;

use replicator_config::{Account, Service, Settings, line_of, partition_of};
use replicator_core::object::Timestamp;
use replicator_core::rule::{Encryption, ReplicaKey, Rule};
use time::format_description::well_known::Rfc3339;

use super::finding::{CheckName, Finding, Fix, Section};
use super::queues::{Purpose, QueuePlace};

/// Looks at the file; `text` is what it says.
pub(super) fn look(settings: &Settings, text: &str, now: Timestamp) -> Section {
    let mut section = Section::new("file");
    section.fine(format!(
        "{} rules, {} queues, {} accounts",
        settings.rules.len(),
        settings.queues.len(),
        settings.accounts.len()
    ));
    section.add(settings.accounts.values().filter_map(unknown_region));
    section.add(unusable_token(settings, text));
    if !settings.rules.iter().any(|rule| rule.enabled) {
        section.add([no_rule()]);
    }
    for (at, rule) in settings.rules.iter().enumerate() {
        let key_region = settings
            .accounts
            .get(&rule.destination.account)
            .map(|account| foreign_keys(rule, account));
        let findings = [
            disabled(rule),
            slash(rule),
            wildcard(rule),
            future(rule, now),
        ];
        let findings = findings.into_iter().flatten();
        let findings = findings.chain(key_region.into_iter().flatten());
        section.add(findings.map(|finding| finding.of_rule(rule).placed_at(at, text)));
    }
    section
}

/// Names the places in the file of the keys that the findings of services are to be put right by.
pub(super) fn place_keys(
    mut sections: Vec<Section>,
    settings: &Settings,
    config: &Path,
) -> Vec<Section> {
    let text = replicator_config::read_text(config).unwrap_or_default();
    for finding in sections
        .iter_mut()
        .flat_map(|section| &mut section.findings)
    {
        let mut rules = settings.rules.iter();
        if let Some(at) = rules.position(|rule| finding.rule.as_ref() == Some(&rule.id)) {
            place_fixes(&mut finding.fix, at, &text);
        }
    }
    sections
}

/// Puts a rule's place in the file before the keys that fixes name, which are keys of the rule.
fn place_fixes(fixes: &mut [Fix], at: usize, text: &str) {
    for fix in fixes {
        if let Fix::Config { line, key, .. } = fix {
            let path = format!("rules[{at}].{key}");
            *line = line_of(text, &path);
            *key = path;
        }
    }
}

impl Finding {
    /// Puts the rule's place in the file before what is named so far, which is a key of the rule.
    fn placed_at(mut self, at: usize, text: &str) -> Self {
        let path = |key: &str| format!("rules[{at}].{key}");
        let line = |key: &str| line_of(text, &path(key));
        place_fixes(&mut self.fix, at, text);
        let number = line(&self.place).map_or_else(String::new, |line| format!("line {line}, "));
        self.place = format!("{number}{}", path(&self.place));
        self
    }
}

fn warning(check: CheckName, key: &str, what: String, why: &str, value: &str) -> Finding {
    let fix = Fix::Config {
        line: None,
        key: key.to_owned(),
        value: value.to_owned(),
    };
    Finding::problem(check, key, what, why)
        .into_warning()
        .fixed_by([fix])
}

fn unusable_token(settings: &Settings, text: &str) -> Option<Finding> {
    let key = "api_token_file";
    let unusable = settings.read_api_token().err()?;
    let what: Vec<&str> = { unusable.problems().iter() }
        .map(|problem| problem.message.as_str())
        .collect();
    let line = line_of(text, key).map_or_else(String::new, |line| format!("line {line}, "));
    let why = "the daemon does not start without the token that it is to ask for";
    let fix = "put that right, for the user that the daemon runs as; docs/api.md has the commands";
    Some(
        Finding::problem(
            CheckName::ApiToken,
            format!("{line}{key}"),
            what.join("; "),
            why,
        )
        .fixed_by([Fix::advice(fix)]),
    )
}

fn no_rule() -> Finding {
    let why = "messages of the queues are received, and none is replicated";
    Finding::problem(CheckName::RuleEnabled, "rules", "no rule is enabled", why)
        .into_warning()
        .fixed_by([Fix::advice(
            "enable a rule, or stop the daemon to keep the events",
        )])
}

fn disabled(rule: &Rule) -> Option<Finding> {
    let what = "the rule is not enabled".to_owned();
    let why = "its objects are not replicated";
    let finding = || warning(CheckName::RuleEnabled, "enabled", what, why, "true");
    (!rule.enabled).then(finding)
}

fn slash(rule: &Rule) -> Option<Finding> {
    let prefix = &rule.filter.prefix;
    let fixed = prefix.starts_with('/').then(|| plain_prefix(prefix))?;
    let what = format!("the prefix {prefix:?} begins with a slash");
    let why = "keys begin without one, so the rule takes only those that were written with one";
    Some(warning(
        CheckName::PrefixSlash,
        "filter.prefix",
        what,
        why,
        &format!("{fixed:?}"),
    ))
}

fn wildcard(rule: &Rule) -> Option<Finding> {
    let prefix = &rule.filter.prefix;
    let fixed = prefix.contains('*').then(|| plain_prefix(prefix))?;
    let what = format!("the prefix {prefix:?} has a *");
    let why = "a prefix has no wildcards: the rule takes only keys with this very character";
    Some(warning(
        CheckName::PrefixWildcard,
        "filter.prefix",
        what,
        why,
        &format!("{fixed:?}"),
    ))
}

/// Returns what was probably meant: one prefix may have both faults.
fn plain_prefix(prefix: &str) -> &str {
    let (head, _) = prefix.split_once('*').unwrap_or((prefix, ""));
    head.trim_start_matches('/')
}

fn future(rule: &Rule, now: Timestamp) -> Option<Finding> {
    let since = rule.since.filter(|since| *since > now)?;
    let what = format!("`since` is in the future: {}", rfc3339(since));
    let why = "no version that is written before then is ever replicated";
    Some(warning(
        CheckName::SinceFuture,
        "since",
        what,
        why,
        &format!("{:?}", rfc3339(now)),
    ))
}

fn rfc3339(moment: Timestamp) -> String {
    let whole = moment.replace_nanosecond(0).unwrap_or(moment);
    whole.format(&Rfc3339).unwrap_or_else(|_| whole.to_string())
}

/// Finds keys that S3 cannot use, because they are not where the bucket is.
fn foreign_keys(rule: &Rule, account: &Account) -> Vec<Finding> {
    let (own, map) = match &rule.encryption {
        Encryption::Same { key_map } => (None, Some(key_map)),
        Encryption::Kms { key, key_map, .. } => match key {
            ReplicaKey::Named(key) => (Some(key), Some(key_map)),
            ReplicaKey::Related => (None, Some(key_map)),
        },
        Encryption::Dsse { key } => (Some(key), None),
        Encryption::BucketDefault | Encryption::S3 => (None, None),
    };
    let own = own.map(|key| ("encryption.key", key));
    let mapped = map.into_iter().flat_map(|map| map.values());
    let mapped = mapped.map(|key| ("encryption.key_map", key));
    let region = |key: &String| key.split(':').nth(3).unwrap_or_default().to_owned();
    let elsewhere = own.into_iter().chain(mapped);
    let elsewhere = elsewhere.filter(|(_, key)| region(key) != account.region);
    let finding = |(path, key): (&str, &String)| {
        let what = format!(
            "{key} is in {}, and account {} in {}",
            region(key),
            account.name,
            account.region
        );
        let why = "S3 encrypts only with keys of the bucket's own Region: each write is refused";
        Finding::problem(CheckName::KeyRegion, path, what, why)
            .into_warning()
            .fixed_by([Fix::advice(format!(
                "name a key of {} here, such as the related multi-Region key",
                account.region
            ))])
    };
    elsewhere.map(finding).collect()
}

fn unknown_region(account: &Account) -> Option<Finding> {
    let is_aws = account.endpoint_of(Service::S3).is_none();
    if !is_aws || partition_of(&account.region).is_some() {
        return None;
    }
    let what = format!("no partition of AWS has a Region {:?}", account.region);
    let why = "requests go to a host that does not exist";
    let place = format!("accounts.{}.region", account.name);
    let fix = Fix::advice("write a Region as in `aws account list-regions`, like \"eu-west-1\"");
    Some(
        Finding::problem(CheckName::RegionKnown, place, what, why)
            .into_warning()
            .fixed_by([fix]),
    )
}

/// Lists every queue of the file once, in the order data flows.
pub(super) fn queue_places(settings: &Settings) -> Vec<QueuePlace<'_>> {
    let mut places = Vec::new();
    for queue in &settings.queues {
        places.push((Purpose::Events, &queue.url, &queue.account));
        places.push((Purpose::DeadLetter, &queue.dead_letter_url, &queue.account));
    }
    let work = settings.work_queues.iter();
    places.extend(work.map(|queue| (Purpose::Work, &queue.url, &queue.account)));
    let backfill = settings.backfill_queues.iter();
    places.extend(backfill.map(|queue| (Purpose::Backfill, &queue.url, &queue.account)));
    places.sort();
    places.dedup();
    places
        .into_iter()
        .filter_map(|(purpose, url, account)| {
            let account = settings.accounts.get(account)?;
            Some(QueuePlace {
                purpose,
                url,
                account,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const HEAD: &str = "[accounts.a]\nregion = \"eu-west-1\"\n[accounts.b]\nregion = \"us-east-1\"\n\
        [[queues]]\nurl = \"https://sqs.eu-west-1.amazonaws.com/111111111111/events\"\naccount = \"a\"\n\
        dead_letter_url = \"https://sqs.eu-west-1.amazonaws.com/111111111111/parked\"\n\
        [[rules]]\nid = \"orders\"\nsource = { account = \"a\", bucket = \"orders\" }\n\
        destination = { account = \"b\", bucket = \"replicas\" }\n";

    fn found(rest: &str) -> Vec<Finding> {
        let text = format!("{HEAD}{rest}\n");
        let settings = replicator_config::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        look(&settings, &text, datetime!(2026-11-30 12:00 UTC)).findings
    }

    #[test]
    fn each_trap_of_the_file_is_found_at_its_line() {
        let key = "arn:aws:kms:eu-west-1:222222222222:key/1";
        let cases = [
            ("enabled = false", CheckName::RuleEnabled, "line 13", "true"),
            (
                "filter = { prefix = \"/in/\" }",
                CheckName::PrefixSlash,
                "line 13",
                "\"in/\"",
            ),
            (
                "filter = { prefix = \"/in/*.gz\" }",
                CheckName::PrefixSlash,
                "line 13",
                "\"in/\"",
            ),
            (
                "\nfilter = { prefix = \"in/*\" }",
                CheckName::PrefixWildcard,
                "line 14",
                "\"in/\"",
            ),
            (
                "since = \"2027-01-01T00:00:00Z\"",
                CheckName::SinceFuture,
                "line 13",
                "\"2026-11-30T12:00:00Z\"",
            ),
        ];
        for (rest, check, line, value) in cases {
            let found = found(rest);
            let mut found = found.iter().filter(|found| found.rule.is_some());
            let found = found.find(|found| found.check == check).unwrap();
            assert!(found.place.starts_with(line), "{rest}: {}", found.place);
            assert_eq!(found.rule.as_deref(), Some("orders"));
            assert_eq!(found.severity, super::super::finding::Severity::Warning);
            assert!(
                matches!(&found.fix[..], [Fix::Config { value: set, line: Some(_), .. }] if set == value),
                "{:?}",
                found.fix
            );
        }
        let kms = found(&format!(
            "encryption = {{ mode = \"kms\", key = \"{key}\" }}"
        ));
        assert_eq!(kms[0].check, CheckName::KeyRegion);
        let fine = "encryption = { mode = \"kms\", key = \"arn:aws:kms:us-east-1:222222222222:key/1\" }\n\
            since = \"2026-01-01T00:00:00Z\"\nfilter = { prefix = \"in/\" }";
        assert_eq!(found(fine), []);
    }

    #[test]
    fn a_token_that_the_daemon_cannot_use_is_found_before_its_start() {
        let text = format!("api_token_file = \"/nonexistent/token\"\n{HEAD}");
        let settings = replicator_config::parse(&text).unwrap();
        let found = look(&settings, &text, datetime!(2026-11-30 12:00 UTC)).findings;
        assert_eq!(found[0].check, CheckName::ApiToken);
        assert_eq!(found[0].place, "line 1, api_token_file");
        assert!(found[0].what.contains("/nonexistent/token"), "{found:?}");
    }
}
