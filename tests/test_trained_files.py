"""Files that `train.py` writes, as sources of weights: each of their weights is the model's, in whatever network."""

import jax
import numpy as np
import pytest

from i2v_jax import tree
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.weights.save import save_own
from tests.tiny import SMALL

PARTS = dict(
    motion=SMALL / "motion.safetensors",
    image_adapter=SMALL / "ip_adapter.safetensors",
    image_encoder=SMALL / "image_encoder",
)
ADAPTER = SMALL / "i2v_adapter.safetensors"


def load(**options):
    one = make_mesh({}, jax.devices()[:1])
    model = Model.load(Weights(SMALL, **PARTS | options), mesh=one)
    named = ("unet", "vae", "text_encoder", "image_proj")
    return model.configs, tree.flatten({name: model.parameters[name] for name in named if name in model.parameters})


@pytest.fixture(scope="module")
def model():
    return load(adapter=ADAPTER)


def file_of(path, configs, weights, patterns):
    """What train.py would write of weights that training has doubled."""
    trained, _ = tree.split(tree.unflatten(weights), patterns)
    save_own(path, jax.tree.map(lambda leaf: 2 * np.asarray(leaf), trained), configs)
    return path


@pytest.mark.parametrize(
    "patterns",
    [
        ("unet/.*/first_frame/.*",),
        ("unet/.*/motion/.*", "unet/.*/image_tokens/.*", "image_proj/.*"),
        ("unet/.*", "text_encoder/.*"),
        ("vae/decoder/.*",),
        (".*",),
    ],
)
def test_every_trained_weight_is_used_and_no_other_changes(patterns, model, tmp_path):
    configs, before = model
    chosen = tree.flatten(tree.select(tree.unflatten(before), patterns))
    _, now = load(adapter=ADAPTER, trained=[file_of(tmp_path / "trained.safetensors", configs, before, patterns)])
    assert now.keys() == before.keys() and chosen
    for path, leaf in before.items():
        assert np.array_equal(now[path], (2 if path in chosen else 1) * np.asarray(leaf)), path


def test_a_trained_branch_and_trained_motion_modules_need_no_other_file(model, tmp_path):
    configs, before = model
    file = file_of(tmp_path / "trained.safetensors", configs, before, ("unet/.*/first_frame/.*", "unet/.*/motion/.*"))
    loaded, now = load(motion=None, trained=[file])
    assert loaded["unet"].motion == configs["unet"].motion
    assert loaded["unet"].self_attention_branches == ("first_frame",)
    assert all(np.array_equal(now[path], 2 * np.asarray(before[path])) for path in now if "/motion/" in path)


def test_the_last_file_counts(model, tmp_path):
    configs, before = model
    first = file_of(tmp_path / "a.safetensors", configs, before, ("vae/.*",))
    last = file_of(tmp_path / "b.safetensors", configs, {p: 2 * x for p, x in before.items()}, ("vae/encoder/.*",))
    _, now = load(trained=[first, last])
    for path, leaf in before.items():
        if path.startswith("vae/"):
            assert np.array_equal(now[path], (4 if path.startswith("vae/encoder/") else 2) * np.asarray(leaf)), path


def test_what_does_not_fit_is_refused(model, tmp_path):
    configs, before = model
    image = file_of(tmp_path / "image.safetensors", configs, before, ("image_proj/.*",))
    with pytest.raises(InputError, match="weights of the image_proj, which this model has not"):
        load(image_adapter=None, trained=[image])
    with pytest.raises(InputError, match="no weights in the form that train.py writes.*Give it as weights.motion"):
        load(trained=[PARTS["motion"]])
    other = {"unet": {"conv_in": {"kernel": np.zeros((3, 3, 4, 8), np.float32), "other": np.zeros(3, np.float32)}}}
    save_own(tmp_path / "other.safetensors", other, {})
    with pytest.raises(InputError, match="1 unexpected, 1 misshapen"):
        load(trained=[tmp_path / "other.safetensors"])
