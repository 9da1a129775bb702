"""Measures runs over a set: a video at a time, each metric that is not in the journal yet; what fails is counted."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from i2v_jax.data.decoding import BadClip
from i2v_jax.errors import InputError
from i2v_jax.evaluation.journal import Journal, key_of
from i2v_jax.evaluation.metric import Case, Metric, SetMetric
from i2v_jax.evaluation.networks import Networks
from i2v_jax.evaluation.report import Run
from i2v_jax.evaluation.sets import Item, all_frames, stamp
from i2v_jax.evaluation.together import Together, packed, unpacked


@dataclasses.dataclass
class Measured:
    """A run's measurements.

    Attributes:
      run: values in the order of the set, NaN where there is none.
      causes: why videos were not measured -> how many.
      lacking: metric -> why it was not measured on some -> how many.
      sizes: (frames, height, width) -> how many videos.
    """

    run: Run
    causes: Counter[str]
    lacking: Mapping[str, Counter[str]]
    sizes: Counter[tuple[int, int, int]]


def measure_run(
    labels: Mapping[str, Any],
    videos: Mapping[str, Path],
    items: Sequence[Item],
    metrics: Sequence[Metric],
    networks: Networks,
    journal: Journal,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Measured:
    """Measures a run's video of each item.

    Args:
      labels: the run's.
      videos: name of an item -> its video; one that is not there counts as missing.
      items: the set.
      metrics: what to measure.
      networks: that they need.
      journal: what is in it is not measured again.
      seed: of what metrics draw, with an item's name.
      progress: called after each video.
    """
    found = []
    for item in items:
        path, drawn = videos.get(item.name), int(key_of(seed, item.name), 16) % 2**32
        is_there = path is not None and path.is_file()
        found.append(_measure(labels, path, item, metrics, networks, journal, drawn) if is_there else {})
        progress()
    causes = Counter(line["cause"] for line in found if line.get("cause"))
    causes += Counter({"missing file": sum(not line for line in found)})
    values = {
        metric.name: _of_all(metric, [line.get("values", {}).get(_versioned(metric, networks)) for line in found])
        for metric in metrics
    }
    lacking = {
        metric.name: Counter(line["lacks"][metric.name] for line in found if metric.name in line.get("lacks", {}))
        for metric in metrics
    }
    sizes = Counter(tuple(line["size"]) for line in found if line.get("size"))
    return Measured(Run(labels, values), causes, lacking, sizes)


def _measure(labels, path, item, metrics, networks, journal, seed) -> dict[str, Any]:
    """A video's line in the journal, with all metrics in it."""
    key = key_of(stamp(path), item.name, item.prompt, item.identity, seed)
    wanted = {_versioned(metric, networks): metric for metric in metrics}
    known = journal.get(key)
    if known.get("cause") or wanted.keys() <= known.get("values", {}).keys():
        return known
    about = dict(run=list(map(str, labels.values())), item=item.name)
    try:
        video = all_frames(path)
    except BadClip as error:
        journal.add(key, {}, cause=error.cause, **about)
        return journal.get(key)
    try:
        picture = item.picture and item.picture()
        truth = item.truth and item.truth()
    except BadClip as error:
        raise InputError(f"The true video of {item.name}: {error.cause}. {error.detail}".strip()) from None
    case = Case(item.name, video, picture, item.prompt, truth, seed)
    values, lacks = {}, dict(known.get("lacks", {}))
    for name, metric in wanted.items():
        if name in known.get("values", {}):
            continue
        if reason := metric.lacks(case):
            values[name], lacks[metric.name] = None, reason
        else:
            values[name] = _kept(metric, metric.measure(case, networks))
    journal.add(key, values, size=video.shape[:3], lacks=lacks, **about)
    return journal.get(key)


def _versioned(metric: Metric, networks: Networks) -> str:
    """A metric's name in the journal, with what its numbers depend on."""
    weights = [networks.identity(name) for name in metric.networks]
    return ":".join([metric.name, str(metric.version), *weights])


def _kept(metric: Metric, value: Any) -> float | str | None:
    """What a journal keeps of a measurement: a number, or a set metric's features as a text; None where it is none."""
    if not np.isfinite(value).all():
        return None
    return packed(value) if isinstance(metric, SetMetric) else float(value)


def _of_all(metric: Metric, kept: Sequence[float | str | None]) -> list[float] | Together:
    """What the kept are of: a number for each video, NaN where there is none, or all of them together."""
    if isinstance(metric, SetMetric):
        return Together(metric.of_set, [one if one is None else unpacked(one) for one in kept])
    return [math.nan if one is None else one for one in kept]
