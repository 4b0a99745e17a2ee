//! The unit is one that systemd understands and finds confined, and the daemon tells systemd what
//! the unit lets it wait for.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::world::daemon::{Daemon, binary, printed};
use crate::world::oracle::root;
use crate::world::{HANG, World, secrets};

const INSTALLED: &str = "/usr/local/bin/s3-replicator";

/// What is told apart by the release of systemd that is here.
const TYPE_UNKNOWN: &str = "Failed to parse service type, ignoring: notify-reload";
const TYPE_KNOWN_SINCE: u32 = 253;

#[test]
fn systemd_understands_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s3-replicator.service");
    fs::write(&file, unit().replace(INSTALLED, &binary())).unwrap();
    let output = analyze(&["verify"], &file);
    let complaints = printed(&output);
    let is_known = release() >= TYPE_KNOWN_SINCE;
    let unexpected: Vec<&str> = complaints
        .lines()
        .filter(|line| is_known || !line.ends_with(TYPE_UNKNOWN))
        .collect();
    assert!(output.status.success(), "{complaints}");
    assert_eq!(unexpected, Vec::<&str>::new());
}

#[test]
fn systemd_finds_the_unit_confined() {
    let arguments = ["security", "--offline=true", "--threshold=20"];
    let output = analyze(
        &arguments,
        &root().join("deploy/systemd/s3-replicator.service"),
    );
    assert!(output.status.success(), "{}", printed(&output));

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s3-replicator.service");
    let unit = unit();
    let open = unit.lines().filter(|line| !line.starts_with("SystemCall"));
    fs::write(&file, open.collect::<Vec<_>>().join("\n")).unwrap();
    assert!(
        !analyze(&arguments, &file).status.success(),
        "it judges nothing"
    );
}

#[test]
fn a_stop_has_more_time_than_a_drain_takes() {
    let minimal = root().join("config/samples/valid/minimal.toml");
    let settings = replicator_config::load(&minimal).unwrap();
    let seconds = unit().lines().find_map(|line| {
        line.strip_prefix("TimeoutStopSec=")?
            .strip_suffix('s')?
            .parse()
            .ok()
    });
    assert!(
        Duration::from_secs(seconds.unwrap()) > settings.drain_timeout + Duration::from_secs(15)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_start_health_reload_and_stop() {
    let world = World::new().await;
    let config = world.config();
    let path = config.path.with_extension("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    let environment = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "1000000"),
    ];
    let daemon = Daemon::spawn_with(&config, &environment);
    assert_eq!(next(&systemd, "READY=").await, "READY=1");
    assert_eq!(next(&systemd, "WATCHDOG=").await, "WATCHDOG=1");
    let mut daemon = daemon.ready().await;
    let line = "STATUS=messages in flight: 0, active keys: 0";
    assert_eq!(next(&systemd, line).await, line);
    assert_eq!(next(&systemd, "WATCHDOG=").await, "WATCHDOG=1");

    let before = clock_gettime(ClockId::Monotonic);
    daemon.signal("HUP").await;
    let reloading = next(&systemd, "RELOADING=").await;
    let since = reloading
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .unwrap();
    let since = Duration::from_micros(since.parse().unwrap());
    assert!(
        since >= Duration::try_from(before).unwrap(),
        "{since:?} is before the signal"
    );
    assert_eq!(next(&systemd, "READY=").await, "READY=1");

    fs::write(&config.path, "surprise = 1\n").unwrap();
    daemon.signal("HUP").await;
    assert!(
        next(&systemd, "RELOADING=")
            .await
            .starts_with("RELOADING=1\n")
    );
    assert_eq!(
        next(&systemd, "READY=").await,
        "READY=1",
        "the old rules stay"
    );

    daemon.signal("TERM").await;
    assert_eq!(
        next(&systemd, "STOPPING=").await,
        "STOPPING=1\nSTATUS=draining"
    );
    // From here on nothing reads what it says, which must not hold it up.
    assert!(daemon.exit().await.success());
}

/// Returns the next notification that begins like this.
async fn next(systemd: &UnixDatagram, begin: &str) -> String {
    let mut buffer = vec![0; 4096];
    let found = async {
        loop {
            let len = systemd.recv(&mut buffer).await.unwrap();
            let text = str::from_utf8(&buffer[..len]).unwrap().trim_end();
            secrets::assert_none_in("what systemd is told", text);
            if text.starts_with(begin) {
                return text.to_owned();
            }
        }
    };
    timeout(HANG, found).await.expect("systemd is told")
}

fn unit() -> String {
    fs::read_to_string(root().join("deploy/systemd/s3-replicator.service")).unwrap()
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg(unit).env("SYSTEMD_COLORS", "0");
    command
        .output()
        .expect("systemd-analyze runs: `deploy/local/setup` installs it")
}

/// Returns the release of systemd, as `systemd 252 (252.39-1~deb12u2)` has it.
fn release() -> u32 {
    let output = Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .unwrap();
    let text = printed(&output);
    let number = text.split_whitespace().nth(1).unwrap();
    let digits = number.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    digits.parse().unwrap()
}
