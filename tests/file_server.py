"""A web server of one thread for tests: files by their path, told, cut or damaged as a test needs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    """Serves server.bodies[path] or server.body: server.break_after bytes at most, in ranges if .ranges."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if self.path.startswith("/status/"):
            self.send_error(int(self.path.split("/")[-1]))
            return
        begin, asked, body = 0, self.headers.get("Range"), server.bodies.get(self.path, server.body)
        if asked and server.ranges:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        rest = body[begin:]
        if server.tell_length:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        rest = rest[: server.break_after] if server.break_after else rest
        if server.pause:
            self.wfile.write(rest[:100])
            time.sleep(server.pause)
            rest = rest[100:]
        self.wfile.write(rest)
        self.close_connection = True

    def log_message(self, *args):
        """Quiet."""


@contextlib.contextmanager
def serve(body: bytes = b"") -> Iterator[ThreadingHTTPServer]:
    """Run the server on this machine; its address is `url`, and every attribute may be set while it runs."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    running.body, running.break_after, running.ranges, running.tell_length = body, 0, True, True
    running.asked, running.bodies, running.pause = [], {}, 0.0
    running.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
