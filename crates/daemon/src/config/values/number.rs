//! Numbers and sizes.

use serde_json::{Value as Json, json};

use crate::config::read::{Mistake, Read, Text, clip};
use crate::config::report::{Problem, Report};
use crate::config::tree::{Kind, Node, Value};

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Whole<const MIN: u32, const MAX: u32>(pub(in crate::config) u32);

impl<const MIN: u32, const MAX: u32> Read for Whole<MIN, MAX> {
    fn read(node: &Node, key: &str, report: &mut Report) -> Option<Self> {
        let what = format!("a whole number from {MIN} to {MAX}");
        let text = number(node, key, &what, report)?;
        match text.strip_prefix('+').unwrap_or(text).parse() {
            Ok(number) if (MIN..=MAX).contains(&number) => Some(Whole(number)),
            _ => {
                report.add(out_of_range(node, key, &what, text));
                None
            }
        }
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// MiB of memory of a microVM.
pub(in crate::config) type Megabytes = Whole<64, 1_048_576>;

/// GiB of memory of a microVM, kept in MiB. Same limits as [`Megabytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Gigabytes {
    pub(in crate::config) mib: u32,
}

impl Read for Gigabytes {
    fn read(node: &Node, key: &str, report: &mut Report) -> Option<Self> {
        let what = "a number from 0.0625 (64 MiB) to 1024";
        let text = number(node, key, what, report)?;
        let mib = text.parse::<f64>().map_or(f64::NAN, |gib| (gib * 1024.0).round());
        if (64.0..=1_048_576.0).contains(&mib) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked one line above; a rounded number in this range is exact"
            )]
            let mib = mib as u32;
            return Some(Gigabytes { mib });
        }
        report.add(out_of_range(node, key, what, text));
        None
    }

    fn schema() -> Json {
        json!({ "type": "number", "minimum": 0.0625, "maximum": 1024 })
    }
}

/// The text of a number; anything else is reported.
fn number<'a>(node: &'a Node, key: &str, what: &str, report: &mut Report) -> Option<&'a str> {
    let kind = match &node.value {
        Value::Scalar(scalar) => scalar.kind(),
        _ => Kind::Null,
    };
    if let Kind::Number(text) = kind {
        return Some(text);
    }
    let problem = Problem::at(node.span, format!("`{key}` must be {what}, not {}", node.what()));
    report.add(match kind {
        Kind::Text(text) if text.parse::<f64>().is_ok() => {
            problem.help(format!("remove the quotes: {key}: {text}"))
        }
        _ => problem,
    });
    None
}

fn out_of_range(node: &Node, key: &str, what: &str, text: &str) -> Problem {
    let text = clip(text);
    Problem::at(node.span, format!("`{key}` is {text}, but must be {what}"))
}

/// Bytes, written with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Size {
    pub(in crate::config) bytes: u64,
}

/// The units of a size and how far each shifts a number of bytes.
const UNITS: [(&str, u32); 3] = [("M", 20), ("G", 30), ("T", 40)];
const MIN_SIZE: u64 = 64 << 20;
const MAX_SIZE: u64 = 64 << 40;

impl Text for Size {
    const WHAT: &'static str = "a size with its unit, such as 8G";

    fn parse(text: &str) -> Result<Size, Mistake> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = &text[digits.len()..];
        let shift = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, shift)| *shift);
        let (Some(shift), Ok(number)) = (shift, digits.parse::<u64>()) else {
            return Err(Mistake::new(
                format!("`{}` is not a size", clip(text)),
                "write a whole number and M, G or T (powers of 1024): 512M, 8G, 1T",
            ));
        };
        let bytes = number.checked_mul(1 << shift);
        match bytes.filter(|bytes| (MIN_SIZE..=MAX_SIZE).contains(bytes)) {
            Some(bytes) => Ok(Size { bytes }),
            None => Err(Mistake::new(
                format!("`{}` is out of the question for a disk", clip(text)),
                "use 64M to 64T",
            )),
        }
    }

    fn words() -> Json {
        json!({ "pattern": "^[0-9]+[MGT]$", "examples": ["512M", "8G"] })
    }
}
