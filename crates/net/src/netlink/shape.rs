//! Bandwidth: a token bucket (`sch_tbf`) as the root qdisc of an interface.
//!
//! Owns: how large bucket and queue are for a rate, and the message. Refuses: which interface
//! shapes which direction (`slot`).
//!
//! No rate table is sent: with a link layer named, the kernel computes times itself
//! (`psched_ratecfg_precompute`). A TSO packet larger than the bucket is cut into its segments by
//! the kernel (`tbf_segment`), so the bucket need not hold one, only a frame.

use super::{Message, flags};

const NEWQDISC: u16 = 36;
const DELQDISC: u16 = 37;
const TC_H_ROOT: u32 = 0xffff_ffff;
/// `1:` of tc.
const HANDLE: u32 = 0x0001_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// An Ethernet header and a VLAN tag.
const FRAME_OVERHEAD: u32 = 18;
/// Frames a bucket holds at the least, so that a slow one still sends pairs.
const LEAST_FRAMES: u32 = 2;
/// What may pass at once after a quiet time: 10 ms of the rate.
const BURST_PER_SECOND: u64 = 100;
/// What may wait: 50 ms of the rate, so that TCP fills the link over a usual path.
const QUEUE_PER_SECOND: u64 = 20;
/// A slow link's queue still takes one window of ten segments twice.
const LEAST_QUEUE: u32 = 32 << 10;
/// Small packets take twelve times their length of kernel memory.
const MOST_QUEUE: u32 = 1 << 20;

/// A rate with its bucket and queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of frames a second.
    pub(crate) rate: u64,
    /// Bytes.
    pub(crate) burst: u32,
    /// Bytes that wait; what comes beyond is dropped.
    pub(crate) queue: u32,
}

/// Takes the root qdisc of interface `index` away: absent where it never had one.
pub(crate) fn unshape(index: u32) -> Message {
    root(Message::new(DELQDISC, 0), index, 0)
}

/// `struct tcmsg`.
fn root(message: Message, index: u32, handle: u32) -> Message {
    message
        .put(&[0; 4])
        .put(&index.to_ne_bytes())
        .put(&handle.to_ne_bytes())
        .put(&TC_H_ROOT.to_ne_bytes())
        .put(&[0; 4])
}

impl Shape {
    /// For `mbit` · 10^6 bits a second on a link of this MTU.
    pub(crate) fn new(mbit: u32, mtu: u32) -> Shape {
        let rate = u64::from(mbit) * 1_000_000 / 8;
        let part = |divisor| u32::try_from(rate / divisor).unwrap_or(u32::MAX);
        let frames = LEAST_FRAMES * mtu.saturating_add(FRAME_OVERHEAD);
        Shape {
            rate,
            burst: part(BURST_PER_SECOND).max(frames),
            queue: part(QUEUE_PER_SECOND).clamp(LEAST_QUEUE, MOST_QUEUE).max(frames),
        }
    }

    /// The root qdisc of interface `index`, in the place of one that is there.
    pub(crate) fn message(&self, index: u32) -> Message {
        let mut m = root(Message::new(NEWQDISC, flags::CREATE | flags::REPLACE), index, HANDLE);
        m.attr_str(TCA_KIND, "tbf").nest(TCA_OPTIONS, |m| {
            m.attr(TCA_TBF_PARMS, &self.parameters())
                .attr(TCA_TBF_RATE64, &self.rate.to_ne_bytes())
                .attr_u32(TCA_TBF_BURST, self.burst);
        });
        m
    }

    /// `struct tc_tbf_qopt`: rate, no peak rate, the queue. Its `buffer` gives way to
    /// `TCA_TBF_BURST`.
    fn parameters(&self) -> [u8; 36] {
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let mut bytes = [0; 36];
        bytes[1] = TC_LINKLAYER_ETHERNET;
        bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
        bytes[13] = TC_LINKLAYER_ETHERNET;
        bytes[24..28].copy_from_slice(&self.queue.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::netlink::{attribute, messages, u32_at};

    #[test]
    fn the_message_has_the_kernels_layout() {
        let shape = Shape { rate: 12_500_000_000, burst: 125_000, queue: 625_000 };
        let bytes = shape.message(0x4000_0001).finish(1);
        let m = messages(&bytes).next().unwrap();
        assert_eq!(m.kind, NEWQDISC);
        assert_eq!((u32_at(m.body, 4), u32_at(m.body, 12)), (Some(0x4000_0001), Some(TC_H_ROOT)));
        let attrs = &m.body[20..];
        assert_eq!(attribute(attrs, TCA_KIND), Some(&b"tbf\0"[..]));
        let options = attribute(attrs, TCA_OPTIONS).unwrap();
        // rate, peak rate, limit, buffer, mtu of `struct tc_tbf_qopt`.
        let parameters = attribute(options, TCA_TBF_PARMS).unwrap();
        let words: Vec<u32> = (0..9).map(|i| u32_at(parameters, i * 4).unwrap()).collect();
        assert_eq!((words[2], words[5], words[6]), (u32::MAX, 0, 625_000));
        let rate = attribute(options, TCA_TBF_RATE64).unwrap();
        assert_eq!(u64::from_ne_bytes(rate.try_into().unwrap()), shape.rate);
        assert_eq!(u32_at(attribute(options, TCA_TBF_BURST).unwrap(), 0), Some(shape.burst));
    }

    #[test]
    fn buckets_follow_the_rate_within_bounds() {
        let shape = |mbit| Shape::new(mbit, 1500);
        assert_eq!(shape(1), Shape { rate: 125_000, burst: 3036, queue: 32_768 });
        assert_eq!(shape(100), Shape { rate: 12_500_000, burst: 125_000, queue: 625_000 });
        assert_eq!(
            shape(Limits::MAX_MBIT),
            Shape { rate: 12_500_000_000, burst: 125_000_000, queue: 1 << 20 }
        );
        // Always a frame of the largest MTU.
        for mbit in [1, 7, 1000] {
            let shape = Shape::new(mbit, 65_535);
            assert!(shape.burst > 65_535 + 14 && shape.queue > 65_535 + 14, "{shape:?}");
        }
    }
}
