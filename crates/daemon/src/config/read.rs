//! From nodes to types: tables of keys, each with its type, its default and its words.
//!
//! Owns: what every mapping, list and scalar has in common, and the JSON schema of it. A key is
//! declared once, with [`keys!`]; the reader and the schema both come from that declaration.
//! Refuses: what a particular key means ([`super::values`]), rules between keys
//! ([`super::check`]).

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value as Json, json};

use super::report::{Problem, Report, Span};
use super::tree::{Kind, Node, Scalar, Value};

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// A type that can be read from a node, and its JSON schema.
pub(super) trait Read: Sized {
    /// `None` when something was wrong, which is then in the report. `key` is the name of the key
    /// that the node belongs to.
    fn read(node: &Node, key: &str, report: &mut Report) -> Option<Self>;

    /// What [`Read::read`] accepts.
    fn schema() -> Json;
}

/// Why a text is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Mistake {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Mistake {
        Mistake { message: message.into(), help: Some(help.into()) }
    }

    /// From an error that says what is wrong and, after a semicolon, what would be right.
    pub(super) fn from_error(error: &impl std::error::Error) -> Mistake {
        let text = error.to_string();
        match text.split_once("; ") {
            Some((message, help)) => Mistake::new(message, help),
            None => Mistake { message: text, help: None },
        }
    }
}

/// A type written as text.
pub(super) trait Text: Sized {
    /// What it is, with an example: "a size such as 8G".
    const WHAT: &'static str;
    /// Longest text, in bytes.
    const MAX_BYTES: usize = 256;

    /// # Errors
    /// What is wrong and what would be right.
    fn parse(text: &str) -> Result<Self, Mistake>;

    /// Words of a JSON schema beside `"type": "string"`.
    fn words() -> Json;
}

impl<T: Text> Read for T {
    fn read(node: &Node, key: &str, report: &mut Report) -> Option<T> {
        let mistake = match text_of::<T>(node, key) {
            Ok(text) => match parse_within_limits(text, key) {
                Ok(value) => return Some(value),
                Err(mistake) => mistake,
            },
            Err(mistake) => mistake,
        };
        report.add(Problem {
            help: mistake.help,
            ..Problem::at(node.span, mistake.message).label(format!("`{key}`"))
        });
        None
    }

    fn schema() -> Json {
        let mut schema = json!({ "type": "string" });
        merge(&mut schema, T::words());
        schema
    }
}

fn parse_within_limits<T: Text>(text: &str, key: &str) -> Result<T, Mistake> {
    let limits = match text.len() {
        0 => format!("`{key}` is an empty text, but must be {}", T::WHAT),
        len if len > T::MAX_BYTES => {
            format!("`{key}` is too long: {len} bytes, at most {}", T::MAX_BYTES)
        }
        _ => return T::parse(text),
    };
    Err(Mistake { message: limits, help: None })
}

fn text_of<'a, T: Text>(node: &'a Node, key: &str) -> Result<&'a str, Mistake> {
    let kind = match &node.value {
        Value::Scalar(scalar) => scalar.kind(),
        _ => Kind::Null,
    };
    let help = match kind {
        Kind::Text(text) => return Ok(text),
        Kind::Number(text) if T::parse(text).is_ok() => Some(format!("quote it: \"{text}\"")),
        _ => None,
    };
    let message = format!("`{key}` must be {}, not {}", T::WHAT, node.what());
    Err(Mistake { message, help })
}

/// A list, written as a YAML list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct List<T, const MAX: usize>(pub(super) Vec<Located<T>>);

impl<T: Read, const MAX: usize> Read for List<T, MAX> {
    fn read(node: &Node, key: &str, report: &mut Report) -> Option<Self> {
        let Value::List(items) = &node.value else {
            let problem = Problem::at(node.span, format!("`{key}` must be a list, not {}", node.what()));
            report.add(match &node.value {
                Value::Scalar(scalar) => problem.help(match scalar.kind() {
                    Kind::Text(text) if T::read(node, key, &mut Report::default()).is_some() => {
                        format!("write {key}: [{text:?}]")
                    }
                    _ => format!("write {key}: [] for an empty list, or remove the key"),
                }),
                _ => problem.help("start each item with `- `"),
            });
            return None;
        };
        if items.len() > MAX {
            let message = format!("`{key}` holds {} items, at most {MAX} are allowed", items.len());
            report.add(Problem::at(items[MAX].span, message).label("the first too many"));
        }
        let read = |item: &Node| {
            let value = T::read(item, key, report)?;
            Some(Located { value, span: item.span })
        };
        Some(List(items.iter().take(MAX).filter_map(read).collect()))
    }

    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema(), "maxItems": MAX })
    }
}

/// One key of a mapping, as the schema and the reader see it.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// For people: the doc comment.
    pub(super) about: &'static str,
    pub(super) required: bool,
    /// As it would be written in the file.
    pub(super) default: fn() -> Option<Json>,
    pub(super) schema: fn() -> Json,
}

/// Declares a mapping of the file: a struct whose fields are the keys, and what messages call it.
/// `required`, `optional` or
/// `default(VALUE)` comes before each. A field is `None` when the key is absent and has no
/// default, or when its value was wrong, which is then in the report.
macro_rules! keys {
    (
        $(#[doc = $about:expr])+
        $visibility:vis struct $name:ident ($noun:literal) {
            $( $(#[doc = $doc:expr])+ $presence:ident $(($default:tt))? $field:ident : $ty:ty, )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        $visibility struct $name {
            $( $(#[doc = $doc])+ pub(super) $field: Option<$crate::config::read::Located<$ty>>, )+
        }

        impl $name {
            const ABOUT: &str = concat!($($about, "\n"),+);
            const KEYS: &[$crate::config::read::Key] = &[$(
                $crate::config::read::Key {
                    name: stringify!($field),
                    about: concat!($($doc, "\n"),+),
                    required: keys!(@required $presence),
                    default: || keys!(@default $($default)?),
                    schema: <$ty as $crate::config::read::Read>::schema,
                },
            )+];
        }

        impl $crate::config::read::Read for $name {
            fn read(
                node: &$crate::config::tree::Node,
                _key: &str,
                report: &mut $crate::config::report::Report,
            ) -> Option<Self> {
                let entries = $crate::config::read::Entries::open(node, $noun, Self::KEYS, report)?;
                Some($name { $( $field: entries.read(stringify!($field), report), )+ })
            }

            fn schema() -> serde_json::Value {
                $crate::config::read::schema_of(Self::ABOUT, Self::KEYS)
            }
        }
    };
    (@required required) => { true };
    (@required $other:ident) => { false };
    (@default) => { None };
    (@default $default:tt) => { Some(serde_json::json!($default)) };
}
pub(super) use keys;

/// The entries of a mapping whose keys have been checked.
pub(super) struct Entries(HashMap<&'static str, Node>);

impl Entries {
    /// Reports unknown, repeated, missing and empty keys. `None` when the node is no mapping.
    pub(super) fn open(
        node: &Node,
        name: &str,
        keys: &'static [Key],
        report: &mut Report,
    ) -> Option<Entries> {
        let Value::Map(written) = &node.value else {
            let help = format!("its keys are {}", names(keys));
            let message = format!("{name} must be a mapping of keys, not {}", node.what());
            report.add(Problem::at(node.span, message).help(help));
            return None;
        };
        let mut seen: HashMap<&'static str, Span> = HashMap::new();
        // What misspelt keys were probably meant to be: not missing on top of it.
        let mut meant: HashSet<&str> = HashSet::new();
        let mut entries = HashMap::new();
        for (key, value) in written.iter() {
            let Some(known) = known_key(key, keys) else {
                let near = nearest(text_of_key(key), keys.iter().map(|key| key.name));
                report.add(unknown_key(key, name, keys, near));
                meant.extend(near);
                continue;
            };
            if let Some(first) = seen.insert(known, key.span) {
                seen.insert(known, first);
                let problem = Problem::at(key.span, format!("`{known}` is given twice"))
                    .label("again here")
                    .also(first, "first here")
                    .help("keep one of the two");
                report.add(problem);
            } else if value.is_null() {
                let help = "give it a value, or remove the key";
                report.add(Problem::at(key.span, format!("`{known}` has no value")).help(help));
            } else {
                entries.insert(known, value.clone());
            }
        }
        let at = written.first().map_or(node.span, |(key, _)| key.span);
        for key in keys.iter().filter(|key| !seen.contains_key(key.name)) {
            if let Some(default) = (key.default)() {
                entries.insert(key.name, written_as(&default, at));
            } else if key.required && !meant.contains(key.name) {
                let problem = Problem::at(at, format!("{name} lacks the key `{}`", key.name))
                    .label("in this mapping")
                    .help(how_to_add(key));
                report.add(problem);
            }
        }
        Some(Entries(entries))
    }

    /// The value of a key; `None` when it is not there or was wrong.
    pub(super) fn read<T: Read>(&self, key: &str, report: &mut Report) -> Option<Located<T>> {
        let node = self.0.get(key)?;
        let value = T::read(node, key, report)?;
        Some(Located { value, span: node.span })
    }
}

fn how_to_add(key: &Key) -> String {
    // What a network needs depends on its mode; this is the smallest.
    if key.name == "network" {
        return format!("add network: {}", json!({ "mode": "isolated", "range": "169.254.100.0/22" }));
    }
    format!("add {}: {}", key.name, example((key.schema)()))
}

/// The smallest value that fits a schema of ours: JSON, which is YAML too.
fn example(mut schema: Json) -> Json {
    if let Some(Json::Object(mut properties)) = schema.get_mut("properties").map(Json::take) {
        let required = schema["required"].as_array().into_iter().flatten();
        let names = required.filter_map(Json::as_str);
        return names.filter_map(|name| Some((name.to_owned(), example(properties.remove(name)?)))).collect();
    }
    if let Some(items) = schema.get_mut("items").map(Json::take) {
        return json!([example(items)]);
    }
    let lists = ["examples", "enum"].into_iter();
    lists.filter_map(|list| schema[list].get(0)).next().cloned().unwrap_or_default()
}

/// The key as written; empty when it is no text at all.
fn text_of_key(key: &Node) -> &str {
    let Value::Scalar(scalar) = &key.value else {
        return "";
    };
    match scalar.kind() {
        Kind::Text(text) | Kind::Number(text) => text,
        Kind::Null | Kind::Bool => "",
    }
}

/// Which of `keys` is written here.
fn known_key(key: &Node, keys: &[Key]) -> Option<&'static str> {
    let text = text_of_key(key);
    keys.iter().map(|known| known.name).find(|name| *name == text)
}

fn unknown_key(key: &Node, name: &str, keys: &[Key], near: Option<&str>) -> Problem {
    let text = text_of_key(key);
    if text == "<<" {
        return Problem::at(key.span, "merge keys (`<<`) are not supported")
            .help("write the keys out, or use an alias for a whole value: drop: *lan");
    }
    let message = match text {
        "" => format!("{name} has a key that is {}", key.what()),
        _ => format!("{name} has no key `{}`", clip(text)),
    };
    let problem = Problem::at(key.span, message).label("not known here");
    problem.help(match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("its keys are {}", names(keys)),
    })
}

fn names(keys: &[Key]) -> String {
    let names: Vec<_> = keys.iter().map(|key| format!("`{}`", key.name)).collect();
    names.join(", ")
}

/// The one of `known` that was probably meant.
pub(super) fn nearest<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing costs the product of both lengths; no name is that long.
    let text = (text.len() <= 64).then(|| text.to_lowercase().replace('-', "_"))?;
    let close = |known: &'a str| {
        let distance = strsim::damerau_levenshtein(&text, &known.replace('-', "_"));
        (distance <= known.len().max(3) / 3).then_some((distance, known))
    };
    let (_, known) = known.filter_map(close).min_by_key(|(distance, _)| *distance)?;
    Some(known)
}

/// A text from the file, short and harmless enough for a message.
pub(super) fn clip(text: &str) -> String {
    let short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() { format!("{short}...") } else { short }
}

/// The node that a default would be, had somebody written it at `at`.
fn written_as(default: &Json, span: Span) -> Node {
    let value = match default {
        Json::String(text) => Value::Scalar(Scalar::quoted(text)),
        Json::Array(items) => Value::List(items.iter().map(|item| written_as(item, span)).collect()),
        Json::Object(entries) => Value::Map(
            entries
                .iter()
                .map(|(key, value)| (written_as(&Json::String(key.clone()), span), written_as(value, span)))
                .collect(),
        ),
        other => Value::Scalar(Scalar::plain(&other.to_string())),
    };
    Node { span, value }
}

/// The JSON schema of a mapping.
pub(super) fn schema_of(about: &str, keys: &[Key]) -> Json {
    let mut properties = Map::new();
    for key in keys {
        let mut schema = (key.schema)();
        merge(&mut schema, json!({ "description": one_line(key.about) }));
        if let Some(default) = (key.default)() {
            merge(&mut schema, json!({ "default": default }));
        }
        properties.insert(key.name.to_owned(), schema);
    }
    let required: Vec<_> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let mut schema = json!({
        "type": "object",
        "description": one_line(about),
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        merge(&mut schema, json!({ "required": required }));
    }
    schema
}

fn one_line(about: &str) -> String {
    let words: Vec<_> = about.split_whitespace().collect();
    words.join(" ")
}

/// Adds the words of `more`; both are objects.
pub(super) fn merge(schema: &mut Json, more: Json) {
    if let (Json::Object(schema), Json::Object(more)) = (schema, more) {
        schema.extend(more);
    }
}
