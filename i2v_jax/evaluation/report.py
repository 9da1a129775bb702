"""From measurements to what people read: means with intervals, tables as in the paper, plots, videos in a grid."""

import io
import itertools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from i2v_jax.evaluation import measures
from i2v_jax.evaluation.flow import Video
from i2v_jax.evaluation.together import Together
from i2v_jax.media import fit_picture


class Metric(NamedTuple):
    """How a metric is shown: title, unit, which is better ("higher" or "lower"), digits after the point."""

    title: str
    unit: str
    better: str
    digits: int


SMALL_WORLD = {
    "clip_temp": Metric("CLIPTemp", "cosine similarity", "higher", 4),
    "flow_score": Metric("FlowScore", "pixels per frame", "higher", 4),
    "warping_error": Metric("WarpingError", "thousandths", "lower", 3),
    "first_frame_psnr": Metric("PSNR of frame 1", "dB", "higher", 2),
    "psnr": Metric("PSNR", "dB", "higher", 2),
    "ssim": Metric("SSIM", "1", "higher", 3),
    "direction": Metric("Direction accuracy", "share of motions", "higher", 3),
    "rendered_direction": Metric("Direction by rendering", "share of motions", "higher", 3),
    "background_drift": Metric("Background drift", "of 255", "lower", 2),
}
METRICS = {
    **SMALL_WORLD,
    **{
        name: Metric(metric.title, metric.unit, metric.better, metric.digits)
        for name, metric in measures.METRICS.items()
        if name not in SMALL_WORLD
    },
}
"""How each metric is shown: those of the small world, and those of any video."""
ARROWS = {"higher": " ↑", "lower": " ↓"}
BEST = {"higher": max, "lower": min}
ACROSS = 4  # panels of a plot in a row


Named = Sequence[tuple[str, str]]  # a clip's motions: of its caption, and what the video shows


class Run(NamedTuple):
    """What was measured of one model or setting.

    Attributes:
      labels: what it differs from the others by, such as {"t0": 0.8, "p": 1.0} or {"Model Design": "Full model"}; the
        table's first columns.
      clips: metric -> one number per clip, NaN where it has no meaning; or what is one number of all clips together.
      motions: of each clip, by each method, such as "by flow".
    """

    labels: Mapping[str, Any]
    clips: Mapping[str, Sequence[float] | Together]
    motions: Mapping[str, Sequence[Named]] = {}


def label(run: Run) -> str:
    """Returns a run's labels in one line: a name as it is, numbers with what they are of."""
    return ", ".join(
        value if isinstance(value, str) else f"{key}={value}" for key, value in run.labels.items() if value != ""
    )


class Summary(NamedTuple):
    """A mean over clips, the 95 % interval it lies in, and how many clips there are."""

    mean: float
    low: float
    high: float
    clips: int


def summarise(values: Sequence[float] | Together, seed: int = 0, resamples: int = 10_000) -> Summary:
    """Returns mean and 95 % confidence interval by the bootstrap over clips (percentiles; Efron 1979).

    Runs over the same clips are resampled alike when the seed is the same.

    Args:
      values: one per clip, NaNs are left out; or of all clips together, see `Together.summary`.
      seed, resamples: of the bootstrap.
    """
    if isinstance(values, Together):
        return Summary(*values.summary(seed))
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return Summary(math.nan, math.nan, math.nan, 0)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return Summary(float(values.mean()), float(low), float(high), len(values))


def as_json(runs: Sequence[Run], about: Mapping[str, Any], seed: int = 0) -> bytes:
    """Returns a JSON file with every clip's values and their summaries; NaN becomes null.

    Args:
      about: what else to keep, such as config, versions, hashes of weights.
      seed: of the bootstrap.
    """
    used = [metric for metric in METRICS if any(metric in run.clips for run in runs)]
    content = dict(
        metrics={metric: METRICS[metric]._asdict() for metric in used},
        runs=[
            dict(
                labels=dict(run.labels),
                summary={metric: summarise(values, seed)._asdict() for metric, values in run.clips.items()},
                clips={metric: np.asarray(run.clips[metric], float).tolist() for metric in per_clip(run)},
                told_and_seen={how: [list(map(list, pairs)) for pairs in named] for how, named in run.motions.items()},
            )
            for run in runs
        ],
        **about,
    )
    return (json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n").encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def per_clip(run: Run) -> list[str]:
    """Returns the metrics of which each clip has a number."""
    return [metric for metric, values in run.clips.items() if not isinstance(values, Together)]


def differences(runs: Sequence[Run]) -> list[Run]:
    """What each run has more than each one before, clip by clip.

    Clips differ from each other more than runs do, so that the means of these have narrower intervals. One that does
    not hold 0 tells two runs apart, even where their own intervals overlap.
    """
    return [
        Run(
            {"Difference": f"{label(run)} − {label(other)}"},
            {name: _less(values, other.clips[name]) for name, values in run.clips.items() if name in other.clips},
        )
        for other, run in itertools.combinations(runs, 2)
    ]


def _less(values: Sequence[float] | Together, others: Sequence[float] | Together) -> np.ndarray | Together:
    return values - others if isinstance(values, Together) else np.subtract(values, others)


def within_clips(runs: Sequence[Run]) -> list[Run]:
    """The runs without what clips differ by in all of them, whose intervals can be compared.

    A clip's mean over the runs is replaced by the mean of all (Cousineau 2005), and what is left is widened by
    sqrt(runs / (runs - 1)), as the former takes from it (Morey 2008). Means stay; that some clips are harder than
    others no longer widens the intervals, which so say nothing of other clips' level.

    Args:
      runs: two or more, of the same clips; metrics of all clips together are left out.
    """
    result = [Run(run.labels, {}) for run in runs]
    for name in per_clip(runs[0]):
        values = np.array([run.clips[name] for run in runs], np.float64)
        means = np.array([summarise(of_run).mean for of_run in values])[:, None]
        left = values - means - (values - means).mean(0)
        for run, row in zip(result, means + math.sqrt(len(runs) / (len(runs) - 1)) * left):
            run.clips[name] = row
    return result


def as_markdown(
    runs: Sequence[Run], metrics: Sequence[str], seed: int = 0, references: Sequence[Run] = (), compete: bool = True
) -> str:
    """Returns a table in the layout of the paper's Tables 1 to 3: a row for each run, its labels, then the metrics.

    A cell is the mean with its 95 % interval; the best mean of a column is bold, if runs compete. References, such as
    what is measured on true clips, are last rows that do not.
    """
    competing, runs = len(runs) if compete else 0, [*runs, *references]
    heads = [*runs[0].labels, *(METRICS[metric].title + ARROWS[METRICS[metric].better] for metric in metrics)]
    rows = [list(map(str, run.labels.values())) for run in runs]
    for metric in metrics:
        column = [summarise(run.clips[metric], seed) for run in runs]
        means = [round(summary.mean, METRICS[metric].digits) for summary in column[:competing] if summary.clips]
        best = BEST[METRICS[metric].better](means) if means else None
        for i, (row, summary) in enumerate(zip(rows, column)):
            row.append(_cell(summary, METRICS[metric].digits, best if i < competing else None))
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(summary: Summary, digits: int, best: float | None) -> str:
    if not summary.clips:
        return "–"
    mean, low, high = (f"{value:.{digits}f}" for value in summary[:3])
    return f"{f'**{mean}**' if float(mean) == best else mean} [{low}, {high}]"


def motions_as_markdown(runs: Sequence[Run], kinds: Sequence[str]) -> str:
    """Returns tables of how many of the motions of each kind videos show, one for each method.

    A column is of a run.

    Args:
      kinds: the rows, of which those in no caption are left out.
    """
    tables = []
    for how in runs[0].motions:
        lines = [[f"Told, and seen {how}", *map(label, runs)], ["---"] * (1 + len(runs))]
        for kind in kinds:
            shown = [[found for named in run.motions[how] for name, found in named if name == kind] for run in runs]
            if shown[0]:
                lines.append([kind, *(f"{names.count(kind)} of {len(names)}" for names in shown)])
        tables.append("".join("| " + " | ".join(line) + " |\n" for line in lines))
    return "\n".join(tables)


def points(runs: Sequence[Run], metrics: Sequence[str], seed: int = 0) -> bytes:
    """Returns a PNG with each metric of each run: its mean with two 95 % intervals.

    The thin one is over clips, the thick one without what clips differ by in all runs alike, see `within_clips`.
    """
    names = [label(run) for run in runs]
    figure, panels = _panels(metrics, 1.2 + 0.35 * len(runs))
    thick = "; thick: of the same without what clips differ by in all runs alike" if len(runs) > 1 else ""
    figure.suptitle(f"thin: 95 % intervals of means over clips{thick}", fontsize="small")
    for i, (panel, metric) in enumerate(zip(panels, metrics)):
        for some, width in ((runs, 1), (within_clips(runs) if len(runs) > 1 else [], 4)):
            for row, run in enumerate(run for run in some if metric in run.clips):
                means, errors = _means_errors([run], metric, seed)
                panel.errorbar(means, [row], xerr=errors, fmt="o", color=f"C{row}", elinewidth=width)
        panel.set_yticks(range(len(runs)), names if i % ACROSS == 0 else [""] * len(runs))
        panel.set_ylim(len(runs) - 0.5, -0.5)
        panel.grid(axis="x", alpha=0.4)
        panel.set_xlabel(_axis(metric))
    return _png(figure)


def lines(runs: Sequence[Run], over: str, metrics: Sequence[str], seed: int = 0) -> bytes:
    """Returns a PNG with a line of each metric over a number among the runs' labels, with 95 % intervals."""
    runs = sorted(runs, key=lambda run: run.labels[over])
    figure, panels = _panels(metrics, 3)
    for panel, metric in zip(panels, metrics):
        means, errors = _means_errors(runs, metric, seed)
        panel.errorbar([run.labels[over] for run in runs], means, errors, marker="o", capsize=3)
        panel.set_xlabel(over)
        panel.set_ylabel(_axis(metric))
    return _png(figure)


def _panels(metrics: Sequence[str], height: float):
    """A panel for each metric, in rows of `ACROSS`."""
    across, down = min(ACROSS, len(metrics)), -(-len(metrics) // ACROSS)
    figure = Figure(figsize=(1 + 3 * across, height * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels[len(metrics) :]:
        panel.remove()
    return figure, panels[: len(metrics)]


def _means_errors(runs: Sequence[Run], metric: str, seed: int):
    summaries = [summarise(run.clips[metric], seed) for run in runs]
    errors = [(summary.mean - summary.low, summary.high - summary.mean) for summary in summaries]
    return [summary.mean for summary in summaries], np.transpose(errors)


def _axis(metric: str) -> str:
    shown = METRICS[metric]
    return f"{shown.title}{ARROWS[shown.better]}" + ("" if shown.unit == "1" else f"\n({shown.unit})")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def side_by_side(
    rows: Sequence[Sequence[Video]], columns: Sequence[str], captions: Sequence[str], tile: int = 128, gap: int = 4
) -> UInt8[np.ndarray, "f H W 3"]:
    """Lays videos out in a grid, with a title over each column and a caption over each row.

    Args:
      rows: videos of any sizes; each is scaled to `tile` pixels square. One that ends earlier, such as a picture as a
        video of one frame, stays at its last frame.
      columns: titles; `captions`: one per row. What does not fit is cut off.
      tile, gap: pixels.

    Returns:
      Frames with even sides, as H.264 wants them.
    """
    font, line = ImageFont.load_default(12), 16
    letters = max(1, int(tile / font.getlength("n")))
    titles = [textwrap.wrap(title, letters) for title in columns]
    top = line * max(map(len, titles), default=0) + gap
    step = line + tile + gap
    height, width = top + len(rows) * step, gap + len(columns) * (tile + gap)
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((gap + column * (tile + gap), gap), "\n".join(title), "black", font)
    for row, caption in enumerate(captions):
        draw.text((gap, top + row * step), caption, "black", font)
    frames = np.repeat(np.asarray(sheet)[None], max(len(video) for row in rows for video in row), 0)
    for i, row in enumerate(rows):
        for j, video in enumerate(row):
            scaled = np.stack([fit_picture(frame, tile, tile, "stretch") for frame in video])
            y, x = top + i * step + line, gap + j * (tile + gap)
            frames[:, y : y + tile, x : x + tile] = scaled[np.minimum(np.arange(len(frames)), len(video) - 1)]
    return frames
