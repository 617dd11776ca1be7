"""A handler as the Mongrel2 manual has it: PULL, PUB, JSON, nothing of ours."""

import json
import os
import sys
import time

import zmq

context = zmq.Context()
pull = context.socket(zmq.PULL)
pull.connect(sys.argv[1])
pub = context.socket(zmq.PUB)
pub.connect(sys.argv[2])


def netstring(data):
    size, _, rest = data.partition(b":")
    return rest[: int(size)], rest[int(size) + 1 :]


def answer(method, path, headers, body):
    if path == "/hello":
        return "200 OK", b"Hello, world\n"
    if path == "/work":
        with open(os.environ["APP_LOG"], "a") as log:  # noqa: PTH123
            log.write(f"{method} {headers['URI']}\n")
        time.sleep(float(os.environ["WORK_S"]))
        return "200 OK", b"worked"
    if path == "/echo":
        return "200 OK", body
    if path == "/say":
        words = [method, headers.get("QUERY", ""), headers.get("x-test", ""), path]
        return "200 OK", "|".join(words).encode("latin-1")
    return "404 Not Found", b""


while True:
    ident, number, path, rest = pull.recv().split(b" ", 3)
    headers, rest = netstring(rest)
    headers = json.loads(headers)
    body, _ = netstring(rest)
    if headers["METHOD"] == "JSON":
        continue
    status, text = answer(headers["METHOD"], headers["PATH"], headers, body)
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    pub.send(b"%b %d:%b, %b" % (ident, len(number), number, head + text))
