"""`device`: the networks of a sampling run as ONNX and StableHLO, with a runner that wants neither JAX nor this."""

import argparse
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from convert.arguments import PRECISIONS
from convert.converting import output
from convert.device import described, measured, networks, onnx_graph, precisions, stablehlo
from convert.tables import megabytes
from i2v_jax import commands
from i2v_jax.cli.sample import BUNDLED, DEFAULT
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families.arithmetic import Arithmetic
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.family import family_of
from i2v_jax.families.model import Model, assemble, load_tokenizers
from i2v_jax.families.weights import Weights
from i2v_jax.sampling import command_line, jobs
from i2v_jax.sampling import run as sampling
from i2v_jax.sampling.going_on import load_start
from i2v_jax.sampling.settings import Settings
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors

PLAIN = Arithmetic(jnp.dtype(jnp.float32), attention="xla", convolution="xla")
"""No kernel of one kind of device, and no loop that one kind of device likes."""


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder, and prints its table."""
    onnx_graph.load_libraries()
    for seed in arguments.noise:
        jobs.check_seed(seed)
    wanted = [name for name in PRECISIONS if name in (arguments.weights or PRECISIONS)]
    config, job = read_config(arguments.rest)
    settings = Settings.of_config(config)
    model, parameters = assembled(config)
    described.check(model, settings, job, config)
    sampling.check_prompts(config, [job], next(iter(model.tokenizers.values())))
    about = described.describe(model, settings, job, config, wanted)
    arguments.sources = []  # of `output`, which are not to be deleted
    with output(arguments) as folder:
        folder.mkdir()
        write_run(folder, model, settings, about, arguments.noise)
        rows = write_networks(folder, networks.of_run(model, settings), parameters, wanted, arguments.measure)
        shown = measured.videos(folder, about, load_start(job.picture)) if arguments.measure else []
        page = measured.page(rows, shown, about, machine())
        (folder / "README.md").write_text(page, encoding="utf-8")
    print(page[page.index("## Networks") :])
    print(arguments.output)
    return 0


def read_config(flags: list[str]) -> tuple[ConfigDict, jobs.Job]:
    """Returns the config of `sample.py`'s flags, checked, and the first video that it asks for.

    Raises:
      InputError: as `sample.py`.
    """
    argv = command_line.begun(["sample.py", *flags], BUNDLED, DEFAULT)
    config = commands.read_config(DEFAULT, argv)
    todo = jobs.of_config(config, command_line.given_keys(argv))[:1]
    sampling.check(config, todo, NoiseSchedule(**config.noise_schedule))
    return todo[0].config(config), todo[0]


def assembled(config: ConfigDict) -> tuple[Model, dict[str, Tensors]]:
    """Returns a model without parameters, and those by component, found and checked but unread.

    Raises:
      InputError: weights that are not there or do not fit together.
    """
    weights = Weights.of_run(config)
    weights.check()
    check_schedule(weights, NoiseSchedule(**config.noise_schedule))
    parts = assemble(weights, PLAIN)
    family = family_of(parts["unet"].config)
    configs = {component: part.config for component, part in parts.items()}
    schedule, zeros = NoiseSchedule(**config.noise_schedule), weights.zeros_for_empty_prompt(family)
    model = Model(configs, {}, load_tokenizers(weights, family), schedule, zeros)
    return model, {component: part.parameters for component, part in parts.items()}


def write_run(folder: Path, model: Model, settings: Settings, about: Mapping[str, Any], seeds: list[int]) -> None:
    """Writes what is not a network: the runner, its table, tokenizers, and the noise of some seeds."""
    shutil.copyfile(Path(__file__).with_name("runner.py"), folder / "run.py")
    (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for tokens, tokenizer in zip(about["tokens"].values(), model.tokenizers.values(), strict=True):
        (folder / tokens["file"]).write_text(tokenizer.library_file(), encoding="utf-8")
    for seed in seeds:
        np.savez(folder / f"noise_{seed}.npz", **described.noise_of_seed(model, settings, seed))


def write_networks(
    folder: Path,
    todo: list[networks.Network],
    parameters: Mapping[str, Tensors],
    wanted: list[str],
    is_measured: bool,
) -> list[measured.Row]:
    """Writes every network with every kind of weights; returns the rows of the table.

    One network's parameters are in memory at a time where it is measured, else one tensor.
    """
    rows = []
    with tqdm(total=len(todo) * len(wanted), desc="exporting", unit="network", dynamic_ncols=True) as bar:
        for network in todo:
            bar.set_postfix_str(network.name)
            traced = stablehlo.trace(network, parameters)
            graph = onnx_graph.convert(network, traced, parameters)
            every = networks.joined(network, parameters)
            used = every.holding({path: every.entries[path] for path in traced.paths})
            known = measured.reference(network, every) if is_measured else None
            for precision in wanted:
                place = folder / precision
                place.mkdir(exist_ok=True)
                weights, file = precisions.stored(used, precision), place / f"{network.name}.safetensors"
                check_space(place, weights)
                save_tensors(file, weights)
                model = onnx_graph.with_weights(graph, weights, file)
                file.with_suffix(".onnx").write_bytes(model.SerializeToString())
                file.with_suffix(".stablehlo").write_bytes(stablehlo.serialise(network, traced, weights))
                rows.append(measured.row(place, network, known))
                bar.update()
    return sorted(rows, key=lambda each: wanted.index(each.weights))


def check_space(folder: Path, weights: Tensors) -> None:
    """Raises InputError where the disk has no room for a network's weights."""
    if (free := shutil.disk_usage(folder).free) < weights.nbytes:
        raise InputError(
            f"Cannot write {folder}: the weights take {megabytes(weights.nbytes)}, and {megabytes(free)} are free."
        )


def machine() -> str:
    """Returns what measured, in a few words."""
    return f"{os.cpu_count()} {platform.machine()} cores"
