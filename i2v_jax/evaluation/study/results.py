"""A study's results as people read them, Markdown, and as programs do, JSON."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from i2v_jax.evaluation.study.answers import Answers, ranks, ranks_by_position
from i2v_jax.evaluation.study.key import Key
from i2v_jax.evaluation.study.statistics import Agreement, Estimate, Ranks, agreement, average_ranks, differences

OVERALL = "overall"
"""The mean of a person's ranks by all questions."""


def results(people: Sequence[Answers], key: Key, seed: int = 0) -> dict[str, Any]:
    """Returns all numbers of a study, by question and over all of them.

    Args:
      people: their answers.
      key: of the study.
      seed: of the bootstrap.
    """
    by_question: dict[str, Ranks] = {name: ranks(people, key, name) for name in key.questions}
    agreements = {name: agreement(found, seed) for name, found in by_question.items()}
    if len(by_question) > 1:
        by_question[OVERALL] = np.mean(list(by_question.values()), 0)
    pairs = {name: differences(found, seed) for name, found in by_question.items()}
    return dict(
        study=key.study,
        title=key.title,
        people=len(people),
        cases=len(key.cases),
        runs=key.runs,
        questions=dict(key.questions),
        average_user_ranking={
            name: dict(zip(key.runs, average_ranks(found, seed))) for name, found in by_question.items()
        },
        differences={
            name: {f"{key.runs[i]} − {key.runs[j]}": one for (i, j), one in of_pairs.items()}
            for name, of_pairs in pairs.items()
        },
        agreement=agreements,
        ranks_by_position=ranks_by_position(people, key).tolist(),
        answers=[
            dict(
                person=answers.person,
                ranks={name: _of_cases(ranks([answers], key, name)[0], key) for name in key.questions},
            )
            for answers in people
        ],
    )


def _of_cases(found: np.ndarray, key: Key) -> dict[str, dict[str, float]]:
    return {
        name: dict(zip(key.runs, row.tolist())) for name, row in zip(key.cases.values(), found) if not np.isnan(row[0])
    }


def as_json(found: Any) -> bytes:
    """Returns results as a JSON file; NaN becomes null."""
    return (json.dumps(_plain(found), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, (Estimate, Agreement)):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_markdown(found: dict[str, Any]) -> str:
    """Returns results as Markdown: ranking, agreement, differences, and whether the place on the page counted."""
    columns = found["average_user_ranking"]
    ranking = [
        [run, *(_bold(of_runs[run], _best(of_runs.values())) for of_runs in columns.values())] for run in found["runs"]
    ]
    agreed = [
        [name, str(one.people), _cell(one.w), _number(one.chance), _number(one.spearman)]
        for name, one in found["agreement"].items()
    ]
    apart = [
        [pair, *(_cell(of_pairs[pair]) for of_pairs in found["differences"].values())]
        for pair in next(iter(found["differences"].values()))
    ]
    middle = (len(found["runs"]) + 1) / 2
    places = ", ".join(f"{chr(65 + i)} {_number(one)}" for i, one in enumerate(found["ranks_by_position"]))
    return "\n".join(
        [
            f"{found['people']} people, {found['cases']} cases, {len(found['runs'])} runs ({found['title']})\n",
            f"Average User Ranking, 1 the best, {_number(middle)} by chance; 95 % intervals by a bootstrap over people "
            "and cases.\n",
            _table(["Run", *(f"{name} ↓" for name in columns)], ranking),
            "Agreement between people, by case: Kendall's W with its interval over cases, W by chance, mean rank "
            "correlation of two people.\n",
            _table(["Question", "People", "W", "W by chance", "Correlation"], agreed),
            "Differences of two runs' ranks, person by person and case by case.\n",
            _table(["Difference", *found["differences"]], apart),
            f"Mean rank by place on the page: {places}.",
            *(f"- {name}: {text}" for name, text in found["questions"].items()),
            "",
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _best(of_runs: Any) -> str:
    numbers = [one.value for one in of_runs if not math.isnan(one.value)]
    return _number(min(numbers, default=math.nan))


def _bold(one: Estimate, best: str) -> str:
    return _cell(one).replace(best, f"**{best}**", 1) if _number(one.value) == best != "–" else _cell(one)


def _cell(one: Estimate) -> str:
    return "–" if math.isnan(one.value) else f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
