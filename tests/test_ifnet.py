"""IFNet equals the recorded outputs of PyTorch's; its files go in and out; other versions are refused by name."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from convert.__main__ import main as convert
from i2v_jax.errors import InputError
from i2v_jax.models import ifnet
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.whole import load_network
from tests import ifnets
from tests.helpers import relative_error

RECORDED = Path(__file__).parent / "data" / "oracles" / "ifnet" / "rife.safetensors"


def write(folder, kind, prefix="", training=False):
    """A pickle as the community has it: with `module.` in front and what the training left, or plain."""
    tensors = ifnets.state(kind, training).items()
    path = folder / "flownet.pkl"
    torch.save({f"{prefix}{name}": torch.from_numpy(array) for name, array in tensors}, path)
    return path


@pytest.mark.parametrize("kind", ifnets.KINDS)
def test_equals_pytorch(kind, tmp_path, measured):
    """ccvfi's network of 4.26.heavy, vsrife's of the others."""
    config, parameters = load_network("ifnet", write(tmp_path, kind), convolution="winograd")
    assert config.scales == ifnets.KINDS[kind].scales and config.head == ifnets.KINDS[kind].head
    first, second = ifnets.frames(kind)[:, None]
    moment, scale = ifnets.CASES[kind]
    made = ifnet.between(config, parameters, first, second, np.float32([moment]), scale)
    wanted = load_file(RECORDED)[kind.replace(" ", "_").replace(",", "")]
    measured(f"IFNet {kind} against PyTorch", relative_error(np.asarray(made)[:, ::2, ::2], wanted), 1e-5)


@pytest.mark.parametrize("version", ["4.5", "4.14.lite", "4.22.lite", "4.25.lite", "4.26.heavy"])
def test_shapes_tell_the_version(version):
    config = ifnet.PUBLISHED[version]
    shapes = {path: found.shape for path, found in parameter_shapes(config).items()}
    assert infer_config("ifnet", shapes) == config and ifnet.version_of(config) == f"RIFE {version}"


@pytest.mark.parametrize("prefix, to", [("module.", "rife"), ("", "rife-plain")])
@pytest.mark.parametrize("kind", ["4.6", "4.10 to 4.12", "4.14.lite", "4.26.heavy"])
def test_files_go_in_and_out(kind, prefix, to, tmp_path):
    """The same names and bytes again, and what the training left."""
    source, ours = write(tmp_path, kind, prefix, training=bool(prefix)), tmp_path / "ours.safetensors"
    assert convert(["import", str(source), str(ours)]) == 0
    assert convert(["export", str(ours), str(tmp_path / "again.pkl"), "--to", to]) == 0
    before, after = (torch.load(path, weights_only=True) for path in (source, tmp_path / "again.pkl"))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert load_network("ifnet", ours)[0] == load_network("ifnet", source)[0]


def test_inspect_names_it(tmp_path, capsys):
    assert convert(["inspect", str(write(tmp_path, "4.25.lite", "module.", training=True))]) == 0
    assert "IFNet of RIFE 4.25.lite" in capsys.readouterr().out


OTHERS = {
    "RIFE 4.0 to 4.4": ("block0.conv0.0.0.weight", "block3.convblock.0.0.weight"),
    "RIFE before 4.0": ("module.block0.conv0.0.0.weight", "module.block0.convblock0.0.0.weight"),
    "IFRNet or AMT": ("encoder.pyramid1.0.0.weight", "decoder4.convblock.0.0.weight"),
}


@pytest.mark.parametrize("title", OTHERS)
def test_other_networks_are_refused_by_name(title, tmp_path):
    torch.save({name: torch.zeros(4, 3, 3, 3) for name in OTHERS[title]}, tmp_path / "rife40.pth")
    with pytest.raises(InputError, match=f"{title}.*Read are RIFE 4.5 to 4.26"):
        load_network("ifnet", tmp_path / "rife40.pth")


def test_frames_of_any_size(tmp_path):
    """Edges go on: of frames that are the same all over, so is what lies between."""
    config, parameters = load_network("ifnet", write(tmp_path, "4.6"))
    first, second = np.full((2, 1, 37, 50, 3), 0.25, np.float32)
    made = ifnet.between(config, parameters, first, second, np.float32([0.5]))
    np.testing.assert_allclose(made, first, atol=1e-6)
    with pytest.raises(InputError, match="multiples of 32"):
        ifnet.IFNet(config).apply({"params": parameters}, first, second, np.float32([0.5]))


def test_warping_is_exact_for_whole_pixels():
    x = np.random.default_rng(0).uniform(size=(1, 6, 7, 2)).astype(np.float32)
    flow = np.broadcast_to(np.float32([2, -1]), (1, 6, 7, 2))
    wanted = x[:, np.clip(np.arange(6) - 1, 0, 5)][:, :, np.clip(np.arange(7) + 2, 0, 6)]
    np.testing.assert_array_equal(jax.jit(ifnet.warp)(x, flow), wanted)
