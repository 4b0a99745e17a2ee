//! A mistake in a rule shows in one call of `status` and one line of the log; a rule that is paused
//! by command stays so over a restart and loses nothing.

use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::localstack::SOURCE;
use crate::world::{World, eventually};

/// Runs a command that has to end well, and returns what it printed.
async fn told(config: &Config, command: &[&str]) -> String {
    let output = run(command, &config.path).await;
    assert!(output.status.success(), "{}", printed(&output));
    printed(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typo_in_a_filter_shows_in_the_status_and_once_in_the_log() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0] = world.rule("orders", "invoces/");
    let daemon = Daemon::spawn(&config).ready().await;
    for key in ["invoices/1", "invoices/2", "invoices/3"] {
        world.put(key, key).await;
    }
    world.drained(&daemon).await;
    let status = told(&config, &["status"]).await;
    let line = status.lines().find(|line| line.contains(" prefix "));
    let words: Vec<&str> = line.expect("a count").split_whitespace().collect();
    assert_eq!(words, ["orders", "prefix", "3"], "{status}");
    assert!(
        status.contains("never"),
        "no event was the rule's: {status}"
    );
    let log = daemon.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("not replicated, no rule takes it"))
        .collect();
    let wanted = [
        "WARN",
        "rule=\"orders\"",
        "cause=\"prefix\"",
        "key=\"invoices/",
    ];
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        wanted.iter().all(|word| lines[0].contains(word)),
        "{lines:?}"
    );
    let labels = [("rule", "orders"), ("cause", "prefix")];
    assert_eq!(daemon.metrics().await.sum("unmatched_total", &labels), 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_is_paused_by_command_stays_paused_until_it_is_resumed() {
    let world = World::new().await;
    let config = world.config();
    let daemon = Daemon::spawn(&config).ready().await;
    world.put("before", "body").await;
    world.drained(&daemon).await;
    let unknown = run(&["pause", "--rule", "order"], &config.path).await;
    assert!(printed(&unknown).contains("did you mean \"orders\"?"));
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        told(&config, &["pause", "--rule", "orders"])
            .await
            .contains("is paused:")
    );
    let again = told(&config, &["pause", "--rule", "orders"]).await;
    assert!(again.contains("is paused already"), "{again}");
    eventually("the queue is not polled", async || {
        told(&config, &["status"]).await.contains("not polled")
    })
    .await;
    world.put("after", "body").await;
    daemon.kill().await;
    let daemon = Daemon::spawn(&config).ready().await;
    let status = told(&config, &["status"]).await;
    assert!(status.contains("rule orders: paused since 20"), "{status}");
    let paused = [("rule", "orders")];
    assert_eq!(daemon.metrics().await.sum("rule_paused", &paused), 1.0);
    assert!(!world.replica_exists("after").await);
    assert!(
        told(&config, &["resume", "--rule", "orders"])
            .await
            .contains("is resumed")
    );
    world.drained(&daemon).await;
    assert_eq!(daemon.metrics().await.sum("rule_paused", &paused), 0.0);
    assert_eq!(world.assert_equal().await["replicas"], 2);
    let delete = SOURCE
        .s3()
        .delete_object()
        .bucket(&world.source)
        .key("after");
    delete.send().await.unwrap();
    world.drained(&daemon).await;
    world.assert_equal().await;
}
