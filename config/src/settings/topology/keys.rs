//! The keys that rules are about: which they take, what becomes of them, and whether two rules can
//! have the same. Only prefixes and suffixes count: patterns, tags and sizes prove nothing here.

use replicator_core::rule::Rule;

/// What a rule does to the start of a key. Two rules send a key they share to the same place
/// exactly when these are equal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapping<'a> {
    from: &'a str,
    to: &'a str,
}

impl<'a> Mapping<'a> {
    /// Leaves out what stays, so that `a/` to `x/a/` equals `a/b/` to `x/a/b/`.
    pub(super) fn from_rule(rule: &'a Rule) -> Self {
        let (from, to) = (rule.filter.prefix.as_str(), destination_prefix(rule));
        let pairs = from.chars().rev().zip(to.chars().rev());
        let stays: usize = pairs
            .take_while(|(from, to)| from == to)
            .map(|(c, _)| c.len_utf8())
            .sum();
        Self {
            from: without_end(from, stays),
            to: without_end(to, stays),
        }
    }
}

/// A set of keys: all that start and end in a certain way.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    prefix: &'a str,
    suffix: &'a str,
}

impl<'a> Keys<'a> {
    /// Returns the keys that a rule takes.
    pub(super) fn at_source(rule: &'a Rule) -> Self {
        Self {
            prefix: &rule.filter.prefix,
            suffix: &rule.filter.suffix,
        }
    }

    /// Returns the keys that a rule's replicas have.
    pub(super) fn at_destination(rule: &'a Rule) -> Self {
        Self {
            prefix: destination_prefix(rule),
            suffix: kept_suffix(rule),
        }
    }

    /// Says whether some key is in both.
    pub(super) fn may_overlap(&self, other: &Self) -> bool {
        let starts = self.prefix.starts_with(other.prefix) || other.prefix.starts_with(self.prefix);
        let ends = self.suffix.ends_with(other.suffix) || other.suffix.ends_with(self.suffix);
        starts && ends
    }
}

fn destination_prefix(rule: &Rule) -> &str {
    rule.rewrite.as_deref().unwrap_or(&rule.filter.prefix)
}

/// Returns what every replica's key ends with: nothing, when the suffix may reach into the part
/// that is replaced.
fn kept_suffix(rule: &Rule) -> &str {
    let (suffix, replaced) = (rule.filter.suffix.as_str(), Mapping::from_rule(rule).from);
    let mut heads = suffix
        .char_indices()
        .filter_map(|(at, c)| suffix.get(..at + c.len_utf8()));
    if heads.any(|head| replaced.ends_with(head)) {
        ""
    } else {
        suffix
    }
}

fn without_end(text: &str, bytes: usize) -> &str {
    text.get(..text.len() - bytes).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use replicator_core::object::Key;

    use super::*;

    const PARTS: [&str; 7] = ["", "a", "b", "aa", "ab", "ba", "bb"];

    #[test]
    fn a_suffix_that_reaches_into_the_replaced_part_is_not_counted_on() {
        let swallowed = rule("ab", "ab", Some("b"));
        assert_eq!(kept_suffix(&swallowed), "");
        assert_eq!(kept_suffix(&rule("b", "ab", Some("a"))), "ab");
        assert_eq!(kept_suffix(&rule("ab", "ab", None)), "ab");
    }

    #[test]
    fn rules_that_are_told_apart_never_meet() {
        let rules: Vec<_> = every_rule().map(|rule| (replicas(&rule), rule)).collect();
        for (index, one) in rules.iter().enumerate() {
            rules[index..].iter().for_each(|other| check(one, other));
        }
    }

    fn check((replicas, rule): &(Replicas, Rule), (others, other): &(Replicas, Rule)) {
        if !Keys::at_destination(rule).may_overlap(&Keys::at_destination(other)) {
            let met = replicas
                .values()
                .any(|key| others.values().any(|theirs| theirs == key));
            assert!(!met, "{rule:?} {other:?}");
        }
        for (source, key) in replicas {
            let Some(theirs) = others.get(source) else {
                continue;
            };
            assert!(
                Keys::at_source(rule).may_overlap(&Keys::at_source(other)),
                "{rule:?} {other:?}"
            );
            assert_eq!(
                key == theirs,
                Mapping::from_rule(rule) == Mapping::from_rule(other),
                "{source} {rule:?} {other:?}"
            );
        }
    }

    /// Source key to destination key.
    type Replicas = BTreeMap<Key, String>;

    /// The destination key of every short key that a rule takes.
    fn replicas(rule: &Rule) -> Replicas {
        let short = PARTS
            .iter()
            .flat_map(|start| PARTS.map(|end| format!("{start}{end}")));
        let taken = short
            .filter_map(|key| Key::try_from(key).ok())
            .filter(|key| rule.filter.admits_key(key));
        taken
            .map(|key| {
                (
                    key.clone(),
                    rule.destination_key(&key)
                        .map(|to| to.to_string())
                        .unwrap_or_default(),
                )
            })
            .collect()
    }

    fn every_rule() -> impl Iterator<Item = Rule> {
        let prefixes = PARTS
            .iter()
            .flat_map(|prefix| PARTS.map(|suffix| (prefix, suffix)));
        let rewrites = || PARTS.iter().copied().map(Some).chain([None]);
        prefixes
            .flat_map(move |(prefix, suffix)| rewrites().map(move |to| rule(prefix, suffix, to)))
    }

    fn rule(prefix: &str, suffix: &str, rewrite: Option<&str>) -> Rule {
        let settings = crate::parse(include_str!("../../../samples/valid/minimal.toml")).unwrap();
        let mut rule = settings.rules.into_iter().next().unwrap();
        (rule.filter.prefix, rule.filter.suffix) = (prefix.to_owned(), suffix.to_owned());
        Rule {
            rewrite: rewrite.map(str::to_owned),
            ..rule
        }
    }
}
