"""`evaluate.py` with `metrics`: any set x runs x metrics. Runs are models, by their configs, or folders of videos.

Videos of models are written first and measured as they lie on the disk, as others' are; what is there is not made
again, what is in the journal not measured again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from i2v_jax import media
from i2v_jax.cli.animate_set import Sampled, Sampler
from i2v_jax.data.decoding import CAUSES, BadClip
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.errors import InputError, nearest
from i2v_jax.evaluation import measures, published, report, runs, sets, tables
from i2v_jax.evaluation.journal import Journal
from i2v_jax.evaluation.measuring import Measured, measure_run
from i2v_jax.evaluation.metric import Metric, SetMetric
from i2v_jax.evaluation.networks import NEEDS, Networks, missing
from i2v_jax.hub import NotHere
from i2v_jax.sampling import jobs, record

SUFFIXES = (".md", ".json", ".tex", ".csv", ".png", ".mp4")
SETS = ("small_world", "pictures", "mjhq30k", "videos")
TILE = 256  # pixels of a video side by side


def run(config: ConfigDict) -> None:
    """Measures what a config asks for and writes tables.

    Raises:
      InputError: something in the config, the set, the runs or the weights is wrong; says what.
    """
    jobs.check_seed(config.seed)
    media.check_folder(config.output)
    media.check_fps(config.fps)
    metrics = measures.chosen(config.metrics)
    rows = published.rows(config.published)
    chosen = [runs.compared(text, config.header) for text in config.runs]
    items = items_of(config, chosen)
    mesh = make_mesh(config.mesh)
    networks = Networks(config.metric_weights, list(mesh.devices.flat))
    sampler = Sampler(config, items, mesh)
    todo = [sampler.checked(one) for one in chosen]
    runs.check_labels([labels for labels, _ in todo])
    metrics, left_out = available(metrics, networks, items)
    if not metrics:
        raise InputError("\n".join((f"metrics={tuple(config.metrics)}: none can be measured.", *left_out)))
    for message in left_out:
        print(message)

    journal = Journal(Path(config.output).expanduser() / f"{config.name}.jsonl")
    measured, columns = [], []
    for labels, source in todo:
        videos = (
            sampler.videos(source) if isinstance(source, Sampled) else runs.videos_of([i.name for i in items], source)
        )
        title = report.label(report.Run(labels, {}))
        with tqdm(total=len(items), desc=f"measuring {title}", unit="video") as bar:
            of_run = measure_run(labels, videos, items, metrics, networks, journal, config.seed, bar.update)
        measured.append(of_run)
        columns.append(videos)
    write(config, items, metrics, measured, columns, rows, left_out)


def items_of(config: ConfigDict, chosen: Sequence[runs.Compared]) -> list[sets.Item]:
    """Returns the set that a config names.

    Raises:
      InputError: there is no such set, or what a set's own function refuses.
    """
    if config.set not in SETS:
        raise InputError(f"set={config.set!r}; known: {', '.join(SETS)}.{nearest(str(config.set), SETS)}")
    if config.set != "small_world" and not config.source and config.set != "videos":
        raise InputError(f"set={config.set}: name its folder, --config.source=FOLDER.")
    if config.set == "small_world":
        numbers = range(config.first_clip, config.first_clip + config.clips)
        examples = sets.small_world(config.split, numbers, config.frames, config.height, opposite=config.opposite)
        items = sets.of_small_world(examples, numbers)
    elif config.set == "mjhq30k":
        items = sets.mjhq30k(config.source, config.count, config.set_seed, config.category)
    elif config.set == "pictures":
        items = sets.pictures(config.source)
    else:
        items = of_videos(config, chosen)
    if config.set in ("pictures", "videos") and config.count:
        items = items[: config.count]
    return sets.with_truths(items, config.truths) if config.truths else items


def of_videos(config: ConfigDict, chosen: Sequence[runs.Compared]) -> list[sets.Item]:
    """Returns the videos of the runs' folders as a set; pictures and prompts of `config.source` go with their names."""
    folders = [one.videos for one in chosen]
    if not all(folders) or not folders:
        raise InputError("set=videos: every run is a folder of videos, 'name: videos=FOLDER'.")
    known = {item.name: item for item in sets.pictures(config.source)} if config.source else {}
    names = dict.fromkeys(name for folder in folders for name in sets.videos_in(folder))
    if known and not names.keys() & known.keys():
        raise InputError(f"{config.source}: no picture is called as a video, such as {next(iter(names))!r}.")
    return [known.get(name, sets.Item(name)) for name in names]


def available(
    metrics: Sequence[Metric], networks: Networks, items: Sequence[sets.Item]
) -> tuple[list[Metric], list[str]]:
    """Loads the networks that metrics need; returns the metrics that can be, and what to say of the others.

    Those lack weights, or are of a whole set that has no true videos.
    """
    absent, messages = set(), []
    if not any(item.truth for item in items):
        alone = [metric for metric in metrics if isinstance(metric, SetMetric) and "truth" in metric.wants]
        metrics = [metric for metric in metrics if metric not in alone]
        messages += [
            f"not measured: {metric.title}, which compares a set of videos with true ones, of which there are none. "
            "Give their folder as --config.truths=FOLDER, by the names of the set."
            for metric in alone
        ]
    for name in NEEDS:
        wanting = [metric.title for metric in metrics if name in metric.networks]
        if not wanting:
            continue
        reason = ""
        if networks.has(name):
            try:
                networks.load(name)
                continue
            except NotHere as error:
                reason = f" ({error})"
        absent.add(name)
        messages.append(missing(name, wanting) + reason)
    return [metric for metric in metrics if not absent & set(metric.networks)], messages


def write(
    config: ConfigDict,
    items: Sequence[sets.Item],
    metrics: Sequence[Metric],
    measured: Sequence[Measured],
    columns: Sequence[Mapping[str, Path]],
    rows: Sequence[published.Row],
    left_out: Sequence[str],
) -> None:
    """All files, or none."""
    names, results = [metric.name for metric in metrics], [one.run for one in measured]
    table = tables.table_of(results, names, config.seed, rows)
    text = f"{note(config, items)}\n\n{tables.as_markdown(table)}"
    if len(results) > 1:
        text += "\n" + report.as_markdown(report.differences(results), names, config.seed, compete=False)
    text += "".join(f"\n- {line}" for line in (*remarks(measured, metrics), *left_out)) + "\n"
    about = dict(
        config=json.loads(config.to_json()),
        items=[dict(name=item.name, prompt=item.prompt) for item in items],
        sources={metric.name: metric.source for metric in metrics},
        versions=record.versions(),
        not_measured={report.label(one.run): dict(one.causes) for one in measured},
    )
    contents = (
        text.encode(),
        report.as_json(results, about, config.seed),
        tables.as_latex(table).encode(),
        tables.as_csv(table).encode(),
        report.points(results, names, config.seed),
        side_by_side(config, items, results, columns),
    )
    stem = media.free_stem(config.output, config.name, SUFFIXES)
    media.write_files({f"{stem}{suffix}": content for suffix, content in zip(SUFFIXES, contents)})
    print(text)
    print(f"{stem}{'  '.join(SUFFIXES)}")


def note(config: ConfigDict, items: Sequence[sets.Item]) -> str:
    """What the table is of, in a line."""
    source = f" ({config.source})" if config.source and config.set != "small_world" else ""
    return (
        f"{len(items)} of {config.set}{source}; means with 95 % intervals (bootstrap over videos), seed {config.seed}. "
        "Rows of the paper are on its own scales, see docs/evaluation.md."
    )


def remarks(measured: Sequence[Measured], metrics: Sequence[Metric]) -> list[str]:
    """What a reader must know: videos that were not measured, by cause; metrics that lacked something; sizes."""
    lines = []
    for one in measured:
        name = report.label(one.run)
        lines += [f"{name}: {count} not measured: {cause} ({CAUSES[cause]})" for cause, count in one.causes.items()]
        for metric in metrics:
            for reason, count in one.lacking[metric.name].items():
                lines.append(f"{name}: {metric.title} not of {count}: {reason}")
    for metric in metrics:
        if not isinstance(metric, SetMetric):
            continue
        counts = sorted({one.run.clips[metric.name].count for one in measured} - {0})
        if counts and counts[0] < metric.advised:
            lines.append(
                f"{metric.title} is of {' or '.join(map(str, counts))} videos, published ones of {metric.advised} or "
                "more: of fewer it is too high, and compares only with others of as many."
            )
    sizes = {size for one in measured for size in one.sizes}
    if len(sizes) > 1:
        shown = ", ".join(f"{frames} frames of {height}x{width}" for frames, height, width in sorted(sizes)[:4])
        lines.append(f"Videos are of {len(sizes)} lengths and sizes ({shown}): numbers in pixels do not compare.")
    return lines


def side_by_side(
    config: ConfigDict, items: Sequence[sets.Item], results: Sequence[report.Run], columns: Sequence[Mapping[str, Path]]
) -> bytes:
    """The first items whose video every run has, a row each, as an mp4."""
    grey = np.full((1, TILE, TILE, 3), 200, np.uint8)
    rows, captions = [], []
    for item in items:
        if len(rows) == config.shown:
            break
        try:
            videos = [_small(sets.all_frames(column[item.name])) for column in columns if item.name in column]
        except BadClip:
            continue
        if len(videos) == len(columns):
            rows.append([item.picture()[None] if item.picture else grey, *videos])
            captions.append(item.prompt or item.name)
    titles = ["input", *map(report.label, results)]
    rows = rows or [[grey] * len(titles)]
    return media.encode_video(report.side_by_side(rows, titles, captions or ["no video of all runs"], TILE), config.fps)


def _small(video: media.Frames) -> media.Frames:
    """A video at the size at which it is shown, so that several long ones fit into memory."""
    return np.stack([media.fit_picture(frame, TILE, TILE, "stretch") for frame in video])
