//! What no request of a daemon may ever be, and that no upload is left behind.

use replicator_fakes::journal::{Answer, Call, Entry, Service};
use replicator_fakes::s3::entry::OpenUpload;

use super::Expect;
use crate::sim::{SOURCE, Sim};

pub(super) fn judge(sim: &Sim, destination: &str, expect: Expect, wrong: &mut Vec<String>) {
    let is_daemons =
        |entry: &Entry| entry.client.starts_with("daemon") && entry.call.service == Service::S3;
    let requests = sim.net.journal().select(is_daemons);
    wrong.extend(
        requests
            .iter()
            .filter_map(|entry| fault(&entry.call, expect.latest)),
    );
    let blind = sim
        .net
        .journal()
        .blind_deletes(destination)
        .into_iter()
        .filter(is_daemons);
    wrong.extend(blind.map(|entry| {
        format!(
            "a delete without condition or version: {}",
            what(&entry.call)
        )
    }));
    for upload in sim.s3.uploads_ended(destination) {
        // A daemon that takes over a key ends what its predecessor began.
        let are_daemons = [&upload.ended_by, &upload.begun_by]
            .iter()
            .all(|client| client.starts_with("daemon"));
        if upload.entry.is_none()
            && upload.ended_by != upload.begun_by
            && !(are_daemons && sim.is_shared)
        {
            wrong.push(format!(
                "{} aborted an upload of {}",
                upload.ended_by, upload.begun_by
            ));
        }
    }
    for upload in sim.s3.open_uploads(destination) {
        let is_excused = is_named_to_nobody(&requests, &upload)
            || is_forgotten(expect, &upload)
            || is_only_aborted(&requests, &upload)
            || is_taken_over(&requests, destination, &upload);
        if upload.by.starts_with("daemon") && !is_excused {
            wrong.push(format!("an upload is left open: {upload:?}"));
        }
    }
}

/// Says what is wrong with a request. In latest mode a read may find out what is current.
fn fault(call: &Call, is_latest: bool) -> Option<String> {
    let in_source = call.bucket.as_deref() == Some(SOURCE);
    let fault = match call.operation.as_str() {
        "GetObject" | "HeadObject" if in_source && is_latest => return None,
        "GetObject" | "HeadObject" if in_source && call.version.is_none() => {
            "a read of the source without a version"
        }
        "CreateMultipartUpload" | "UploadPart" | "AbortMultipartUpload" if in_source => {
            "a write to the source"
        }
        _ if in_source && call.writes() => "a write to the source",
        "PutObject" | "CompleteMultipartUpload" if call.conditions.is_empty() => {
            "a write without a condition"
        }
        _ => return None,
    };
    Some(format!("{fault}: {}", what(call)))
}

fn what(call: &Call) -> String {
    format!("{} {:?}", call.operation, call.key)
}

/// Says whether the client that began an upload was never told its name.
fn is_named_to_nobody(requests: &[Entry], upload: &OpenUpload) -> bool {
    let begins = |entry: &&Entry| {
        entry.call.operation == "CreateMultipartUpload"
            && entry.call.upload.as_ref() == Some(&upload.upload_id)
    };
    requests
        .iter()
        .find(begins)
        .is_some_and(|entry| !matches!(entry.answer, Answer::Given(_, 200)))
        || is_sought_in_vain(requests, upload)
}

/// Says whether the list that was to tell the name, because the answer held none, was refused as
/// well, or the abort of what it told.
fn is_sought_in_vain(requests: &[Entry], upload: &OpenUpload) -> bool {
    let of_upload = |entry: &&Entry| entry.call.upload.as_ref() == Some(&upload.upload_id);
    let Some(begun) = requests.iter().find(of_upload) else {
        return false;
    };
    let is_next = |entry: &&Entry| entry.number > begun.number && entry.client == begun.client;
    let list = requests
        .iter()
        .filter(is_next)
        .find(|entry| entry.call.operation == "ListMultipartUploads");
    let is_abort =
        |entry: &&Entry| entry.call.operation == "AbortMultipartUpload" && of_upload(entry);
    let abort = requests.iter().filter(is_next).find(is_abort);
    let is_list_refused = list.is_some_and(|list| !matches!(list.answer, Answer::Given(_, 200)));
    let is_abort_refused =
        abort.is_some_and(|abort| !matches!(abort.answer, Answer::Given(_, 204)));
    begun
        .faults
        .iter()
        .any(|name| name == "cut name of an upload")
        && (is_list_refused || is_abort_refused)
}

/// Says whether all that was sent of an upload is an abort, which was refused. The daemon begins
/// such a one to learn the name that lists of uploads give it, and has no record of that: the key's
/// next takeover ends it, or a lifecycle rule does.
fn is_only_aborted(requests: &[Entry], upload: &OpenUpload) -> bool {
    let of_upload = |entry: &&Entry| entry.call.upload.as_ref() == Some(&upload.upload_id);
    let mut sent = requests.iter().filter(of_upload).skip(1).peekable();
    let is_refused = |entry: &Entry| {
        entry.call.operation == "AbortMultipartUpload"
            && !matches!(entry.answer, Answer::Given(_, 204))
    };
    sent.peek().is_some() && sent.all(is_refused)
}

/// Says whether the client that began an upload may have died with its name, or lost the disk that
/// had it.
fn is_forgotten(expect: Expect, upload: &OpenUpload) -> bool {
    let number = upload
        .by
        .strip_prefix("daemon-")
        .and_then(|number| number.parse::<usize>().ok());
    number
        .and_then(|number| expect.forgetful.get(number).copied())
        .unwrap_or(false)
}

/// Says whether another daemon worked at the key since. Then the one that began the upload ends it
/// when it works at the key again, or a lifecycle rule does.
fn is_taken_over(requests: &[Entry], destination: &str, upload: &OpenUpload) -> bool {
    let mut since = requests
        .iter()
        .skip_while(|entry| entry.call.upload.as_ref() != Some(&upload.upload_id));
    since.any(|Entry { client, call, .. }| {
        *client != upload.by
            && call.key.as_ref() == Some(&upload.key)
            && call.bucket.as_deref() == Some(destination)
    })
}
