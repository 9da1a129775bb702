"""Measures models, on clips whose motion is known or on any: python evaluate.py --config configs/evaluate/default.py

Samples the same clips with each of several settings. Writes a table in the paper's layout (md), every clip's values and
the run's record (json), a plot (png) and the videos side by side (mp4, gif). With `metrics`, videos of any set of
pictures, of several models or of a folder, are measured by them: see docs/evaluation.md and `cli.evaluate_set`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from i2v_jax import commands, media
from i2v_jax.cli import evaluate_set
from i2v_jax.data import small_world
from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.evaluation import direction, flow, metrics, report, sets
from i2v_jax.evaluation.networks import Networks
from i2v_jax.evaluation.runs import read_run
from i2v_jax.families.arithmetic import choose_dtype
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling import jobs, record
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings

DEFAULT = commands.ROOT / "configs" / "evaluate" / "default.py"
SHORT = ("clips", "seed", "steps", "output")
SUFFIXES = (".md", ".json", ".png", ".mp4", ".gif")
PAPERS = ("clip_temp", "flow_score", "warping_error")  # columns of its tables that are measured here
OWN = ("first_frame_psnr", "psnr", "ssim", "direction", "rendered_direction", "background_drift")
FIDELITY = ("clip_temp", "psnr")  # what Table 3's order is about
LEAST = dict(height=16, frames=2, clips=1, first_clip=0, batch_per_device=1, shown=1)  # SSIM looks at 11 pixels


def main() -> None:
    config = commands.read_config(DEFAULT, usage=__doc__, short=SHORT)
    use_compile_cache(config.compilation_cache)
    if config.metrics:
        return evaluate_set.run(config)

    # Whatever can be wrong is found before anything costly begins.
    jobs.check_seed(config.seed)
    base = Settings.of_config(config)
    runs = [read_run(text, config.header, base) for text in config.runs]
    for _, settings in runs:
        settings.check_values(NoiseSchedule(**config.noise_schedule))
    check(config, runs)
    weights = Weights.of_run(config)
    if weights.controls:
        raise InputError(
            f"weights.controls={weights.controls}: clips of the small world have no control pictures. Leave it out."
        )
    weights.check()
    check_schedule(weights, config.noise_schedule)
    mesh = make_mesh(config.mesh)
    estimate = flow.estimator(config.flow, Networks(config.metric_weights, list(mesh.devices.flat)))
    config.dtype = choose_dtype(config.dtype, mesh.devices.flat[0].platform)

    numbers = range(config.first_clip, config.first_clip + config.clips)
    examples = sets.small_world(config.split, numbers, config.frames, config.height, opposite=config.opposite)
    clips = [example.truth for example in examples]
    model = Model.of_config(config, mesh)
    for _, settings in runs:
        settings.check(model)
    embed = None
    if "image_encoder" in model.configs:
        embed = metrics.clip_embedding(model.configs["image_encoder"], model.parameters["image_encoder"])
    pipeline = Pipeline(model, mesh)
    seeds = [(config.seed + number) % 2**32 for number in numbers]

    results, columns = [], []
    for labels, settings in runs:
        videos = animate(pipeline, examples, seeds, settings, config, " ".join(map(str, labels.values())))
        flows = [flow.estimated(video, estimate) for video in videos]
        results.append(report.Run(labels, *measure(videos, flows, clips, embed)))
        columns.append(videos)
    references, videos = [], [clip.video for clip in clips]
    for name, flows in {
        "true clips": [flow.estimated(video, estimate) for video in videos],
        "true clips, true flow": [(clip.flow, clip.visible) for clip in clips],
    }.items():
        labels = dict.fromkeys(runs[0][0], "") | {next(iter(runs[0][0])): name}
        references.append(report.Run(labels, *measure(videos, flows, clips, embed)))
    write(config, results, references, columns, clips)


def animate(
    pipeline: Pipeline,
    examples: Sequence[sets.Example],
    seeds: Sequence[int],
    settings: Settings,
    config: ConfigDict,
    title: str,
) -> list[flow.Video]:
    """The videos of one run, under a bar."""
    size = config.batch_per_device * pipeline.mesh.shape["data"] * pipeline.mesh.shape["fsdp"]
    videos = []
    for first in tqdm(range(0, len(examples), size), desc=title, unit="batch"):
        batch = examples[first : first + size]
        videos += list(
            pipeline(
                [example.picture for example in batch],
                [example.prompt if config.with_prompts else "" for example in batch],
                seeds[first : first + size],
                [config.negative_prompt] * len(batch),
                settings,
            )
        )
    return [media.match_colours(video) for video in videos] if config.match_colours else videos


def check(config: ConfigDict, runs: list[tuple[dict[str, Any], Settings]]) -> None:
    """Raises InputError for what no model can be measured with."""
    if not runs:
        raise InputError("runs=(): wanted one or more.")
    if len({tuple(labels) for labels, _ in runs}) > 1:
        raise InputError("runs: either all have a name, or all set the same settings in the same order.")
    for name in ("height", "width", "frames"):
        if any(getattr(settings, name) != config[name] for _, settings in runs):
            raise InputError(f"runs: {name} is the same for all; set --config.{name}.")
    if config.height != config.width:
        raise InputError(f"height={config.height}, width={config.width}: clips of the small world are square.")
    for name, least in LEAST.items():
        if config[name] < least:
            raise InputError(f"{name}={config[name]}: wanted {least} or more.")
    small_world.SmallWorld(config.split)
    media.check_fps(config.fps)
    media.check_folder(config.output)


def measure(
    videos: Sequence[flow.Video],
    flows: Sequence[tuple[flow.Flows, np.ndarray]],
    clips: Sequence[small_world.RenderedClip],
    embed,
) -> tuple[Mapping[str, list[float]], Mapping[str, list[report.Named]]]:
    """Measures each video against its clip, and names its motions.

    Args:
      flows: of each video, its flow and what stays visible, see `flow.estimated`.
      embed: see `metrics.clip_embedding`; without, there is no CLIPTemp.
    """
    rows, motions = [], {"by flow": [], "by rendering": []}
    for video, (ahead, visible), clip in zip(videos, flows, clips):
        picture = clip.video[0]
        by_flow = direction.motions_by_flow(ahead, clip.masks[:, 0], clip.motions, clip.scene)
        motions["by flow"].append(by_flow)
        motions["by rendering"].append(by_rendering := direction.motions_by_rendering(video, clip.scene))
        row = dict(
            flow_score=metrics.flow_score(ahead),
            warping_error=metrics.warping_error(video, ahead, visible),
            first_frame_psnr=metrics.psnr(video[:1], picture[None]),
            psnr=metrics.psnr(video[1:], clip.video[1:]),
            ssim=metrics.ssim(video[1:], clip.video[1:]),
            direction=direction.direction_accuracy(by_flow),
            rendered_direction=direction.direction_accuracy(by_rendering),
            background_drift=metrics.background_drift(video, clip.still, picture),
        )
        if embed:
            of_picture, *of_frames = embed(np.concatenate([picture[None], video]))
            row["clip_temp"] = metrics.clip_temp(of_picture, np.stack(of_frames))
        rows.append(row)
    return {metric: [row[metric] for row in rows] for metric in rows[0]}, motions


def write(config: ConfigDict, results: list[report.Run], references: list[report.Run], columns, clips) -> None:
    """All files, or none."""
    shown = [[metric for metric in table if metric in results[0].clips] for table in (PAPERS, OWN)]
    several = [metric for table in shown for metric in table]
    everything, seed = [*results, *references], config.seed
    tables = "\n".join(report.as_markdown(results, table, seed, references) for table in shown)
    if len(results) > 1:
        paired = report.differences(results)
        tables += "\n" + "\n".join(report.as_markdown(paired, table, seed, compete=False) for table in shown)
        tables += "\nIntervals without what clips differ by in all runs alike (Cousineau 2005, Morey 2008):\n\n"
        fidelity = [metric for metric in FIDELITY if metric in several]
        tables += report.as_markdown(report.within_clips(results), fidelity, seed)
    tables += "\n" + report.motions_as_markdown(everything, small_world.KINDS)
    swept = [label for label in results[0].labels if len({run.labels[label] for run in results}) > 1]
    numbers = len(swept) == 1 and all(isinstance(run.labels[swept[0]], int | float) for run in results)
    plot = report.lines(results, swept[0], several, seed) if numbers else report.points(results, several, seed)
    count = min(config.shown, len(clips))
    rows = [[clip.video[:1], clip.video, *(videos[i] for videos in columns)] for i, clip in enumerate(clips[:count])]
    titles = ["input", "true clip", *(report.label(run) for run in results)]
    video = report.side_by_side(rows, titles, [clip.caption for clip in clips[:count]])
    about = dict(
        config=json.loads(config.to_json()),
        captions=[clip.caption for clip in clips],
        versions=record.versions(),
        weights=record.hashes(Weights.of_run(config).files()),
    )
    way = ", told the other way" if config.opposite else ""
    note = (
        f"{len(clips)} clips ({config.split}, from number {config.first_clip}{way}) of {config.frames} frames of "
        f"{config.height}x{config.width}; means over clips with 95 % intervals (bootstrap); "
        f"flow: {config.flow}; seed {config.seed}.\n\n"
    )
    contents = (
        (note + tables).encode(),
        report.as_json(everything, about, seed),
        plot,
        media.encode_video(video, config.fps),
        media.encode_gif(video, config.fps),
    )
    stem = media.free_stem(config.output, config.name, SUFFIXES)
    media.write_files({f"{stem}{suffix}": content for suffix, content in zip(SUFFIXES, contents)})
    print(tables)
    print(f"{stem}{'  '.join(SUFFIXES)}")


if __name__ == "__main__":
    commands.run(main)
