# Echoes on one TCP and UDP port of every address until stdin closes. Runs inside a real guest.
import socket, sys, threading

PORT = int(sys.argv[1])


def echo(stream):
    with stream:
        while data := stream.recv(4096):
            stream.sendall(data)


def streams(listener):
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()


def datagrams(sock):
    while True:
        data, peer = sock.recvfrom(4096)
        sock.sendto(data, peer)


listener = socket.create_server(("0.0.0.0", PORT))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", PORT))
threading.Thread(target=streams, args=(listener,), daemon=True).start()
threading.Thread(target=datagrams, args=(sock,), daemon=True).start()
print("listening", flush=True)
sys.stdin.read()
