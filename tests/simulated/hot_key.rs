//! One key that is put and deleted hundreds of times in a row, now and then in parts: its
//! destination keeps up, and has every version and marker once and in order.

use std::time::Duration;

use replicator_fakes::sqs::Quirks;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, Sim, simulate};
use crate::workload::{Body, Op, User};

const TIMES: usize = 500;
/// Every so many of the objects goes in parts.
const LARGE_EVERY: usize = 25;
/// Some round trips, and the parts of what is written last.
const SECONDS: u64 = 10;

/// A write is one request of the user, and its replica a read and a write one after the other.
const PAUSE: Duration = Duration::from_millis(100);

const KEY: &str = "hot";

/// Puts and deletes; the last that happens is a put.
async fn heat(sim: &Sim) {
    let mut user = User::new(sim.user());
    for number in 0..TIMES {
        let is_large = number % LARGE_EVERY == LARGE_EVERY - 1;
        user.act(&Op::put(KEY, Body::numbered(number), is_large))
            .await;
        user.finish().await;
        sim.pass(PAUSE).await;
        if number + 1 < TIMES {
            user.act(&Op::Mark {
                key: KEY.to_owned(),
            })
            .await;
            sim.pass(PAUSE).await;
        }
    }
}

#[test]
fn a_key_that_comes_and_goes_all_the_time_is_up_to_date_seconds_after_its_last_event() {
    for is_shared in [false, true] {
        simulate(1, async |mut sim| {
            if is_shared {
                sim.share();
            }
            sim.post_everything();
            sim.sqs.quirks(
                QUEUE,
                Quirks {
                    reorder: true,
                    ..Quirks::default()
                },
            );
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            heat(&sim).await;
            let mut waited = 0;
            while sim.shown(ARCHIVE, KEY) != sim.shown(SOURCE, KEY) {
                assert!(
                    waited < SECONDS,
                    "shared: {is_shared}, the last state is not there after {waited} s"
                );
                sim.pass(Duration::from_secs(1)).await;
                waited += 1;
            }
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.s3.history(ARCHIVE, KEY).len(), 2 * TIMES - 1);
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        });
    }
}
