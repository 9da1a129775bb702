"""Orbax checkpoints: orbax restores what was written; a damaged folder is an InputError; little is held at once."""

import json
import resource
import shutil
import time
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from i2v_jax import tree
from i2v_jax.errors import InputError
from i2v_jax.weights.assemble import load_unet
from i2v_jax.weights.save import save_own_orbax
from i2v_jax.weights.storage import orbax
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.orbax import open_orbax
from i2v_jax.weights.tensors import READ_AHEAD, Entry, Tensors
from tests import tiny
from tests.torch_models import randomise


def some_tree():
    random = np.random.default_rng(0)
    return {
        "unet": {
            "conv": {"kernel": random.random((3, 3, 4, 8), np.float32), "bias": np.zeros(8, ml_dtypes.bfloat16)},
            "lora": {"alpha": np.array(4, np.float32), "down": random.random((5, 2)).astype(np.float16)},
        },
        "text_encoder": {"position_ids": np.arange(77)[None]},
        "noise_schedule": {"v_pred": np.empty((0,), np.float32), "betas": random.random(10)},
    }


def same(one, other):
    one, other = tree.flatten(one), tree.flatten(other)
    assert one.keys() == other.keys()
    for path in one:
        a, b = np.asarray(one[path]), np.asarray(other[path])
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path


@pytest.fixture
def folder(tmp_path):
    save_own_orbax(tmp_path / "model", some_tree(), metadata={"source": "a test"})
    return tmp_path / "model"


def test_orbax_itself_restores_the_tree(folder):
    expected = some_tree()
    del expected["noise_schedule"]["v_pred"]  # orbax keeps nothing that has no elements
    same(ocp.StandardCheckpointer().restore(folder), expected)
    same(ocp.PyTreeCheckpointer().restore(folder), expected)


def test_training_restores_it_sharded(tmp_path):
    kernel = np.arange(64, dtype=np.float32).reshape(16, 4)
    save_own_orbax(tmp_path / "model", {"unet": {"kernel": kernel}})
    mesh = jax.make_mesh((8,), ("fsdp",))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    wanted = {"unet": {"kernel": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=sharding)}}
    restored = ocp.StandardCheckpointer().restore(tmp_path / "model", wanted)["unet"]["kernel"]
    assert restored.sharding == sharding and len(restored.addressable_shards) == 8
    np.testing.assert_array_equal(restored, kernel)


def test_opened_again_it_is_what_was_written(folder):
    tensors = open_tensors(folder)
    assert tensors.metadata == {"format": "i2v_jax", "version": "1", "source": "a test"}
    same(dict(tensors), tree.flatten(some_tree()))
    assert all((tensors[n].shape, tensors[n].dtype) == (e.shape, e.dtype) for n, e in tensors.entries.items())


def test_nothing_is_read_before_it_is_asked_for(folder):
    tensors = open_tensors(folder)
    shutil.rmtree(folder / "ocdbt.process_0")
    with pytest.raises(InputError, match="model is damaged: 'unet/conv/kernel' cannot be read"):
        tensors["unet/conv/kernel"]


def test_a_model_loads_from_the_folder_alone(tmp_path):
    model = randomise(diffusers.UNet2DConditionModel(**tiny.UNET))
    model.save_pretrained(tmp_path / "base")
    config, params = load_unet(tmp_path / "base")
    save_own_orbax(tmp_path / "ours", {"unet": params}, {"unet": config})
    again, same_params = load_unet(tmp_path / "ours")
    assert again == config
    same(params, same_params)


def test_a_checkpoint_that_orbax_wrote_opens_too(tmp_path):
    """A training's own, compressed, of arrays on devices; sharded, scalars among them, and without our metadata."""
    sharding = NamedSharding(jax.make_mesh((8,), ("fsdp",)), PartitionSpec("fsdp"))
    held = {"unet": {"kernel": jax.device_put(np.arange(32, dtype=np.float32).reshape(16, 2), sharding)}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", held)
    same(dict(open_tensors(tmp_path / "step")), tree.flatten(held))
    for ocdbt, zarr3 in ((False, False), (True, True), (False, True)):
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(tmp_path / f"{ocdbt}{zarr3}", ocp.args.PyTreeSave(held))
        same(dict(open_tensors(tmp_path / f"{ocdbt}{zarr3}")), tree.flatten(held))


def test_only_a_few_tensors_are_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax, "BATCH", 1 << 12)
    read, written, most = 0, 0, 0

    def progress(count):
        nonlocal written
        written += count

    def entry():
        def array():
            nonlocal read, most
            read += 1 << 10
            most = max(most, read - written)
            return np.ones(1 << 8, np.float32)

        return Entry((1 << 8,), np.dtype("f4"), array)

    tensors = Tensors({f"kernel_{i}": entry() for i in range(100)}, "lazy")
    save_own_orbax(tmp_path / "model", {"unet": tensors}, progress=progress)
    assert read == written == 100 << 10
    assert most <= (1 << 12) + (READ_AHEAD + 1 << 10)


def test_nothing_is_left_of_a_failure_and_nothing_replaced(folder):
    def damaged():
        raise InputError("tensor 5 is damaged")

    entries = {str(i): Entry((3,), np.dtype("f4"), damaged if i == 5 else lambda: np.ones(3, "f4")) for i in range(9)}
    with pytest.raises(InputError, match="tensor 5 is damaged"):
        save_own_orbax(folder.parent / "other", {"unet": Tensors(entries, "lazy")})
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    with pytest.raises(InputError, match="model is there already"):
        save_own_orbax(folder, {"unet": {"kernel": np.ones(3)}})
    with pytest.raises(InputError, match="Cannot write .*none/model: No such file"):
        save_own_orbax(folder.parent / "none" / "model", {"unet": {"kernel": np.ones(3)}})
    same(dict(open_orbax(folder)), tree.flatten(some_tree()))


def read_all(folder: Path):
    return {name: (array.shape, array.dtype) for name, array in open_tensors(folder).items()}


def test_damage_anywhere_is_refused_or_does_no_harm(folder, tmp_path):
    """Each file of the folder: removed, cut, bits flipped. What still opens has the tensors that were written."""
    expected = read_all(folder)
    random = np.random.default_rng(0)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    refused = 0
    for number, (file, kind) in enumerate((file, kind) for file in files for kind in ("gone", "cut", *["flip"] * 6)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        data = bytearray((copy / file).read_bytes())
        if kind == "gone":
            (copy / file).unlink()
        elif kind == "cut":
            (copy / file).write_bytes(data[: len(data) // 2])
        elif data:
            data[random.integers(len(data))] ^= 1 << random.integers(8)
            (copy / file).write_bytes(data)
        try:
            held = read_all(copy)
        except InputError as error:
            assert copy.name in str(error)
            refused += 1
        else:
            if file.name != "_METADATA":  # of plain text, no checksum
                assert held == expected, (file, kind)
        shutil.rmtree(copy)
    assert refused > number / 4


@pytest.mark.parametrize(
    "change",
    [
        lambda listing: listing.update(tree_metadata=[]),
        lambda listing: listing.update(tree_metadata={"('unet',)": 3}),
        lambda listing: listing.update(custom_metadata=3),
        lambda listing: listing["custom_metadata"].update(empty="[3]"),
        lambda listing: listing["custom_metadata"].update(empty='{"unet/a": ["float32", [1000000000000]]}'),
        lambda listing: listing["custom_metadata"].update(empty='{"unet/a": ["float32", [-1, 0]]}'),
        lambda listing: listing["custom_metadata"].update(empty="[" * 100_000),
        lambda listing: listing.update(use_ocdbt=False),
    ],
)
def test_a_listing_that_says_something_else_is_refused(change, folder):
    listing = json.loads((folder / "_METADATA").read_text())
    change(listing)
    (folder / "_METADATA").write_text(json.dumps(listing))
    with pytest.raises(InputError, match="model"):
        read_all(folder)


def test_nothing_is_left_or_comes_back_when_the_disk_is_full(tmp_path):
    """TensorStore writes many arrays at once; when one cannot be written, the others are still under way."""
    arrays = {f"a{i}": np.random.default_rng(i).random((40 + i, 300), np.float32) for i in range(120)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(60_000, 110_000, 5_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(InputError, match="Cannot write .*: File too large"):
                save_own_orbax(tmp_path / "model", {"unet": arrays})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    time.sleep(0.2)
    assert not list(tmp_path.iterdir())
