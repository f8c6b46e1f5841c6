//! Owns measuring the host's time stamp counter for guests that cannot.
//!
//! Under TCG the guest's `rdtsc` is the host's. Linux measures it against the PIT with a quick
//! method that fails by chance on a busy host; the thorough method needs port 0x61, an HPET or
//! a PM timer, and `microvm` has none of them: the guest then hangs before its first visible
//! line (1 boot in 8 with Debian's 6.1 kernel and QEMU 7.2). Being told, it does not measure.

use std::time::{Duration, Instant};

/// Long enough for an error under 50 ppm; NTP in the guest corrects ten times that.
const INTERVAL: Duration = Duration::from_millis(40);
/// The best of a few readings is one without a preemption between clock and counter.
const READINGS: usize = 16;

/// The rate of the host's time stamp counter in kHz, measured over 40 ms; `None` where it
/// makes no sense.
pub(super) async fn host_khz() -> Option<u32> {
    let (begin, first) = reading()?;
    tokio::time::sleep(INTERVAL).await;
    let (end, last) = reading()?;
    let ticks = u128::from(last.checked_sub(first)?);
    let nanos = end.duration_since(begin).as_nanos().max(1);
    let khz = u32::try_from(ticks * 1_000_000 / nanos).ok()?;
    (100_000..10_000_000).contains(&khz).then_some(khz)
}

/// The clock and the counter at one moment.
fn reading() -> Option<(Instant, u64)> {
    let once = || {
        let before = Instant::now();
        let ticks = counter();
        (before.elapsed(), before, ticks)
    };
    let best = (0..READINGS).map(|_| once()).min_by_key(|(gap, ..)| *gap)?;
    Some((best.1 + best.0 / 2, best.2))
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the counter is read by an instruction")]
fn counter() -> u64 {
    // SAFETY: `rdtsc` only reads a counter, and exists on every x86-64 processor.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[tokio::test]
    async fn two_measurements_agree() {
        let first = super::host_khz().await.unwrap();
        let second = super::host_khz().await.unwrap();
        let apart = first.abs_diff(second);
        assert!(apart < first / 500, "{first} and {second} kHz");
    }
}
