//! Encryption: which key replicas are encrypted under.

use std::collections::BTreeMap;

use replicator_core::rule::Encryption;
use strum::{EnumString, VariantNames};

use crate::diagnostics::Problems;
use crate::reader::Field;
use crate::{schema, values};

/// Checks the encryption of a rule; without one, replicas are encrypted as their source is.
pub(super) fn resolve(
    written: &Field<schema::Encryption>,
    problems: &mut Problems<'_>,
) -> Encryption {
    let as_source = Encryption::Same {
        key_map: BTreeMap::new(),
    };
    let Some(written) = written.present_value() else {
        return as_source;
    };
    let key = written.key.parse_with(problems, values::kms_key_or_alias);
    let key_map = key_map(&written.key_map, problems);
    let mode = if written.mode.is_absent() {
        Some(Mode::Same)
    } else {
        written.mode.parse_with(problems, values::word)
    };
    let Some(mode) = mode else { return as_source };
    refuse_unused_keys(mode, written, problems);
    let bucket_key = written.bucket_key.value_or(true);
    match (mode, key) {
        (Mode::Same, _) => Encryption::Same { key_map },
        (Mode::BucketDefault, _) => Encryption::BucketDefault,
        (Mode::S3, _) => Encryption::S3,
        (Mode::Kms, Some(key)) => Encryption::Kms {
            key,
            key_map,
            bucket_key,
        },
        (Mode::Dsse, Some(key)) => Encryption::Dsse { key },
        (Mode::Kms | Mode::Dsse, None) => as_source,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
enum Mode {
    Same,
    BucketDefault,
    S3,
    Kms,
    Dsse,
}

/// Refuses what a mode has no use for, and reports what it needs.
fn refuse_unused_keys(mode: Mode, written: &schema::Encryption, problems: &mut Problems<'_>) {
    if matches!(mode, Mode::Kms | Mode::Dsse) {
        let remedy = "give the ARN of the destination's key";
        written.key.require_present(remedy, problems);
    } else {
        let message = "only modes \"kms\" and \"dsse\" take a key; change the mode or leave it out";
        written.key.refuse_present(problems, message);
    }
    if !matches!(mode, Mode::Same | Mode::Kms) {
        let message = "only modes \"same\" and \"kms\" take a key_map; leave it out";
        written.key_map.refuse_present(problems, message);
    }
    if mode != Mode::Kms {
        let message = "only mode \"kms\" takes bucket_key; leave it out";
        written.bucket_key.refuse_present(problems, message);
    }
}

/// Sources are keys, because that is what S3 reports of an object; destinations may be aliases.
fn key_map(
    written: &Field<BTreeMap<String, Field<String>>>,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for (source, destination) in written.present_value().into_iter().flatten() {
        let source = values::kms_key(source)
            .map_err(|message| problems.add_problem(&destination.spot, message))
            .ok();
        let destination = destination.parse_with(problems, values::kms_key_or_alias);
        map.extend(source.zip(destination));
    }
    map
}
