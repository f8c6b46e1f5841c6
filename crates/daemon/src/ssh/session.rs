//! One channel: from its first request to its end.
//!
//! Owns: what a channel may be (a terminal with a console, or with the menu), and the menu's rounds.
//! Refuses: commands, subsystems and channels without a terminal, each with a sentence.

use super::attach::{Left, attach};
use super::key::Keys as MenuKeys;
use super::keys::Caller;
use super::menu::{Choice, Entry, Menu};
use super::terminal::{self, Keyboard, RESET, Said, Screen};
use super::{Desk, shell, shown};
use crate::chain::Chain;
use crate::events::Reader;
use crate::vm::Handle;
use enisle_api::EventFilter;
use enisle_api::Removal;
use russh::server::Msg;
use russh::{Channel, ChannelMsg};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A menu is drawn anew at most this often for what happens to VMs; for a key at once.
const FRAME_INTERVAL: Duration = Duration::from_millis(200);
/// The user name that is the menu's whatever VMs are called.
const MENU: &str = "menu";
const MENU_ON: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const NO_COMMANDS: &str = "commands and subsystems are not run here. `ssh NAME@HOST` is a VM's console, `ssh HOST` a \
                           menu; `enisle vm exec` runs commands and `enisle vm cp` copies files";
const NO_TERMINAL: &str = "this needs a terminal: ssh -t";

/// Serves a channel to its end.
pub(super) async fn serve(desk: Desk, caller: Caller, user: String, channel: Channel<Msg>) {
    let (reader, writer) = channel.split();
    let mut keyboard = Keyboard::new(reader);
    let mut terminal = false;
    loop {
        match keyboard.request().await {
            Some(ChannelMsg::RequestPty { term, col_width, row_height, .. }) => {
                keyboard.is(&term, row_height, col_width);
                terminal = true;
            }
            Some(ChannelMsg::RequestShell { .. }) if terminal => break,
            Some(ChannelMsg::RequestShell { .. }) => return terminal::refuse(writer, NO_TERMINAL).await,
            Some(ChannelMsg::Exec { .. } | ChannelMsg::RequestSubsystem { .. }) => {
                return terminal::refuse(writer, NO_COMMANDS).await;
            }
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    }
    let vm = match named(&desk, &caller, &user) {
        Ok(vm) => vm,
        Err(why) => return terminal::refuse(writer, &why).await,
    };
    let (screen, output) = terminal::screen(writer);
    tokio::select! {
        () = show(&desk, &caller, vm, &mut keyboard, &screen) => {}
        () = caller.lost(None) => {
            screen.show(format!("{RESET}\r\n[enisle: this key is not in the file any more; good-bye]\r\n")).await;
        }
        () = desk.stop.cancelled() => {
            screen.show(format!("{RESET}\r\n[enisle: the daemon stops; good-bye]\r\n")).await;
        }
    }
    drop(screen);
    output.finish(0).await;
}

/// The VM that a user name names; none for the menu.
fn named(desk: &Desk, caller: &Caller, user: &str) -> Result<Option<Handle>, String> {
    if user == MENU {
        return Ok(None);
    }
    match desk.registry.get(user) {
        Ok(vm) if caller.may_see(&vm) => return Ok(Some(vm)),
        _ => {}
    }
    if looks_like_a_vm(user) {
        // The same whether it is not there or not for this key.
        let name = shown(user);
        return Err(format!(
            "there is no microVM {name:?} for this key; `ssh menu@HOST` shows those there are"
        ));
    }
    Ok(None)
}

/// Names of VMs are their group's with a number. Others are users, who get the menu.
fn looks_like_a_vm(user: &str) -> bool {
    user.rsplit_once('-').is_some_and(|(group, number)| {
        !group.is_empty() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

async fn show(desk: &Desk, caller: &Caller, vm: Option<Handle>, keyboard: &mut Keyboard, screen: &Screen) {
    match vm {
        Some(vm) => {
            at(&vm, caller, screen, attach(&vm, caller, keyboard, screen)).await;
        }
        None => menu(desk, caller, keyboard, screen).await,
    }
}

/// Does something with a VM for as long as the caller may see it.
async fn at(vm: &Handle, caller: &Caller, screen: &Screen, work: impl Future<Output = Left>) -> Left {
    tokio::select! {
        left = work => left,
        () = caller.lost(Some(vm)) => {
            let name = vm.name();
            screen.show(format!("{RESET}\r\n[enisle: this key does not open {name} any more]\r\n")).await;
            Left::Detached
        }
    }
}

/// The menu, and what is chosen from it, until it is left.
async fn menu(desk: &Desk, caller: &Caller, keyboard: &mut Keyboard, screen: &Screen) {
    let mut menu = Menu::new(format!("Enisle: microVMs for {}", caller.label));
    let mut events = desk.registry.events().reader(None, Some(EventFilter::Lifecycle));
    loop {
        screen.show(MENU_ON.to_owned()).await;
        let Some(choice) = browse(desk, caller, &mut menu, &mut events, (keyboard, screen)).await else {
            return;
        };
        screen.show(RESET.to_owned()).await;
        let left = match choice {
            Choice::Quit => return,
            Choice::Console(name) => match visible(desk, caller, &name) {
                Some(vm) => at(&vm, caller, screen, attach(&vm, caller, keyboard, screen)).await,
                None => Left::Detached,
            },
            Choice::Shell(name) => match visible(desk, caller, &name) {
                Some(vm) => at(&vm, caller, screen, shell::shell(&vm, caller, keyboard, screen)).await,
                None => Left::Detached,
            },
            Choice::Stop(name, made_ms) => {
                // Not another one that has its name by now.
                let same = |vm: &Handle| vm.plan().row.created_ms == made_ms;
                if let Some(vm) = visible(desk, caller, &name).filter(same) {
                    stop(vm, caller);
                    menu.say(format!("stopping {name}"));
                }
                Left::Detached
            }
        };
        if left == Left::Gone {
            return;
        }
    }
}

fn visible(desk: &Desk, caller: &Caller, name: &str) -> Option<Handle> {
    desk.registry.get(name).ok().filter(|vm| caller.may_see(vm))
}

/// Has a VM removed; the menu goes on meanwhile.
fn stop(vm: Handle, caller: &Caller) {
    tracing::info!(vm = vm.name(), who = caller.label, key = caller.fingerprint, "stopped from the menu");
    tokio::spawn(async move {
        if let Err(error) = vm.remove(Removal::Deleted).await {
            tracing::error!(vm = vm.name(), "cannot remove it: {}", Chain(&error));
        }
    });
}

/// Draws the menu and takes keys until something is chosen; `None` when the terminal is gone.
async fn browse(
    desk: &Desk,
    caller: &Caller,
    menu: &mut Menu,
    events: &mut Reader,
    (keyboard, screen): (&mut Keyboard, &Screen),
) -> Option<Choice> {
    let mut keys = MenuKeys::default();
    let (mut stale, mut at, mut news) = (true, Instant::now(), true);
    loop {
        tokio::select! {
            said = keyboard.hear() => {
                match said {
                    Said::Typed(bytes) => for key in keys.feed(&bytes) {
                        if let Some(choice) = menu.press(key, keyboard.size.rows) {
                            return Some(choice);
                        }
                    },
                    Said::Resized => {}
                    // Nothing can be chosen any more.
                    Said::Eof | Said::Gone => return None,
                }
                (stale, at) = (true, Instant::now());
            }
            happened = events.next(), if news => {
                // None will come once the daemon goes down.
                news = happened.is_some();
                stale = true;
            }
            place = async { sleep_until(at).await; screen.place().await }, if stale => {
                let place = place.ok()?;
                menu.refresh(entries(desk, caller));
                place.send(menu.picture(keyboard.size.rows, keyboard.size.cols).into());
                (stale, at) = (false, Instant::now() + FRAME_INTERVAL);
            }
        }
    }
}

fn entries(desk: &Desk, caller: &Caller) -> Vec<Entry> {
    let vms = desk.registry.list();
    let entry = |vm: &Handle| {
        let vm = vm.show();
        Entry {
            name: shown(&vm.name),
            made_ms: vm.created_ms,
            state: vm.state.to_string(),
            address: vm.address.to_string(),
            note: shown(vm.reason.as_deref().unwrap_or_default()),
        }
    };
    vms.iter().filter(|vm| caller.may_see(vm)).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::looks_like_a_vm;

    #[test]
    fn names_with_a_number_are_vms_and_others_are_users() {
        for vm in ["agents-1", "a-b-22", "web-01"] {
            assert!(looks_like_a_vm(vm), "{vm}");
        }
        for user in ["menu", "root", "ann", "ann-marie", "-1", "a-", "", "user1"] {
            assert!(!looks_like_a_vm(user), "{user}");
        }
    }
}
