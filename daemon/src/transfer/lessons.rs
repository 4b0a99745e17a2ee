//! What an endpoint's answers to writes teach of its abilities.

use replicator_core::failure::{Failure, Kind};
use replicator_core::plan::Condition;

use crate::accounts::Access;
use crate::accounts::capabilities::Ability;

/// What one attempt leaves for the next: that it was, and the condition that was refused last.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    refused: Option<Asked>,
    begun: bool,
}

/// What a write demanded of the endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    ability: Ability,
    condition: Condition,
    /// Whether the condition was sent along.
    relied_on: bool,
}

impl Asked {
    /// Takes note of what is about to be asked.
    pub(super) fn of(destination: &Access, ability: Ability, condition: Condition) -> Self {
        Self { ability, condition, relied_on: destination.capabilities.has(ability) }
    }
}

impl Memory {
    /// Says whether nothing was tried yet; afterwards the ledger alone answers nothing.
    pub(crate) fn is_blank(&self) -> bool {
        !self.begun
    }

    /// Takes note that requests are about to be sent.
    pub(super) fn begin(&mut self) {
        self.begun = true;
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
            | Kind::Unanswered
            | Kind::Transient
            | Kind::Throttled
            | Kind::Refused(_)
            | Kind::Gone
            | Kind::Unsupported(_) => {}
        }
        result
    }
}
