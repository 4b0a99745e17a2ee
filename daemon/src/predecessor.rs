//! What the process that used the state directory before may have left on its way. After a clean
//! stop that is nothing. After a kill, or with a directory that was lost, the first tasks wait
//! until its requests have landed or never will. Where there are work queues the receive count of a
//! message tells the same, and only of its own key.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use replicator_core::retry::{COMPLETE_TIMEOUT_MAX, LANDING};

use crate::clock::BootInstant;

/// The last user of a state directory.
#[derive(Debug)]
pub(crate) struct Predecessor {
    /// When this process began, unless the last one stopped cleanly.
    since: Option<BootInstant>,
}

/// There after a clean stop, until the next start.
const STOPPED: &str = "stopped";

impl Predecessor {
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

    /// Leaves word that nothing is on its way from here.
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
