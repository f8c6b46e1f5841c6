//! Labels of VMs: what they may be, and which VMs have them. Refuses: any meaning.

use super::VmError;
use std::collections::BTreeMap;

/// Labels of one VM.
const MAX_LABELS: usize = 64;
const MAX_KEY: usize = 63;
const MAX_VALUE: usize = 256;

/// Refuses labels that are none.
pub(super) fn check(labels: &BTreeMap<String, String>) -> Result<(), VmError> {
    if labels.len() > MAX_LABELS {
        return Err(VmError::OutOfRange { field: "labels", rule: "must be at most 64" });
    }
    let bad = |key: &str, rule| Err(VmError::BadLabel { key: key.to_owned(), rule });
    for (key, value) in labels {
        if !is_key(key) {
            return bad(
                key,
                "a key is 1 to 63 of A-Z, a-z, 0-9, `.`, `_`, `/` and `-`, a letter or digit first",
            );
        }
        if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
            return bad(key, "a value is at most 256 bytes without control characters");
        }
    }
    Ok(())
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b))
        && key.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

/// Whether a VM with these labels is meant by a filter `KEY` or `KEY=VALUE`.
pub(crate) fn matches(labels: &BTreeMap<String, String>, filter: &str) -> bool {
    match filter.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(filter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_no_label_is_refused_with_its_key() {
        for good in ["a", "0", "a.b/c-d_E", &"k".repeat(63)] {
            check(&labels(&[(good, "v = ü, =")])).unwrap();
        }
        for bad in ["", "-a", ".a", "a b", "a=b", "ü", &"k".repeat(64)] {
            let error = check(&labels(&[("ok", ""), (bad, "")])).unwrap_err();
            assert!(matches!(&error, VmError::BadLabel { key, .. } if key == bad), "{error}");
        }
        for bad in ["a\nb", "\u{7f}", &"v".repeat(257)] {
            assert!(check(&labels(&[("k", bad)])).is_err(), "{bad:?}");
        }
        let many: BTreeMap<_, _> = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert!(check(&many).is_err());
    }

    #[test]
    fn a_filter_is_a_key_or_a_pair() {
        let found = labels(&[("a", "1=2"), ("b", "")]);
        for filter in ["a", "b", "a=1=2", "b="] {
            assert!(matches(&found, filter), "{filter}");
        }
        for filter in ["", "c", "a=1", "a=", "=", "b=x"] {
            assert!(!matches(&found, filter), "{filter}");
        }
    }
}
