//! What every transfer uses: clients, ledger, budget, limits, metrics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_s3::types::BucketVersioningStatus;
use replicator_core::failure::{Failure, Kind, Reason};
use replicator_core::rule::Place;
use tokio::time::Instant;

use crate::accounts::refusal::{Side, failure};
use crate::accounts::{Access, Accounts};
use crate::budget::Budget;
use crate::failpoint::Failpoints;
use crate::health::Pulse;
use crate::ledger::Ledger;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::pace::Pace;

/// The services that transfers share.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) accounts: Accounts,
    pub(crate) ledger: Ledger,
    pub(crate) budget: Budget,
    pub(crate) limits: Limits,
    pub(crate) pace: Pace,
    pub(crate) metrics: Metrics,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) failpoints: Failpoints,
    versioned: Mutex<HashMap<Place, Instant>>,
}

// Versioning can be suspended behind our back: so often is it looked at again.
const VERSIONING_LOOKED_AT_EVERY: Duration = Duration::from_secs(300);

impl Engine {
    pub(crate) fn new(
        accounts: Accounts,
        ledger: Ledger,
        budget: Budget,
        metrics: Metrics,
        failpoints: Failpoints,
    ) -> Self {
        let (limits, pace) = (Limits::default(), Pace::default());
        let (pulse, versioned) = (Arc::new(Pulse::new()), Mutex::default());
        Self { accounts, ledger, budget, limits, pace, metrics, pulse, failpoints, versioned }
    }

    /// Returns the clients for a place.
    pub(crate) fn access(&self, place: &Place) -> Result<&Access, Failure> {
        // The configuration is checked before it gets here, so this is a refusal to guess.
        self.accounts.get(&place.account).ok_or_else(|| {
            Failure::caused(Kind::Transient, "account", format!("account {:?} is not configured", place.account))
        })
    }

    /// Makes sure that a destination keeps versions: without them an overwrite would lose what it
    /// replaces.
    pub(crate) async fn check_versioned(&self, place: &Place) -> Result<(), Failure> {
        let is_fresh = |at: &Instant| at.elapsed() < VERSIONING_LOOKED_AT_EVERY;
        if self.versioned.lock().is_ok_and(|known| known.get(place).is_some_and(is_fresh)) {
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
        if answer.status != Some(BucketVersioningStatus::Enabled) {
            return Err(unversioned("GetBucketVersioning"));
        }
        if let Ok(mut known) = self.versioned.lock() {
            known.insert(place.clone(), Instant::now());
        }
        Ok(())
    }

    /// Checks the id that a write was given. None, or `null`, says that versioning was suspended in
    /// the meantime: nothing more may be written.
    pub(crate) fn check_written(&self, place: &Place, version: Option<&str>) -> Result<(), Failure> {
        if version.is_some_and(|version| version != "null") {
            return Ok(());
        }
        if let Ok(mut known) = self.versioned.lock() {
            known.remove(place);
        }
        Err(unversioned("version id"))
    }
}

fn unversioned(during: &'static str) -> Failure {
    Failure::new(Kind::Refused(Reason::DstBucketUnversioned), during)
}
