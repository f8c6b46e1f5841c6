//! Rules of `listen` and `tls`, and what they mean. Owns nothing else; refuses to bind or to read a key.

use super::Host;
use super::file::{ConfigKeys, ListenKeys};
use super::read::Located;
use super::report::{Problem, Report, Span};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Reports addresses that are given twice, and files that are not there.
pub(super) fn check(keys: &ConfigKeys, host: &dyn Host, report: &mut Report) {
    let mut seen: Vec<(SocketAddr, Span)> = Vec::new();
    for (address, span) in located(keys) {
        if let Some((_, first)) = seen.iter().find(|(other, _)| *other == address) {
            let problem = Problem::at(span, format!("{address} is listened on twice"))
                .label("again here")
                .also(*first, "first here")
                .help("keep one of the two");
            report.add(problem);
        }
        seen.push((address, span));
    }
    let Some(tls) = &keys.tls else { return };
    for path in tls.value.certificate.iter().chain(&tls.value.key) {
        if !host.is_file(&path.value.0) {
            let message = format!("there is no file {}", path.value.0.display());
            let help = "correct the path, or remove `tls` to use the daemon's own certificate";
            report.add(Problem::at(path.span, message).help(help));
        }
    }
}

/// The addresses, in the order of the file.
pub(super) fn addresses(keys: &ConfigKeys) -> Vec<SocketAddr> {
    located(keys).map(|(address, _)| address).collect()
}

/// Certificate and key; the inner `None` is the daemon's own, the outer one a mistake.
pub(super) fn files(keys: &ConfigKeys) -> Option<Option<(PathBuf, PathBuf)>> {
    let Some(tls) = &keys.tls else { return Some(None) };
    let (certificate, key) = (tls.value.certificate.as_ref()?, tls.value.key.as_ref()?);
    Some(Some((certificate.value.0.clone(), key.value.0.clone())))
}

fn located(keys: &ConfigKeys) -> impl Iterator<Item = (SocketAddr, Span)> {
    let entries: &[Located<ListenKeys>] = keys.listen.as_ref().map_or(&[], |list| &list.value.0);
    entries.iter().filter_map(|entry| {
        let port = u16::try_from(entry.value.port.as_ref()?.value.0).ok()?;
        Some((SocketAddr::new(entry.value.address.as_ref()?.value.0, port), entry.span))
    })
}
