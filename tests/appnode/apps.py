"""One app three times: WSGI, ASGI, and a broken one; the paths are those of `request_set`."""

from __future__ import annotations

import asyncio
import os
import time
from urllib.parse import parse_qs

_log = os.environ.get("APP_LOG")


def log(line: str) -> None:
    if _log:
        with open(_log, "a") as file:  # noqa: PTH123
            file.write(line + "\n")


def say(method: str, query: str, test: str, path: str) -> bytes:
    return f"{method}|{query}|{test}|{path}".encode("latin-1")


def wsgi(environ, start_response):
    path, query = environ["PATH_INFO"], parse_qs(environ["QUERY_STRING"])
    log(f"{environ['REQUEST_METHOD']} {path}" + f"?{environ['QUERY_STRING']}" * bool(query))
    text = [("Content-Type", "text/plain")]

    def ok(body, headers=()):
        start_response("200 OK", [*text, *headers, ("Content-Length", str(len(body)))])
        return [body]

    if path == "/echo":
        whole = environ.get("wsgi.input_terminated")
        size = -1 if whole else int(environ.get("CONTENT_LENGTH") or 0)
        return ok(environ["wsgi.input"].read(size))
    if path == "/work":
        time.sleep(float(os.environ["WORK_S"]))
        return ok(b"worked")
    if path == "/count":
        count = 0
        while piece := environ["wsgi.input"].read(65536):
            count += len(piece)
        return ok(str(count).encode())
    if path == "/say" or path.startswith("/say/"):
        test = environ.get("HTTP_X_TEST", "")
        return ok(say(environ["REQUEST_METHOD"], environ["QUERY_STRING"], test, path))
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    if path == "/cookies":
        return ok(
            environ.get("HTTP_COOKIE", "").encode(), [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        )
    if path == "/big":
        return ok(b"x" * int(query["n"][0]))
    if path == "/pieces":
        start_response("200 OK", text)
        return (b"piece%02d" % (n % 100) for n in range(int(query["n"][0])))
    if path == "/drip":
        start_response("200 OK", text)
        return drip(int(query["n"][0]), float(query["s"][0]))
    if path == "/sleep":
        time.sleep(float(query["s"][0]))
        return ok(b"slept")
    if path == "/fail":
        raise RuntimeError("as asked")
    if path == "/bad":
        start_response("200 OK", [("X-Bad", "a\r\nX-Evil: 1")])
        return [b"x"]
    if path == "/short":
        start_response("200 OK", [("Content-Length", "100")])
        return iter([b"only this"])
    if path == "/pid":
        return ok(str(os.getpid()).encode())
    if path == "/hello":
        return ok(b"Hello, world\n")
    start_response("404 Not Found", [("Content-Length", "0")])
    return []


def drip(count, pause_s):
    try:
        for number in range(count):
            yield b"piece%02d" % (number % 100)
            time.sleep(pause_s)
    finally:
        log("closed")


started = []


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    else:
        await http(scope, receive, send)


async def lifespan(receive, send):
    while True:
        message = await receive()
        started.append(message["type"])
        log(message["type"])
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def http(scope, receive, send):
    path, query = scope["path"], parse_qs(scope["query_string"].decode())
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    log(f"{scope['method']} {path}")

    async def ok(body, extra=()):
        length = (b"content-length", str(len(body)).encode())
        start = {"type": "http.response.start", "status": 200}
        await send({**start, "headers": [(b"content-type", b"text/plain"), *extra, length]})
        await send({"type": "http.response.body", "body": body})

    async def pieces(count, pause_s=None):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(count):
            body = b"piece%02d" % (number % 100)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        await send({"type": "http.response.body"})

    if path in ("/echo", "/count"):
        body, count, more = b"", 0, True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            count += len(message.get("body", b""))
            if path == "/echo":
                body += message["body"]
        await ok(body if path == "/echo" else str(count).encode())
    elif path == "/say" or path.startswith("/say/"):
        test = headers.get("x-test", "")
        path = path.encode().decode("latin-1")
        await ok(say(scope["method"], scope["query_string"].decode(), test, path))
    elif path == "/empty":
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})
    elif path == "/cookies":
        cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await ok(headers.get("cookie", "").encode(), cookies)
    elif path == "/big":
        await ok(b"x" * int(query["n"][0]))
    elif path == "/pieces":
        await pieces(int(query["n"][0]))
    elif path == "/drip":
        try:
            await pieces(int(query["n"][0]), float(query["s"][0]))
        finally:
            log("closed")
    elif path == "/wait":
        while (await receive())["type"] != "http.disconnect":
            pass
        log("disconnected")
    elif path == "/sleep":
        await asyncio.sleep(float(query["s"][0]))
        await ok(b"slept")
    elif path == "/fail":
        raise RuntimeError("as asked")
    elif path == "/bad":
        await ok(b"x", [(b"x-bad", b"a\r\nX-Evil: 1")])
    elif path == "/short":
        start = {"type": "http.response.start", "status": 200}
        await send({**start, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"only this", "more_body": True})
        raise RuntimeError("and no more")
    elif path == "/pid":
        await ok(str(os.getpid()).encode())
    elif path == "/hello":
        await ok(b"Hello, world\n")
    else:
        not_found = {"type": "http.response.start", "status": 404}
        await send({**not_found, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


async def websocket(scope, receive, send):
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/no":
        await send({"type": "websocket.close"})
        return
    protocols = scope["subprotocols"]
    await send({"type": "websocket.accept", "subprotocol": protocols[0] if protocols else None})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            log(f"gone {message['code']}")
            return
        text = message.get("text")
        if text == "close":
            await send({"type": "websocket.close", "code": 4000, "reason": "as asked"})
            return
        if text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


def make():
    """A factory."""
    return wsgi
