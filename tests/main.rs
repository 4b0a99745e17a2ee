//! The promises of the daemon, kept or broken in worlds of real servers and scripted faults.
//! One file a promise; each of them drives the binary from outside, as its users do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    reason = "a test that cannot go on says so and fails"
)]

// Where the tests play: LocalStack, the daemon's process, the fault proxy, the independent oracle.
mod world;

// The main job, end to end, whatever way the events come.
mod mixed_operations;
// Kill -9, lost disks, lost answers.
mod fleet;
mod killed;
mod unreliable_network;
// Replicas whose origin is written nowhere on them.
mod stamps;
// Memory.
mod large_object;
// What is in scope, what stays untouched.
mod rules;
// Nothing is dropped in silence.
mod bad_input;
mod failures;
mod kms;
mod permissions;
mod poison;
mod policies;
mod silence;
// What is not to be believed, and what must not stop it.
mod hostile;
// All of that at once.
mod soak;
// The requests that are sent: pinned versions, conditions, assumed roles, no deletes of versions.
mod requests;
// A set-up that cannot work, and what puts it right.
mod check;
// What was there before.
mod backfill;
mod manifests;
// What programs ask and command.
mod api;
// A daemon's life: start, reload, stop; what it says meanwhile.
mod adopted;
mod commands;
mod figures;
mod logs;
mod objects;
mod starting;
mod stopping;
mod verify;

// What is shipped to install it: the systemd unit, the image, the CloudFormation template.
mod deploy;

// The judges, judged: the comparer sees damage, the docs lead somewhere, and the source tree keeps
// its own rules.
mod comparer;
mod docs;
mod tidy;
