//! Typed access to the fields of a JSON object; a failure names the path and never the value.

use serde_json::{Map, Value};

use super::DecodeError;
use super::Sequencer;
use crate::object::{self, Bucket, Timestamp, VersionId};

/// A JSON object and the path that leads to it.
#[derive(Debug)]
pub(super) struct JsonObject<'a> {
    map: &'a Map<String, Value>,
    at: String,
}

impl<'a> JsonObject<'a> {
    /// Takes the outermost value of a message, which has to be an object.
    pub(super) fn root_object(value: &'a Value, at: &str) -> Result<Self, DecodeError> {
        match value.as_object() {
            Some(map) => Ok(Self {
                map,
                at: at.to_owned(),
            }),
            None => Err(DecodeError::Unknown { at: at.to_owned() }),
        }
    }

    /// Says that this object has no known format.
    pub(super) fn unknown(&self) -> DecodeError {
        DecodeError::Unknown {
            at: self.at.clone(),
        }
    }

    /// Says that a field does not hold what it should.
    pub(super) fn invalid_field(&self, name: &str, wanted: &'static str) -> DecodeError {
        DecodeError::Wrong {
            at: self.field_path(name),
            wanted,
        }
    }

    /// Returns the path of a field.
    pub(super) fn field_path(&self, name: &str) -> String {
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
                None => Err(DecodeError::Wrong {
                    at,
                    wanted: "an object",
                }),
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
        self.map.get(name).ok_or_else(|| DecodeError::Missing {
            at: self.field_path(name),
        })
    }
}

// S3 opened in March 2006.
const FIRST_YEAR: i32 = 2006;

/// Cuts a value that an error names, so that it cannot carry the message along.
pub(super) fn truncate_for_error(text: &str) -> String {
    text.chars().take(16).collect()
}
