//! What no output of the daemon may hold: secret keys, session tokens, data keys, and the parts of a
//! request that sign it. Everything that a test reads of a daemon is searched, and at the daemon's
//! end all that it wrote: its log, and its state with the records of the ledger.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use serde_json::Value;

use super::daemon::SECRET;

// A signature in a query or a header opens an object to its reader until it expires. The tokens of
// STS begin alike, LocalStack's too.
const FORBIDDEN: [&str; 6] = [
    SECRET,
    "X-Amz-Signature=",
    "X-Amz-Security-Token=",
    "X-Amz-Credential=",
    "AWS4-HMAC-SHA256 Credential=",
    "FQoGZXIvYXdz",
];

// A shorter text may be in an output by accident.
const CHARS_MIN: usize = 16;

static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn seen() -> MutexGuard<'static, BTreeSet<String>> {
    SEEN.lock().unwrap()
}

/// Adds a secret that this test came to know.
pub(crate) fn add_secret(secret: &str) {
    if secret.len() >= CHARS_MIN {
        seen().insert(secret.to_owned());
    }
}

/// Adds the credentials in an answer of STS.
pub(crate) fn add_credentials(answer: &str) {
    for name in ["SecretAccessKey", "SessionToken"] {
        let (start, end) = (format!("<{name}>"), format!("</{name}>"));
        let rest = answer.split_once(&start).map(|(_, rest)| rest);
        if let Some((secret, _)) = rest.and_then(|rest| rest.split_once(&end)) {
            add_secret(secret);
        }
    }
}

/// Adds the data key in a request to KMS, or in its answer.
pub(crate) fn add_data_key(body: &str) {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    if let Some(key) = body["Plaintext"].as_str() {
        add_secret(key);
    }
}

/// Finds a secret in a text.
fn find_secret(text: &str) -> Option<String> {
    let seen = seen();
    let seen = seen.iter().map(String::as_str);
    let mut all = FORBIDDEN.into_iter().chain(seen);
    all.find(|secret| text.contains(secret)).map(str::to_owned)
}

/// Fails the test if a text holds a secret.
pub(crate) fn assert_none_in(what: &str, text: &str) {
    if let Some(secret) = find_secret(text) {
        let line = text.lines().find(|line| line.contains(secret.as_str()));
        panic!("{what} holds the secret {secret:?}: {line:?}");
    }
}

/// Fails the test if a file below a folder holds a secret; returns how many files there are.
pub(crate) fn assert_none_below(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files += assert_none_below(&path);
        } else {
            files += 1;
            // RocksDB removes files meanwhile.
            let bytes = fs::read(&path).unwrap_or_default();
            let name = path.display().to_string();
            assert_none_in(&name, &String::from_utf8_lossy(&bytes));
        }
    }
    files
}

#[test]
fn each_kind_of_secret_is_found() {
    add_credentials(
        "<SecretAccessKey>an-assumed-secret-key</SecretAccessKey><SessionToken>a-token-of-a-session</SessionToken>",
    );
    add_data_key("{\"Plaintext\": \"YSBkYXRhIGtleSBpbiBiYXNlNjQ=\"}");
    let cases = [
        (SECRET, true),
        ("an-assumed-secret-key", true),
        ("a-token-of-a-session", true),
        ("YSBkYXRhIGtleSBpbiBiYXNlNjQ=", true),
        ("GET /orders/1?X-Amz-Expires=60&X-Amz-Signature=0f", true),
        ("authorization: AWS4-HMAC-SHA256 Credential=AKIA", true),
        ("the signature does not match", false),
    ];
    for (text, is_secret) in cases {
        assert_eq!(find_secret(text).is_some(), is_secret, "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state/ledger");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("000004.log"), "plain").unwrap();
    assert_eq!(assert_none_below(dir.path()), 1);
    fs::write(folder.join("000005.log"), SECRET).unwrap();
    let found = std::panic::catch_unwind(|| assert_none_below(dir.path()));
    assert!(found.is_err(), "a secret in a file is found");
}
