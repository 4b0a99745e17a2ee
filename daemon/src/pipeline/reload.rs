//! What a reload may not change: the way that a key's work goes, of which there is one in the whole
//! fleet.

use replicator_config::Settings;
use replicator_core::rule::Rule;

/// Finds a rule whose work would go through no work queue instead of one or the other way around,
/// through one that is not polled, through another one than before, or to another bucket than that
/// is polled for.
pub(super) fn rerouted<'a>(old: &Settings, new: &'a Settings) -> Option<&'a str> {
    let had_queues = !old.work_queues.is_empty();
    let is_polled = |rule: &Rule| {
        let same = |other: &&Rule| other.enabled && other.work_queue == rule.work_queue;
        old.rules
            .iter()
            .find(same)
            .is_some_and(|other| other.destination == rule.destination)
    };
    let moved = |rule: &Rule| {
        let before = old
            .rules
            .iter()
            .find(|other| other.id == rule.id && other.enabled);
        before.is_some_and(|before| before.work_queue != rule.work_queue)
    };
    let is_wrong = |rule: &&Rule| match &rule.work_queue {
        Some(_) => !had_queues || !is_polled(rule) || moved(rule),
        None => had_queues,
    };
    new.rules
        .iter()
        .filter(|rule| rule.enabled)
        .find(is_wrong)
        .map(|rule| rule.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(rules: &str) -> Settings {
        let accounts =
            "[accounts.a]\nregion = \"eu-west-1\"\n[accounts.b]\nregion = \"us-east-1\"\n";
        let url = "https://sqs.eu-west-1.amazonaws.com/111111111111/";
        let queue = format!(
            "[[queues]]\nurl = \"{url}events\"\naccount = \"a\"\ndead_letter_url = \"{url}parked\"\n"
        );
        let rules = rules
            .replace("work_queue = ", &format!("work_queue = \"{url}"))
            .replace(".fifo", ".fifo\"");
        replicator_config::parse(&format!("state_dir = \"/tmp\"\n{accounts}{queue}{rules}"))
            .unwrap()
    }

    fn rule(id: &str, bucket: &str, rest: &str) -> String {
        format!(
            "[[rules]]\nid = \"{id}\"\nsource = {{ account = \"a\", bucket = \"orders\" }}\n\
             destination = {{ account = \"b\", bucket = \"{bucket}\" }}\n{rest}\n"
        )
    }

    #[test]
    fn a_rule_keeps_the_way_of_its_work_until_a_restart() {
        let one = rule("one", "replicas", "work_queue = one.fifo");
        let same = |rest: &str| rule("two", "replicas", &format!("work_queue = one.fifo\n{rest}"));
        let cases = [
            (one.clone(), one.clone(), None),
            (one.clone(), format!("{one}{}", same("priority = 1")), None),
            (one.clone(), rule("one", "replicas", ""), Some("one")),
            (rule("one", "replicas", ""), one.clone(), Some("one")),
            (
                one.clone(),
                rule("one", "replicas", "work_queue = other.fifo"),
                Some("one"),
            ),
            (
                one.clone(),
                rule("one", "elsewhere", "work_queue = one.fifo"),
                Some("one"),
            ),
            (
                rule("one", "replicas", "enabled = false\nwork_queue = one.fifo"),
                one.clone(),
                Some("one"),
            ),
            (one, rule("one", "replicas", "enabled = false"), None),
        ];
        for (old, new, expected) in cases {
            assert_eq!(
                rerouted(&settings(&old), &settings(&new)),
                expected,
                "{old}{new}"
            );
        }
    }
}
