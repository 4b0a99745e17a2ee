//! The Python side: the workload that writes, and the comparer that judges. Neither shares code
//! with the daemon.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

/// Returns the repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Returns where the evaluator and the emulator of IAM are, beside the environment of LocalStack.
pub(crate) fn iam_dir() -> PathBuf {
    let python =
        env::var("REPLICATOR_PYTHON").expect("REPLICATOR_PYTHON is not set: run `make test`");
    let build_dir = Path::new(&python).ancestors().nth(3).unwrap();
    build_dir.join("iam")
}

/// A script in Python, with its arguments.
#[derive(Debug)]
pub(crate) struct Script(Command);

impl Script {
    /// Names a script of `tests/oracle`.
    pub(crate) fn new(name: &str) -> Self {
        Self::of("tests/oracle", name)
    }

    /// Names a script of another folder.
    pub(crate) fn of(folder: &str, name: &str) -> Self {
        Self::run_by("REPLICATOR_PYTHON", folder, name)
    }

    /// Names the script that has the Amazon S3 Encryption Client.
    pub(crate) fn of_encryption_client() -> Self {
        Self::run_by(
            "REPLICATOR_ENCRYPTION_CLIENT",
            "tests/oracle",
            "encryption_client.py",
        )
    }

    /// Names the script that has Schemathesis.
    pub(crate) fn of_schemathesis() -> Self {
        Self::run_by("REPLICATOR_SCHEMATHESIS", "tests/oracle", "api_contract.py")
    }

    fn run_by(python: &str, folder: &str, name: &str) -> Self {
        let python =
            env::var(python).unwrap_or_else(|_| panic!("{python} is not set: run `make test`"));
        let mut command = Command::new(python);
        command
            .arg("-B")
            .arg(name)
            .current_dir(root().join(folder))
            .kill_on_drop(true);
        Self(command)
    }

    /// Adds a `--name value`.
    pub(crate) fn option(mut self, name: &str, value: impl ToString) -> Self {
        self.0.arg(format!("--{name}={}", value.to_string()));
        self
    }

    /// Runs it to its end, which must be a good one, and returns its last line: a JSON summary.
    pub(crate) async fn summary(self) -> Value {
        let output = self.run().await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{}\n{}\n{errors}",
            output.status,
            shortened(&text)
        );
        eprintln!("{}", text.trim_end());
        serde_json::from_str(text.lines().last().unwrap_or_default())
            .expect("the last line is JSON")
    }

    /// Runs it to its end, good or bad.
    pub(crate) async fn run(mut self) -> Output {
        let child = self
            .0
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        child
            .expect("python starts")
            .wait_with_output()
            .await
            .unwrap()
    }
}

/// Keeps the first differences and the summary: hundreds of lines say no more.
fn shortened(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (head, tail) = lines.split_at(lines.len().min(40));
    let left_out = tail.len().saturating_sub(1);
    let gap = (left_out > 0).then(|| format!("… {left_out} more"));
    head.iter()
        .map(ToString::to_string)
        .chain(gap)
        .chain(tail.last().map(ToString::to_string))
        .collect::<Vec<_>>()
        .join("\n")
}
