"""A small server for a study's page, to which it sends its answers; nothing else of the disk is served."""

import http
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from i2v_jax.errors import InputError
from i2v_jax.evaluation.study.answers import checked
from i2v_jax.evaluation.study.key import Key
from i2v_jax.media import free_stem, write_files

LARGEST = 2**21  # bytes of a person's answers
PATIENCE = 60  # seconds for a request


def server(
    page: bytes, key: Key, folder: Path, host: str, port: int, log: Callable[[str], object] = print
) -> ThreadingHTTPServer:
    """Returns a server, bound and not yet running.

    Args:
      page: what it serves at `/`.
      key: what answers posted to `/answers` are checked against.
      folder: where they are written, a file each; none is ever written over.
      host, port: where it listens; port 0: any.
      log: is told of each file.

    Raises:
      InputError: it cannot listen there.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version, timeout = "study", "", PATIENCE

        def do_GET(self):
            if self.path.partition("?")[0] != "/":
                self.answer(http.HTTPStatus.NOT_FOUND, b"The study is at /.")
            else:
                self.answer(http.HTTPStatus.OK, page, "text/html; charset=utf-8")

        def do_POST(self):
            if self.path != "/answers":
                return self.answer(http.HTTPStatus.NOT_FOUND, b"Answers go to /answers.")
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > LARGEST:
                self.close_connection = True
                return self.answer(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"These are no answers of a study.")
            content = self.rfile.read(int(length))
            try:
                path = save(content, key, folder)
            except InputError as error:
                return self.answer(http.HTTPStatus.BAD_REQUEST, str(error).encode())
            log(f"{path}")
            self.answer(http.HTTPStatus.OK, b"Thank you.")

        def answer(self, status, content, kind="text/plain; charset=utf-8"):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise InputError(f"Nothing can be served at {host}:{port}: {error.strerror}. Choose another --port.") from None


def save(content: bytes, key: Key, folder: Path) -> Path:
    """Writes a person's answers as they came, if they are complete answers of this study; returns where to.

    Raises:
      InputError: they are not, or cannot be written.
    """
    try:
        answers = checked(json.loads(content), key)
    except (ValueError, RecursionError):
        raise InputError("it is no JSON.") from None
    path = free_stem(folder, f"answers-{answers.person[:16]}", (".json",)).with_suffix(".json")
    write_files({path: content})
    return path
