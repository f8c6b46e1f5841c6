//! Wrong attempts: slow, and few at a time from an address.
//!
//! Owns: the table of addresses with an attempt whose answer is not due yet. It is as large as the attempts of
//! one [`DELAY`], each of which took a handshake, so that nothing is forgotten by force. While an address
//! has [`AT_ONCE`] of them, no token from it is looked at: about so many guesses per
//! [`DELAY`] can be made (a few more, where several processors look at the same moment). A good token is never slow, and an address is free again at once when its
//! attempts are answered. Refuses: judging tokens.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the answer to a wrong token takes.
pub(crate) const DELAY: Duration = Duration::from_secs(1);
/// Wrong tokens of an address that wait at the same time.
pub(crate) const AT_ONCE: u32 = 4;

/// Addresses whose wrong tokens wait for their answer.
#[derive(Debug, Clone)]
pub(crate) struct Attempts {
    waiting: Arc<Mutex<HashMap<IpAddr, u32>>>,
    delay: Duration,
}

impl Attempts {
    /// An empty table; answers take `delay`.
    pub(crate) fn new(delay: Duration) -> Self {
        Self { waiting: Arc::default(), delay }
    }

    /// Whether a token from this address is looked at now.
    pub(crate) fn may_try(&self, from: IpAddr) -> bool {
        self.lock().get(&source(from)).is_none_or(|waiting| *waiting < AT_ONCE)
    }

    /// Waits as long as the answer to a wrong token takes. The address is free no earlier when this is dropped,
    /// because the client went away: a good token is answered at once, so that who hears nothing at once has his
    /// answer too.
    pub(crate) async fn wrong(&self, from: IpAddr) {
        let from = source(from);
        *self.lock().entry(from).or_default() += 1;
        let waiting = Waiting { attempts: self.clone(), from };
        let due = tokio::spawn(async move {
            tokio::time::sleep(waiting.attempts.delay).await;
            drop(waiting);
        });
        // It ends by itself, or with the daemon.
        let _ = due.await;
    }

    /// A panic elsewhere leaves a map that is whole: every change of it is one call.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting {
    attempts: Attempts,
    from: IpAddr,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.attempts.lock();
        if let Some(count) = waiting.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.from);
            }
        }
    }
}

/// Whom an address stands for: of IPv6 its /64, which is one customer's (RFC 6177).
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_waits_with_few_at_a_time_and_others_do_not() {
        let attempts = Attempts::new(DELAY);
        let (bad, good): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let tries: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let attempts = attempts.clone();
                tokio::spawn(async move { attempts.wrong(bad).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!attempts.may_try(bad) && attempts.may_try(good));
        let begun = tokio::time::Instant::now();
        for one in tries {
            one.await.unwrap();
        }
        assert!(begun.elapsed() >= DELAY - Duration::from_millis(10));
        assert!(attempts.may_try(bad));
        assert!(attempts.lock().is_empty(), "nothing is kept of an address that waits no more");
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_up_before_the_answer_has_made_an_attempt_all_the_same() {
        let attempts = Attempts::new(DELAY);
        let bad: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..AT_ONCE {
            assert!(attempts.may_try(bad));
            tokio::time::timeout(DELAY / 10, attempts.wrong(bad)).await.expect_err("it is answered early");
        }
        assert!(!attempts.may_try(bad), "all were dropped, none of them is due");
        tokio::time::sleep(DELAY).await;
        assert!(attempts.may_try(bad) && attempts.lock().is_empty());
    }

    #[test]
    fn a_customer_of_ipv6_is_one_source() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
