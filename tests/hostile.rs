//! Servers, disks and clients that are hostile or merely broken, as the real binary meets them:
//! over TCP, on real files, at a real listener. Nothing is believed that was not proved, and
//! nothing outside stops the daemon.

mod belief;
mod blame;
mod bounds;
mod definite;
mod equal;
mod ledger;
mod listener;
mod terminal;
mod values;

use crate::world::daemon::Daemon;
use crate::world::hostile::{ARCHIVE, Hostile, Reply};

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_proxy_changes_nothing() {
    let world = Hostile::new().await;
    world.put("small", b"one".to_vec()).await;
    world.put("large", vec![7; 12 << 20]).await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    for key in ["small", "large"] {
        world.replicated(key).await;
    }
    world.drained().await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scripted_proxy_is_heard() {
    let world = Hostile::new().await;
    world.answer(
        |seen| seen.is(ARCHIVE, "PutObject"),
        Reply::refusal("403 Forbidden", "AccessDenied", "scripted"),
    );
    world.put("a", b"one".to_vec()).await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    world.drained().await;
    assert_eq!(
        daemon
            .metrics()
            .await
            .sum("parked", &[("reason", "DstPutObjectNotPermitted")]),
        1.0
    );
    assert!(world.hits() > 0 && world.shown(ARCHIVE, "a").is_none());
}
