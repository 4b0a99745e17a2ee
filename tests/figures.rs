//! What Prometheus and a load balancer see: every metric of the interface, and the two health
//! pages.

use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::{World, eventually};

const METRICS: [&str; 19] = [
    "operations_total",
    "bytes_total",
    "replication_latency_seconds_count",
    "operations_pending",
    "bytes_pending",
    "oldest_pending_seconds",
    "failures_total",
    "parked",
    "requests_total",
    "memory_bytes",
    "queue_messages_total",
    "unmatched_total",
    "last_event_timestamp_seconds",
    "last_replica_timestamp_seconds",
    "oldest_known_seconds",
    "rule_paused",
    "queue_up",
    "last_reload_successful",
    "build_info",
];

// These have no prefix.
const PROCESS_METRICS: [&str; 5] = [
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_interface_tells_of_the_work() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let archive = world.archive.clone();
    let refused = move |seen: &crate::world::request::Seen| {
        seen.is(&archive, "PutObject") && seen.key == "refused"
    };
    faults.script(Fault::AccessDenied, usize::MAX, refused);
    let daemon = Daemon::spawn(&config).ready().await;
    world.put("refused", "body").await;
    world.put("report", "twelve bytes").await;
    world.drained(&daemon).await;
    eventually("a task is parked", async || {
        daemon.metrics().await.sum("parked", &[]) > 0.0
    })
    .await;
    let metrics = daemon.metrics().await;
    let alerted = [
        ("failures_total", ("reason", "ArrivedLate")),
        ("failures_total", ("reason", "StampNotBorneOut")),
        ("failures_total", ("reason", "AnotherDaemonWrites")),
        ("failures_total", ("reason", "NotRouted")),
        ("queue_messages_total", ("outcome", "lease_lost")),
    ];
    for (name, label) in alerted {
        assert!(
            metrics.begins(name, label),
            "an alert would miss the first of {name} {label:?}"
        );
    }
    let missing: Vec<&str> = METRICS
        .into_iter()
        .filter(|name| !metrics.has(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?} are not in {metrics:?}");
    for name in PROCESS_METRICS {
        assert!(metrics.unprefixed(name) > 0.0, "{name} in {metrics:?}");
    }
    let replicated = [
        ("rule", "orders"),
        ("operation", "put"),
        ("outcome", "replicated"),
    ];
    assert_eq!(metrics.sum("operations_total", &replicated), 1.0);
    assert_eq!(metrics.sum("bytes_total", &[("rule", "orders")]), 12.0);
    assert_eq!(
        metrics.sum(
            "parked",
            &[("rule", "orders"), ("reason", "DstPutObjectNotPermitted")]
        ),
        1.0
    );
    assert!(
        metrics.sum(
            "requests_total",
            &[("operation", "PutObject"), ("status", "403")]
        ) > 0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_is_healthy_and_ready() {
    let world = World::new().await;
    let daemon = world.start().await;
    assert_eq!(daemon.page("healthz").await, Some(200));
    assert_eq!(daemon.page("readyz").await, Some(200));
    assert_eq!(daemon.page("nowhere").await, Some(404));
}
