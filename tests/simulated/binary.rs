//! The real binary, over TCP and in real time, killed by kill -9 at every place around every step:
//! alone with its disk, and without it beside a second daemon that goes on.

mod connections;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use futures::{StreamExt, stream};
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::wire;
use s3_replicator::failpoint::{self, Failpoint, Step};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::deaths::Toll;
use crate::fleet;
use crate::judge::{self, Expect};
use crate::sim::{ARCHIVE, DEAD, QUEUE, SOURCE, Sim, WORK};

// Mostly they wait: for visibility to run out, for a start after a kill, and for quiet.
const WORLDS: usize = 32;

// Against hanging only.
const HANG: Duration = Duration::from_secs(300);

// How a failpoint ends its process.
const SIGKILL: i32 = 9;

// Each task tries three times, and five failures in a row are enough to open the circuit of the
// destination; the rest is for lists, and for the probes that find out when it is back.
const DROPPED: u64 = 24;

// Enough to see what a daemon waits for.
const LOG_LINES: usize = 40;

const DAEMONS: [&str; 2] = ["daemon-0", "daemon-1"];
const SECRET: &str = "fR8sKq2ZtY6mWc4JxVb9NhDg3LpE7uAo1Ti5";

/// What befalls the daemon beside its death. One that is alone and has lost its disk does nothing
/// that the binary could do otherwise than the simulated daemon: see `crashes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Alone,
    DiskLostBesideAnother,
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_place_breaks_no_promise() {
    let fates = [Fate::Alone, Fate::DiskLostBesideAnother];
    let all: Vec<(Failpoint, Fate)> = Failpoint::all_places()
        .flat_map(|at| fates.map(|fate| (at, fate)))
        .collect();
    let told: Vec<_> = stream::iter(all)
        .map(|(at, fate)| async move { (at, fate, Box::pin(play(at, fate)).await) })
        .buffer_unordered(WORLDS)
        .collect()
        .await;
    let toll = |wanted: Fate| {
        let mut toll = Toll::default();
        for (at, fate, (died, wrong)) in told.iter().filter(|(_, fate, _)| *fate == wanted) {
            let death = died.then_some(at);
            toll.add(format_args!("{at} {fate:?}"), death, wrong.iter().cloned());
        }
        toll
    };
    toll(Fate::Alone).assert_complete(Failpoint::all_places());
    // Which of the two gets what is for the queue to say.
    let beside = toll(Fate::DiskLostBesideAnother);
    beside.assert_clean();
    assert!(
        beside.places_met() * 4 > Failpoint::all_places().count(),
        "only {} died beside another",
        beside.places_met()
    );
}

/// Plays one life and what comes after it; says whether there was a death, and what is wrong.
async fn play(at: Failpoint, fate: Fate) -> (bool, Vec<String>) {
    let mut sim = Sim::in_real_time();
    if fate == Fate::DiskLostBesideAnother || at.step == Step::Route {
        sim.share();
    }
    for name in DAEMONS {
        fleet::leave_as_stopped(&sim.dir.path().join(name));
    }
    sim.post_everything();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let served = wire::serve(listener, sim.net.clone());
    script(&sim, at);
    let told = async {
        let mut first = spawn(&sim, "daemon-0", &endpoint, Some(at));
        let second =
            (fate == Fate::DiskLostBesideAnother).then(|| spawn(&sim, "daemon-1", &endpoint, None));
        use_the_source(&sim).await;
        let died = tokio::select! {
            ended = first.wait() => match ended.unwrap().signal() {
                Some(SIGKILL) => true,
                other => return (false, vec![format!("ends by itself: signal {other:?}\n{}", logs(&sim))]),
            },
            // Waited for: until it is gone it has its ledger locked, and its successor cannot
            // start.
            () = drained(&sim) => first.kill().await.map(|()| false).unwrap(),
        };
        if fate == Fate::DiskLostBesideAnother {
            std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
        }
        let mut again = spawn(&sim, "daemon-0", &endpoint, None);
        tokio::select! {
            () = redriven(&sim) => {}
            ended = again.wait() => return (died, vec![format!("ends when started again: {ended:?}\n{}", logs(&sim))]),
        }
        drop((again, second));
        let is_forgetful = died && (fate == Fate::DiskLostBesideAnother || at == fleet::NAMING);
        let forgetful = [is_forgetful, false, false, false];
        let expect = Expect {
            version_deletes: true,
            forgetful,
            ..Expect::IN_DOUBT
        };
        let wrong = judge::judge(&sim, expect).into_iter();
        (died, wrong.chain(leak(&sim)).collect())
    };
    tokio::select! {
        told = timeout(HANG, told) => told.unwrap_or_else(|_| {
            (false, vec![format!("hangs: {:?}\n{}", sim.sqs.depth(QUEUE), logs(&sim))])
        }),
        never = served => match never {},
    }
}

/// Lets go wrong what leads to this place.
fn script(sim: &Sim, at: Failpoint) {
    let faults = sim.net.faults();
    // The first write is refused permanently, so that something is parked.
    let parked = Place::s3("PutObject").bucket(ARCHIVE).key("parked");
    let denied = Effect::refuse(403, "AccessDenied");
    faults.add(Fault::new("refused", parked, denied).times(1));
    // The first upload cannot be completed, so that it is given up.
    let complete = Place::s3("CompleteMultipartUpload").bucket(ARCHIVE);
    let conflict = Effect::refuse(409, "ConditionalRequestConflict");
    faults.add(Fault::new("conflict", complete, conflict).times(1));
    if at.step == Step::Release {
        // The destination does not answer for a moment: what waits for it is given back to the
        // queue.
        let looks = Place::s3("HeadObject")
            .or("ListObjectVersions")
            .bucket(ARCHIVE)
            .client("daemon-0");
        faults.add(Fault::new("hiccup", looks, Effect::Drop).times(DROPPED));
    }
}

/// Does a little of everything.
async fn use_the_source(sim: &Sim) {
    let user = sim.user();
    sim.put("parked", b"one").await;
    sim.put("a", b"one").await;
    sim.put("a", b"two").await;
    sim.put("a", b"two").await;
    sim.delete("a").await;
    sim.put("a", b"three").await;
    let large = user.put_object().bucket(SOURCE).key("large");
    let large = large.body(vec![b'x'; (8 << 20) + 1].into());
    large.send().await.unwrap();
    sim.put("b", b"gone").await;
    let gone = sim.newest("b");
    sim.put("b", b"kept").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tag = aws_sdk_s3::types::Tag::builder()
        .key("tier")
        .value("gold")
        .build()
        .unwrap();
    let tagging = aws_sdk_s3::types::Tagging::builder()
        .tag_set(tag)
        .build()
        .unwrap();
    let put = user.put_object_tagging().bucket(SOURCE).key("b");
    put.tagging(tagging).send().await.unwrap();
    sim.purge("b", &gone).await;
}

/// Waits for all work to be done, and sends back what was parked, as an operator does after the
/// cause has gone.
async fn redriven(sim: &Sim) {
    drained(sim).await;
    for message in sim.sqs.messages(DEAD) {
        sim.sqs.send(QUEUE, message.body, Duration::ZERO);
    }
    drained(sim).await;
}

async fn drained(sim: &Sim) {
    let mut quiet = 0;
    while quiet < 4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        quiet = if sim.waiting() == 0 { quiet + 1 } else { 0 };
    }
}

fn spawn(sim: &Sim, name: &str, endpoint: &str, at: Option<Failpoint>) -> Child {
    let binary =
        std::env::var("S3_REPLICATOR_BIN").expect("S3_REPLICATOR_BIN is not set: run `make test`");
    let mut command = Command::new(binary);
    command
        .arg("run")
        .arg("--config")
        .arg(config(sim, name, endpoint))
        .env_clear();
    command
        .env("AWS_ACCESS_KEY_ID", name)
        .env("AWS_SECRET_ACCESS_KEY", SECRET);
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(at.map(|at| (failpoint::VARIABLE, at.to_string())));
    let log = File::options()
        .create(true)
        .append(true)
        .open(sim.dir.path().join(format!("{name}.log")))
        .unwrap();
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Finds the secret key in a log.
fn leak(sim: &Sim) -> Option<String> {
    let mut told = DAEMONS.iter().map(|name| log(sim, name));
    let holds = told.any(|text| text.contains(SECRET) || text.contains("X-Amz-Signature="));
    holds.then(|| "a log holds a secret".to_owned())
}

fn log(sim: &Sim, name: &str) -> String {
    std::fs::read_to_string(sim.dir.path().join(format!("{name}.log"))).unwrap_or_default()
}

/// Returns the end of what each daemon told.
fn logs(sim: &Sim) -> String {
    let told = DAEMONS.map(|name| {
        let text = log(sim, name);
        let skipped = text.lines().count().saturating_sub(LOG_LINES);
        text.lines()
            .skip(skipped)
            .map(|line| format!("  {name}: {line}\n"))
            .collect::<String>()
    });
    told.concat()
}

fn config(sim: &Sim, name: &str, endpoint: &str) -> PathBuf {
    let path = sim.dir.path().join(format!("{name}.toml"));
    let account = format!("region = \"eu-west-1\"\nendpoint = \"{endpoint}\"\npath_style = true\n");
    let work = if sim.is_shared {
        format!("work_queue = \"{endpoint}/000000000000/{WORK}\"\n")
    } else {
        String::new()
    };
    let text = format!(
        "state_dir = \"{}\"\nlisten = \"127.0.0.1:0\"\nmemory = \"64MiB\"\n\n[accounts.source]\n{account}\n[accounts.archive]\n{account}\n\
         [[queues]]\nurl = \"{endpoint}/000000000000/{QUEUE}\"\naccount = \"source\"\nvisibility_timeout = \"6s\"\n\
         dead_letter_url = \"{endpoint}/000000000000/{DEAD}\"\n{work}\n\
         [[rules]]\nid = \"orders\"\nsource = {{ account = \"source\", bucket = \"orders\" }}\n\
         destination = {{ account = \"archive\", bucket = \"orders-replica\" }}\nsince = \"2020-01-01T00:00:00Z\"\n\
         delete_markers = true\nversion_deletes = true\nversion_delete_delay = \"1s\"\n",
        sim.dir.path().join(name).display()
    );
    std::fs::write(&path, text).unwrap();
    path
}
