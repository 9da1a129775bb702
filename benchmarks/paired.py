"""A yardstick and ours, timed in turn, each in a process of its own: neither's waiting threads slow the other."""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Call = Callable[[], Any]


def arguments(doc: str, kinds: Sequence[str] = (), **numbers: int) -> argparse.Namespace:
    """Returns a benchmark's arguments: `kind`, the first by default; whole numbers by name; `rounds` and `cores`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if kinds:
        parser.add_argument("--kind", choices=kinds, default=kinds[0])
    for name, value in dict(**numbers, rounds=3, cores=2).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def say_difference(wanted: np.ndarray, made: np.ndarray) -> None:
    """Prints how far ours are from the yardstick's results, over the size of these."""
    print(f"relative difference: {np.linalg.norm(made - wanted) / np.linalg.norm(wanted):.1e}")


def serve(connection, build: Callable[..., tuple[Call, Any]], given: tuple, cores: int) -> None:
    """A process's work: sends what its call makes and what the other side needs; then seconds whenever it is asked."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    call, for_other = build(*given)
    connection.send((call(), for_other))
    while connection.recv():
        begin = time.perf_counter()
        call()
        connection.send(time.perf_counter() - begin)


def compare(
    name: str,
    yardstick: Callable[[Any], tuple[Call, Any]],
    ours: Callable[[Any, Any], tuple[Call, None]],
    args: Any,
    check: Callable[[Any, Any], None],
) -> None:
    """Prints what `check` makes of both results, then the seconds of each round and the median of their ratios.

    Args:
      name: of the yardstick.
      yardstick: of the arguments, returns a call and the weights that it runs with.
      ours: of the arguments and those weights, returns a call and None.
      args: with `rounds` and `cores`.
      check: of the yardstick's result and ours.
    """
    context = multiprocessing.get_context("spawn")

    def start(build, *given):
        mine, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, build, given, args.cores), daemon=True).start()
        theirs.close()  # so that the process's death is noticed
        return mine, *mine.recv()

    reference, wanted, weights = start(yardstick, args)
    plain, made, _ = start(ours, args, weights)
    check(wanted, made)
    ratios = []
    for number in range(args.rounds):
        seconds = []
        for connection in (reference, plain):
            connection.send(True)
            seconds.append(connection.recv())
        ratios.append(seconds[1] / seconds[0])
        print(f"round {number}: {name} {seconds[0]:.2f} s, ours {seconds[1]:.2f} s: {ratios[-1]:.2f}", flush=True)
    print(f"median of the ratios: {statistics.median(ratios):.2f}")
    for connection in (reference, plain):
        connection.send(False)
