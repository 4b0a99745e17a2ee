//! What an endpoint's answers to writes teach of its features.

use std::collections::BTreeSet;
use std::iter;
use std::time::Duration;

use replicator_core::failure::{Failure, FailureKind, error_chain};

use crate::clock::BootInstant;
use crate::ledger::records::CurrentEntry;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::capabilities::Feature;

/// What one attempt leaves for the next.
#[derive(Debug, Default)]
pub(crate) struct AttemptState {
    refused: Option<ConditionalWrite>,
    /// Requests were sent; from then on the ledger alone answers nothing.
    pub(crate) has_begun: bool,
    /// Both sides were read, so that a write may have followed.
    pub(super) has_read: bool,
    /// What the next write goes without, on trial, because the endpoint did not say what it does
    /// not implement.
    left_out: BTreeSet<Feature>,
    /// Its answer, for the log.
    why: String,
    since: Option<BootInstant>,
    /// A write may be there that is not recorded: also one that was refused, because not every
    /// refusal is the service's.
    pub(super) is_unsure: bool,
}

/// What a write demands of the endpoint beyond the plain request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConditionalWrite {
    condition: Feature,
    /// The entry that the write was to go over. Its ETag would not do: that recurs, and between the
    /// two refusals there may have been other entries.
    over: CurrentEntry,
    pub(super) extras: Extras,
}

/// What can be left out of a write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extras {
    /// It has a condition.
    pub(crate) conditional: bool,
    /// It has a CRC64NVME.
    pub(crate) checked: bool,
}

impl ConditionalWrite {
    /// Lists the optional features, and whether the write used them.
    fn features(&self) -> impl Iterator<Item = (Feature, bool)> {
        let checksum = self.condition.paired_checksum();
        let checksum = checksum.map(|feature| (feature, self.extras.checked));
        iter::once((self.condition, self.extras.conditional)).chain(checksum)
    }

    /// Lists what can be left out, in the order of trying: a checksum is missed less than a
    /// condition.
    fn trials(&self) -> Vec<BTreeSet<Feature>> {
        let (condition, checksum) = (Some(self.condition), self.condition.paired_checksum());
        let trial = |left_out: [Option<Feature>; 2]| left_out.into_iter().flatten().collect();
        vec![
            trial([checksum, None]),
            trial([condition, None]),
            trial([checksum, condition]),
        ]
    }
}

impl AttemptState {
    /// Returns how long ago the task sent its first request.
    pub(super) fn age(&mut self) -> Duration {
        self.since.get_or_insert_with(BootInstant::now).elapsed()
    }

    /// Decides which features of the endpoint a write uses.
    pub(super) fn ask(
        &self,
        destination: &AccountClients,
        condition: Feature,
        over: &CurrentEntry,
    ) -> ConditionalWrite {
        let wants = |feature| {
            destination.capabilities.has_feature(feature) && !self.left_out.contains(&feature)
        };
        let extras = Extras {
            conditional: wants(condition),
            checked: condition.paired_checksum().is_some_and(wants),
        };
        ConditionalWrite {
            condition,
            over: over.clone(),
            extras,
        }
    }

    /// Learns from the answer to a write what the endpoint cannot do, or gets wrong. AWS does all
    /// of it: there a refusal is never the endpoint's fault.
    pub(super) fn learn<T>(
        &mut self,
        destination: &AccountClients,
        asked: ConditionalWrite,
        result: Result<T, Failure>,
    ) -> Result<T, Failure> {
        // It is known once it is recorded.
        self.is_unsure = true;
        let failure = match result {
            Ok(value) => {
                self.learn_success(destination, &asked);
                return Ok(value);
            }
            Err(failure) => failure,
        };
        if destination.is_aws {
            return Err(failure);
        }
        if failure.kind == FailureKind::NotImplemented {
            return Err(self.adapt(destination, &asked, failure));
        }
        if failure.kind == FailureKind::PreconditionFailed
            && asked.condition.is_used_by(failure.operation)
        {
            // Between the two refusals lies a fresh read that found the same thing current.
            if self.refused.as_ref() == Some(&asked) {
                destination
                    .capabilities
                    .record_contradiction(asked.condition, &destination.name);
            } else {
                self.refused = Some(asked);
            }
        }
        Err(failure)
    }

    /// What was left out on trial, and not missed, is what the endpoint lacks.
    fn learn_success(&mut self, destination: &AccountClients, asked: &ConditionalWrite) {
        let (features, account) = (&destination.capabilities, &destination.name);
        features.record_condition_met(asked.condition);
        self.refused = None;
        let is_meant = |feature: &Feature| {
            *feature == asked.condition || asked.condition.paired_checksum() == Some(*feature)
        };
        for feature in std::mem::take(&mut self.left_out)
            .into_iter()
            .filter(is_meant)
        {
            features.disable_feature(feature, account, &self.why);
        }
    }

    /// Goes on without what the endpoint says it does not implement, if that can be left out: by
    /// the header that it names, or by trying, one after the other. What the replica needs stays a
    /// failure.
    fn adapt(
        &mut self,
        destination: &AccountClients,
        asked: &ConditionalWrite,
        failure: Failure,
    ) -> Failure {
        let features = &destination.capabilities;
        if let Some(header) = failure.header.as_deref() {
            let is_named = |(feature, is_sent): &(Feature, bool)| {
                *is_sent && feature.is_used_by(failure.operation) && feature.is_asked_by(header)
            };
            let Some((named, _)) = asked.features().find(is_named) else {
                return failure;
            };
            features.disable_feature(named, &destination.name, &error_chain(&failure));
            return adapted(failure);
        }
        self.why = error_chain(&failure);
        let known = asked
            .features()
            .map(|(feature, _)| feature)
            .filter(|feature| feature.is_used_by(failure.operation))
            .filter(|feature| features.has_feature(*feature))
            .collect();
        match self.next_trial(asked, &known) {
            Some(trial) => {
                self.left_out = trial;
                adapted(failure)
            }
            None => {
                self.left_out.clear();
                failure
            }
        }
    }

    /// Finds what else can be left out that makes another request of the one that was refused, of
    /// the features that the endpoint is not known to lack.
    fn next_trial(
        &self,
        asked: &ConditionalWrite,
        known: &BTreeSet<Feature>,
    ) -> Option<BTreeSet<Feature>> {
        let trials = asked.trials();
        let tried = trials
            .iter()
            .position(|trial| *trial == self.left_out)
            .map_or(0, |at| at + 1);
        let sent = known - &self.left_out;
        let differs = |trial: &BTreeSet<Feature>| ![known, &sent].contains(&&(known - trial));
        trials.into_iter().skip(tried).find(differs)
    }
}

fn adapted(failure: Failure) -> Failure {
    Failure {
        kind: FailureKind::FeatureDisabled,
        ..failure
    }
}
