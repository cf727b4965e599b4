"""Watch a stream over HTTP-FLV with nothing but a socket: print each tag's kind, time in ms and size.

python examples/watch_http_flv.py http://127.0.0.1:1935/live/demo.flv | head
"""

import signal
import socket
import sys
from urllib.parse import urlsplit

KINDS = {8: "audio", 9: "video", 18: "data"}

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when head has seen enough
url = urlsplit(sys.argv[1])
with socket.create_connection((url.hostname, url.port or 80)) as connection, connection.makefile("rb") as stream:
    connection.sendall(f"GET {url.path} HTTP/1.0\r\nHost: {url.netloc}\r\n\r\n".encode())
    status = stream.readline().decode().strip()
    if " 200 " not in status:
        sys.exit(status)
    while stream.readline() != b"\r\n":
        pass  # a response header
    stream.read(13)  # "FLV", version, flags, the size of this header, and a size of 0 for the tag before the first
    while len(head := stream.read(11)) == 11:
        length = int.from_bytes(head[1:4], "big")
        timestamp = int.from_bytes(head[4:7], "big") | head[7] << 24  # the upper 8 bits come last
        payload = stream.read(length)
        stream.read(4)  # the size of this tag, to read backwards in a file
        print(KINDS.get(head[0], head[0]), timestamp, len(payload), flush=True)
