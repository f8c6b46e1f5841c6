"""A client of the Enisle API, written from docs/api.md, docs/streams.md and /v1/openapi.json alone.

It holds the daemon to the document: an answer with a status, a type, a header or a body that the document
does not describe for that route is an error here, whatever the caller thinks of it. What was driven is
counted, so that a route the document has and nobody drove is found.
"""

import http.client
import json
import socket
import struct
import urllib.parse

import websocket

from schema import Mismatch, Schemas

PATIENCE = 240


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path):
        super().__init__("enisle", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Problem(Exception):
    """An answer that is not 2xx: the problem document."""

    def __init__(self, document):
        super().__init__(json.dumps(document))
        self.document = document
        self.code = document["code"]


class Answer:
    """A whole answer: status, headers, and the body's bytes."""

    def __init__(self, response, body):
        self.status, self.headers, self.body = response.status, response.headers, body

    def json(self):
        return json.loads(self.body)


class Daemon:
    """The daemon behind a unix socket."""

    def __init__(self, path):
        self.path = path
        self.driven = set()
        self.document = None
        self.document = self.request("GET", "/v1/openapi.json").json()
        self.schemas = Schemas(self.document)

    def request(self, method, template, body=None, *, query=(), headers=None, kind=None, **places):
        """Asks and returns the whole answer, checked against the document. Raises Problem."""
        with self.send(method, template, body, query=query, headers=headers, kind=kind, **places) as reply:
            answer = Answer(reply.response, reply.response.read())
        self.check(method, template, answer)
        if answer.status >= 400:
            raise Problem(answer.json())
        return answer

    def refused(self, code, *args, **kwargs):
        """As `request`, where this problem is wanted; its document."""
        try:
            answer = self.request(*args, **kwargs)
        except Problem as problem:
            assert problem.code == code, f"{code} wanted of {args}: {problem}"
            return problem.document
        raise AssertionError(f"{code} wanted of {args}: {answer.status} {answer.body[:200]!r}")

    def send(self, method, template, body=None, *, query=(), headers=None, kind=None, **places):
        """Asks; the answer's body is still to be read."""
        self.driven.add((method, template))
        path = template.format(**{name: urllib.parse.quote(value, safe="") for name, value in places.items()})
        if query:
            path += "?" + urllib.parse.urlencode(list(query))
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body, kind = json.dumps(body), kind or "application/json"
        if kind:
            headers["Content-Type"] = kind
        connection = UnixConnection(self.path)
        connection.request(method, path, body, headers)
        return Reply(connection)

    def described(self, method, template, status):
        operation = self.document["paths"][template][method.lower()]
        responses = operation["responses"]
        if str(status) not in responses:
            raise Mismatch(f"{method} {template}: the document does not know status {status}")
        return self.schemas.resolve(responses[str(status)])

    def check(self, method, template, answer):
        """Holds an answer to the document."""
        if self.document is None:
            return
        where = f"{method} {template} {answer.status}"
        wanted = self.described(method, template, answer.status)
        for name in wanted.get("headers", {}):
            if self.schemas.resolve(wanted["headers"][name]).get("required", True) and name not in answer.headers:
                raise Mismatch(f"{where}: lacks the header {name}")
        content = wanted.get("content")
        if not content:
            assert answer.body == b"", f"{where}: has a body"
            return
        kind = (answer.headers["Content-Type"] or "").split(";")[0]
        if "*/*" in content:
            return
        if kind not in content:
            raise Mismatch(f"{where}: is {kind}, the document knows {list(content)}")
        if kind.endswith("json"):
            self.schemas.check(content[kind].get("schema", True), answer.json())

    def lines(self, reply, template):
        """JSON objects as they come, one a line, each checked."""
        wanted = self.described("GET", template, reply.response.status)["content"]["application/jsonl"]["x-item"]
        for line in reply.response:
            if line.strip():
                item = json.loads(line)
                self.schemas.check(wanted, item)
                yield item

    def open(self, vm, first):
        """A stream of a VM, open."""
        return Stream(self, vm, first)

    def undriven(self):
        """Routes that the document has and nobody asked."""
        methods = ("get", "put", "post", "delete", "patch", "head", "options")
        all_routes = {
            (method.upper(), path) for path, item in self.document["paths"].items() for method in item if method in methods
        }
        return sorted(all_routes - self.driven)


class Reply:
    """An answer whose body is still to be read; closing it hangs up."""

    def __init__(self, connection):
        self.connection, self.response = connection, connection.getresponse()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.response.close()
        self.connection.close()


class Stream:
    """One stream (docs/streams.md): credit, end of data, the last message."""

    CREDIT = 65536
    LARGEST = 16379

    def __init__(self, daemon, vm, first):
        self.daemon = daemon
        self.first, self.last = first, None
        self.credit = self.CREDIT
        self.received = {2: bytearray(), 3: bytearray()}
        self.ended = set()
        self.dropped = 0
        template = "/v1/vms/{name}/stream"
        daemon.driven.add(("GET", template))
        self.framing = daemon.document["paths"][template]["get"]["x-websocket"]
        daemon.schemas.check(self.framing["first"], first)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        connection.connect(daemon.path)
        path = template.format(name=urllib.parse.quote(vm, safe=""))
        self.socket = websocket.create_connection(f"ws://enisle{path}", socket=connection, timeout=PATIENCE)
        self.socket.send(json.dumps(first))
        self.opened = self.receive()

    def control(self, message):
        self.daemon.schemas.check(self.framing["toDaemon"], message)
        self.socket.send(json.dumps(message))

    def write(self, data):
        """Sends data on stream 1, in pieces, waiting for credit."""
        while data and self.last is None:
            if self.credit == 0:
                self.receive()
                continue
            piece = data[: min(self.credit, self.LARGEST)]
            self.socket.send_binary(b"\x01" + piece)
            self.credit -= len(piece)
            data = data[len(piece):]

    def eof(self):
        self.control({"type": "eof"})

    def receive(self):
        """Takes one message. Data is kept, and its credit given back; a control message is returned."""
        opcode, payload = self.socket.recv_data()
        if opcode == websocket.ABNF.OPCODE_BINARY:
            stream, data = payload[0], payload[1:]
            assert 1 <= len(data) <= self.LARGEST and stream in (2, 3) and stream not in self.ended
            self.received[stream] += data
            self.control({"type": "window", "stream": stream, "bytes": len(data)})
            return None
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise ConnectionError(f"closed without a last message: {struct.unpack('!H', payload[:2])}")
        message = json.loads(payload)
        self.daemon.schemas.check(self.framing["fromDaemon"], message)
        if message["type"] == "window":
            self.credit += message["bytes"]
            assert message["stream"] == 1 and self.credit <= self.CREDIT
        elif message["type"] == "eof":
            self.ended.add(message["stream"])
        elif message["type"] == "dropped":
            self.dropped += message["bytes"]
        elif message["type"] in ("exit", "failed"):
            self.last = message
            self.socket.close()
        return message

    def until(self, stream, wanted):
        """Receives until that much data has come."""
        while len(self.received[stream]) < wanted and self.last is None:
            self.receive()
        return bytes(self.received[stream])

    def finish(self):
        """Receives to the end; the last message."""
        while self.last is None:
            self.receive()
        return self.last
