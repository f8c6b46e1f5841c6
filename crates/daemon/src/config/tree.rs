//! YAML text to a tree in which every key and every value knows where it stands.
//!
//! Owns: what of YAML a configuration may use, aliases, and the budget that stops alias bombs.
//! Refuses: what keys mean. Keys may repeat here; the reader reports that with both places.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Tag};

use super::read::clip;
use super::report::{Problem, Span};

/// Values a file may hold once its aliases are written out. A file of 250 groups with 100 policy
/// entries each stays below a third of it.
pub(super) const MAX_NODES: usize = 100_000;

/// A value and its place. Cheap to clone: aliases share what they refer to.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Rc<[Node]>),
    Map(Rc<[(Node, Node)]>),
}

#[derive(Debug, Clone)]
pub(super) struct Scalar {
    text: Rc<str>,
    /// Without quotes, so it may mean a number, a boolean or nothing.
    plain: bool,
}

/// What a scalar is by the core schema of YAML 1.2.2 (§10.3.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind<'a> {
    Null,
    Bool,
    Number(&'a str),
    Text(&'a str),
}

impl Scalar {
    /// A scalar in quotes.
    pub(super) fn quoted(text: &str) -> Scalar {
        Scalar { text: text.into(), plain: false }
    }

    /// A scalar without quotes.
    pub(super) fn plain(text: &str) -> Scalar {
        Scalar { text: text.into(), plain: true }
    }

    pub(super) fn kind(&self) -> Kind<'_> {
        let text = &*self.text;
        match text {
            _ if !self.plain => Kind::Text(text),
            "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Kind::Bool,
            _ if is_number(text) => Kind::Number(text),
            _ => Kind::Text(text),
        }
    }

    /// The value of a plain `true` or `false`.
    pub(super) fn flag(&self) -> Option<bool> {
        matches!(self.kind(), Kind::Bool).then(|| self.text.starts_with(['t', 'T']))
    }
}

fn is_number(text: &str) -> bool {
    let radix = |prefix, radix| {
        text.strip_prefix(prefix)
            .is_some_and(|digits: &str| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)))
    };
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let decimal = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned.parse::<f64>().is_ok();
    let special = matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    decimal || special || radix("0x", 16) || radix("0o", 8)
}

impl Node {
    /// What the value is, for messages: "a list".
    pub(super) fn what(&self) -> &'static str {
        match &self.value {
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Scalar(scalar) => match scalar.kind() {
                Kind::Null => "nothing",
                Kind::Bool => "true or false",
                Kind::Number(_) => "a number",
                Kind::Text(_) => "text",
            },
        }
    }

    /// Whether nothing was written.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.kind() == Kind::Null)
    }
}

/// Reads one YAML document. `None` means that there is nothing but comments.
///
/// # Errors
/// The first thing that is not YAML, or that a configuration may not use. A parser cannot go on
/// after it, so it is the one kind of mistake that hides others.
pub(super) fn parse(text: &str) -> Result<Option<Node>, Box<Problem>> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.emit_unresolved_aliases = true;
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|error| Box::new(syntax(text, &error)))?;
        let span = Span::new(span.byte_range().unwrap_or_default(), text);
        builder.event(event, span)?;
    }
    Ok(builder.root.filter(|root| !root.is_null()))
}

fn syntax(text: &str, error: &ScanError) -> Problem {
    let at = error.marker().byte_offset().unwrap_or(text.len());
    let bytes = text.as_bytes();
    let help = if [at.checked_sub(1), Some(at)].into_iter().flatten().any(|i| bytes.get(i) == Some(&b'\t')) {
        "indent with spaces, YAML knows no tabs"
    } else {
        "check the indentation, colons, quotes and brackets here and on the line before"
    };
    Problem::at(Span::new(at..at + 1, text), format!("this is not YAML: {}", error.info()))
        .label("the parser gave up here")
        .help(help)
}

/// A list or mapping that is not complete yet.
struct Open {
    span: Span,
    anchor: usize,
    weight: usize,
    is_map: bool,
    /// Items; in a mapping keys and values in turn.
    items: Vec<Node>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    documents: usize,
    root: Option<Node>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Box<Problem>> {
        match event {
            Event::DocumentStart(..) => self.document(span),
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = known_tag(tag.as_deref(), span)?;
                let plain = style == ScalarStyle::Plain && !is_text;
                let scalar = Scalar { text: text.as_ref().into(), plain };
                self.complete(Node { span, value: Value::Scalar(scalar) }, anchor, 1)
            }
            Event::SequenceStart(_, anchor, tag) => {
                known_tag(tag.as_deref(), span)?;
                self.begin(span, anchor, false);
                Ok(())
            }
            Event::MappingStart(_, anchor, tag) => {
                known_tag(tag.as_deref(), span)?;
                self.begin(span, anchor, true);
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(id) => self.alias(id, span),
            Event::UnresolvedAlias(name) => {
                let problem = Problem::at(span, format!("nothing before is called `&{}`", clip(&name)))
                    .help("aliases refer to values above them; quote the text if it is none");
                Err(Box::new(problem))
            }
            // StreamStart, StreamEnd, DocumentEnd; comments and anchors are not asked for.
            _ => Ok(()),
        }
    }

    fn document(&mut self, span: Span) -> Result<(), Box<Problem>> {
        self.documents += 1;
        if self.documents > 1 {
            let problem = Problem::at(span, "the file holds more than one YAML document")
                .label("a second one starts here")
                .help("keep one; a second daemon takes its own file");
            return Err(Box::new(problem));
        }
        Ok(())
    }

    fn begin(&mut self, span: Span, anchor: usize, is_map: bool) {
        self.open.push(Open { span, anchor, weight: 1, is_map, items: Vec::new() });
    }

    fn end(&mut self) -> Result<(), Box<Problem>> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let value = if open.is_map {
            let mut items = open.items.into_iter();
            let mut entries = Vec::new();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                entries.push((key, value));
            }
            Value::Map(entries.into())
        } else {
            Value::List(open.items.into())
        };
        let node = Node { span: open.span, value };
        self.complete(node, open.anchor, open.weight)
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<(), Box<Problem>> {
        let Some((node, weight)) = self.anchors.get(&id).cloned() else {
            let problem =
                Problem::at(span, "this alias refers to the value it stands in").help("write the value out");
            return Err(Box::new(problem));
        };
        self.complete(Node { span, ..node }, 0, weight)
    }

    /// Puts a finished node where it belongs. `weight` counts it and all it holds, aliases
    /// written out.
    fn complete(&mut self, node: Node, anchor: usize, weight: usize) -> Result<(), Box<Problem>> {
        let above = self.open.last().map_or(0, |parent| parent.weight);
        if above.saturating_add(weight) > MAX_NODES {
            let message = format!("the file holds more than {MAX_NODES} values, aliases written out");
            let problem = Problem::at(node.span, message)
                .label("too many from here on")
                .help("join neighbouring networks, or use fewer aliases");
            return Err(Box::new(problem));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        match self.open.last_mut() {
            Some(parent) => {
                parent.weight += weight;
                parent.items.push(node);
            }
            None => self.root = Some(node),
        }
        Ok(())
    }
}

/// Whether the tag says "text"; the tags of plain lists and mappings say nothing new.
fn known_tag(tag: Option<&Tag>, span: Span) -> Result<bool, Box<Problem>> {
    let Some(tag) = tag else { return Ok(false) };
    if tag.is_yaml_core_schema_tag("str") {
        return Ok(true);
    }
    if ["seq", "map"].iter().any(|known| tag.is_yaml_core_schema_tag(known)) {
        return Ok(false);
    }
    let problem =
        Problem::at(span, "tags (`!...`) have no meaning here").label("on this value").help("remove the tag");
    Err(Box::new(problem))
}
