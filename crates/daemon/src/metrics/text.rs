//! The classic text format (version 0.0.4), which every reader of metrics understands, `promtool` included.
//!
//! The library writes OpenMetrics, in which a counter's family is named without the `_total` that its samples
//! have. Owns: that difference.

/// The media type of [`classic`].
pub(crate) const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

/// OpenMetrics text as classic text.
pub(super) fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len() + open.len() / 16);
    // A family's help comes before its type, which decides its name.
    let mut help = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let total = if kind == "counter" { "_total" } else { "" };
            if let Some((_, said)) = help.take() {
                text.push_str(&format!("# HELP {name}{total} {said}\n"));
            }
            text.push_str(&format!("# TYPE {name}{total} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_get_their_whole_name_and_the_rest_stays() {
        let open = "# HELP a Said, so.\n# TYPE a counter\na_total{x=\"# HELP\"} 1\n# HELP b What.\n# TYPE b gauge\n\
                    # UNIT b seconds\nb 2\n# EOF\n";
        let expected = "# HELP a_total Said, so.\n# TYPE a_total counter\na_total{x=\"# HELP\"} 1\n# HELP b What.\n\
                        # TYPE b gauge\nb 2\n";
        assert_eq!(classic(open), expected);
    }
}
