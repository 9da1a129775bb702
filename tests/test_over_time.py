"""Weights over time: each half of a run is that of a run with those weights; what is the same is kept once."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from convert.__main__ import main as convert
from i2v_jax import commands, tree
from i2v_jax.devices.mesh import make_mesh, use_mesh
from i2v_jax.errors import InputError
from i2v_jax.families import over_time
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling import record
from i2v_jax.sampling.feature_reuse import Steps
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.watch import SILENT
from i2v_jax.weights.save import save_own
from tests.helpers import relative_error
from tests.processes import ROOT
from tests.test_pipeline import PROMPTS, SETTINGS, WEIGHTS, pictures, pipeline
from tests.tiny import SMALL

SWITCH = 500  # of the timesteps 667, 334, 1
SEEDS = [1, 2, 3, 2**32 - 1]


def changed(patterns, seed):
    """Some of the small model's weights, each with another number in every place."""
    random = np.random.default_rng(seed)
    chosen = tree.select(dict(pipeline().model.parameters), patterns)
    return jax.tree.map(lambda x: np.asarray(x) + 0.05 * random.standard_normal(x.shape).astype(np.float32), chosen)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The dynamic model's motion modules, and the consistent one's UNet and text encoder, in files of our own."""
    folder = tmp_path_factory.mktemp("over_time")
    save_own(folder / "dyn.safetensors", changed([r"unet/.*/motion/.*"], 1), {"unet": pipeline().model.configs["unet"]})
    configs = {name: pipeline().model.configs[name] for name in ("unet", "text_encoder")}
    save_own(folder / "con.safetensors", changed(["unet/.*", "text_encoder/.*"], 2), configs)
    return folder


def loaded(spans, devices=1, **shape):
    mesh = make_mesh(shape, jax.devices()[:devices])
    return Pipeline(Model.load(dataclasses.replace(WEIGHTS, over_time=over_time.parse(spans)), mesh=mesh), mesh)


def spans_of(files):
    return ((SWITCH, str(files / "dyn.safetensors")), (0, str(files / "con.safetensors")))


def alone(file):
    """A pipeline with one file's weights throughout, by the way of files of `train.py`."""
    mesh = make_mesh({}, jax.devices()[:1])
    return Pipeline(Model.load(dataclasses.replace(WEIGHTS, trained=(str(file),)), mesh=mesh), mesh)


def begun(run):
    """A run's first state, and what its steps are given."""
    with use_mesh(run.mesh):
        seeds = np.asarray(SEEDS, np.uint32)
        conditions = run.encode(PROMPTS, pictures=pictures(), settings=SETTINGS)
        first_frame = run.encode_first_frame(pictures(), seeds, SETTINGS)
        state = run.programs(SETTINGS)[0](first_frame, seeds, 0, SETTINGS.p, SETTINGS.frames)
    return state, conditions, first_frame, seeds


def steps(run, state, numbers, conditions, first_frame, seeds):
    """Takes these steps of a run."""
    strengths = dict(guidance_scale=SETTINGS.guidance_scale, first_frame=1.0, image_tokens=1.0)
    with use_mesh(run.mesh):
        for number in numbers:
            networks = {"unet": run.model.parameters["unet"]}
            state, _ = run.programs(SETTINGS)[1](networks, state, number, conditions, first_frame, seeds, strengths)
    return state


def test_each_half_of_a_run_is_that_of_a_run_with_those_weights(files):
    """Bit for bit, each half with its own text encoder; and the switch compiles nothing."""
    run = loaded(spans_of(files))
    seen = {}
    whole = run.latents(
        pictures(), PROMPTS, SEEDS, settings=SETTINGS, on_latents=lambda done, total, x0: seen.update({done: x0})
    )
    dynamic, consistent = alone(files / "dyn.safetensors"), alone(files / "con.safetensors")
    state, *given = begun(dynamic)
    half = steps(dynamic, state, [0], *given)
    np.testing.assert_array_equal(seen[1], half.x0)
    second = steps(consistent, half, [1, 2], *begun(consistent)[1:])
    np.testing.assert_array_equal(whole, second.latents)
    own = pipeline().latents(pictures(), PROMPTS, SEEDS, settings=SETTINGS)
    assert relative_error(whole, own) > 1e-2
    assert run.programs(SETTINGS)[1]._cache_size() == 1


def test_only_what_differs_is_kept_twice(files):
    model = loaded(spans_of(files)).model
    first, second = (tree.flatten(dict(stage.parameters)) for stage in model.over_time)
    assert first.keys() == second.keys()
    for path in first:
        differs = path.startswith(("unet/", "text_encoder/"))
        assert (first[path] is not second[path]) == differs, path
    own = loaded(((SWITCH, str(files / "dyn.safetensors")),)).model  # below, the model's own
    assert [stage.above for stage in own.over_time] == [SWITCH, 0]
    dynamic, rest = (tree.flatten(dict(stage.parameters)) for stage in own.over_time)
    base = tree.flatten(dict(pipeline().model.parameters))
    for path in dynamic:
        assert (dynamic[path] is rest[path]) == ("/motion/" not in path), path
        np.testing.assert_array_equal(rest[path], base[path])
    assert over_time.count_twice(own.over_time) == sum(x.nbytes for path, x in rest.items() if "/motion/" in path)
    same = loaded(((SWITCH, str(files / "con.safetensors")), (100, ""), (0, str(files / "con.safetensors")))).model
    ends = [jax.tree.leaves(same.over_time[i].parameters) for i in (0, 2)]
    assert all(one is other for one, other in zip(*ends))


def test_devices_share_out_every_stage(files, measured):
    one = loaded(spans_of(files)).latents(pictures(), PROMPTS, SEEDS, settings=SETTINGS)
    many = loaded(spans_of(files), 8, data=2, fsdp=2, frames=2).latents(pictures(), PROMPTS, SEEDS, settings=SETTINGS)
    measured("weights over time, 8 devices against 1", relative_error(many, one), 1e-5)


def test_files_of_any_format_and_deltas(files, tmp_path):
    """A single file of the original layout whose autoencoder is not switched, and a LoRA at a scale."""
    sources = [str(SMALL / part) for part in ("unet", "vae", "text_encoder")]
    convert(["export", *sources, str(tmp_path / "sd.safetensors"), "--to", "sd"])
    convert(["merge", "2 * a", f"a={tmp_path}/sd.safetensors", f"result={tmp_path}/twice.safetensors"])
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora"
    random = np.random.default_rng(0)
    width = pipeline().model.configs["unet"].block_out_channels[-1]
    factors = {"A": random.standard_normal((2, width)), "B": random.standard_normal((width, 2))}
    lora = {f"{layer}_{side}.weight": factor.astype(np.float32) for side, factor in factors.items()}
    save_file(lora, tmp_path / "lora.safetensors")
    scaled = f"{tmp_path}/lora.safetensors=0.5"
    model = loaded(((SWITCH, f"{tmp_path}/twice.safetensors"), (0, scaled))).model
    base = tree.flatten(dict(pipeline().model.parameters))
    merged = Model.load(dataclasses.replace(WEIGHTS, loras=(scaled,)))
    merged = tree.flatten(dict(merged.parameters))
    first, second = (tree.flatten(dict(stage.parameters)) for stage in model.over_time)
    different = [path for path in base if not np.array_equal(second[path], base[path])]
    assert different == ["unet/mid_block/attention/blocks_0/attn1/to_q/kernel"]
    for path in base:
        np.testing.assert_array_equal(second[path], merged[path])
        in_file = path.startswith(("unet/", "text_encoder/")) and not any(
            part in path for part in ("/motion/", "/first_frame/", "/image_tokens/")
        )
        np.testing.assert_array_equal(first[path], 2 * base[path] if in_file else base[path])


def test_features_are_not_reused_across_a_switch(files, monkeypatch):
    """Steps at 667, 334 and 1, one of three runs the whole UNet: so does the first behind a switch at 333."""
    run, seen = loaded(((333, str(files / "dyn.safetensors")),)), []
    program = object.__new__(Steps)
    program.every = 3

    def taken(kind, networks, state, *_):
        seen.append((kind, [stage.parameters["unet"] is networks["unet"] for stage in run.model.over_time].index(True)))
        return state, True

    program.whole = lambda *given: (*taken("whole", *given), "features")
    program.finest = lambda features, *given: taken("finest", *given)
    monkeypatch.setattr(run, "programs", lambda settings: (None, program))
    state = SimpleNamespace(latents=np.zeros((1, 8, 8, 8, 4)))
    conditions = SimpleNamespace(text=np.zeros((2, 1, 77, 32)))
    run._run(state, 0, conditions, None, None, SETTINGS, SILENT, 1)
    assert seen == [("whole", 0), ("finest", 0), ("whole", 1)]


def read(flag):
    argv = ["sample.py", f"--config.weights_over_time={flag}"]
    return commands.read_config(ROOT / "configs" / "sample" / "default.py", argv)


def test_the_flag_the_record_and_the_hashes(files):
    config = read(str(spans_of(files)))
    weights = Weights.of_run(config)
    assert weights.over_time == tuple(over_time.Span(*pair) for pair in spans_of(files))
    assert {files / "dyn.safetensors", files / "con.safetensors"} <= set(weights.files())
    assert "weights_over_time" in {part.name for part in weights.parts()}
    told = json.loads(json.dumps(record.travelling(config)))
    assert Weights.of_run(ConfigDict(told)).over_time == weights.over_time
    assert read("()").weights_over_time == ()


def refused(spans, *words, number=1000):
    with pytest.raises(InputError) as caught:
        over_time.check(over_time.parse(spans), number)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_times_out_of_range_or_order_are_refused():
    refused(((1000, "a"), (0, "b")), "1000", "out of range", "0 to 998")
    refused(((-1, "a"),), "-1", "out of range")
    refused(((0, "a"), (500, "b")), "500 stands after 0", "high timesteps to low")
    refused(((500, "a"), (500, "b")), "500 stands after 500")
    refused((("500", "a"),), "no pair of a timestep and a file")
    refused((500, "dyn.safetensors"), "500 is no pair")
    weights = Weights(str(SMALL), over_time=over_time.parse(((999, "a.safetensors"),)))
    with pytest.raises(InputError, match="weights_over_time: the timestep 999"):
        check_schedule(weights, pipeline().model.schedule)
    assert [over_time.at(over_time.parse(((500, "a"), (0, "b"))), t) for t in (501, 500, 1, 0)] == [0, 1, 1, 1]


def test_weights_of_another_network_are_refused(files, tmp_path):
    config = pipeline().model.configs["unet"]
    save_own(tmp_path / "more.safetensors", {"unet": {"conv_on": {"bias": np.zeros(8, np.float32)}}}, {"unet": config})
    kernel = {"conv_in": {"kernel": np.zeros((3, 3, 4, 8), np.float32)}}
    save_own(tmp_path / "wide.safetensors", {"unet": kernel}, {"unet": config})
    for spans, words in (
        (((0, f"{files}/dyn.safetensors=0.5"),), "a scale, here 0.5"),
        (((0, f"{tmp_path}/none.safetensors"),), "none.safetensors"),
        (
            ((0, f"{tmp_path}/wide.safetensors"),),
            "of another network than the model: unet/conv_in/kernel has the shape",
        ),
        (((0, f"{tmp_path}/more.safetensors"),), "of another network than the model: its unet has conv_on/bias"),
    ):
        with pytest.raises(InputError, match=words):
            loaded(spans)
