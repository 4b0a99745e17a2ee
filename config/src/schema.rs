//! The file as written: every table and every key it can have, all of them optional here, and how
//! TOML becomes these, with their positions. A wrong key or type is reported and the reading goes
//! on, so that one pass finds them all. What may be left out, and what it then means, is said in
//! `settings`.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Location, Problems, line_and_column};
use crate::values::suggest_nearest;

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

/// Returns the line of a valid file in which a path like `rules[0].filter.prefix` stands; where not
/// all of it is written, that of the table which would hold it.
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut offset = None;
    let mut found = &DeValue::Table(document.into_inner());
    for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
        let next = match found {
            DeValue::Table(table) => table.get(step),
            DeValue::Array(list) => step.parse().ok().and_then(|at: usize| list.get(at)),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => None,
        };
        let Some(next) = next else { break };
        offset = Some(next.span().start);
        found = next.get_ref();
    }
    offset.map(|offset| line_and_column(text, offset).0)
}

/// A key of a table, whether it is there or not.
#[derive(Debug)]
pub(crate) struct Field<T> {
    /// Where it stands, or where it is missing.
    pub(crate) spot: Location,
    content: Content<T>,
}

#[derive(Debug)]
enum Content<T> {
    Absent,
    /// There, but of the wrong type, which is reported already.
    Broken,
    Given(T),
}

impl<T> Field<T> {
    /// Returns what was written, if it was.
    pub(crate) fn present_value(&self) -> Option<&T> {
        match &self.content {
            Content::Given(value) => Some(value),
            Content::Absent | Content::Broken => None,
        }
    }

    /// Returns what was written, and reports its absence with the remedy.
    pub(crate) fn require_present(&self, remedy: &str, problems: &mut Problems<'_>) -> Option<&T> {
        if self.is_absent() {
            problems.add_problem(&self.spot, format!("missing; {remedy}"));
        }
        self.present_value()
    }

    /// Parses what was written, if it was, and reports a failure here.
    pub(crate) fn parse_with<U, V: ?Sized>(
        &self,
        problems: &mut Problems<'_>,
        parse: impl FnOnce(&V) -> Result<U, String>,
    ) -> Option<U>
    where
        T: Borrow<V>,
    {
        parse(self.present_value()?.borrow())
            .map_err(|message| problems.add_problem(&self.spot, message))
            .ok()
    }

    /// Parses what was written, and reports its absence with the remedy.
    pub(crate) fn require_with<U, V: ?Sized>(
        &self,
        remedy: &str,
        problems: &mut Problems<'_>,
        parse: impl FnOnce(&V) -> Result<U, String>,
    ) -> Option<U>
    where
        T: Borrow<V>,
    {
        self.require_present(remedy, problems)?;
        self.parse_with(problems, parse)
    }

    /// Reports what was written, if it was, as having no place here.
    pub(crate) fn refuse_present(&self, problems: &mut Problems<'_>, message: &str) {
        if !self.is_absent() {
            problems.add_problem(&self.spot, message);
        }
    }

    /// Says whether nothing was written.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.content, Content::Absent)
    }
}

impl<T: Copy> Field<T> {
    /// Returns what was written, or else the default.
    pub(crate) fn value_or(&self, default: T) -> T {
        self.present_value().copied().unwrap_or(default)
    }
}

impl<T> Field<Vec<Field<T>>> {
    /// Returns the elements of a list that could be read.
    pub(crate) fn elements(&self) -> Vec<&T> {
        let elements = self.present_value().into_iter().flatten();
        elements.filter_map(Field::present_value).collect()
    }
}

impl Field<Vec<Field<String>>> {
    /// Parses each element of a list, and reports the failures.
    pub(crate) fn parse_each<U>(
        &self,
        problems: &mut Problems<'_>,
        parse: impl Fn(&str) -> Result<U, String>,
    ) -> Vec<U> {
        let elements = self.present_value().into_iter().flatten();
        elements
            .filter_map(|element| element.parse_with(problems, &parse))
            .collect()
    }
}

/// Something that can stand in the file.
pub(crate) trait FromToml: Sized {
    /// What it is called in messages, with its article.
    const KIND: &'static str;

    /// Reads a value; `None` when its type is wrong.
    fn read(value: &DeValue<'_>, spot: &Location, problems: &mut Problems<'_>) -> Option<Self>;

    /// Adds the path of every key that can stand below `path`.
    #[cfg(test)]
    fn list_keys(_path: &str, _keys: &mut Vec<String>) {}
}

impl<T: FromToml> Field<T> {
    /// Reads a key of a table that stands at `spot`.
    pub(crate) fn of_table(
        table: &DeTable<'_>,
        key: &str,
        spot: &Location,
        problems: &mut Problems<'_>,
    ) -> Self {
        let spot = spot.at_key(key);
        match table.get(key) {
            Some(value) => Self::new(value, spot, problems),
            None => Self {
                spot,
                content: Content::Absent,
            },
        }
    }

    fn new(value: &Spanned<DeValue<'_>>, spot: Location, problems: &mut Problems<'_>) -> Self {
        let spot = spot.at(value.span().start);
        let content = match T::read(value.get_ref(), &spot, problems) {
            Some(value) => Content::Given(value),
            None => {
                let message = format!("must be {}, not {}", T::KIND, kind_of(value.get_ref()));
                problems.add_problem(&spot, message);
                Content::Broken
            }
        };
        Self { spot, content }
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

impl FromToml for String {
    const KIND: &'static str = "a string";

    fn read(value: &DeValue<'_>, _: &Location, _: &mut Problems<'_>) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl FromToml for bool {
    const KIND: &'static str = "true or false";

    fn read(value: &DeValue<'_>, _: &Location, _: &mut Problems<'_>) -> Option<Self> {
        value.as_bool()
    }
}

impl FromToml for i64 {
    const KIND: &'static str = "a whole number";

    fn read(value: &DeValue<'_>, spot: &Location, problems: &mut Problems<'_>) -> Option<Self> {
        let number = value.as_integer()?;
        let parsed = Self::from_str_radix(number.as_str(), number.radix());
        if parsed.is_err() {
            problems.add_problem(spot, format!("{number} is too large"));
        }
        Some(parsed.unwrap_or(Self::MAX))
    }
}

/// Text that may also be written as a bare number, date or truth value.
#[derive(Debug)]
pub(crate) struct Scalar(pub(crate) String);

impl Borrow<str> for Scalar {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromToml for Scalar {
    const KIND: &'static str = "a string";

    fn read(value: &DeValue<'_>, _: &Location, _: &mut Problems<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) => Some(Self(text.to_string())),
            DeValue::Integer(number) => Some(Self(number.to_string())),
            DeValue::Float(number) => Some(Self(number.to_string())),
            DeValue::Boolean(truth) => Some(Self(truth.to_string())),
            DeValue::Datetime(moment) => Some(Self(moment.to_string())),
            DeValue::Array(_) | DeValue::Table(_) => None,
        }
    }
}

/// A list whose elements have positions. An element with an `id` is a rule.
impl<T: FromToml> FromToml for Vec<Field<T>> {
    const KIND: &'static str = "a list";

    fn read(value: &DeValue<'_>, spot: &Location, problems: &mut Problems<'_>) -> Option<Self> {
        let elements = value
            .as_array()?
            .iter()
            .enumerate()
            .map(|(index, element)| {
                let spot = spot.at_element(index);
                let id = element
                    .get_ref()
                    .get("id")
                    .and_then(|id| id.get_ref().as_str());
                let spot = match id {
                    Some(id) => spot.of_rule(id),
                    None => spot,
                };
                Field::new(element, spot, problems)
            });
        Some(elements.collect())
    }

    #[cfg(test)]
    fn list_keys(path: &str, keys: &mut Vec<String>) {
        T::list_keys(&format!("{path}.[]"), keys);
    }
}

/// A table whose keys are free.
impl<T: FromToml> FromToml for BTreeMap<String, Field<T>> {
    const KIND: &'static str = "a table";

    fn read(value: &DeValue<'_>, spot: &Location, problems: &mut Problems<'_>) -> Option<Self> {
        let entries = value.as_table()?.iter().map(|(key, value)| {
            let key = key.get_ref().to_string();
            let field = Field::new(value, spot.at_key(&key), problems);
            (key, field)
        });
        Some(entries.collect())
    }

    #[cfg(test)]
    fn list_keys(path: &str, keys: &mut Vec<String>) {
        T::list_keys(&format!("{path}.*"), keys);
    }
}

/// Opens a table and reports every key that it can't have.
pub(crate) fn open<'v, 'i>(
    value: &'v DeValue<'i>,
    known: &[&str],
    spot: &Location,
    problems: &mut Problems<'_>,
) -> Option<&'v DeTable<'i>> {
    let table = value.as_table()?;
    for key in table.keys() {
        let name = key.get_ref().as_ref();
        if !known.contains(&name) {
            let hint = suggest_nearest(name, known.iter().copied());
            let spot = spot.at_key(name).at(key.span().start);
            problems.add_problem(&spot, format!("unknown key; {hint}"));
        }
    }
    Some(table)
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
