"""Servers that are real: moto's of S3, and one of plain files that can be made to fail."""

import http.server
import os
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager


@contextmanager
def s3_server():
    """Run moto's server; yield its address."""
    program = (
        "from moto.moto_server.werkzeug_app import DomainDispatcherApplication as Application\n"
        "from moto.moto_server.werkzeug_app import create_backend_app\n"
        "from werkzeug.serving import make_server\n"
        "app = Application(create_backend_app)\n"
        "server = make_server('127.0.0.1', 0, app, threaded=True)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def put(endpoint, path, data=b"", method="PUT"):
    """Make a bucket (without a slash in the path) or an object; or remove one, by "DELETE"."""
    request = urllib.request.Request(f"{endpoint}/{path}", data=data, method=method)
    request.add_header("Content-Type", "application/octet-stream")  # a form would be parsed
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4")
    urllib.request.urlopen(request).close()


class FileServer:
    """Serves a directory with ranges; fails as often as it is told to.

    Attributes:
        failing: the part of requests that fail: an error 503, half a body, or a reset.
        seen: the requests, as (method, path, range).
    """

    def __init__(self, folder):
        self.folder = folder
        self.failing = 0.0
        self.delay_s = 0.0
        self.answer = None  # an HTTP status for all requests
        self.ranges = True
        self.etags = True
        self.seen = []
        self._random = random.Random(0)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that was killed
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fails(self):
        return self._random.random() < self.failing and self._random.choice(
            ["503", "half", "reset"]
        )

    def _handler(server):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self._answer(body=False)

            def do_GET(self):
                self._answer(body=True)

            def _answer(self, body):
                asked = self.headers.get("Range")
                server.seen.append((self.command, self.path, asked))
                time.sleep(server.delay_s)
                fault = server.fails()
                path = server.folder + self.path
                status = server.answer or (503 if fault == "503" else None)
                if fault == "reset":
                    self.close_connection = True
                    return
                if status is None and not os.path.isfile(path):
                    status = 404
                if status is not None:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self._send(path, asked if server.ranges else None, body, half=fault == "half")

            def _send(self, path, asked, body, half):
                found = os.stat(path)
                first, last = 0, found.st_size
                if asked:
                    numbers = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
                    first, last = int(numbers[1]), min(int(numbers[2]) + 1, found.st_size)
                with open(path, "rb") as file:
                    file.seek(first)
                    data = file.read(last - first)
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(data)))
                if server.etags:
                    self.send_header("ETag", f'"{found.st_mtime_ns}-{found.st_size}"')
                self.send_header("Last-Modified", self.date_time_string(int(found.st_mtime)))
                if asked:
                    self.send_header("Content-Range", f"bytes {first}-{last - 1}/{found.st_size}")
                self.end_headers()
                if body:
                    self.wfile.write(data[: len(data) // 2] if half else data)
                    self.close_connection = half

        return Handler
