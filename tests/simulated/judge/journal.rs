//! What no request of a daemon may ever be, and that no upload is left behind.

use replicator_fakes::journal::Service;

use super::Expect;
use crate::sim::{SOURCE, Sim};

pub(super) fn judge(sim: &Sim, destination: &str, expect: Expect, wrong: &mut Vec<String>) {
    for entry in sim.net.journal().entries() {
        if !entry.client.starts_with("daemon") || entry.call.service != Service::S3 {
            continue;
        }
        let call = &entry.call;
        let in_source = call.bucket.as_deref() == Some(SOURCE);
        let what = format!("{} {:?}", call.operation, call.key);
        match call.operation.as_str() {
            "GetObject" | "HeadObject" if in_source && call.version.is_none() => {
                wrong.push(format!("a read of the source without a version: {what}"));
            }
            "PutObject" | "DeleteObject" | "CompleteMultipartUpload" | "PutObjectTagging" | "CopyObject"
                if in_source =>
            {
                wrong.push(format!("a write to the source: {what}"));
            }
            "DeleteObject" if call.version.is_none() && !call.conditions.contains_key("if-match") => {
                wrong.push(format!("a delete without condition or version: {what}"));
            }
            "PutObject" | "CompleteMultipartUpload" if call.conditions.is_empty() => {
                wrong.push(format!("a write without a condition: {what}"));
            }
            _ => {}
        }
    }
    for upload in sim.s3.uploads_ended(destination) {
        if upload.entry.is_none() && upload.ended_by != upload.begun_by {
            wrong.push(format!("{} aborted an upload of {}", upload.ended_by, upload.begun_by));
        }
    }
    let open = sim.s3.open_uploads(destination);
    if !open.is_empty() && !expect.orphans {
        wrong.push(format!("uploads are left open: {open:?}"));
    }
}
