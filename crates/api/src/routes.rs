//! Paths of the API. Methods and bodies stand beside each.

/// `GET` → [`crate::Health`].
pub const HEALTH: &str = "/v1/health";
/// `GET` → [`crate::Version`].
pub const VERSION: &str = "/v1/version";
/// `GET` → list of [`crate::Group`].
pub const GROUPS: &str = "/v1/groups";
/// `GET ?since=SEQ&follow=BOOL&only=lifecycle|refused` → each [`crate::Event`] as a line of JSON, or as a server-sent event for whoever
/// accepts `text/event-stream`. Without `since` everything that is kept.
pub const EVENTS: &str = "/v1/events";
/// `GET` → counters and gauges in Prometheus' text format.
pub const METRICS: &str = "/metrics";
/// `GET` → [`crate::openapi::document`].
pub const OPENAPI: &str = "/v1/openapi.json";
/// `GET` → the same for people, as a page.
pub const DOCS: &str = "/docs";
/// `GET` → what the page needs.
pub const DOCS_FILE: &str = "/docs/{file}";
/// `GET` → list of [`crate::Token`]; `POST` [`crate::CreateToken`] → 201 [`crate::CreatedToken`].
pub const TOKENS: &str = "/v1/tokens";
/// `DELETE` → 204: it ends now, with the streams that were opened with it.
pub const TOKEN: &str = "/v1/tokens/{id}";
/// `POST` [`crate::Verify`] → [`crate::Verified`], once every row was asked.
pub const VERIFY: &str = "/v1/verify";
/// `GET ?label=KEY[=VALUE]`, repeatable → list of [`crate::Vm`] that have all of them; `POST` [`crate::CreateVm`] → 201 [`crate::Vm`].
pub const VMS: &str = "/v1/vms";
/// `GET` → [`crate::Vm`]; `DELETE` → 204.
pub const VM: &str = "/v1/vms/{name}";
/// `GET` → [`crate::Policy`]; `PUT ?dry_run=BOOL` [`crate::PolicyLists`] → [`crate::PolicyChange`].
/// `GET` has an `ETag`, which `PUT` takes in `If-Match`.
pub const VM_POLICY: &str = "/v1/vms/{name}/policy";
/// `GET ?dest=DEST` → [`crate::Why`]; DEST is `address[:port][/tcp, udp or icmp]`.
pub const VM_WHY: &str = "/v1/vms/{name}/why";
/// As [`VM_POLICY`], for a group.
pub const GROUP_POLICY: &str = "/v1/groups/{name}/policy";
/// `GET ?follow=BOOL` → the serial console as `application/octet-stream`.
pub const VM_LOG: &str = "/v1/vms/{name}/log";
/// `POST` → [`crate::Vm`], its processors halted.
pub const VM_PAUSE: &str = "/v1/vms/{name}/pause";
/// `POST` → [`crate::Vm`], which runs on.
pub const VM_RESUME: &str = "/v1/vms/{name}/resume";
/// `POST` [`crate::RunExec`] → [`crate::RunOutcome`], when the process has ended.
pub const VM_EXEC: &str = "/v1/vms/{name}/exec";
/// `GET ?path=PATH` → the bytes of one regular file in the guest; `PUT ?path=PATH`, the bytes → 204;
/// `DELETE ?path=PATH&recursive=BOOL` → 204.
pub const VM_FILES: &str = "/v1/vms/{name}/files";
/// `GET ?path=PATH` → [`crate::FileInfo`].
pub const VM_STAT: &str = "/v1/vms/{name}/files/stat";
/// `GET ?path=PATH` → [`crate::FileList`].
pub const VM_LIST: &str = "/v1/vms/{name}/files/list";
/// `POST ?path=PATH&parents=BOOL` → 204.
pub const VM_MAKE_DIR: &str = "/v1/vms/{name}/files/mkdir";
/// `GET ?path=PATH&recursive=BOOL` → each [`crate::WatchEvent`] as a line of JSON, until the path is gone.
pub const VM_WATCH: &str = "/v1/vms/{name}/files/watch";
/// `GET` → list of [`crate::Process`]; `POST` [`crate::StartProcess`] → 201 [`crate::Process`].
pub const VM_PROCESSES: &str = "/v1/vms/{name}/processes";
/// `GET` → [`crate::Process`]; `DELETE` → 204.
pub const VM_PROCESS: &str = "/v1/vms/{name}/processes/{id}";
/// `GET ?since=BYTES` → [`crate::ProcessOutput`].
pub const VM_PROCESS_OUTPUT: &str = "/v1/vms/{name}/processes/{id}/output";
/// `POST` [`crate::ProcessSignal`] → 204.
pub const VM_PROCESS_SIGNAL: &str = "/v1/vms/{name}/processes/{id}/signal";
/// `GET ?timeout_ms=MS` → [`crate::Process`], once it has ended.
pub const VM_PROCESS_WAIT: &str = "/v1/vms/{name}/processes/{id}/wait";
/// `GET ?path=PATH` → a file or directory in the guest as a tar stream; `PUT ?path=PATH`, a tar stream → 204.
pub const VM_ARCHIVE: &str = "/v1/vms/{name}/archive";
/// WebSocket; see [`crate::stream`]. The first message is an [`crate::stream::Open`].
pub const VM_STREAM: &str = "/v1/vms/{name}/stream";

/// The path of events after a number.
#[must_use]
pub fn events(since: Option<u64>, follow: bool) -> String {
    let since = since.map_or_else(String::new, |since| format!("&since={since}"));
    format!("{EVENTS}?follow={follow}{since}")
}

/// The same for events of one kind.
#[must_use]
pub fn events_of(only: crate::EventFilter, since: Option<u64>, follow: bool) -> String {
    format!("{}&only={only}", events(since, follow))
}

/// The path of one VM, with its name percent-encoded where needed.
///
/// VM names consist of unreserved characters only, so that anything else is encoded to a name
/// that the daemon refuses instead of to another path.
#[must_use]
pub fn vm(name: &str) -> String {
    format!("/v1/vms/{}", encode(name))
}

/// The path of one token.
#[must_use]
pub fn token(id: &str) -> String {
    format!("{TOKENS}/{}", encode(id))
}

/// The path of the VMs that have all of these labels, each `KEY` or `KEY=VALUE`.
#[must_use]
pub fn vms(labels: &[String]) -> String {
    let filters: Vec<String> = labels.iter().map(|label| format!("label={}", encode(label))).collect();
    if filters.is_empty() { VMS.to_owned() } else { format!("{VMS}?{}", filters.join("&")) }
}

/// The path of pausing one VM.
#[must_use]
pub fn vm_pause(name: &str) -> String {
    format!("{}/pause", vm(name))
}

/// The path of resuming one VM.
#[must_use]
pub fn vm_resume(name: &str) -> String {
    format!("{}/resume", vm(name))
}

/// The path of one VM's log.
#[must_use]
pub fn vm_log(name: &str, follow: bool) -> String {
    format!("/v1/vms/{}/log?follow={follow}", encode(name))
}

/// The path of what one VM's VMM said.
#[must_use]
pub fn vmm_log(name: &str) -> String {
    format!("/v1/vms/{}/log?of=vmm", encode(name))
}

/// The path of running a process to its end in one VM.
#[must_use]
pub fn vm_exec(name: &str) -> String {
    format!("/v1/vms/{}/exec", encode(name))
}

/// The path of describing a file in one VM.
#[must_use]
pub fn vm_stat(name: &str, path: &str) -> String {
    format!("/v1/vms/{}/files/stat?path={}", encode(name), encode(path))
}

/// The path of listing a directory in one VM.
#[must_use]
pub fn vm_list(name: &str, path: &str) -> String {
    format!("/v1/vms/{}/files/list?path={}", encode(name), encode(path))
}

/// The path of making a directory in one VM.
#[must_use]
pub fn vm_make_dir(name: &str, path: &str, parents: bool) -> String {
    format!("/v1/vms/{}/files/mkdir?path={}&parents={parents}", encode(name), encode(path))
}

/// The path of watching files in one VM.
#[must_use]
pub fn vm_watch(name: &str, path: &str, recursive: bool) -> String {
    format!("/v1/vms/{}/files/watch?path={}&recursive={recursive}", encode(name), encode(path))
}

/// The path of removing a file in one VM.
#[must_use]
pub fn vm_remove(name: &str, path: &str, recursive: bool) -> String {
    format!("/v1/vms/{}/files?path={}&recursive={recursive}", encode(name), encode(path))
}

/// The path of one VM's background processes.
#[must_use]
pub fn vm_processes(name: &str) -> String {
    format!("/v1/vms/{}/processes", encode(name))
}

/// The path of one background process.
#[must_use]
pub fn vm_process(name: &str, id: u32) -> String {
    format!("/v1/vms/{}/processes/{id}", encode(name))
}

/// The path of one background process's output from byte `since` on.
#[must_use]
pub fn vm_process_output(name: &str, id: u32, since: u64) -> String {
    format!("/v1/vms/{}/processes/{id}/output?since={since}", encode(name))
}

/// The path of signalling one background process.
#[must_use]
pub fn vm_process_signal(name: &str, id: u32) -> String {
    format!("/v1/vms/{}/processes/{id}/signal", encode(name))
}

/// The path of waiting for the end of one background process.
#[must_use]
pub fn vm_process_wait(name: &str, id: u32, timeout_ms: u64) -> String {
    format!("/v1/vms/{}/processes/{id}/wait?timeout_ms={timeout_ms}", encode(name))
}

/// The path of one VM's stream endpoint.
#[must_use]
pub fn vm_stream(name: &str) -> String {
    format!("/v1/vms/{}/stream", encode(name))
}

/// The path of one VM's policy.
#[must_use]
pub fn vm_policy(name: &str) -> String {
    format!("/v1/vms/{}/policy", encode(name))
}

/// The path of one group's policy.
#[must_use]
pub fn group_policy(name: &str) -> String {
    format!("/v1/groups/{}/policy", encode(name))
}

/// The path of a question about one VM and a destination.
#[must_use]
pub fn vm_why(name: &str, dest: &str) -> String {
    format!("/v1/vms/{}/why?dest={}", encode(name), encode(dest))
}

fn encode(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for &byte in segment.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn odd_names_cannot_leave_their_segment() {
        assert_eq!(super::vm("a/../b?c"), "/v1/vms/a%2F..%2Fb%3Fc");
        assert_eq!(super::vms(&["a=b c".into(), "d".into()]), "/v1/vms?label=a%3Db%20c&label=d");
        assert_eq!(super::vm_stream("agents-1"), "/v1/vms/agents-1/stream");
        let refused = super::events_of(crate::EventFilter::Refused, Some(7), true);
        assert_eq!(refused, "/v1/events?follow=true&since=7&only=refused");
    }
}
