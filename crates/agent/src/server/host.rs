//! The boot connection after the hand-over: events up, commands down, and a new connection
//! whenever the old one breaks (a restarted daemon).

use super::{Init, shutdown, userdata};
use crate::boot::disk;
use crate::boot::link::{Link, LinkError};
use crate::console::say;
use enisle_guest_proto::{BootCommand, BootEvent};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A server looks for its daemon for as long as the guest lives.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Where events go: the connection of the moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Events(Arc<Mutex<Current>>);

#[derive(Debug, Default)]
struct Current {
    link: Option<Link>,
    /// The script was begun: a daemon that took over hands it on once more, as it cannot know.
    script_begun: bool,
    /// The script's outcome, told again on each new connection: the one it was told on may have
    /// been broken already.
    userdata: Option<BootEvent>,
}

impl Events {
    fn with<T>(&self, act: impl FnOnce(&mut Current) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Uses `link` from now on, and says what a daemon has to know first.
    fn renew(&self, mut link: Link) -> Result<(), LinkError> {
        self.with(|current| {
            link.send(&BootEvent::Ready {})?;
            if let Some(event) = &current.userdata {
                link.send(event)?;
            }
            current.link = Some(link);
            Ok(())
        })
    }

    /// True the first time only.
    fn begin_script(&self) -> bool {
        self.with(|current| !std::mem::replace(&mut current.script_begun, true))
    }

    /// Reports the script's end.
    pub(super) fn userdata_done(&self, code: i32) {
        self.with(|current| {
            let event = BootEvent::UserdataDone { code };
            if let Some(Err(e)) = current.link.as_mut().map(|link| link.send(&event)) {
                say(format_args!("report the end of userdata: {e}"));
            }
            current.userdata = Some(event);
        });
    }
}

/// Serves `first`, or a new connection, and the next one after each that breaks.
pub(super) fn follow(first: Option<Link>, init: Init) {
    let events = Events::default();
    let boot_end = userdata::BootEnd::open(init);
    // A server that was started again has grown it before.
    let mut ungrown = first.is_some();
    let mut next = first;
    loop {
        let link = match next.take().map_or_else(|| Link::open(true, FOREVER).map(|(link, _)| link), Ok) {
            Ok(link) => link,
            Err(e) => {
                // Only a daemon of another version ends the search: a newer one may follow it.
                say(format_args!("boot connection: {e}"));
                thread::sleep(Duration::from_secs(30));
                continue;
            }
        };
        if let Err(e) = serve(link, &events, (init, &boot_end), &mut ungrown) {
            say(format_args!("boot connection: {e}; connecting again"));
            events.with(|current| current.link = None);
        }
    }
}

/// Reads commands until the connection ends, which is always an error.
fn serve(
    mut link: Link,
    events: &Events,
    (init, boot_end): (Init, &userdata::BootEnd),
    ungrown: &mut bool,
) -> Result<(), LinkError> {
    events.renew(link.try_clone()?)?;
    if std::mem::take(ungrown) {
        disk::grow_in_background();
    }
    let mut script = userdata::Script::default();
    loop {
        match link.receive()?.control::<BootCommand>()? {
            BootCommand::Shutdown {} => shutdown::begin(init),
            BootCommand::Userdata { part, last } => {
                if let Err(e) = script.add(&part) {
                    say(format_args!("userdata: {e}"));
                    events.userdata_done(1);
                    continue;
                }
                if last && events.begin_script() {
                    userdata::start(std::mem::take(&mut script), boot_end.clone(), events.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_is_handed_over_again_is_not_begun_again() {
        let events = Events::default();
        assert!(events.begin_script());
        assert!(!events.clone().begin_script());
    }
}
