//! What a rule may use of the network, in the world's time.

mod bandwidth;
mod beside;
mod turns;

use std::time::Duration;

use replicator_fakes::journal::Entry;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

const TEN_SECONDS: Duration = Duration::from_secs(10);

#[test]
fn requests_are_as_many_as_the_rule_says_within_5_percent_over_ten_seconds() {
    simulate(2, async |mut sim| {
        let rule = "limits = { requests_per_second = 20 }";
        let requests = used(&mut sim, rule, (600, 10), |_| 1).await;
        assert!(
            requests.abs_diff(200) <= 10,
            "{requests} writes in ten seconds instead of 200"
        );
    });
}

#[test]
fn what_a_destination_may_be_asked_holds_for_all_rules_together() {
    simulate(8, async |mut sim| {
        sim.post_everything();
        for number in 0..600 {
            let prefix = if number % 3 == 0 { "small" } else { "large" };
            let put = sim
                .user()
                .put_object()
                .bucket(SOURCE)
                .key(format!("{prefix}/{number}"));
            put.body(b"some".to_vec().into()).send().await.unwrap();
        }
        let daemon = fleet::lone(&mut sim, &sharing("requests_per_second = 20"), AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let writes = in_ten_seconds(&sim, 600);
        assert!(
            writes.len().abs_diff(200) <= 10,
            "{} writes in ten seconds instead of 200",
            writes.len()
        );
    });
}

#[test]
fn another_limit_counts_at_once_for_what_waits_already_and_no_work_is_lost() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        // More than eight minutes' worth under the first limit, and four seconds' under the second.
        sim.fill("", 120, 256 << 10).await;
        let limited = |limit: &str| format!("limits = {{ bandwidth = \"{limit}\" }}");
        let daemon = fleet::lone(&mut sim, &limited("64KiB/s"), AWS).await;
        sim.pass(TEN_SECONDS).await;
        let slow = sim.net.journal().writes(ARCHIVE).len();
        assert!(slow <= 3, "{slow} writes in ten seconds");
        daemon.reload_rules(&fleet::settings(&mut sim, &limited("8MiB/s"), AWS));
        sim.pass(TEN_SECONDS).await;
        assert_eq!(sim.net.journal().writes(ARCHIVE).len(), 120);
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.keys_ever(ARCHIVE).len(), 120);
    });
}

/// Writes two rules for one destination, by prefix, and what both together may use.
fn sharing(limits: &str) -> String {
    format!(
        r#"filter = {{ prefix = "large/" }}
[[rules]]
id = "small"
source = {{ account = "source", bucket = "{SOURCE}" }}
destination = {{ account = "archive", bucket = "{ARCHIVE}", limits = {{ {limits} }} }}
since = "2020-01-01T00:00:00Z"
delete_markers = true
filter = {{ prefix = "small/" }}
"#
    )
}

/// Replicates so many objects of a size under a rule, and adds up what the writes of ten seconds
/// used.
async fn used(
    sim: &mut Sim,
    rule: &str,
    (objects, bytes): (usize, usize),
    of: impl Fn(&Entry) -> usize,
) -> usize {
    sim.post_everything();
    sim.fill("", objects, bytes).await;
    let daemon = fleet::lone(sim, rule, AWS).await;
    sim.drained().await;
    daemon.stop().await;
    in_ten_seconds(sim, objects).iter().map(of).sum()
}

/// Returns the writes of ten seconds, from the third second on: at first a second's worth of
/// requests goes through at once.
fn in_ten_seconds(sim: &Sim, objects: usize) -> Vec<Entry> {
    let mut writes = sim.net.journal().writes(ARCHIVE);
    assert_eq!(writes.len(), objects);
    let first = writes.first().unwrap().sent + Duration::from_secs(2);
    writes.retain(|write| write.sent >= first && write.sent < first + TEN_SECONDS);
    writes
}
