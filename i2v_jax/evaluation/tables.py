"""A table of runs and metrics with the published rows beside it, as Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from i2v_jax.evaluation.published import Row
from i2v_jax.evaluation.report import ARROWS, BEST, METRICS, Run, Summary, summarise

PAPER = "(paper)"
"""Behind the labels of published rows."""
LATEX = str.maketrans({"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "~": r"\textasciitilde{}"})


class Cell(NamedTuple):
    """A number, its 95 % interval where it is measured here, and whether it is the best of these."""

    value: float
    interval: tuple[float, float] | None
    is_best: bool


class Table(NamedTuple):
    """Heads of the labels and metrics; rows of labels and cells, those measured here first."""

    heads: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Cell, ...]], ...]
    summaries: tuple[tuple[Summary, ...], ...]


def table_of(runs: Sequence[Run], metrics: Sequence[str], seed: int = 0, published: Sequence[Row] = ()) -> Table:
    """Returns the table of runs over one set.

    Args:
      runs: with the same heads of labels.
      metrics: its columns.
      seed: of the bootstrap.
      published: further rows, with as many labels or fewer.
    """
    heads = tuple(runs[0].labels)
    summaries = [tuple(summarise(run.clips[metric], seed) for metric in metrics) for run in runs]
    best = [_best(metric, [row[i] for row in summaries]) for i, metric in enumerate(metrics)]
    rows = [
        (
            tuple(map(str, run.labels.values())),
            tuple(
                Cell(one.mean, (one.low, one.high), bool(one.clips) and _round(metric, one.mean) == top)
                for metric, one, top in zip(metrics, row, best)
            ),
        )
        for run, row in zip(runs, summaries)
    ]
    for row in published:
        labels = (*row.labels, *[""] * (len(heads) - len(row.labels)))
        labels = (f"{labels[0]} {PAPER}", *labels[1:])
        rows.append((labels, tuple(Cell(row.values.get(metric, math.nan), None, False) for metric in metrics)))
    return Table(heads, tuple(metrics), tuple(rows), tuple(summaries))


def _round(metric: str, value: float) -> float:
    return round(value, METRICS[metric].digits)


def _best(metric: str, column: Sequence[Summary]) -> float | None:
    means = [_round(metric, one.mean) for one in column if one.clips]
    return BEST[METRICS[metric].better](means) if means else None


def _numbers(cell: Cell, metric: str) -> tuple[str, str]:
    """A cell's number and its interval as texts; "–" and "" where there is none."""
    if math.isnan(cell.value):
        return "–", ""
    digits = METRICS[metric].digits
    low_high = "" if cell.interval is None else "[{}, {}]".format(*(f"{end:.{digits}f}" for end in cell.interval))
    return f"{cell.value:.{digits}f}", low_high


def as_markdown(table: Table) -> str:
    """Returns the table in Markdown; the best of what is measured here is bold."""
    heads = [*table.heads, *(METRICS[name].title + ARROWS[METRICS[name].better] for name in table.metrics)]
    lines = [heads, ["---"] * len(heads)]
    for labels, cells in table.rows:
        line = [label.replace("|", r"\|") for label in labels]
        for name, cell in zip(table.metrics, cells):
            number, interval = _numbers(cell, name)
            line.append(f"{f'**{number}**' if cell.is_best else number} {interval}".strip())
        lines.append(line)
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def as_latex(table: Table) -> str:
    """Returns the table as a LaTeX tabular with booktabs' rules, intervals small."""
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$"}
    heads = [head.translate(LATEX) for head in table.heads]
    heads += [METRICS[name].title.translate(LATEX) + arrows[METRICS[name].better] for name in table.metrics]
    columns = "l" * len(table.heads) + "r" * len(table.metrics)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    measured = len(table.summaries)
    for number, (labels, cells) in enumerate(table.rows):
        if number == measured:
            lines.append(r"\midrule")
        line = [label.translate(LATEX) for label in labels]
        for name, cell in zip(table.metrics, cells):
            value, interval = _numbers(cell, name)
            value = "--" if value == "–" else value
            line.append(
                (rf"\textbf{{{value}}}" if cell.is_best else value) + (rf" {{\tiny {interval}}}" if interval else "")
            )
        lines.append(" & ".join(line) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_csv(table: Table) -> str:
    """Returns a row for each number: labels, metric, unit, mean, ends of the interval, videos, where it is from."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*table.heads, "metric", "unit", "mean", "low", "high", "videos", "source"])
    for number, (labels, cells) in enumerate(table.rows):
        is_measured = number < len(table.summaries)
        for i, (name, cell) in enumerate(zip(table.metrics, cells)):
            if math.isnan(cell.value):
                continue
            low, high = cell.interval or ("", "")
            videos = table.summaries[number][i].clips if is_measured else ""
            source = "measured" if is_measured else "I2V-Adapter paper"
            writer.writerow([*labels, name, METRICS[name].unit, cell.value, low, high, videos, source])
    return buffer.getvalue()
