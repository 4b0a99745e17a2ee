//! Faults by script: what goes wrong, at which requests, and when.

use std::sync::{Arc, Mutex};

use fastrand::Rng;
use tokio::time::Instant;

use crate::journal::{Call, Service};

mod answer;
mod effect;

pub(crate) use answer::{alter, flip, refusal, replace_header};
pub use effect::Effect;
pub(crate) use effect::{Break, Course, Header, Spoil, Verdict};

/// The script; a handle, cheap to clone.
#[derive(Debug, Clone)]
pub struct Faults {
    script: Arc<Mutex<Script>>,
}

/// Something that goes wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    name: String,
    place: Place,
    when: When,
    times_max: u64,
    effect: Effect,
}

/// The requests that a fault looks at: all, unless something is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    service: Option<Service>,
    operations: Vec<String>,
    bucket: Option<String>,
    key: Option<String>,
    client: Option<String>,
}

/// Which of the requests that a fault looks at it strikes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    Each,
    /// The first is 1.
    Nth(u64),
    Every(u64),
    Chance(f64),
    /// Those for which a bucket that fills with so many tokens a second, and holds as many, has
    /// none left.
    Beyond(f64),
}

#[derive(Debug)]
struct Script {
    rng: Rng,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    fault: Fault,
    on: bool,
    met: u64,
    hits: u64,
    /// Tokens left, and when that was.
    bucket: Option<(f64, Instant)>,
}

impl Place {
    /// Every request for a service.
    pub fn service(service: Service) -> Self {
        Self {
            service: Some(service),
            ..Self::default()
        }
    }

    /// An operation of S3.
    pub fn s3(operation: &str) -> Self {
        Self::service(Service::S3).or(operation)
    }

    /// An operation of SQS.
    pub fn sqs(operation: &str) -> Self {
        Self::service(Service::Sqs).or(operation)
    }

    /// And another operation of the same service.
    #[must_use]
    pub fn or(mut self, operation: &str) -> Self {
        self.operations.push(operation.to_owned());
        self
    }

    /// Only in this bucket, or of this queue.
    #[must_use]
    pub fn bucket(self, bucket: &str) -> Self {
        Self {
            bucket: Some(bucket.to_owned()),
            ..self
        }
    }

    /// Only this key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self
        }
    }

    /// Only from this client.
    #[must_use]
    pub fn client(self, client: &str) -> Self {
        Self {
            client: Some(client.to_owned()),
            ..self
        }
    }

    fn holds(&self, client: &str, call: &Call) -> bool {
        let fits = |wanted: &Option<String>, found: Option<&str>| {
            wanted.is_none() || wanted.as_deref() == found
        };
        self.service.is_none_or(|service| service == call.service)
            && (self.operations.is_empty() || self.operations.contains(&call.operation))
            && fits(&self.bucket, call.bucket.as_deref())
            && fits(&self.key, call.key.as_deref())
            && fits(&self.client, Some(client))
    }
}

impl Fault {
    /// An effect on every request of a place, until it is cleared.
    pub fn new(name: &str, place: Place, effect: Effect) -> Self {
        Self {
            name: name.to_owned(),
            place,
            when: When::Each,
            times_max: u64::MAX,
            effect,
        }
    }

    /// Only on one request of the place; the first is 1.
    #[must_use]
    pub fn nth(self, nth: u64) -> Self {
        Self {
            when: When::Nth(nth),
            ..self
        }
    }

    /// Only on each so-manieth request of the place.
    #[must_use]
    pub fn every(self, every: u64) -> Self {
        Self {
            when: When::Every(every.max(1)),
            ..self
        }
    }

    /// Only by chance, from 0 for never to 1 for always.
    #[must_use]
    pub fn chance(self, chance: f64) -> Self {
        Self {
            when: When::Chance(chance),
            ..self
        }
    }

    /// Only on what comes beyond so many requests a second; as many at once are let through after a
    /// rest.
    #[must_use]
    pub fn beyond(self, per_second: f64) -> Self {
        Self {
            when: When::Beyond(per_second),
            ..self
        }
    }

    /// At most so many times.
    #[must_use]
    pub fn times(self, times_max: u64) -> Self {
        Self { times_max, ..self }
    }
}

impl Faults {
    /// Starts with no fault; the seed decides on chances.
    pub fn new(seed: u64) -> Self {
        Self {
            script: Arc::new(Mutex::new(Script {
                rng: Rng::with_seed(seed),
                lines: Vec::new(),
            })),
        }
    }

    /// Adds a fault.
    pub fn add(&self, fault: Fault) {
        self.script.lock().unwrap().lines.push(Line {
            fault,
            on: true,
            met: 0,
            hits: 0,
            bucket: None,
        });
    }

    /// Ends the faults of a name; their hits stay counted.
    pub fn clear(&self, name: &str) {
        let mut script = self.script.lock().unwrap();
        script
            .lines
            .iter_mut()
            .filter(|line| line.fault.name == name)
            .for_each(|line| line.on = false);
    }

    /// Ends all faults; their hits stay counted.
    pub fn clear_all(&self) {
        self.script
            .lock()
            .unwrap()
            .lines
            .iter_mut()
            .for_each(|line| line.on = false);
    }

    /// Returns how many requests the faults of a name have struck.
    pub fn hits(&self, name: &str) -> u64 {
        let script = self.script.lock().unwrap();
        script
            .lines
            .iter()
            .filter(|line| line.fault.name == name)
            .map(|line| line.hits)
            .sum()
    }

    /// Returns every fault's name with its hits, in the order of the script: those without any
    /// tested nothing.
    pub fn all_hits(&self) -> Vec<(String, u64)> {
        self.script
            .lock()
            .unwrap()
            .lines
            .iter()
            .map(|line| (line.fault.name.clone(), line.hits))
            .collect()
    }

    /// Decides what happens to a request.
    pub(crate) fn judge(&self, client: &str, call: &Call) -> Verdict {
        let mut verdict = Verdict::default();
        let Script { rng, lines } = &mut *self.script.lock().unwrap();
        for line in lines
            .iter_mut()
            .filter(|line| line.on && line.fault.place.holds(client, call))
        {
            if line.strikes(rng) {
                verdict.add(&line.fault.name, &line.fault.effect);
            }
        }
        verdict
    }
}

impl Line {
    fn strikes(&mut self, rng: &mut Rng) -> bool {
        self.met += 1;
        let due = match self.fault.when {
            When::Each => true,
            When::Nth(nth) => self.met == nth,
            When::Every(every) => self.met.is_multiple_of(every),
            When::Chance(chance) => rng.f64() < chance,
            When::Beyond(per_second) => !self.has_token(per_second),
        };
        let strikes = due && self.hits < self.fault.times_max;
        self.hits += u64::from(strikes);
        strikes
    }

    fn has_token(&mut self, per_second: f64) -> bool {
        let now = Instant::now();
        let (left, then) = self.bucket.unwrap_or((per_second, now));
        let left = (left + (now - then).as_secs_f64() * per_second).min(per_second);
        let has = left >= 1.0;
        self.bucket = Some((if has { left - 1.0 } else { left }, now));
        has
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::*;

    fn put(path: &str) -> Call {
        let request = Request::builder()
            .method("PUT")
            .uri(format!("http://s3.sim{path}"));
        Call::of(&request.body(Bytes::new()).unwrap())
    }

    /// Says for each of so many requests whether it was struck.
    fn struck(faults: &Faults, requests: usize) -> Vec<bool> {
        (0..requests)
            .map(|_| !faults.judge("one", &put("/dst/k")).names.is_empty())
            .collect()
    }

    fn faults(fault: Fault) -> Faults {
        let faults = Faults::new(7);
        faults.add(fault);
        faults
    }

    fn lost() -> Fault {
        Fault::new("lost", Place::s3("PutObject"), Effect::LoseAnswer)
    }

    #[test]
    fn a_fault_strikes_the_nth_or_every_nth_or_so_many_times() {
        assert_eq!(
            struck(&faults(lost().nth(2)), 4),
            [false, true, false, false]
        );
        assert_eq!(
            struck(&faults(lost().every(2)), 4),
            [false, true, false, true]
        );
        assert_eq!(
            struck(&faults(lost().times(2)), 4),
            [true, true, false, false]
        );
        assert_eq!(
            struck(&faults(lost().every(2).times(1)), 4),
            [false, true, false, false]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_beyond_a_rate_is_struck() {
        let faults = faults(lost().beyond(2.0));
        assert_eq!(struck(&faults, 4), [false, false, true, true]);
        tokio::time::advance(std::time::Duration::from_millis(500)).await;
        assert_eq!(struck(&faults, 2), [false, true]);
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed() {
        let runs = [0, 0, 1].map(|seed| {
            let faults = Faults::new(seed);
            faults.add(lost().chance(0.5));
            struck(&faults, 64)
        });
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
        assert!(runs[0].contains(&true) && runs[0].contains(&false));
    }

    #[test]
    fn a_place_holds_for_exactly_what_it_names() {
        let place = Place::s3("GetObject")
            .or("PutObject")
            .bucket("dst")
            .key("k")
            .client("one");
        assert!(place.holds("one", &put("/dst/k")));
        assert!(!place.holds("two", &put("/dst/k")));
        assert!(!place.holds("one", &put("/src/k")));
        assert!(!place.holds("one", &put("/dst/other")));
        assert!(!place.holds("one", &put("/dst/k?tagging")));
        assert!(!Place::service(Service::Sqs).holds("one", &put("/dst/k")));
    }

    #[test]
    fn a_cleared_fault_keeps_its_hits_and_strikes_no_more() {
        let faults = faults(lost());
        struck(&faults, 3);
        faults.clear("lost");
        assert_eq!(struck(&faults, 1), [false]);
        assert_eq!(
            (faults.hits("lost"), faults.all_hits()),
            (3, vec![("lost".to_owned(), 3)])
        );
    }
}
