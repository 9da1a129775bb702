"""An adapter in a module of the user's, named in one config: trained, gone on with, sampled with, planned."""

import json
import sys

import jax
import numpy as np
import pytest

from i2v_jax import commands, tree
from i2v_jax.devices.mesh import use_mesh
from i2v_jax.models.adapters import ADAPTERS
from i2v_jax.planning import plan
from tests import train_runs
from tests.processes import ROOT, run

CONFIG = "tests/configs/toy.py"
MODULE = "tests.toy_adapter"


@pytest.fixture
def forget():
    """Leaves the toy unknown to the other tests of this process."""
    yield
    ADAPTERS.pop("toy", None)
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, gone on with for two more."""
    folder = tmp_path_factory.mktemp("toy")
    clips = train_runs.write_stored(folder / "stored", 8)
    command = train_runs.train(clips, folder / "run", config=CONFIG, batch=4)
    first = run([*command, "--config.steps=2"])
    before = train_runs.trained(folder / "run")
    second = run([*command, "--config.steps=4"])
    return folder / "run", first, second, before


def test_it_is_trained_and_gone_on_with(trained):
    folder, first, second, before = trained
    weights = train_runs.trained(folder)
    assert weights and all("/attn1/toy/to_out/" in path for path in weights)
    assert "a new run" in first and "going on" in second and "from step 2" in second
    changed = [path for path, leaf in weights.items() if not np.array_equal(leaf, before[path])]
    assert changed and any(np.any(leaf) for leaf in before.values())


def test_it_is_sampled_with(trained, tmp_path):
    """From the command, as a file that train.py wrote; the record names its module."""
    folder, *_ = trained
    flags = dict(
        height=32,
        width=32,
        frames=2,
        steps=1,
        output=tmp_path,
        compilation_cache=ROOT / ".cache" / "jax",
        weights__trained=f"('{folder / 'trained.safetensors'}',)",
        weights__adapter_modules=f"('{MODULE}',)",
    )
    given = [f"--config.{key.replace('__', '.')}={value}" for key, value in flags.items()]
    run(["sample.py", "--config=tests/configs/sample.py", *given])
    record = json.loads((tmp_path / "cat.json").read_text())
    assert record["config"]["weights"]["adapter_modules"] == [MODULE]


def test_it_is_planned(forget):
    config = commands.load_config(ROOT / CONFIG)
    with config.unlocked():
        config.update(dict(dtype="bfloat16", attention="xla"))
    _, devices = plan.slice_of("v5e:2x2")
    training = plan.training_program(config, devices, stored=True)
    trained = training.kinds["trained"][0]
    assert trained and all("/toy/" in path for path in trained)
    sampling = plan.sampling_program(config, devices)
    assert any("/toy/" in path for path in tree.flatten(sampling.kinds["frozen"]))
    for program in (training, sampling):
        with use_mesh(program.mesh):
            jax.eval_shape(program.function, *program.arguments)
