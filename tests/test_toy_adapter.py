"""A new adapter is one file: its weights are assembled, kept, exported, imported and described with no other change."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from i2v_jax.errors import InputError
from i2v_jax.models.adapters import ADAPTERS, import_modules
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import TINY
from i2v_jax.tree import flatten, select, unflatten
from i2v_jax.weights.assemble import assemble_unet, load_unet
from i2v_jax.weights.formats import PUBLISHED_UNET, lora
from i2v_jax.weights.save import save_own
from tests.conversions import convert

MODULE = "tests.toy_adapter"
BOTH = dataclasses.replace(TINY, self_attention_branches=("first_frame", "toy"))
WEIGHT = "mid_block/attention/blocks_0/attn1/toy/to_out/kernel"
PUBLISHED = "mid_block.attentions.0.transformer_blocks.0.attn1.to_toy.weight"


@pytest.fixture(scope="module", autouse=True)
def known():
    """The toy is known to this file's tests alone."""
    import_modules([MODULE])
    yield
    del ADAPTERS["toy"], sys.modules[MODULE]


@pytest.fixture
def unknown(monkeypatch):
    """The toy is not known, and its module not imported."""
    monkeypatch.delitem(ADAPTERS, "toy")
    monkeypatch.delitem(sys.modules, MODULE)


def random_tree(config, seed=0):
    random = np.random.default_rng(seed)
    return unflatten(
        {path: random.standard_normal(it.shape, np.float32) for path, it in parameter_shapes(config).items()}
    )


def of_adapter(params, name):
    return select({"unet": params}, [rf"unet/.*/{name}/.*"])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Our own files of a UNet with the first frame's adapter and the toy: whole, the base, and each adapter."""
    folder = tmp_path_factory.mktemp("toy")
    params = random_tree(BOTH)
    save_own(folder / "whole.safetensors", {"unet": params}, {"unet": BOTH})
    base = select({"unet": params}, [r"unet/(?!.*/(first_frame|toy)/).*"])
    save_own(folder / "base.safetensors", base, {"unet": TINY})
    for name in ("first_frame", "toy"):
        save_own(folder / f"{name}.safetensors", of_adapter(params, name), {"unet": BOTH})
    return folder


def test_a_unet_with_the_toy_is_saved_and_read_again(files):
    config, params = load_unet(files / "whole.safetensors")
    assert config == BOTH
    jax.tree.map(np.testing.assert_array_equal, params, random_tree(BOTH))


def test_two_adapters_of_one_attention_come_from_two_files(files):
    adapters = {name: files / f"{name}.safetensors" for name in ("first_frame", "toy")}
    config, params = load_unet(files / "base.safetensors", adapters=adapters)
    assert config == BOTH
    jax.tree.map(np.testing.assert_array_equal, params, random_tree(BOTH))
    config, _ = load_unet(files / "base.safetensors", adapters={"toy": files / "toy.safetensors"})
    assert config.self_attention_branches == ("toy",)
    for given, held, title in (("toy", "first_frame", "toy branch"), ("first_frame", "toy", "first-frame branch")):
        with pytest.raises(InputError, match=f"{held}.safetensors holds no {title}"):
            load_unet(files / "base.safetensors", adapters={given: files / f"{held}.safetensors"})


def test_each_adapter_may_be_of_another_training(files, tmp_path):
    other = random_tree(BOTH, seed=1)
    save_own(tmp_path / "toy.safetensors", of_adapter(other, "toy"))
    _, params = load_unet(files / "whole.safetensors", adapters={"toy": tmp_path / "toy.safetensors"})
    before, after = flatten(random_tree(BOTH)), flatten(other)
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, (after if "/toy/" in path else before)[path])


def test_an_adapter_that_no_file_holds_starts_untrained(files):
    adapters = {"first_frame": files / "first_frame.safetensors"}
    found = assemble_unet(files / "base.safetensors", adapters=adapters, self_attention_branches=("first_frame", "toy"))
    before = flatten(random_tree(BOTH))
    for path in found.parameters:
        wanted = np.zeros_like(before[path]) if "/toy/" in path else before[path]
        np.testing.assert_array_equal(found.parameters[path], wanted)
    new = assemble_unet(files / "base.safetensors", self_attention_branches=("first_frame", "toy"))
    query = WEIGHT.replace("toy/to_out", "first_frame/to_q")
    np.testing.assert_array_equal(new.parameters[query], before[query.replace("first_frame/", "")])


def test_the_published_layout_holds_the_toy_bit_for_bit(files, tmp_path):
    published, again = tmp_path / "published.safetensors", tmp_path / "again.safetensors"
    assert convert("export", files / "toy.safetensors", published, "--to", "i2v-adapter") == 0
    names = load_file(published)
    assert PUBLISHED in names and all(".attn1.to_toy." in name for name in names)
    np.testing.assert_array_equal(names[PUBLISHED].T, load_file(files / "toy.safetensors")[f"unet/{WEIGHT}"])
    assert convert("import", published, again) == 0
    assert contents(again) == contents(files / "toy.safetensors")

    whole = tmp_path / "whole.safetensors"
    assert convert("export", files / "whole.safetensors", whole, "--to", "i2v-adapter") == 0
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_diffusers()))
    assert convert("import", whole, again, "--overwrite") == 0
    assert contents(again) == contents(files / "whole.safetensors")
    assert convert("verify", files / "whole.safetensors", whole) == 0


def contents(path):
    return {name: (array.shape, array.dtype.name, array.tobytes()) for name, array in load_file(path).items()}


def test_commands_speak_of_the_toy(files, tmp_path, capsys):
    assert convert("inspect", files / "toy.safetensors") == 0
    out = capsys.readouterr().out
    assert "toy branch" in out.splitlines()[0] and "unet: toy branch" in out and "not convertible" not in out
    assert convert("export", files / "whole.safetensors", tmp_path / "folder", "--to", "diffusers") == 0
    assert "left out, as diffusers has no place for them: unet: first-frame adapter, unet: toy branch" in (
        capsys.readouterr().out
    )
    with pytest.raises(InputError, match="holds nothing that is part of diffusers"):
        convert("export", files / "toy.safetensors", tmp_path / "other", "--to", "diffusers")


def test_lora_of_the_toys_layers_has_their_names():
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_toy.lora_down.weight"
    assert [match.name for match in lora.KOHYA_UNET.to_ours(layer)] == [WEIGHT.replace("kernel", "lora/down")]


def test_what_is_not_registered_is_refused_with_the_option_that_registers(files, unknown):
    assert not PUBLISHED_UNET.to_ours(PUBLISHED)
    with pytest.raises(InputError, match="whole.safetensors.*Unknown adapter 'toy'.*--adapter-module"):
        load_unet(files / "whole.safetensors")
    with pytest.raises(InputError, match="Unknown adapter 'toy'.*--adapter-module"):
        load_unet(files / "base.safetensors", adapters={"toy": files / "toy.safetensors"})


def test_the_command_line_imports_the_module(files, tmp_path, unknown, capsys):
    assert convert("inspect", files / "toy.safetensors") == 0
    assert "unet: adapter toy" in capsys.readouterr().out
    with pytest.raises(InputError, match="no_such_module"):
        convert("inspect", files / "toy.safetensors", "--adapter-module", "no_such_module")
    out = tmp_path / "published.safetensors"
    assert convert("export", files / "toy.safetensors", out, "--to", "i2v-adapter", "--adapter-module", MODULE) == 0
    assert PUBLISHED in load_file(out)
