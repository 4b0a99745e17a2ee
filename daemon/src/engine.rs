//! What every transfer uses: clients, ledger, budget, limits, metrics.

use std::collections::HashSet;
use std::sync::Mutex;

use replicator_core::failure::{Failure, Kind, Reason};
use replicator_core::rule::Place;

use crate::accounts::refusal::{Side, failure};
use crate::accounts::{Access, Accounts};
use crate::budget::Budget;
use crate::ledger::Ledger;
use crate::limits::Limits;
use crate::metrics::Metrics;

/// The services that transfers share.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) accounts: Accounts,
    pub(crate) ledger: Ledger,
    pub(crate) budget: Budget,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    versioned: Mutex<HashSet<Place>>,
}

impl Engine {
    pub(crate) fn new(accounts: Accounts, ledger: Ledger, budget: Budget, metrics: Metrics) -> Self {
        Self { accounts, ledger, budget, limits: Limits::default(), metrics, versioned: Mutex::default() }
    }

    /// Returns the clients for a place.
    pub(crate) fn access(&self, place: &Place) -> Result<&Access, Failure> {
        // The configuration is checked before it gets here, so this is a refusal to guess.
        self.accounts.get(&place.account).ok_or_else(|| {
            Failure::caused(Kind::Transient, "account", format!("account {:?} is not configured", place.account))
        })
    }

    /// Makes sure, once, that a destination keeps versions: without them an overwrite would lose
    /// what it replaces.
    pub(crate) async fn check_versioned(&self, place: &Place) -> Result<(), Failure> {
        if self.versioned.lock().is_ok_and(|known| known.contains(place)) {
            return Ok(());
        }
        let answer = self
            .access(place)?
            .s3
            .get_bucket_versioning()
            .bucket(place.bucket.as_str())
            .send()
            .await
            .map_err(|error| failure(Side::Destination, "GetBucketVersioning", error))?;
        if answer.status != Some(aws_sdk_s3::types::BucketVersioningStatus::Enabled) {
            return Err(Failure::new(Kind::Refused(Reason::DstBucketUnversioned), "GetBucketVersioning"));
        }
        if let Ok(mut known) = self.versioned.lock() {
            known.insert(place.clone());
        }
        Ok(())
    }
}
