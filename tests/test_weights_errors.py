"""Damaged, foreign and incomplete weights: an InputError names the file and the tensor, nothing is run or left."""

import json
import os
import re
import resource
import struct
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from i2v_jax import tree
from i2v_jax.errors import InputError
from i2v_jax.weights.assemble import load_image_projection, load_text_encoder, load_unet, load_vae
from i2v_jax.weights.formats import DIFFUSERS_UNET
from i2v_jax.weights.save import save_own
from i2v_jax.weights.storage.open import check_reader, open_tensors
from i2v_jax.weights.storage.pickle import PICKLE_SUFFIXES
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import export_tensors, recognise

ORACLE = Path(__file__).parent / "data" / "oracles" / "official_v1"
CONFIG = json.loads((ORACLE / "config.json").read_text())
SETTINGS = CONFIG["unet"] | CONFIG["extra"]


@pytest.fixture(scope="module")
def published():
    return load_file(ORACLE / "unet.safetensors")


@pytest.fixture(scope="module")
def intact():
    return (ORACLE / "image_proj.safetensors").read_bytes()


def raw_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refused(action, *words):
    with pytest.raises(InputError) as caught:
        action()
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)
    return str(caught.value)


# Files.


def test_files_cut_anywhere_are_refused(intact, tmp_path):
    file = tmp_path / "cut.safetensors"
    for length in {0, 3, 8, 9, 50, len(intact) // 2, len(intact) - 1}:
        file.write_bytes(intact[:length])
        refused(lambda: open_tensors(file), file)


def test_cut_between_opening_and_reading(intact, tmp_path):
    file = tmp_path / "shrinking.safetensors"
    file.write_bytes(intact)
    tensors = open_tensors(file)
    file.write_bytes(intact[: len(intact) // 2])
    refused(lambda: [tensors[name] for name in tensors], file, "image_proj.")


def test_flipped_bytes_in_the_header_never_crash(intact, tmp_path):
    file = tmp_path / "flipped.safetensors"
    header = 8 + struct.unpack("<Q", intact[:8])[0]
    random = np.random.default_rng(0)
    for position, mask in zip(random.integers(0, header, 300), random.integers(1, 256, 300)):
        damaged = bytearray(intact)
        damaged[position] ^= mask
        file.write_bytes(damaged)
        try:
            tensors = open_tensors(file)
            for name in tensors:
                assert tensors[name].shape == tensors.entries[name].shape
            load_image_projection(tensors, head_dim=8)
        except InputError as error:
            assert file.name in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]},
        {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1]},
        ["F32", [1], [0, 4]],
    ],
)
def test_impossible_tensors_in_a_header(fields, tmp_path):
    file = raw_safetensors(tmp_path / "bad.safetensors", {"conv_in.weight": fields}, b"\0" * 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(lambda: open_tensors(file), file, "conv_in.weight")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_overlapping_tensors(tmp_path):
    whole = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    half = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}
    file = raw_safetensors(tmp_path / "overlap.safetensors", {"a": whole, "b": half}, b"\0" * 8)
    refused(lambda: open_tensors(file), file, "'a'", "'b'")


@pytest.mark.parametrize("header", [b'{"a": ', b"{}}", b'{"a":' * 50_000, b"{" + b"\xff" * 20])
def test_headers_that_are_no_json(header, tmp_path):
    refused(lambda: open_tensors(raw_safetensors(tmp_path / "x.safetensors", header)), "x.safetensors", "header")


def test_files_that_are_something_else(tmp_path):
    pointer = tmp_path / "unet.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(lambda: open_tensors(pointer), pointer, "git lfs pull")
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html>Not found</html>")
    refused(lambda: open_tensors(page), page, "neither safetensors nor a PyTorch pickle")


def test_paths_that_do_not_exist(tmp_path):
    (tmp_path / "motion.safetensors").touch()
    misspelt = tmp_path / "motoin.safetensors"
    refused(lambda: open_tensors(misspelt), misspelt, "does not exist", "Did you mean 'motion.safetensors'?")
    refused(lambda: open_tensors(tmp_path, "unet"), "No weights in", "motion.safetensors", "diffusion_pytorch_model")


def test_hub_without_a_network_says_how_to_put_it_on_disk(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for source in ("nobody/nothing", "nobody/nothing/models/ip-adapter.safetensors"):
        message = refused(partial(open_tensors, source, "unet"), source, "hf download nobody/nothing")
        assert "on this machine" in message and "from the hub" in message  # both were tried


def test_a_folder_named_like_an_owner_does_not_hide_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    save_file({"hub": np.zeros(1)}, tmp_path / "model.safetensors")
    here = tmp_path / "here"
    (here / "owner" / "local").mkdir(parents=True)
    save_file({"local": np.zeros(1)}, here / "owner" / "local" / "model.safetensors")
    monkeypatch.chdir(here)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, allow_patterns: str(tmp_path))
    for source, names in {
        "owner/local": ["local"],
        "owner/local/model.safetensors": ["local"],
        "owner/other": ["hub"],
        "owner/other.pt": ["hub"],  # the name of a model, not of a file
    }.items():
        assert list(open_tensors(source)) == names, source
    refused(lambda: open_tensors("owner/other/motion.safetensors"), "does not exist", "on the hub")

    def unknown(repo, allow_patterns):
        raise OSError("Repository Not Found")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    refused(lambda: open_tensors("owner/locla"), "on this machine", "Repository Not Found", "Did you mean 'local'?")


def test_hub_fetches_only_the_component(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    weights = tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors"

    def snapshot_download(repo, allow_patterns):
        asked.append(allow_patterns)
        if str(weights.relative_to(tmp_path)) in allow_patterns:
            weights.parent.mkdir()
            save_file({"conv_in.bias": np.zeros(3, np.float16)}, weights)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert list(open_tensors("owner/name", "unet")) == ["conv_in.bias"]
    assert len(asked) == 2  # full precision first, then fp16
    assert not any("vae" in pattern or pattern.endswith(".bin") for patterns in asked for pattern in patterns)


def test_broken_shards(tmp_path):
    save_file({"a": np.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for listing, words in (
        ({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}, ["model-00002"]),
        ({"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}, ["'b", "lack"]),
        ({"a": "../model-00001-of-00002.safetensors"}, ["beside its index"]),
        ({"a": 3}, ["weight_map"]),
    ):
        index.write_text(json.dumps({"weight_map": listing}))
        refused(lambda: open_tensors(tmp_path), *[word.strip("'") for word in words])
    index.write_text("[]")
    refused(lambda: open_tensors(tmp_path), index)


# Pickles.


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_does_nothing(zipped, tmp_path):
    trace = tmp_path / "trace"
    torch.save({"conv_in.weight": Malicious(trace)}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    message = refused(lambda: open_tensors(tmp_path / "m.ckpt"), tmp_path / "m.ckpt", "refused")
    assert not trace.exists()
    assert "weights_only" not in message  # never suggest switching the protection off


def test_pickles_that_are_damaged_or_lie(tmp_path):
    file = tmp_path / "x.ckpt"
    torch.save({"a": torch.zeros(1000)}, file)
    whole = file.read_bytes()
    for length in (10, 100, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:length])
        refused(lambda: open_tensors(file), file)

    cyclic = {"a": torch.zeros(3)}
    cyclic["self"] = cyclic
    torch.save(cyclic, file)
    refused(lambda: open_tensors(file), file, "'self'")

    torch.save({"a": torch.zeros(1).expand(10**12)}, file)
    refused(lambda: open_tensors(file), file, "'a'", "1000000000000")

    torch.save({"a": torch.zeros(3).to_sparse()}, file)
    refused(lambda: open_tensors(file), file, "'a'", "sparse")

    for nothing in ({"step": 3}, [torch.zeros(3)], 5):
        torch.save(nothing, file)
        refused(lambda: open_tensors(file), file)


def test_a_pickle_that_unpacks_to_more_than_it_is(tmp_path):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    refused(lambda: open_tensors(file), file, "10000000")


def test_pickles_without_pytorch(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    (tmp_path / "unet").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    save_file({"a": np.zeros(1)}, tmp_path / "safe.bin")
    sources = [(tmp_path / "a.pt", ""), (tmp_path, "unet"), *((f"owner/name/m{end}", "") for end in PICKLE_SUFFIXES)]
    asked = []

    def snapshot_download(repo, allow_patterns):
        asked.extend(allow_patterns)
        return str(tmp_path / "empty")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for source, folder in sources:
        check_reader(source, folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    for source, folder in sources:
        refused(partial(check_reader, source, folder), "pip install torch")
        refused(partial(open_tensors, source, folder), "pip install torch")
    check_reader(tmp_path / "safe.bin")
    check_reader("owner/name")
    assert not asked
    # a whole model on the hub may have safetensors: its pickles alone are not fetched
    refused(lambda: open_tensors("owner/name", "unet"), "pip install torch")
    assert asked and not any("bin" in pattern for pattern in asked)


# Components.


def load_published(tensors):
    return load_unet(Tensors.of(tensors, "merged.safetensors"), config=SETTINGS)


def test_missing_unexpected_and_misshapen_tensors_are_named(published):
    state = dict(published)
    state["down_blocks.0.resnets.0.conv1.wieght"] = state.pop("down_blocks.0.resnets.0.conv1.weight")
    state["conv_out.weight"] = np.zeros((5, 32, 3, 3), np.float32)
    del state["mid_block.resnets.1.norm2.bias"]
    refused(
        lambda: load_published(state),
        "merged.safetensors",
        "2 missing, 1 unexpected, 1 misshapen",
        "missing 'down_blocks.0.resnets.0.conv1.weight' Did you mean 'down_blocks.0.resnets.0.conv1.wieght'?",
        "missing 'mid_block.resnets.1.norm2.bias'",
        "unexpected 'down_blocks.0.resnets.0.conv1.wieght' Did you mean 'down_blocks.0.resnets.0.conv1.weight'?",
        "'conv_out.weight' has shape [5, 32, 3, 3], wanted [4, 32, 3, 3]",
    )


@pytest.mark.parametrize("shape", [(32,), (32, 32, 3), (32, 32, 1, 1, 1), ()])
def test_tensors_of_another_rank(published, shape):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    refused(lambda: load_published(published | {name: np.zeros(shape, np.float32)}), name, "shape")


def test_every_tensor_is_wanted(published):
    """Whichever single tensor goes, the load is refused; but `to_q_ff` and position tables, which are made anew."""
    names = sorted(published)
    for name in names[:: len(names) // 8]:
        state = {key: array for key, array in published.items() if key != name}
        if name.endswith((".pe", "to_q_ff.weight")):
            load_published(state)
        else:
            refused(partial(load_published, state), name, "1 missing")


def test_incomplete_adapter(published, tmp_path):
    adapter = {name: array for name, array in published.items() if "_ff." in name}
    lost = next(name for name in adapter if name.endswith("to_out_ff.bias"))
    del adapter[lost]
    base = {name: array for name, array in published.items() if "_ff." not in name}
    adapter = Tensors.of(adapter, "adapter.safetensors")
    adapters = dict(first_frame=adapter)
    refused(lambda: load_unet(Tensors.of(base), adapters=adapters, config=SETTINGS), "adapter.safetensors", lost)


def test_files_of_another_component(published):
    projection = open_tensors(ORACLE / "image_proj.safetensors")
    unet = Tensors.of(published, "unet.safetensors")
    for load, tensors in (
        (load_unet, projection),
        (load_vae, projection),
        (load_text_encoder, unet),
        (load_image_projection, unet),
    ):
        refused(partial(load, tensors), tensors.source, "holds no", "It holds")


def test_changed_position_tables_are_refused(published):
    name = next(name for name in published if name.endswith(".pe"))
    changed = published[name].copy()
    changed[0, 5, 2] += 0.01
    refused(lambda: load_published(published | {name: changed}), "merged.safetensors", name, "sinusoid")
    refused(lambda: load_published(published | {name: published[name][:, :16]}), "different lengths")
    refused(lambda: load_published(published | {name: published[name][0]}), name, "[1, positions, channels]")


def test_motion_modules_without_a_length(published):
    state = {name: array for name, array in published.items() if not name.endswith(".pe")}
    no_length = {key: value for key, value in SETTINGS.items() if key != "motion_module_kwargs"}
    refused(lambda: load_unet(Tensors.of(state), config=no_length), "no position tables", "--motion-frames N")
    config, _ = load_unet(Tensors.of(state), config=no_length, motion_config=dict(max_positions=24, num_heads=4))
    assert config.motion.max_positions == 24


def test_configs_that_are_not_there_or_wrong(published, tmp_path):
    tensors = Tensors.of(published, "merged.safetensors")
    with_a_gap = {name.replace("_blocks.1.", "_blocks.7."): array for name, array in published.items()}
    refused(
        lambda: load_unet(Tensors.of(with_a_gap, "gap.safetensors")),
        "gap.safetensors",
        "config",
        "nothing has number 1",
    )
    refused(lambda: load_unet(tensors, config={"in_channels": 4}), "block_out_channels")
    refused(lambda: load_unet(tensors, config=SETTINGS, poold_norms=True), "Did you mean 'pooled_norms'?")
    refused(lambda: load_unet(tensors, config=SETTINGS, motion_config={"heads": 4}), "'heads'", "num_heads")
    (tmp_path / "config.json").write_text("{")
    save_file(published, tmp_path / "diffusion_pytorch_model.safetensors")
    refused(lambda: load_unet(tmp_path), tmp_path / "config.json")


def test_files_of_a_later_version_of_our_format(tmp_path):
    header = {"format": "i2v_jax", "version": "99"}
    save_tensors(tmp_path / "later.safetensors", Tensors.of({"conv_in/bias": np.zeros(3)}), header)
    refused(lambda: load_unet(tmp_path / "later.safetensors"), "later.safetensors", "99")


def test_export_to_a_format_without_a_place():
    stray = Tensors.of({"conv_in/kernel": np.zeros((3, 3, 4, 8)), "miva/gate/kernel": np.zeros((2, 2))})
    refused(lambda: export_tensors(stray, DIFFUSERS_UNET, Tensors.of({})), "miva/gate/kernel", DIFFUSERS_UNET.name)


def test_detection_says_what_it_saw():
    refused(lambda: recognise(Tensors.of({"layer.weight": np.zeros(1)}, "x.pt")), "x.pt", "layer.weight")


# Writing.


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_own(path, {"unet": {"a": np.arange(4.0)}})
    before = path.read_bytes()
    entries = Tensors.of({"a": np.zeros(4), "b": np.zeros(4)}).entries

    def unreadable():
        raise InputError("the source was cut short")

    broken = entries | {"b": type(entries["b"])((4,), np.dtype(float), unreadable)}
    refused(lambda: save_tensors(path, Tensors(broken, "source")), "cut short")
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_nowhere_to_save(tmp_path):
    refused(lambda: save_own(tmp_path / "none" / "a.safetensors", {"unet": {"a": np.zeros(4)}}), "Cannot write", "none")
    if os.path.exists("/dev/full"):
        (tmp_path / f".a.safetensors.{os.getpid()}.part").symlink_to("/dev/full")
        refused(lambda: save_own(tmp_path / "a.safetensors", {"unet": {"a": np.zeros(10**6)}}), "No space left")
        assert os.listdir(tmp_path) == []


# Trees.


def test_patterns_that_match_nothing():
    params = {"unet": {"attn1": {"first_frame": {"to_q": np.zeros(1)}}}}
    refused(lambda: tree.mask(params, ["unet/.*/frist_frame/.*"]), "matches no parameter", "first_frame")
    refused(lambda: tree.split(params, ["unet/("]), "not a regular expression")
    assert re.fullmatch("unet/.*", "unet/attn1/first_frame/to_q")
