"""Batches of clips, epoch after epoch, on Grain: shuffled, shared among hosts, decoded in worker processes.

All epochs are one endless row of positions: position p is clip number `p mod n` of epoch `p div n`, in that epoch's
order. Hosts take turns of `batch_size` positions. A host's batches are its positions in their order, without the bad
clips: every good clip is used just once an epoch, and what is left at an epoch's end begins the next epoch's first
batch. As long as no clip is bad, all hosts' batches together are the same clips in the same order for any number of
hosts.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import av
import grain
import numpy as np
from absl import flags
from jaxtyping import Int32

from i2v_jax.data.clip import Clip, Source
from i2v_jax.data.decoding import CAUSES, BadClip, Cut
from i2v_jax.data.reader import Conditioning, Control, Reader
from i2v_jax.data.sources import check_files, open_source
from i2v_jax.data.stored import Stored
from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk

DIED = "terminated unexpectedly"  # so Grain says that a worker is gone
JUDGED_ON = 10_000  # clips: the share of bad ones is that among so many, or among an epoch's where those are fewer

Tokenize = Callable[[list[str]], Mapping[str, Int32[np.ndarray, "b t"]]]
"""Captions to what a batch holds of them: `tokens`, and whatever other tokenizers make of them, by name."""


def make(
    config: Mapping[str, Any],
    batch_size: int,
    *,
    seed: int,
    host: int = 0,
    hosts: int = 1,
    tokenize: Tokenize | None = None,
    image_size: int | None = None,
    control: Control | None = None,
    conditioning: Conditioning = Conditioning(),  # noqa: B008 (a tuple)
    wanted: Sequence[str] = ("text",),
    choose: Callable[[Source], Source] = lambda source: source,
) -> "Loader":
    """Opens the data of a config, see `configs/train`, for one host.

    Args:
      config: `source`, `videos`, `frames`, `stride`, `height`, `width`, `workers`, `buffer`, `max_bad`, `bad_list`, and
        perhaps `flip`, `no_captions` and `least_stride`.
      batch_size: clips in a batch of this host.
      seed: of the order and of what is drawn of each clip.
      host, hosts: which one of how many this is.
      tokenize: captions to ids; stored clips need none.
      image_size: of the pictures for the image encoder; None where there is none, and for stored clips.
      control: makes control pictures of a clip's frames; None where there are none, and for stored clips.
      conditioning: what else the model is told of a clip; stored clips have it.
      wanted: of stored clips, the names of the arrays beside the latents that batches are to hold.
      choose: makes of the source the one that is read, such as some of its clips.

    Raises:
      InputError: a value out of range, data that cannot be opened, or too many files that are not there.
    """
    cut = Cut(config["frames"], config["stride"], config["height"], config["width"])
    source = open_source(config["source"], config["videos"])
    flip, no_captions = (bool(config.get(name, False)) for name in ("flip", "no_captions"))
    check_files(source, config["max_bad"], no_captions)
    if isinstance(source, Stored) and flip:
        raise InputError(
            f"data.flip=True, and {config['source']} holds stored latents, which are not mirrored. Set data.flip=False "
            "and have `python -m i2v_jax.training.store` flip them, with data.flip=True and several --epochs."
        )
    least = config.get("least_stride", 0)
    if least and not 1 <= least <= cut.stride:
        raise InputError(f"data.least_stride={least}: wanted 1 to data.stride={cut.stride}, or 0 for that one alone.")
    reader = Reader(cut, image_size, control, flip, no_captions, conditioning, least)
    return Loader(
        choose(source),
        source.reader(cut, wanted) if isinstance(source, Stored) else reader,
        batch_size,
        seed=seed,
        host=host,
        hosts=hosts,
        tokenize=tokenize,
        workers=config["workers"],
        buffer=config["buffer"],
        max_bad=config["max_bad"],
        bad_list=config["bad_list"],
    )


class Order:
    """Which clip is at a position of the endless row, and which positions are a host's.

    Args:
      clips: how many there are.
      seed: of the order, which differs from epoch to epoch.
      batch_size, host, hosts: a host's turn, which host, how many.
      left, start: what is not used yet, when hosts that were more or fewer have used a part: some positions, and all
        from `start` on.
    """

    def __init__(self, clips, seed, batch_size, host, hosts, left=(), start=0):
        self.clips, self.seed, self.left, self.start = clips, seed, tuple(left), start
        self.batch_size, self.host, self.hosts = batch_size, host, hosts
        spread = int(np.random.SeedSequence(seed).generate_state(1)[0])  # Grain adds the epoch to it
        self.shuffled = grain.MapDataset.range(clips).shuffle(seed=spread).repeat()

    def position(self, count: int) -> int:
        """The position that this host takes after `count` others."""
        turn, place = divmod(count, self.batch_size)
        number = (turn * self.hosts + self.host) * self.batch_size + place
        return self.left[number] if number < len(self.left) else self.start + number - len(self.left)

    def clip(self, position: int) -> tuple[int, int]:
        """Epoch and number of the clip at a position."""
        return position // self.clips, int(self.shuffled[position])


def name_of(clip: Clip | Mapping[str, Any]) -> str:
    """A clip's id, of any source."""
    return clip["id"] if isinstance(clip, Mapping) else clip.id


def bad_item(name: str, bad: BadClip) -> dict[str, str]:
    """What stands in a bad clip's place."""
    return {"id": name, "cause": bad.cause, "detail": bad.detail}


class _Items:
    """What a host's positions hold, for Grain: batch items, or why there is none."""

    def __init__(self, source: Source, reader: Reader, order: Order):
        self.source, self.reader, self.order = source, reader, order

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, count: int) -> dict[str, Any]:
        av.logging.set_level(av.logging.PANIC)  # what matters has its cause
        epoch, number = self.order.clip(self.order.position(count))
        clip = self.source[number]
        name = name_of(clip)
        try:
            with _limited_time():
                return {"id": name} | self.reader(clip, np.random.default_rng((self.order.seed, epoch, number)))
        except BadClip as bad:
            return bad_item(name, bad)
        except Exception as error:  # a damaged file may lead a decoder's binding anywhere
            return bad_item(name, BadClip("damaged", repr(error)))


_seconds_per_clip = 0.0  # of a worker; elsewhere 0: no limit


def _begin_worker(seconds: float, *_: int) -> None:
    """Makes a process a worker, which lives until its parent ends it or is gone."""
    global _seconds_per_clip
    _seconds_per_clip = seconds
    for sent_to_all in (signal.SIGINT, signal.SIGTERM):  # the parent may still want batches
        signal.signal(sent_to_all, signal.SIG_IGN)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _limited_time():
    """Ends a worker if what is done within takes too long: nothing less stops a decoder."""
    if _seconds_per_clip:
        signal.setitimer(signal.ITIMER_REAL, _seconds_per_clip)
    try:
        yield
    finally:
        if _seconds_per_clip:
            signal.setitimer(signal.ITIMER_REAL, 0)


class Loader:
    """An endless iterator of `(batch, ids)`.

    Each batch holds `video` uint8 [b f h w 3], `sizes` float32 [b 6], what `tokenize` makes of the captions, say
    `tokens` int32 [b t], and, where wanted, `pixels` float32 [b H W 3]; of stored clips, see `data.stored`. The same
    clips, frames and numbers come out whatever the number of workers, and after `restore`.

    Args:
      source: clips by number.
      reader: makes a clip a batch's item.
      batch_size, seed, host, hosts, tokenize: see `make`.
      workers: processes that decode; 0 decodes in this one.
      buffer: clips that each worker keeps ready.
      max_bad: share of bad clips among those of an epoch (or of 10,000, if it has more) above which to stop. Each host
        judges its own clips, as soon as the count is certain.
      bad_list: file to which each bad clip's id, cause and detail are appended, once, as lines of JSON; "{host}" in it
        is replaced by the host's number. "": none.
      seconds: a worker that decodes one clip for longer is taken to hang; the clip is bad.

    Raises:
      InputError: a value out of range; by `next`, more bad clips than `max_bad`, or no others.
    """

    def __init__(
        self,
        source: Source,
        reader: Reader,
        batch_size: int,
        *,
        seed: int,
        host: int = 0,
        hosts: int = 1,
        tokenize: Tokenize | None = None,
        workers: int = 0,
        buffer: int = 2,
        max_bad: float = 1.0,
        bad_list: str = "",
        seconds: float = 120,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("data.workers", workers, 0),
            ("data.buffer", buffer, 1),
        ):
            if value < least:
                raise InputError(f"{name}={value}: wanted {least} or more.")
        if not 0 <= max_bad <= 1:
            raise InputError(f"data.max_bad={max_bad}: wanted a share in [0, 1].")
        if not 0 <= host < hosts:
            raise InputError(f"host={host} of {hosts}: wanted 0 to {hosts - 1}.")
        self.source, self.reader, self.tokenize = source, reader, tokenize
        self.workers, self.buffer, self.max_bad, self.seconds = workers, buffer, max_bad, seconds
        self.order = Order(len(source), seed, batch_size, host, hosts)
        self.taken, self.good, self.bad = 0, 0, Counter()
        self.bad_list = on_disk(bad_list.replace("{host}", str(host))) if bad_list else None
        self.listed = self._read_bad_list()
        self._items, self._suspects, self._deaths = None, 0, 0

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> tuple[dict[str, np.ndarray], list[str]]:
        batch, ids, _ = self.next_batch()
        return batch, ids

    def next_batch(self) -> tuple[dict[str, np.ndarray], list[str], list[int]]:
        """Returns the next batch, its clips' ids, and their positions in the endless row."""
        items, positions, bad_in_a_row = [], [], set()
        while len(items) < self.order.batch_size:
            item, position = self._next_item(), self.order.position(self.taken)
            self.taken += 1
            if "cause" in item:
                bad_in_a_row.add(self.order.clip(position)[1])
                self._note(item, len(bad_in_a_row))
            else:
                self.good += 1
                items.append(item)
                positions.append(position)
                bad_in_a_row.clear()
        batch = {name: np.stack([item[name] for item in items]) for name in items[0] if name not in ("id", "caption")}
        if "caption" in items[0] and self.tokenize:
            batch |= self.tokenize([item["caption"] for item in items])
        return batch, [item["id"] for item in items], positions

    def state(self) -> dict[str, Any]:
        """The position behind the last batch, as JSON can hold it."""
        order = self.order
        return dict(
            clips=order.clips,
            seed=order.seed,
            batch_size=order.batch_size,
            host=order.host,
            hosts=order.hosts,
            left=list(order.left),
            start=order.start,
            taken=self.taken,
            good=self.good,
            bad=dict(self.bad),
        )

    def restore(self, states: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Goes on where other loaders stopped, over the same data and with the same seed.

        Args:
          states: that of this host; or those of all hosts, which may have been more or fewer, with other batches:
            each clip that none of them has used in its epoch is used once then.

        Raises:
          InputError: states of other data or another seed, or not of all hosts.
        """
        states = [states] if isinstance(states, Mapping) else list(states)
        order = self.order
        for state in states:
            for name in ("clips", "seed"):
                if state[name] != getattr(order, name):
                    raise InputError(
                        f"The data has {name}={getattr(order, name)}, the position to go on from {name}={state[name]}. "
                        "Give the same data and seed, or begin a new run."
                    )
        same = [s for s in states if all(s[name] == getattr(order, name) for name in ("batch_size", "host", "hosts"))]
        if same:
            state = same[0]
            left, start, self.taken, self.good, self.bad = (state[k] for k in ("left", "start", "taken", "good", "bad"))
            self.bad = Counter(self.bad)
        else:
            left, start = unused(states)
            self.taken, self.good, self.bad = 0, 0, Counter()
        self.order = Order(order.clips, order.seed, order.batch_size, order.host, order.hosts, left, start)
        self.close()

    def report(self) -> dict[str, Any]:
        """What this host has read: `epoch` (begun, with its fraction), `good` clips, `bad` ones by cause."""
        epoch = self.order.position(self.taken) / self.order.clips
        return {"epoch": epoch, "good": self.good, "bad": dict(self.bad)}

    def close(self) -> None:
        """Ends the worker processes; the next batch starts them again."""
        self._suspects = 0
        if self._items is not None:
            self._items.close()
            self._items = None

    def _next_item(self) -> dict[str, Any]:
        """The item at the next position. When a worker dies, whatever it may have died of is read once more, each clip
        in a process of its own, so that the one clip is found."""
        if self._suspects:
            self._suspects -= 1
            return self._alone()
        if self._items is None:
            self._items = self._start(sys.maxsize)
        try:
            return next(self._items)
        except RuntimeError as error:
            if DIED not in str(error):
                raise
            self.close()
            self._suspects, self._deaths = self.workers * (self.buffer + 2), 0
            return self._next_item()

    def _alone(self) -> dict[str, Any]:
        items = self._start(1)
        try:
            item = next(items)
            self._deaths = 0
            return item
        except RuntimeError as error:
            if DIED not in str(error):
                raise
            self._deaths += 1
            if self._deaths == 3:
                raise InputError(
                    f"Three workers in a row died, each on another clip ({error}). If memory or /dev/shm is full, set "
                    "fewer data.workers or a smaller data.buffer."
                ) from error
            _, number = self.order.clip(self.order.position(self.taken))
            return bad_item(name_of(self.source[number]), BadClip("kills the decoder", str(error)))
        finally:
            items.close()

    def _start(self, count: int) -> grain.DatasetIterator:
        """Begins to read `count` positions."""
        items = grain.MapDataset.source(_Items(self.source, self.reader, self.order))
        items = items[self.taken : min(self.taken + count, sys.maxsize)]
        here = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # workers are processes, not threads
        items = items.to_iter_dataset(here)
        if workers := min(self.workers, count):
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain looks at flags, which programs without absl.app never parse
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=self.buffer)
            items = items.mp_prefetch(options, functools.partial(_begin_worker, self.seconds))
        return iter(items)

    def _note(self, item: Mapping[str, str], in_a_row: int) -> None:
        self.bad[item["cause"]] += 1
        if self.bad_list and item["id"] not in self.listed:
            self.listed.add(item["id"])
            self.bad_list.parent.mkdir(parents=True, exist_ok=True)
            with open(self.bad_list, "a", encoding="utf-8") as file:
                file.write(json.dumps({name: item[name] for name in ("id", "cause", "detail")}) + "\n")
        count = sum(self.bad.values())
        judged_on = min(-(-self.order.clips // self.order.hosts), JUDGED_ON)
        too_many = count > self.max_bad * judged_on * -(-(count + self.good) // judged_on)
        if too_many or in_a_row == min(self.order.clips, JUDGED_ON):
            share = f"more than the share data.max_bad={self.max_bad}"
            what = share if too_many else f"and none of the latest {in_a_row} different ones is good"
            causes = [f"  {number} {cause}: {CAUSES[cause]}" for cause, number in self.bad.most_common()]
            raise InputError(
                f"{count} of {count + self.good} clips read are bad, {what}:\n"
                + "\n".join(causes)
                + f"\nThe last one is {item['id']!r} ({item['detail'] or item['cause']}). Mend or remove such clips"
                + (", or raise data.max_bad." if too_many else ".")
            )

    def _read_bad_list(self) -> set[str]:
        if not (self.bad_list and self.bad_list.exists()):
            return set()
        listed = set()
        for line in self.bad_list.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut off
                listed.add(json.loads(line)["id"])
        return listed


def unused(states: Sequence[Mapping[str, Any]]) -> tuple[list[int], int]:
    """Which positions all hosts of a run have left over: some, and all from a first one on."""
    hosts, batch_size = states[0]["hosts"], states[0]["batch_size"]
    if sorted(state["host"] for state in states) != list(range(hosts)):
        raise InputError(
            f"The run had {hosts} hosts, and the positions of {len(states)} are given. To go on with another number of "
            "hosts, or another batch, those of all are wanted."
        )
    orders = {
        state["host"]: Order(
            state["clips"], state["seed"], batch_size, state["host"], hosts, state["left"], state["start"]
        )
        for state in states
    }
    furthest = max(state["taken"] for state in states)
    rounds = max(-(-furthest // batch_size), -(-len(states[0]["left"]) // (batch_size * hosts)))
    left = [
        orders[state["host"]].position(count)
        for state in states
        for count in range(state["taken"], rounds * batch_size)
    ]
    start = orders[0].position(rounds * batch_size)
    return sorted(left), start
