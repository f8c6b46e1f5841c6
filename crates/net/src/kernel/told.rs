//! The ring in which the judge tells of refused packets, and its records as bytes (`bpf/reports.h`).
//!
//! Owns: reading records with their bounds. Refuses: whose they are (`reports`).

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};

/// `struct report`.
const LEN: usize = 40;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) tenant: u64,
    pub(crate) untold: u64,
    pub(crate) by: u32,
    pub(crate) policy: u32,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    /// In the header's order; of ICMP type and code in the first one.
    pub(crate) ports: Option<[u16; 2]>,
    pub(crate) proto: u8,
    pub(crate) inward: bool,
}

/// The reader's end. There is one.
pub(crate) struct Ring(RingBuf<MapData>);

impl Ring {
    pub(super) fn new(map: RingBuf<MapData>) -> Ring {
        Ring(map)
    }

    /// The oldest record that was not read yet. One that is not as this program knows it is passed over.
    pub(crate) fn next(&mut self) -> Option<Record> {
        loop {
            let item = self.0.next()?;
            if let Some(record) = decode(&item) {
                return Some(record);
            }
        }
    }
}

impl AsFd for Ring {
    /// Readable when there is a record.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let bytes: &[u8; LEN] = bytes.try_into().ok()?;
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    Some(Record {
        tenant: long(0)?,
        untold: long(8)?,
        by: word(16)?,
        policy: word(20)?,
        source: address(24)?,
        destination: address(28)?,
        ports: (bytes[38] != 0).then(|| [port(32), port(34)]),
        proto: bytes[36],
        inward: bytes[37] != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_is_read_as_the_judge_writes_it() {
        let mut bytes = [0; LEN];
        bytes[0..8].copy_from_slice(&7u64.to_ne_bytes());
        bytes[8..16].copy_from_slice(&9u64.to_ne_bytes());
        bytes[16..20].copy_from_slice(&3u32.to_ne_bytes());
        bytes[20..24].copy_from_slice(&2u32.to_ne_bytes());
        bytes[24..32].copy_from_slice(&[169, 254, 100, 2, 8, 8, 4, 4]);
        bytes[32..36].copy_from_slice(&[0x12, 0x34, 0, 53]);
        bytes[36..40].copy_from_slice(&[17, 0, 1, 0]);
        let expected = Record {
            tenant: 7,
            untold: 9,
            by: 3,
            policy: 2,
            source: Ipv4Addr::new(169, 254, 100, 2),
            destination: Ipv4Addr::new(8, 8, 4, 4),
            ports: Some([0x1234, 53]),
            proto: 17,
            inward: false,
        };
        assert_eq!(decode(&bytes), Some(expected));
        bytes[38] = 0;
        assert_eq!(decode(&bytes).unwrap().ports, None);
    }

    proptest! {
        #[test]
        fn a_record_of_another_length_is_none(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(&bytes).is_some(), bytes.len() == LEN);
        }
    }
}
