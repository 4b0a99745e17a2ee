//! Death at every place around every step that changes the world, with the disk and without, alone and
//! beside another daemon.

use std::collections::BTreeSet;

use s3_replicator::failpoint::Failpoint;

use crate::story::Story;

// So many stories for every place, and more for one that none of them came to: which those are is for the
// seeds to say.
const STORIES: u64 = 8;
const STORIES_MAX: u64 = 64;

#[test]
fn death_at_any_place_breaks_no_promise() {
    let mut wrong = Vec::new();
    let mut met = BTreeSet::new();
    for at in Failpoint::all() {
        for seed in 0..STORIES_MAX {
            if seed >= STORIES && met.contains(&at.to_string()) {
                break;
            }
            let story = Story::of_deaths(seed, at);
            let ending = story.tell();
            let deaths = ending.fates.iter().flat_map(|fate| &fate.deaths);
            met.extend(deaths.map(ToString::to_string));
            wrong.extend(ending.wrong.iter().map(|what| format!("{at} seed {seed}: {what}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let missed: Vec<String> = Failpoint::all().map(|at| at.to_string()).filter(|at| !met.contains(at)).collect();
    assert!(missed.is_empty(), "places that nobody died at: {missed:?}");
}
