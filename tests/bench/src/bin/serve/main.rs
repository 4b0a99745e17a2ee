//! The fakes over TCP: buckets and queues that cost little, so that what a client costs shows. It
//! is told what to do by lines on its standard input and answers each with one line of JSON. A FILE
//! has keys, one a line.
//!
//! `seed FILE BYTES OBJECTS`: puts so many objects into the source, under these keys in turn.
//! `repeat FILE BYTES`: the same object under each of these keys. `others FILE DESTINATIONS`: these
//! keys are at the source and in so many destinations, and no event is sent of them. `hold`: the
//! rest of the line is an event of an object that is elsewhere. `post N`: announces so many of what
//! was put and held, as fast as they are received. `pace PER_SECOND`: announces the others as time
//! goes. `waiting`: how many messages are left and how many replicas there are, which is cheap.
//! `replicas`: the sizes of all versions that were written to the first destination, by key. `stats
//! BUCKET`: the requests and the progress so far, as to one destination.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a world that is broken ends its run at once, and its time is the real one"
)]

mod world;

use std::fs;

use anyhow::{Context, bail};
use replicator_fakes::wire;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use world::World;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let world = World::new(&endpoint);
    say(&world.hello());
    let net = world.net.clone();
    tokio::select! {
        told = obey(world) => told,
        never = wire::serve(listener, net) => match never {},
    }
}

async fn obey(world: World) -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut work = JoinSet::new();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split(' ').collect();
        let mut said = None;
        match words.as_slice() {
            ["seed", file, bytes, objects] => {
                world
                    .seed(&keys(file)?, bytes.parse()?, objects.parse()?)
                    .await?;
            }
            ["repeat", file, bytes] => world.repeat(&keys(file)?, bytes.parse()?).await?,
            ["others", file, destinations] => {
                world.fill(&keys(file)?, destinations.parse()?).await?;
            }
            ["hold", ..] => world.hold(line.trim_start_matches("hold ").to_owned()),
            ["post", count] => drop(work.spawn(world.clone().post(count.parse()?))),
            ["pace", per_second] => drop(work.spawn(world.clone().pace(per_second.parse()?))),
            ["waiting"] => {}
            ["replicas"] => said = Some(json!(world.replicas())),
            ["stats", bucket] => said = Some(world.stats(bucket)),
            _ => bail!("what is {line:?}?"),
        }
        say(&said.unwrap_or_else(|| world.progress()));
    }
    Ok(())
}

fn keys(file: &str) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    Ok(text.lines().map(str::to_owned).collect())
}

#[allow(clippy::print_stdout, reason = "this is how the benchmark hears of it")]
fn say(what: &Value) {
    println!("{what}");
}
