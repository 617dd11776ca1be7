"""An app for the tests: HTTP/1.1 on `$PORT` (0: any), well behaved or not as the path asks.

It prints the port it listens on, and writes a line per request it has read to `argv[1]`.
"""

import asyncio
import base64
import json
import os
import sys
from urllib.parse import parse_qsl, urlsplit

LOG = open(sys.argv[1], "a", buffering=1)  # noqa: PTH123, SIM115  # lives as long as the app


async def read_body(reader, headers):
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return body
    return await reader.readexactly(int(headers.get("content-length", 0)))


def plain(body, status="200 OK", extra=""):
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return (head + extra + "\r\n").encode() + body


async def answer(method, path, query, headers, reader, writer):
    """False when the connection shall be closed."""
    write = writer.write
    if path == "/ws":
        write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: abc\r\n\r\n"
        )
        while data := await reader.read(65536):
            write(data)
            await writer.drain()
        return False
    if path == "/frames":
        await echo_frames(headers, reader, writer)
        return False
    if path == "/drip":
        size = int(headers["content-length"])
        while size:
            size -= len(await reader.read(min(size, 16384)))
            await asyncio.sleep(float(query["s"]))
        write(plain(b"drunk"))
        return True
    if path == "/early":
        write(plain(b"too much", "413 Content Too Large", "Connection: close\r\n"))
        await writer.drain()
        return False
    if path == "/count":
        size = int(headers["content-length"])
        got = 0
        while got < size:
            got += len(await reader.read(min(size - got, 1 << 18)))
        write(plain(str(got).encode()))
        return True
    body = await read_body(reader, headers)
    if path == "/echo":
        write(plain(body))
    elif path == "/head":
        write(plain(json.dumps({"method": method, "headers": headers}).encode()))
    elif path == "/sleep":
        await asyncio.sleep(float(query["s"]))
        write(plain(b"slept"))
    elif path == "/chunked":
        write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
        for number in range(int(query["n"])):
            write(b"7;ext=1\r\npiece%02d\r\n" % (number % 100))
            await writer.drain()
            await asyncio.sleep(float(query.get("s", "0")))
        write(b"0\r\nX-Sum: 1\r\n\r\n")
    elif path == "/big":
        left = int(query["n"])
        write(f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n".encode())
        while left:
            piece = bytes(min(left, 1 << 18))
            write(piece)
            left -= len(piece)
            await writer.drain()
            LOG.write(f"left {left}\n")
    elif path == "/until-close":
        write(b"HTTP/1.0 200 OK\r\n\r\nall there is")
        return False
    elif path == "/empty":
        write(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")
    elif path == "/die":
        os._exit(3)
    elif path == "/vanish":
        return False
    elif path == "/half":
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        return False
    elif path == "/raw":
        write(base64.urlsafe_b64decode(query["b"]))
        await writer.drain()
        return "close" not in query
    elif path == "/stale":
        write(plain(b"soon closed"))
        await writer.drain()
        await asyncio.sleep(float(query["s"]))
        return False
    else:
        extra = "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
        body = b"" if method == "HEAD" else b"Hello, world\n"
        head = plain(b"Hello, world\n", extra=extra + "Connection: keep-alive, X-Hop\r\n")
        write(head if body else head[: -len(b"Hello, world\n")])
    return True


async def echo_frames(headers, reader, writer):
    """A WebSocket that says everything back."""
    from appnode import websocket

    accept = websocket.accept(headers["sec-websocket-key"].encode())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    frames = websocket.Reader()
    while data := await reader.read(65536):
        for kind, message in frames.feed(data):
            payload = message if isinstance(message, bytes) else message.encode()
            writer.write(websocket.frame(0x80 | kind, payload))
            await writer.drain()


async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            method, target, _ = first.split(" ")
            headers = {}
            for line in lines:
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            LOG.write(f"{method} {target}\n")
            parts = urlsplit(target)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            if not await answer(method, parts.path, query, headers, reader, writer):
                break
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        LOG.write("closed\n")
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ.get("PORT", "0")))
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
