//! The daemon in a world of fakes, on one thread, with time that jumps: whole lives of keys in
//! milliseconds, every fault by script, and a seed that plays the same again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    reason = "a test that cannot go on says so and fails"
)]

// The world: fakes, a user of the source bucket, a fleet of daemons, the post between them.
mod fleet;
mod post;
mod sim;
mod story;
mod workload;

// The judges: what a key's two histories and every state in between must be like.
mod judge;

// Random histories, deliveries, faults and crashes.
mod histories;
// Death at each place in turn.
mod binary;
mod crashes;
mod deaths;
// Throughput: what goes to several destinations is read once.
mod fanout;
// Endpoints whose conditions are missing or wrong.
mod contradictions;
// Destinations that are down, queues that do not answer.
mod crowded;
mod hung;
mod limited;
mod outage;
mod patience;
mod throttled;
// Whose trouble it is, and what is parked for it.
mod blame;
mod bugs;
// Messages that are broken, by the thousand.
mod dead_letters;
mod envelopes;
#[path = "../poison/messages.rs"]
mod messages;
mod poison;
// A daemon that holds a message keeps it.
mod buckets;
mod groups;
mod keys;
mod leases;
mod refused;
// What something in between says proves nothing, and what a store lacks is not what it refuses.
mod definite;
mod lacking;
// Bytes, ETags and answers that are not what they should be, and what proves that they are.
mod answers;
mod proofs;
mod spoilt;
mod values;
// Keys that are found, not told of.
mod backfill;
// What it keeps between runs is its own.
mod cursors;
mod rewritten;
// What a new ledger makes of what it finds, and what an old one forgets.
mod forgotten;
mod rebuilt;
// Writes whose reason has gone.
mod late;
mod purges;
// What is in a rule's scope, and whose what is there is.
mod adoption;
mod scopes;
mod silence;
// Rules that are paused.
mod pauses;
// What commands and programs are told.
mod checked;
mod objects;
mod strangers;
// What verify finds of what was broken, and what daemons find by themselves.
mod rounds;
mod verified;
// What it cannot compare is named, and so by `backfill`.
mod uncompared;
// What is there though a store does not say so.
mod unlisted;
mod uploads;
// Requests, counted: duplicates, forgeries, events that mean nothing here.
mod costs;
mod counts;
mod prices;
mod together;
// What message groups are for; one key that never rests; many destinations, of which one is down;
// daemons that come and go.
mod eight;
mod exclusion;
mod hot_key;
mod scaling;
