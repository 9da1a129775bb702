"""Plans a run on a TPU slice, from a machine without one: what fits, how long a step takes, what an epoch costs.

    python -m i2v_jax.planning.plan --config configs/train/sd15_stage2.py --topology v5e:16x16 [--config.KEY=VALUE ...]

Compiles the training step and the sampling step with the TPU's own compiler (`libtpu`), and reads memory, arithmetic
and traffic off the result. Needs no weights. The step time is a roofline: the largest of arithmetic over peak, bytes
over memory bandwidth, and sent bytes over link bandwidth; real steps take longer.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from i2v_jax import commands, tree
from i2v_jax.devices.compile_cache import cache_folder
from i2v_jax.devices.mesh import batch_sharding, make_mesh, replicated, use_mesh, video_sharding
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.diffusion.samplers import SamplerState
from i2v_jax.encoders import controls, image_tokens
from i2v_jax.errors import InputError, nearest
from i2v_jax.families.family import family_of
from i2v_jax.families.model import Model
from i2v_jax.families.published import networks_of_config
from i2v_jax.models.adapters.text_in_time import NAME as TEXT_IN_TIME
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.image_projection import TOKENS_OF_FRAME
from i2v_jax.planning import hlo
from i2v_jax.planning.compiling import SECONDS, LaidOut, in_a_process, until_laid_out
from i2v_jax.sampling import preview
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.training import placement, setup

DEFAULT = commands.ROOT / "configs" / "train" / "sd15_stage1.py"
SHORT = ("batch", "data.frames", "data.height", "data.width")
FLAGS = dict(
    topology="chip and shape of the slice: v5e:16x16, v6e:8x8, v4:4x4x4, v5p:4x4x4",
    batches="what clips come as: videos, or stored (latents, text and image tokens) [videos]",
)
# The compiler's own folder: were it among the environment's packages, JAX would look for a TPU whenever it starts.
LIBTPU = Path(sys.prefix) / "libtpu"
CLIPS = 10_000_000  # of an epoch: WebVid-10M


class Chip(NamedTuple):
    """What a chip has."""

    flops: float  # bfloat16, a second
    memory: float  # bytes
    bandwidth: float  # of memory, bytes a second
    links: float  # bytes a second that all its links together send
    dimensions: int  # of a slice


# Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Memory is what the compiler lets a program have: v4's 32,
# v5e's 16, v5p's 95 and v6e's 32 GB less a little (libtpu 0.0.42). Links: half of the "bidirectional" bandwidth there.
CHIPS = {
    "v4": Chip(275e12, 30.50 * 2**30, 1200e9, 300e9, 3),
    "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 200e9, 2),
    "v5p": Chip(459e12, 95.74 * 2**30, 2765e9, 600e9, 3),
    "v6e": Chip(918e12, 31.25 * 2**30, 1638e9, 400e9, 2),
}

# libtpu asks the metadata of a TPU host for these, and complains where there is none.
NO_TPU_HERE = dict(
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one program does on each device, in bytes and operations.

    `None` where the compiler ran out of memory; outputs, code and analysis also where machine code takes it long.
    """

    name: str
    clips: int  # of all devices together
    devices: int
    arguments: dict[str, float]  # kind -> bytes
    temporaries: float | None
    outputs: float | None  # those that take no argument's place
    code: float | None
    flops: float | None
    bytes: float | None
    sent: dict[str, list[float]] | None  # collective -> [bytes put in, bytes over links]
    analysis: dict[str, float] | None  # XLA's own, for comparison: loops run once, on-chip memory counts as traffic
    complaint: str  # the compiler's, where the program does not fit

    @property
    def memory(self) -> float:
        """Bytes of everything that is known; the compiler's count of arguments has small ones padded."""
        arguments = self.analysis["arguments"] if self.analysis else sum(self.arguments.values())
        return arguments + sum(filter(None, (self.temporaries, self.outputs, self.code)))

    def fits(self, chip: Chip) -> bool:
        """Whether the compiler found room, and for the arguments too."""
        return not self.complaint and self.memory <= chip.memory

    def times(self, chip: Chip) -> dict[str, float]:
        """Seconds of arithmetic, of memory traffic and of links, each for itself."""
        over_links = sum(link for _, link in self.sent.values())
        return dict(
            arithmetic=self.flops / chip.flops, memory=self.bytes / chip.bandwidth, links=over_links / chip.links
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", default="")
    parser.add_argument("--batches", default="videos")
    given, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    config = commands.read_config(DEFAULT, [sys.argv[0], *rest], __doc__, SHORT, FLAGS)
    if given.batches not in ("videos", "stored"):
        raise InputError(f"--batches={given.batches!r}; known: videos, stored (latents, text and image tokens).")
    jax.config.update("jax_platforms", "cpu")
    chip, devices = slice_of(given.topology)
    print(f"{given.topology}: {len(devices)} devices; {config.batch} clips a step", flush=True)
    cache = cache_folder(config.compilation_cache)
    for make in (training_program, sampling_program):
        begin = time.perf_counter()
        stored = given.batches == "stored"
        figures = in_a_process(figures_of, make, config, given.topology, stored, cache and cache / "plans")
        print(f"\n{report(figures, chip, config)}\n({time.perf_counter() - begin:.0f} s)", flush=True)


def slice_of(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
    """Returns the chip and the devices of a slice such as `v5e:16x16`.

    Where a chip is two devices (v4), the chip is half of one.

    Raises:
      InputError: an unknown chip, a shape that no slice has, or no libtpu.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    name = match[1] if match else topology.partition(":")[0]
    if name not in CHIPS:
        raise InputError(f"--topology={topology!r}; known chips: {', '.join(CHIPS)}.{nearest(name, CHIPS)}")
    chip = CHIPS[name]
    example = f"{name}:{'x'.join(['4'] * chip.dimensions)}"
    if not match or topology.count("x") != chip.dimensions - 1:
        raise InputError(f"--topology={topology!r}: wanted {chip.dimensions} sides, such as {example}.")
    for name, value in NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    find_compiler(LIBTPU)
    try:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # XLA's errors, or no plugin
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--topology={topology!r}: {reason} A slice is for instance {example}; the TPU's compiler comes by "
            f"`{sys.executable} -m pip install --target {LIBTPU} libtpu`."
        ) from error
    halves = len(devices) // math.prod(map(int, match[2].split("x")))
    share = Chip(*(value / halves for value in chip[:4]), chip.dimensions)
    return share, devices


def find_compiler(folder: Path) -> None:
    """Lets `libtpu` be imported from a folder where the environment has none."""
    if importlib.util.find_spec("libtpu") is None and folder.is_dir():
        sys.path.append(str(folder))


class Program(NamedTuple):
    """Something to compile: a jitted function, its arguments by kind, and how many clips it works on."""

    name: str
    clips: int
    mesh: Mesh
    function: Callable
    arguments: tuple[Any, ...]  # shapes with shardings
    kinds: dict[str, Any]  # kind -> those of the arguments that are counted under it


def training_program(config: ConfigDict, devices: Sequence[jax.Device], stored: bool = False) -> Program:
    """The training step of a config.

    Args:
      config: of the run.
      devices: of the slice.
      stored: batches hold latents, prompt states and image tokens.

    Raises:
      InputError: a batch that does not divide, weights of an unknown network, any setting out of range.
    """
    mesh = make_mesh(config.mesh, devices)
    if config.batch % (least := mesh.size * config.accumulate):
        raise InputError(
            f"batch={config.batch} does not divide into accumulate={config.accumulate} parts over {mesh.size} devices: "
            f"wanted a multiple of {least}, such as --config.batch={least}."
        )
    configs = networks_of_config(config, devices[0])
    configs = {name: network for name, network in configs.items() if not controls.components([name])}
    made = setup.make(config, configs, placement.empty_conditions(configs, stored))
    needed = ["unet"] if stored else list(configs)
    weights = placement.abstract_weights({component: configs[component] for component in needed}, config.get("lora"))
    trained, frozen = tree.split(weights, config.train)
    state = placement.abstract_state(config, trained, made.optimizer, mesh)
    frozen = placement.abstract_frozen(config, frozen, mesh)
    batch = placement.abstract_batch(config, configs, mesh, stored)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    function = placement.jit_step(made.step, state, mesh)
    kinds = dict(
        frozen=frozen, trained=(state.trained, state.average), optimizer=(state.optimizer, state.step), batch=batch
    )
    return Program("training step", config.batch, mesh, function, (state, frozen, batch, key), kinds)


def sampling_program(config: ConfigDict, devices: Sequence[jax.Device], stored: bool = False) -> Program:
    """One denoising step of the samples that a config's run draws, a video on each device; weights as in training."""
    mesh = make_mesh(config.mesh, devices)
    configs = preview.in_sampling(networks_of_config(config, devices[0], remat="none"))
    networks = ("unet", *controls.components(configs))
    weights = placement.abstract_weights({name: configs[name] for name in networks})
    parameters = {name: placement.abstract_frozen(config, weights[name], mesh) for name in networks}
    nested = {name: tree.unflatten(leaves) for name, leaves in parameters.items()}
    model = Model(configs, nested, {}, NoiseSchedule(**config.noise_schedule))
    settings = preview.settings_of(config)
    _, step = Pipeline(model, mesh).programs(settings)
    spread, whole = batch_sharding(mesh), replicated(mesh)

    def array(shape, dtype=jnp.float32, sharding=spread):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    videos, (first, *rest) = mesh.size, latents_shape(config, configs)
    rows = videos * (2 if settings.guided else 1)
    conditions = abstract_conditions(configs, rows, array, (first, *rest))
    conditions = conditions._replace(controls=abstract_controls(model, settings, rows, array))
    noisy = array((videos, first, *rest), sharding=video_sharding(mesh))
    state = SamplerState(noisy, noisy, array((), jnp.int32, whole))
    scalar = array((), sharding=whole)
    strengths = dict(guidance_scale=scalar, first_frame=scalar, image_tokens=scalar)
    if model.has_text_in_time:
        strengths[TEXT_IN_TIME] = scalar
    if model.controls:
        strengths["controls"] = array((len(model.controls), settings.frames), sharding=whole)
    seeds, number = array((videos,), jnp.uint32), array((), jnp.int32, whole)
    arguments = (model.parameters, state, number, conditions, array((videos, 1, *rest)), seeds, strengths)
    kinds = dict(frozen=parameters, latents=state, conditions=conditions)
    return Program("sampling step", videos, mesh, step, arguments, kinds)


def abstract_controls(model: Model, settings: Settings, rows: int, array: Callable) -> tuple[Any, ...]:
    """Returns the shapes of what control networks make of the pictures of a number of videos; `array` makes one."""
    size = (settings.height, settings.width)
    factor, channels = model.configs["vae"].downscale, model.configs["vae"].latent_channels
    pictures = jax.ShapeDtypeStruct((rows, settings.frames, *size, 3), jnp.float32)
    known = jax.ShapeDtypeStruct(pictures.shape[:2], bool)

    def to_latents(pictures):
        return jnp.zeros((*pictures.shape[:2], *(side // factor for side in size), channels))

    found = []
    for component, network in model.controls.items():
        encode = functools.partial(controls.encode, network, to_latents=to_latents)
        encoded = jax.eval_shape(encode, model.parameters[component], pictures, known)
        found.append(jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), encoded))
    return tuple(found)


def latents_shape(config: ConfigDict, configs: dict[str, Any]) -> tuple[int, int, int, int]:
    """Returns the shape [f h w c] of the latents of a config's clips."""
    data, vae = config.data, configs["vae"]
    return data.frames, data.height // vae.downscale, data.width // vae.downscale, vae.latent_channels


def abstract_conditions(
    configs: dict[str, Any], rows: int, array: Callable, video: tuple[int, int, int, int]
) -> Conditions:
    """Returns the shapes of what a number of videos, with latents [f h w c] of the shape `video`, are conditioned on;
    `array` makes one of shape and dtype."""
    unet = configs["unet"]
    family, dtype = family_of(unet), unet.dtype
    positions = configs[family.text.components[0]].max_positions
    conditions = Conditions(array((rows, 1, positions, unet.cross_attention_dim), dtype))
    if unet.cross_attention_branches:
        tokens = (rows, 1, image_tokens.count(configs), unet.cross_attention_dim)
        conditions = conditions._replace(image_tokens=array(tokens, dtype))
    if family.has_picture:
        tokens = (rows, video[0], TOKENS_OF_FRAME, unet.cross_attention_dim)
        beside = dict(image_tokens=array(tokens, dtype), image_latents=array((rows, *video)), fs=array((rows, 1)))
        conditions = conditions._replace(**beside)
    if unet.miva:
        conditions = conditions._replace(implicit=array((rows, 1)))
    if family.text.pooled:
        conditions = conditions._replace(pooled=array((rows, 1, unet.added_conditioning.pooled_dim), dtype))
    if family.has_sizes:
        conditions = conditions._replace(sizes=array((rows, 1, 6)))
    return conditions


def figures_of(make: Callable, config: ConfigDict, topology: str, stored: bool, cache: Path | None) -> Figures:
    """Makes and measures a program of a config; for a process of its own, see `compiling.in_a_process`.

    Args:
      make: `training_program` or `sampling_program`.
      config, stored: as it takes them.
      topology, cache: as of `measure`.

    Raises:
      InputError: see `make`.
    """
    jax.config.update("jax_platforms", "cpu")
    _, devices = slice_of(topology)
    return measure(make(config, devices, stored=stored), topology, cache, SECONDS)


def measure(program: Program, topology: str, cache: Path | None = None, seconds: float = math.inf) -> Figures:
    """Compiles a program and reads its figures; those of the same program are remembered in a folder.

    Args:
      program: from `training_program` or `sampling_program`.
      topology: its slice; with the program's text, the key of what is remembered.
      cache: a folder, made when missing; None remembers nothing.
      seconds: for machine code, see `compiling.until_laid_out`.
    """
    with use_mesh(program.mesh):
        lowered = program.function.trace(*program.arguments).lower(lowering_platforms=("tpu",))
    known = f"{topology} {metadata.version('libtpu')} {program.name} {lowered.as_text()}"
    file = cache and cache / f"{hashlib.sha256(known.encode()).hexdigest()}.json"
    if file and file.is_file():
        with contextlib.suppress(TypeError, ValueError):  # cut off, or of another version
            return Figures(**json.loads(file.read_text()))
    figures = _figures(program, lowered, seconds)
    if file:
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(figures)))
    return figures


def _figures(program: Program, lowered: jax.stages.Lowered, seconds: float) -> Figures:
    arguments = {kind: bytes_on_a_device(part) for kind, part in program.kinds.items()}
    common = dict(name=program.name, clips=program.clips, devices=program.mesh.size, arguments=arguments)
    unknown = dict.fromkeys(("temporaries", "outputs", "code", "flops", "bytes", "sent", "analysis"))
    try:
        compiled = until_laid_out(lowered, seconds)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        complaint = str(error).splitlines()[0]
        if match := re.search(r"temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of", complaint):
            amount, unit = [group for group in match.groups() if group]
            unknown["temporaries"] = float(amount) * 2 ** (10 * (1 + "KMGT".index(unit)))
        return Figures(**common, **unknown, complaint=complaint)
    cost = hlo.cost(compiled.text if isinstance(compiled, LaidOut) else compiled.as_text())
    sent = {}
    for one in cost.sent:
        before = sent.get(one.kind, [0.0, 0.0])
        sent[one.kind] = [before[0] + one.operand_bytes, before[1] + one.link_bytes]
    known = unknown | dict(flops=cost.flops, bytes=cost.bytes, sent=sent)
    if isinstance(compiled, LaidOut):
        known["temporaries"] = compiled.memory - sum(arguments.values())  # and outputs
        return Figures(**common, **known, complaint="")
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
    known |= dict(
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        analysis={name: counted[name] for name in ("flops", "bytes accessed")}
        | {"arguments": memory.argument_size_in_bytes},
    )
    return Figures(**common, **known, complaint="")


def bytes_on_a_device(part: Any) -> int:
    """Returns the bytes that one device holds of a tree of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(part))


def report(figures: Figures, chip: Chip, config: ConfigDict) -> str:
    """Returns the lines to print for a program."""
    kinds = figures.arguments | dict(temporaries=figures.temporaries)
    kinds |= {name: size for name in ("outputs", "code") if (size := getattr(figures, name)) is not None}
    lines = [
        f"{figures.name}, {figures.clips} clips on {figures.devices} devices; of each device:",
        f"  memory    {short(figures.memory, 'B')} of {short(chip.memory, 'B')}: "
        + ", ".join(f"{kind} {'?' if value is None else short(value, 'B')}" for kind, value in kinds.items()),
    ]
    if not figures.fits(chip):
        lines += [f"  DOES NOT FIT. {figures.complaint}".rstrip(), *suggestions(figures, chip, config)]
    if figures.flops is None:
        return "\n".join(lines)
    times, theirs = figures.times(chip), figures.analysis
    step = max(times.values())
    for_each = step * figures.devices / figures.clips
    put_in, over_links = (sum(sent[i] for sent in figures.sent.values()) for i in range(2))
    kinds = ", ".join(f"{kind} {short(sent[0], 'B')}" for kind, sent in figures.sent.items()) or "nothing"
    per_second = figures.clips / step
    lines += [
        f"  work      {short(figures.flops, 'FLOP')} = {short(times['arithmetic'], 's')}",
        f"  traffic   {short(figures.bytes, 'B')} = {short(times['memory'], 's')}"
        + (f" (XLA, which counts on-chip memory too: {short(theirs['bytes accessed'], 'B')})" if theirs else ""),
        f"  sent      {short(put_in, 'B')} put in ({kinds}), {short(over_links, 'B')} over links "
        f"= {short(times['links'], 's')}",
        f"  a step    at least {short(step, 's')}, bound by {max(times, key=times.get)}: "
        f"{times['arithmetic'] / step:.0%} of peak; {short(for_each, 's')} of a device for each clip",
    ]
    if figures.name == "training step":
        days = CLIPS / per_second / 86400
        lines.append(f"  the slice {per_second:.1f} clips/s, {days:.2f} days for an epoch of {CLIPS:,} clips")
    else:
        lines.append(f"  the slice {per_second / config.samples.steps:.2f} videos/s of {config.samples.steps} steps")
    return "\n".join(lines)


def short(value: float, unit: str) -> str:
    """Returns a number in a readable size: `short(12.7e9, "B")` is "12.7 GB"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1), ("m", 1e-3), ("µ", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def suggestions(figures: Figures, chip: Chip, config: ConfigDict) -> list[str]:
    """Returns what may make a program fit, the cheapest first."""
    frozen, each = figures.arguments["frozen"], figures.clips // figures.devices
    found = []
    if figures.name == "training step" and config.remat != "full":
        less = "products" if config.remat == "none" else "full"
        found.append(f"--config.remat={less} makes activations again in the backward pass")
    if config.frozen == "replicated" and figures.devices > 1 and frozen > 0.1 * chip.memory:
        shares = math.gcd(8, figures.devices)
        found.append(
            f"--config.frozen=fsdp --config.mesh.fsdp={shares} leaves {frozen / shares / 1e9:.2f} GB of the "
            f"{frozen / 1e9:.2f} GB of frozen weights on each device, for gathering them in every step"
        )
    if figures.name == "training step" and each > 1:
        if config.accumulate < each:
            found.append(f"--config.accumulate={each} works through the batch one clip at a time")
        found.append(f"--config.batch={figures.devices} is one clip on each device")
    elif figures.name == "training step":
        found.append("a smaller --config.data.height and width, or fewer --config.data.frames")
    return [f"    try {line}" for line in found]


if __name__ == "__main__":
    commands.run(main)
