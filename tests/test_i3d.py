"""I3D against the published PyTorch code (recorded); its weights in and out, by two layouts and as TorchScript."""

import functools
import zipfile

import jax
import numpy as np
import pytest
import torch

from convert.__main__ import main
from i2v_jax.errors import InputError
from i2v_jax.models.i3d import BLOCKS, I3D, Mixed, max_pool
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.whole import load_network
from tests import i3d_oracle
from tests.helpers import relative_error
from tests.metric_oracles import recorded, settings, video
from tests.test_weights import bytes_of


def file_of(tensors, path):
    torch.save({name: torch.as_tensor(np.array(array)) for name, array in tensors.items()}, path)
    return path


@functools.partial(jax.jit, static_argnums=0)
def run(config, parameters, pixels):
    def is_block(module, name):
        return isinstance(module, Mixed) and name == "__call__"

    logits, kept = I3D(config).apply({"params": parameters}, pixels, capture_intermediates=is_block)
    return logits[0], {block: kept["intermediates"][f"mixed_{block}"]["__call__"][0][0] for block in BLOCKS}


@pytest.mark.parametrize("name", ["full", "small"])
def test_logits_and_maps_are_the_published_codes(name, tmp_path, measured):
    """Of the published size, and of a small one with odd sides and frames, which the padding is told by."""
    config, parameters = load_network("i3d", file_of(i3d_oracle.state(name), tmp_path / "rgb_imagenet.pt"))
    assert config == i3d_oracle.config(name)
    pixels = np.float32(video(settings("i3d")[name]["video"])[None]) / np.float32(127.5) - 1
    logits, maps = run(config, parameters, pixels)
    theirs = recorded("i3d")
    measured(f"I3D {name}, logits of piergiaj's code", relative_error(logits, theirs[f"{name}.logits"]), 1e-5)
    errors = []
    for block, found in maps.items():
        step = {"3": 4, "4": 2, "5": 1}[block[0]]
        found = np.asarray(found)[:, ::step, ::step]
        if name == "full":
            found = found[:1, ::3, ::3, ::16]
        errors.append(relative_error(found, theirs[f"{name}.mixed_{block}"]))
    measured(f"I3D {name}, nine maps", max(errors), 1e-4)


def test_pooling_is_tensorflows_same():
    """What is lacking is split, the rest behind; by hand, with numbers below 0 too."""
    x = -np.arange(1.0, 8).reshape(1, 1, 1, 7, 1)
    assert np.ravel(max_pool(x, (1, 1, 3), (1, 1, 2))).tolist() == [-1, -2, -4, -6]
    assert np.ravel(max_pool(x[..., :6, :], (1, 1, 3), (1, 1, 2))).tolist() == [-1, -3, -5]
    assert np.ravel(max_pool(x[..., :5, :], (1, 1, 2), (1, 1, 2))).tolist() == [-1, -3, -5]


def read(path):
    return {name: value.numpy() for name, value in torch.load(path, weights_only=True).items()}


def test_files_come_back_byte_for_byte(tmp_path, capsys):
    """Both layouts, from themselves and from each other."""
    piergiaj = i3d_oracle.state("small")
    hassony = i3d_oracle.as_hassony(piergiaj)
    file_of(piergiaj, tmp_path / "rgb_imagenet.pt"), file_of(hassony, tmp_path / "model_rgb.pth")
    assert (
        main(["inspect", str(tmp_path / "model_rgb.pth")]) == 0 and "I3D, actions in videos" in capsys.readouterr().out
    )
    assert main(["import", str(tmp_path / "rgb_imagenet.pt"), str(tmp_path / "ours.safetensors")]) == 0
    for source, wanted, *to in (
        ("rgb_imagenet.pt", piergiaj),
        ("model_rgb.pth", hassony),
        ("ours.safetensors", piergiaj, "--to", "i3d"),
        ("ours.safetensors", hassony, "--to", "i3d-hassony2"),
        ("model_rgb.pth", piergiaj, "--to", "i3d"),
    ):
        assert main(["export", str(tmp_path / source), str(back := tmp_path / "back.pth"), *to]) == 0
        assert bytes_of(read(back)) == bytes_of(wanted)
        back.unlink()
    config = i3d_oracle.config("small")
    assert infer_config("i3d", {path: leaf.shape for path, leaf in parameter_shapes(config).items()}) == config


class Attributes(torch.nn.Module):
    """A network as TorchScript has it: modules in modules, buffers, settings, a program."""

    def __init__(self, tensors):
        super().__init__()
        self.name, self.sides = "inception", [2, 7, 7]
        for name, array in tensors.items():
            *path, leaf = name.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_buffer(leaf, torch.as_tensor(np.array(array)))

    def forward(self, x, rescale: bool = False):
        return 2 * x / 255 - 1 if rescale else x


def test_torchscript_is_read_and_its_program_is_not_run(tmp_path, monkeypatch):
    hassony = i3d_oracle.as_hassony(i3d_oracle.state("small"))
    torch.jit.script(Attributes(hassony)).save(path := tmp_path / "i3d_torchscript.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("run"))
    found, wanted = load_network("i3d", path), load_network("i3d", file_of(hassony, tmp_path / "model_rgb.pth"))
    assert found[0] == wanted[0] and jax.tree.all(jax.tree.map(np.array_equal, found[1], wanted[1]))
    assert main(["export", str(path), str(tmp_path / "back.pth"), "--to", "i3d-hassony2"]) == 0
    assert bytes_of(read(tmp_path / "back.pth")) == bytes_of(hassony)


def test_views_of_a_storage_are_read(tmp_path):
    """Transposed tensors, and parts of others."""
    whole = torch.arange(24.0).reshape(2, 3, 4)
    tensors = dict(
        turned=whole.permute(2, 0, 1), part=whole[1, 1:], none=whole[:0], number=whole[0, 0, 3], short=whole.bfloat16()
    )
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    torch.jit.script(module).save(path := tmp_path / "views.pt")
    found = open_tensors(path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(np.float32(found[name]), tensor.float().numpy())
    assert found.entries["short"].dtype.name == "bfloat16"


MODULE = b"c__torch__.torch.nn.modules.module\nModule"


def rewritten(path, change):
    """A TorchScript archive with other members: name -> bytes, or None for none."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | change(members)).items():
            if content is not None:
                archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda members: {"m/data.pkl": members["m/data.pkl"].replace(MODULE, b"cbuiltins\neval")},
            "UnpicklingError",
        ),
        (lambda members: {"m/data.pkl": members["m/data.pkl"][:60]}, "nothing in it was run"),
        (lambda members: {"m/data/0": members["m/data/0"][:8]}, "is not what the file stores"),
        (lambda members: {"m/data/0": None}, "is not what the file stores"),
    ],
)
def test_damaged_torchscript_is_refused(change, said, tmp_path):
    module = torch.nn.Module()
    module.register_buffer("weight", torch.arange(6.0))
    torch.jit.script(module).save(path := tmp_path / "m.pt")
    with pytest.raises(InputError, match=said):
        open_tensors(rewritten(path, change))


def test_torchscript_damaged_anywhere_is_refused_or_read(tmp_path):
    """Bytes overwritten and ends cut off: an error in our words, or the same tensors."""
    module = torch.nn.Module()
    module.register_buffer("weight", torch.arange(600.0))
    torch.jit.script(module).save(path := tmp_path / "m.pt")
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for number in range(300):
        place = int(rng.integers(len(content)))
        damage = rng.bytes(8) if number % 3 else b""
        path.write_bytes(content[:place] + damage + (content[place + 8 :] if damage else b""))
        try:
            found = open_tensors(path)
            np.testing.assert_array_equal(found["weight"], np.arange(600.0))
        except InputError:
            refused += 1
    assert 150 < refused < 300


def test_damaged_files_are_named(tmp_path):
    tensors = dict(i3d_oracle.state("small"))
    del tensors["Mixed_4d.b2b.bn.running_var"]
    with pytest.raises(InputError, match=r"missing 'Mixed_4d\.b2b\.bn\.running_var'"):
        load_network("i3d", file_of(tensors, tmp_path / "rgb_imagenet.pt"))
    flow = i3d_oracle.state("small")["Conv3d_1a_7x7.conv3d.weight"][:, :2]
    with pytest.raises(InputError, match=r"Conv3d_1a_7x7\.conv3d\.weight"):
        load_network(
            "i3d", file_of(i3d_oracle.state("small") | {"Conv3d_1a_7x7.conv3d.weight": flow}, tmp_path / "flow.pt")
        )


@pytest.mark.parametrize("shape", [(1, 8, 224, 224, 3), (1, 16, 192, 224, 3)])
def test_what_is_too_small_is_refused(shape):
    with pytest.raises(InputError, match="wanted 9 or more of 193 or more"):
        jax.eval_shape(I3D(i3d_oracle.config("small")).init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32))
