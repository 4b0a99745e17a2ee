//! Any text as a configuration file: it is used, or refused with a problem that says where.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(invalid) = replicator_config::parse(text) {
        assert!(!invalid.problems().is_empty());
        for problem in invalid.problems() {
            assert!(
                problem.position.is_some() || problem.message.starts_with("missing"),
                "{problem}"
            );
        }
    }
});
