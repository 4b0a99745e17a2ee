//! JSON as a message may hold it: any, but for objects that have a name twice. Readers differ in
//! which of the two they believe, so such a message means one thing here and another elsewhere.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::DecodeError;

/// Reads the JSON of a part of a message.
pub(super) fn parse_strict(text: &str, at: &str) -> Result<Value, DecodeError> {
    // The parser's own words are dropped, since they can quote the text.
    let refuse = |error: serde_json::Error| {
        let (at, line, column) = (at.to_owned(), error.line(), error.column());
        if error.is_data() {
            DecodeError::Twice { at, line, column }
        } else {
            DecodeError::Json { at, line, column }
        }
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
            Err(DecodeError::Json { .. })
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
