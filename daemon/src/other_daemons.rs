//! Other daemons at the same keys: the one that used the state directory before, and a second one
//! where there may be one only.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replicator_config::Settings;
use replicator_core::retry::{COMPLETE_TIMEOUT_MAX, LANDING};
use tracing::{error, info};

use crate::clock::BootInstant;
use crate::ledger::records::TargetKey;

/// What the process that used the state directory before may have left on its way. After a clean
/// stop that is nothing. After a kill, or with a directory that was lost, the first tasks wait
/// until its requests have landed or never will. Where there are work queues the receive count of a
/// message tells the same, and only of its own key.
#[derive(Debug)]
pub(crate) struct Predecessor {
    /// When this process began, unless the last one stopped cleanly.
    since: Option<BootInstant>,
}

/// The file that a clean stop leaves until the next start.
const STOPPED: &str = "stopped";

impl Predecessor {
    /// Finds out whether the last process of a configuration may have left something on its way.
    pub(crate) fn find(settings: &Settings) -> io::Result<Self> {
        let predecessor = Self::of_state_dir(&settings.state_dir)?;
        if !settings.work_queues.is_empty() {
            return Ok(Self::none());
        }
        if predecessor.may_write() {
            info!(wait = ?LANDING, "not started after a clean stop: what was sent before may still arrive, so writing waits");
        }
        Ok(predecessor)
    }

    /// Finds out how the last user of a state directory ended, and that this one has not ended yet.
    pub(crate) fn of_state_dir(state_dir: &Path) -> io::Result<Self> {
        match fs::remove_file(stopped(state_dir)) {
            Ok(()) => File::open(state_dir)?
                .sync_all()
                .map(|()| Self { since: None }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self {
                since: Some(BootInstant::now()),
            }),
            Err(error) => Err(error),
        }
    }

    /// Records that nothing is on its way from here.
    pub(crate) fn leave(state_dir: &Path) -> io::Result<()> {
        File::create(stopped(state_dir)).map(drop)
    }

    /// For a start without a predecessor to wait for.
    pub(crate) fn none() -> Self {
        Self { since: None }
    }

    /// Says whether something may be on its way yet.
    pub(crate) fn may_write(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() < LANDING)
    }

    /// Waits until all that it sent has landed or never will, but for uploads that it completed.
    pub(crate) async fn has_landed(&self) {
        if let Some(left) = self
            .since
            .map(|since| LANDING.saturating_sub(since.elapsed()))
        {
            tokio::time::sleep(left).await;
        }
    }

    /// Says whether S3 may still put an upload together that it completed.
    pub(crate) fn may_complete_uploads(&self) -> bool {
        self.since
            .is_some_and(|since| since.elapsed() < COMPLETE_TIMEOUT_MAX + LANDING)
    }
}

fn stopped(state_dir: &Path) -> PathBuf {
    state_dir.join(STOPPED)
}

/// What was seen of another daemon. Without a work queue one daemon alone keeps a key's versions in
/// order, so a second one is a mistake in the set-up. It shows in replicas that this one neither
/// wrote nor can have found at its start.
#[derive(Debug)]
pub(crate) struct SecondDaemon(Mutex<Evidence>);

#[derive(Debug)]
struct Evidence {
    /// Since when all that is written here is known.
    sure_since: BootInstant,
    /// Replicas of another daemon.
    replicas: u64,
    seen: Option<BootInstant>,
    logged: Option<BootInstant>,
}

// A second daemon that works is met again by then. A user may copy a replica once, its stamp
// included.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

// Each key says the same.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

const ADVICE: &str =
    "stop all but one, or give the rules a work_queue, which any number of daemons share";

impl SecondDaemon {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Evidence {
            sure_since: BootInstant::now(),
            replicas: 0,
            seen: None,
            logged: None,
        }))
    }

    /// Records that a task ended without learning the outcome of its last write.
    pub(crate) fn is_unsure(&self) {
        self.lock_evidence().sure_since = BootInstant::now();
    }

    /// Says whether a replica of this age that is not in the ledger must be another daemon's: this
    /// daemon and its predecessor cannot have written it.
    pub(crate) fn may_have_written(&self, age: Duration) -> bool {
        age + LANDING < self.lock_evidence().sure_since.elapsed()
    }

    /// Records a replica that another daemon wrote, and logs it, though not each.
    pub(crate) fn wrote(&self, target: &TargetKey) {
        let mut evidence = self.lock_evidence();
        evidence.replicas += 1;
        evidence.seen = Some(BootInstant::now());
        if evidence
            .logged
            .is_none_or(|logged| logged.elapsed() > LOGGED_EVERY)
        {
            evidence.logged = evidence.seen;
            let (bucket, key) = (target.destination.bucket.as_str(), target.key.as_str());
            error!(
                bucket,
                key,
                replicas = evidence.replicas,
                advice = ADVICE,
                "another daemon seems to write replicas here"
            );
        }
    }

    /// Says what is wrong, if another daemon was seen.
    pub(crate) fn ailment(&self) -> Option<String> {
        let evidence = self.lock_evidence();
        let seen = evidence.seen?;
        let replicas = evidence.replicas;
        (seen.elapsed() < FORGOTTEN_AFTER).then(|| {
            format!(
                "another daemon seems to write replicas at the same keys ({replicas} seen): {ADVICE}"
            )
        })
    }

    fn lock_evidence(&self) -> MutexGuard<'_, Evidence> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_start_after_a_clean_stop_waits_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            Predecessor::of_state_dir(directory.path())
                .unwrap()
                .may_write(),
            "the directory may have been lost"
        );
        assert!(
            Predecessor::of_state_dir(directory.path())
                .unwrap()
                .may_write(),
            "the last one was killed"
        );
        Predecessor::leave(directory.path()).unwrap();
        assert!(
            !Predecessor::of_state_dir(directory.path())
                .unwrap()
                .may_write()
        );
        assert!(
            Predecessor::of_state_dir(directory.path())
                .unwrap()
                .may_complete_uploads(),
            "the last one was killed"
        );
    }
}
