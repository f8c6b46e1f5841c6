//! Mistakes with their places, collected instead of stopping at the first.
//!
//! Owns: what a mistake is, and the list of them. Refuses: how they look ([`super::render`]).

use std::ops::Range;

use super::render::{self, Look};
use super::source::Source;

/// Mistakes kept; the rest is counted. Nobody reads more, and each costs a snippet.
const MAX_PROBLEMS: usize = 200;

/// A part of the text: byte offsets on character borders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Span {
    /// The part of `text` nearest to `range`: inside the text, at character borders, and without
    /// line ends and spaces behind it, which parsers count to block scalars.
    pub(super) fn new(range: Range<usize>, text: &str) -> Span {
        let start = text.floor_char_boundary(range.start.min(text.len()));
        let end = text.ceil_char_boundary(range.end.clamp(start, text.len()));
        let kept = text[start..end].trim_end().len();
        let end = if kept == 0 { end.min(start + 1) } else { start + kept };
        Span { start, end: text.ceil_char_boundary(end) }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// What is wrong.
    pub(super) message: String,
    /// Where; `None` for the file as a whole.
    pub(super) span: Option<Span>,
    /// A word at the place.
    pub(super) label: String,
    /// Other places that belong to it.
    pub(super) also: Vec<(Span, String)>,
    /// What would be right.
    pub(super) help: Option<String>,
}

impl Problem {
    pub(super) fn at(span: Span, message: impl Into<String>) -> Problem {
        Problem {
            message: message.into(),
            span: Some(span),
            label: String::new(),
            also: Vec::new(),
            help: None,
        }
    }

    pub(super) fn of_file(message: impl Into<String>) -> Problem {
        Problem { span: None, ..Problem::at(Span::default(), message) }
    }

    pub(super) fn label(self, label: impl Into<String>) -> Problem {
        let label = label.into();
        Problem { label, ..self }
    }

    pub(super) fn also(mut self, span: Span, label: impl Into<String>) -> Problem {
        self.also.push((span, label.into()));
        self
    }

    pub(super) fn help(self, help: impl Into<String>) -> Problem {
        let help = Some(help.into());
        Problem { help, ..self }
    }
}

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: Vec<Problem>,
    more: usize,
}

impl Report {
    pub(super) fn add(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.more += 1;
        }
    }

    /// `value` if nothing was wrong, else every mistake in the order of the file.
    pub(super) fn finish<T>(mut self, value: Option<T>, source: Source) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => {
                self.problems.sort_by_key(|problem| problem.span);
                Err(ConfigErrors { source, problems: self.problems, more: self.more })
            }
        }
    }
}

/// Every mistake of a configuration. [`std::fmt::Display`] is [`Look::Plain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    pub(super) source: Source,
    pub(super) problems: Vec<Problem>,
    /// Mistakes beyond those kept.
    pub(super) more: usize,
}

impl ConfigErrors {
    /// One mistake that left nothing to go on with.
    pub(super) fn one(source: Source, problem: Problem) -> ConfigErrors {
        ConfigErrors { source, problems: vec![problem], more: 0 }
    }

    /// How many mistakes there are; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "errors without an error do not exist")]
    pub fn len(&self) -> usize {
        self.problems.len() + self.more
    }

    /// The whole report as text that ends in a line end.
    #[must_use]
    pub fn render(&self, look: Look) -> String {
        render::report(self, look)
    }

    /// A list of objects with the keys `file`, `line`, `column`, `message`, `help`, of which all but
    /// `file` and `message` may be null. Lines and columns count from 1.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        render::json(self)
    }
}

impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(Look::Plain))
    }
}

impl std::error::Error for ConfigErrors {}
