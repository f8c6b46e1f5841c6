#!/usr/bin/env python3
"""An agent's session: make a sandbox, copy a repository in, run its tests, fetch the result, delete.

    agent_session.py REPOSITORY COMMAND RESULT

Needs nothing but Python: the API is HTTP on a unix socket (docs/api.md). REPOSITORY is a directory; COMMAND is run by
`sh` in the copy of it; RESULT is a file that COMMAND makes there, and comes back into the current directory. The daemon
is at ENISLE_API, or unix:/run/enisle/api.sock; where it has several groups, ENISLE_GROUP names one.
"""

import base64
import http.client
import io
import json
import os
import pathlib
import socket
import sys
import tarfile
import urllib.parse

PLACE = "/root/repository"


class Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path):
        super().__init__("enisle", timeout=900)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(method, route, body=None, **query):
    """One request. What is not 2xx is a problem document, and ends the program with its text."""
    socket_path = os.environ.get("ENISLE_API", "unix:/run/enisle/api.sock").removeprefix("unix:")
    connection = Connection(socket_path)
    if isinstance(body, dict):
        body = json.dumps(body)
    connection.request(method, route + ("?" + urllib.parse.urlencode(query) if query else ""), body)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status >= 300:
        problem = json.loads(data)
        raise SystemExit(f"error: {problem['detail']}" + (f"\nhint: {problem['hint']}" if problem.get("hint") else ""))
    return data


def session(vm, repository, command, result):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(os.path.realpath(repository), arcname="repository")
    ask("PUT", f"{vm}/archive", packed.getvalue(), path=PLACE)
    run = {"argv": ["sh", "-c", command], "cwd": PLACE, "timeout_ms": 600_000}
    outcome = json.loads(ask("POST", f"{vm}/exec", run))
    for stream, said in ((sys.stdout, outcome["stdout"]), (sys.stderr, outcome["stderr"])):
        data = said["data"].encode() if said["encoding"] == "utf8" else base64.b64decode(said["data"])
        stream.buffer.write(data)
    try:
        data = ask("GET", f"{vm}/files", path=f"{PLACE}/{result}")
    except SystemExit as error:
        # A command that failed may have made no result; how it ended is what counts then.
        if outcome["exit_code"] == 0:
            raise
        print(error, file=sys.stderr)
    else:
        pathlib.Path(pathlib.Path(result).name).write_bytes(data)
    return outcome["exit_code"]


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    wanted = {"wait": True, "timeout_ms": 240_000, "ttl_ms": 3_600_000, "labels": {"example": "agent-session"}}
    if "ENISLE_GROUP" in os.environ:
        wanted["group"] = os.environ["ENISLE_GROUP"]
    vm = "/v1/vms/" + json.loads(ask("POST", "/v1/vms", wanted))["name"]
    try:
        code = session(vm, *sys.argv[1:])
    finally:
        ask("DELETE", vm)
    sys.exit(code)


if __name__ == "__main__":
    main()
