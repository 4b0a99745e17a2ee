//! The status server among clients that mean harm: they hold up no work, read nothing and order
//! nothing.

use std::time::Duration;

use futures::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::world::HANG;
use crate::world::daemon::Daemon;
use crate::world::hostile::{ARCHIVE, Hostile, Reply};

/// More than the daemon may have open.
const HALF_SENT: usize = 1100;

/// Sends the head of a request and returns what comes back.
async fn ask(listen: &str, head: &str) -> String {
    let mut stream = TcpStream::connect(listen).await.unwrap();
    stream
        .write_all(format!("{head}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    timeout(HANG, stream.read_to_string(&mut answer))
        .await
        .expect("an answer")
        .unwrap();
    answer
}

fn is(answer: &str, status: u16) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status} "))
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_requests_keep_neither_work_nor_scrapes_out() {
    let world = Hostile::new().await;
    let config = world.config();
    let daemon = Daemon::spawn_under("ulimit -n 1024", &config).ready().await;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
    let mut held = Vec::new();
    for _ in 0..HALF_SENT {
        let mut stream = TcpStream::connect(&config.listen).await.unwrap();
        // One that was turned away already does not take it.
        let _turned_away = stream
            .write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nX-Half")
            .await;
        held.push(stream);
    }
    for number in 0..20 {
        world.put(&format!("{number}"), b"one".to_vec()).await;
    }
    for number in 0..20 {
        world.replicated(&format!("{number}")).await;
    }
    world.drained().await;
    assert!(is(
        &ask(&config.listen, "GET /readyz HTTP/1.1\r\nHost: localhost").await,
        200
    ));
    assert!(!daemon.log().contains("Too many open files"));
    // They are given up in the end, and not only for others.
    let ended = held.iter_mut().map(|stream| async {
        let mut rest = Vec::new();
        let _reset = timeout(HANG, stream.read_to_end(&mut rest))
            .await
            .expect("the daemon hangs up");
    });
    join_all(ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_made_to_lead_here_reads_nothing() {
    let world = Hostile::new().await;
    let mut config = world.config();
    config.settings = "listen_hosts = [\"replicator.internal\"]".to_owned();
    let _daemon = Daemon::spawn(&config).ready().await;
    for path in ["/", "/failures", "/status", "/metrics", "/readyz"] {
        let answer = ask(
            &config.listen,
            &format!("GET {path} HTTP/1.1\r\nHost: evil.example"),
        )
        .await;
        assert!(
            is(&answer, 421) && answer.contains("listen_hosts"),
            "{path}: {answer}"
        );
        let answer = ask(
            &config.listen,
            &format!("GET http://evil.example{path} HTTP/1.1\r\nHost: localhost"),
        )
        .await;
        assert!(is(&answer, 421), "{path}: {answer}");
        for ours in ["replicator.internal:9478", "127.0.0.1", &config.listen] {
            assert!(
                is(
                    &ask(
                        &config.listen,
                        &format!("GET {path} HTTP/1.1\r\nHost: {ours}")
                    )
                    .await,
                    200
                ),
                "{ours}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_posts_retries_nothing() {
    let world = Hostile::new().await;
    let config = world.config();
    world.answer(
        |seen| seen.is(ARCHIVE, "PutObject"),
        Reply::refusal("403 Forbidden", "AccessDenied", "scripted"),
    );
    world.put("a", b"one".to_vec()).await;
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained().await;
    world.clear();
    // As a browser sends it for a form on any page.
    let form = "POST /failures/retry?all HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
                Content-Type: application/x-www-form-urlencoded";
    let answer = ask(&config.listen, form).await;
    assert!(
        is(&answer, 403) && answer.contains("x-s3-replicator"),
        "{answer}"
    );
    // Whether a page may send more than that, a browser asks first.
    let asked = "OPTIONS /failures/retry HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
                 Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-s3-replicator";
    assert!(
        !ask(&config.listen, asked)
            .await
            .to_ascii_lowercase()
            .contains("access-control-allow")
    );
    assert_eq!(
        daemon.metrics().await.sum("parked", &[]),
        1.0,
        "nothing was tried again"
    );
    let meant = "POST /failures/retry?all HTTP/1.1\r\nHost: localhost\r\nX-S3-Replicator: 1";
    assert!(is(&ask(&config.listen, meant).await, 200));
    world.replicated("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_descriptors_are_named_at_the_start() {
    let world = Hostile::new().await;
    let mut daemon = Daemon::spawn_under("ulimit -n 128", &world.config());
    let status = timeout(Duration::from_secs(60), daemon.exit())
        .await
        .expect("it does not go on without");
    assert_eq!(status.code(), Some(1));
    let log = daemon.log();
    assert!(
        log.contains("at most 128 files") && log.contains("LimitNOFILE"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_names_the_owner_of_the_bucket() {
    let world = Hostile::new().await;
    let mut config = world.config();
    config.account_keys = "owner = \"222222222222\"".to_owned();
    world.put("small", b"one".to_vec()).await;
    world.put("large", vec![7; 20 << 20]).await;
    let _daemon = Daemon::spawn(&config).ready().await;
    world.replicated("small").await;
    world.replicated("large").await;
    world
        .user()
        .delete_object()
        .bucket(crate::world::hostile::SOURCE)
        .key("small")
        .send()
        .await
        .unwrap();
    world.replicated("small").await;
    world.drained().await;
    let journal = world.journal();
    let (s3, others): (Vec<_>, Vec<_>) = journal.iter().partition(|seen| seen.service == "s3");
    let named = |operation| {
        s3.iter()
            .filter(move |seen| seen.operation() == operation)
            .count()
    };
    for operation in [
        "GetBucketVersioning",
        "ListObjectVersions",
        "GetObject",
        "PutObject",
        "CreateMultipartUpload",
    ] {
        assert!(named(operation) > 0, "{operation} was not sent");
    }
    for seen in s3 {
        assert_eq!(
            seen.header("x-amz-expected-bucket-owner"),
            "222222222222",
            "{}",
            seen.operation()
        );
    }
    assert!(
        others
            .iter()
            .all(|seen| seen.header("x-amz-expected-bucket-owner").is_empty())
    );
}
