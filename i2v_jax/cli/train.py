"""Trains an adapter, or any part of a model: python train.py --config configs/train/sd15_stage1.py

Started again with the same folder, a run goes on from its last checkpoint. The same command is run on every host.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import multihost

from i2v_jax import commands, media
from i2v_jax.data import loader as clips
from i2v_jax.data import stored
from i2v_jax.data.sources import open_source
from i2v_jax.devices import processes
from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.devices.mesh import make_mesh, on_this_host, put, put_batch, replicated, use_mesh
from i2v_jax.encoders.text import tokenize_captions
from i2v_jax.errors import InputError
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.family import family_of
from i2v_jax.families.model import assemble_config, load_tokenizers
from i2v_jax.families.weights import Weights
from i2v_jax.hub import on_disk
from i2v_jax.sampling import preview
from i2v_jax.sampling.controls import preprocess
from i2v_jax.training import early_stop, held_out, placement, setup
from i2v_jax.training.checkpoints import Checkpoints
from i2v_jax.training.fingerprint import fingerprint
from i2v_jax.training.flops import count_flops
from i2v_jax.training.lock import lock
from i2v_jax.training.monitor import Monitor
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.preemption import Preemption
from i2v_jax.training.resume import changes
from i2v_jax.training.step import State
from i2v_jax.training.summary import (
    describe_clips,
    describe_curves,
    describe_weights,
    duration,
    held_out_share,
    write_config,
)
from i2v_jax.tree import unflatten
from i2v_jax.weights import mivas
from i2v_jax.weights.save import save_own
from i2v_jax.weights.trained_for import TrainedFor

DEFAULT = commands.ROOT / "configs" / "train" / "sd15_stage1.py"
SHORT = ("data.source", "folder", "steps", "batch", "optimizer.learning_rate", "seed")


class Run(NamedTuple):
    """What a run works with."""

    config: ConfigDict
    folder: Path
    mesh: jax.sharding.Mesh
    loader: clips.Loader
    checkpoints: Checkpoints
    monitor: Monitor
    preview: preview.Preview | None
    held_out: held_out.HeldOutLoss | None
    early_stop: early_stop.EarlyStop | None
    preemption: Preemption
    about: dict[str, Any]  # what checkpoints keep beside the arrays
    configs: Mapping[str, Any]  # of the networks


def main() -> None:
    config = commands.read_config(DEFAULT, usage=__doc__, short=SHORT)
    use_compile_cache(config.compilation_cache, least_seconds=None)

    # Devices.
    processes.join(**config.distributed)
    preemption = Preemption(unsaved=False)
    mesh = make_mesh(config.mesh)
    check(config, mesh)
    folder = on_disk(config.folder)
    _lock = lock(folder)  # until this ends
    keep_held_out(config, folder)

    # Networks, and what of them is trained.
    weights = Weights.of_config(config.weights)
    if config.loss == "denoising":
        check_schedule(weights, config.noise_schedule, fetched=True)
    assembled = assemble_config(config, mesh.devices.flat[0])
    configs = {name: part.config for name, part in assembled.items()}
    family = family_of(configs["unet"])
    tokenizers = load_tokenizers(weights, family)
    setup.check_size(config, configs["vae"])
    on_stored = stored.is_stored(config.data.source)
    chosen = placement.trained_paths(assembled, config.train)
    if on_stored:
        stored.check_frozen(sorted(chosen))
    tokenize = functools.partial(tokenize_captions, tokenizers)
    empty = stored.read_empty(config.data.source) if on_stored else jax.tree.map(lambda ids: ids[0], tokenize([""]))
    loss, optimizer, step = setup.make(config, configs, empty, weights.zeros_for_empty_prompt(family))
    loader, open_held_out = open_clips(config, configs, tokenize, folder)

    # Weights, trained and frozen.
    say(f"loading weights onto {mesh.devices.size} {mesh.devices.flat[0].device_kind}")
    if on_stored and not config.samples.every_steps:  # then nothing is left to encode
        assembled = {"unet": assembled["unet"]}
    trained, frozen = placement.load_weights(assembled, chosen, config, mesh)
    say(describe_weights(trained, frozen))

    # The state: the last checkpoint's, or new.
    used = {path: leaf for path, leaf in frozen.items() if path.startswith("unet/") or not on_stored}
    keep, best = config.checkpoints.keep, config.checkpoints.best
    checkpoints = Checkpoints(folder / "checkpoints", keep=keep, best=best, configs=configs)
    about = dict(config=json.loads(config.to_json_best_effort()), frozen=fingerprint(used), seed=config.seed)
    abstract = placement.abstract_state(config, unflatten(trained), optimizer, mesh)
    state, before = first_state(config, trained, optimizer, abstract, checkpoints, loader, about)
    del trained, used
    if jax.process_index() == 0:
        write_config(folder, about["config"])
    for line in describe_clips(
        len(loader.source), held_out.count(loader.source), config.steps, config.batch, int(state.step)
    ):
        say(line)
    say(describe_curves(folder / "curves"))

    # The loop.
    monitor = Monitor(
        folder / "curves",
        first_step=int(state.step),
        steps=config.steps,
        every=config.log.every_steps,
        clips=config.batch,
        seconds=before.get("seconds", 0.0),
    )
    monitor.last_good = checkpoints.describe_latest()
    samples = preview.Preview(config, configs, tokenizers, frozen, mesh) if config.samples.every_steps else None
    of_held_out = None
    if open_held_out:
        wait = functools.partial(wait_for_all, "held-out loss compiled")
        of_held_out = held_out.HeldOutLoss(open_held_out, config, loss, mesh, wait)
    ending = early_stop.of_config(config, folder, int(state.step)) if of_held_out else None
    of_run = config, folder, mesh, loader, checkpoints, monitor, samples, of_held_out, ending, preemption, about
    run = Run(*of_run, configs)
    state, stopped = loop(run, state, frozen, placement.jit_step(step, abstract, mesh))
    monitor.close()
    loader.close()
    if stopped:
        say(f"stopped by a signal after step {int(state.step)}; the same command goes on from there")
        sys.exit(preemption.exit_code)
    write_weights(state, config, configs, mesh, run.early_stop, len(loader.source))
    say(f"{int(state.step):,} steps in {duration(monitor.seconds())}, compiling, checkpoints and samples included")


def say(*words: Any) -> None:
    """Prints on the first process."""
    if jax.process_index() == 0:
        print(*words)


def keep_held_out(config: ConfigDict, folder: Path) -> None:
    """Sets the share of clips that are held out to what a run that is gone on with began with."""
    has_checkpoints = any((folder / "checkpoints").glob("[0-9]*"))
    share = held_out_share(folder, config.held_out.share, has_checkpoints)
    if share != config.held_out.share:
        say(f"held_out.share stays {share}, as the run in {folder} began; {config.held_out.share} wants another folder")
        config.held_out.share = float(share)


def open_clips(
    config: ConfigDict, configs: Mapping[str, Any], tokenize: Callable, folder: Path
) -> tuple[clips.Loader, Callable[[int], clips.Loader] | None]:
    """The clips of this process to train on; and what opens those that are held out, if any are, in such batches."""
    family, with_image_tokens = family_of(configs["unet"]), "image_encoder" in configs
    data = dict(config.data) | dict(bad_list=config.data.bad_list or str(folder / "bad_clips.{host}.jsonl"))
    make = functools.partial(
        clips.make,
        host=jax.process_index(),
        hosts=jax.process_count(),
        tokenize=tokenize,
        control=preprocess.find(config.control.process) if config.control.process else None,
        wanted=family.stored_names(with_image_tokens),
        **setup.reading(config, configs),
    )
    batch = config.batch // jax.process_count()
    if not config.held_out.share:
        return make(data, batch, seed=config.seed), None
    kept, held = held_out.split(open_source(config.data.source, config.data.videos), config.held_out.share)
    some = [functools.partial(held_out.Chosen, numbers=numbers) for numbers in (kept, held[: config.held_out.clips])]
    loader = make(data, batch, seed=config.seed, choose=some[0])
    return loader, functools.partial(make, data | dict(max_bad=1.0), seed=held_out.SEED, choose=some[1])


def first_state(
    config, trained, optimizer, abstract: State, checkpoints, loader, about
) -> tuple[State, Mapping[str, Any]]:
    """The last checkpoint's state and what was kept beside it, with the loader where that stood; a new state and
    nothing where there is none."""
    folder = checkpoints.folder.parent
    if checkpoints.latest() is None:
        say(f"a new run in {folder}")
        return placement.new_state(trained, optimizer, config, abstract), {}
    state, positions, before = checkpoints.restore(abstract, about)
    loader.restore(positions)
    say(f"going on in {folder} from step {int(state.step)}")
    for line in changes(before["config"], about["config"]):
        say(f"going on with {line}")
    return state, before


def loop(run: Run, state: State, frozen: Mapping[str, jax.Array], step: Callable) -> tuple[State, bool]:
    """Trains to the end, or until a signal comes; returns the state, and whether a signal came."""
    config, monitor = run.config, run.monitor
    key = put(np.asarray(jax.random.key_data(jax.random.key(config.seed))), replicated(run.mesh))
    key = jax.random.wrap_key_data(key)
    first, stopping = int(state.step), False
    rate = Optimizer(**config.optimizer).rate(config.steps)
    # whatever ends the loop, the checkpoint that is being written is finished
    with use_mesh(run.mesh, config.rules), contextlib.closing(run.checkpoints):
        is_over = run.early_stop and run.early_stop.is_over
        for number in range(first + 1, config.steps + 1) if not is_over else ():
            began = time.perf_counter()
            batch, ids = next(run.loader)
            waited = time.perf_counter() - began
            batch = put_batch(batch, run.mesh)
            if number == first + 1:
                step = compiled(run, step, state, frozen, batch, key)
            state, metrics = step(state, frozen, batch, key)
            run.preemption.unsaved = True
            monitor.step(number, metrics, ids, waited, learning_rate=float(rate(number - 1)))

            stopping = run.preemption.reached(number)
            if stopping or number % config.checkpoints.every_steps == 0 or number == config.steps:
                save_checkpoint(run, number, state)
            if stopping:
                break
            if run.preview and (number % config.samples.every_steps == 0 or number == config.steps):
                monitor.pause("sampling")
                run.preview.show(number, state.average or state.trained, run.folder / "samples", monitor)
                wait_for_all(f"sampled {number}")
                monitor.resume()
            if run.held_out and (number % config.held_out.every_steps == 0 or number == config.steps):
                if measure_held_out(run, number, state, frozen):
                    if number % config.checkpoints.every_steps and number < config.steps:
                        save_checkpoint(run, number, state)
                    break
    run.preemption.unsaved = False
    return state, stopping


def compiled(run: Run, step: Callable, *arguments: Any) -> Callable:
    """The step compiled, once every process has done so; its operations are counted."""
    run.monitor.pause("compiling, once")
    traced = step.trace(*arguments)
    run.monitor.flops = count_flops(traced.jaxpr) / run.mesh.size
    step = traced.lower().compile()
    wait_for_all("compiled")
    run.monitor.resume()
    return step


def save_checkpoint(run: Run, number: int, state: State) -> None:
    """Begins to write a checkpoint, with the data's positions of all processes."""
    run.monitor.pause()
    report = run.loader.report()
    run.monitor.counts(number, {"good": report["good"], **report["bad"]})
    positions = processes.gather_json(run.loader.state())
    about = run.about | dict(seconds=run.monitor.seconds())
    run.checkpoints.save(number, state, positions, about, metric=run.monitor.mean_loss())
    run.monitor.last_good = f"step {number} in {run.checkpoints.folder}"
    run.monitor.resume()


def write_weights(
    state: State,
    config: ConfigDict,
    configs: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    ending: early_stop.EarlyStop | None = None,
    clips: int = 0,
) -> None:
    """Writes the trained weights, those best for held-out clips where these decide, and their average where one is
    kept."""
    folder, best = on_disk(config.folder), ending and ending.best
    about = Writing(config, configs, mesh, clips)
    if best is None:
        save(about, folder / "trained.safetensors", state.trained, config.get("steps"))
    elif jax.process_index() == 0:
        say(f"step {best} is the best for clips that are held out, with a loss of {ending.losses[best]:.4f}")
        media.write_files({folder / "trained.safetensors": (folder / early_stop.BEST).read_bytes()}, overwrite=True)
        print(folder / "trained.safetensors")
    if state.average is not None:
        save(about, folder / "average.safetensors", state.average, config.get("steps"))


class Writing(NamedTuple):
    """What weights are written with."""

    config: ConfigDict
    configs: Mapping[str, Any]
    mesh: jax.sharding.Mesh
    clips: int  # that they were trained on


def save(
    about: Writing, path: Path, weights: Mapping[str, jax.Array], step: int | None, loss: float | None = None
) -> None:
    """Writes weights; their metadata tell the noise schedule and, of a MIVA, how it was trained. Every process must
    call it."""
    config, schedule = about.config, about.config.noise_schedule
    told = TrainedFor(schedule.prediction_type, schedule.zero_terminal_snr)
    metadata = told.metadata() if config.loss == "denoising" else {}
    if config.get("miva", {}).get("rank"):
        metadata |= mivas.metadata_of(config, about.clips, step, loss)
    whole = on_this_host(weights, about.mesh)
    if jax.process_index() == 0:
        save_own(path, unflatten(jax.device_get(whole)), about.configs, metadata)
        print(path)


def measure_held_out(run: Run, number: int, state: State, frozen: Mapping[str, jax.Array]) -> bool:
    """Measures the clips that are held out; returns whether the run ends for want of gain."""
    run.monitor.pause("measuring clips that are held out")
    values, is_over = run.held_out(state, frozen), False
    run.monitor.held_out_loss(number, values)
    if run.early_stop:
        about, loss = Writing(run.config, run.configs, run.mesh, len(run.loader.source)), values["loss"]
        keep = functools.partial(save, about, weights=state.trained, step=number, loss=loss)
        is_over = run.early_stop.measured(number, loss, keep, jax.process_index() == 0)
    run.monitor.resume()
    return is_over


def check(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError for what can be told before anything costly begins."""
    for name in ("steps", "batch", "accumulate"):
        if config[name] < 1:
            raise InputError(f"{name}={config[name]}: wanted 1 or more.")
    for name in ("checkpoints", "log"):
        if config[name].every_steps < 1:
            raise InputError(f"{name}.every_steps={config[name].every_steps}: wanted 1 or more.")
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch % (shares * config.accumulate):
        parts = f"{shares} devices" + (f" x accumulate={config.accumulate}" if config.accumulate > 1 else "")
        near = max(1, round(config.batch / shares / config.accumulate)) * shares * config.accumulate
        raise InputError(f"batch={config.batch} cannot be shared out to {parts}; wanted a multiple, such as {near}.")
    check_control(config)
    preview.check(config.samples)
    held_out.check(config.held_out)


def check_control(config: ConfigDict) -> None:
    """Raises InputError where a ControlNet is to be trained, and there is nothing to train it on, or the reverse."""
    control = config.control
    if not control.process:
        if control.source:
            raise InputError(
                f"control.source={control.source!r} without control.process: wanted what makes the control pictures of "
                "clips, such as --config.control.process=canny."
            )
        return
    preprocess.check_on(control.process, config.data.frames, config.data.height, config.data.width)
    if config.loss != "denoising":
        raise InputError(f"control.process={control.process!r} with loss={config.loss!r}: wanted loss='denoising'.")
    if stored.is_stored(config.data.source):
        raise InputError(
            f"control.process={control.process!r} makes control pictures of videos, and {config.data.source} holds "
            "stored latents. Train on the clips themselves."
        )


def wait_for_all(name: str) -> None:
    """Waits, for an hour at most, until every process is here; no name may come twice. In a collective on CPUs they
    would wait for 30 seconds."""
    multihost.sync_global_processes(name, timeout=3600, processes=set(range(jax.process_count())))


if __name__ == "__main__":
    commands.run(main)
