//! Connections over TCP serve one request after the other: what they are counted by is how much
//! goes on at once.

use std::time::Duration;

use futures::future::join_all;
use replicator_fakes::wire;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::{HANG, spawn};
use crate::sim::{ARCHIVE, Sim};

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_come_one_after_the_other_share_a_few_connections() {
    // Polls, deletions, and one each for what a key asks of both sides; the rest is for chance.
    let opened = connections(30, 1, 1).await;
    assert!(opened <= 16, "{opened} connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_objects_at_once_open_no_more_connections_than_there_are_tasks() {
    let opened = connections(2, 100, 4).await;
    assert!(opened <= 2 * TASKS + 16, "{opened} connections");
}

// What one destination is asked for at once; each task has one request on its way.
const TASKS: usize = 128;

/// Replicates what so many users write at once, so many times, and counts the connections that the
/// daemon opened for all of it.
async fn connections(rounds: usize, users: usize, objects: usize) -> usize {
    let sim = Sim::in_real_time();
    sim.post_everything();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let served = wire::serve(listener, sim.net.clone());
    let replicated = async {
        let daemon = spawn(&sim, "daemon-0", &endpoint, None);
        for round in 1..=rounds {
            let names: Vec<String> = (0..users).map(|user| format!("{round}-{user}-")).collect();
            join_all(names.iter().map(|name| sim.fill(name, objects, 7))).await;
            while sim.s3.keys(ARCHIVE).len() < round * users * objects {
                sleep(Duration::from_millis(5)).await;
            }
        }
        drop(daemon);
    };
    tokio::select! {
        in_time = timeout(HANG, replicated) => in_time.expect("all arrive"),
        never = served => match never {},
    }
    sim.net.connections()
}
