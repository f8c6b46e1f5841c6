//! What one microVM may use of what all of a host share: connection tracking, bandwidth, the
//! memory in which the host puts fragments together.
//!
//! Owns: the numbers and how they become buckets. Refuses: enforcing them (`host_table` for flows,
//! `netlink::shape` for bandwidth, `bpf/fragments.h` for fragments).

/// The limits of one microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limits {
    /// Flows at a time, 1 to [`Limits::MAX_FLOWS`]. Counted before connection tracking keeps them.
    pub flows: u32,
    /// Flows begun in a second, 1 to [`Limits::MAX_NEW_FLOWS_PER_S`]; [`Limits::burst`] at once.
    pub new_flows_per_s: u32,
    /// Megabits (10^6 bits of frames) a second from the guest, 1 to [`Limits::MAX_MBIT`].
    pub mbit_up: Option<u32>,
    /// The same to the guest.
    pub mbit_down: Option<u32>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { flows: 4096, new_flows_per_s: 500, mbit_up: None, mbit_down: None }
    }
}

impl Limits {
    /// Half of the ports the host has towards one service, so that no guest can use them up; and
    /// each new flow makes the kernel walk the guest's live ones.
    pub const MAX_FLOWS: u32 = 32_768;
    /// More than a host can make.
    pub const MAX_NEW_FLOWS_PER_S: u32 = 100_000;
    /// 100 Gbit/s, the fastest a token bucket of nanoseconds is exact for.
    pub const MAX_MBIT: u32 = 100_000;

    /// The first of these numbers that is out of its range, by its key in the configuration.
    pub(crate) fn mistake(&self) -> Option<(&'static str, u32)> {
        let numbers = [
            ("flows", Some(self.flows), Limits::MAX_FLOWS),
            ("new_flows_per_s", Some(self.new_flows_per_s), Limits::MAX_NEW_FLOWS_PER_S),
            ("mbit_up", self.mbit_up, Limits::MAX_MBIT),
            ("mbit_down", self.mbit_down, Limits::MAX_MBIT),
        ];
        numbers
            .into_iter()
            .find_map(|(key, number, most)| number.filter(|n| !(1..=most).contains(n)).map(|n| (key, n)))
    }

    /// Flows that may begin at once after a quiet time: what two seconds allow. A browser or a
    /// package manager opens its connections in one go.
    #[must_use]
    pub fn burst(&self) -> u32 {
        self.new_flows_per_s.saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_named() {
        assert_eq!(Limits::default().mistake(), None);
        let of = |limits: Limits| limits.mistake();
        assert_eq!(of(Limits { flows: 0, ..Limits::default() }), Some(("flows", 0)));
        assert_eq!(of(Limits { flows: 32_769, ..Limits::default() }), Some(("flows", 32_769)));
        assert_eq!(of(Limits { new_flows_per_s: 0, ..Limits::default() }), Some(("new_flows_per_s", 0)));
        assert_eq!(of(Limits { mbit_up: Some(0), ..Limits::default() }), Some(("mbit_up", 0)));
        let fast = Limits { mbit_down: Some(100_001), ..Limits::default() };
        assert_eq!(fast.mistake(), Some(("mbit_down", 100_001)));
    }
}
