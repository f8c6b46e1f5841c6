"""Drives every route of the API against a live daemon: `drive.py SOCKET ECHO`.

The daemon has the group `agents` with the VM `agents-1` and room for more. ECHO is `address:port` of a server on
the Internet of the daemon's world, for the self-test's positive control. Ends with 0 when each route of the OpenAPI
document was driven and answered as the documents say.
"""

import io
import sys
import tarfile
import time

from client import Daemon, Problem, websocket

VM = "agents-1"
VMS, ONE = "/v1/vms", "/v1/vms/{name}"
EXEC, FILES, ARCHIVE = ONE + "/exec", ONE + "/files", ONE + "/archive"


def about_the_daemon(daemon):
    assert daemon.request("GET", "/v1/health").json() == {"status": "ok"}
    version = daemon.request("GET", "/v1/version").json()
    assert len(version["scope"]) == 8 and version["pid"] >= 1
    assert [group["name"] for group in daemon.request("GET", "/v1/groups").json()] == ["agents"]
    page = daemon.request("GET", "/docs")
    assets = {part.split('"')[0] for part in page.body.decode().split('"/docs/')[1:]}
    assert assets, page.body
    for asset in assets:
        daemon.request("GET", "/docs/{file}", file=asset)
    daemon.refused("not_found", "GET", "/docs/{file}", file="no-such-file")


def problems(daemon):
    document = daemon.refused("invalid_request", "POST", VMS, {"vcpu": 300})
    assert document["pointer"] == "/vcpu" and document["status"] == 400, document
    assert document["type"] == "/docs#problem-invalid_request"
    assert document["instance"].startswith("urn:uuid:")
    assert daemon.refused("invalid_request", "POST", VMS, {"colour": "red"})
    daemon.refused("invalid_request", "POST", VMS, b"{", kind="application/json")
    daemon.refused("too_large", "POST", VMS, b" " * (3 << 20), kind="application/json")
    daemon.refused("not_found", "GET", ONE, name="nobody")
    daemon.refused("not_found", "DELETE", ONE, name="nobody")


def life_of_a_vm(daemon):
    create = {"labels": {"job": "17"}, "ttl_ms": 1_800_000, "wait": True, "timeout_ms": 230_000}
    key = {"Idempotency-Key": f"conformance {time.time_ns()}"}
    answer = daemon.request("POST", VMS, create, headers=key)
    vm = answer.json()
    assert vm["state"] == "running" and vm["labels"] == {"job": "17"} and vm["expires_ms"], vm
    again = daemon.request("POST", VMS, create, headers=key)
    assert again.json()["name"] == vm["name"] and again.headers["Idempotency-Replayed"] == "true"
    daemon.refused("key_reused", "POST", VMS, {"labels": {"job": "18"}}, headers=key)
    daemon.refused("name_taken", "POST", VMS, {"name": vm["name"]})
    listed = daemon.request("GET", VMS, query=[("label", "job=17")]).json()
    assert [one["name"] for one in listed] == [vm["name"]]
    assert {one["name"] for one in daemon.request("GET", VMS).json()} == {VM, vm["name"]}
    assert daemon.request("GET", ONE, name=vm["name"]).json()["address"] == vm["address"]
    assert daemon.request("POST", ONE + "/pause", name=vm["name"]).json()["state"] == "paused"
    daemon.refused("wrong_state", "POST", EXEC, {"argv": ["true"]}, name=vm["name"])
    assert daemon.request("POST", ONE + "/resume", name=vm["name"]).json()["state"] == "running"
    assert daemon.request("POST", EXEC, {"argv": ["true"]}, name=vm["name"]).json()["exit_code"] == 0
    assert daemon.request("DELETE", ONE, name=vm["name"]).status == 204
    daemon.refused("gone", "POST", VMS, create, headers=key)
    return vm["name"]


def what_happened(daemon, name):
    template = "/v1/events"
    with daemon.send("GET", template) as reply:
        events = list(daemon.lines(reply, template))
    mine = [event["type"] for event in events if event.get("vm") == name][-6:]
    assert mine == ["vm_created", "vm_ready", "vm_paused", "vm_resumed", "vm_stopped", "vm_removed"], mine
    numbers = [event["seq"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    with daemon.send("GET", template, query=[("since", numbers[-3])]) as reply:
        assert [event["seq"] for event in daemon.lines(reply, template)] == numbers[-2:]
    sse = daemon.request("GET", template, headers={"Accept": "text/event-stream", "Last-Event-ID": str(numbers[-2])})
    assert f"id: {numbers[-1]}\n" in sse.body.decode().replace("id:", "id: ").replace("  ", " ")
    with daemon.send("GET", template, query=[("follow", "true"), ("since", numbers[-1])]) as reply:
        # Something happens while somebody follows.
        lists = daemon.request("GET", ONE + "/policy", name=VM).json()["lists"]
        daemon.request("PUT", ONE + "/policy", {**lists, "drop": ["198.18.0.0/15"]}, name=VM)
        assert next(daemon.lines(reply, template))["type"] == "policy_changed"
    daemon.refused("invalid_request", "GET", template, query=[("since", "yesterday")])


def counters(daemon):
    text = daemon.request("GET", "/metrics").body.decode()
    assert 'enisle_vms{group="agents",state="running"} 1' in text, text[:2000]
    assert "\n# TYPE enisle_api_request_seconds histogram\n" in text


def tokens(daemon):
    made = daemon.request("POST", "/v1/tokens", {"scopes": ["group:agents:ro"], "name": "conformance", "expires_in_ms": 60_000}).json()
    token = made
    assert token["scopes"] == ["group:agents:ro"] and made["secret"].startswith(f"enisle_{token['id']}_"), token
    listed = daemon.request("GET", "/v1/tokens").json()
    assert [one["name"] for one in listed if one["id"] == token["id"]] == ["conformance"]
    assert made["secret"] not in daemon.request("GET", "/v1/tokens").body.decode()
    assert daemon.request("DELETE", "/v1/tokens/{id}", id=token["id"]).status == 204
    daemon.refused("not_found", "DELETE", "/v1/tokens/{id}", id=token["id"])
    daemon.refused("invalid_request", "POST", "/v1/tokens", {"scopes": []})


def policies(daemon):
    vm, group = ONE + "/policy", "/v1/groups/{name}/policy"
    both = ((vm, VM), (group, "agents"))
    for template, name in both:
        daemon.request("PUT", template, {}, name=name)
    for template, name in both:
        answer = daemon.request("GET", template, name=name)
        before, tag = answer.json(), answer.headers["ETag"]
        assert before["revision"] in tag
        lists = {"drop": ["151.101.1.69:443/tcp"], "allow": []}
        dry = daemon.request("PUT", template, lists, query=[("dry_run", "true")], name=name).json()
        assert dry["dry_run"] and dry["added"]
        assert daemon.request("GET", template, name=name).json()["revision"] == before["revision"]
        done = daemon.request("PUT", template, lists, headers={"If-Match": tag}, name=name).json()
        assert done["revision"] == dry["revision"] != before["revision"] and VM in done["vms"]
        daemon.refused("changed", "PUT", template, before["lists"], headers={"If-Match": tag}, name=name)
        bad = daemon.refused("invalid_request", "PUT", template, {"drop": ["10.0.0.0/8", "10.0.0.0/99"]}, name=name)
        assert bad["pointer"] == "/drop/1", bad
        daemon.refused("not_found", "GET", template, name="nobody")
    why = daemon.request("GET", ONE + "/why", query=[("dest", "151.101.1.69:443/tcp")], name=VM).json()
    assert why["verdict"] == "refuse" and why["decided_by"] == "policy", why
    why = daemon.request("GET", ONE + "/why", query=[("dest", "8.8.8.8:443")], name=VM).json()
    assert why["verdict"] == "allow" and "mismatch" not in why, why
    daemon.refused("invalid_request", "GET", ONE + "/why", query=[("dest", "a.b.c.d")], name=VM)
    for template, name in both:
        daemon.request("PUT", template, {}, name=name)


def verified(daemon, control):
    answer = daemon.request("POST", "/v1/verify", {"vm": VM, "control": control, "timeout_ms": 230_000}).json()
    bad = [row for row in answer["rows"] if row["verdict"] in ("wrong", "inconclusive")]
    assert answer["ok"] and not bad, (answer.get("problems"), bad)
    daemon.refused("not_found", "POST", "/v1/verify", {"vm": "nobody"})


def buffered_exec(daemon):
    run = {"argv": ["sh", "-c", "cat; id -un; echo oops >&2; exit 3"], "stdin": "in\n", "env": [["A", "b"]]}
    out = daemon.request("POST", EXEC, run, name=VM).json()
    assert out["exit_code"] == 3 and not out["timed_out"]
    assert out["stdout"] == {"encoding": "utf8", "data": "in\nroot\n", "truncated": False, "bytes": 8}, out
    assert out["stderr"]["data"] == "oops\n"
    out = daemon.request("POST", EXEC, {"argv": ["cat"], "stdin_base64": "/w=="}, name=VM).json()
    assert out["stdout"]["encoding"] == "base64" and out["stdout"]["data"] == "/w=="
    out = daemon.request("POST", EXEC, {"argv": ["sleep", "600"], "timeout_ms": 1000}, name=VM).json()
    assert out["timed_out"]
    daemon.refused("not_found", "POST", EXEC, {"argv": ["no-such-program"]}, name=VM)


def files(daemon):
    assert daemon.request("POST", FILES + "/mkdir", query=[("path", "/root/a/b"), ("parents", "true")], name=VM).status == 204
    content = bytes(range(256)) * 5000
    kind = "application/octet-stream"
    daemon.request("PUT", FILES, content, kind=kind, query=[("path", "a/b/file")], name=VM)
    assert daemon.request("GET", FILES, query=[("path", "/root/a/b/file")], name=VM).body == content
    stat = daemon.request("GET", FILES + "/stat", query=[("path", "a/b/file")], name=VM).json()
    assert stat["kind"] == "file" and stat["size"] == len(content), stat
    listed = daemon.request("GET", FILES + "/list", query=[("path", "a/b")], name=VM).json()
    assert [entry["name"] for entry in listed["entries"]] == ["file"] and not listed["truncated"]
    daemon.refused("invalid_request", "DELETE", FILES, query=[("path", "a")], name=VM)
    with daemon.send("GET", ARCHIVE, query=[("path", "/root/a")], name=VM) as reply:
        names = tarfile.open(fileobj=io.BytesIO(reply.response.read())).getnames()
    assert names == ["a", "a/b", "a/b/file"], names
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("copy/inner")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"inner"))
    daemon.request("PUT", ARCHIVE, packed.getvalue(), kind="application/x-tar", query=[("path", "/root")], name=VM)
    assert daemon.request("GET", FILES, query=[("path", "copy/inner")], name=VM).body == b"inner"
    for path in ("a", "copy"):
        daemon.request("DELETE", FILES, query=[("path", path), ("recursive", "true")], name=VM)
    daemon.refused("not_found", "GET", FILES + "/stat", query=[("path", "a")], name=VM)


def watched_files(daemon):
    template = FILES + "/watch"
    daemon.request("POST", FILES + "/mkdir", query=[("path", "w")], name=VM)
    with daemon.send("GET", template, query=[("path", "/root/w"), ("recursive", "true")], name=VM) as reply:
        assert reply.response.status == 200
        told = daemon.lines(reply, template)
        assert next(told) == {"type": "watching"}
        daemon.request("PUT", FILES, b"1", kind="application/octet-stream", query=[("path", "w/file")], name=VM)
        # However the file came there, it has this name in the end.
        while "file" not in ((event := next(told)).get("path"), event.get("to")):
            pass
        daemon.request("POST", FILES + "/mkdir", query=[("path", "w/d")], name=VM)
        while next(told) != {"type": "created", "path": "d", "directory": True}:
            pass
        daemon.request("DELETE", FILES, query=[("path", "w"), ("recursive", "true")], name=VM)
        # It ends when what is watched is gone.
        assert {"type": "removed", "path": "d", "directory": True} in list(told)
    daemon.refused("not_found", "GET", template, query=[("path", "w")], name=VM)


def console(daemon):
    log = daemon.request("GET", ONE + "/log", name=VM).body
    assert b"Linux version" in log, log[-2000:]
    with daemon.send("GET", ONE + "/log", query=[("follow", "true")], name=VM) as reply:
        assert reply.response.read(5) == log[:5]
    daemon.refused("not_found", "GET", ONE + "/log", name="nobody")
    said = daemon.request("GET", ONE + "/log", query=[("of", "vmm")], name=VM).body
    assert all(line.split(b": ")[0] in (b"qemu-system-x86_64", b"vhost-device-vsock") for line in said.splitlines()), said
    daemon.refused("invalid_request", "GET", ONE + "/log", query=[("of", "me")], name=VM)


def streamed_exec(daemon):
    cat = daemon.open(VM, {"op": "exec", "argv": ["cat"]})
    assert cat.opened["type"] == "opened" and cat.opened["pid"] > 1
    data = bytes(range(256)) * 4000
    for start in range(0, len(data), 32000):
        cat.write(data[start:start + 32000])
        cat.until(2, min(start + 32000, len(data)))
    cat.eof()
    assert cat.finish() == {"type": "exit", "code": 0, "timed_out": False}
    assert cat.received[2] == data and cat.ended == {2, 3}
    killed = daemon.open(VM, {"op": "exec", "argv": ["sleep", "600"]})
    killed.control({"type": "signal", "signal": 15})
    last = killed.finish()
    assert last["code"] == 143 and last["signal"] == 15, last
    missing = daemon.open(VM, {"op": "exec", "argv": ["no-such-program"]})
    assert missing.last["type"] == "failed" and missing.last["guest"] == "not_found", missing.last


def shell(daemon):
    tty = {"term": "xterm", "rows": 24, "cols": 80}
    shell = daemon.open(VM, {"op": "exec", "argv": ["sh"], "tty": tty})
    shell.control({"type": "resize", "rows": 50, "cols": 132})
    shell.write(b"stty size; exit 7\n")
    assert shell.finish()["code"] == 7
    assert b"50 132" in shell.received[2], shell.received


def streamed_copies(daemon):
    data = b"0123456789abcdef" * 65536
    up = daemon.open(VM, {"op": "archive_in", "path": "/root/raw", "raw": True})
    up.write(data)
    up.eof()
    assert up.finish()["code"] == 0
    down = daemon.open(VM, {"op": "archive_out", "path": "/root/raw", "raw": True})
    assert down.finish()["code"] == 0 and down.received[2] == data


def forwards(daemon):
    listen = "import socket;s=socket.create_server(('127.0.0.1',8000));print('up',flush=True);c=s.accept()[0];c.sendall(c.recv(9)[::-1])"
    server = daemon.open(VM, {"op": "exec", "argv": ["python3", "-c", listen]})
    server.until(2, 3)
    connection = daemon.open(VM, {"op": "connect_tcp", "host": "127.0.0.1", "port": 8000})
    connection.write(b"forwarded")
    assert connection.until(2, 9) == b"dedrawrof"
    connection.eof()
    assert connection.finish()["type"] == "exit" and server.finish()["code"] == 0
    refused = daemon.open(VM, {"op": "connect_tcp", "host": "127.0.0.1", "port": 8001})
    assert refused.last["guest"] == "unreachable", refused.last


def broken_framing(daemon):
    """What the daemon refuses of a stream, it says in its last message."""
    greedy = daemon.open(VM, {"op": "exec", "argv": ["sleep", "600"]})
    greedy.socket.send(b'{"type":"window","stream":2,"bytes":1}')
    assert greedy.finish()["type"] == "failed"
    empty = daemon.open(VM, {"op": "exec", "argv": ["sleep", "600"]})
    empty.socket.send_binary(b"\x01")
    assert empty.finish()["type"] == "failed"
    try:
        daemon.open("nobody", {"op": "exec", "argv": ["true"]})
        raise AssertionError("a stream of a VM that is not there")
    except websocket.WebSocketBadStatusException as refusal:
        assert refusal.status_code == 404
    daemon.refused("invalid_request", "GET", ONE + "/stream", name=VM)


def background(daemon):
    every, one = ONE + "/processes", ONE + "/processes/{id}"
    script = "echo out; echo err >&2; read line || sleep 601"
    process = daemon.request("POST", every, {"argv": ["sh", "-c", script], "cwd": "/tmp"}, name=VM).json()
    assert process["state"] == "running" and process["cwd"] == "/tmp" and process["pid"] > 1, process
    place = {"name": VM, "id": str(process["id"])}
    assert [one["id"] for one in daemon.request("GET", every, name=VM).json()] == [process["id"]]
    deadline = time.monotonic() + 60
    while daemon.request("GET", one, **place).json()["output_bytes"] < 8:
        assert time.monotonic() < deadline, "it writes nothing"
    output = daemon.request("GET", one + "/output", **place).json()
    assert (output["stdout"]["data"], output["stderr"]["data"]) == ("out\n", "err\n"), output
    assert (output["next"], output["dropped"], output["running"]) == (8, 0, True), output
    daemon.refused("invalid_request", "GET", one + "/output", query=[("since", "9")], **place)
    daemon.refused("timeout", "GET", one + "/wait", query=[("timeout_ms", "100")], **place)
    attached = daemon.open(VM, {"op": "attach", "id": process["id"], "since": 4})
    daemon.refused("invalid_request", "POST", one + "/signal", {"signal": 65}, **place)
    daemon.request("POST", one + "/signal", {"signal": 15}, **place)
    ended = daemon.request("GET", one + "/wait", **place).json()
    assert (ended["state"], ended["exit_code"], ended["signal"]) == ("killed", 143, 15), ended
    last = attached.finish()
    assert last == {"type": "exit", "code": 143, "signal": 15, "timed_out": False}, last
    assert len(attached.received[2]) + len(attached.received[3]) == 4, attached.received
    daemon.refused("wrong_state", "POST", one + "/signal", {"signal": 15}, **place)
    assert daemon.request("DELETE", one, **place).status == 204
    daemon.refused("not_found", "GET", one, **place)
    flood = daemon.request("POST", every, {"argv": ["head", "-c", "1000000", "/dev/zero"]}, name=VM).json()
    place["id"] = str(flood["id"])
    daemon.request("GET", one + "/wait", **place)
    attached = daemon.open(VM, {"op": "attach", "id": flood["id"]})
    assert attached.finish()["code"] == 0
    assert attached.dropped == 1000000 - 262144 and len(attached.received[2]) == 262144, attached.dropped
    daemon.request("DELETE", one, **place)
    daemon.refused("not_found", "POST", every, {"argv": ["no-such-program"]}, name=VM)


def leaves_nothing(daemon):
    """However it ended, no process of this program is left in the guest."""
    count = {"argv": ["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '[s]leep 600' || true"]}
    deadline = time.monotonic() + 60
    while daemon.request("POST", EXEC, count, name=VM).json()["stdout"]["data"].strip() != "0":
        assert time.monotonic() < deadline, "a process outlived its stream"


def main():
    daemon = Daemon(sys.argv[1])
    about_the_daemon(daemon)
    problems(daemon)
    name = life_of_a_vm(daemon)
    what_happened(daemon, name)
    counters(daemon)
    tokens(daemon)
    policies(daemon)
    for drive in (
        buffered_exec, files, watched_files, console, streamed_exec, shell, streamed_copies, forwards, broken_framing, background,
    ):
        drive(daemon)
        print(f"{drive.__name__}: as documented", flush=True)
    leaves_nothing(daemon)
    verified(daemon, sys.argv[2])
    undriven = daemon.undriven()
    assert not undriven, f"in the document, and not driven: {undriven}"
    print(f"{len(daemon.driven)} routes answer as the documents say")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"a problem nobody expected: {problem}")
