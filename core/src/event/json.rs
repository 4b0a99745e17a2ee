//! JSON as a message may hold it: any, but for objects that have a name twice. Readers differ in
//! which of the two they believe, so such a message means one thing here and another elsewhere.
//! Typed access to the fields of an object; a failure names the path and never the value.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Sequencer;
use super::{DecodeError, DecodeProblem};
use crate::object::{self, Bucket, Timestamp, VersionId};

/// Reads the JSON of a part of a message.
pub(super) fn parse_strict(text: &str, at: &str) -> Result<Value, DecodeError> {
    // The parser's own words are dropped, since they can quote the text.
    let refuse = |error: serde_json::Error| {
        let position = format!("line {} column {}", error.line(), error.column());
        let problem = match error.is_data() {
            true => DecodeProblem::Twice(position),
            false => DecodeProblem::Json(position),
        };
        DecodeError::new(at, problem)
    };
    serde_json::from_str(text)
        .map(|Unambiguous(value)| value)
        .map_err(refuse)
}

struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Value, E> {
        Ok(truth.into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unambiguous(element)) = elements.next_element()? {
            list.push(element);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Unambiguous(value))) = entries.next_entry::<String, _>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a name twice"));
            }
        }
        Ok(map.into())
    }
}

/// A JSON object and the path that leads to it.
#[derive(Debug)]
pub(super) struct JsonObject<'a> {
    map: &'a Map<String, Value>,
    at: String,
}

impl<'a> JsonObject<'a> {
    /// Takes the outermost value of a message, which has to be an object.
    pub(super) fn root_object(value: &'a Value, at: &str) -> Result<Self, DecodeError> {
        let map = value
            .as_object()
            .ok_or_else(|| DecodeError::new(at, DecodeProblem::Unknown))?;
        let at = at.to_owned();
        Ok(Self { map, at })
    }

    /// Says that this object has no known format.
    pub(super) fn unknown(&self) -> DecodeError {
        DecodeError::new(&self.at, DecodeProblem::Unknown)
    }

    /// Says what is wrong with a field.
    pub(super) fn error(&self, name: &str, problem: DecodeProblem) -> DecodeError {
        DecodeError::new(self.field_path(name), problem)
    }

    /// Says that a field does not hold what it should.
    pub(super) fn invalid_field(&self, name: &str, wanted: &'static str) -> DecodeError {
        self.error(name, DecodeProblem::Wrong(wanted))
    }

    fn field_path(&self, name: &str) -> String {
        format!("{}.{name}", self.at)
    }

    /// Says whether a field is there, whatever it holds.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Returns an object that must be there.
    pub(super) fn required_object(&self, name: &str) -> Result<Self, DecodeError> {
        let map = self
            .required_value(name)?
            .as_object()
            .ok_or_else(|| self.invalid_field(name, "an object"))?;
        Ok(Self {
            map,
            at: self.field_path(name),
        })
    }

    /// Returns a list of objects that must be there; the path of each has its index.
    pub(super) fn objects(
        &self,
        name: &str,
    ) -> Result<impl Iterator<Item = Result<Self, DecodeError>>, DecodeError> {
        let values = self
            .required_value(name)?
            .as_array()
            .ok_or_else(|| self.invalid_field(name, "a list"))?;
        Ok(values.iter().enumerate().map(move |(index, value)| {
            let at = format!("{}[{index}]", self.field_path(name));
            match value.as_object() {
                Some(map) => Ok(Self { map, at }),
                None => Err(DecodeError::new(at, DecodeProblem::Wrong("an object"))),
            }
        }))
    }

    /// Returns a text that must be there.
    pub(super) fn required_text(&self, name: &str) -> Result<&'a str, DecodeError> {
        self.required_value(name)?
            .as_str()
            .ok_or_else(|| self.invalid_field(name, "a string"))
    }

    /// Returns a text if there is one.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.map.get(name)?.as_str()
    }

    /// Returns the bucket's name.
    pub(super) fn bucket(&self, name: &str) -> Result<Bucket, DecodeError> {
        Bucket::try_from(self.required_text(name)?)
            .map_err(|_| self.invalid_field(name, "a bucket name"))
    }

    /// Returns a version id; an empty one means that the bucket keeps no versions.
    pub(super) fn version(&self, name: &str) -> Result<Option<VersionId>, DecodeError> {
        match self.map.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(_) => {}
        }
        match self.required_text(name)? {
            "" => Ok(None),
            text => VersionId::try_from(text)
                .map(Some)
                .map_err(|_| self.invalid_field(name, "a version id")),
        }
    }

    /// Returns a sequencer if there is a good one: it only saves work, so a bad one is not worth a
    /// refusal.
    pub(super) fn sequencer(&self, name: &str) -> Option<Sequencer> {
        self.text(name)?.parse().ok()
    }

    /// Returns a moment if there is a good one: it only serves to measure delays, and one from
    /// before there was an S3 would measure nonsense.
    pub(super) fn optional_time(&self, name: &str) -> Option<Timestamp> {
        object::parse_rfc3339(self.text(name)?).filter(|moment| moment.year() >= FIRST_YEAR)
    }

    /// Reads a whole number; anything else counts as missing, because it only informs.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.required_value(name).ok()?.as_u64()
    }

    fn required_value(&self, name: &str) -> Result<&'a Value, DecodeError> {
        self.map
            .get(name)
            .ok_or_else(|| self.error(name, DecodeProblem::Missing))
    }
}

// S3 opened in March 2006.
const FIRST_YEAR: i32 = 2006;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_that_stands_twice_is_refused_at_any_depth_and_with_its_place() {
        let table = [
            (
                r#"{"a":1,"a":1}"#,
                "message has an object with the same name twice: line 1 column 13",
            ),
            (
                "{\"b\":[\n{\"a\":1,\"\\u0061\":2}]}",
                "message has an object with the same name twice: line 2 column 18",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse_strict(text, "message").unwrap_err().to_string(),
                expected
            );
        }
        assert_eq!(
            parse_strict(r#"{"a":{"a":1},"b":{"a":1}}"#, "message"),
            Ok(json!({ "a": { "a": 1 }, "b": { "a": 1 } }))
        );
    }

    #[test]
    fn nesting_that_would_exhaust_the_stack_is_refused() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse_strict(&deep(100), "message").is_ok());
        assert!(matches!(
            parse_strict(&deep(100_000), "message"),
            Err(DecodeError {
                problem: DecodeProblem::Json(_),
                ..
            })
        ));
    }

    proptest! {
        #[test]
        fn everything_else_is_read_as_it_stands(text in any_json()) {
            prop_assert_eq!(parse_strict(&text, "message").ok(), serde_json::from_str(&text).ok());
        }
    }

    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        (value, any::<bool>()).prop_map(|(value, pretty)| {
            if pretty {
                format!("{value:#}")
            } else {
                value.to_string()
            }
        })
    }
}
