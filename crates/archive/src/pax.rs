//! Extended headers: `LENGTH KEY=VALUE\n` records (POSIX.1-2001, pax, "pax Extended Header").

use crate::ArchiveError;

/// Records of one extended header that matter here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Option<Time>,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// Appends one record; its length counts itself.
pub(crate) fn append(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    // Space, equals sign and newline.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A time as a record's value.
pub(crate) fn time_value(time: Time) -> Vec<u8> {
    // A time before 1970 with a fraction: -1.25 is 2 s before plus 0.75 s.
    if time.seconds < 0 && time.nanoseconds > 0 {
        return format!("-{}.{:09}", -(time.seconds + 1), 1_000_000_000 - time.nanoseconds).into_bytes();
    }
    format!("{}.{:09}", time.seconds, time.nanoseconds).into_bytes()
}

fn parse_time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (text, negative) = text.strip_prefix('-').map_or((text, false), |rest| (rest, true));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

impl Records {
    /// Reads all records into `self`; later ones win, unknown keys are passed over.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        const BAD: ArchiveError = ArchiveError::Malformed("a broken extended header");
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
            let digits = bytes.get(..space).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or(BAD)?;
            let length: usize = digits.parse().map_err(|_| BAD)?;
            let record = bytes.get(space + 1..length).ok_or(BAD)?;
            let record = record.strip_suffix(b"\n").ok_or(BAD)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or(BAD)?);
                }
                b"mtime" => self.mtime = Some(parse_time(value).ok_or(BAD)?),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(ArchiveError::Malformed("a sparse entry"));
                }
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(path: Vec<u8>, seconds in -4_000_000_000_i64..4_000_000_000, nanoseconds in 0_u32..1_000_000_000) {
            let time = Time { seconds, nanoseconds };
            let mut wire = Vec::new();
            append(&mut wire, "path", &path);
            append(&mut wire, "mtime", &time_value(time));
            let mut records = Records::default();
            records.read(&wire).unwrap();
            prop_assert_eq!(records.path, Some(path));
            prop_assert_eq!(records.mtime, Some(time));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Records::default().read(&bytes);
        }
    }

    #[test]
    fn lengths_at_the_edge_of_a_digit() {
        for length in 80..120 {
            let mut wire = Vec::new();
            append(&mut wire, "path", &vec![b'x'; length]);
            let mut records = Records::default();
            records.read(&wire).unwrap();
            assert_eq!(records.path.unwrap().len(), length);
        }
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [
            "x",
            "5 a=b",
            "0 a=b\n",
            "99 a=b\n",
            "6 abc\n\n",
            "2 a=b\n",
            "18446744073709551615 a=b\n",
            "12 mtime=1x\n",
            "10 size=-1\n",
        ] {
            assert!(Records::default().read(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
