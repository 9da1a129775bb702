"""The videos that a run makes: of one picture, of a folder of them, or of a CSV's rows; several seeds of each."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk
from i2v_jax.sampling import table
from i2v_jax.sampling.inputs import MAX_SEED
from i2v_jax.sampling.settings import row_settings

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")


@dataclasses.dataclass(frozen=True)
class Job:
    """One video to make.

    Attributes:
      picture: becomes the first frame.
      prompt, negative_prompt: texts.
      seed: 0 .. 2**32 - 1.
      prompt_2, negative_prompt_2: for a second text encoder; None or "": the same.
      name: of the files; None: the picture's.
      changes: settings that are the row's own, key of the config and value.
    """

    picture: Path
    prompt: str
    negative_prompt: str
    seed: int
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    name: str | None = None
    changes: tuple[tuple[str, Any], ...] = ()

    def config(self, config: ConfigDict) -> ConfigDict:
        """Returns a run's config with the job's own values."""
        own = config.copy_and_resolve_references()
        with own.unlocked():
            for key, value in self.changes:
                *groups, leaf = key.split(".")
                group = own
                for name in groups:
                    group = group[name]
                group[leaf] = value
            for key in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "seed"):
                own[key] = getattr(self, key)
            own.image = str(self.picture.absolute())
            if "controls" in own:
                own.controls.pictures = tuple(str(on_disk(source)) for source in own.controls.pictures)
            own.csv = None
        return own


def of_config(config: ConfigDict, given: set[str]) -> list[Job]:
    """Returns the videos that a config asks for: of its picture or folder, or of the CSV's rows where there is none.

    Args:
      config: of a sampling command.
      given: keys that a person set on the command line; only of these it is said that they are not used.

    Raises:
      InputError: nothing to animate, or something about it is wrong; says what.
    """
    check_seed(config.seed)
    if config.variations < 1:
        raise InputError(f"variations={config.variations}: wanted 1 or more.")
    common = {key: config[key] for key in ("negative_prompt", "prompt_2", "negative_prompt_2", "seed")}
    if config.image:
        if config.csv and {"image", "csv"} <= given:
            print(f"animating {config.image}, and not the rows of {config.csv}")
        path = Path(config.image).expanduser()
        jobs = folder_jobs(path, config.prompt, common) if path.is_dir() else [Job(path, config.prompt, **common)]
    elif config.csv:
        if config.prompt and "prompt" in given:
            print(
                f"the prompts are those of {config.csv}, not {config.prompt!r}, which goes with --config.image=PICTURE"
            )
        jobs = read_jobs(config.csv, **common, settings=row_settings(config))
    else:
        raise InputError("Name what to animate: --config.image=PICTURE or FOLDER, or --config.csv=FILE.")
    return varied(jobs, config.variations)


def folder_jobs(folder: Path, prompt: str, common: Mapping[str, Any]) -> list[Job]:
    """Returns a job for each picture of a folder, by name; NAME.txt beside it, where there is one, is its prompt.

    Raises:
      InputError: no pictures, or a prompt that is not UTF-8 text.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if not pictures:
        kinds = Counter(path.suffix or path.name for path in files)
        seen = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files"
        raise InputError(f"{str(folder)!r} holds no pictures ({', '.join(PICTURES)}); it holds {seen}.")
    return [Job(picture, table.text_beside(picture, prompt), **common) for picture in pictures]


def read_jobs(
    path: str | Path,
    negative_prompt: str = "",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    **others: str | None,
) -> list[Job]:
    """Reads a batch from a CSV file: a row each, see `table.read`.

    `negative_prompt`, `seed` and `others` are what a row gets that leaves those cells empty, or all rows when the
    columns are not there. `settings` are further columns there may be, with a value of their types.

    Raises:
      InputError: as of `table.read`.
    """
    defaults = dict(negative_prompt=negative_prompt, seed=seed, **others)
    return [Job(**{**defaults, **row}) for row in table.read(path, settings or {})]


def varied(jobs: Sequence[Job], variations: int) -> list[Job]:
    """Returns each job so many times, with the seeds from its own on."""
    return [
        dataclasses.replace(job, seed=(job.seed + i) % (MAX_SEED + 1)) if i else job
        for job in jobs
        for i in range(variations)
    ]


def names(jobs: Sequence[Job]) -> list[str]:
    """Returns what each job's files are called: its name or the picture's; where several share one, with their seeds
    (`cat-seed5`); what then is still the same is numbered (`cat-2`)."""
    plain = [job.name or job.picture.stem for job in jobs]
    seeds = {name: {job.seed for job, other in zip(jobs, plain) if other == name} for name in set(plain)}
    wanted = [f"{name}-seed{job.seed}" if len(seeds[name]) > 1 else name for name, job in zip(plain, jobs)]
    taken = set()
    for i, name in enumerate(wanted):
        number = 1
        while wanted[i] in taken or (number > 1 and wanted[i] in wanted[i + 1 :]):
            number += 1
            wanted[i] = f"{name}-{number}"
        taken.add(wanted[i])
    return wanted


def second_prompts(jobs: Sequence[Job]) -> dict[str, list[str] | None]:
    """Returns `prompts_2` and `negative_prompts_2` of a batch, None where no row has any."""

    def texts(second: str, first: str) -> list[str] | None:
        given = [getattr(job, second) for job in jobs]
        if not any(given):
            return None
        return [text or getattr(job, first) for text, job in zip(given, jobs)]

    return dict(
        prompts_2=texts("prompt_2", "prompt"),
        negative_prompts_2=texts("negative_prompt_2", "negative_prompt"),
    )


def check_seed(seed: int) -> None:
    """Raises InputError unless the seed is 0..2**32-1."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={seed}: a whole number from 0 to {MAX_SEED} is wanted.")
