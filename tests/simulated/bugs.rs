//! A bug that one key meets is parked with that key; the others go on, and the key itself later.

use replicator_core::failure::Reason;
use s3_replicator::failpoint::{Failpoint, Failpoints, Phase, Step};

use crate::fleet::{self, Plan};
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, SOURCE, simulate};

const KEYS: [&str; 5] = ["one", "two", "three", "four", "five"];

#[test]
fn a_panic_parks_its_key_and_stops_no_other() {
    for (seed, step) in [(1, Step::Read), (2, Step::PutObject), (3, Step::Commit)] {
        for moment in [Phase::Before, Phase::After] {
            panics_at(seed, Failpoint { step, moment });
        }
    }
}

fn panics_at(seed: u64, at: Failpoint) {
    simulate(seed, async |mut sim| {
        sim.post_everything();
        let member = fleet::members(&mut sim, &Plan::of_one("", AWS)).remove(0);
        let daemon = member
            .start(Failpoints::armed_at(Some(at), 2, |at| {
                panic!("a bug at {at}")
            }))
            .await;
        for key in KEYS {
            sim.put(key, b"content").await;
        }
        sim.drained().await;
        let metrics = daemon.metrics().await.unwrap();
        let parked = format!("reason=\"{}\",rule=\"orders\"}} 1\n", Reason::TaskPanicked);
        for told in [
            "s3_replicator_task_panics_total 1\n",
            &format!("s3_replicator_parked{{{parked}"),
        ] {
            assert!(metrics.contains(told), "{at}: {told} is not in\n{metrics}");
        }
        assert_eq!(daemon.ailment().await, None);
        sim.pass(fleet::TRIED_WITHIN).await;
        sim.drained().await;
        daemon.stop().await;
        assert!(
            KEYS.iter()
                .all(|key| sim.shown(ARCHIVE, key) == sim.shown(SOURCE, key)),
            "{at}"
        );
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}
