"""DynamiCrafter's checkpoints: what they are, in and out by the command with the same keys and bytes; bad ones."""

import numpy as np
import pytest
import torch

from i2v_jax.errors import InputError
from i2v_jax.models.dynamicrafter import DYNAMICRAFTER, DYNAMICRAFTER_256, DynamiCrafterConfig
from i2v_jax.models.image_projection import DYNAMICRAFTER_RESAMPLER
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.weights.formats import dynamicrafter as names
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.trained_for import told_by_source
from i2v_jax.weights.unets import assemble_any_unet
from tests import dynamicrafter_models as models
from tests import dynamicrafter_oracle as oracle
from tests.conversions import convert

pytestmark = pytest.mark.filterwarnings("ignore:.*has no config.json")


def contents(path, prefix=""):
    """A pickle's or safetensors' tensors, as bytes, shapes and dtypes."""
    found = open_tensors(path)
    return {
        name: (entry.shape, entry.dtype.name, np.asarray(entry.read()).tobytes())
        for name, entry in found.entries.items()
    }


@pytest.mark.parametrize("kind", ["512", "256", "DeepSpeed"])
def test_a_checkpoint_comes_back_byte_for_byte(kind, tmp_path):
    """Through a file of ours; of the 256 model with its own name of the embedding, of DeepSpeed's with its prefix."""
    source = models.checkpoint("256" if kind == "256" else "512", deepspeed=kind == "DeepSpeed")
    ours, again = tmp_path / "ours.safetensors", tmp_path / "again.ckpt"
    assert convert("import", source, ours) == 0
    assert convert("export", ours, again) == 0
    assert contents(again) == contents(source)
    written = torch.load(again, weights_only=True)["state_dict"]
    prefix = "_forward_module." if kind == "DeepSpeed" else ""
    assert set(written) == {prefix + name for name in models.state("256" if kind == "256" else "512")}
    named = tmp_path / "named.safetensors"
    assert convert("export", ours, named, "--to", "dynamicrafter") == 0
    assert contents(named) == contents(source)


def test_a_checkpoint_is_told_for_what_it_is(capsys):
    for kind, about in (("512", "zero terminal SNR"), ("256", "learned strengths of image tokens")):
        source = models.checkpoint(kind)
        assert convert("inspect", source) == 0
        out = capsys.readouterr().out
        assert "DynamiCrafter" in out and about in out and "not convertible" not in out and "IP-Adapter" not in out
        told = told_by_source(source)
        assert told.zero_terminal_snr == (kind == "512")
        assert told.prediction_type == {"512": "v_prediction", "256": "epsilon"}[kind]


@pytest.mark.parametrize("config", [DYNAMICRAFTER, DYNAMICRAFTER_256])
def test_published_sizes_and_names(config):
    """As many tensors and parameters as published; the names there and back; and the config that shapes tell."""
    shapes = {path: leaf.shape for path, leaf in parameter_shapes(config).items()}
    scalars = 16 if config.image_scale else 0
    assert len(shapes) == 1516 + scalars
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 1_438_854_980 + scalars
    table = names.DYNAMICRAFTER_UNETS[config.image_scale].of_tree(shapes)
    there = {path: table.to_theirs(path) for path in shapes}
    back = names.DYNAMICRAFTER_UNETS[config.image_scale].of_file(
        {match.name: match.theirs_shape(shapes[path]) for path, match in there.items()}
    )
    assert {back.to_ours(match.name)[0].name: path for path, match in there.items()} == {path: path for path in shapes}
    assert infer_config("unet", shapes) == config
    resampler = parameter_shapes(DYNAMICRAFTER_RESAMPLER).values()
    assert sum(leaf.size for leaf in resampler) == 48_787_456


def test_names_are_the_published_ones():
    """Every name of the recorded UNet and resampler, and no other, in their shapes."""
    config, parameters = oracle.unet(alpha=True)
    shapes = {path: leaf.shape for path, leaf in parameter_shapes(config).items()}
    table = names.DYNAMICRAFTER_UNETS[0].of_tree(shapes)
    ours = {(match := table.to_theirs(path)).name: match.theirs_shape(shape) for path, shape in shapes.items()}
    assert ours == {
        f"model.diffusion_model.{k}": x.shape for k, x in (oracle.weights("unet") | oracle.alphas()).items()
    }
    assert config == DynamiCrafterConfig(
        block_out_channels=(64, 64),
        layers_per_block=1,
        level_attention=(True, False),
        head_dim=4,
        cross_attention_dim=24,
        default_fs=24,
        image_scale=True,
    )


def test_damaged_files_and_parts_of_others_are_refused(tmp_path):
    tensors = dict(oracle.checkpoint().entries)
    gone = "model.diffusion_model.init_attn.0.norm.weight"
    lacking = Tensors({name: entry for name, entry in tensors.items() if name != gone}, "a file")
    with pytest.raises(InputError, match="missing.*init_attn.0.norm.weight"):
        assemble_any_unet(lacking)
    with pytest.raises(InputError, match="DynamiCrafter.*Leave motion modules and adapters out"):
        assemble_any_unet(oracle.checkpoint(), motion="motion.safetensors")
    text_to_video = {name: entry for name, entry in tensors.items() if "_ip." not in name}
    path = tmp_path / "videocrafter.safetensors"
    save_tensors(path, Tensors(text_to_video, "a file"), {})
    with pytest.raises(InputError, match="VideoCrafter.*Read is DynamiCrafter"):
        assemble_any_unet(path)
