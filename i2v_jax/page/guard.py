"""What stands before the page's server: the few addresses that it needs, bounded requests, files of two folders, and
headers that keep a browser from asking anybody else. An ASGI middleware."""

import re
import shutil
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
ADDRESSES = {
    "GET": (
        r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login_check|logout|token)?/?",
        r"/(assets|static|svelte)/[\w./@+~-]+",
        rf"{API}/(info|user|login_check|app_id|token|startup-events|theme\.css|queue/(data|status))/?",
        rf"{API}/(heartbeat/\w+|upload_progress|call/\w+/\w+|file=.+)",
    ),
    "POST": (r"/login/?", rf"{API}/(upload|queue/join|cancel|reset|call/\w+)/?"),
}
"""What is answered, and nothing else: neither what proxies, nor what runs without the queue, nor what develops."""
ALLOWED = {method: re.compile("|".join(f"(?:{one})" for one in patterns)) for method, patterns in ADDRESSES.items()}
ALLOWED["HEAD"] = ALLOWED["GET"]
LARGEST_CALL = 2**20  # bytes of a request that uploads nothing
SERVED = (".mp4", ".webm", ".gif", ".webp", ".png", ".json", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".avif", ".mov")
SPARED = 60.0  # seconds for which a new upload is not removed to make place
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        *(f"{kind}-src 'self' data: blob:" for kind in ("img", "media", "font", "connect", "worker")),
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class TooLarge(Exception):
    """A request sends more than it may."""


class Guard:
    """Args:
    app: the server.
    folders: whose files are served: uploads, and the runs.
    uploads: the folder that uploads go to.
    most_upload: bytes of a request that uploads.
    most_uploads: bytes of all uploads together; the oldest make place.
    hosts: names that the page goes by; (): any. Others are refused, so that no foreign page's address leads here.
    """

    def __init__(
        self,
        app: App,
        folders: tuple[Path, ...],
        uploads: Path,
        most_upload: int,
        most_uploads: int,
        hosts: tuple[str, ...] = (),
    ):
        self.app, self.folders, self.uploads, self.hosts = app, folders, uploads, hosts
        self.most_upload, self.most_uploads = most_upload, most_uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        status, words = self.refusal(scope)
        if status:
            await answer(send, status, words)
            return
        is_upload = scope["path"].startswith(f"{API}/upload")
        if scope["method"] == "POST" and is_upload and not make_place(self.uploads, self.most_uploads):
            await answer(send, 503, "Too much was uploaded in the last minute. Try again in one.")
            return
        bounded = bounded_receive(receive, self._most(scope["path"]))
        began = False

        async def guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                message = message | {"headers": with_headers(message.get("headers", []), scope["path"])}
            await send(message)

        try:
            await self.app(scope, bounded, guarded)
        except TooLarge:
            if not began:
                await answer(send, 413, "This is too large.")

    def refusal(self, scope: Scope) -> tuple[int, str]:
        """Returns the status and words that a request is refused with; 0 where it is not."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.hosts and host_of(headers.get(b"host", "")) not in self.hosts:
            return 403, "The page does not go by this name."
        path, method = scope["path"], scope["method"]
        raw = unquote(scope.get("raw_path", b"").decode("latin-1"))
        if method not in ALLOWED:
            return 405, "GET and POST are wanted."
        if not ALLOWED[method].fullmatch(path) or "\\" in raw or "\0" in raw:
            return 404, "There is nothing here."
        if path.startswith(f"{API}/file=") and not self.is_served(path.removeprefix(f"{API}/file=")):
            return 403, "This file is not served."
        length = headers.get(b"content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400, "The length is no number."
        if int(length) > self._most(path):
            return 413, "This is too large."
        return 0, ""

    def is_served(self, path: str) -> bool:
        """Whether a file's path is one of the two folders', links and dots followed, and of a kind that pages show."""
        try:
            found = Path(path)
            real = found.resolve(strict=True)
            is_within = any(real.is_relative_to(folder.resolve()) for folder in self.folders)
        except (OSError, ValueError, RuntimeError):  # none, a name too long, a circle of links
            return False
        hidden = any(part.startswith(".") for part in (found.name, real.name))
        return found.is_absolute() and is_within and not hidden and real.is_file() and real.suffix.lower() in SERVED

    def _most(self, path: str) -> int:
        return self.most_upload if path.startswith(f"{API}/upload") else LARGEST_CALL


def bounded_receive(receive: Receive, most: int) -> Receive:
    """Returns what receives a request's body, and raises TooLarge where it is more than it says."""
    taken = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise TooLarge
        return message

    return bounded


def with_headers(headers: list[tuple[bytes, bytes]], path: str) -> list[tuple[bytes, bytes]]:
    """Returns an answer's headers with those of the guard; what never changes may be kept by the browser."""
    added = dict(HEADERS)
    if path.startswith(("/assets/", "/static/", "/svelte/")):
        del added["cache-control"]
    names = {name.encode() for name in added}
    kept = [(name, value) for name, value in headers if name.lower() not in names]
    return [*kept, *((name.encode(), value.encode()) for name, value in added.items())]


def host_of(header: str) -> str:
    """Returns the name in a `Host` header, without the port."""
    return header.rpartition("]")[0].lstrip("[") if header.startswith("[") else header.partition(":")[0]


def make_place(folder: Path, most: int) -> bool:
    """Removes the oldest uploads until the others take `most` bytes at most; returns whether they do."""
    found, total = [], 0
    for path in folder.glob("*"):
        files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        sizes = [file.stat() for file in files if file.exists()]
        size, newest = sum(it.st_size for it in sizes), max((it.st_mtime for it in sizes), default=0)
        found.append((newest, size, path))
        total += size
    for newest, size, path in sorted(found):
        if total <= most or newest > time.time() - SPARED:
            break
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        total -= size
    return total <= most


async def answer(send: Send, status: int, words: str) -> None:
    """Answers a request with a status and a sentence."""
    content = words.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": with_headers(headers, "")})
    await send({"type": "http.response.body", "body": content})
