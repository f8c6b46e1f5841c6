//! Names, choices and scripts.

use std::fmt;

use serde_json::{Value as Json, json};

use crate::config::read::{Mistake, Text, clip, nearest};

/// A name that can be part of a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct GroupName(pub(in crate::config) String);

/// Leaves a VM's name, `NAME-4194304`, below the 63 bytes of a DNS label (RFC 1035 §2.3.4).
const MAX_GROUP_NAME: usize = 50;

impl Text for GroupName {
    const WHAT: &'static str = "a name such as agents";

    fn parse(text: &str) -> Result<GroupName, Mistake> {
        let fits = (1..=MAX_GROUP_NAME).contains(&text.len());
        let plain = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if fits && plain && !text.starts_with('-') && !text.ends_with('-') {
            return Ok(GroupName(text.to_owned()));
        }
        let rule = format!("use 1 to {MAX_GROUP_NAME} of a-z, 0-9 and `-`, without `-` at either end");
        let help = match group_name_like(text) {
            Some(name) => format!("{rule}, such as {name}"),
            None => rule,
        };
        Err(Mistake::new(format!("`{}` cannot be the name of a group", clip(text)), help))
    }

    fn words() -> Json {
        json!({
            "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
            "minLength": 1,
            "maxLength": MAX_GROUP_NAME,
            "examples": ["agents"],
        })
    }
}

/// The legal name nearest to `text`.
fn group_name_like(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = lower.chars().map(plain).take(MAX_GROUP_NAME).collect();
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

/// Name of a directory in the image directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct ImageName(pub(in crate::config) String);

impl Text for ImageName {
    const WHAT: &'static str = "the name of an image, such as default";

    fn parse(text: &str) -> Result<ImageName, Mistake> {
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts && text.len() <= 64 && text.bytes().all(plain) {
            return Ok(ImageName(text.to_owned()));
        }
        Err(Mistake::new(
            format!("`{}` cannot be the name of an image", clip(text)),
            "use up to 64 of a-z, 0-9, `-`, `_` and `.`, a letter or digit first",
        ))
    }

    fn words() -> Json {
        json!({
            "pattern": "^[a-z0-9][a-z0-9._-]*$",
            "maxLength": 64,
            "examples": ["default"],
        })
    }
}

/// What runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// QEMU, with KVM if a probe guest boots with it, else by emulation.
    Auto,
    /// QEMU with KVM, or not at all.
    QemuKvm,
    /// QEMU by emulation.
    QemuTcg,
}

impl Hypervisor {
    const ALL: [Hypervisor; 3] = [Hypervisor::Auto, Hypervisor::QemuKvm, Hypervisor::QemuTcg];

    fn name(self) -> &'static str {
        match self {
            Hypervisor::Auto => "auto",
            Hypervisor::QemuKvm => "qemu-kvm",
            Hypervisor::QemuTcg => "qemu-tcg",
        }
    }
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Text for Hypervisor {
    const WHAT: &'static str = "one of auto, qemu-kvm, qemu-tcg";

    fn parse(text: &str) -> Result<Hypervisor, Mistake> {
        let names = || Hypervisor::ALL.into_iter().map(Hypervisor::name);
        if let Some(found) = Hypervisor::ALL.into_iter().find(|known| known.name() == text) {
            return Ok(found);
        }
        let help = match nearest(text, names()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("use {}", Hypervisor::WHAT),
        };
        Err(Mistake::new(format!("`{}` is not a hypervisor of this version", clip(text)), help))
    }

    fn words() -> Json {
        json!({ "enum": Hypervisor::ALL.map(Hypervisor::name) })
    }
}

/// How a group is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Each VM on its own.
    Isolated,
    /// VMs see each other on a Linux bridge, and the network reaches them.
    Bridge,
}

impl Mode {
    /// As the file calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Isolated => "isolated",
            Mode::Bridge => "bridge",
        }
    }

    /// Whether its VMs are judged by lists `drop` and `allow`.
    #[must_use]
    pub fn has_lists(self) -> bool {
        match self {
            Mode::Isolated => true,
            Mode::Bridge => false,
        }
    }
}

impl Text for Mode {
    const WHAT: &'static str = "\"isolated\" or \"bridge\"";

    fn parse(text: &str) -> Result<Mode, Mistake> {
        match text {
            "isolated" => Ok(Mode::Isolated),
            "bridge" => Ok(Mode::Bridge),
            "cni" => Err(Mistake::new(
                format!("mode `{text}` is not in this version"),
                "use mode: \"isolated\", with what must be reached in `allow`, or mode: \"bridge\"",
            )),
            _ => Err(Mistake::new(
                format!("`{}` is not a network mode", clip(text)),
                "use mode: \"isolated\" or mode: \"bridge\"",
            )),
        }
    }

    fn words() -> Json {
        json!({ "enum": ["isolated"] })
    }
}

/// A script; its first line decides who runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct Script(pub(in crate::config) String);

impl Text for Script {
    const WHAT: &'static str = "the text of a script";
    /// As the API allows.
    const MAX_BYTES: usize = 256 * 1024;

    fn parse(text: &str) -> Result<Script, Mistake> {
        let write = "write the script itself after `userdata: |`, indented";
        if text.trim().is_empty() {
            return Err(Mistake::new("`userdata` is an empty script", write));
        }
        if text.contains('\0') {
            return Err(Mistake::new("`userdata` holds a NUL byte", "use text only"));
        }
        let one_word = !text.contains(char::is_whitespace);
        if one_word && text.starts_with(['/', '.', '~']) {
            return Err(Mistake::new("`userdata` is the name of a file, not a script", write));
        }
        Ok(Script(text.to_owned()))
    }

    fn words() -> Json {
        json!({
            "minLength": 1,
            "maxLength": Self::MAX_BYTES,
            "examples": ["#!/bin/sh\napt-get update\n"],
        })
    }
}
