"""SDXL from the files that people have: one file with all in it, a lone autoencoder, a folder that says otherwise."""

import json
import shutil

import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import main as convert
from i2v_jax.errors import InputError
from i2v_jax.families.arithmetic import Arithmetic
from i2v_jax.families.family import SD15, SDXL, family_of
from i2v_jax.families.model import assemble, load_tokenizers
from i2v_jax.families.weights import Weights
from i2v_jax.models.vae import SD_VAE, SDXL_VAE
from tests import sdxl_models

FLOAT32, BFLOAT16 = (Arithmetic(dtype, "xla", "xla") for dtype in (jnp.float32, jnp.bfloat16))
SMALL = "tests/data/small"


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    """The small SDXL as community models are: one file, no config, no tokenizer."""
    file = tmp_path_factory.mktemp("sdxl") / "community.safetensors"
    assert convert(["export", str(sdxl_models.folder()), str(file), "--to", "sd"]) == 0
    return file


@pytest.mark.filterwarnings("ignore:.*has no config.json:UserWarning")
def test_one_file_is_enough(one_file):
    weights = Weights(str(one_file))
    weights.check()
    found = assemble(weights, FLOAT32)
    configs = {name: part.config for name, part in found.items()}
    assert family_of(configs["unet"]) is SDXL and configs.keys() == set(SDXL.components(False))
    assert configs["vae"].scaling_factor == SDXL_VAE.scaling_factor
    assert weights.zeros_for_empty_prompt(SDXL)
    assert {one_file} == set(weights.files(SDXL.components(False)))
    first, second = load_tokenizers(weights, SDXL).values()
    assert (first.pad_token, second.pad_token) == ("<|endoftext|>", "!")
    assert first.encode("a cat")[0, :4].tolist() == [49406, 320, 2368, 49407] == second.encode("a cat")[0, :4].tolist()
    assert first.encode("a cat")[0, -1] == 49407 and second.encode("a cat")[0, -1] == 0


def test_a_lone_autoencoder_has_its_familys_scale(tmp_path):
    """Its shapes do not tell which family it is of; the base does."""
    for base, scale in ((str(sdxl_models.folder()), SDXL_VAE.scaling_factor), (SMALL, SD_VAE.scaling_factor)):
        file = tmp_path / "vae.safetensors"
        save_file(load_file(f"{base}/vae/diffusion_pytorch_model.safetensors"), file)
        found = assemble(Weights(base, vae=str(file)), FLOAT32)
        assert found["vae"].config.scaling_factor == scale


def test_the_autoencoder_is_float32_unless_its_config_says_that_it_need_not(tmp_path):
    base = str(sdxl_models.folder())
    assert assemble(Weights(base), BFLOAT16)["vae"].config.dtype == jnp.float32
    assert assemble(Weights(base), BFLOAT16)["unet"].config.dtype == jnp.bfloat16
    assert assemble(Weights(SMALL), BFLOAT16)["vae"].config.dtype == jnp.bfloat16
    shutil.copytree(f"{base}/vae", tmp_path / "vae")
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(force_upcast=False)))
    assert assemble(Weights(base, vae=str(tmp_path / "vae")), BFLOAT16)["vae"].config.dtype == jnp.bfloat16


def test_the_folder_says_what_stands_for_no_prompt(tmp_path):
    assert Weights(str(sdxl_models.folder())).zeros_for_empty_prompt(SDXL)
    (tmp_path / "model_index.json").write_text('{"force_zeros_for_empty_prompt": false}')
    assert not Weights(str(tmp_path)).zeros_for_empty_prompt(SDXL)
    assert not Weights(SMALL).zeros_for_empty_prompt(SD15)


def test_parts_of_the_other_family_are_refused_by_name():
    """Through what every command calls: which file is of which family, and what to give."""
    base = str(sdxl_models.folder())
    motion = "assets/small_world/motion.safetensors"
    message = r"small_world/motion.safetensors \(motion modules\) is for .*; .* Give motion"
    with pytest.raises(InputError, match=message):
        assemble(Weights(base, motion=motion), FLOAT32)
    with pytest.raises(InputError, match="has one text encoder.*text_encoder_2.* Leave it out"):
        assemble(Weights(SMALL, text_encoder_2=f"{base}/text_encoder_2"), FLOAT32)
