//! Contexts at rest: `contexts.json` and a file for each token, below `$XDG_CONFIG_HOME/enisle` or
//! `~/.config/enisle`.
//!
//! Owns: those files, readable by their owner alone, each whole or as it was, and changed by one command at a time.
//! Refuses: to print a token.

use crate::{ExitCode, Failure};
use enisle_client::{Endpoint, Pin, Secret};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest file that is read as a token, in bytes.
const MAX_TOKEN: u64 = 4096;
/// Longest file of contexts, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// A daemon and what it takes to reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) endpoint: Endpoint,
    pub(crate) pin: Option<Pin>,
    pub(crate) ca: Option<PathBuf>,
    /// The file that holds the token.
    pub(crate) token: Option<PathBuf>,
}

/// The same as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    api: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<PathBuf>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Written>,
}

impl Written {
    fn new(context: &Context) -> Self {
        Self {
            api: context.endpoint.to_string(),
            pin: context.pin.map(|pin| pin.to_string()),
            ca: context.ca.clone(),
            token: context.token.clone(),
        }
    }

    fn read(self) -> Result<Context, String> {
        Ok(Context {
            endpoint: self.api.parse().map_err(|e| format!("{e}"))?,
            pin: self.pin.map(|pin| pin.parse()).transpose().map_err(|e| format!("{e}"))?,
            ca: self.ca,
            token: self.token,
        })
    }
}

/// All contexts of this user.
#[derive(Debug)]
pub(crate) struct Contexts {
    dir: PathBuf,
    current: Option<String>,
    contexts: BTreeMap<String, Context>,
    /// Locked while they are changed.
    _lock: Option<fs::File>,
}

impl Contexts {
    /// Reads them; none where there is no file, or no home.
    pub(crate) fn load() -> Result<Self, Failure> {
        match directory() {
            Some(dir) => Self::load_from(dir),
            None => Ok(Self::none(PathBuf::new())),
        }
    }

    /// The same to change them: another command that does waits until this one has.
    pub(crate) fn load_to_change() -> Result<Self, Failure> {
        match directory() {
            Some(dir) => Self::lock(dir),
            None => Self::load(),
        }
    }

    fn lock(dir: PathBuf) -> Result<Self, Failure> {
        let path = dir.join("lock");
        let locked = || -> io::Result<fs::File> {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        let file = locked().map_err(|e| Failure::io(&format!("cannot lock {}", path.display()), &e))?;
        Ok(Self { _lock: Some(file), ..Self::load_from(dir)? })
    }

    fn none(dir: PathBuf) -> Self {
        Self { dir, current: None, contexts: BTreeMap::new(), _lock: None }
    }

    fn load_from(dir: PathBuf) -> Result<Self, Failure> {
        let path = dir.join("contexts.json");
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::new("io", ExitCode::Failed, format!("{} cannot be understood: {why}", path.display()))
                .hint("correct it, or move it away and add the contexts again")
        };
        let mut text = String::new();
        match fs::File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self::none(dir));
            }
            Err(error) => return Err(Failure::io(&format!("cannot read {}", path.display()), &error)),
        }
        let file: File = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        let read = |(name, written): (String, Written)| match written.read() {
            Ok(context) => Ok((name, context)),
            Err(why) => Err(wrong(&format!("context {name}: {why}"))),
        };
        let contexts = file.contexts.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { current: file.current, contexts, ..Self::none(dir) })
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Context)> {
        self.contexts.iter().map(|(name, context)| (name.as_str(), context))
    }

    /// The name of the one in use.
    pub(crate) fn in_use(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// The one in use.
    pub(crate) fn current(&self) -> Result<Option<Context>, Failure> {
        self.current.as_deref().map(|name| self.get(name)).transpose()
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Result<Context, Failure> {
        self.contexts.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let hint = match known[..] {
                [] => "`enisle context add` makes one".to_owned(),
                _ => format!("there are {}", known.join(", ")),
            };
            Failure::new("not_found", ExitCode::NotFound, format!("there is no context named {name:?}"))
                .hint(hint)
        })
    }

    /// Whether a context of this name may be added.
    pub(crate) fn may_add(&self, name: &str, replace: bool) -> Result<(), Failure> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let begins = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if !begins || name.len() > 64 || !name.chars().all(fits) {
            return Err(Failure::usage(format!("{name:?} cannot be the name of a context"))
                .hint("use 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`, a letter or digit first"));
        }
        if self.dir.as_os_str().is_empty() {
            return Err(Failure::usage("neither XDG_CONFIG_HOME nor HOME says where contexts are kept"));
        }
        if self.contexts.contains_key(name) && !replace {
            return Err(Failure::new(
                "conflict",
                ExitCode::Conflict,
                format!("there is a context named {name} already"),
            )
            .hint("--replace writes it anew"));
        }
        Ok(())
    }

    /// Adds or replaces one, with its token. The first is in use.
    pub(crate) fn add(
        &mut self,
        name: &str,
        mut context: Context,
        token: Option<&Secret>,
        use_now: bool,
    ) -> Result<(), Failure> {
        let path = self.token_file(name);
        if let Some(token) = token {
            write(&path, token.expose().as_bytes())?;
            context.token = Some(path);
        } else {
            remove(&path)?;
        }
        self.contexts.insert(name.to_owned(), context);
        if use_now || self.contexts.len() == 1 {
            self.current = Some(name.to_owned());
        }
        self.save()
    }

    /// Uses one from now on.
    pub(crate) fn select(mut self, name: &str) -> Result<(), Failure> {
        self.get(name)?;
        self.current = Some(name.to_owned());
        self.save()
    }

    /// Forgets one with its token.
    pub(crate) fn remove(mut self, name: &str) -> Result<(), Failure> {
        self.get(name)?;
        self.contexts.remove(name);
        if self.current.as_deref() == Some(name) {
            self.current = None;
        }
        self.save()?;
        remove(&self.token_file(name))
    }

    fn token_file(&self, name: &str) -> PathBuf {
        self.dir.join("tokens").join(name)
    }

    fn save(&self) -> Result<(), Failure> {
        let contexts =
            self.contexts.iter().map(|(name, context)| (name.clone(), Written::new(context))).collect();
        let file = File { current: self.current.clone(), contexts };
        let mut text = serde_json::to_vec_pretty(&file)
            .map_err(|e| Failure::new("internal", ExitCode::Failed, format!("cannot write JSON: {e}")))?;
        text.push(b'\n');
        write(&self.dir.join("contexts.json"), &text)
    }
}

/// Where contexts are kept (XDG base directories: a relative path does not count).
fn directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(config.join("enisle"))
}

/// Reads a token from a file, or from standard input where it is `-`.
pub(crate) fn read_token(path: &Path) -> Result<Secret, Failure> {
    let mut text = String::new();
    let (name, read) = if path == Path::new("-") {
        ("standard input".to_owned(), io::stdin().lock().take(MAX_TOKEN).read_to_string(&mut text))
    } else {
        let read = fs::File::open(path).and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text));
        (path.display().to_string(), read)
    };
    read.map_err(|e| Failure::io(&format!("cannot read the token from {name}"), &e))?;
    Secret::new(&text).map_err(|e| Failure::usage(format!("{name}: {e}")))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::io(&format!("cannot remove {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Writes a file that only its owner can read, whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let hidden = path.with_extension(format!("new{}", std::process::id()));
    let written = || -> io::Result<()> {
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&hidden)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&hidden, path)
    };
    written().map_err(|error| {
        let _ = fs::remove_file(&hidden);
        Failure::io(&format!("cannot write {}", path.display()), &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn remote() -> Context {
        Context { endpoint: "https://lab.lan:7443".parse().unwrap(), ..Context::default() }
    }

    #[test]
    fn contexts_come_back_and_only_their_owner_can_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("enisle");
        let load = || Contexts::load_from(dir.clone()).unwrap();
        assert!(load().current().unwrap().is_none());
        let token = Secret::new("enisle_0123abcd_ff").unwrap();
        load().add("lab", remote(), Some(&token), false).unwrap();
        load().add("here", Context::default(), None, false).unwrap();
        assert_eq!((load().in_use(), load().all().count()), (Some("lab"), 2));
        let file = load().get("lab").unwrap().token.unwrap();
        assert_eq!(read_token(&file).unwrap(), token);
        for path in [&file, &dir.join("contexts.json")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
        assert!(!fs::read_to_string(dir.join("contexts.json")).unwrap().contains("_ff"));
        load().select("here").unwrap();
        assert_eq!(load().current().unwrap(), Some(Context::default()));
        load().remove("lab").unwrap();
        assert!(!file.exists() && load().get("lab").is_err());
        load().remove("here").unwrap();
        assert_eq!(load().in_use(), None);
    }

    #[test]
    fn commands_at_the_same_time_lose_nothing_of_each_other() {
        const EACH: usize = 10;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("enisle");
        std::thread::scope(|scope| {
            for command in 0..4 {
                let dir = &dir;
                scope.spawn(move || {
                    for n in 0..EACH {
                        let mut contexts = Contexts::lock(dir.clone()).unwrap();
                        contexts.add(&format!("c{command}-{n}"), remote(), None, false).unwrap();
                    }
                });
            }
        });
        assert_eq!(Contexts::load_from(dir.clone()).unwrap().all().count(), 4 * EACH);
        assert_eq!(fs::metadata(dir.join("lock")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn names_stay_in_their_directory_and_nothing_is_overwritten_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let mut contexts = Contexts::load_from(dir.path().to_owned()).unwrap();
        for bad in ["", "..", ".x", "a/b", "-x", &"x".repeat(65)] {
            assert!(contexts.may_add(bad, false).is_err(), "{bad}");
        }
        contexts.add("lab", remote(), None, false).unwrap();
        assert!(contexts.may_add("lab", false).is_err() && contexts.may_add("lab", true).is_ok());
        fs::write(dir.path().join("contexts.json"), "{\"contexts\":{\"a\":{\"api\":\"x\"}}}").unwrap();
        assert!(Contexts::load_from(dir.path().to_owned()).is_err());
    }
}
