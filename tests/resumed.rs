//! Durable: a large object goes on from its last part, whatever became of the daemon meanwhile.

use std::collections::BTreeSet;

use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::request::Seen;
use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_after_a_kill_and_repeats_no_part() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    // An eighth of the memory is a part, and seven have room.
    config.memory = "40MiB";
    let archive = world.archive.clone();
    let is_of_the_rest = move |seen: &Seen| {
        seen.is(&archive, "UploadPart") && part(seen).is_some_and(|number| number > 4)
    };
    faults.script(Fault::Hang, usize::MAX, is_of_the_rest);
    let daemon = Daemon::spawn(&config).ready().await;
    world
        .put(
            "large",
            (0..55u32 << 17)
                .flat_map(|word| u64::from(word).to_le_bytes())
                .collect::<Vec<u8>>(),
        )
        .await;
    // Seven are on their way, so four have been written down.
    eventually("the first parts are there", async || {
        faults.hits(Fault::Hang) == 7
    })
    .await;
    daemon.kill().await;
    faults.clear();
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained(&daemon).await;
    assert_eq!(world.assert_equal().await["open_uploads"], 0);
    let journal = faults.journal();
    let archive = &world.archive;
    let asked = |operation| {
        journal
            .iter()
            .filter(move |seen| seen.is(archive, operation))
    };
    assert_eq!(asked("CreateMultipartUpload").count(), 1);
    let mut parts: Vec<u32> = asked("UploadPart")
        .filter(|seen| seen.fault.is_none())
        .filter_map(part)
        .collect();
    parts.sort_unstable();
    assert_eq!(parts, (1..=11).collect::<Vec<u32>>());
    let uploads: BTreeSet<&String> = ["UploadPart", "CompleteMultipartUpload"]
        .into_iter()
        .flat_map(asked)
        .filter_map(|seen| seen.query.get("uploadId"))
        .collect();
    assert_eq!(uploads.len(), 1, "{uploads:?}");
}

fn part(seen: &Seen) -> Option<u32> {
    seen.query.get("partNumber")?.parse().ok()
}
