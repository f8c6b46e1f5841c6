//! Background processes in the document.

use super::GUEST;
use super::document::{Document, Param};
use crate::{Process, ProcessOutput, ProcessSignal, StartProcess, routes};

pub(super) fn describe(document: &mut Document) {
    document
        .get(routes::VM_PROCESSES, "listProcesses", "The background processes of a VM, ended ones included.")
        .write()
        .json::<Vec<Process>>(200)
        .end(&GUEST);
    document
        .post(
            routes::VM_PROCESSES,
            "startProcess",
            "Start a process that goes on without this connection and without the daemon; at most 64 are kept.",
        )
        .body::<StartProcess>()
        .json::<Process>(201)
        .end(&GUEST);
    document
        .get(routes::VM_PROCESS, "getProcess", "One background process.")
        .write()
        .json::<Process>(200)
        .end(&GUEST);
    document
        .delete(
            routes::VM_PROCESS,
            "removeProcess",
            "Kill a background process, if it runs, and forget it with its output.",
        )
        .nothing()
        .end(&GUEST);
    document
        .get(
            routes::VM_PROCESS_OUTPUT,
            "processOutput",
            "What is kept of a background process's output: its last 256 KiB.",
        )
        .write()
        .param(Param::query(
            "since",
            "integer",
            "Only what came after so many bytes: `next` of an earlier answer.",
        ))
        .json::<ProcessOutput>(200)
        .end(&GUEST);
    document
        .post(
            routes::VM_PROCESS_SIGNAL,
            "signalProcess",
            "Send a signal to the process group of a background process.",
        )
        .body::<ProcessSignal>()
        .nothing()
        .end(&GUEST);
    document
        .get(
            routes::VM_PROCESS_WAIT,
            "waitProcess",
            "A background process once it has ended; `timeout` when it runs on.",
        )
        .write()
        .param(Param::query("timeout_ms", "integer", "How long, 1 to 3600000 milliseconds. Default 60000."))
        .json::<Process>(200)
        .end(&GUEST);
}
