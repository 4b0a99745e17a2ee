//! One to three daemons on one queue, some of which die in the middle of things and come back, with
//! their disk or without.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use replicator_config::Settings;
use replicator_fakes::journal::Journal;
use s3_replicator::admin::Status;
use s3_replicator::failpoint::{Failpoint, Failpoints, Phase, Step};
use s3_replicator::pipeline::{AwsOverride, Daemon, Environment, Role};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::sim::{ARCHIVE, AWS, DEAD, MIRROR, MIRROR_WORK, QUEUE, SOURCE, Sim, WORK};

/// What the daemons are told, and what befalls them.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) daemons: usize,
    /// How often each of them dies.
    pub(crate) crashes: u32,
    /// Where they die; anywhere if nothing is said.
    pub(crate) at: Option<Failpoint>,
    /// A daemon that dies may lose its disk.
    pub(crate) lose_disks: bool,
    /// The rest of the one rule, as the configuration has it.
    pub(crate) rule: String,
    /// A second rule like the first replicates to the other destination.
    pub(crate) mirrored: bool,
    /// Keys of the accounts, as the configuration has them.
    pub(crate) account: String,
}

impl Plan {
    /// One daemon that nothing befalls.
    pub(crate) fn of_one(rule: &str, account: &str) -> Self {
        let (rule, account) = (rule.to_owned(), account.to_owned());
        Self {
            daemons: 1,
            crashes: 0,
            at: None,
            lose_disks: false,
            rule,
            mirrored: false,
            account,
        }
    }
}

/// The lives of one daemon.
#[derive(Debug)]
pub(crate) struct Member {
    config: String,
    state_dir: PathBuf,
    given: AwsOverride,
    journal: Journal,
    rng: Rng,
    plan: Plan,
    role: Role,
}

/// What became of a daemon.
#[derive(Debug)]
pub(crate) struct Fate {
    /// What it said at the end.
    pub(crate) status: Status,
    /// Where it died before.
    pub(crate) deaths: Vec<Failpoint>,
    /// When it died first, as the journal has it.
    pub(crate) died_first: Option<Duration>,
    /// How often its disk was lost.
    pub(crate) lost_disks: u32,
}

/// Within this time what is parked is tried again by itself: the longest pause between two tries,
/// and a while.
pub(crate) const TRIED_WITHIN: Duration = Duration::from_secs(3600 + 300);

/// Where a daemon dies with the only record of an upload's name.
pub(crate) const NAMING: Failpoint = Failpoint {
    step: Step::CreateUpload,
    moment: Phase::After,
};

impl Fate {
    /// Says whether it may have forgotten an upload that it began.
    pub(crate) fn may_forget_uploads(&self) -> bool {
        self.lost_disks > 0 || self.deaths.contains(&NAMING)
    }
}

/// Prepares the daemons.
pub(crate) fn members(sim: &mut Sim, plan: &Plan) -> Vec<Member> {
    (0..plan.daemons)
        .map(|number| Member::new(sim, plan, number))
        .collect()
}

/// Starts one daemon that nothing befalls.
pub(crate) async fn lone(sim: &mut Sim, rule: &str, account: &str) -> Daemon {
    nth(sim, rule, account, 0).await
}

/// Starts the one of this number.
pub(crate) async fn nth(sim: &mut Sim, rule: &str, account: &str, number: usize) -> Daemon {
    let plan = Plan::of_one(rule, account);
    Member::new(sim, &plan, number)
        .start(Failpoints::default())
        .await
}

/// Starts the one of this number for a part of the work.
pub(crate) async fn nth_as(sim: &mut Sim, role: Role, number: usize) -> Daemon {
    nth_with_rule(sim, role, "", number).await
}

/// The same with other keys of the rule.
pub(crate) async fn nth_with_rule(sim: &mut Sim, role: Role, rule: &str, number: usize) -> Daemon {
    let member = Member::new(sim, &Plan::of_one(rule, AWS), number);
    Member { role, ..member }.start(Failpoints::default()).await
}

/// Starts one daemon, on other settings than those of its file.
pub(crate) async fn lone_with(
    sim: &mut Sim,
    rule: &str,
    change: impl FnOnce(&mut Settings),
) -> Daemon {
    nth_with(sim, rule, 0, change).await
}

/// The same for the one of this number.
pub(crate) async fn nth_with(
    sim: &mut Sim,
    rule: &str,
    number: usize,
    change: impl FnOnce(&mut Settings),
) -> Daemon {
    let plan = Plan::of_one(rule, AWS);
    let member = Member::new(sim, &plan, number);
    let mut settings = member.settings();
    change(&mut settings);
    member.start_on(settings, Failpoints::default()).await
}

/// Returns the settings of the first daemon with other keys of its rule.
pub(crate) fn settings(sim: &mut Sim, rule: &str, account: &str) -> Settings {
    let plan = Plan::of_one(rule, account);
    Member::new(sim, &plan, 0).settings()
}

/// Lets the daemons live until told to stop.
pub(crate) async fn live(members: Vec<Member>, stop: CancellationToken) -> Vec<Fate> {
    futures::future::join_all(
        members
            .into_iter()
            .map(|member| Box::pin(member.live(stop.clone()))),
    )
    .await
}

impl Member {
    fn new(sim: &mut Sim, plan: &Plan, number: usize) -> Self {
        let name = format!("daemon-{number}");
        let state_dir = sim.dir.path().join(&name);
        leave_as_stopped(&state_dir);
        let work = [WORK, MIRROR_WORK].map(|queue| sim.is_shared.then(|| sim.sqs.url(queue)));
        let (events, dead) = (sim.sqs.url(QUEUE), sim.sqs.url(DEAD));
        let config = config(
            &state_dir.display().to_string(),
            [&events, &dead],
            &work,
            plan,
        );
        let (given, journal) = (sim.given(&name), sim.net.journal().clone());
        Self {
            config,
            state_dir,
            given,
            journal,
            rng: sim.rng.fork(),
            plan: plan.clone(),
            role: Role::Both,
        }
    }

    async fn live(mut self, stop: CancellationToken) -> Fate {
        let (mut deaths, mut died_first, mut lost_disks) = (Vec::new(), None, 0);
        let mut left = self.plan.crashes;
        loop {
            let death = Arc::new(Death::default());
            let failpoints = if left > 0 {
                self.arm(&death)
            } else {
                Failpoints::default()
            };
            let daemon = self.start(failpoints).await;
            tokio::select! {
                biased;
                () = death.came.notified() => {}
                () = stop.cancelled() => {
                    let status = daemon.status().await.unwrap();
                    daemon.stop().await;
                    return Fate { status, deaths, died_first, lost_disks };
                }
            }
            left -= 1;
            died_first = died_first.or(Some(self.journal.now()));
            deaths.extend(death.at.lock().unwrap().take());
            drop(daemon);
            tokio::time::sleep(Duration::from_millis(self.rng.u64(1..180_000))).await;
            if self.plan.lose_disks && self.rng.bool() {
                std::fs::remove_dir_all(&self.state_dir).unwrap();
                lost_disks += 1;
            }
        }
    }

    fn arm(&mut self, death: &Arc<Death>) -> Failpoints {
        let nth = if self.plan.at.is_some() {
            1
        } else {
            self.rng.u32(1..60)
        };
        let death = Arc::clone(death);
        Failpoints::armed_at(self.plan.at, nth, move |at| {
            *death.at.lock().unwrap() = Some(at);
            death.came.notify_one();
        })
    }

    fn settings(&self) -> Settings {
        replicator_config::parse(&self.config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts the daemon, as soon as the last one has let go of the ledger.
    pub(crate) async fn start(&self, failpoints: Failpoints) -> Daemon {
        self.start_on(self.settings(), failpoints).await
    }

    async fn start_on(&self, settings: Settings, failpoints: Failpoints) -> Daemon {
        for _ in 0..1_000 {
            let (failpoints, given) = (failpoints.clone(), Some(self.given.clone()));
            let outside = Environment {
                listener: None,
                failpoints,
                given,
                role: self.role,
                checked_file: None,
            };
            match Daemon::start(settings.clone(), outside).await {
                Ok(daemon) => return daemon,
                // What is dropped lets go of its files only when its tasks are.
                Err(error)
                    if ["in use", "lock hold"]
                        .iter()
                        .any(|held| format!("{error:#}").contains(held)) =>
                {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error:#}"),
            }
        }
        panic!("the last daemon holds the ledger forever");
    }
}

#[derive(Debug, Default)]
struct Death {
    came: Notify,
    at: std::sync::Mutex<Option<Failpoint>>,
}

/// Makes a state directory as a clean stop leaves it, so that the first daemon need not wait for
/// another.
pub(crate) fn leave_as_stopped(state_dir: &Path) {
    if !state_dir.exists() {
        std::fs::create_dir(state_dir).unwrap();
        std::fs::write(state_dir.join("stopped"), "").unwrap();
    }
}

fn config(
    state_dir: &str,
    [queue, dead]: [&str; 2],
    work: &[Option<String>; 2],
    Plan {
        rule,
        mirrored,
        account,
        ..
    }: &Plan,
) -> String {
    let [work, mirror_work] = work.each_ref().map(|url| {
        url.iter()
            .map(|url| format!("work_queue = \"{url}\"\n"))
            .collect::<String>()
    });
    let mirror_rule = format!("{mirror_work}{rule}");
    let mirror = if *mirrored {
        rule_text("mirror", MIRROR, &mirror_rule)
    } else {
        String::new()
    };
    format!(
        r#"
state_dir = "{state_dir}"
memory = "64MiB"

[accounts.source]
region = "eu-west-1"
{account}

[accounts.archive]
region = "eu-central-1"
{account}

[[queues]]
url = "{queue}"
account = "source"
visibility_timeout = "60s"
dead_letter_url = "{dead}"

{mirror}
{lead}
"#,
        lead = rule_text("orders", ARCHIVE, &format!("{work}{rule}")),
    )
}

/// Writes a rule for everything in the source; for its delete markers, too, unless the rest says
/// something of them.
pub(crate) fn rule_text(id: &str, bucket: &str, rest: &str) -> String {
    let own = rest.split("[[rules]]").next().unwrap();
    let since = if own.contains("since") {
        ""
    } else {
        "since = \"2020-01-01T00:00:00Z\""
    };
    // What a delay is for has tests of its own.
    let is_late = own.contains("version_deletes = true") && !own.contains("version_delete_delay");
    let delay = if is_late {
        "version_delete_delay = \"0s\""
    } else {
        ""
    };
    let markers = if own.contains("delete_markers") {
        ""
    } else {
        "delete_markers = true"
    };
    format!(
        r#"
[[rules]]
id = "{id}"
source = {{ account = "source", bucket = "{SOURCE}" }}
destination = {{ account = "archive", bucket = "{bucket}" }}
{since}
{delay}
{markers}
{rest}
"#
    )
}

/// Writes the rest of the first rule, and a second rule that brings everything to the mirror as
/// well.
pub(crate) fn mirrored(rest: &str) -> String {
    format!("{rest}\n{}", rule_text("mirror", MIRROR, ""))
}

/// Adds up what a metric shows under these labels, each written as `name="value"`.
pub(crate) async fn figure(daemon: &Daemon, name: &str, labels: &[&str]) -> f64 {
    let text = daemon.metrics().await.unwrap();
    let begins = format!("s3_replicator_{name}{{");
    let is_meant =
        |line: &&str| line.starts_with(&begins) && labels.iter().all(|label| line.contains(label));
    text.lines()
        .filter(is_meant)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
