"""A camera for tests: numbered pictures over HTTP (multipart MJPEG), to be switched off and on again."""

import http.server
import itertools
import threading
import time

import cv2
import numpy as np

BITS, SIDE = 12, 16


def picture(number):
    """A 32x192 picture that carries a number as black and white blocks, which survive JPEG."""
    row = np.repeat([255 * (number >> bit & 1) for bit in range(BITS)], SIDE)
    return np.repeat(np.tile(row, (32, 1))[:, :, None], 3, axis=2).astype(np.uint8)


def number_of(image):
    """The number in a picture."""
    return sum(int(image[16, bit * SIDE + SIDE // 2].mean() > 127) << bit for bit in range(BITS))


class Camera:
    """Serves `http://127.0.0.1:<port>/...`: each address counts its pictures on, also after a restart.

    `limit` ends a connection after so many pictures.
    """

    def __init__(self, period=0.03, limit=None):
        self.period, self.limit = period, limit
        self.port = 0
        self._counters = {}
        self._server = None
        self._flowing = threading.Event()
        self._flowing.set()
        self.sent = 0

    def url(self, path="a"):
        return f"http://127.0.0.1:{self.port}/{path}"

    def on(self):
        camera, self._off = self, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                counter = camera._counters.setdefault(self.path, itertools.count(1))
                for _ in itertools.repeat(None) if camera.limit is None else range(camera.limit):
                    if camera._off.wait(camera.period):
                        return
                    camera._flowing.wait(10)
                    data = cv2.imencode(".jpg", picture(next(counter)))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    try:
                        self.wfile.write(head.encode() + data + b"\r\n")
                        camera.sent += 1
                    except OSError:
                        return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def off_after(self, pictures, seconds=60):
        """Break every connection once so many pictures were sent; returns the thread that does it."""

        def wait():
            end = time.monotonic() + seconds
            while self.sent < pictures and time.monotonic() < end:
                time.sleep(0.02)
            self.off()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def hold(self):
        """Keep every connection open, but send nothing until `go_on`, or for ten seconds."""
        self._flowing.clear()

    def go_on(self):
        """Send again."""
        self._flowing.set()

    def off(self):
        """Break every connection and stop to listen."""
        if self._server is not None:
            self._off.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self):
        return self.on()

    def __exit__(self, *error):
        self.off()
