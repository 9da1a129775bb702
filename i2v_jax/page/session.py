"""What the page's handlers and its HTTP functions both do: check, queue, watch, finish. It knows nothing of Gradio."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from i2v_jax.errors import InputError
from i2v_jax.page import finishing, uploads
from i2v_jax.page.desk import Desk, Run
from i2v_jax.page.dials import Request
from i2v_jax.page.history import Entry
from i2v_jax.page.studio import Studio, Task
from i2v_jax.page.uploads import Crop

POLL = 0.2  # seconds from one look at a run to the next
HEARTBEAT = 1.0  # seconds after which something is told even where nothing has changed, so that who left is noticed


class Sessions:
    """The studio, its queue, and which run each browser waits for."""

    def __init__(self, studio: Studio, folder: Path):
        """Args:
        studio: makes the videos.
        folder: that uploads lie in.
        """
        self.studio, self.history, self.offers = studio, studio.history, studio.offers
        self.uploads = folder.resolve()
        self.desk = Desk(studio.animate, studio.options.most_waiting)
        self.running: dict[str, Run] = {}

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that a picture may come from: uploads, and pictures of earlier runs."""
        return self.uploads, self.history.folder

    def picture(self, path: Any) -> Any:
        """Returns an uploaded picture. Raises InputError as `uploads.read`."""
        if path is not None and not isinstance(path, str | Path):
            raise InputError("A picture's file is wanted.")
        return uploads.read(path and Path(path), self.folders, self.studio.options.most_megapixels)

    def submit(self, path: Any, crop: Crop, request: Request) -> Run:
        """Checks what a person asks for, and puts it into the queue.

        Raises:
          InputError: what is wrong with it, or a full queue.
        """
        self.offers.check(request)
        picture = uploads.cropped(self.picture(path), crop, *self.offers.sizes[request.size])
        return self.desk.submit(Task(request, picture.copy()))

    async def watch(self, run: Run, session: str | None = None) -> AsyncIterator[Run]:
        """Gives a run whenever something about it has changed, until it has ended; one that nobody waits for any more
        is cancelled.

        Args:
          run: from `submit`.
          session: of a browser that may `cancel` it.
        """
        if session:
            self.running[session] = run
        loop, shown, at = asyncio.get_running_loop(), None, 0.0
        try:
            while not run.has_ended:
                now = (run.state, run.stage, run.done, run.seconds_left, id(run.preview), self.desk.before(run))
                if now != shown or loop.time() - at > HEARTBEAT:
                    shown, at = now, loop.time()
                    yield run
                await asyncio.sleep(POLL)
        finally:
            run.cancel()  # nothing happens to one that has ended
            if session and self.running.get(session) is run:
                del self.running[session]

    def cancel(self, session: str) -> bool:
        """Stops the run that a browser waits for; returns whether there was one."""
        run = self.running.get(session)
        if run:
            run.cancel()
        return run is not None

    def finish(self, name: Any, wishes: finishing.Wishes) -> Path:
        """Returns a finished file of a run.

        Raises:
          InputError: no such run, or wishes that cannot be met.
        """
        entry = self.history.entry(name)
        wishes.check((self.uploads,))
        return finishing.finished(entry, wishes, self.history)


def request_of(values: Mapping[str, Any]) -> Request:
    """Returns a request of what a form holds; numbers of a JSON may be whole ones with a point.

    Raises:
      InputError: a number that is none.
    """
    known = {field.name: field.type for field in dataclasses.fields(Request)}
    found = {name: value for name, value in values.items() if name in known}
    for name in ("length", "steps", "seed"):
        if name in found:
            found[name] = whole(name, found[name])
    return Request(**found)


def whole(name: str, value: Any) -> int:
    """Returns a whole number. Raises InputError where it is none."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}={value!r}: a whole number is wanted.") from None
    if number != value and str(number) != str(value):
        raise InputError(f"{name}={value!r}: a whole number is wanted.")
    return number


def form_of(request: Request) -> dict[str, Any]:
    """Returns what a form holds of a request."""
    return dataclasses.asdict(request)


def described(entry: Entry, request: Request) -> dict[str, Any]:
    """Returns a run as the HTTP functions tell of it."""
    return {"name": entry.name, "request": form_of(request)}
