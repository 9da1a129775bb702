"""A yardstick and ours, timed in turn, each in a process of its own: neither's waiting threads slow the other."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]


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
