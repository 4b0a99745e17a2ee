//! Answers without an end or in crumbs, dates that cannot be true, bodies that drip, connections
//! that fall silent. None takes more memory than a daemon has, and none keeps others waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::world::config::Config;
use crate::world::daemon::{self, Daemon};
use crate::world::eventually;
use crate::world::hostile::{ARCHIVE, Hostile, Reply, SOURCE};
use crate::world::request::Seen;

// Twice what the bodies may have, for all else; what is without an end takes gigabytes.
const MEMORY_MAX: u64 = 256 << 20;

/// An answer that never ends.
fn endless(piece: &str) -> Reply {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\n\r\n<a>".to_vec();
    let piece = piece.repeat((1 << 20) / piece.len()).into_bytes();
    Reply::Drip {
        head,
        piece,
        every: Duration::ZERO,
        times: usize::MAX,
    }
}

/// Lets the daemon meet such answers, and go on once they are over.
async fn survives(when: impl Fn(&Seen) -> bool + Send + 'static, reply: Reply, times: usize) {
    let (world, met) = (Hostile::new().await, Arc::new(AtomicUsize::new(0)));
    let counted = {
        let met = Arc::clone(&met);
        move |seen: &Seen| when(seen) && met.fetch_add(1, Ordering::Relaxed) < usize::MAX
    };
    world.answer(counted, reply);
    world.answer(
        |seen| seen.is(ARCHIVE, "PutObject"),
        Reply::alter(|answer| answer.remove("x-amz-version-id")),
    );
    for number in 0..20 {
        world.put(&format!("key-{number}"), "content").await;
    }
    let daemon = Daemon::spawn(&world.config()).ready().await;
    eventually("the endless answer was met", async || {
        met.load(Ordering::Relaxed) >= times
    })
    .await;
    world.clear();
    for number in 0..20 {
        world.replicated(&format!("key-{number}")).await;
    }
    assert!(
        daemon.peak_memory_bytes() < MEMORY_MAX,
        "{} MiB",
        daemon.peak_memory_bytes() >> 20
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_never_end_cost_little() {
    for piece in [" ", "<a>", "<Version></Version>"] {
        survives(
            |seen| seen.operation() == "ListObjectVersions",
            endless(piece),
            6,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_the_sdk_that_never_ends_costs_little() {
    for piece in [" ", "<a>"] {
        survives(
            |seen| seen.operation() == "GetBucketVersioning",
            endless(piece),
            3,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_never_end_cost_little() {
    let world = Hostile::new().await;
    world.put("a", "content").await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    world.replicated("a").await;
    world.answer(|seen| seen.operation() == "ReceiveMessage", endless("{"));
    eventually("the endless answer was met", async || world.hits() >= 2).await;
    world.clear();
    world.put("b", "content").await;
    world.replicated("b").await;
    assert!(
        daemon.peak_memory_bytes() < MEMORY_MAX,
        "{} MiB",
        daemon.peak_memory_bytes() >> 20
    );
}

/// A full page of ever new versions of a key, which promises another one.
fn full_page(key: &str, number: usize) -> String {
    let versions: String = (0..1000)
        .map(|at| {
            format!(
                "<DeleteMarker><Key>{key}</Key><VersionId>v{number}-{at}</VersionId><IsLatest>false</IsLatest>\
                 <LastModified>2026-01-02T03:04:05.000Z</LastModified></DeleteMarker>"
            )
        })
        .collect();
    format!(
        "<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>{key}</NextKeyMarker>\
         <NextVersionIdMarker>v{number}</NextVersionIdMarker>{versions}</ListVersionsResult>"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_ever_more_pages_is_parked_by_name() {
    let world = Hostile::new().await;
    let pages = AtomicUsize::new(0);
    world.answer(
        |seen| seen.is(SOURCE, "ListObjectVersions"),
        Reply::alter(move |answer| {
            answer.body = full_page("endless", pages.fetch_add(1, Ordering::Relaxed)).into_bytes();
        }),
    );
    world.put("endless", "content").await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    let parked = [("rule", "orders"), ("reason", "KeyVersionsTooMany")];
    eventually("the key is parked", async || {
        daemon.metrics().await.sum("parked", &parked) == 1.0
    })
    .await;
    world.clear();
    world.put("after", "content").await;
    world.replicated("after").await;
    assert!(
        daemon.peak_memory_bytes() < MEMORY_MAX,
        "{} MiB",
        daemon.peak_memory_bytes() >> 20
    );
}

/// Lets a GET of a version be answered in chunks of one byte each.
fn in_crumbs(world: &Hostile, key: &'static str, version: &str, body: &[u8]) {
    let entry = world.s3.history(SOURCE, key);
    let etag = &entry
        .last()
        .and_then(|entry| entry.object.as_ref())
        .unwrap()
        .etag;
    let head = format!(
        "HTTP/1.1 200 OK\r\netag: \"{etag}\"\r\nx-amz-version-id: {version}\r\ncontent-type: text/plain\r\n\
         last-modified: Fri, 02 Jan 2026 03:04:05 GMT\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let crumbs = body
        .iter()
        .flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    let answer = head
        .into_bytes()
        .into_iter()
        .chain(crumbs)
        .chain(*b"0\r\n\r\n")
        .collect();
    world.answer(
        move |seen| seen.is(SOURCE, "GetObject") && seen.key == key,
        Reply::Raw(answer),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_crumbs_cost_what_they_hold() {
    const KEYS: [&str; 3] = ["one", "two", "three"];
    let world = Hostile::new().await;
    let body = vec![b'x'; 3 << 20];
    for key in KEYS {
        let version = world.put(key, body.clone()).await;
        in_crumbs(&world, key, &version, &body);
    }
    let daemon = Daemon::spawn(&world.config()).ready().await;
    for key in KEYS {
        world.replicated(key).await;
    }
    assert_eq!(world.hits(), KEYS.len());
    assert!(
        daemon.peak_memory_bytes() < MEMORY_MAX,
        "{} MiB",
        daemon.peak_memory_bytes() >> 20
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_say_much_are_kept_in_short() {
    const KEYS: usize = 300;
    let world = Hostile::new().await;
    let refusal = Reply::refusal("403 Forbidden", "AccessDenied", &"no ".repeat(20_000));
    world.answer(|seen| seen.is(ARCHIVE, "PutObject"), refusal);
    for number in 0..KEYS {
        world.put(&format!("key-{number}"), "content").await;
    }
    let config = world.config();
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained().await;
    let listed = daemon::printed(&daemon::run(&["failures", "list", "--json"], &config.path).await);
    assert!(
        listed.len() < KEYS * 2048,
        "{} bytes are listed",
        listed.len()
    );
    assert!(
        daemon.log().len() < KEYS * 2 * 2048,
        "{} bytes are logged",
        daemon.log().len()
    );
    assert!(
        daemon.peak_memory_bytes() < MEMORY_MAX,
        "{} MiB",
        daemon.peak_memory_bytes() >> 20
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_at_the_end_of_time_is_not_used() {
    const END: &str = "Fri, 31 Dec 9999 23:59:59 GMT";
    let world = Hostile::new().await;
    let skewed = "<Error><Code>RequestTimeTooSkewed</Code><Message>no</Message></Error>";
    let skewed = Reply::whole("403 Forbidden", &format!("date: {END}\r\n"), skewed);
    for operation in [
        "PutObject",
        "HeadObject",
        "ListObjectVersions",
        "CreateMultipartUpload",
    ] {
        world.answer_times(1, move |seen| seen.operation() == operation, skewed.clone());
    }
    world.answer(|_| true, Reply::alter(|answer| answer.set("date", END)));
    world.put("small", "content").await;
    world.put("large", vec![7; 12 << 20]).await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    for key in ["small", "large"] {
        world.replicated(key).await;
    }
    let told = daemon.log().matches("more than a day apart").count();
    assert!(
        (1..=2).contains(&told),
        "once for each account, and not {told} times"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_left_and_gone_on_with() {
    let world = Hostile::new().await;
    let version = world.put("a", vec![b'x'; 1 << 20]).await;
    let head = format!(
        "HTTP/1.1 200 OK\r\nx-amz-version-id: {version}\r\ncontent-length: 1048576\r\n\r\n"
    )
    .into_bytes();
    let drip = Reply::Drip {
        head,
        piece: b"x".to_vec(),
        every: Duration::from_secs(5),
        times: usize::MAX,
    };
    world.answer_times(1, |seen| seen.is(SOURCE, "GetObject"), drip);
    let _daemon = Daemon::spawn(&world.config()).ready().await;
    world.replicated("a").await;
    assert_eq!(world.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_and_twenty_entries_of_metadata_arrive() {
    let world = Hostile::new().await;
    let put = world
        .user()
        .put_object()
        .bucket(SOURCE)
        .key("a")
        .body(ByteStream::from_static(b"content"));
    let put = (0..120).fold(put, |put, number| {
        put.metadata(format!("n{number}"), format!("v{number}"))
    });
    put.send().await.unwrap();
    let _daemon = Daemon::spawn(&world.config()).ready().await;
    world.replicated("a").await;
    let metadata = |bucket| {
        let history = world.s3.history(bucket, "a");
        let headers = history
            .last()
            .and_then(|entry| entry.object.clone())
            .unwrap()
            .headers;
        headers
            .into_iter()
            .filter(|(name, _)| name.starts_with("x-amz-meta-n"))
            .collect::<Vec<_>>()
    };
    assert_eq!(metadata(SOURCE).len(), 120);
    assert_eq!(metadata(ARCHIVE), metadata(SOURCE));
}

/// Passes bytes on, until the connections that are open fall silent: they stay open, and nothing
/// comes through.
struct Relay {
    address: String,
    silent: watch::Sender<usize>,
    _connections: JoinSet<()>,
}

impl Relay {
    async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let upstream = Arc::<str>::from(url.strip_prefix("http://").unwrap());
        let (silent, watched) = watch::channel(0);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                open.spawn(pass(near, Arc::clone(&upstream), watched.clone()));
            }
        });
        Self {
            address,
            silent,
            _connections: connections,
        }
    }

    fn fall_silent(&self) {
        self.silent.send_modify(|times| *times += 1);
    }
}

async fn pass(mut near: TcpStream, upstream: Arc<str>, mut silent: watch::Receiver<usize>) {
    silent.mark_unchanged();
    let Ok(mut far) = TcpStream::connect(&*upstream).await else {
        return;
    };
    tokio::select! {
        _ended = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _silent = silent.changed() => std::future::pending().await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fell_silent_in_the_pool_delays_nothing() {
    let world = Hostile::new().await;
    let relay = Relay::to(&world.url).await;
    let config = Config {
        endpoint: relay.address.clone(),
        ..world.config()
    };
    world.put("a", "content").await;
    let _daemon = Daemon::spawn(&config).ready().await;
    world.replicated("a").await;
    world.drained().await;
    relay.fall_silent();
    // Longer than a connection stays in the pool, and shorter than it used to.
    sleep(Duration::from_secs(7)).await;
    world.put("b", "content").await;
    let hang = Duration::from_secs(45);
    assert!(
        timeout(hang, world.replicated("b")).await.is_ok(),
        "it waited on a connection that is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_core_is_dumped() {
    let world = Hostile::new().await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    let limits = daemon.proc("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().filter(|word| *word == "0").count(),
        2,
        "{core}"
    );
}
