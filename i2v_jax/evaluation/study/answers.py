"""Answers as the page saves or sends them: checked against the study's key, and ranks made of them.

A file is `{"format": "i2v study answers 1", "study", "person", "name", "started", "finished", "cases": [{"case",
"shown": [ids from left to right], "seconds", "rankings": {question: [ids, the best first]}}]}`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from i2v_jax.errors import InputError
from i2v_jax.evaluation.study.key import Key
from i2v_jax.hub import read_text

FORMAT = "i2v study answers 1"
PERSON = re.compile(r"[0-9a-f]{16,64}")


@dataclasses.dataclass(frozen=True)
class Answers:
    """A person's answers.

    Attributes:
      person: a random id.
      finished: when, as ISO 8601.
      shown: id of a case -> ids of its videos as they stood.
      rankings: id of a case -> question -> ids of its videos, the best first.
    """

    person: str
    finished: str
    shown: Mapping[str, Sequence[str]]
    rankings: Mapping[str, Mapping[str, Sequence[str]]]


def read_answers(paths: Sequence[str | Path], key: Key, incomplete: bool = False) -> tuple[list[Answers], list[str]]:
    """Reads people's files; of a person's several files the one that was finished last counts.

    Args:
      paths: of the files.
      key: of the study.
      incomplete: count what is there of those that are not complete, in the place of refusing them.

    Returns:
      Answers, a person each; what to say of files that do not count.

    Raises:
      InputError: files that are damaged, of another study or incomplete, all of them in one message.
    """
    latest: dict[str, tuple[Answers, Path]] = {}
    faults, notes = [], []
    for path in map(Path, paths):
        try:
            answers = checked(_json(path), key, incomplete)
        except InputError as error:
            faults.append(f"{path}: {error}")
            continue
        other = latest.get(answers.person)
        if other and answers.finished <= other[0].finished:
            notes.append(f"{path} does not count: {other[1]} is of the same person, and not older.")
            continue
        if other:
            notes.append(f"{other[1]} does not count: {path} is of the same person, and newer.")
        latest[answers.person] = answers, path
    if faults:
        raise InputError("\n".join(faults))
    return [answers for answers, _ in latest.values()], notes


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is no JSON ({error}). Ask for the file again, as the page saved it.") from None


def checked(content: Any, key: Key, incomplete: bool = False) -> Answers:
    """Returns a file's answers.

    Args:
      content: the decoded JSON.
      key: of the study that it should be of.
      incomplete: whether some may lack.

    Raises:
      InputError: no answers, of another study, a case or a video that this one has not, a ranking with ties or gaps,
        or an incomplete one.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError("it holds no answers of a study. Wanted a file that the page saved.")
    if content.get("study") != key.study:
        raise InputError(f"it is of another study ({content.get('study')!r}); the key is of {key.study!r}.")
    person, finished, cases = content.get("person"), content.get("finished"), content.get("cases")
    if not (isinstance(person, str) and PERSON.fullmatch(person) and isinstance(cases, list)):
        raise InputError("it is damaged: wanted 'person' and 'cases', as the page saves them.")
    shown, rankings = {}, {}
    for entry in cases:
        case = entry.get("case") if isinstance(entry, dict) else None
        if not isinstance(case, str) or case not in key.videos or case in rankings:
            raise InputError(f"it is damaged: case {case!r} is not of this study, or stands twice.")
        given = entry.get("rankings")
        if not isinstance(given, dict) or not given.keys() <= key.questions.keys():
            raise InputError(f"it is damaged: case {case} wants rankings by {', '.join(key.questions)}.")
        for name, ids in (("the order shown", entry.get("shown")), *given.items()):
            if not _is_order(ids, key.videos[case]):
                raise InputError(
                    f"it is damaged: case {case}, {name}: {str(ids)[:80]}; wanted each of its {len(key.runs)} videos "
                    "once, without ties."
                )
        shown[case], rankings[case] = entry["shown"], given
    lacking = [
        f"{name} of case {case}" for case in key.cases for name in key.questions if name not in rankings.get(case, {})
    ]
    if lacking and not incomplete:
        raise InputError(
            f"it is incomplete: {len(lacking)} of {len(key.cases) * len(key.questions)} rankings lack, such as "
            f"{lacking[0]}. Let it be finished, or count what is there with --incomplete."
        )
    return Answers(person, finished if isinstance(finished, str) else "", shown, rankings)


def _is_order(ids: Any, wanted: Mapping[str, str]) -> bool:
    return isinstance(ids, list) and all(isinstance(one, str) for one in ids) and sorted(ids) == sorted(wanted)


def ranks(people: Sequence[Answers], key: Key, question: str) -> Float64[np.ndarray, "people cases runs"]:
    """Returns the place of each run's video, 1 the best, in the orders of the key; NaN where there is no answer."""
    found = np.full((len(people), len(key.cases), len(key.runs)), np.nan)
    for i, answers in enumerate(people):
        for j, case in enumerate(key.cases):
            for place, video in enumerate(answers.rankings.get(case, {}).get(question, ())):
                found[i, j, key.runs.index(key.videos[case][video])] = place + 1
    return found


def ranks_by_position(people: Sequence[Answers], key: Key) -> Float64[np.ndarray, "positions"]:
    """Returns the mean place of what stood first, second, ... on the page, over all questions; NaN without answers."""
    found = [
        [ids.index(video) + 1 for video in answers.shown[case]]
        for answers in people
        for case, of_case in answers.rankings.items()
        for ids in of_case.values()
    ]
    return np.mean(found, 0) if found else np.full(len(key.runs), np.nan)
