//! The menu of VMs, as a pure state: keys in, a choice or a picture out.
//!
//! ```text
//!            s                        y
//!  browsing ───▶ asked about stopping ───▶ Choice::Stop
//!     ▲ └─ enter, c, r, q ─▶ Choice       │ any other key
//!     └───────────────────────────────────┘
//! ```
//!
//! Owns: what is selected, also while VMs come and go, and what is drawn. Refuses: VMs themselves,
//! and bytes that are not plain: its texts were made plain before, and are cut to the terminal here.

use super::key::Key;

/// A VM as the menu shows it: plain characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// When it was made, in milliseconds since the epoch: names are used again.
    pub(super) made_ms: u64,
    pub(super) state: String,
    pub(super) address: String,
    pub(super) note: String,
}

/// What somebody chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    Console(String),
    Shell(String),
    /// With when it was made.
    Stop(String, u64),
    Quit,
}

/// Rows that are no VMs: the title, a blank line, the columns' names; below, a note and the keys.
const FRAME_ROWS: usize = 5;
const HELP: &str = "up/down select   enter console   r root shell   s stop   q quit";

/// What is on somebody's screen.
#[derive(Debug, Default)]
pub(super) struct Menu {
    title: String,
    entries: Vec<Entry>,
    selected: usize,
    /// The first that is shown.
    top: usize,
    /// The VM that is to be stopped, if the answer is yes.
    asked: Option<(String, u64)>,
    note: String,
    /// Rows and columns of the last picture.
    drawn: Option<(u16, u16)>,
}

impl Menu {
    pub(super) fn new(title: String) -> Self {
        Self { title, ..Self::default() }
    }

    /// Shows these VMs; the selected one stays selected, or its neighbour becomes so.
    pub(super) fn refresh(&mut self, entries: Vec<Entry>) {
        let name = self.entries.get(self.selected).map(|entry| entry.name.as_str());
        let still = name.and_then(|name| entries.iter().position(|entry| entry.name == name));
        self.selected = still.unwrap_or_else(|| self.selected.min(entries.len().saturating_sub(1)));
        self.entries = entries;
        let asked_is_there = |(name, made_ms): &(String, u64)| {
            self.entries.iter().any(|entry| entry.name == *name && entry.made_ms == *made_ms)
        };
        if self.asked.as_ref().is_some_and(|asked| !asked_is_there(asked)) {
            self.asked = None;
        }
    }

    /// Says something on the note's line until the next key. Plain characters.
    pub(super) fn say(&mut self, note: String) {
        self.note = note;
    }

    /// Takes a key.
    pub(super) fn press(&mut self, key: Key, rows: u16) -> Option<Choice> {
        self.note.clear();
        if let Some((name, made_ms)) = self.asked.take() {
            return (key == Key::Char(b'y')).then_some(Choice::Stop(name, made_ms));
        }
        let last = self.entries.len().saturating_sub(1);
        let page = page(rows);
        match key {
            Key::Up | Key::Char(b'k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char(b'j') => self.selected = (self.selected + 1).min(last),
            Key::PageUp => self.selected = self.selected.saturating_sub(page),
            Key::PageDown => self.selected = (self.selected + page).min(last),
            Key::Home => self.selected = 0,
            Key::End => self.selected = last,
            Key::Enter | Key::Char(b'c') => return self.name().map(Choice::Console),
            Key::Char(b'r') => return self.name().map(Choice::Shell),
            Key::Char(b's') => self.ask(),
            Key::Char(b'q') | Key::Interrupt => return Some(Choice::Quit),
            Key::Char(_) => {}
        }
        None
    }

    /// Asks whether the selected VM is to be stopped, where the whole question can be seen.
    fn ask(&mut self) {
        let Some(entry) = self.entries.get(self.selected) else { return };
        let (name, made_ms) = (entry.name.clone(), entry.made_ms);
        let fits = |(rows, cols): (u16, u16)| {
            usize::from(rows) > FRAME_ROWS && question(&name).len() <= usize::from(cols)
        };
        if self.drawn.is_none_or(fits) {
            self.asked = Some((name, made_ms));
        } else {
            self.say("too small to ask".to_owned());
        }
    }

    fn name(&self) -> Option<String> {
        self.entries.get(self.selected).map(|entry| entry.name.clone())
    }

    /// The whole screen, for a terminal of this size.
    pub(super) fn picture(&mut self, rows: u16, cols: u16) -> String {
        self.drawn = Some((rows, cols));
        let page = page(rows);
        if self.selected < self.top {
            self.top = self.selected;
        }
        self.top = self.top.max((self.selected + 1).saturating_sub(page));
        self.top = self.top.min(self.entries.len().saturating_sub(page));
        let wide = self.entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0).clamp(4, 50);
        let mut lines = vec![self.title.clone(), String::new()];
        lines.push(format!("  {:wide$}  {:8}  {:15}", "NAME", "STATE", "ADDRESS"));
        for (index, entry) in self.entries.iter().enumerate().skip(self.top).take(page) {
            let mark = if index == self.selected { '>' } else { ' ' };
            let Entry { name, state, address, note, .. } = entry;
            lines.push(format!("{mark} {name:wide$}  {state:8}  {address:15}  {note}"));
        }
        if self.entries.is_empty() {
            lines.push("  there is no microVM".to_owned());
        }
        lines.push(match &self.asked {
            Some((name, _)) => question(name),
            None => self.note.clone(),
        });
        lines.push(HELP.to_owned());
        let mut picture = String::from("\x1b[H");
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                picture.push_str("\r\n");
            }
            let cut: String = line.chars().take(usize::from(cols)).collect();
            if cut.starts_with('>') {
                picture.push_str(&format!("\x1b[7m{cut}\x1b[0m\x1b[K"));
            } else {
                picture.push_str(&format!("{cut}\x1b[K"));
            }
        }
        picture.push_str("\x1b[J");
        picture
    }
}

fn question(name: &str) -> String {
    format!("stop {name}? It is removed, with its disk. y/n")
}

/// VMs that fit a screen.
fn page(rows: u16) -> usize {
    usize::from(rows).saturating_sub(FRAME_ROWS).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[&str]) -> Vec<Entry> {
        let entry = |name: &&str| Entry {
            name: (*name).to_owned(),
            made_ms: 1,
            state: "running".into(),
            address: "169.254.100.2".into(),
            note: String::new(),
        };
        names.iter().map(entry).collect()
    }

    fn menu(names: &[&str]) -> Menu {
        let mut menu = Menu::new("Enisle".into());
        menu.refresh(entries(names));
        menu
    }

    #[test]
    fn arrows_move_and_keys_choose_the_selected_vm() {
        let mut menu = menu(&["a-1", "a-2", "a-3"]);
        assert_eq!(menu.press(Key::Up, 24), None);
        assert_eq!(menu.press(Key::Enter, 24), Some(Choice::Console("a-1".into())));
        assert_eq!(menu.press(Key::Down, 24), None);
        assert_eq!(menu.press(Key::Char(b'r'), 24), Some(Choice::Shell("a-2".into())));
        for _ in 0..5 {
            menu.press(Key::Down, 24);
        }
        assert_eq!(menu.press(Key::Char(b'c'), 24), Some(Choice::Console("a-3".into())));
        assert_eq!(menu.press(Key::Home, 24), None);
        assert_eq!(menu.press(Key::Enter, 24), Some(Choice::Console("a-1".into())));
        assert_eq!(menu.press(Key::Char(b'q'), 24), Some(Choice::Quit));
        assert_eq!(menu.press(Key::Interrupt, 24), Some(Choice::Quit));
    }

    #[test]
    fn stopping_is_asked_about_and_only_yes_is_yes() {
        let mut menu = menu(&["a-1"]);
        assert_eq!(menu.press(Key::Char(b's'), 24), None);
        assert!(menu.picture(24, 80).contains("stop a-1?"));
        assert_eq!(menu.press(Key::Enter, 24), None, "neither yes nor the console");
        assert_eq!(menu.press(Key::Char(b'y'), 24), None, "nothing is asked any more");
        menu.press(Key::Char(b's'), 24);
        assert_eq!(menu.press(Key::Char(b'y'), 24), Some(Choice::Stop("a-1".into(), 1)));
        menu.press(Key::Char(b's'), 24);
        menu.refresh(entries(&["a-2"]));
        assert_eq!(menu.press(Key::Char(b'y'), 24), None, "it went meanwhile, and a-2 was never asked about");
        menu.press(Key::Char(b's'), 24);
        menu.refresh(entries(&["a-2"]).into_iter().map(|entry| Entry { made_ms: 2, ..entry }).collect());
        assert_eq!(menu.press(Key::Char(b'y'), 24), None, "another one has its name");
        for (rows, cols) in [(FRAME_ROWS as u16, 80), (24, 20)] {
            menu.picture(rows, cols);
            menu.press(Key::Char(b's'), rows);
            assert_eq!(menu.press(Key::Char(b'y'), rows), None, "a question that cannot be seen");
        }
    }

    #[test]
    fn the_selection_follows_its_vm_while_others_come_and_go() {
        let mut menu = menu(&["a-1", "a-2", "a-3"]);
        menu.press(Key::Down, 24);
        menu.refresh(entries(&["a-0", "a-1", "a-2"]));
        assert_eq!(menu.press(Key::Enter, 24), Some(Choice::Console("a-2".into())));
        menu.refresh(entries(&["a-0"]));
        assert_eq!(menu.press(Key::Enter, 24), Some(Choice::Console("a-0".into())));
        menu.refresh(Vec::new());
        assert_eq!(menu.press(Key::Enter, 24), None);
        assert!(menu.picture(24, 80).contains("there is no microVM"));
    }

    #[test]
    fn what_is_selected_is_on_the_screen_and_nothing_is_beyond_it() {
        let names: Vec<String> = (1..=100).map(|n| format!("group-{n}")).collect();
        let mut menu = menu(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for (rows, cols) in [(24, 80), (10, 20), (3, 5), (1, 1), (80, 200)] {
            menu.press(Key::Home, rows);
            for step in 0..120 {
                let picture = menu.picture(rows, cols);
                let lines: Vec<&str> = picture.split("\r\n").collect();
                assert!(lines.len() <= usize::from(rows).max(FRAME_ROWS + 1), "{rows}: {}", lines.len());
                let marked: Vec<_> = lines.iter().filter(|line| line.starts_with("\x1b[7m>")).collect();
                assert_eq!(marked.len(), 1, "step {step}");
                menu.press(if step % 3 == 0 { Key::PageDown } else { Key::Down }, rows);
            }
        }
    }
}
