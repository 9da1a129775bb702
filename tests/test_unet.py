"""The UNet against the published I2V-Adapter's recorded runs and diffusers' PyTorch and Flax models."""

import dataclasses
import functools
import re
from collections import Counter

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from i2v_jax.diffusion import guidance, samplers
from i2v_jax.diffusion.first_frame import hold
from i2v_jax.diffusion.frame_similarity_prior import initial_latents
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.models import motion, unet
from i2v_jax.models.adapters import Shared
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import UNet, UNetConfig
from i2v_jax.tree import flatten, unflatten
from tests import oracles, tiny
from tests.helpers import exact_jit, relative_error, with_conditions
from tests.torch_models import our_parameters, randomise

KERNELS = [("xla", "xla"), ("blocked", "winograd")]


@pytest.mark.parametrize("attention, convolution", KERNELS)
@pytest.mark.parametrize("name", oracles.NAMES)
def test_equals_the_published_unet(name, attention, convolution, measured):
    config, parameters = oracles.unet(name)
    config = dataclasses.replace(config, attention=attention, convolution=convolution)
    io = oracles.recorded(name)
    tokens = oracles.split_tokens(io["unet.encoder_hidden_states"])
    out = jax.jit(UNet(config).apply)({"params": parameters}, io["unet.sample"], io["unet.timestep"], **tokens)
    measured(f"{name}: UNet call ({attention}, {convolution})", relative_error(out, io["unet.output"]), 1e-5)


@pytest.mark.parametrize("name", oracles.NAMES)
def test_equals_the_published_guided_run(name, measured):
    """Five guided DDIM steps from the Frame Similarity Prior, frame 1 held clean; every step compared."""
    config, parameters = oracles.unet(name)
    io, settings = oracles.recorded(name), oracles.settings(name)
    given = settings["scheduler"]
    schedule = NoiseSchedule.from_diffusers(given)
    sampler = samplers.make("ddim", schedule, given["steps"])
    np.testing.assert_array_equal(sampler.timesteps, io["ddim.timesteps"])
    first_frame = jnp.asarray(io["prior.first_frame"])
    tokens = oracles.split_tokens(io["ddim.encoder_hidden_states"])

    start = initial_latents(first_frame, io["prior.mask"] > 0.5, io["prior.noise"], sampler)

    @jax.jit
    def step(parameters, state, i):
        held = hold(sampler, first_frame)
        sample = jnp.concatenate([held.scale_input(state.latents, i)] * 2)
        timestep = jnp.asarray(sampler.timesteps)[i]
        prediction = UNet(config).apply({"params": parameters}, sample, timestep, **tokens)
        return held.step(state, i, guidance.classifier_free(prediction, settings["guidance"]))

    state = hold(sampler, first_frame).init(start)
    for i in range(given["steps"]):
        state = step(parameters, state, i)
        np.testing.assert_array_equal(state.latents[:, :1], first_frame)
        measured(f"{name}: guided DDIM, step {i}", relative_error(state.latents, io[f"ddim.step{i}"]), 1e-4)


SMALL = tiny.UNET | tiny.levels(True, True, False)
SMALL |= dict(block_out_channels=(32, 64, 64), layers_per_block=2, attention_head_dim=4)
# SDXL's shape, with heads by level
SMALL_XL = SMALL | tiny.levels(False, True, True) | tiny.of_xl(1, 2, 3) | dict(attention_head_dim=(2, 4, 8))
MOTION_BLOCKS = tiny.levels(True, True, False, kind="Motion")


def inputs(batch, frames, height, width, tokens=7, context=24, pooled=16):
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    return dict(
        sample=normal(batch, frames, height, width, 4),
        timesteps=np.linspace(3, 961, batch).astype(np.int32),
        text=normal(batch, tokens, context),
        added=dict(text_embeds=normal(batch, pooled), time_ids=rng.integers(0, 1024, (batch, 6)).astype(np.float32)),
    )


def channels_first(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


@pytest.mark.parametrize("shape", ["SD1.5", "SDXL"])
@pytest.mark.parametrize("size, attention, convolution", [((8, 16), *KERNELS[0]), ((17, 10), *KERNELS[1])], ids=str)
def test_equals_diffusers_picture_unet(shape, size, attention, convolution, measured):
    """PyTorch, on even and odd sizes; on odd ones, transformers are loops over their blocks."""
    settings = SMALL if shape == "SD1.5" else SMALL_XL
    yardstick = randomise(diffusers.UNet2DConditionModel(**settings))
    given = inputs(2, 1, *size)
    added = {key: torch.from_numpy(value) for key, value in given["added"].items()}
    with torch.no_grad():
        wanted = yardstick(
            channels_first(given["sample"][:, 0]),
            torch.from_numpy(given["timesteps"]),
            torch.from_numpy(given["text"]),
            added_cond_kwargs=added,
        ).sample
    kernels = dict(attention=attention, convolution=convolution, scan_blocks=size == (17, 10))
    config = UNetConfig.from_diffusers(yardstick.config, **kernels)
    parameters = our_parameters("unet", yardstick.state_dict())
    out = jax.jit(UNet(config).apply)({"params": parameters}, **with_conditions(given))
    error = relative_error(jnp.moveaxis(out[:, 0], -1, 1), wanted)
    measured(f"diffusers UNet2DConditionModel, {shape} shape, {size} ({attention}, {convolution})", error, 1e-5)


def test_equals_diffusers_flax_unet(measured, monkeypatch):
    """With the exact GELU: diffusers' Flax feed-forward takes the tanh approximation, its PyTorch one does not."""
    from flax.core import unfreeze
    from flax.traverse_util import flatten_dict

    settings = dict(SMALL)
    settings.pop("norm_num_groups")  # Flax's is always 32
    yardstick = diffusers.FlaxUNet2DConditionModel(**settings)
    torch_model = randomise(diffusers.UNet2DConditionModel(**settings))
    given = inputs(2, 1, 8, 16)
    picture = np.moveaxis(given["sample"][:, 0], -1, 1)
    call = jax.tree.map(jnp.asarray, (picture, given["timesteps"], given["text"]))
    shapes = jax.eval_shape(yardstick.init, jax.random.key(0), *call)["params"]
    flax_parameters = to_flax(torch_model.state_dict(), flatten_dict(unfreeze(shapes), sep="."))

    def run():
        return jax.jit(lambda *given: yardstick.apply(*given).sample)({"params": flax_parameters}, *call)

    approximate = run()
    monkeypatch.setattr(nn, "gelu", functools.partial(nn.gelu, approximate=False))
    wanted = run()
    config = UNetConfig.from_diffusers(torch_model.config)
    parameters = our_parameters("unet", torch_model.state_dict())
    out = jax.jit(UNet(config).apply)({"params": parameters}, **with_conditions(given))
    error = relative_error(jnp.moveaxis(out[:, 0], -1, 1), wanted)
    measured("diffusers FlaxUNet2DConditionModel, SD1.5 shape", error, 1e-5)
    error = relative_error(jnp.moveaxis(out[:, 0], -1, 1), approximate)
    measured("diffusers FlaxUNet2DConditionModel, SD1.5 shape, with its approximate GELU", error, 1e-3)


def to_flax(state: dict[str, torch.Tensor], shapes: dict) -> dict:
    """diffusers' own Flax names: numbers joined by underscores, kernels transposed."""
    flat = {}
    for name, tensor in state.items():
        *path, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
        array = tensor.numpy()
        path = ".".join(path)
        if leaf == "weight":
            leaf = "kernel" if array.ndim > 1 else "scale"
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        assert shapes[f"{path}.{leaf}"].shape == array.shape, (name, array.shape)
        flat[f"{path}.{leaf}"] = jnp.asarray(array)
    assert flat.keys() == shapes.keys(), flat.keys() ^ shapes.keys()
    return unflatten({name.replace(".", "/"): leaf for name, leaf in flat.items()})


LAYOUTS = {"v1": motion.V1, "v2": motion.V2, "v3": motion.V3, "SDXL-beta": motion.SDXL_BETA}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_diffusers_motion_unet(layout, measured):
    """diffusers never pools resnet norms and always pools the motion modules' own: both set so here."""
    ours = LAYOUTS[layout]
    settings = SMALL | MOTION_BLOCKS
    if layout == "SDXL-beta":
        settings = SMALL_XL | tiny.levels(False, True, True, kind="Motion")
    settings |= dict(num_attention_heads=settings.pop("attention_head_dim"))
    yardstick = randomise(
        diffusers.UNetMotionModel(
            **settings,
            motion_num_attention_heads=ours.num_heads,
            motion_max_seq_length=ours.max_positions,
            use_motion_mid_block=ours.mid_block,
        )
    )
    frames = 5
    given = inputs(2, frames, 8, 12)
    with torch.no_grad():
        wanted = yardstick(
            channels_first(given["sample"]),
            torch.from_numpy(given["timesteps"]),
            torch.from_numpy(given["text"]).repeat_interleave(frames, 0),
            added_cond_kwargs={key: torch.from_numpy(value) for key, value in given["added"].items()},
        ).sample
    config = UNetConfig.from_diffusers(yardstick.config)
    layout_read = dataclasses.replace(config.motion, norm_groups=SMALL["norm_num_groups"], pooled_norm=True)
    assert (layout_read.max_positions, layout_read.mid_block) == (ours.max_positions, ours.mid_block)
    config = dataclasses.replace(config, motion=layout_read)
    parameters = our_parameters("unet", yardstick.state_dict())
    out = jax.jit(UNet(config).apply)({"params": parameters}, **with_conditions(given))
    error = relative_error(jnp.moveaxis(out, -1, 1), wanted)
    measured(f"diffusers UNetMotionModel, {layout} layout", error, 1e-5)


def test_new_adapter_changes_nothing():
    """With W'_O = 0 the output is the base model's, bit for bit."""
    with_adapter, parameters = oracles.unet("official_v1")
    flat = flatten(parameters)
    zeroed = {path: jnp.zeros_like(x) if "/first_frame/to_out/" in path else x for path, x in flat.items()}
    assert sum("/first_frame/to_out/" in path for path in flat) == 2 * 10  # kernel and bias of each spatial layer
    base = dataclasses.replace(with_adapter, self_attention_branches=())
    io = oracles.recorded("official_v1")
    given = (io["unet.sample"], io["unet.timestep"])
    tokens = oracles.split_tokens(io["unet.encoder_hidden_states"])

    def run(program, flat):
        return np.asarray(program({"params": unflatten(flat)}, *given, **tokens))

    without, program = (exact_jit(UNet(config).apply) for config in (base, with_adapter))
    wanted = run(without, {path: x for path, x in flat.items() if "/first_frame/" not in path})
    np.testing.assert_array_equal(run(program, zeroed), wanted)
    assert relative_error(run(program, flat), wanted) > 1e-2


def test_branch_scales():
    """Scale 0 switches a branch off; 1 is the default; the output moves with it."""
    config, parameters = oracles.unet("official_v1")
    io = oracles.recorded("official_v1")
    tokens = oracles.split_tokens(io["unet.encoder_hidden_states"])
    call = jax.jit(
        lambda config, params, scales: UNet(config).apply(params, *given, **tokens, strengths=scales), static_argnums=0
    )
    given = io["unet.sample"], io["unet.timestep"]

    def run(config, scales):
        return call(config, {"params": parameters}, scales)

    one = dict(first_frame=1.0, image_tokens=1.0)
    assert relative_error(run(config, one), io["unet.output"]) < 1e-5
    for name, field in [("first_frame", "self_attention_branches"), ("image_tokens", "cross_attention_branches")]:
        without = run(dataclasses.replace(config, **{field: ()}), one)
        assert relative_error(run(config, one | {name: 0.0}), without) < 1e-6
        assert relative_error(run(config, one | {name: 0.5}), io["unet.output"]) > 1e-2


def test_adapter_sees_only_the_first_frame():
    """Through spatial layers alone, frame i's output depends on itself and frame 1 and on no other frame."""
    config, parameters = oracles.unet("official_v2norm")  # per-frame norms
    flat = {path: x for path, x in flatten(parameters).items() if "/motion/" not in path}
    config = dataclasses.replace(config, motion=None)
    io = oracles.recorded("official_v2norm")
    tokens = oracles.split_tokens(io["unet.encoder_hidden_states"])
    call = jax.jit(UNet(config).apply)

    def run(x):
        return call({"params": unflatten(flat)}, x, io["unet.timestep"], **tokens)

    sample = io["unet.sample"]
    changed = sample.copy()
    changed[:, 2] += 1
    before, after = run(sample), run(changed)
    np.testing.assert_array_equal(np.delete(before, 2, 1), np.delete(after, 2, 1))
    changed = sample.copy()
    changed[:, 0] += 1
    assert relative_error(run(changed)[:, 1:], before[:, 1:]) > 1e-3


@pytest.mark.parametrize(
    "preset, layout, wanted",
    [(unet.SD15, motion.V1, 24_793_280), (unet.SDXL, motion.SDXL_BETA, 204_883_200)],
    ids=["SD1.5", "SDXL"],
)
def test_adapter_has_the_published_number_of_parameters(preset, layout, wanted):
    config = dataclasses.replace(preset, motion=layout, self_attention_branches=("first_frame",))
    sizes = {path: leaf.size for path, leaf in parameter_shapes(config).items()}
    assert sum(size for path, size in sizes.items() if "/first_frame/" in path) == wanted


def test_shapes_are_those_of_initialised_parameters(monkeypatch):
    """And no initialiser is run for them."""
    given = with_conditions(inputs(1, 1, 8, 8, context=32))
    begun = jax.eval_shape(UNet(SMALLEST).init, jax.random.key(0), **given)["params"]
    parameter_shapes.cache_clear()
    monkeypatch.setattr(jax.random, "fold_in", None)
    monkeypatch.setattr(jax.random, "truncated_normal", None)
    assert parameter_shapes(SMALLEST) == flatten(begun)


SMALLEST = dataclasses.replace(
    unet.TINY,
    transformer_depth=(3, 3),
    motion=dataclasses.replace(motion.V1, norm_groups=8, num_heads=2),
    self_attention_branches=("first_frame",),
)


@functools.cache
def gradient(**settings):
    """A layer's, with an adapter and three blocks a transformer, by its input and its weights."""
    config, rng = dataclasses.replace(SMALLEST, **settings), np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    shared = Shared(normal(2, 128), Conditions.of_videos(normal(2, 7, 32)))
    layer, x = unet.remat(unet.Layer, config.remat)(config, 0, True), normal(2, 3, 4, 4, 32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x, shared)
    weights = jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), shapes)
    return jax.jit(jax.grad(lambda given: jnp.mean(layer.apply(*given, shared) ** 2)))((weights, x))


@pytest.mark.parametrize(
    "settings",
    [dict(remat="full"), dict(remat="products"), dict(scan_blocks=True), dict(remat="dots_saveable", scan_blocks=True)],
    ids=str,
)
def test_remat_and_scan_change_no_gradient(settings):
    for ours, wanted in zip(jax.tree.leaves(gradient(**settings)), jax.tree.leaves(gradient()), strict=True):
        assert relative_error(ours, wanted) < 1e-4


def computed(jaxpr):
    """The names of what it computes; of what stands within another, as often as it stands."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda given: hasattr(given, "eqns")):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from computed(inner)


def test_remat_and_scan_reach_all_layers():
    def traced(**settings):
        config = dataclasses.replace(SMALLEST, **settings)
        weights, given = unflatten(parameter_shapes(config)), with_conditions(inputs(1, 1, 8, 8, context=32))
        return Counter(computed(jax.make_jaxpr(UNet(config).apply)({"params": weights}, **given).jaxpr))

    plain, again, loops = traced(), traced(remat="full"), traced(scan_blocks=True)
    paths = parameter_shapes(SMALLEST)
    layers = {path.rpartition("/resnet/")[0] for path in paths if "/resnet/" in path} | {"mid_block"}
    transformers = {path.rpartition("/blocks_2/")[0] for path in paths if "/attention/blocks_2/" in path}
    assert again["remat2"] - plain["remat2"] == len(layers)
    assert loops["scan"] - plain["scan"] == len(transformers)


def test_bfloat16_stays_close():
    config, parameters = oracles.unet("official_v1")
    io = oracles.recorded("official_v1")
    tokens = oracles.split_tokens(io["unet.encoder_hidden_states"])
    config = dataclasses.replace(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    parameters = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters)
    out = jax.jit(UNet(config).apply)({"params": parameters}, io["unet.sample"], io["unet.timestep"], **tokens)
    assert out.dtype == jnp.bfloat16
    assert relative_error(out.astype(jnp.float32), io["unet.output"]) < 0.05


def test_settings_this_network_does_not_have_are_refused():
    with pytest.raises(InputError, match="act_fn='mish' is not supported; wanted 'silu'"):
        UNetConfig.from_diffusers(SMALL | dict(act_fn="mish"))
    with pytest.raises(InputError, match="num_heads has 2 entries, wanted 3"):
        UNetConfig.from_diffusers(SMALL | dict(attention_head_dim=(2, 4)))
    with pytest.raises(InputError, match="Unknown adapter 'first_fram'.*Did you mean 'first_frame'"):
        parameter_shapes(dataclasses.replace(unet.TINY, self_attention_branches=("first_fram",)))
    with pytest.raises(InputError, match="Unknown attention implementation 'xls'.*Did you mean 'xla'"):
        parameter_shapes(dataclasses.replace(unet.TINY, attention="xls"))
    with pytest.raises(InputError, match="Unknown convolution implementation 'winograt'.*Did you mean 'winograd'"):
        parameter_shapes(dataclasses.replace(unet.TINY, convolution="winograt"))
    with pytest.raises(InputError, match="Unknown remat 'dots'"):
        parameter_shapes(dataclasses.replace(unet.TINY, remat="dots"))
