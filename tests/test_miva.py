"""MIVAs: new ones change nothing, several are the sum of what each changes, where their masks let them; files."""

import dataclasses
import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.train import miva as miva_config
from convert.__main__ import main as convert
from i2v_jax.devices.mesh import make_mesh, use_mesh
from i2v_jax.errors import InputError
from i2v_jax.families.published import networks_of_config
from i2v_jax.families.weights import Weights
from i2v_jax.models.adapters import Shared
from i2v_jax.models.adapters.miva import PARTS, MivaConfig, branches, masks_of_levels
from i2v_jax.models.attention import Attention, attention, merge_heads, split_heads
from i2v_jax.models.conditions import Conditions, join
from i2v_jax.models.motion import MotionConfig
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15, SDXL, TINY, UNet
from i2v_jax.sampling import mivas as in_sampling
from i2v_jax.sampling.settings import Settings
from i2v_jax.training.placement import abstract_weights
from i2v_jax.tree import flatten, select, unflatten
from i2v_jax.weights import mivas
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.save import save_own
from i2v_jax.weights.tensors import Tensors
from tests.helpers import exact_jit, relative_error

B, F, S, T, HEADS, WIDTH, CONTEXT, RANK = 2, 4, 4, 7, 2, 16, 12, 3
BASE = dataclasses.replace(TINY, motion=MotionConfig(norm_groups=8, num_heads=4))
SCALES = np.array([0.7, -1.3], np.float32)


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def drawn(shapes, seed=0, new=False):
    """Parameters by path, drawn for each path; of new MIVAs, `up`, `states` and `balance` are zero."""
    found = {}
    for path, leaf in shapes.items():
        rng = np.random.default_rng([seed, *path.encode()])
        array = rng.normal(size=leaf.shape) / max(leaf.shape[-2:][0], 1) ** 0.5
        if new and "/miva/" in path and not path.endswith("/down"):
            array = 0 * array
        found[path] = jnp.asarray(array, jnp.float32)
    return found


def of_one(flat, number):
    """The parameters with one of their MIVAs alone."""
    return {path: leaf[number : number + 1] if "miva/" in path else leaf for path, leaf in flat.items()}


class Layer:
    """An attention with two MIVAs of a part beside it, run without compiling."""

    def __init__(self, part, count=2):
        self.part, self.config = part, MivaConfig(count, RANK, 5)
        self.hidden = numbers(1, B, F, S, WIDTH) if part != "motion" else numbers(1, B, S, F, WIDTH)
        self.text = numbers(2, B, 1, T, CONTEXT)
        self.module = Attention(HEADS, branches(self.config, part))
        self.shapes = self._flat(jax.eval_shape(self._init, jax.random.key(0)))

    def _init(self, key):
        return self.module.init(key, *self._inputs(self._shared()))

    def _flat(self, tree):
        return flatten(tree["params"])

    def _shared(self, scales=None, masks=None, implicit=None):
        conditions = Conditions(self.text, implicit=implicit)
        return Shared(numbers(3, B, 8), conditions, {} if scales is None else {"miva": jnp.asarray(scales)}, masks)

    def _inputs(self, shared):
        return self.hidden, self.text if self.part == "prompt" else None, shared

    def __call__(self, flat, count=2, implementation="xla", **shared):
        own = branches(dataclasses.replace(self.config, count=count), self.part) if count else ()
        module = Attention(HEADS, own, implementation)
        return module.apply({"params": unflatten(flat)}, *self._inputs(self._shared(**shared)))


# Formulas, each MIVA apart, as docs/miva.md has them.


def attend(q, k, v):
    return merge_heads(attention(*(split_heads(x, HEADS) for x in (q, k, v))))


def change(x, flat, name):
    return x @ flat[f"{name}/down"][0] @ flat[f"{name}/up"][0]


def frames_alone(layer, flat):
    x, time = layer.hidden, nn.silu(numbers(3, B, 8))
    k, v = x @ flat["to_k/kernel"], x @ flat["to_v/kernel"]
    weights = jax.nn.softmax(time @ flat["miva/balance/kernel"][0] + flat["miva/balance/bias"][0])
    total = 0
    for number, (name, frame_of) in enumerate((("first", lambda i: 0), ("previous", lambda i: max(i - 1, 0)))):
        q = x @ flat["to_q/kernel"] + change(x, flat, f"miva/{name}_to_q")
        others = [frame_of(i) for i in range(F)]
        out = attend(q, k[:, others], v[:, others])
        total += weights[:, number][:, None, None, None] * change(out, flat, f"miva/{name}_to_out")
    return total


def prompt_alone(layer, flat):
    states = jnp.pad(flat["miva/states"], ((0, 0), (0, T - 5), (0, 0)))
    q = layer.hidden @ flat["to_q/kernel"]
    texts = layer.text + states[:, None], layer.text
    outs = [attend(q, *(text @ flat[f"{name}/kernel"] for name in ("to_k", "to_v"))) for text in texts]
    return (outs[0] - outs[1]) @ flat["to_out/kernel"]


def motion_alone(layer, flat):
    x = layer.hidden
    qkv = [x @ flat[f"{name}/kernel"] for name in ("to_q", "to_k", "to_v")]
    changed = [own + change(x, flat, f"miva/{name}") for own, name in zip(qkv, ("to_q", "to_k", "to_v"))]
    out = attend(*changed)
    whole = out @ flat["to_out/kernel"] + change(out, flat, "miva/to_out")
    return whole - attend(*qkv) @ flat["to_out/kernel"]


ALONE = {"frames": frames_alone, "prompt": prompt_alone, "motion": motion_alone}


@pytest.mark.parametrize("part", PARTS)
def test_two_in_one_run_are_each_ones_change_summed(part, measured):
    layer = Layer(part)
    flat = drawn(layer.shapes)
    base = layer({path: leaf for path, leaf in flat.items() if "miva" not in path}, 0)
    parts = [ALONE[part](layer, of_one(flat, number)) for number in (0, 1)]
    whole = layer(flat, scales=SCALES)
    apart = base + sum(s * x for s, x in zip(SCALES, parts))
    measured(f"MIVA, {part}: two in one run against each apart, summed", relative_error(whole, apart), 1e-5)
    assert all(relative_error(x + base, base) > 0.05 for x in parts)
    alone = [layer(of_one(flat, number), 1, scales=SCALES[number : number + 1]) - base for number in (0, 1)]
    assert relative_error(whole - base, sum(alone)) < 1e-5


@pytest.mark.parametrize("part", PARTS)
def test_masks_say_where_each_works(part):
    """What one makes of a place is there where its mask is 1, half of it at a half, nothing at 0."""
    layer = Layer(part)
    flat = drawn(layer.shapes)
    masks = np.array([[1, 0], [0, 1], [0.5, 0], [0, 0]], np.float32)[None].repeat(B, 0)  # b s n
    found = layer(flat, scales=SCALES, masks={S: jnp.asarray(masks)})
    base = layer({path: leaf for path, leaf in flat.items() if "miva" not in path}, 0)
    parts = [s * ALONE[part](layer, of_one(flat, number)) for number, s in enumerate(SCALES)]
    places = 1 if part == "motion" else 2
    by_place = [np.moveaxis(np.asarray(x), places, 0) for x in (found, base, *parts)]
    for place in range(S):
        one, own, first, second = (x[place] for x in by_place)
        np.testing.assert_allclose(one, own + masks[0, place, 0] * first + masks[0, place, 1] * second, atol=2e-5)
    np.testing.assert_array_equal(by_place[0][3], by_place[1][3])


def test_the_implicit_prompt_is_left_out_on_one_side_of_guidance():
    layer = Layer("prompt")
    flat = drawn(layer.shapes)
    base = layer({path: leaf for path, leaf in flat.items() if "miva" not in path}, 0)
    found = layer(flat, implicit=jnp.asarray([[0.0], [1.0]]))
    np.testing.assert_array_equal(found[0], base[0])
    assert relative_error(found[1], base[1]) > 0.05


def test_the_balance_follows_the_timestep_and_begins_even():
    layer = Layer("frames")
    flat = drawn(layer.shapes)
    even = {path: 0 * leaf if "balance" in path else leaf for path, leaf in flat.items()}
    assert relative_error(layer(flat), layer(even)) > 1e-3
    one = {path: leaf for path, leaf in even.items()}
    one["miva/balance/bias"] = jnp.asarray([[40.0, -40.0]] * 2)  # the first frame's alone
    without = {path: 0 * leaf if "previous_to_out" in path else leaf for path, leaf in even.items()}
    base = layer({path: leaf for path, leaf in flat.items() if "miva" not in path}, 0)
    assert relative_error(layer(one) - base, 2 * (layer(without) - base)) < 1e-4


@pytest.mark.parametrize("part", PARTS)
def test_a_mesh_makes_no_difference(part):
    """Videos and frames (of motion modules: places) spread over devices."""
    layer = Layer(part)
    flat, mesh = drawn(layer.shapes), make_mesh({"data": 2, "frames": 2}, jax.devices()[:4])
    scales = jnp.asarray(SCALES)
    with use_mesh(mesh):
        spread = jax.jit(lambda flat: layer(flat, scales=scales, implementation="blocked"))(flat)
    assert relative_error(spread, layer(flat, scales=scales)) < 1e-5


@functools.cache
def unets():
    """The UNet, compiled, without MIVAs and with two; its inputs but for parameters and strengths."""
    given = numbers(5, B, F, 4, 4, 4), jnp.asarray([900, 20]), Conditions.of_videos(numbers(6, B, 77, 32))
    with_two = dataclasses.replace(BASE, miva=MivaConfig(2, RANK))

    def run(config, flat, strengths):
        return UNet(config).apply({"params": unflatten(flat)}, *given, strengths)

    return tuple(exact_jit(functools.partial(run, config)) for config in (BASE, with_two)), with_two


def test_new_ones_change_nothing_at_any_scale():
    (plain, both), config = unets()
    flat = drawn(parameter_shapes(config), new=True)
    base = plain({path: leaf for path, leaf in flat.items() if "/miva/" not in path}, {})
    for scales in ((1, 1), (0, 0), (0.3, -2)):
        np.testing.assert_array_equal(both(flat, {"miva": jnp.asarray(scales, jnp.float32)}), base)
    taught = drawn(parameter_shapes(config))
    assert relative_error(both(taught, {"miva": jnp.ones(2)}), base) > 1e-2


def test_gradients_reach_every_part_of_a_taught_one():
    (_, both), config = unets()
    flat = drawn(parameter_shapes(config))
    own = {path: leaf for path, leaf in flat.items() if "/miva/" in path}

    def loss(own, flat):
        return jnp.sum(jnp.square(both.__wrapped__(flat | own, {"miva": jnp.ones(2)})))

    gradients = jax.jit(jax.grad(loss))(own, flat)
    assert all(np.any(gradient) for gradient in gradients.values())


def test_masks_are_brought_to_each_level():
    masks = np.zeros((1, 1, 2, 6, 10), np.float32)
    masks[0, 0, 0, :, :4] = 1
    levels = masks_of_levels(jnp.asarray(masks), 3)
    assert {places: level.shape for places, level in levels.items()} == {60: (1, 60, 2), 15: (1, 15, 2), 6: (1, 6, 2)}
    np.testing.assert_array_equal(levels[60][0, :, 0].reshape(6, 10), masks[0, 0, 0])
    coarse = levels[15][0, :, 0].reshape(3, 5)
    assert (coarse[:, 0] > 0.9).all() and (coarse[:, 4] == 0).all() and masks_of_levels(None, 3) is None


def test_published_models_get_small_ones():
    """Weights trained, beside those of the UNet; counted by tracing."""
    motion = MotionConfig()
    for unet, rank in ((dataclasses.replace(SD15, motion=motion), 16), (dataclasses.replace(SDXL, motion=motion), 16)):
        shapes = parameter_shapes(dataclasses.replace(unet, miva=MivaConfig(1, rank)))
        size = {
            own: sum(np.prod(leaf.shape) for path, leaf in shapes.items() if ("/miva/" in path) == own)
            for own in (True, False)
        }
        assert 0.001 < size[True] / size[False] < 0.05


# Files.


def assembled(config=BASE):
    rng = np.random.default_rng(3)
    flat = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in parameter_shapes(config).items()}
    return Assembled(config, Tensors.of(flat, "base"), Tensors.of({}))


def training(**changes):
    """A training's config, as far as a MIVA's file tells of it."""
    config = dict(
        folder="runs/swing",
        batch=2,
        miva=dict(name="", rank=4, tokens=77, parts=PARTS),
        weights=dict(base="a/base", unet="", motion="a/motion", adapter=""),
        optimizer=dict(learning_rate=1e-3),
        data=dict(source="clips", frames=8, stride=1, height=32, width=32, flip=False),
    )
    return ConfigDict(config | changes)


def write(path, rank=4, seed=1, base=BASE, **changes):
    """A taught MIVA's file; returns its weights."""
    config = dataclasses.replace(base, miva=MivaConfig(1, rank))
    own = {path: np.asarray(leaf) for path, leaf in drawn(parameter_shapes(config), seed).items() if "/miva/" in path}
    told = training(miva=dict(name="", rank=changes.pop("told_rank", rank), tokens=77, parts=PARTS))
    metadata = mivas.metadata_of(told, 10, 200, 0.25)
    save_own(path, {"unet": unflatten(own | changes.pop("more", {}))}, {"unet": config}, metadata)
    return own


def test_a_file_keeps_what_it_is_for(tmp_path, capsys):
    own = write(tmp_path / "swing.safetensors")
    miva, imported = mivas.read(tmp_path / "swing.safetensors", 0.5)
    assert (miva.name, miva.scale, miva.about["base"], miva.about["rank"]) == ("swing", 0.5, "a/base", 4)
    assert miva.about["trained"]["clips"] == 10 and miva.about["trained"]["steps"] == 200
    assert imported.parameters.entries.keys() == own.keys()
    for path, array in own.items():
        np.testing.assert_array_equal(imported.parameters[path], array)
    assert convert(["inspect", str(tmp_path / "swing.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "MIVA 'swing' of rank 4 (frames, prompt, motion), for a/base, trained without an I2V-Adapter" in printed
    assert "unet: MIVA" in printed and "Unknown adapter" not in printed and "motion modules" not in printed
    with pytest.raises(InputError, match="is a MIVA, which no format of others has a place for"):
        convert(["import", str(tmp_path / "swing.safetensors"), str(tmp_path / "x.safetensors")])
    assert not (tmp_path / "x.safetensors").exists()


def test_files_of_several_ranks_are_stacked(tmp_path):
    """The lower rank is filled up with zeros, which changes nothing of what it does."""
    given = [write(tmp_path / f"{rank}.safetensors", rank, seed=rank) for rank in (2, 4)]
    found = mivas.with_mivas(assembled(), [mivas.read(tmp_path / f"{rank}.safetensors") for rank in (2, 4)], "base")
    assert found.config.miva == MivaConfig(2, 4)
    assert found.parameters.entries.keys() == parameter_shapes(found.config).keys()
    path = next(path for path in given[0] if path.endswith("first_to_q/down"))
    stacked, up = found.parameters[path], found.parameters[path.removesuffix("down") + "up"]
    np.testing.assert_array_equal(stacked[1], given[1][path][0])
    np.testing.assert_array_equal(stacked[0, :, :2], given[0][path][0])
    assert not stacked[0, :, 2:].any() and not up[0, 2:].any()
    np.testing.assert_allclose(
        stacked[0] @ up[0], given[0][path][0] @ given[0][path.removesuffix("down") + "up"][0], 1e-5, 1e-6
    )
    assert "2 MIVAs: swing x 1, swing x 1; " in mivas.describe([mivas.read(tmp_path / "2.safetensors")[0]] * 2, found)


def test_a_new_one_begins_the_same_for_a_seed_and_is_gone_on_with(tmp_path):
    shape = MivaConfig(1, 4)
    one, again, other = (
        mivas.with_new_miva(assembled(), shape, np.random.default_rng(seed), None, "base").parameters
        for seed in (0, 0, 1)
    )
    own = [path for path in one if "/miva/" in path]
    assert all(np.array_equal(one[path], again[path]) for path in own)
    assert {path.rpartition("/")[2] for path in own if np.any(one[path])} == {"down"}
    assert any(not np.array_equal(one[path], other[path]) for path in own)
    taught = write(tmp_path / "m.safetensors")
    source = tmp_path / "m.safetensors"
    on = mivas.with_new_miva(assembled(), shape, np.random.default_rng(0), source, "base").parameters
    assert all(np.array_equal(on[path], taught[path]) for path in own)
    with pytest.raises(InputError, match="miva.rank=8, and .* has 4. Set --config.miva.rank=4"):
        mivas.with_new_miva(assembled(), MivaConfig(1, 8), np.random.default_rng(0), source, "base")


def test_another_bases_is_refused(tmp_path):
    wider = dataclasses.replace(BASE, block_out_channels=(32, 96))
    write(tmp_path / "other.safetensors", base=wider)
    with pytest.raises(
        InputError, match="was trained on a/base, a UNet of levels 32, 96 wide.* base is .* 32, 64 wide"
    ):
        mivas.with_mivas(assembled(), [mivas.read(tmp_path / "other.safetensors")], "base")


def test_a_rank_that_tensors_have_not_is_refused(tmp_path):
    write(tmp_path / "other.safetensors", rank=4, told_rank=8)
    with pytest.raises(InputError, match="differ from what rank 8 wants there, such as .*/down': .*, 4\\)"):
        mivas.with_mivas(assembled(), [mivas.read(tmp_path / "other.safetensors")], "base")


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"name": "a"}', '{"name": "a", "base": "b", "rank": "4", "tokens": 77, "parts": []}']
)
def test_damaged_metadata_are_refused(metadata, tmp_path):
    config = dataclasses.replace(BASE, miva=MivaConfig(1, 4))
    own = {path: np.zeros(leaf.shape, np.float32) for path, leaf in mivas.shapes_of(config).items()}
    save_own(tmp_path / "m.safetensors", {"unet": unflatten(own)}, {"unet": config}, {mivas.KEY: metadata})
    with pytest.raises(InputError, match="does not describe a MIVA"):
        mivas.read(tmp_path / "m.safetensors")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    write(
        tmp_path / "m.safetensors",
        more={"mid_block/attention/blocks_0/attn2/miva/states": np.full((1, 77, 32), np.nan)},
    )
    found = mivas.with_mivas(assembled(), [mivas.read(tmp_path / "m.safetensors")], "base").parameters
    with pytest.raises(InputError, match="NaN"):
        found["mid_block/attention/blocks_0/attn2/miva/states"]


def test_what_is_no_miva_is_said(tmp_path):
    save_own(tmp_path / "unet.safetensors", {"unet": unflatten({"conv_in/kernel": np.zeros((3, 3, 4, 8), np.float32)})})
    with pytest.raises(InputError, match="is no MIVA, but a UNet. Wanted a file that train.py wrote"):
        mivas.read(tmp_path / "unet.safetensors")
    write(tmp_path / "m.safetensors", more={"conv_in/kernel": np.zeros((3, 3, 4, 8), np.float32)})
    with pytest.raises(InputError, match="holds 'conv_in/kernel' beside a MIVA"):
        mivas.read(tmp_path / "m.safetensors")


def test_one_given_for_something_else_is_said(tmp_path):
    write(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="weights.trained: .* is a MIVA. Give it as --config.mivas"):
        mivas.refuse_among([tmp_path / "m.safetensors"])


def test_scales_are_read_and_those_of_0_left_out(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors")
    a, b = (str(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert Weights("x", mivas=(f"{a}=0.5", f"{b}=0", b + "2=-1")).given_mivas() == [(a, 0.5), (b + "2", -1.0)]
    run = ConfigDict(dict(weights=dict(base="x"), mivas=(a,)))
    assert Weights.of_run(run).given_mivas() == [(a, 1.0)]
    (tmp_path / "link.safetensors").symlink_to(a)
    with pytest.raises(InputError, match="is given twice, at 0.5 and 0.2. Give it once, such as '.*=0.7'"):
        mivas.parse((f"{a}=0.5", f"{tmp_path}/link.safetensors=0.2"))
    with pytest.raises(InputError, match="mivas: .*wanted FILE or FILE=SCALE"):
        mivas.parse(("a=much",))


@pytest.mark.parametrize(
    "adapter, has, words", [("i2v", False, "trained beside an I2V-Adapter, i2v"), ("", True, "without")]
)
def test_it_is_said_where_the_i2v_adapter_is_missing_or_new(adapter, has, words, tmp_path):
    write(tmp_path / "m.safetensors")
    miva, imported = mivas.read(tmp_path / "m.safetensors")
    miva = miva._replace(about=miva.about | dict(adapter=adapter))
    base = assembled(dataclasses.replace(BASE, self_attention_branches=("first_frame",) if has else ()))
    with pytest.warns(UserWarning, match=words):
        mivas.with_mivas(base, [(miva, imported)], "base")


# A run.


def model(count, miva_scales=(), **config):
    unet = dataclasses.replace(BASE, miva=MivaConfig(count) if count else None, **config)
    own = tuple(mivas.Miva(str(n), scale, "", {}) for n, scale in enumerate(miva_scales))
    return SimpleNamespace(miva_count=count, mivas=own, configs={"unet": unet, "vae": SimpleNamespace(downscale=8)})


def test_masks_are_the_subjects_and_the_rest(tmp_path):
    subject = np.zeros((16, 32), np.uint8)
    subject[:, 4:16] = 255
    Image.fromarray(subject).save(tmp_path / "subject.png")
    picture = np.zeros((16, 32, 3), np.uint8)
    masks = in_sampling.read_masks((str(tmp_path / "subject.png"), "rest", ""), [picture] * 2, (16, 32), "crop", 8)
    assert masks.shape == (2, 1, 3, 2, 4)
    np.testing.assert_array_equal(masks[1, 0, 0], [[0.5, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(masks[0, 0, 2], np.ones((2, 4)))
    subject_alone = in_sampling.read_masks((str(tmp_path / "subject.png"), "rest"), [picture], (16, 32), "crop", 8)
    np.testing.assert_array_equal(subject_alone[0, 0].sum(0), np.ones((2, 4)))
    larger = in_sampling.read_masks(
        (str(tmp_path / "subject.png"),), [np.zeros((9, 9, 3), np.uint8)], (16, 32), "crop", 8
    )
    np.testing.assert_array_equal(larger[0, 0, 0], masks[0, 0, 0])
    with pytest.raises(InputError, match="subject.png is 32x16, and its picture 20x20. Give a mask of that size, or"):
        in_sampling.read_masks((str(tmp_path / "subject.png"),), [np.zeros((20, 20, 3), np.uint8)], (24, 24), "crop", 8)


def test_masks_pair_with_mivas():
    in_sampling.check(("a.png", "rest"), model(2))
    for masks, words in ((("a.png",), "1 masks, and there are 2"), (("rest", "rest"), "one 'rest' at most")):
        with pytest.raises(InputError, match=words):
            in_sampling.check(masks, model(2))
    with pytest.raises(InputError, match="there are 0 MIVAs"):
        in_sampling.check(("a.png",), model(0))


def test_a_prompt_that_is_not_used_is_said():
    with pytest.warns(UserWarning, match="The prompt 'a cat' and 1 more is not used.*miva_with_prompt=True"):
        assert in_sampling.without_prompts(model(1), ["a cat", "a dog", ""], False) == ["", "", ""]
    assert in_sampling.without_prompts(model(1), ["a cat"], True) == ["a cat"]
    assert in_sampling.without_prompts(model(0), ["a cat"], False) == ["a cat"]


def test_more_than_memory_for_are_refused_with_the_number_that_fits(monkeypatch):
    settings = Settings(height=512, width=512, frames=16)
    each = in_sampling.bytes_of_each(model(3).configs["unet"], 2, 16, (64, 64))
    monkeypatch.setattr(in_sampling.memory, "free_bytes", lambda device: int(2.5 * each))
    with pytest.raises(InputError, match="3 MIVAs want .* GB are free, for 2 MIVAs"):
        in_sampling.check_memory(model(3), settings, 1, jax.devices()[0])
    in_sampling.check_memory(model(2), settings, 1, jax.devices()[0])
    monkeypatch.setattr(in_sampling.memory, "free_bytes", lambda device: None)
    in_sampling.check_memory(model(3), settings, 1, jax.devices()[0])


def test_guidance_leads_away_from_no_implicit_prompt():
    text = jnp.zeros((2, 1, 3, 4))
    masks = jnp.ones((2, 1, 1, 2, 2))
    sides = in_sampling.with_implicit(model(1), Conditions(text), Conditions(text + 1), masks)
    joined = join(*sides)
    np.testing.assert_array_equal(joined.implicit, [[0], [0], [1], [1]])
    assert joined.miva_masks.shape == (4, 1, 1, 2, 2)
    assert in_sampling.with_implicit(model(0), None, Conditions(text), None) == (None, Conditions(text))
    np.testing.assert_array_equal(in_sampling.strengths(model(2, (0.5, 2.0)))["miva"], [0.5, 2])
    assert in_sampling.strengths(model(1)) == {}


@pytest.mark.parametrize("name, part", [("sd15", "/miva/"), ("sd15_lora", "/lora/"), ("sd15_lamp", "")])
def test_each_config_trains_what_it_is_called(name, part):
    """On the published base, of which nothing is read."""
    config = miva_config.get_config(name)
    unet = networks_of_config(config, jax.devices()[0])["unet"]
    assert unet.miva == (MivaConfig(1, 16) if name == "sd15" else None)
    assert unet.self_attention_branches == ("first_frame",)
    trained = flatten(select(abstract_weights({"unet": unet}, config.lora), config.train))
    own = {path for path in trained if part in path}
    assert own == set(trained) and (name != "sd15_lamp" or {"/motion/" in path for path in own} == {True, False})
    assert config.objective.prompt_dropout == 1 and config.data.no_captions and config.held_out.patience
