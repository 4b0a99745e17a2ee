//! Death at every place around every step that changes the world, with the disk and without, alone
//! and beside another daemon.

use replicator_fakes::journal::Entry;
use s3_replicator::failpoint::{Failpoint, Phase, Step};

use crate::deaths::Toll;
use crate::story::{Ending, Story};

// So many stories for every place, and more for one that none of them came to: which those are is
// for the seeds to say.
const STORIES: u64 = 8;
const STORIES_MAX: u64 = 64;

#[test]
fn death_at_any_place_breaks_no_promise() {
    let mut toll = Toll::default();
    for at in Failpoint::all_places() {
        for seed in 0..STORIES_MAX {
            if seed >= STORIES && toll.has_met(at) {
                break;
            }
            let ending = Story::of_deaths(seed, at).tell();
            let deaths = ending.fates.iter().flat_map(|fate| &fate.deaths);
            let unsynced = (at == UNSYNCED).then(|| acked_unsynced(&ending));
            let wrong = ending.wrong.iter().cloned();
            let wrong = wrong.chain(unsynced.into_iter().flatten());
            toll.add(format_args!("{at} seed {seed}"), deaths, wrong);
        }
    }
    toll.assert_complete(Failpoint::all_places());
}

/// Before the ledger is synced for the first time.
const UNSYNCED: Failpoint = Failpoint {
    step: Step::Sync,
    moment: Phase::Before,
};

/// Lists the messages that were deleted by a daemon that had made nothing durable: what a process
/// writes outlives it even if it is not synced, so only the order of the requests can tell.
fn acked_unsynced(ending: &Ending) -> impl Iterator<Item = String> {
    let deletes = ending
        .journal
        .select(|entry| entry.call.operation == "DeleteMessageBatch");
    ending
        .fates
        .iter()
        .enumerate()
        .flat_map(move |(number, fate)| {
            let is_early = move |entry: &&Entry| {
                entry.client == format!("daemon-{number}")
                    && fate.died_first.is_some_and(|died| entry.sent < died)
            };
            deletes
                .iter()
                .filter(is_early)
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })
}
