//! The API as an OpenAPI 3.1 document, generated from the types.
//!
//! Owns: which routes there are, with parameters, bodies, answers and problem codes. The daemon's tests hold its
//! router against it, and `docs/openapi.json` is this document. Refuses: describing types, which describe themselves.

mod document;
mod processes;

use crate::stream::{FromDaemon, Open, ToDaemon};
use crate::{
    Code, CreateToken, CreateVm, CreatedToken, Event, FileInfo, FileList, Group, Health, Policy,
    PolicyChange, PolicyLists, RunExec, RunOutcome, Token, Verified, Verify, Version, Vm, WatchEvent, Why,
    routes,
};
use document::{Document, Param};
use serde_json::{Value, json};

const PATH: Param = Param::required_query("path", "Path in the guest, absolute or relative to `/root`.");
const DRY_RUN: Param = Param::query("dry_run", "boolean", "Only say what would change.");
const IF_MATCH: Param =
    Param::header("If-Match", "The `ETag` of what was read: refuse when somebody changed it since.");

/// What may become of a request to a guest.
const GUEST: [Code; 7] = [
    Code::InvalidRequest,
    Code::NotFound,
    Code::WrongState,
    Code::TooLarge,
    Code::Exhausted,
    Code::GuestFailed,
    Code::Timeout,
];

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut document = Document::new();
    daemon(&mut document);
    tokens(&mut document);
    vms(&mut document);
    policies(&mut document);
    streams(&mut document);
    guests(&mut document);
    trees(&mut document);
    processes::describe(&mut document);
    document.finish()
}

fn daemon(document: &mut Document) {
    document
        .get(routes::HEALTH, "health", "Whether the daemon answers.")
        .public()
        .json::<Health>(200)
        .end(&[]);
    document.get(routes::VERSION, "version", "What runs here.").json::<Version>(200).end(&[]);
    document
        .get(routes::GROUPS, "listGroups", "The host groups as configured.")
        .json::<Vec<Group>>(200)
        .end(&[]);
    document
        .get(routes::EVENTS, "events", "What happened: lives of VMs, changes of policies, refused flows.")
        .param(Param::query("since", "integer", "Only what came after the event of this number."))
        .param(Param::query("follow", "boolean", "Go on until the daemon stops."))
        .param(Param::query(
            "only",
            "string",
            "`lifecycle`: lives of VMs and changes of policies; `refused`: refused flows; else all.",
        ))
        .param(Param::header("Last-Event-ID", "As `since`, from a browser that connects again."))
        .lines::<Event>("application/jsonl", "text/event-stream")
        .end(&[Code::InvalidRequest]);
    document
        .post(
            routes::VERIFY,
            "verify",
            "Test from inside a guest that it is isolated; answers when all was asked.",
        )
        .body::<Verify>()
        .json::<Verified>(200)
        .end(&[
            Code::InvalidRequest,
            Code::NotFound,
            Code::WrongState,
            Code::TooLarge,
            Code::Exhausted,
            Code::StartFailed,
            Code::GuestFailed,
            Code::ShuttingDown,
            Code::Timeout,
        ]);
    document
        .get(routes::METRICS, "metrics", "Counters and gauges for Prometheus.")
        .admin()
        .bytes("text/plain", "Prometheus' text format, version 0.0.4.")
        .end(&[]);
    document
        .get(routes::OPENAPI, "openapi", "This document.")
        .public()
        .bytes("application/json", "An OpenAPI 3.1 document.")
        .end(&[]);
    document
        .get(routes::DOCS, "docs", "This document for people.")
        .public()
        .bytes("text/html", "A page.")
        .end(&[]);
    document
        .get(routes::DOCS_FILE, "docsFile", "What the page needs.")
        .public()
        .bytes("*/*", "A script or a style sheet.")
        .end(&[Code::NotFound]);
}

fn tokens(document: &mut Document) {
    document
        .get(routes::TOKENS, "listTokens", "The tokens there are, without their secrets.")
        .admin()
        .json::<Vec<Token>>(200)
        .end(&[]);
    document
        .post(routes::TOKENS, "createToken", "Make a token. The answer is the only place where it is told.")
        .admin()
        .body::<CreateToken>()
        .json::<CreatedToken>(201)
        .end(&[Code::InvalidRequest, Code::TooLarge, Code::Exhausted]);
    document
        .delete(routes::TOKEN, "revokeToken", "End a token now, with the streams that were opened with it.")
        .admin()
        .nothing()
        .end(&[Code::InvalidRequest, Code::NotFound]);
}

fn vms(document: &mut Document) {
    document
        .get(routes::VMS, "listVms", "The VMs there are.")
        .param(Param::labels())
        .json::<Vec<Vm>>(200)
        .end(&[Code::InvalidRequest]);
    document
        .post(routes::VMS, "createVm", "Make a VM; with `wait` answer when exec works in it.")
        .param(Param::header(
            "Idempotency-Key",
            "1 to 255 printable ASCII characters: asked again with the same body within 24 hours, the same VM is given, with \
             `Idempotency-Replayed: true`.",
        ))
        .body::<CreateVm>()
        .json::<Vm>(201)
        .end(&[
            Code::InvalidRequest,
            Code::NotFound,
            Code::NameTaken,
            Code::WrongState,
            Code::Gone,
            Code::TooLarge,
            Code::KeyReused,
            Code::Exhausted,
            Code::StartFailed,
            Code::ShuttingDown,
            Code::Timeout,
        ]);
    document.get(routes::VM, "getVm", "One VM.").json::<Vm>(200).end(&[Code::InvalidRequest, Code::NotFound]);
    document
        .delete(
            routes::VM,
            "deleteVm",
            "Stop a VM and remove everything that was its own; answers when it is gone.",
        )
        .nothing()
        .end(&[Code::InvalidRequest, Code::NotFound]);
    let halting = [Code::InvalidRequest, Code::NotFound, Code::WrongState];
    document
        .post(
            routes::VM_PAUSE,
            "pauseVm",
            "Halt a running VM's processors; its memory stays. One that is paused is left so.",
        )
        .json::<Vm>(200)
        .end(&halting);
    document
        .post(routes::VM_RESUME, "resumeVm", "Let a paused VM run on. One that runs is left so.")
        .json::<Vm>(200)
        .end(&halting);
    document
        .get(routes::VM_LOG, "consoleLog", "The serial console from its start, or what the VMM said last.")
        .param(Param::query("follow", "boolean", "Go on until the VM is gone; the console's only."))
        .param(Param::query("of", "string", "`console`, or `vmm`: the last 4 KiB that each of its programs wrote, with its name before each line."))
        .bytes("application/octet-stream", "What the guest wrote, as it is.")
        .end(&[Code::InvalidRequest, Code::NotFound]);
}

fn policies(document: &mut Document) {
    let read = [Code::InvalidRequest, Code::NotFound];
    let write = [Code::InvalidRequest, Code::NotFound, Code::WrongState, Code::Changed, Code::TooLarge];
    document.get(routes::VM_POLICY, "getVmPolicy", "What a VM may reach.").etag::<Policy>().end(&read);
    document
        .put(routes::VM_POLICY, "setVmPolicy", "Replace a VM's own lists while it runs.")
        .param(DRY_RUN)
        .param(IF_MATCH)
        .body::<PolicyLists>()
        .json::<PolicyChange>(200)
        .end(&write);
    document
        .get(routes::VM_WHY, "why", "Whether a VM may talk to a destination, and why.")
        .param(Param::required_query("dest", "`address[:port][/tcp, udp or icmp]`"))
        .json::<Why>(200)
        .end(&[Code::InvalidRequest, Code::NotFound, Code::WrongState]);
    document
        .get(routes::GROUP_POLICY, "getGroupPolicy", "What the VMs of a group may reach.")
        .etag::<Policy>()
        .end(&read);
    document
        .put(routes::GROUP_POLICY, "setGroupPolicy", "Replace a group's lists for all its VMs.")
        .admin()
        .param(DRY_RUN)
        .param(IF_MATCH)
        .body::<PolicyLists>()
        .json::<PolicyChange>(200)
        .end(&write);
}

fn streams(document: &mut Document) {
    let messages = json!({
        "first": document.schema::<Open>(),
        "toDaemon": document.schema::<ToDaemon>(),
        "fromDaemon": document.schema::<FromDaemon>(),
        "framing": "docs/streams.md",
    });
    document
        .get(
            routes::VM_STREAM,
            "openStream",
            "Exec, shell, copy, forward or attach over a WebSocket (RFC 6455).",
        )
        .write()
        .upgrade(messages)
        .end(&[Code::InvalidRequest, Code::NotFound, Code::WrongState, Code::Exhausted]);
}

fn guests(document: &mut Document) {
    document
        .post(routes::VM_EXEC, "exec", "Run a process to its end and answer with what it wrote.")
        .body::<RunExec>()
        .json::<RunOutcome>(200)
        .end(&GUEST);
    document
        .get(
            routes::VM_FILES,
            "readFile",
            "The bytes of one regular file. A connection that breaks has half of it.",
        )
        .write()
        .param(PATH)
        .bytes("application/octet-stream", "The file.")
        .end(&GUEST);
    document
        .put(
            routes::VM_FILES,
            "writeFile",
            "Write one regular file, in an existing directory. An unfinished one is removed.",
        )
        .param(PATH)
        .bytes_body("application/octet-stream", "The file's content, of any length.")
        .nothing()
        .end(&GUEST);
    document
        .delete(routes::VM_FILES, "removeFile", "Remove a file, a link itself, or a directory.")
        .param(PATH)
        .param(Param::query(
            "recursive",
            "boolean",
            "A directory with everything in it; else only an empty one.",
        ))
        .nothing()
        .end(&GUEST);
}

fn trees(document: &mut Document) {
    document
        .get(routes::VM_STAT, "statFile", "What is at a path; a symbolic link itself.")
        .write()
        .param(PATH)
        .json::<FileInfo>(200)
        .end(&GUEST);
    document
        .get(routes::VM_LIST, "listFiles", "What is in a directory, by name.")
        .write()
        .param(PATH)
        .json::<FileList>(200)
        .end(&GUEST);
    document
        .post(routes::VM_MAKE_DIR, "makeDirectory", "Make a directory.")
        .param(PATH)
        .param(Param::query(
            "parents",
            "boolean",
            "The missing ones above it too; one that is there is fine.",
        ))
        .nothing()
        .end(&GUEST);
    document
        .get(
            routes::VM_WATCH,
            "watchFiles",
            "What changes at a path, until it is gone or the client hangs up.",
        )
        .write()
        .param(PATH)
        .param(Param::query(
            "recursive",
            "boolean",
            "In the directories below it too, at most 4096; no link is followed.",
        ))
        .json_lines::<WatchEvent>()
        .end(&GUEST);
    document
        .get(routes::VM_ARCHIVE, "readArchive", "A file or directory as a tar stream.")
        .write()
        .param(PATH)
        .bytes("application/x-tar", "The archive; its root is the last component of the path.")
        .end(&GUEST);
    document
        .put(
            routes::VM_ARCHIVE,
            "writeArchive",
            "Unpack a tar stream: into an existing directory, or its single root under the path's name.",
        )
        .param(PATH)
        .bytes_body("application/x-tar", "The archive, of any length.")
        .nothing()
        .end(&GUEST);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_document_that_is_shipped_is_the_one_of_the_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let text = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
        if std::env::var_os("ENISLE_UPDATE_GOLDEN").is_some() {
            std::fs::write(path, text).unwrap();
            return;
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(text == expected, "{} differs; ENISLE_UPDATE_GOLDEN=1 writes it anew", path.display());
    }

    /// Every reference leads somewhere, every operation has a name of its own, every parameter of a path is
    /// described.
    #[test]
    fn the_document_is_whole() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let mut names = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for operation in item.as_object().unwrap().values() {
                assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{path}");
                let described = operation["parameters"].as_array().into_iter().flatten();
                let described = described.filter(|param| param["in"] == "path").count();
                assert_eq!(described, path.matches('{').count(), "{path}");
            }
        }
        for code in Code::ALL {
            let codes = document["x-problem-codes"].as_array().unwrap();
            assert!(codes.iter().any(|known| known["code"] == code.name()), "{code:?}");
        }
    }
}
