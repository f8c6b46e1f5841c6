//! How mistakes look: plain text, a terminal's graphics, JSON.
//!
//! Owns: snippets and carets. Refuses: wording; it prints what the mistakes say.

use std::fmt::Write;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde_json::json;

use super::report::{ConfigErrors, Problem, Span};
use super::source::Source;

/// Characters of a line that a snippet shows; longer lines are shown around the caret.
const SNIPPET_WIDTH: usize = 120;

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// ASCII lines for logs and pipes, `file:line:column: message` first.
    Plain,
    /// Colours and box drawing, for a terminal whose user has not set `NO_COLOR`.
    Terminal {
        /// Columns of the terminal.
        width: usize,
    },
}

pub(super) fn report(errors: &ConfigErrors, look: Look) -> String {
    let mut out = String::new();
    for problem in &errors.problems {
        match look {
            Look::Terminal { width } if is_drawable(&errors.source, problem) => {
                draw(&mut out, &errors.source, problem, width);
            }
            _ => plain(&mut out, &errors.source, problem),
        }
        out.push('\n');
    }
    if errors.more > 0 {
        let _ = writeln!(out, "... and {} more mistakes\n", errors.more);
    }
    let (count, s) = (errors.len(), if errors.len() == 1 { "" } else { "s" });
    let _ = writeln!(out, "{count} mistake{s} in {}; nothing was started", errors.source.name);
    out
}

pub(super) fn json(errors: &ConfigErrors) -> serde_json::Value {
    let objects = errors.problems.iter().map(|problem| {
        let place = problem.span.map(|span| errors.source.place(span.start));
        json!({
            "file": errors.source.name,
            "line": place.map(|place| place.line),
            "column": place.map(|place| place.column),
            "message": problem.message,
            "help": problem.help,
        })
    });
    objects.collect()
}

fn plain(out: &mut String, source: &Source, problem: &Problem) {
    // Writing to a String cannot fail.
    match problem.span {
        Some(span) => {
            let place = source.place(span.start);
            let _ = writeln!(out, "{}:{}:{}: {}", source.name, place.line, place.column, problem.message);
            let mut places: Vec<(Span, &str)> = vec![(span, &problem.label)];
            places.extend(problem.also.iter().map(|(span, label)| (*span, label.as_str())));
            places.sort_by_key(|(span, _)| *span);
            for (span, label) in places {
                snippet(out, source, span, label);
            }
        }
        None => {
            let _ = writeln!(out, "{}: {}", source.name, problem.message);
        }
    }
    if let Some(help) = &problem.help {
        let help = help.trim_end().replace('\n', "\n        ").replace("\n        \n", "\n\n");
        let _ = writeln!(out, "  help: {help}");
    }
}

/// The line of `span` with a caret under each of its characters.
fn snippet(out: &mut String, source: &Source, span: Span, label: &str) {
    let place = source.place(span.start);
    let line: Vec<char> = source.line(place.line).chars().map(printable).collect();
    let first = (place.column as usize - 1).min(line.len());
    let marked = source.text.get(span.start..span.end).unwrap_or_default();
    let marked = marked.lines().next().unwrap_or_default().chars().count();
    // A window that begins at the line's start when the caret is in it.
    let from = if first < SNIPPET_WIDTH - 20 { 0 } else { first - 20 };
    let to = line.len().min(from + SNIPPET_WIDTH);
    let carets = marked.min(to.saturating_sub(first)).max(1);
    let shown: String = line[from.min(to)..to].iter().collect();
    let _ = writeln!(out, "{:>5} | {shown}", place.line);
    let blank = " ".repeat(first - from);
    let line = format!("      | {blank}{} {label}", "^".repeat(carets));
    let _ = writeln!(out, "{}", line.trim_end());
}

/// A terminal must not obey what stands in a file.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Whether miette may print the lines as they are: none is endless or holds control characters.
fn is_drawable(source: &Source, problem: &Problem) -> bool {
    let spans = problem.span.iter().chain(problem.also.iter().map(|(span, _)| span));
    spans.flat_map(|span| source.place(span.start).line..=source.place(span.end).line).all(|line| {
        let line = source.line(line);
        line.len() <= 4 * SNIPPET_WIDTH && !line.contains(|c: char| c.is_control() && c != '\t')
    })
}

fn draw(out: &mut String, source: &Source, problem: &Problem, width: usize) {
    let drawn = Drawn { problem, text: NamedSource::new(&source.name, source.text.clone()) };
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode())
        .with_width(width.max(40))
        .with_context_lines(1)
        .with_links(false);
    if handler.render_report(out, &drawn).is_err() {
        plain(out, source, problem);
    }
}

/// A mistake as miette sees it.
#[derive(Debug)]
struct Drawn<'a> {
    problem: &'a Problem,
    text: NamedSource<String>,
}

impl std::fmt::Display for Drawn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.problem.span {
            Some(_) => f.write_str(&self.problem.message),
            None => write!(f, "{}: {}", self.text.name(), self.problem.message),
        }
    }
}

impl std::error::Error for Drawn<'_> {}

impl Diagnostic for Drawn<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        let help = self.problem.help.as_ref()?;
        Some(Box::new(help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.problem.span.map(|_| &self.text as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.problem.span?;
        let label = |span: Span, text: &str| {
            let text = (!text.is_empty()).then(|| text.to_owned());
            (text, span.start, span.end - span.start)
        };
        let (text, start, len) = label(span, &self.problem.label);
        let first = LabeledSpan::new_primary_with_span(text, (start, len));
        let rest = self.problem.also.iter().map(move |(span, text)| {
            let (text, start, len) = label(*span, text);
            LabeledSpan::new(text, start, len)
        });
        Some(Box::new(std::iter::once(first).chain(rest)))
    }
}
