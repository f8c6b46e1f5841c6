//! Sizes, durations and labels as people write them. Owns their grammar; refuses bare numbers where the
//! unit would be a guess.

use std::time::Duration;

/// Reads a memory size in MiB: `512M`, `2G`, with an optional `iB` or `B`, both meaning 2^20 and 2^30.
pub(crate) fn parse_ram_mb(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let factor: u32 = match unit.to_ascii_lowercase().as_str() {
        "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1024,
        _ => return Err("a size is written like 512M or 2G".into()),
    };
    let number: u32 = digits.parse().map_err(|_| "a size is written like 512M or 2G, in whole numbers")?;
    match number.checked_mul(factor) {
        Some(0) => Err("a VM needs memory".into()),
        Some(mb) if mb <= 1024 * 1024 => Ok(mb),
        _ => Err("at most 1024G".into()),
    }
}

/// Reads a duration: `90` or `90s`, `500ms`, `2m`, `1h`; above zero and at most 30 days.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor_ms: u64 = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a duration is written like 30s, 500ms, 2m or 1h".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "a duration is written like 30s, 500ms, 2m or 1h")?;
    match number.checked_mul(factor_ms) {
        Some(0) => Err("a duration is above zero".into()),
        Some(ms) if ms <= 30 * 24 * 3_600_000 => Ok(Duration::from_millis(ms)),
        _ => Err("at most 30 days (720h)".into()),
    }
}

/// Reads a label: `KEY=VALUE`, the value possibly empty. What a key may be is the daemon's to say.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written KEY=VALUE".into()),
    }
}

/// An age as tables show it: the largest unit that fits.
pub(crate) fn render_age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Memory as tables show it.
pub(crate) fn render_ram(mb: u32) -> String {
    if mb >= 1024 && mb.is_multiple_of(1024) { format!("{}G", mb / 1024) } else { format!("{mb}M") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, mb) in [("512M", 512), ("2G", 2048), ("1gib", 1024), ("64mb", 64), ("1024G", 1024 * 1024)]
        {
            assert_eq!(parse_ram_mb(text), Ok(mb), "{text}");
            assert_eq!(parse_ram_mb(&render_ram(mb)), Ok(mb));
        }
        for bad in ["", "512", "M", "0G", "1.5G", "-1G", "5T", "1025G", "99999999999G", "２G"] {
            assert!(parse_ram_mb(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("90", 90_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000), ("720h", 2_592_000_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "0", "0ms", "1d", "-1s", "1.5s", "721h", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels() {
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_label("a="), Ok(("a".into(), String::new())));
        for bad in ["", "a", "=b"] {
            assert!(parse_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (90_000, "1d")] {
            assert_eq!(render_age(Duration::from_secs(seconds)), text);
        }
    }
}
