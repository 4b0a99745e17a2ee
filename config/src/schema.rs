//! The file as written: every table and every key it can have, all of them optional here.
//! What may be left out, and what it then means, is said in `settings`.

use std::collections::BTreeMap;

use toml::de::DeValue;

use crate::diagnostics::{Location, Problems};
use crate::reader::{Field, FromToml, Scalar, open};

/// Declares tables: a struct of fields, and how it is read.
macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name {
            $(pub(crate) $key: Field<$kind>,)*
        }

        impl FromToml for $name {
            const KIND: &'static str = "a table";

            fn read(value: &DeValue<'_>, spot: &Location, problems: &mut Problems<'_>) -> Option<Self> {
                let table = open(value, &[$(stringify!($key)),*], spot, problems)?;
                Some(Self { $($key: Field::of_table(table, stringify!($key), spot, problems),)* })
            }

            #[cfg(test)]
            fn list_keys(path: &str, keys: &mut Vec<String>) {
                $(
                    let key = format!("{path}.{}", stringify!($key));
                    <$kind>::list_keys(&key, keys);
                    keys.push(key);
                )*
            }
        }
    )* };
}

tables! {
    /// The whole file.
    File {
        state_dir: String,
        listen: String,
        listen_hosts: Vec<Field<String>>,
        api_token_file: String,
        memory: Scalar,
        drain_timeout: String,
        accounts: BTreeMap<String, Field<Account>>,
        queues: Vec<Field<Queue>>,
        rules: Vec<Field<Rule>>,
    }

    /// `[accounts.NAME]`: credentials, and where they are good for.
    Account {
        region: String,
        role_arn: String,
        external_id: String,
        profile: String,
        endpoint: String,
        endpoints: Endpoints,
        path_style: bool,
        conditional_writes: Scalar,
        owner: Scalar,
        allow_http: bool,
        use_dualstack: bool,
        use_fips: bool,
        access_points: BTreeMap<String, Field<String>>,
    }

    /// `endpoints`: exceptions to `endpoint`.
    Endpoints {
        s3: String,
        sqs: String,
        kms: String,
        sts: String,
    }

    /// `[[queues]]`: where events come from.
    Queue {
        url: String,
        account: String,
        visibility_timeout: String,
        dead_letter_url: String,
        work_queue: String,
        backfill_queue: String,
    }

    /// `[[rules]]`: what goes where, and how.
    Rule {
        id: String,
        enabled: bool,
        priority: i64,
        source: Source,
        destination: Destination,
        filter: Filter,
        history: String,
        since: Scalar,
        work_queue: String,
        backfill_queue: String,
        reconcile: String,
        unmanaged_objects: String,
        delete_markers: bool,
        version_deletes: bool,
        version_delete_delay: String,
        version_deletes_per_hour: i64,
        acl: String,
        replicas: String,
        verify: String,
        encryption: Encryption,
        sse_kms_objects: bool,
        client_side_keys: BTreeMap<String, Field<String>>,
        limits: Limits,
    }

    /// `source`.
    Source {
        account: String,
        bucket: String,
    }

    /// `destination`.
    Destination {
        account: String,
        bucket: String,
        storage_class: String,
        prefix: String,
        limits: Limits,
    }

    /// `filter`: every part that is given must match.
    Filter {
        prefix: String,
        suffix: String,
        exclude: Vec<Field<String>>,
        exclude_prefixes: Vec<Field<String>>,
        tags: BTreeMap<String, Field<String>>,
        exclude_tags: BTreeMap<String, Field<Vec<Field<String>>>>,
        size_min: Scalar,
        size_max: Scalar,
    }

    /// `encryption`: how replicas are encrypted.
    Encryption {
        mode: String,
        key: String,
        bucket_key: bool,
        key_map: BTreeMap<String, Field<String>>,
    }

    /// `limits`: what the rule may use, or all rules together of a destination.
    Limits {
        bandwidth: String,
        requests_per_second: i64,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use toml::de::DeTable;

    use super::*;

    #[test]
    fn the_example_has_every_key() {
        let document = DeTable::parse(include_str!("../example.toml"))
            .unwrap()
            .into_inner();
        let example = DeValue::Table(document);
        let mut keys = Vec::new();
        File::list_keys("", &mut keys);
        assert!(keys.contains(&".rules.[].filter.size_min".to_owned()));
        for key in keys {
            let steps: Vec<&str> = key.split('.').skip(1).collect();
            assert!(has(&example, &steps), "the example lacks {key}");
        }
    }

    #[test]
    fn the_documentation_has_every_key_and_no_other() {
        let mut keys = Vec::new();
        File::list_keys("", &mut keys);
        let documented = documented(include_str!("../../docs/configuration.md"));
        assert!(documented.contains(&(".rules.[].filter".to_owned(), "size_min".to_owned())));
        let split = |key: &String| {
            key.rsplit_once('.')
                .map(|(table, key)| (table.to_owned(), key.to_owned()))
        };
        let schema: BTreeSet<_> = keys.iter().filter_map(split).collect();
        assert_eq!(documented, schema);
    }

    /// Lists the keys of a page by their tables: headings name tables, and each key has a row.
    fn documented(page: &str) -> BTreeSet<(String, String)> {
        let mut table = None;
        let mut keys = BTreeSet::new();
        for line in page.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                table = path(heading);
            }
            let key = line
                .strip_prefix("| `")
                .and_then(|rest| rest.split_once('`'));
            keys.extend(table.clone().zip(key.map(|(key, _)| key.to_owned())));
        }
        keys
    }

    /// Returns the path of the table that a heading names, if it names one.
    fn path(heading: &str) -> Option<String> {
        if heading == "Top level" {
            return Some(String::new());
        }
        let (name, fields) = heading.strip_prefix('[')?.rsplit_once(']')?;
        let (name, fields) = match name.strip_prefix('[') {
            Some(name) => (format!("{}.[]", name.trim_end_matches(']')), fields),
            None => (name.replace("NAME", "*"), fields),
        };
        Some(format!(".{name}{fields}"))
    }

    /// Says whether a path leads somewhere; `[]` is any element and `*` any key.
    fn has(value: &DeValue<'_>, steps: &[&str]) -> bool {
        let Some((step, rest)) = steps.split_first() else {
            return true;
        };
        match (value, *step) {
            (DeValue::Array(elements), "[]") => {
                elements.iter().any(|element| has(element.get_ref(), rest))
            }
            (DeValue::Table(table), "*") => table.values().any(|value| has(value.get_ref(), rest)),
            (value, key) => value
                .get(key)
                .is_some_and(|value| has(value.get_ref(), rest)),
        }
    }
}
