"""What rankings come to: Average User Ranking with intervals, and how far people agree (Kendall's W)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Ranks = Float64[np.ndarray, "people cases runs"]
RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A number, and the 95 % interval that it lies in; NaN where there is none."""

    value: float
    low: float
    high: float


class Agreement(NamedTuple):
    """How far people agree.

    Attributes:
      w: Kendall's W (Kendall and Babington Smith 1939) of each case's rankings, mean over cases: 1 where all rank
        alike. Its interval is over cases.
      chance: what W is on average where people rank at random: 1 / people.
      spearman: mean rank correlation of two people, (m W - 1) / (m - 1): 0 at random.
      people: the most that ranked one case.
    """

    w: Estimate
    chance: float
    spearman: float
    people: int


def average_ranks(ranks: Ranks, seed: int = 0) -> list[Estimate]:
    """Returns each run's Average User Ranking: its mean place, 1 the best.

    Intervals: percentiles of a bootstrap that draws people and cases anew, each on their own (Owen 2007); it is on the
    safe side. NaN are left out.
    """
    known = ~np.isnan(ranks[..., 0])
    if not known.any():
        return [Estimate(np.nan, np.nan, np.nan)] * ranks.shape[2]
    drawn = _drawn(np.where(known[..., None], ranks, 0), known, seed)
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    return [Estimate(*map(float, one)) for one in zip(ranks[known].mean(0), low, high)]


def _drawn(values: Ranks, known: np.ndarray, seed: int) -> Float64[np.ndarray, "resamples runs"]:
    """Means over people and cases drawn anew; NaN where none of what was drawn is known."""
    rng = np.random.default_rng(seed)
    people, cases = (_times_drawn(rng, count) for count in values.shape[:2])
    sums = np.einsum("bc,bcr->br", cases, np.tensordot(people, values, 1))
    counts = np.einsum("bc,bc->b", cases, people @ known.astype(float))
    with np.errstate(invalid="ignore"):
        return sums / counts[:, None]


def _times_drawn(rng: np.random.Generator, count: int) -> Float64[np.ndarray, "resamples count"]:
    """How often each of so many is drawn."""
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)


def differences(ranks: Ranks, seed: int = 0) -> dict[tuple[int, int], Estimate]:
    """Returns (i, j) -> mean place of run i less that of j, person by person and case by case."""
    count = ranks.shape[2]
    pairs = [(i, j) for j in range(count) for i in range(j + 1, count)]
    apart = np.stack([ranks[..., i] - ranks[..., j] for i, j in pairs], -1)
    return dict(zip(pairs, average_ranks(apart, seed)))


def agreement(ranks: Ranks, seed: int = 0) -> Agreement:
    """Returns how far people agree; cases that fewer than two ranked are left out, NaN where all are."""
    found = []
    for case in range(ranks.shape[1]):
        ranked = ranks[~np.isnan(ranks[:, case, 0]), case]
        if len(ranked) > 1:
            found.append((kendalls_w(ranked), len(ranked)))
    if not found:
        nothing = Estimate(np.nan, np.nan, np.nan)
        return Agreement(nothing, np.nan, np.nan, int((~np.isnan(ranks[..., 0])).sum(0).max(initial=0)))
    w, people = np.transpose(found)
    means = _times_drawn(np.random.default_rng(seed), len(w)) @ w / len(w)
    estimate = Estimate(float(w.mean()), *map(float, np.percentile(means, (2.5, 97.5))))
    spearman = float(((people * w - 1) / (people - 1)).mean())
    return Agreement(estimate, float((1 / people).mean()), spearman, int(people.max()))


def kendalls_w(ranked: Float64[np.ndarray, "people runs"]) -> float:
    """Returns Kendall's W of rankings without ties."""
    people, runs = ranked.shape
    sums = ranked.sum(0)
    return float(12 * ((sums - sums.mean()) ** 2).sum() / (people**2 * (runs**3 - runs)))
