//! Eight destinations, each with a work queue of its own, of which one is down for an hour while
//! much waits for it: what waits stays untouched, the others are as fast as ever, and then all of
//! it arrives in order.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;
use replicator_fakes::s3::entry::Versioning;

use crate::fleet::{self, rule_text};
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, Sim, WORK, simulate};

const DESTINATIONS: usize = 8;
/// Events for the one that is down, of keys that have several versions: as many as a test has time
/// for.
const BACKLOG: usize = 2_000;
const BACKLOG_KEYS: usize = 500;
/// Objects that go everywhere, one after the other all the time.
const LIVE: usize = 150;
const LIVE_EVERY: Duration = Duration::from_secs(24);
/// Until a circuit is open, and the last of what was in work is given back.
const NOTICED_WITHIN: Duration = Duration::from_secs(300);
/// The longest time between two looks whether a destination is back.
const LOOKS_EVERY: Duration = Duration::from_secs(60);

fn bucket(number: usize) -> String {
    if number == 0 {
        ARCHIVE.to_owned()
    } else {
        format!("orders-replica-{number}")
    }
}

fn queue(number: usize) -> String {
    if number == 0 {
        WORK.to_owned()
    } else {
        format!("work-{number}.fifo")
    }
}

/// Makes the other seven; returns the rest of the first rule, and theirs.
fn others(sim: &mut Sim) -> String {
    sim.share();
    let rules = (1..DESTINATIONS).map(|number| {
        sim.s3.create_bucket(&bucket(number), Versioning::Enabled);
        let url = sim.sqs.create_fifo(&queue(number));
        let rest = format!("work_queue = \"{url}\"\nfilter = {{ prefix = \"live/\" }}");
        rule_text(&format!("orders-{number}"), &bucket(number), &rest)
    });
    rules.collect()
}

fn waiting(sim: &Sim) -> usize {
    let queues = (0..DESTINATIONS)
        .map(queue)
        .chain(std::iter::once(QUEUE.to_owned()));
    let depths = queues.map(|queue| sim.sqs.depth(&queue));
    depths
        .map(|depth| depth.visible + depth.hidden + depth.delayed)
        .sum()
}

/// How often messages of a queue were received so far, by those that are left.
fn receives(sim: &Sim, queue: &str) -> u32 {
    sim.sqs
        .messages(queue)
        .iter()
        .map(|message| message.receives)
        .sum()
}

/// Puts objects that go everywhere for an hour, and those for the first destination alone at its
/// beginning; looks now and then.
async fn an_hour(sim: &Sim, mut look: impl FnMut(&Sim, Duration)) {
    for number in 0..BACKLOG {
        let body = format!("{number}").into_bytes();
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key(format!("backlog/{}", number % BACKLOG_KEYS));
        put.body(body.into()).send().await.unwrap();
    }
    let began = tokio::time::Instant::now();
    for number in 0..LIVE {
        sim.put(&format!("live/{number}"), b"live").await;
        sim.pass(LIVE_EVERY).await;
        look(sim, began.elapsed());
    }
}

/// Returns how long it took until what goes everywhere was at the destinations that are not down,
/// shortest first.
fn latencies(sim: &Sim) -> Vec<Duration> {
    let mut all = Vec::new();
    for number in 0..LIVE {
        let key = format!("live/{number}");
        let put = sim.s3.history(SOURCE, &key)[0].landed;
        let replicas =
            (1..DESTINATIONS).map(|number| sim.s3.history(&bucket(number), &key)[0].landed);
        all.extend(replicas.map(|landed| landed.duration_since(put).unwrap()));
        let versions = (1..DESTINATIONS).map(|number| sim.s3.history(&bucket(number), &key).len());
        assert!(versions.eq([1; DESTINATIONS - 1]), "{key}");
    }
    all.sort_unstable();
    all
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100]
}

/// Lives through the hour, with the first destination down or not; returns how long it took to
/// reach the others.
fn live_through(is_down: bool) -> Vec<Duration> {
    simulate(1, async |mut sim| {
        sim.post_everything();
        let rules = others(&mut sim);
        let daemon = fleet::lone(&mut sim, &rules, AWS).await;
        if is_down {
            sim.net.faults().add(Fault::new(
                "down",
                Place::default().bucket(ARCHIVE),
                Effect::Unreachable,
            ));
        }
        let mut seen = Vec::new();
        an_hour(&sim, |sim, since| seen.push((since, receives(sim, WORK)))).await;
        if is_down {
            assert_untouched(&sim, &seen);
            sim.net.faults().clear("down");
        }
        while waiting(&sim) > 0 {
            sim.pass(Duration::from_secs(5)).await;
        }
        daemon.stop().await;
        assert_eq!(sim.s3.keys(ARCHIVE), sim.s3.keys(SOURCE));
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
        latencies(&sim)
    })
}

/// Sees that what waits is not received, but for the message that finds out whether the destination
/// is back.
fn assert_untouched(sim: &Sim, seen: &[(Duration, u32)]) {
    let (began, before) = seen
        .iter()
        .find(|(since, _)| *since > NOTICED_WITHIN)
        .unwrap();
    let (ended, after) = seen.last().unwrap();
    let looks = u32::try_from((*ended - *began).as_secs() / LOOKS_EVERY.as_secs()).unwrap();
    assert!(
        after - before <= looks,
        "{} receipts in {:?}",
        after - before,
        *ended - *began
    );
    let touched = sim
        .sqs
        .messages(WORK)
        .iter()
        .filter(|message| message.receives > 0)
        .count();
    assert!(touched < BACKLOG / 10, "{touched} messages were received");
    let polls = |entry: &Entry| {
        entry.call.operation == "ReceiveMessage" && entry.call.bucket.as_deref() == Some(WORK)
    };
    let polls = sim.net.journal().select(polls).len();
    assert!(
        polls < BACKLOG / 10,
        "{polls} polls of a queue that nobody can work for"
    );
}

#[test]
fn one_of_eight_destinations_that_is_down_is_left_alone_and_slows_nobody_down() {
    let (with, without) = (live_through(true), live_through(false));
    assert!(
        p99(&with) <= p99(&without) * 11 / 10,
        "{:?} instead of {:?}",
        p99(&with),
        p99(&without)
    );
}
