//! Poison at scale: those of the table that LocalStack is sent too, and drawn ones up to ten thousand,
//! through a whole daemon. Each ends in the dead-letter queue with its reason or is found to ask for
//! nothing, none is acted on, and the honest ones among them are served.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use replicator_core::event;
use replicator_core::failure::Reason;
use replicator_fakes::journal::Call;
use serde_json::{Value, json};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::messages::{self, KEYS, real_messages};
use crate::sim::{ARCHIVE, AWS, DEAD, QUEUE, SOURCE, Sim, simulate};

const MESSAGES: usize = 10_000;

#[test]
fn ten_thousand_poisoned_messages_change_nothing_and_each_is_accounted_for() {
    // What may be deleted decides what a forged message could do.
    for (seed, rule) in [(6, ""), (7, "version_deletes = true")] {
        simulate(seed, async |sim| poisoned(sim, rule).await);
    }
}

async fn poisoned(mut sim: Sim, rule: &str) {
    sim.post_everything();
    for key in KEYS {
        sim.put(key, b"as it is").await;
    }
    let forged = forged(&sim);
    let daemon = fleet::lone(&mut sim, rule, AWS).await;
    sim.drained().await;
    assert_eq!(sim.net.journal().writes(ARCHIVE).len(), KEYS.len());

    let to_be_parked = send(&mut sim, &forged).await;
    sim.drained().await;

    assert!(
        (1_000..MESSAGES - 1_000).contains(&to_be_parked.values().sum()),
        "poison of one kind only"
    );
    assert_eq!(parked(&sim), to_be_parked);
    let written = sim.net.journal().writes(ARCHIVE);
    // That tags changed may be true: what is written then are the source's.
    let is_meant =
        |call: &Call| call.operation == "PutObjectTagging" || call.key.as_deref() == Some("honest");
    let strange: Vec<_> = written
        .iter()
        .skip(KEYS.len())
        .filter(|it| !is_meant(&it.call))
        .collect();
    assert!(
        strange.is_empty(),
        "a message was taken at its word: {strange:?}"
    );
    assert_eq!(
        sim.s3.history(ARCHIVE, "honest").len(),
        sim.s3.history(SOURCE, "honest").len()
    );
    daemon.stop().await;
    assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
}

/// Counts messages by their body and the reason why they are refused.
type Refused = BTreeMap<(String, String), usize>;

/// Sends the messages, with honest ones among them; returns those that have to be parked.
async fn send(sim: &mut Sim, forged: &[String]) -> Refused {
    let mut to_be_parked = Refused::new();
    let real: Vec<String> = real_messages()
        .into_iter()
        .chain(forged.iter().cloned())
        .collect();
    let mut table = messages::poison(SOURCE).into_iter();
    for number in 0..MESSAGES {
        let is_forged = number % 10 == 0;
        let body = if is_forged {
            sim.rng.choice(forged).unwrap().clone()
        } else {
            let next = table.next();
            next.unwrap_or_else(|| drawn(&real, &mut sim.rng))
        };
        if let Some(reason) = refusal(&body) {
            assert!(!is_forged, "it reads well: {body}");
            *to_be_parked
                .entry((body.clone(), reason.as_str().to_owned()))
                .or_insert(0) += 1;
        }
        sim.sqs
            .send(QUEUE, body, Duration::from_millis(number as u64));
        if number % 1000 == 0 {
            sim.put("honest", b"in between").await;
        }
    }
    to_be_parked
}

fn parked(sim: &Sim) -> Refused {
    let mut parked = Refused::new();
    for message in sim.sqs.messages(DEAD) {
        let reason = message
            .attributes
            .get("Reason")
            .cloned()
            .unwrap_or_default();
        *parked.entry((message.body, reason)).or_insert(0) += 1;
    }
    parked
}

/// Says why the daemon must not act on a message: it cannot be read, or it names a bucket that no
/// rule has.
fn refusal(body: &str) -> Option<Reason> {
    let refusal = match event::parse_notification(body) {
        Err(_) => Some(Reason::MessageUndecodable),
        Ok(read) => read
            .events
            .iter()
            .any(|event| event.bucket.as_str() != SOURCE)
            .then_some(Reason::BucketUnknown),
    };
    // So much is plain without the daemon's own reader.
    if !serde_json::from_str(body).is_ok_and(|message: Value| message.is_object()) {
        assert_eq!(refusal, Some(Reason::MessageUndecodable), "{body}");
    }
    refusal
}

/// Says of the versions that are there, in S3's own words, that they were deleted.
fn forged(sim: &Sim) -> Vec<String> {
    let deletes = ["ObjectRemoved:Delete", "ObjectRemoved:DeleteMarkerCreated"];
    let forge = |body: &str| deletes.map(|delete| body.replace("ObjectCreated:Put", delete));
    let forged: Vec<String> = sim
        .sqs
        .messages(QUEUE)
        .iter()
        .flat_map(|message| forge(&message.body))
        .collect();
    let says_so = |body: &String| {
        deletes
            .iter()
            .any(|delete| body.contains(&format!("\"{delete}\"")))
    };
    assert!(
        forged.len() == 2 * KEYS.len() && forged.iter().all(says_so),
        "{forged:?}"
    );
    forged
}

/// Breaks a real message: a value that is another, or text that was torn.
fn drawn(real: &[String], rng: &mut Rng) -> String {
    let body = rng.choice(real).unwrap();
    if rng.f64() < 0.3 {
        torn(body, rng)
    } else {
        broken(body, rng)
    }
}

fn torn(body: &str, rng: &mut Rng) -> String {
    let mut text: Vec<char> = body.chars().collect();
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..text.len());
        match rng.u8(..4) {
            0 => text.truncate(at.max(1)),
            1 => text[at] = *rng.choice(&['"', '{', ']', '\\', ',', '0', 'é']).unwrap(),
            2 => drop(text.remove(at)),
            _ => text.insert(at, *rng.choice(&['"', ':', '[', '}', '%', ' ']).unwrap()),
        }
        if text.is_empty() {
            text.push('x');
        }
    }
    text.into_iter().collect()
}

/// Exchanges one to three values, anywhere.
fn broken(body: &str, rng: &mut Rng) -> String {
    let mut message: Value = serde_json::from_str(body).unwrap();
    for _ in 0..rng.usize(1..4) {
        let places = places(&message);
        let Some(place) = rng.choice(&places) else {
            break;
        };
        *message.pointer_mut(place).unwrap() = junk(rng);
    }
    message.to_string()
}

/// Lists where a message has values, as JSON pointers.
fn places(value: &Value) -> Vec<String> {
    let within = |name: &str, inner: &Value| {
        let name = name.replace('~', "~0").replace('/', "~1");
        let below = places(inner).into_iter();
        std::iter::once(format!("/{name}"))
            .chain(below.map(move |rest| format!("/{name}{rest}")))
            .collect::<Vec<_>>()
    };
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, inner)| within(name, inner))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .flat_map(|(at, inner)| within(&at.to_string(), inner))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

fn junk(rng: &mut Rng) -> Value {
    let texts = [
        "",
        "%zz",
        "%ff%fe",
        "payroll",
        "a b",
        "ObjectRemoved:Delete",
        "ObjectRemoved:DeleteMarkerCreated",
        "one",
        "ObjectTagging:Put",
        "null",
        "never-existed",
        "9998-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "FFFFFFFFFFFFFFFFFF",
        "honest",
    ];
    match rng.u8(..8) {
        0 => Value::Null,
        1 => json!(u64::MAX),
        2 => json!([[], {}]),
        3 => json!("x".repeat(rng.usize(1..2_000))),
        4 => json!(rng.i32(..)),
        _ => json!(rng.choice(texts).unwrap()),
    }
}
