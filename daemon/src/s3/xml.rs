//! XML of services' answers: flat, and read from front to back, because lists are long.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};
use thiserror::Error;

/// A text that is no XML.
#[derive(Debug, Error)]
pub(crate) enum NotXml {
    #[error("the answer is not XML")]
    Syntax(#[from] quick_xml::Error),
    #[error("the answer has a character that XML has no place for")]
    Character,
    #[error("the answer names a character that XML has no name for")]
    Name,
    #[error("the answer is not one element from its beginning to its end")]
    Shape,
    #[error("the answer has elements within elements, more than {NESTED_MAX} deep")]
    Depth,
}

// The deepest that anything of interest lies.
const DEPTH: usize = 5;

// What services answer has five levels at most, and each that is open takes some 30 times the three
// bytes that open it.
const NESTED_MAX: usize = 32;

/// Calls `visit` at the end of each element with its path from the root on, and with its last text,
/// which is the only one where it holds no elements.
pub(crate) fn visit_elements<'t, E: From<NotXml>>(
    text: &'t str,
    mut visit: impl FnMut(&[&str], Cow<'t, str>) -> Result<(), E>,
) -> Result<(), E> {
    if text.bytes().any(is_forbidden) {
        return Err(NotXml::Character.into());
    }
    let mut reader = Reader::from_str(text);
    let mut open: Vec<BytesStart<'t>> = Vec::with_capacity(DEPTH);
    let mut own = Cow::Borrowed("");
    let mut roots = 0;
    loop {
        let event = reader.read_event().map_err(NotXml::from)?;
        roots += u32::from(open.is_empty() && matches!(event, Event::Start(_) | Event::Empty(_)));
        match event {
            Event::Eof if roots == 1 && open.is_empty() => return Ok(()),
            Event::Eof | Event::DocType(_) => return Err(NotXml::Shape.into()),
            Event::Start(_) if open.len() == NESTED_MAX => return Err(NotXml::Depth.into()),
            Event::Start(start) => {
                open.push(start);
                own = Cow::Borrowed("");
            }
            Event::Empty(start) => {
                open.push(start);
                own = Cow::Borrowed("");
                visit_innermost(&open, Cow::Borrowed(""), &mut visit)?;
                open.pop();
            }
            Event::End(_) => {
                visit_innermost(&open, std::mem::take(&mut own), &mut visit)?;
                open.pop();
            }
            Event::Text(more) if open.is_empty() && !more.iter().all(u8::is_ascii_whitespace) => {
                return Err(NotXml::Shape.into());
            }
            Event::Text(more) => append_content(&mut own, more.xml10_content().map_err(encoding)?),
            Event::CData(more) => append_content(&mut own, more.xml10_content().map_err(encoding)?),
            Event::GeneralRef(name) => {
                append_content(&mut own, Cow::Owned(resolve_reference(&name)?));
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

fn visit_innermost<'t, E>(
    open: &[BytesStart<'t>],
    own: Cow<'t, str>,
    visit: &mut impl FnMut(&[&str], Cow<'t, str>) -> Result<(), E>,
) -> Result<(), E> {
    let mut path = [""; DEPTH];
    for (name, start) in path.iter_mut().zip(open) {
        *name = std::str::from_utf8(start.local_name().into_inner()).unwrap_or_default();
    }
    path.get(..open.len())
        .map_or(Ok(()), |path| visit(path, own))
}

fn append_content<'t>(own: &mut Cow<'t, str>, more: Cow<'t, str>) {
    if own.is_empty() {
        *own = more;
    } else {
        own.to_mut().push_str(&more);
    }
}

/// Returns what a reference stands for: a character, or one of the five that XML has names for.
fn resolve_reference(name: &BytesRef<'_>) -> Result<String, NotXml> {
    match name.resolve_char_ref()? {
        Some(character) if u8::try_from(character).is_ok_and(is_forbidden) => {
            Err(NotXml::Character)
        }
        Some(character) => Ok(character.to_string()),
        None => {
            let name = name.decode().map_err(encoding)?;
            resolve_xml_entity(&name)
                .map(str::to_owned)
                .ok_or(NotXml::Name)
        }
    }
}

/// Whatever the answer's encoding, it is text here.
fn encoding(error: quick_xml::encoding::EncodingError) -> NotXml {
    NotXml::Syntax(error.into())
}

/// XML cannot hold every character: <https://www.w3.org/TR/xml/#charsets>
fn is_forbidden(byte: u8) -> bool {
    byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Result<Vec<(String, String)>, NotXml> {
        let mut seen = Vec::new();
        visit_elements(text, |path, own| {
            seen.push((path.join("/"), own.into_owned()));
            Ok::<_, NotXml>(())
        })?;
        Ok(seen)
    }

    #[test]
    fn elements_are_visited_where_they_end_and_texts_mean_what_they_stand_for() {
        let text = "<?xml version=\"1.0\"?><!-- no --><s:a xmlns:s=\"urn\"> x <b>1 &amp;&#x31;&quot;</b><c/><d><![CDATA[<]]> </d></s:a>";
        let all = [("a/b", "1 &1\""), ("a/c", ""), ("a/d", "< "), ("a", "")];
        assert_eq!(
            seen(text).unwrap(),
            all.map(|(path, own)| (path.to_owned(), own.to_owned()))
        );
    }

    #[test]
    fn what_lies_too_deep_is_passed_over() {
        let paths: Vec<String> = seen("<a><b><c><d><e>5<f>6</f></e></d></c></b></a>")
            .unwrap()
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(paths, ["a/b/c/d/e", "a/b/c/d", "a/b/c", "a/b", "a"]);
    }

    #[test]
    fn what_is_nested_without_end_is_an_error() {
        let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
        assert!(seen(&nested(NESTED_MAX)).is_ok());
        assert!(matches!(seen(&nested(NESTED_MAX + 1)), Err(NotXml::Depth)));
    }

    #[test]
    fn what_is_no_xml_is_an_error() {
        for text in [
            "",
            "text",
            "<a>",
            "<a><b></a></b>",
            "<a>&unknown;</a>",
            "<a>&#1;</a>",
            "<a>\u{1}</a>",
            "<a",
            "{}",
        ] {
            assert!(seen(text).is_err(), "{text:?}");
        }
    }
}
