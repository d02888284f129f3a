"""Workers that are known by name only: one server answers for all of them that they live.

They are there for what a page shows of them, in numbers and under names that no real worker of these tests has; what
models answer comes from real ones.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from processes import Process

MODEL = "crowd-model"


class Alive(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"status": "alive"}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def crowd(controller: Process, names: Iterable[str], key: str | None = None) -> Iterator[list[str]]:
    """Registers workers under these names, each at a path of its own, as behind a proxy."""
    server = Server(("127.0.0.1", 0), Alive)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        names = list(names)
        for number, name in enumerate(names):
            address = f"http://127.0.0.1:{server.server_port}/{number}"
            register(controller, name, address, key)
        yield names
        for name in names:
            controller.post("/deregister", {"id": name, "incarnation": 1}, key)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def register(controller: Process, name: str, address: str, key: str | None) -> None:
    model = {"name": MODEL, "kind": "generate", "context_length": 4096, "capacity": {"running": 4, "waiting": 4}}
    body = {"id": name, "address": address, "incarnation": 1, "transport": "http", "models": [model], "version": "test"}
    controller.post("/register", body, key)
