"""The WSGI app of `apps` on `$PORT` under the standard library's server."""

import os
import socketserver
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import apps


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class Quiet(WSGIRequestHandler):
    def address_string(self) -> str:
        return "localhost"

    def log_message(self, *_: object) -> None:
        pass


server = Server(("127.0.0.1", int(os.environ.get("PORT", "0"))), Quiet)
server.set_app(apps.wsgi)
print(server.server_port, flush=True)
sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # failures are part of the requests
server.serve_forever()
