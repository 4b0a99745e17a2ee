//! What goes wrong on the way to LocalStack: a few kinds at a time, others every few seconds, drawn
//! by a seed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;

use super::troubles::Trouble;
use crate::world::hostile::Front;

// As many as let most things through, so that all of them meet objects that travel.
const KINDS: usize = 5;

// Long enough for what is tried again at once to meet the same again.
const EVERY: Duration = Duration::from_secs(3);

/// What goes wrong now.
#[derive(Debug, Clone)]
pub(super) struct Weather(Arc<Mutex<Sky>>);

#[derive(Debug)]
struct Sky {
    rng: Rng,
    /// Which kinds there are now, and how likely each strikes.
    now: BTreeMap<&'static str, f64>,
    hits: BTreeMap<&'static str, usize>,
}

impl Weather {
    /// Writes everything that can go wrong into the script of a proxy; nothing does yet.
    pub(super) fn over(front: &Front, troubles: Vec<Trouble>, seed: u64) -> Self {
        let hits = troubles.iter().map(|trouble| (trouble.name, 0)).collect();
        let weather = Self(Arc::new(Mutex::new(Sky {
            rng: Rng::with_seed(seed),
            now: BTreeMap::new(),
            hits,
        })));
        for Trouble { name, when, reply } in troubles {
            let weather = weather.clone();
            front.answer(move |seen| when(seen) && weather.strikes(name), reply);
        }
        weather
    }

    /// Lets it change for so long, and clear up then.
    pub(super) async fn change(&self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < end {
            self.draw();
            tokio::time::sleep_until(end.min(tokio::time::Instant::now() + EVERY)).await;
        }
        self.0.lock().unwrap().now.clear();
    }

    /// Says how often each kind struck.
    pub(super) fn hits(&self) -> BTreeMap<&'static str, usize> {
        self.0.lock().unwrap().hits.clone()
    }

    fn draw(&self) {
        let Sky { rng, now, hits } = &mut *self.0.lock().unwrap();
        let drawn = rng.choose_multiple(hits.keys().copied().collect::<Vec<_>>(), KINDS);
        *now = drawn
            .into_iter()
            .map(|name| (name, *rng.choice(&[0.02, 0.1, 0.3]).unwrap()))
            .collect();
    }

    fn strikes(&self, name: &'static str) -> bool {
        let Sky { rng, now, hits } = &mut *self.0.lock().unwrap();
        let strikes = now.get(name).is_some_and(|chance| rng.f64() < *chance);
        *hits.entry(name).or_default() += usize::from(strikes);
        strikes
    }
}
