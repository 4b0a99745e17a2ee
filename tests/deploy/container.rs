//! The image is built from the release binary as the documentation says, and the daemon does its
//! work in it: as a user that is not root, with no shell, and with the health check of the image.
//! The base image of the Containerfile is in a registry; here the C library and the certificates of
//! this machine stand for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::World;
use crate::world::daemon::{Daemon, SECRET, binary, printed};
use crate::world::localstack::SOURCE;
use crate::world::oracle::root;
use crate::world::secrets;

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_works_in_the_image_and_its_health_check_says_so() {
    let world = World::new().await;
    let store = Store::new();
    store.build_base();
    store.build_image();
    let image = store.image();
    assert_eq!(image["User"], "65532:65532");
    assert_eq!(image["Entrypoint"], json!(["/usr/local/bin/s3-replicator"]));
    assert_eq!(image["Cmd"], json!(["run"]));
    assert_eq!(image["StopSignal"], "SIGTERM");
    assert_eq!(image["Volumes"], json!({"/var/lib/s3-replicator": {}}));
    let check = json!(["CMD", "/usr/local/bin/s3-replicator", "health"]);
    assert_eq!(image["Healthcheck"]["Test"], check);

    let mut config = world.config();
    config.state_dir = "/var/lib/s3-replicator".into();
    let container = store.container(&config.text());
    let output = store
        .buildah(&["run", &container, "--", "/bin/sh"])
        .output()
        .unwrap();
    assert!(!output.status.success(), "there is a shell");
    let command = |verb| {
        [
            "run",
            &container,
            "--",
            "/usr/local/bin/s3-replicator",
            verb,
            "--config",
            "env:S3_REPLICATOR_CONFIG",
        ]
    };
    let health = || {
        let output = store.buildah(&command("health")).output().unwrap();
        secrets::assert_none_in("the health check of the image", &printed(&output));
        output
    };
    assert!(!health().status.success(), "nothing runs yet");
    let daemon = Daemon::start(store.buildah(&command("run")).into(), &config);
    let _ended = Ended(daemon.process());
    let daemon = daemon.ready().await;
    world.put("report", "first").await;
    world.drained(&daemon).await;
    world.assert_equal().await;
    let output = health();
    assert!(output.status.success(), "{}", printed(&output));
    // The state is in a volume of the container, where the daemon of the test does not look for it.
    let ledgers = folders_with(store.0.path(), "CURRENT");
    let files = ledgers
        .iter()
        .map(|ledger| secrets::assert_none_below(ledger));
    assert!(
        files.sum::<usize>() > 1,
        "no ledger in {}",
        store.0.path().display()
    );
}

/// Finds the folders below another one that have a file of a name.
fn folders_with(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(folders_with(&entry.path(), name));
        } else if entry.file_name() == name {
            found.push(folder.to_owned());
        }
    }
    found
}

/// Images and containers of one test.
struct Store(TempDir);

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{at}/graph\"\nrunroot = \"{at}/run\"\n"
        );
        fs::write(dir.path().join("storage.conf"), storage).unwrap();
        Self(dir)
    }

    /// Prepares a call of buildah, which needs no daemon and no namespaces.
    fn buildah(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.args(arguments);
        command.env("BUILDAH_ISOLATION", "chroot");
        command.env(
            "CONTAINERS_STORAGE_CONF",
            self.0.path().join("storage.conf"),
        );
        command
    }

    /// Makes the base: what the binary is linked with, and certificates.
    fn build_base(&self) {
        let context = self.0.path().join("base");
        let linked = run(Command::new("ldd").arg(binary()));
        let libraries = linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        for file in libraries.chain([CERTIFICATES]) {
            let copy = PathBuf::from(format!("{}/files{file}", context.display()));
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(file, copy).unwrap();
        }
        let containerfile = "FROM scratch\nCOPY files /\n";
        fs::write(context.join("Containerfile"), containerfile).unwrap();
        run(self
            .buildah(&["build", "--tag", "localhost/base"])
            .arg(context));
    }

    /// Makes the image by the script that is documented.
    fn build_image(&self) {
        let mut script = Command::new(root().join("deploy/container/build"));
        let like = self.buildah(&[
            "buildah",
            "--build-arg",
            "BASE=localhost/base",
            "--tag",
            "localhost/s3-replicator",
        ]);
        script.args(like.get_args());
        script.envs(
            like.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        run(script.env("S3_REPLICATOR_BIN", binary()));
    }

    /// Returns the configuration of the image.
    fn image(&self) -> Value {
        let image =
            run(&mut self.buildah(&["inspect", "--type", "image", "localhost/s3-replicator"]));
        serde_json::from_str::<Value>(&image).unwrap()["Docker"]["config"].take()
    }

    /// Makes a container with a configuration and credentials in its environment.
    fn container(&self, config: &str) -> String {
        let name = run(&mut self.buildah(&["from", "localhost/s3-replicator"]))
            .trim()
            .to_owned();
        let environment = [
            format!("S3_REPLICATOR_CONFIG={config}"),
            format!("AWS_ACCESS_KEY_ID={}", SOURCE.id),
            format!("AWS_SECRET_ACCESS_KEY={SECRET}"),
            "AWS_EC2_METADATA_DISABLED=true".to_owned(),
        ];
        let mut set = self.buildah(&["config"]);
        set.args(environment.iter().flat_map(|variable| ["--env", variable]));
        run(set.arg(&name));
        name
    }
}

/// Ends buildah with the test, and so what it runs: ended by force it would leave that running.
struct Ended(Pid);

impl Drop for Ended {
    fn drop(&mut self) {
        let _is_gone = kill_process(self.0, Signal::TERM);
    }
}

/// Runs a command that must succeed, and returns what it printed.
fn run(command: &mut Command) -> String {
    let output: Output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: `deploy/local/setup` installs it"));
    assert!(output.status.success(), "{command:?}: {}", printed(&output));
    String::from_utf8(output.stdout).unwrap()
}
