//! How often something may be put back.
//!
//! Owns: a budget for each thing that is repaired, so that two programs that undo each other's work
//! do not keep a host busy. Refuses: clocks (callers say what time it is), and the repair.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Repairs of one thing at once.
const BURST: u32 = 8;
/// After that, one in this time; also how long a repair takes to be forgotten.
const EACH: Duration = Duration::from_secs(5);

/// Budgets by what is repaired.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    budgets: BTreeMap<String, Budget>,
}

#[derive(Debug)]
struct Budget {
    spent: u32,
    /// When the oldest spent repair is forgotten.
    next: Instant,
    told: bool,
    waiting: bool,
}

/// The answer to who wants to repair something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Do it.
    Now,
    /// Not yet. `told`: it was said before that somebody fights.
    Later { told: bool },
}

impl Pace {
    /// Asks for one repair of `what`.
    pub(crate) fn turn(&mut self, what: &str, now: Instant) -> Turn {
        self.forget(now);
        let fresh = || Budget { spent: 0, next: now + EACH, told: false, waiting: false };
        let budget = self.budgets.entry(what.to_owned()).or_insert_with(fresh);
        if budget.spent < BURST {
            budget.spent += 1;
            budget.waiting = false;
            return Turn::Now;
        }
        budget.waiting = true;
        Turn::Later { told: std::mem::replace(&mut budget.told, true) }
    }

    /// How long until something that had to wait may be tried again.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let waiting = self.budgets.values().filter(|b| b.waiting);
        waiting.map(|b| b.next.saturating_duration_since(now)).min()
    }

    /// Each budget grows back by one in [`EACH`]; whole ones are forgotten.
    fn forget(&mut self, now: Instant) {
        for budget in self.budgets.values_mut() {
            while budget.spent > 0 && budget.next <= now {
                budget.spent -= 1;
                budget.next += EACH;
            }
        }
        self.budgets.retain(|_, b| b.spent > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_is_slow_and_told_once() {
        let mut pace = Pace::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(pace.turn("table", start), Turn::Now);
        }
        assert_eq!(pace.wait(start), None);
        assert_eq!(pace.turn("table", start), Turn::Later { told: false });
        assert_eq!(pace.turn("table", start), Turn::Later { told: true });
        assert_eq!(pace.turn("chain", start), Turn::Now, "each thing has its own budget");
        assert_eq!(pace.wait(start), Some(EACH));
        let later = start + EACH;
        assert_eq!(pace.turn("table", later), Turn::Now);
        assert_eq!(pace.wait(later), None);
        assert_eq!(pace.turn("table", later), Turn::Later { told: true });
    }

    #[test]
    fn a_quarrel_that_is_over_is_forgotten() {
        let mut pace = Pace::default();
        let start = Instant::now();
        for _ in 0..=BURST {
            pace.turn("table", start);
        }
        let quiet = start + EACH * (BURST + 1);
        for _ in 0..BURST {
            assert_eq!(pace.turn("table", quiet), Turn::Now);
        }
        assert_eq!(pace.turn("table", quiet), Turn::Later { told: false }, "a new quarrel is news");
    }
}
