# Asks each target in turn and prints one JSON line for it. Runs inside a real guest, so it uses
# nothing but Python's own library. TARGETS, LIMIT and TOKEN are put in front of it.
import errno, json, os, socket, struct, time


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(addr, port, echo):
    with socket.create_connection((addr, port), timeout=LIMIT) as s:
        if echo:
            s.sendall(TOKEN)
            back = b""
            while len(back) < len(TOKEN):
                part = s.recv(64)
                if not part:
                    return "failed", "closed without an echo"
                back += part
            if back != TOKEN:
                return "failed", "somebody else answered"
    return "reached", ""


def udp(addr, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(LIMIT)
        s.connect((addr, port))  # so that ICMP errors come back
        s.send(TOKEN)
        return ("reached", "") if s.recv(64) == TOKEN else ("failed", "somebody else answered")


def ping(addr):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        ident = os.getpid() & 0xFFFF
        body = struct.pack("!HH", ident, 1) + b"enis"
        head = struct.pack("!BBH", 8, 0, checksum(b"\x08\x00\x00\x00" + body))
        end = time.monotonic() + LIMIT
        s.sendto(head + body, (addr, 0))
        while True:
            s.settimeout(max(end - time.monotonic(), 0.001))
            packet = s.recv(2048)
            icmp = packet[(packet[0] & 15) * 4:]
            if icmp[0] == 0 and icmp[4:6] == body[:2] and packet[12:16] == socket.inet_aton(addr):
                return "reached", ""
            quoted = icmp[8:]
            if icmp[0] == 3 and quoted[16:20] == socket.inet_aton(addr):
                if quoted[(quoted[0] & 15) * 4:][4:6] == body[:2]:
                    return "refused", "icmp 3/%d" % icmp[1]


def ask(target):
    kind, addr, port = target["kind"], target["addr"], target["port"]
    try:
        if kind == "ping":
            return ping(addr)
        if kind == "udp":
            return udp(addr, port)
        return tcp(addr, port, kind == "tcp")
    except socket.timeout:
        return "silence", ""
    except OSError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
            return "refused", "reset" if kind != "udp" else "port unreachable"
        if error.errno == errno.EHOSTUNREACH:
            return "refused", "prohibited"
        return "failed", error.strerror or str(error)


for target in TARGETS:
    start = time.monotonic()
    answer, how = ask(target)
    ms = (time.monotonic() - start) * 1e3
    print(json.dumps({"answer": answer, "how": how, "ms": ms}), flush=True)
