"""The planner against what is known of a step: its arguments, its arithmetic, what it sends; what it says otherwise."""

import dataclasses
import importlib.util
import math
import os
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from i2v_jax import commands, tree
from i2v_jax.devices.mesh import make_mesh, use_mesh
from i2v_jax.errors import InputError
from i2v_jax.families.published import networks_of_config
from i2v_jax.planning import compiling, hlo, plan
from i2v_jax.training import placement

ROOT = Path(__file__).resolve().parents[1]
TOPOLOGY = "v5e:2x2"


def tiny(**changes):
    config = commands.load_config(ROOT / "tests" / "configs" / "train.py")
    with config.unlocked():
        config.update(dict(dtype="bfloat16", attention="xla") | changes)
    return config


@pytest.fixture(scope="module")
def slice_():
    return plan.slice_of(TOPOLOGY)


def program(function, *arrays, devices):
    """A program of arrays given as (shape, whether cut over the devices)."""
    mesh = make_mesh({"data": -1}, devices)
    given = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P("data") if cut else P()))
        for shape, cut in arrays
    ]
    return plan.Program("training step", 8, mesh, jax.jit(function), tuple(given), dict(frozen=given))


def test_a_tiny_training_step(slice_, tmp_path, measured):
    chip, devices = slice_
    config = tiny()
    with jax.default_matmul_precision("default"):
        figures = plan.measure(plan.training_program(config, devices, stored=True), TOPOLOGY, tmp_path)
    configs = networks_of_config(config, devices[0])
    trained, frozen = tree.split(placement.abstract_weights({"unet": configs["unet"]}), config.train)
    count = tree.count(trained)
    assert figures.arguments["trained"] == 4 * count
    assert 8 * count <= figures.arguments["optimizer"] <= 8 * count + 64
    assert figures.arguments["frozen"] == 2 * tree.count(frozen)
    # the compiler pads small arrays to whole tiles
    known = sum(figures.arguments.values())
    assert known <= figures.analysis["arguments"] <= 2 * known
    assert figures.fits(chip)
    measured("planned FLOPs against XLA's, elementwise apart", figures.flops / figures.analysis["flops"], 1.001)
    assert figures.flops > 0.8 * figures.analysis["flops"]
    measured("bytes sent in a step over the gradient's", sum(put for put, _ in figures.sent.values()) / 4 / count, 2)
    text = plan.report(figures, chip, config)
    assert "clips/s" in text and "DOES NOT FIT" not in text
    (remembered,) = tmp_path.iterdir()
    assert plan.Figures(**plan.json.loads(remembered.read_text())) == figures


def test_a_sampling_step_is_traced(slice_):
    """It is compiled by hand; what is compiled is the pipeline's own program."""
    found = plan.sampling_program(tiny(), slice_[1])
    with use_mesh(found.mesh):
        state, finite = jax.eval_shape(found.function, *found.arguments)
    assert state.latents.shape == (4, 8, 8, 8, 4) and finite.dtype == bool
    assert {"frozen", "latents", "conditions"} == found.kinds.keys()


def test_a_sampling_step_with_control_networks_is_traced(slice_):
    """Published ones need not be here; the training step has none."""
    config = commands.load_config(commands.ROOT / "configs" / "train" / "sd15_stage1.py")
    config.weights.controls = ("lllyasviel/control_v11p_sd15_openpose",) * 2
    plain = networks_of_config(config, slice_[1][0])
    assert {"control_0", "control_1"} < plain.keys() and plain["control_0"].dtype == plain["unet"].dtype
    found = plan.sampling_program(config, slice_[1])
    with use_mesh(found.mesh):
        state, _ = jax.eval_shape(found.function, *found.arguments)
    assert state.latents.shape[1:] == (config.data.frames, config.data.height // 8, config.data.width // 8, 4)
    kinds = plan.training_program(config, slice_[1]).kinds
    assert not any("control" in path for path in tree.flatten(kinds["frozen"]))


@pytest.mark.parametrize(
    "changes, added", [({"control.process": "canny"}, "controlnet/"), ({"lora.rank": 4}, "/lora/")]
)
def test_what_is_trained_beside_the_unet_is_planned(changes, added, slice_):
    """A ControlNet that there is not yet, and a LoRA's factors."""
    config = tiny()
    config.update_from_flattened_dict(
        changes | {"branches": (), "train": (".*/lora/.*" if "lora" in added else "controlnet/.*",)}
    )
    found = plan.training_program(config, slice_[1])
    state, metrics = jax.eval_shape(found.function, *found.arguments)
    assert state.trained and all(added in path for path in state.trained) and metrics.loss.shape == ()
    assert ("control" in found.arguments[2]) == (added == "controlnet/")
    if "control" in found.arguments[2]:
        plan.sampling_program(config, slice_[1])


def test_every_round_of_a_loop_counts(slice_):
    """Products and sends in a loop; XLA's own analysis sees one round."""

    def looping(w, x):
        def body(x, _):
            return jnp.tanh(x @ w), jnp.sum(x)

        return jax.lax.scan(body, x, None, length=10)

    found = program(looping, ((512, 512), False), ((2048, 512), True), devices=slice_[1])
    figures = plan.measure(found, TOPOLOGY)
    assert figures.flops == pytest.approx(10 * 2 * 512 * 512 * 512)
    assert figures.analysis["flops"] < figures.flops / 5
    assert figures.sent["all-reduce"][0] >= 4  # the sums, together or one by one
    assert figures.bytes >= 2 * 512 * 512 * 2


def test_what_is_known_before_machine_code_is_what_is_known_after(slice_, tmp_path):
    def stages(w, x):
        for _ in range(3):
            x = jnp.tanh(x @ w)
        return jnp.sum(x.astype(jnp.float32), 0)

    found = program(stages, ((512, 512), False), ((2048, 512), True), devices=slice_[1])
    with use_mesh(found.mesh):
        lowered = found.function.trace(*found.arguments).lower(lowering_platforms=("tpu",))
    late = lowered.compile(compiler_options=compiling.dumping(str(tmp_path)))
    early = compiling.read_dump(tmp_path)
    assert hlo.cost(early.text) == hlo.cost(late.as_text())
    memory = late.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert early.memory == pytest.approx(whole, rel=0.02)


class _Slow:
    """A program whose memory is laid out at once, and whose machine code is never there."""

    def compile(self, compiler_options):
        folder = Path(compiler_options["xla_dump_to"])
        (folder / ("module_1" + compiling.REPORT[1:])).write_text("Memory Space: default (color=0)\nTotal bytes: 12\n")
        (folder / ("module_1" + compiling.TEXT[1:])).write_text("HloModule a")
        threading.Event().wait()


def test_machine_code_is_not_waited_for():
    assert compiling.until_laid_out(_Slow(), seconds=0) == compiling.LaidOut("HloModule a", 12)


def refusing(what):
    raise InputError(f"no {what}")


def test_what_a_process_finds_or_refuses_comes_back():
    assert compiling.in_a_process(math.gcd, 12, 18) == 6
    with pytest.raises(InputError, match="no slice"):
        compiling.in_a_process(refusing, "slice")
    with pytest.raises(RuntimeError, match="exit code 3"):
        compiling.in_a_process(os._exit, 3)


def test_sends_are_told_by_kind(slice_):
    def gathering(w, x):
        return jax.lax.with_sharding_constraint(x, P()) @ w

    found = program(gathering, ((128, 128), False), ((4096, 128), True), devices=slice_[1])
    with use_mesh(found.mesh):
        figures = plan.measure(found, TOPOLOGY)
    share = 1024 * 128 * 2
    assert figures.sent == {"all-gather": [share, 3 * share]}
    assert figures.times(slice_[0])["links"] == pytest.approx(3 * share / 200e9)


@pytest.mark.parametrize(
    "attributes, size",
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add", 4),
        ("replica_groups=[2,8]<=[16], use_global_device_ids=true", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x=1", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, x=1", 8),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=4], device_ids=([4,8]T(1,0)) {'axis_0'}, dimensions={0}", 8),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=4] {'axis_1','axis_0':(2)4}, x=1", 16),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_group_sizes(attributes, size):
    assert hlo.group_size(attributes) == size


def test_padding_and_on_chip_memory():
    assert hlo.size("f32[16,8,100]{2,1,0:T(8,128)}") == 16 * 8 * 100 * 4
    assert hlo.traffic("f32[16,8,100]{2,1,0:T(8,128)}") == 16 * 8 * 128 * 4
    assert hlo.traffic("bf16[128,3]{0,1:T(4,128)(2,1)}") == 128 * 4 * 2
    assert hlo.traffic("(f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)})") == 8 * 128 * 4
    assert hlo.traffic("pred[]") == 1


SLICES = """\
HloModule slices

%cut (p.0: f32[10,8,128], p.1: s32[]) -> f32[1,8,128] {
  %p.0 = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,8,128}
}

%put (p.2: f32[10,8,128], p.3: f32[1,8,128], p.4: s32[]) -> f32[10,8,128] {
  %p.2 = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.3 = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %p.4 = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %all = f32[10,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p.2, %p.3, %p.4, %none, %none)
}

ENTRY %main (a: f32[10,8,128], b: s32[]) -> f32[10,8,128] {
  %a = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = s32[] parameter(1)
  %one = f32[1,8,128]{2,1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%cut
  ROOT %out = f32[10,8,128]{2,1,0:T(8,128)} fusion(%a, %one, %b), kind=kLoop, calls=%put
}
"""


def test_of_slices_only_they_are_traffic():
    """A slice is read and written, then read and written in place; the numbers of both are read."""
    assert hlo.cost(SLICES).bytes == 4 * (8 * 128 * 4) + 2 * 4
    elsewhere = SLICES.replace("ROOT %slice =", "%sum = f32[] reduce(%p.0, %zero)\n  ROOT %slice =")
    assert hlo.cost(elsewhere).bytes == 13 * (8 * 128 * 4) + 2 * 4  # the whole is looked at too


def test_what_does_not_fit_says_what_would(slice_):
    chip, devices = slice_

    def large(w, x):
        return jnp.tanh(x @ x.T) @ jnp.tanh(x @ x.T).T @ w

    found = program(large, ((1 << 17, 8), False), ((1 << 17, 64), True), devices=devices)
    figures = plan.measure(found, TOPOLOGY)
    assert not figures.fits(chip) and figures.flops is None and figures.temporaries > chip.memory
    text = plan.report(figures, chip, tiny(batch=8))
    for advice in ("DOES NOT FIT", "--config.remat=products", "--config.accumulate=2", "--config.batch=4"):
        assert advice in text
    large = dataclasses.replace(figures, arguments={"frozen": 5e9}, clips=4)
    text = plan.report(large, chip, tiny(batch=4, remat="full"))
    assert "--config.frozen=fsdp --config.mesh.fsdp=4" in text and "remat" not in text
    assert "height" in text


@pytest.mark.parametrize(
    "topology, message",
    [
        ("", "known chips: v4, v5e, v5p, v6e"),
        ("v5ee:4x4", "Did you mean 'v5e'"),
        ("v5e", "wanted 2 sides, such as v5e:4x4"),
        ("v5p:4x4", "wanted 3 sides, such as v5p:4x4x4"),
        ("v5e:3x7", "A slice is for instance v5e:4x4"),
    ],
)
def test_topologies_that_there_are_not(topology, message):
    with pytest.raises(InputError, match=message):
        plan.slice_of(topology)


def test_settings_that_cannot_be(slice_):
    with pytest.raises(InputError, match="batch=6 does not divide.*--config.batch=4"):
        plan.training_program(tiny(batch=6), slice_[1])
    unknown = tiny()
    unknown.weights.base = "someone/else"
    with pytest.raises(InputError, match="weights.base='someone/else' is not on this machine"):
        plan.training_program(unknown, slice_[1])
    with pytest.raises(InputError, match="--batches='all'"):
        plan.main(["--topology", TOPOLOGY, "--batches=all", f"--config={ROOT / 'tests/configs/train.py'}"])


def test_the_compiler_is_found_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "libtpu", raising=False)
    folder = tmp_path / "libtpu"
    plan.find_compiler(folder)
    assert sys.path == []
    (folder / "libtpu").mkdir(parents=True)
    (folder / "libtpu" / "__init__.py").touch()
    plan.find_compiler(folder)
    plan.find_compiler(folder)
    assert sys.path == [str(folder)] and importlib.util.find_spec("libtpu").origin.startswith(str(folder))


def test_no_environment_that_commands_run_in_gets_the_compiler():
    """With it among the packages, JAX looks for a TPU at every start, and complains at length."""
    for name in ("requirements.txt", "requirements-test.txt", "pyproject.toml"):
        assert "libtpu" not in (ROOT / name).read_text()


def test_a_chip_of_two_devices_is_two_halves():
    whole, (half, devices) = plan.CHIPS["v4"], plan.slice_of("v4:2x2x1")
    assert len(devices) == 8 and half.flops == whole.flops / 2 and half.links == whole.links / 2
