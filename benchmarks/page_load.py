"""The page under many clients, and under malice: on this machine alone, with the bundled small model.

    python -m benchmarks.page_load    # starts a page of its own: 20 clients, 5 of which leave; 200 hostile requests
    python -m benchmarks.page_load --clients 4 --hostile 40 --rounds 1

The page runs in .venv-page (`make page` makes it). Prints what came of each client, what was answered to what is
hostile, and the memory and files of the server before and after.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-page" / "bin" / "python"
API = "gradio_api"
PICTURE = ROOT / "assets" / "small_world" / "pictures" / "0.png"
PROMPT = "a pink star moves left"
SECRETS = ("root:", "PRIVATE KEY", "[project]", "Traceback (most")
"""What must stand in no answer: of files outside of the page's folders, of its code."""


class Server:
    """A page on a port of this machine."""

    def __init__(self, process: subprocess.Popen, port: int, folder: Path, variables: dict[str, str]):
        self.process, self.port, self.folder, self.variables = process, port, folder, variables
        self.address = f"http://127.0.0.1:{port}"

    def memory(self) -> float:
        """Bytes of it that lie in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def seconds(self) -> float:
        """Seconds that it has computed for."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files(self) -> list[Path]:
        """What lies in its output and its folder for uploads."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def ask(self, path: str, data: bytes | None = None, headers: dict | None = None, seconds: float = 60):
        """Status and body of an answer; `path` goes out as it is."""
        request = urllib.request.Request(f"{self.address}/{path}", data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except urllib.error.URLError as error:
            if not data or not isinstance(error.reason, BrokenPipeError | ConnectionResetError):
                raise
            return 413, b""  # refused by its length, and hung up on while the rest was still on its way

    def call(self, name: str, data: list) -> tuple[int, bytes]:
        """Calls a function by HTTP, and waits for what comes of it."""
        body = json.dumps({"data": data}).encode()
        status, reply = self.ask(f"{API}/call/{name}", body, {"Content-Type": "application/json"})
        if status != 200:
            return status, reply
        return self.ask(f"{API}/call/{name}/{json.loads(reply)['event_id']}", seconds=300)

    def upload(self, name: str, content: bytes) -> tuple[int, bytes]:
        """Uploads a file under a name."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode("utf-8", "surrogateescape") + content + f"\r\n--{mark}--\r\n".encode()
        return self.ask(f"{API}/upload", body, {"Content-Type": f"multipart/form-data; boundary={mark}"})


@contextlib.contextmanager
def served(port: int, *options: str, folder: Path | None = None, seconds: float = 180) -> Iterator[Server]:
    """Starts a page, and ends it; raises RuntimeError where it does not answer."""
    with contextlib.ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "temporary").mkdir(parents=True, exist_ok=True)
        command = [PYTHON, "-m", "i2v_jax.page", f"--config.port={port}", f"--config.output={folder / 'output'}"]
        variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "temporary")}
        with open(folder / "log.txt", "w") as log:
            process = subprocess.Popen([*command, *options], cwd=ROOT, env=variables, stdout=log, stderr=log)
        try:
            server, began = Server(process, port, folder, variables), time.monotonic()
            while process.poll() is None and time.monotonic() < began + seconds:
                with contextlib.suppress(OSError):
                    if server.ask("")[0] in (200, 401):
                        break
                time.sleep(0.2)
            else:
                raise RuntimeError((folder / "log.txt").read_text())
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def uploaded(reply: bytes) -> dict:
    """A file that was uploaded, as functions are given it."""
    return {"path": json.loads(reply)[0], "meta": {"_type": "gradio.FileData"}}


# Clients.


def client(server: Server, seed: int, leaves_after: float | None, steps: int = 10) -> str:
    """Asks for a video, and waits for it, or leaves so many seconds after it was asked for; returns what came."""
    status, reply = server.upload("picture.png", PICTURE.read_bytes())
    assert status == 200, reply
    session = uuid.uuid4().hex
    arguments = animate_arguments(uploaded(reply), seed, steps)
    body = {"data": arguments, "session_hash": session, "fn_index": function(server)}
    status, reply = server.ask(f"{API}/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return follow(server, session, leaves_after) if status == 200 else f"refused ({status})"


def animate_arguments(picture: dict, seed: int, steps: int = 10) -> list:
    """What `animate` is called with, in its order."""
    return [
        picture,
        PROMPT,
        "",
        "48 x 48",
        8,
        steps,
        seed,
        *["natural"] * 3,
        "none",
        "clear",
        "none",
        "none",
        1,
        0.5,
        0.5,
    ]


def function(server: Server, name: str = "animate") -> int:
    """The number that the server has a function under."""
    found = json.loads(server.ask("config")[1])["dependencies"]
    return next(each["id"] for each in found if each["api_name"] == name)


def follow(server: Server, session: str, leaves_after: float | None = None) -> str:
    """Reads what the server tells a session until its end, or until it leaves."""
    until = time.monotonic() + leaves_after if leaves_after is not None else None
    address = f"{server.address}/{API}/queue/data?session_hash={session}"
    with urllib.request.urlopen(address, timeout=600) as stream:
        for line in stream:
            if until and time.monotonic() > until:
                return "left"
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return "made" if message["success"] else f"error: {message['output'].get('error')}"
                if message["msg"] == "unexpected_error":
                    return f"error: {message['message']}"
    return "cut off"


def clients(server: Server, count: int, leaving: int, steps: int = 10, leaving_steps: int = 20) -> Counter:
    """What comes of so many clients at once, of whom some leave a few seconds after they came."""
    leaves = {number * count // max(leaving, 1) for number in range(leaving)}
    with ThreadPoolExecutor(count) as people:
        asked = [
            people.submit(client, server, seed, 1.0 + 0.5 * seed, leaving_steps)
            if seed in leaves
            else people.submit(client, server, seed, None, steps)
            for seed in range(count)
        ]
    return Counter(each.result() for each in asked)


# Malice.


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose head says how large it is, whatever follows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile_pictures(count: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of files that are no pictures, or none that should be decoded."""
    rng = np.random.default_rng(0)
    good = PICTURE.read_bytes()
    frames = [Image.new("RGB", (8, 8), (each, 0, 0)) for each in range(20)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    made = [
        ("bomb.png", png(60_000, 60_000, zlib.compress(bytes(10**6)))),
        ("wide.png", png(2**31 - 1, 1)),
        ("tall.png", png(1, 2**20)),
        ("empty.png", b""),
        ("zeros.jpg", bytes(4096)),
        ("script.png", b"<script>alert(1)</script>"),
        ("page.html", b"<html><script>alert(1)</script></html>"),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"),
        ("moving.gif", buffer.getvalue()),
        ("code.py", b"import os; os.system('id')"),
        ("../../../etc/cron.d/x.png", good),
        ("..\\..\\x.png", good[:60]),
        ("a" * 300 + ".png", good[:80]),
        ("null\x00.png", good[:50]),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
    ]
    yield from made[:count]
    for number in range(count - len(made)):  # good ones, spoilt at random
        spoilt = bytearray(good)
        for place in rng.integers(0, len(spoilt), 40):
            spoilt[place] = int(rng.integers(256))
        yield f"spoilt{number}.png", bytes(spoilt[: int(rng.integers(8, len(spoilt)))])


def hostile_paths(count: int) -> Iterator[str]:
    """Addresses that ask for what is not the page's."""
    places = ("/etc/passwd", "/proc/self/environ", str(ROOT / "pyproject.toml"), "/etc/shadow", "C:/win.ini")
    shapes = (
        f"{API}/file={{}}",
        f"{API}/file=%2E%2E{{}}",
        f"{API}/file=//{{}}",
        f"{API}/file=file://{{}}",
        f"{API}/file=../../../../../..{{}}",
        f"{API}/file=..%2f..%2f..%2f..%2f..{{}}",
        "file={}",
        "assets/../../../../../../../..{}",
        "assets/..%2f..%2f..%2f..%2f..%2f..{}",
        "static/..%5c..%5c..{}",
        f"{API}/proxy=http://127.0.0.1:22{{}}",
        f"{API}/file=http://127.0.0.1:22{{}}",
        f"{API}/stream/x/1/1/{{}}",
        f"{API}/custom_component/1/client/component/..{{}}",
    )
    others = [f"{API}/{name}" for name in ("runs", "openapi.json", "vibe-code", "dev/reload", "run/animate", "mcp")]
    others += ["docs", "redoc", "monitoring", f"{API}/deep_link?session_hash=x", f"{API}/file=", f"{API}/file=%00"]
    every = [shape.format(place) for shape in shapes for place in places] + others
    yield from every[:count]


def hostile_calls(good: dict, count: int) -> Iterator[tuple[str, list]]:
    """(function, arguments) with what no page sends."""
    meta = {"_type": "gradio.FileData"}
    for path in ("/etc/passwd", str(PICTURE), "http://127.0.0.1:22/x.png", "http://169.254.169.254/latest", "..", "\0"):
        yield "animate", animate_arguments({"path": path, "meta": meta}, 0)
        yield "finish", ["x", "as it is", "cut", "480", "GIF", 1, "", "top", {"path": path, "meta": meta}]
    wrong = (None, "../../x", "/etc/passwd", -1, 2**40, [], {}, "9" * 5000, 1e308)
    for place in range(1, 17):
        for value in wrong:
            arguments = animate_arguments(good, 0)
            arguments[place] = value
            if not (place in (1, 2) and isinstance(value, str) and len(value) < 50):  # any words are a prompt
                yield "animate", arguments
    for name in ("../../../etc/passwd", "20260101-000000-abcdef", "", None, [], "x" * 9999):
        yield "finish", [name, "as it is", "cut", "480", "GIF", 1, "", "top", None]


def attack(server: Server, count: int) -> Counter:
    """What is answered to so many hostile requests: "refused", or what leaked.

    A third each are uploads that are then to be animated, paths, and arguments.
    """
    found, share = Counter(), count // 3
    status, reply = server.upload("good.png", PICTURE.read_bytes())
    good = uploaded(reply)
    for name, content in hostile_pictures(share):
        status, reply = server.upload(name, content)
        if status != 200:
            found[f"upload: refused ({status})"] += 1
            continue
        picture = uploaded(reply)
        found[f"picture: {judged(*server.call('animate', animate_arguments(picture, 0)))}"] += 1
    for path in hostile_paths(share):
        found[f"path: {judged(*server.ask(path))}"] += 1
    calls = list(hostile_calls(good, share))
    step = max(1, len(calls) // max(1, count - 2 * share))
    for name, arguments in calls[::step][: count - 2 * share]:
        found[f"call: {judged(*server.call(name, arguments))}"] += 1
    return found


def judged(status: int, reply: bytes) -> str:
    """Says of an answer whether something was refused, made, or let out."""
    text = reply.decode("utf-8", "replace")
    if leaked := [secret for secret in SECRETS if secret in text]:
        return f"LEAKED {leaked}"
    if status >= 500:
        return f"CRASHED ({status})"
    if status >= 400:
        return "refused"
    if "event: error" in text:
        return "refused in words" if '"That did not work"' in text or "error" in text else "refused"
    if "event: complete" in text:
        return "made"
    return f"answered ({status}, {len(reply)} bytes)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=7891)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--leaving", type=int, default=5)
    parser.add_argument("--hostile", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="of clients, to see whether memory grows")
    args = parser.parse_args()
    if not PYTHON.is_file():
        sys.exit(f"{PYTHON} is not there: `make .venv-page/.installed` makes it.")
    with served(args.port, "--config.most_runs=25") as server:
        print("first client:", clients(server, 1, 0))
        for number in range(args.rounds):
            began = time.monotonic()
            found = clients(server, args.clients, args.leaving)
            memory, files = server.memory() / 1e6, len(server.files())
            took = time.monotonic() - began
            print(f"round {number + 1}: {dict(found)}, {took:.0f} s; {memory:.0f} MB, {files} files", flush=True)
        began = time.monotonic()
        for what, times in sorted(attack(server, args.hostile).items()):
            print(f"{times:5} {what}")
        print(f"hostile: {time.monotonic() - began:.0f} s; {server.memory() / 1e6:.0f} MB, {len(server.files())} files")
        before = server.seconds()
        time.sleep(5)
        print(f"at rest: {(server.seconds() - before) / 5:.0%} of a core; afterwards a client:", end=" ")
        print(clients(server, 1, 0))
        log = (server.folder / "log.txt").read_text()
        print(f"tracebacks in the server's own log: {log.count('Traceback')}")


if __name__ == "__main__":
    main()
