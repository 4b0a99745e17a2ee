//! Death at every place around every step that changes the world, with the disk and without, alone and
//! beside another daemon.

use std::collections::BTreeSet;

use s3_replicator::failpoint::Failpoint;

use crate::story::Story;

// So many stories pass every place at least once; which those are is for the seeds to say.
const STORIES: u64 = 12;

#[test]
fn death_at_any_place_breaks_no_promise() {
    let mut wrong = Vec::new();
    let mut met = BTreeSet::new();
    for at in Failpoint::all() {
        for seed in 0..STORIES {
            let story = Story::of_deaths(seed, at);
            let ending = story.tell();
            let deaths = ending.fates.iter().flat_map(|fate| &fate.deaths);
            met.extend(deaths.map(ToString::to_string));
            wrong.extend(ending.wrong.iter().map(|what| format!("{at} seed {seed}: {what}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let missed: Vec<String> = Failpoint::all().map(|at| at.to_string()).filter(|at| !met.contains(at)).collect();
    // Nothing is refused for good in these stories, so nothing is parked.
    let never = ["park.before", "park.after", "dead_letter.before", "dead_letter.after"];
    assert_eq!(missed, never, "places that nobody died at");
}
