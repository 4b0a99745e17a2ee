//! What a terminal shows: keys and messages of services are text there, and command nothing.

use crate::world::daemon::{Daemon, printed, run};
use crate::world::hostile::{ARCHIVE, Hostile, Reply};

#[tokio::test(flavor = "multi_thread")]
async fn no_key_commands_the_terminal_that_shows_it() {
    let world = Hostile::new().await;
    let config = world.config();
    // C0, C1 and a text that is turned around: what is shown as "gpj.exe" may end in "exe.jpg".
    let key = "a\u{1b}[2J\u{9b}31m\u{85}\u{202e}gpj.exe\u{2066}";
    world.answer(
        |seen| seen.is(ARCHIVE, "PutObject"),
        Reply::refusal("403 Forbidden", "AccessDenied", "\u{202e}no"),
    );
    world.put(key, b"one".to_vec()).await;
    world.put("plain", b"one".to_vec()).await;
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained().await;
    let list = printed(&run(&["failures", "list"], &config.path).await);
    let json = printed(&run(&["failures", "list", "--json"], &config.path).await);
    let (status, log) = (printed(&run(&["status"], &config.path).await), daemon.log());
    for (what, text) in [
        ("list", &list),
        ("json", &json),
        ("status", &status),
        ("log", &log),
    ] {
        let commands = text
            .chars()
            .filter(|c| *c != '\n' && (c.is_control() || "\u{202e}\u{2066}".contains(*c)));
        assert_eq!(commands.collect::<String>(), "", "{what}: {text:?}");
    }
    assert!(
        list.contains("\\u{202e}gpj.exe") && log.contains("u{202e}gpj.exe"),
        "{list}\n{log}"
    );
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let keys: Vec<_> = json["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| failure["key"].as_str())
        .collect();
    assert!(keys.contains(&Some(key)), "it means the same: {keys:?}");
}
