//! What is wrong with a file. Problems are collected rather than thrown, so that one reading
//! reports them all, each with its place and its remedy.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the file, like `rules[2].destination.bucket`; empty for the file as a whole.
    pub path: String,
    /// The id of the rule that the path leads into.
    pub rule: Option<String>,
    /// The line and column, both from 1, where they are known.
    pub position: Option<(usize, usize)>,
    /// What is wrong and how to put it right.
    pub message: String,
}

/// A file that can't be used, with everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    file: Option<PathBuf>,
    problems: Vec<Problem>,
}

impl Invalid {
    /// Returns the problems in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Makes an error of one problem with the file as a whole.
    pub(crate) fn whole_file(position: Option<(usize, usize)>, message: String) -> Self {
        Self::of_one("", position, message)
    }

    /// Makes an error of one problem with what a key names.
    pub(crate) fn of_key(path: &str, message: String) -> Self {
        Self::of_one(path, None, message)
    }

    fn of_one(path: &str, position: Option<(usize, usize)>, message: String) -> Self {
        Self {
            file: None,
            problems: vec![Problem {
                path: path.to_owned(),
                rule: None,
                position,
                message,
            }],
        }
    }

    /// Names the file the text came from.
    pub(crate) fn in_file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_owned());
        self
    }
}

impl Error for Invalid {}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(
            f,
            "{count} {} in ",
            if count == 1 { "problem" } else { "problems" }
        )?;
        match &self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("the configuration")?,
        }
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        if !self.path.is_empty() {
            f.write_str(&self.path)?;
            if let Some(id) = &self.rule {
                write!(f, " (rule {id:?})")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

/// A place in the file, for the problems found there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Location {
    path: String,
    rule: Option<String>,
    offset: Option<usize>,
}

impl Location {
    /// Returns the spot of a key below this one; it stands where this one does until it is found.
    pub(crate) fn at_key(&self, key: &str) -> Self {
        let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let key = if !key.is_empty() && key.chars().all(bare) {
            key.to_owned()
        } else {
            format!("{key:?}")
        };
        let path = if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        };
        Self {
            path,
            ..self.clone()
        }
    }

    /// Returns the spot of an element of the list that stands here.
    pub(crate) fn at_element(&self, index: usize) -> Self {
        Self {
            path: format!("{}[{index}]", self.path),
            ..self.clone()
        }
    }

    /// Returns this spot as found at a byte offset.
    pub(crate) fn at(mut self, offset: usize) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Returns this spot as part of a rule.
    pub(crate) fn of_rule(mut self, id: &str) -> Self {
        self.rule = Some(id.to_owned());
        self
    }
}

/// The problems found so far.
#[derive(Debug)]
pub(crate) struct Problems<'a> {
    text: &'a str,
    found: Vec<(Location, String)>,
}

impl<'a> Problems<'a> {
    /// Starts without problems.
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    /// Adds one.
    pub(crate) fn add_problem(&mut self, spot: &Location, message: impl Into<String>) {
        self.found.push((spot.clone(), message.into()));
    }

    /// Returns the value when nothing at all was wrong.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T, Invalid> {
        if let (Some(value), true) = (value, self.found.is_empty()) {
            return Ok(value);
        }
        self.found
            .sort_by_key(|(spot, _)| spot.offset.unwrap_or(usize::MAX));
        let problems = self.found.into_iter().map(|(spot, message)| Problem {
            position: spot.offset.map(|offset| line_and_column(self.text, offset)),
            path: spot.path,
            rule: spot.rule,
            message,
        });
        Err(Invalid {
            file: None,
            problems: problems.collect(),
        })
    }
}

/// Turns a byte offset into line and column, both from 1; columns are characters.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    (before.matches('\n').count() + 1, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        assert_eq!(line_and_column("a = 1\nü = 2", 0), (1, 1));
        assert_eq!(line_and_column("a = 1\nü = 2", 11), (2, 5));
        assert_eq!(line_and_column("a", 99), (1, 2));
    }

    #[test]
    fn keys_that_are_not_bare_are_quoted_in_paths() {
        let spot = Location::default()
            .at_key("rules")
            .at_element(2)
            .at_key("filter")
            .at_key("a b");
        assert_eq!(spot.path, "rules[2].filter.\"a b\"");
    }
}
