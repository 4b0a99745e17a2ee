//! A story: what users do, how the queue behaves, what breaks and which daemons die, all drawn from
//! one seed.

mod strange;
mod troubles;

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Journal, Service};
use replicator_fakes::s3::traits::Traits;
use replicator_fakes::sqs::{Quirks, Settings};
use s3_replicator::failpoint::Failpoint;
use tokio_util::sync::CancellationToken;

use crate::fleet::{self, Fate, Plan};
use crate::judge::{self, Expect};
use crate::post::{Manners, Post};
use crate::sim::{ARCHIVE, AWS, DEAD, MIRROR, NOT_AWS, QUEUE, QUEUES, Sim, simulate};
use crate::workload::{self, Shape, User};

/// Everything that is decided before it begins.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    pub(crate) seed: u64,
    pub(crate) shape: Shape,
    pub(crate) manners: Manners,
    pub(crate) plan: Plan,
    /// The endpoint's 404 does not tell a delete marker from nothing, as that of many stores.
    pub(crate) mute: bool,
    /// Requests of the daemons fail in this share of cases.
    pub(crate) faults: f64,
    /// Answers that are seldom or never given go wrong as well.
    pub(crate) odd: bool,
    /// These kinds of answers that are not to be believed are given.
    pub(crate) strange: Vec<&'static str>,
    /// So do some that leave tasks parked, until an operator mends that.
    pub(crate) parks: bool,
    /// Some writes are refused permanently, until then too.
    pub(crate) denied: bool,
    pub(crate) latest: bool,
}

/// How a story ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) fates: Vec<Fate>,
    /// What is wrong with it; nothing if all promises were kept.
    pub(crate) wrong: Vec<String>,
    /// Which faults struck, and how often.
    pub(crate) hits: Vec<(String, u64)>,
    /// How long it took in its own time.
    pub(crate) lasted: Duration,
    /// Every request.
    pub(crate) journal: Journal,
}

// Nothing is late by more than minutes, so what is not settled by then never will be.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

// Few stories have each kind of it, so that it has to strike there.
const STRANGE: f64 = 0.15;

// A queue that stays empty for so long: longer than a daemon's poll and anything on its way.
const QUIET: Duration = Duration::from_secs(180);

impl Story {
    /// Draws a story.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let lossy = rng.u8(..4) == 0;
        let purges = !lossy && rng.u8(..3) == 0;
        let latest = !purges && rng.u8(..4) == 0;
        let version_deletes = purges && rng.bool();
        // Drawn apart, so that the stories of old are told as they were.
        let mut apart = fastrand::Rng::with_seed(!seed);
        let markers = apart.u8(..5) != 0 || purges;
        let history = if latest { "latest" } else { "exact" };
        let encryption = ["same", "s3"][rng.usize(..2)];
        let crashes = if rng.bool() { rng.u32(1..4) } else { 0 };
        let daemons = rng.usize(1..4);
        let mute = rng.u8(..4) == 0;
        let rule = format!(
            "history = \"{history}\"\ndelete_markers = {markers}\nversion_deletes = {version_deletes}\n\
             encryption = {{ mode = \"{encryption}\" }}"
        );
        let mut story = Self {
            seed,
            shape: Shape {
                keys: rng.usize(1..4),
                ops: rng.usize(2..24),
                purges,
                tags: !lossy && rng.bool(),
                large: rng.u8(..4) == 0,
                full: rng.bool(),
            },
            manners: Manners {
                delay_max: Duration::from_secs([0, 3, 60, 400][rng.usize(..4)]),
                twice: if rng.bool() { 0.3 } else { 0.0 },
                lossy,
                quirks: troubles::quirks(&mut rng, &mut apart),
                shown_early: [0.0, 0.0, 0.2][rng.usize(..3)],
                in_flight_max: [usize::MAX, usize::MAX, 3][apart.usize(..3)],
            },
            plan: Plan {
                daemons,
                crashes,
                at: None,
                lose_disks: rng.bool(),
                rule,
                mirrored: false,
                account: if mute { NOT_AWS } else { AWS }.to_owned(),
            },
            mute,
            faults: [0.0, 0.0, 0.02, 0.1][rng.usize(..4)],
            odd: apart.u8(..3) == 0,
            strange: Vec::new(),
            parks: apart.u8(..3) == 0,
            denied: false,
            latest,
        };
        // What is parked is on the disk, and in the dead-letter queue, which is never sent back
        // here.
        story.parks &= story.plan.crashes == 0 || !story.plan.lose_disks;
        story.plan.mirrored = rng.u8(..4) == 0;
        // Drawn apart as well.
        let mut rng = fastrand::Rng::with_seed(seed.rotate_left(32));
        if story.faults > 0.0 && rng.bool() {
            story.strange = strange::draw(&mut rng);
        }
        story
    }

    /// Draws a story in which each daemon dies at this place, if it ever gets there. There are
    /// uploads in parts, tags, version deletes and refusals, so that every place is passed.
    pub(crate) fn of_deaths(seed: u64, at: Failpoint) -> Self {
        let mut story = Self::draw(seed);
        let version_deletes = seed.is_multiple_of(2);
        story.latest = false;
        story.strange.clear();
        story.faults = [0.05, 0.2][usize::from(seed % 4 == 1)];
        story.denied = seed % 4 >= 2;
        story.parks = story.denied;
        story.shape = Shape {
            ops: 14,
            purges: version_deletes,
            tags: true,
            large: true,
            full: false,
            ..story.shape
        };
        story.manners.lossy = false;
        story.plan = Plan {
            daemons: 1 + usize::from(seed.is_multiple_of(3)),
            crashes: 1,
            at: Some(at),
            lose_disks: seed % 4 < 2,
            rule: format!("version_deletes = {version_deletes}\nencryption = {{ mode = \"s3\" }}"),
            ..story.plan
        };
        story
    }

    /// Plays it.
    pub(crate) fn tell(&self) -> Ending {
        simulate(self.seed, async |sim| self.play(sim).await)
    }

    async fn play(&self, mut sim: Sim) -> Ending {
        let began = tokio::time::Instant::now();
        sim.s3.set_traits(Traits {
            names_markers: !self.mute,
            ..Traits::aws()
        });
        self.script(&sim);
        let mut post = Post::open(&sim, self.manners);
        let stop = CancellationToken::new();
        // One daemon may do without.
        if self.plan.daemons > 1 || self.seed.is_multiple_of(2) {
            sim.share();
        }
        let daemons = fleet::live(fleet::members(&mut sim, &self.plan), stop.clone());
        let work = async {
            let settled = self.work(&mut sim, &mut post).await;
            stop.cancel();
            settled
        };
        let (settled, fates) = tokio::join!(work, daemons);
        if std::env::var_os("S3_REPLICATOR_JOURNAL").is_some() {
            eprintln!("{}", sim.net.journal());
        }
        let mut wrong = self.complaints(&sim, &fates);
        sim.net.quiet().await;
        wrong.extend((!settled).then(|| "the queue never became empty".to_owned()));
        let (mut hits, journal) = (sim.net.faults().all_hits(), sim.net.journal().clone());
        hits.extend(troubles::refused(&sim.sqs.refused(QUEUE)));
        Ending {
            fates,
            wrong,
            hits,
            lasted: began.elapsed(),
            journal,
        }
    }

    /// Lists what the judge finds and what daemons said at the end that they should not have to.
    fn complaints(&self, sim: &Sim, fates: &[Fate]) -> Vec<String> {
        let expect = self.expect(fates);
        let mut wrong = judge::judge(sim, expect);
        if self.plan.mirrored {
            wrong.extend(judge::judge_at(sim, MIRROR, expect));
        }
        if self.strange.contains(&strange::LAGS) {
            // What readers see tells where a list contradicts itself.
            wrong.retain(|what| {
                !what.starts_with("a read of the source without a version: HeadObject")
            });
        }
        // What is parked waits for an operator to change something, and here there is none.
        let parked = fates.iter().flat_map(|fate| &fate.status.parked);
        wrong.extend(
            parked.map(|parked| format!("{} tasks are parked: {}", parked.tasks, parked.reason)),
        );
        let company = fates
            .iter()
            .filter_map(|fate| fate.status.second_daemon.as_ref())
            .filter(|_| self.plan.daemons == 1);
        wrong.extend(company.map(|told| format!("it is alone: {told}")));
        wrong
    }

    /// Says what may be expected of daemons with these fates.
    fn expect(&self, fates: &[Fate]) -> Expect {
        let nobody_died = fates.iter().all(|fate| fate.deaths.is_empty());
        let has_doubts =
            !nobody_died || fates.iter().any(|fate| fate.lost_disks > 0) || self.faults > 0.0;
        Expect {
            latest: self.latest,
            markers: !self.plan.rule.contains("delete_markers = false"),
            version_deletes: self.plan.rule.contains("version_deletes = true"),
            forgetful: std::array::from_fn(|at| {
                fates.get(at).is_some_and(Fate::may_forget_uploads)
            }),
            remembers: !has_doubts && self.plan.daemons == 1,
            alone: self.plan.daemons == 1 && nobody_died,
        }
    }

    /// Does what users do, and waits until everything is settled; says whether it was.
    async fn work(&self, sim: &mut Sim, post: &mut Post) -> bool {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ 0x5eed);
        let mut user = User::new(sim.user());
        // A foreign upload at the destination is out of scope; the judge looks whether it stays.
        sim.user()
            .create_multipart_upload()
            .bucket(ARCHIVE)
            .key("a")
            .send()
            .await
            .unwrap();
        for (pause, op) in workload::draw(&mut rng, self.shape) {
            sim.pass(pause).await;
            user.act(&op).await;
            post.collect(sim);
        }
        user.finish().await;
        post.finish(sim);
        sim.pass(Duration::from_secs(rng.u64(..600))).await;
        sim.net.faults().clear_all();
        // So does the queues' trouble end: a successor's wait begins anew with each lease that is
        // lost.
        for queue in QUEUES {
            sim.sqs.quirks(queue, Quirks::default());
            sim.sqs.settings(queue, Settings::default());
        }
        settled(sim).await
    }

    /// How likely a fault strikes.
    fn chance(&self, what: &str) -> f64 {
        if self.strange.contains(&what) {
            STRANGE
        } else {
            self.faults
        }
    }

    /// Writes the faults into the script. The user's own requests all work: what happened at the
    /// source is never in doubt.
    fn script(&self, sim: &Sim) {
        for daemon in (0..self.plan.daemons).filter(|_| self.faults > 0.0) {
            let name = format!("daemon-{daemon}");
            for (what, place, effect) in troubles::of(self) {
                let fault = Fault::new(what, place.client(&name), effect).chance(self.chance(what));
                sim.net.faults().add(fault);
            }
            if self.denied {
                let denied = Fault::new(
                    "denied",
                    Place::s3("PutObject").client(&name),
                    Effect::refuse(403, "AccessDenied"),
                );
                sim.net.faults().add(denied.every(3));
            }
        }
    }
}

/// Waits until the queue has been empty, and no daemon at work, for a while: for as long as a task
/// may wait for its next try, if any was parked.
async fn settled(sim: &Sim) -> bool {
    let began = tokio::time::Instant::now();
    let (mut quiet_since, mut seen) = (began, 0);
    while began.elapsed() < PATIENCE {
        sim.pass(Duration::from_secs(5)).await;
        let journal = sim.net.journal();
        // What was parked and waits for its turn has no message.
        let works = !journal
            .select(|entry| entry.number >= seen && entry.call.service == Service::S3)
            .is_empty();
        seen = journal.len();
        if works || sim.waiting() > 0 {
            quiet_since = tokio::time::Instant::now();
            continue;
        }
        // A task is parked once its message is there.
        let quiet = match sim.sqs.messages(DEAD).is_empty() {
            true => QUIET,
            false => fleet::TRIED_WITHIN,
        };
        if quiet_since.elapsed() > quiet {
            return true;
        }
    }
    false
}
