//! What the process sets up before it begins: files for its user alone, enough descriptors, and no
//! core dumps; and how it writes its log.

use std::io::{self, Write};

use anyhow::bail;
use replicator_core::object::without_commands;
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
};

// Two connections for each of 256 tasks at work, those of the status server, and the ledger's
// files, with as many again for uploads that have several parts on their way.
const DESCRIPTORS_MIN: u64 = 1024;

/// Lets what this process creates be read by its own user alone: the ledger names keys.
pub fn restrict_files() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// Takes as many descriptors as the process may have; an error says that those do not suffice.
pub fn raise_descriptors() -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // What fails here leaves the limit as it was, which is read next.
    let _left = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    let limit = getrlimit(Resource::Nofile)
        .current
        .or(current)
        .unwrap_or(u64::MAX);
    if limit < DESCRIPTORS_MIN {
        bail!(
            "at most {limit} files and connections may be open, and {DESCRIPTORS_MIN} are needed; raise the hard limit: \
             LimitNOFILE= of the unit, `ulimits` of the container, or `ulimit -Hn`"
        );
    }
    Ok(())
}

/// Lets no memory be written to a core file: credentials are in it. The kernel dumps no process
/// that is not dumpable, to a pipe neither; the limit says so where it is looked at.
pub fn forbid_core_dumps() -> io::Result<()> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Standard error, as the log is written to it. Keys and messages of services are in there, and are
/// no commands to the terminal that shows them. A log that takes nothing, as on a full disk, is no
/// reason to end.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let _lost = io::stderr().write_all(without_commands(&text).as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
