//! How events get from the source bucket to the queue: late, twice, in any order, or not at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replicator_fakes::sqs::{Quirks, Settings};
use serde_json::Value;

use crate::sim::{QUEUE, QUEUES, SOURCE, Sim};

/// How bad the post is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manners {
    /// Each event is late by up to this.
    pub(crate) delay_max: Duration,
    /// The share of events that come twice.
    pub(crate) twice: f64,
    /// Of all the events that announce what was written to a key only the last comes.
    pub(crate) lossy: bool,
    /// What the queue itself does to messages.
    pub(crate) quirks: Quirks,
    /// How often, of the times when something has happened, all that is hidden shows again at once.
    pub(crate) shown_early: f64,
    /// How many messages the queue lets be hidden at once.
    pub(crate) in_flight_max: usize,
}

/// Carries events from the bucket to the queue.
#[derive(Debug)]
pub(crate) struct Post {
    manners: Manners,
    outbox: Arc<Mutex<Vec<String>>>,
    /// By key: what is kept back, since a later event may take its place.
    kept: BTreeMap<String, String>,
}

impl Post {
    /// Opens the post for the source bucket.
    pub(crate) fn open(sim: &Sim, manners: Manners) -> Self {
        let outbox: Arc<Mutex<Vec<String>>> = Arc::default();
        let inlet = Arc::clone(&outbox);
        for queue in QUEUES {
            sim.sqs.quirks(queue, manners.quirks);
            sim.sqs.settings(
                queue,
                Settings {
                    in_flight_max: manners.in_flight_max,
                    ..Settings::default()
                },
            );
        }
        sim.s3.notify(
            SOURCE,
            Arc::new(move |event: String| inlet.lock().unwrap().push(event)),
        );
        Self {
            manners,
            outbox,
            kept: BTreeMap::new(),
        }
    }

    /// Sends what has happened since the last time.
    pub(crate) fn collect(&mut self, sim: &mut Sim) {
        if sim.rng.f64() < self.manners.shown_early {
            sim.redeliver_hidden();
        }
        let events = std::mem::take(&mut *self.outbox.lock().unwrap());
        for event in events {
            match appended_key(&event) {
                Some(key) if self.manners.lossy => {
                    self.kept.insert(key, event);
                }
                Some(_) | None => self.send(sim, &event),
            }
        }
    }

    /// Sends what was kept back.
    pub(crate) fn finish(&mut self, sim: &mut Sim) {
        self.collect(sim);
        for (_, event) in std::mem::take(&mut self.kept) {
            self.send(sim, &event);
        }
    }

    fn send(&self, sim: &mut Sim, event: &str) {
        let copies = if sim.rng.f64() < self.manners.twice {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = self.manners.delay_max.mul_f64(sim.rng.f64());
            sim.sqs.send(QUEUE, event, delay);
        }
    }
}

/// Returns the key of an event that says something was written on top of it, or below.
fn appended_key(event: &str) -> Option<String> {
    let event: Value = serde_json::from_str(event).unwrap();
    let record = &event["Records"][0];
    let name = record["eventName"].as_str().unwrap();
    let appends = name.starts_with("ObjectCreated:") || name == "ObjectRemoved:DeleteMarkerCreated";
    appends.then(|| record["s3"]["object"]["key"].as_str().unwrap().to_owned())
}
