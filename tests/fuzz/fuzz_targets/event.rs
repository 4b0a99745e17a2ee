//! Any text as the body of a queue message: it is read, or refused with its place in a few words.

#![no_main]

use libfuzzer_sys::fuzz_target;
use replicator_core::event;

fuzz_target!(|body: &str| {
    if let Err(refusal) = event::parse_notification(body) {
        let reason = refusal.to_string();
        assert!(
            reason.starts_with("message") && reason.len() < 200,
            "{reason}"
        );
    }
});
