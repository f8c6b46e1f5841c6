//! The states of a VM as a pure table: what an event does in each state.
//!
//! ```text
//!            Launched          Ready            Remove
//! Creating ──────────▶ Booting ─────▶ Running ──────────▶ Stopping
//!    │ │                 │ │           │   │                 │ Ended, GraceOver, Hurry
//!    │ │Broke       Broke│ │           │   │Hurry            ▼      Cleared              Forgotten
//!    │ │            Ended│ │Remove     │   └────────────▶ Ending ─────────▶ Forgetting ──────────▶ Gone
//!    │ ▼                 ▼ └─────────┐ │Ended                ▲   Stuck (from both): Failed
//!    │ Failing ◀─────────┴───────────┼─┘                     │
//!    │   │ Cleared                   └───────────────────────┤
//!    │   ▼               Remove                              │
//!    │ Failed ───────────────────────────────────────────────┤
//!    ▼ Remove                       Launched, Broke          │
//! Cancelling ────────────────────────────────────────────────┘
//! ```
//!
//! An adopted VM goes from Creating to Running at once (Adopted), or is removed (Lost). Running and
//! Paused (not in the picture) lead to each other; a paused VM ends as a running one does.
//!
//! Owns: which state follows and what is to be done. Refuses: doing it, which is the owner task's.

use enisle_api::VmState;

/// Where a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Slot, disk and VMM are being made, or taken over.
    Creating,
    /// Being made, and to be unmade as soon as the step in hand is over.
    Cancelling,
    /// The guest runs; its agent has not said yet that it is set up.
    Booting,
    /// Exec works.
    Running,
    /// Exec worked; the guest's processors are halted until it is resumed.
    Paused,
    /// The guest was asked to stop and is given time.
    Stopping,
    /// Everything but the row and the console's log is being removed, and they come next.
    Ending,
    /// The console's log and the row are being removed.
    Forgetting,
    /// It broke; everything but the row and the console's log is being removed.
    Failing,
    /// It broke. Only the row and the console's log are left.
    Failed,
    /// Nothing is left.
    Gone,
}

/// What can happen to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its creation is over: the guest runs.
    Launched,
    /// It was ready under an earlier run of the daemon, and is this one's now.
    Adopted,
    /// A VM of an earlier run could not be taken over.
    Lost,
    /// Its processors were halted; also of an adopted VM that is found so.
    Halted,
    /// They run on.
    Resumed,
    /// Its agent serves sessions.
    Ready,
    /// Its creation or its guest's set-up failed.
    Broke,
    /// The guest or its VMM ended.
    Ended,
    /// Somebody wants it removed, or the daemon stops.
    Remove,
    /// The daemon is told a second time to stop.
    Hurry,
    /// The time for an orderly stop is over.
    GraceOver,
    /// Everything but the row and the console's log is removed.
    Cleared,
    /// They are, too.
    Forgotten,
    /// Something could not be removed.
    Stuck,
}

/// What the owner task has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    Nothing,
    /// Call off the creation.
    CallOff,
    /// Ask the guest to stop, and start the clock.
    Ask,
    /// Kill what runs and take away all but the row and the console's log.
    Clear,
    /// Take away the console's log and the row.
    Forget,
}

/// The state after `event`, and what is to be done about it. An event that means nothing in a
/// state leaves it as it is.
pub(crate) fn next(state: State, event: Event) -> (State, Effect) {
    use Effect::{Ask, CallOff, Clear, Forget, Nothing};
    use Event::{
        Adopted, Broke, Cleared, Ended, Forgotten, GraceOver, Halted, Hurry, Launched, Lost, Ready, Remove,
        Resumed, Stuck,
    };
    use State::{
        Booting, Cancelling, Creating, Ending, Failed, Failing, Forgetting, Gone, Paused, Running, Stopping,
    };
    match (state, event) {
        (Creating, Launched) => (Booting, Nothing),
        (Creating, Adopted) | (Booting, Ready) | (Paused, Resumed) => (Running, Nothing),
        (Creating | Running, Halted) => (Paused, Nothing),
        (Creating, Broke) | (Booting | Running | Paused, Broke | Ended) => (Failing, Clear),
        (Creating, Remove | Hurry) => (Cancelling, CallOff),
        // Nobody inside could be asked yet.
        (Booting, Remove | Hurry) | (Running | Paused, Hurry) => (Ending, Clear),
        // A paused guest is resumed for it.
        (Running | Paused, Remove) => (Stopping, Ask),
        (Cancelling, Launched | Adopted | Halted | Broke) | (Creating | Cancelling, Lost) => (Ending, Clear),
        (Stopping, Broke | Ended | GraceOver | Hurry) => (Ending, Clear),
        // What is being removed already is removed entirely.
        (Failing, Remove | Hurry) => (Ending, Nothing),
        (Failing, Cleared | Stuck) | (Ending | Forgetting, Stuck) => (Failed, Nothing),
        (Ending, Cleared) => (Forgetting, Forget),
        (Forgetting, Forgotten) => (Gone, Nothing),
        // Also the second attempt at what could not be removed: each removal may be repeated.
        (Failed, Remove | Hurry) => (Ending, Clear),
        _ => (state, Nothing),
    }
}

impl State {
    /// What users are told.
    pub(crate) fn shown(self) -> VmState {
        match self {
            Self::Creating => VmState::Creating,
            Self::Booting => VmState::Booting,
            Self::Running => VmState::Running,
            Self::Paused => VmState::Paused,
            Self::Cancelling | Self::Stopping | Self::Ending | Self::Forgetting | Self::Gone => {
                VmState::Stopping
            }
            Self::Failing | Self::Failed => VmState::Failed,
        }
    }

    /// Whether it can still become [`State::Running`].
    pub(crate) fn is_hopeful(self) -> bool {
        matches!(self, Self::Creating | Self::Booting)
    }

    /// Whether its guest may be talked to, now or when it is resumed.
    pub(crate) fn has_guest(self) -> bool {
        matches!(self, Self::Booting | Self::Running | Self::Paused | Self::Stopping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 11] = [
        State::Creating,
        State::Cancelling,
        State::Booting,
        State::Running,
        State::Paused,
        State::Stopping,
        State::Ending,
        State::Forgetting,
        State::Failing,
        State::Failed,
        State::Gone,
    ];
    const EVENTS: [Event; 14] = [
        Event::Launched,
        Event::Adopted,
        Event::Lost,
        Event::Halted,
        Event::Resumed,
        Event::Ready,
        Event::Broke,
        Event::Ended,
        Event::Remove,
        Event::Hurry,
        Event::GraceOver,
        Event::Cleared,
        Event::Forgotten,
        Event::Stuck,
    ];

    /// Every cell, so that a change of the table is a change of this text.
    #[test]
    fn the_whole_table() {
        let mut text = String::new();
        for state in STATES {
            for event in EVENTS {
                let (next, effect) = next(state, event);
                if (next, effect) != (state, Effect::Nothing) {
                    text.push_str(&format!("{state:?} {event:?} {next:?} {effect:?}\n"));
                }
            }
        }
        assert_eq!(text, include_str!("table.golden.txt"));
    }

    /// From every state that can be reached, removing ends in Gone whatever happens on the way.
    #[test]
    fn removal_always_ends() {
        for start in STATES {
            for order in [[Event::Remove, Event::Hurry], [Event::Hurry, Event::Remove]] {
                let mut state = start;
                for event in order {
                    state = next(state, event).0;
                }
                for event in [Event::Launched, Event::GraceOver, Event::Cleared, Event::Forgotten] {
                    state = next(state, event).0;
                }
                assert_eq!(state, State::Gone, "from {start:?}");
            }
        }
    }

    /// What exists is cleared exactly once on every path: no state with a slot leads to Failed or
    /// Gone without a Clear on the way.
    #[test]
    fn nothing_reaches_an_end_uncleared() {
        for state in [State::Creating, State::Cancelling, State::Booting, State::Running, State::Stopping] {
            for event in EVENTS {
                let (after, effect) = next(state, event);
                assert!(!matches!(after, State::Failed | State::Gone), "{state:?} {event:?}");
                if matches!(after, State::Failing | State::Ending) {
                    assert_eq!(effect, Effect::Clear, "{state:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn gone_is_final() {
        for event in EVENTS {
            assert_eq!(next(State::Gone, event), (State::Gone, Effect::Nothing));
        }
    }
}
