//! Keys that a destination refuses, or answers in a way that cannot be read: their trouble is their
//! own, and other keys arrive as if nothing was.

use crate::world::daemon::Daemon;
use crate::world::eventually;
use crate::world::hostile::{ARCHIVE, Hostile, Reply};

const BAD: usize = 8;
const INNOCENT: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn a_head_with_more_headers_than_are_read_is_its_keys_own_trouble() {
    let headers: String = (0..5000)
        .map(|number| format!("x-amz-meta-{number}: v\r\n"))
        .collect();
    let reply = Reply::Raw(format!("HTTP/1.1 200 OK\r\n{headers}\r\n").into_bytes());
    let (_world, daemon) = innocents_arrive("PutObject", reply, 1).await;
    assert_eq!(left_alone(&daemon), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_for_now_is_its_keys_own_trouble() {
    let (_world, daemon) = innocents_arrive(
        "PutObject",
        Reply::refusal("400 Bad Request", "BadDigest", "scripted"),
        5,
    )
    .await;
    assert_eq!(left_alone(&daemon), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_always_get_500_let_others_pass_and_are_called_what_they_are() {
    let (_world, daemon) = innocents_arrive(
        "PutObject",
        Reply::refusal("500 Internal", "InternalError", "scripted"),
        1,
    )
    .await;
    let told = left_alone(&daemon);
    assert!(
        told.iter()
            .all(|line| line.contains("answers 500 to PutObject")),
        "{told:?}"
    );
}

/// Fails some keys' requests until there were so many tries for each, and then sees that others
/// arrive beside them.
async fn innocents_arrive(
    operation: &'static str,
    reply: Reply,
    tries: usize,
) -> (Hostile, Daemon) {
    let world = Hostile::new().await;
    world.answer(
        move |seen| seen.is(ARCHIVE, operation) && seen.key.starts_with("bad-"),
        reply,
    );
    for number in 0..BAD {
        world.put(&format!("bad-{number}"), b"one".to_vec()).await;
    }
    let daemon = Daemon::spawn(&world.config()).ready().await;
    eventually("the bad keys were tried", async || {
        world.hits() >= tries * BAD
    })
    .await;
    for number in 0..INNOCENT {
        world
            .put(&format!("innocent-{number}"), b"one".to_vec())
            .await;
    }
    for number in 0..INNOCENT {
        world.replicated(&format!("innocent-{number}")).await;
    }
    assert!(
        daemon.log().contains("attempt failed"),
        "nothing of it is in the log"
    );
    (world, daemon)
}

/// Lists where the log says that a destination is spared.
fn left_alone(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let spared = log
        .lines()
        .filter(|line| line.contains("left alone") || line.contains("does not answer"));
    spared.map(str::to_owned).collect()
}
