//! One version of an object: its headers, its tags, its bytes, and the proof of them.

pub(super) mod attributes;
pub(super) mod envelope;
pub(super) mod proof;
pub(super) mod tags;
pub(super) mod version_reader;
