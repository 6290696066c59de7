"""Serves the report of unfinished runs on 127.0.0.1."""

import hashlib
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, cast

from swamp.errors import SwampError
from swamp.report.page import render, render_waiting
from swamp.report.report_data import ReportData

ADDRESS = "127.0.0.1"
_WATCHED = ("config.json", "metrics.jsonl", "analysis.jsonl", "environment.json")


class LivePage:
    """The page of some runs, rendered again when their files have changed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.lock = Lock()
        self.seen: object = None
        self.page, self.tag = b"", ""

    def __call__(self) -> tuple[bytes, str]:
        """Return the page and its tag, which changes with the page."""
        with self.lock:
            seen = [_stamp(path / name) for path in self.paths for name in _WATCHED]
            if seen != self.seen:
                self.page = self._rendered().encode()
                self.seen, self.tag = seen, f'"{hashlib.sha256(self.page).hexdigest()[:24]}"'
            return self.page, self.tag

    def _rendered(self) -> str:
        try:
            return render(ReportData.read(self.paths), live=True)
        except SwampError as error:
            # A run without a finished cycle has nothing to show yet; any other error is shown in place of the page.
            return render_waiting(self.paths[0], str(error))


class PageServer:
    """A context manager that serves one page at / on 127.0.0.1.

    Args:
        page: returns the page and its tag.
        port: 0 for any free port; `url` has the port.

    Raises:
        SwampError: the port is taken.
    """

    def __init__(self, page: Callable[[], tuple[bytes, str]], port: int) -> None:
        try:
            self.server = ThreadingHTTPServer((ADDRESS, port), _handler(page))
        except (OSError, OverflowError) as error:
            raise SwampError(f"cannot serve on port {port} ({error}). Choose another, or --port 0 for any.") from error
        self.server.daemon_threads = True
        self.url = f"http://{ADDRESS}:{self.server.server_port}/"

    def __enter__(self) -> "PageServer":
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def _handler(page: Callable[[], tuple[bytes, str]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "swamp", ""
        timeout = 10

        def do_GET(self) -> None:
            """The page."""
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            """The tag of the page, without the page."""
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            # Against DNS rebinding: a foreign name that resolves to this machine arrives as Host.
            hosts = [f"{name}:{cast(ThreadingHTTPServer, self.server).server_port}" for name in (ADDRESS, "localhost")]
            if self.headers.get_all("Host", []) not in [[host] for host in hosts]:
                self.send_error(403, "wrong host")
                return
            if self.path != "/":
                self.send_error(404)
                return
            body, tag = page()
            self.send_response(200)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing: the terminal shows the run."""

    return Handler


_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
