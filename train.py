"""Trains an adapter, or any part of a model: python train.py --config configs/train/sd15_stage1.py

Started again with the same folder, a run goes on from its last checkpoint. The same command is run on every host.
"""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import multihost

from i2v_jax import commands, media
from i2v_jax.data import loader as clips
from i2v_jax.data import stored
from i2v_jax.devices import processes
from i2v_jax.devices.mesh import make_mesh, on_this_host, put, put_batch, replicated, use_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.sampling.pipeline import Component, Models, Pipeline, Settings
from i2v_jax.training import setup
from i2v_jax.training.checkpoints import Checkpoints
from i2v_jax.training.fingerprint import fingerprint
from i2v_jax.training.flops import count_flops
from i2v_jax.training.lock import lock
from i2v_jax.training.monitor import Monitor
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.preemption import EXIT_CODE, Preemption
from i2v_jax.tree import count, unflatten
from i2v_jax.weights import load
from i2v_jax.weights.save import save_own

DEFAULT = Path(__file__).parent / "configs" / "train" / "sd15_stage1.py"
FPS = 8  # of samples


def main() -> None:
    config = commands.read_config(DEFAULT, usage=__doc__)
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)

    # Devices.
    processes.join(**config.distributed)
    preemption = Preemption()
    mesh = make_mesh(config.mesh)
    check(config, mesh)
    is_first = jax.process_index() == 0
    say = print if is_first else lambda *_: None
    folder = on_disk(config.folder)
    _lock = lock(folder)  # until this ends

    # Networks, and what of them is trained.
    if config.loss == "denoising":
        load.check_prediction_type(config.weights.unet or config.weights.base, config.noise_schedule.prediction_type)
    tokenizer = ClipTokenizer.from_pretrained(
        config.weights.tokenizer or config.weights.base, "" if config.weights.tokenizer else "tokenizer"
    )
    assembled = setup.assemble(config, setup.arithmetic(config, mesh.devices.flat[0]))
    configs = {name: it.config for name, it in assembled.items()}
    setup.check_size(config, configs["vae"])
    on_stored = stored.is_stored(config.data.source)
    if on_stored:
        empty = stored.empty_prompt(config.data.source), stored.empty_image(config.data.source)
    else:
        empty = tokenizer.encode("")[0], None
    _, optimizer, step = setup.make(config, configs, *empty)
    chosen = setup.trained_paths(assembled, config.train)
    if on_stored:
        stored.check_frozen(sorted(chosen))

    # Clips.
    loader = clips.make(
        dict(config.data) | dict(bad_list=config.data.bad_list or str(folder / "bad_clips.{host}.jsonl")),
        config.batch // jax.process_count(),
        seed=config.seed,
        host=jax.process_index(),
        hosts=jax.process_count(),
        tokenize=lambda captions: {"tokens": tokenizer.encode_captions(captions)},
        image_size=configs["image_encoder"].image_size if "image_encoder" in configs else None,
        wanted=("text", "image_tokens") if "image_encoder" in configs else ("text",),
    )

    # Weights, trained and frozen.
    say(f"loading weights onto {mesh.devices.size} {mesh.devices.flat[0].device_kind}")
    if on_stored and not config.samples.every_steps:  # then nothing is left to encode
        assembled = {"unet": assembled["unet"]}
    trained, frozen = setup.load_weights(assembled, chosen, config, mesh)
    say(f"{count(trained):,} parameters are trained, {count(frozen):,} are frozen")

    # The state: the last checkpoint's, or new.
    keep, best = config.checkpoints.keep, config.checkpoints.best
    checkpoints = Checkpoints(folder / "checkpoints", keep=keep, best=best, configs=configs)
    used = {path: leaf for path, leaf in frozen.items() if path.startswith("unet/") or not on_stored}
    about = dict(config=json.loads(config.to_json_best_effort()), frozen=fingerprint(used), seed=config.seed)
    abstract = setup.abstract_state(config, unflatten(trained), optimizer, mesh)
    if checkpoints.latest() is None:
        state = setup.new_state(trained, optimizer, config, abstract)
        say(f"a new run in {folder}")
    else:
        state, positions, before = checkpoints.restore(abstract, about)
        loader.restore(positions)
        say(f"going on in {folder} from step {int(state.step)}")
        for line in setup.changes(before["config"], about["config"]):
            say(f"going on with {line}")
    del trained, used

    # The loop.
    key = put(np.asarray(jax.random.key_data(jax.random.key(config.seed))), replicated(mesh))
    key = jax.random.wrap_key_data(key)
    first, stopping = int(state.step), False
    rate = Optimizer(**config.optimizer).rate(config.steps)
    monitor = Monitor(
        folder / "curves", first_step=first, steps=config.steps, every=config.log.every_steps, clips=config.batch
    )
    monitor.last_good = checkpoints.describe_latest()
    sampler = Sampler(config, configs, tokenizer, frozen, mesh) if config.samples.every_steps else None
    # whatever ends the loop, the checkpoint that is being written is finished
    with use_mesh(mesh, config.rules), contextlib.closing(checkpoints):
        run = setup.jit_step(step, abstract, mesh)
        for number in range(first + 1, config.steps + 1):
            began = time.perf_counter()
            batch, ids = next(loader)
            waited = time.perf_counter() - began
            batch = put_batch(batch, mesh)
            if number == first + 1:
                monitor.pause()
                traced = run.trace(state, frozen, batch, key)
                monitor.flops = count_flops(traced.jaxpr) / mesh.size
                run = traced.lower().compile()
                wait_for_all("compiled")
                monitor.resume()
            state, metrics = run(state, frozen, batch, key)
            monitor.step(number, metrics, ids, waited, learning_rate=float(rate(number - 1)))

            stopping = preemption.reached(number)
            if stopping or number % config.checkpoints.every_steps == 0 or number == config.steps:
                monitor.pause()
                report = loader.report()
                monitor.counts(number, {"good": report["good"], **report["bad"]})
                positions = processes.gather_json(loader.state())
                checkpoints.save(number, state, positions, about, metric=monitor.mean_loss())
                monitor.last_good = f"step {number} in {checkpoints.folder}"
                monitor.resume()
            if stopping:
                break
            if sampler and (number % config.samples.every_steps == 0 or number == config.steps):
                monitor.pause()
                sampler.show(number, state.average or state.trained, folder / "samples", monitor)
                wait_for_all(f"sampled {number}")
                monitor.resume()
    monitor.close()
    loader.close()
    if stopping:
        say(f"stopped by a signal after step {number}; the same command goes on from there")
        sys.exit(EXIT_CODE)
    for name, weights in (("trained", state.trained), ("average", state.average)):
        if weights is not None:
            whole = on_this_host(weights, mesh)
            if is_first:
                save_own(folder / f"{name}.safetensors", unflatten(jax.device_get(whole)), configs)
                say(folder / f"{name}.safetensors")


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
    samples = config.samples
    if len(samples.pictures) != len(samples.prompts):
        raise InputError(
            f"samples has {len(samples.pictures)} pictures and {len(samples.prompts)} prompts; wanted as many."
        )
    if samples.every_steps:
        for picture in samples.pictures:
            media.load_picture(picture)


def wait_for_all(name: str) -> None:
    """Waits, for an hour at most, until every process is here; no name may come twice. In a collective on CPUs they
    would wait for 30 seconds."""
    multihost.sync_global_processes(name, timeout=3600, processes=set(range(jax.process_count())))


class Sampler:
    """Animates fixed pictures with the weights as they are, on one device of the first process."""

    def __init__(self, config, configs, tokenizer, frozen, mesh):
        self.config, self.configs, self.tokenizer, self.frozen, self.mesh = config, configs, tokenizer, frozen, mesh
        samples, data = config.samples, config.data
        self.settings = Settings(
            height=data.height,
            width=data.width,
            frames=data.frames,
            steps=samples.steps,
            guidance_scale=samples.guidance_scale,
            t0=samples.t0,
            p=samples.p,
        )
        self.settings.check_values(NoiseSchedule(**config.noise_schedule))

    def show(self, step: int, trained: Mapping[str, Any], folder: Path, monitor: Monitor) -> None:
        """Writes an mp4 of each picture, and puts it beside the curves; every process must call it."""
        narrow = {path: leaf.astype(self._dtype(path)) for path, leaf in trained.items()}
        weights = unflatten(on_this_host(self.frozen | narrow, self.mesh))
        if jax.process_index() != 0:
            return
        here = make_mesh({}, jax.local_devices()[:1])
        models = Models(
            *(Component(self.configs[name], weights[name]) for name in ("unet", "vae", "text_encoder")),
            self.tokenizer,
            *(
                Component(self.configs[name], weights[name]) if name in weights else None
                for name in ("image_encoder", "image_proj")
            ),
            schedule=NoiseSchedule(**self.config.noise_schedule),
        )
        samples = self.config.samples
        with jax.set_mesh(here):
            videos = Pipeline(models, here)(
                [media.load_picture(picture) for picture in samples.pictures],
                list(samples.prompts),
                list(range(len(samples.pictures))),
                settings=self.settings,
            )
        folder.mkdir(parents=True, exist_ok=True)
        for number, video in enumerate(videos):
            media.write_video(folder / f"{step:08d}_{number}.mp4", video, FPS)
            monitor.video(f"samples/{number}", video, step, FPS)

    def _dtype(self, path: str) -> Any:
        return self.configs[path.partition("/")[0]].param_dtype


if __name__ == "__main__":
    commands.run(main)
