//! What an endpoint's answers to writes teach of its abilities.

use std::collections::BTreeMap;
use std::time::Duration;

use replicator_core::failure::{Failure, Kind};
use replicator_core::object::{ETag, VersionId};
use replicator_core::plan::VersionRef;
use tokio::time::Instant;

use super::basis::Entry;
use crate::accounts::Access;
use crate::accounts::capabilities::Ability;

/// What one attempt leaves for the next: that it was, the write that was refused last, and since
/// when the destination is seen to show what it shows.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    refused: Option<Asked>,
    begun: bool,
    read: bool,
    seen: Option<(Entry, Instant)>,
    content: Option<(VersionRef, ETag)>,
    purges: BTreeMap<VersionId, Instant>,
}

/// What a write demanded of the endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    ability: Ability,
    /// What the write was to go over. Its ETag would not do: that recurs, and between the two refusals there may have been
    /// others.
    over: Entry,
    /// Whether the condition was sent along.
    relied_on: bool,
}

impl Asked {
    /// Takes note of what is about to be asked.
    pub(super) fn of(destination: &Access, ability: Ability, over: &Entry) -> Self {
        Self { ability, over: over.clone(), relied_on: destination.capabilities.has(ability) }
    }
}

impl Memory {
    /// Says whether nothing was tried yet; afterwards the ledger alone answers nothing.
    pub(crate) fn is_blank(&self) -> bool {
        !self.begun
    }

    /// Returns for how long this entry has been seen as the current one.
    pub(super) fn seen_for(&mut self, entry: &Entry) -> Duration {
        match &self.seen {
            Some((seen, since)) if seen == entry => since.elapsed(),
            Some(_) | None => {
                self.seen = Some((entry.clone(), Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// Takes note of the ETag that a version's content gets.
    pub(super) fn learn_content(&mut self, version: &VersionRef, etag: ETag) {
        self.content = Some((version.clone(), etag));
    }

    /// Returns the ETag that a version's content gets, where its own does not tell.
    pub(super) fn content(&self, version: &VersionRef) -> Option<&ETag> {
        self.content.as_ref().filter(|(known, _)| known == version).map(|(_, etag)| etag)
    }

    /// Says whether a version is known to be gone from the source.
    pub(super) fn is_gone(&self, version: &VersionId) -> bool {
        self.purges.contains_key(version)
    }

    /// Returns for how long a version has been known to be gone from the source.
    pub(super) fn gone_for(&mut self, version: &VersionId) -> Duration {
        self.purges.entry(version.clone()).or_insert_with(Instant::now).elapsed()
    }

    /// Takes note that requests are about to be sent.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// Says whether no attempt has come as far as to a plan, so that none has written anything.
    pub(super) fn is_unread(&self) -> bool {
        !self.read
    }

    /// Takes note that both sides were read.
    pub(super) fn read(&mut self) {
        self.read = true;
    }

    /// Learns from the answer to a write what the endpoint cannot do, or gets wrong. AWS does all
    /// of it: there a refusal is never the endpoint's fault.
    pub(super) fn learn<T>(
        &mut self,
        destination: &Access,
        asked: Asked,
        result: Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (abilities, account) = (&destination.capabilities, &destination.name);
        let Err(failure) = &result else {
            abilities.kept(asked.ability);
            self.refused = None;
            return result;
        };
        if destination.is_aws || failure.during != asked.ability.operation() {
            return result;
        }
        match failure.kind {
            Kind::NotImplemented if asked.relied_on => {
                abilities.withdraw(asked.ability, account, "answered 501 Not Implemented");
            }
            // Without a condition, the checksum is all that such a request has of the unusual.
            Kind::NotImplemented if asked.ability != Ability::ConditionalDelete => {
                abilities.withdraw(Ability::Crc64Nvme, account, "answered 501 Not Implemented");
            }
            // Between the two refusals lies a fresh read that found the same thing current.
            Kind::Conflict if self.refused.as_ref() == Some(&asked) => {
                abilities.contradicted(asked.ability, account);
            }
            Kind::Conflict => self.refused = Some(asked),
            Kind::NotImplemented
            | Kind::Contended
            | Kind::TooYoung(_)
            | Kind::Unanswered
            | Kind::Transient
            | Kind::Unauthenticated
            | Kind::Throttled
            | Kind::Refused(_)
            | Kind::Gone
            | Kind::Unsupported(_) => {}
        }
        result
    }
}
