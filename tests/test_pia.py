"""PIA and Hotshot-XL as the community has them: against diffusers' PIAPipeline, and against AnimateDiff's names."""

import dataclasses
import functools

import diffusers
import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from convert.__main__ import main as convert
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.encoders.picture_input import LIKENESS, likeness
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.weights.assemble import load_unet
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.translate import export_tensors, recognise
from tests import test_weights as library
from tests import tiny
from tests.helpers import relative_error
from tests.tiny import SMALL
from tests.torch_models import randomise

FRAMES = 4
SETTINGS = Settings(
    height=64, width=64, frames=FRAMES, steps=5, sampler_options=(("set_alpha_to_one", True),), motion_scale=1
)


def motion_adapter():
    return randomise(diffusers.MotionAdapter(**tiny.motion((32, 64)), conv_in_channels=9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pia")
    motion_adapter().save_pretrained(folder / "motion")
    return folder


@functools.cache
def pipeline(motion):
    mesh = make_mesh({}, jax.devices()[:1])
    # norms over frames, as diffusers has them
    model = Model.load(Weights(str(SMALL), motion=str(motion)), motion_config=dict(pooled_norm=True), mesh=mesh)
    return Pipeline(model, mesh)


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def theirs(noise, motion_scale):
    """Their latents, and the picture's as they drew them."""
    scheduler = diffusers.DDIMScheduler.from_pretrained(SMALL / "scheduler")
    pipe = diffusers.PIAPipeline(**tiny.parts(), scheduler=scheduler, motion_adapter=motion_adapter())
    pipe.set_progress_bar_config(disable=True)
    given = dict(num_frames=FRAMES, height=64, width=64, num_inference_steps=5, motion_scale=motion_scale)
    with torch.no_grad():
        pixels = pipe.video_processor.preprocess(picture())
        drawn = pipe.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(1))
        run = pipe(
            picture(),
            "a cat",
            negative_prompt="waves",
            generator=torch.Generator().manual_seed(1),
            latents=torch.from_numpy(noise.transpose(0, 4, 1, 2, 3).copy()),
            output_type="latent",
            **given,
        )
    first_frame = pipe.vae.config.scaling_factor * drawn.numpy().transpose(0, 2, 3, 1)[:, None]
    return run.frames.numpy().transpose(0, 2, 3, 4, 1), first_frame


@pytest.mark.parametrize("motion_scale", [1, 8])
def test_guided_runs_equal_diffusers(folder, motion_scale, measured):
    noise = np.random.default_rng(2).normal(size=(1, FRAMES, 8, 8, 4)).astype(np.float32)
    wanted, first_frame = theirs(noise, motion_scale)
    ours, settings = pipeline(folder / "motion"), dataclasses.replace(SETTINGS, motion_scale=motion_scale)
    conditions = ours.with_picture(ours.encode(["a cat"], ["waves"], settings=settings), first_frame, settings)
    latents = ours.denoise(noise, conditions, settings)
    error = relative_error(latents, wanted)
    measured(f"PIA, motion_scale={motion_scale}: latents after 5 guided steps, diffusers'", error, 1e-4)


def test_whole_runs_look_at_the_picture_and_sample_its_frame(folder):
    ours = pipeline(folder / "motion")
    run = functools.partial(ours.latents, prompts="a cat", seeds=3)
    made = run(picture(), settings=SETTINGS)
    np.testing.assert_array_equal(made, run(picture(), settings=SETTINGS))
    clean = ours.encode_first_frame([np.asarray(picture())], np.uint32([3]), SETTINGS)
    assert relative_error(made[:, :1], clean) > 1e-2  # not held
    other = run(Image.new("RGB", (64, 64)), settings=SETTINGS)
    assert relative_error(other, made) > 1e-3
    assert relative_error(run(picture(), settings=dataclasses.replace(SETTINGS, motion_scale=6)), made) > 1e-3


def test_likeness_is_the_published_one():
    """The last number of a row goes on; a shorter video has the first ones."""
    from diffusers.pipelines.deprecated.pia.pipeline_pia import prepare_mask_coef_by_statistics

    for motion_scale in range(len(LIKENESS)):
        for frames in (1, 4, 16, 20):
            wanted = prepare_mask_coef_by_statistics(frames, 0, motion_scale)
            np.testing.assert_allclose(likeness(frames, motion_scale), wanted)


def test_files_of_both_layouts_come_back(folder, tmp_path, capsys):
    """diffusers' folder, PIA's own names (`pia.ckpt`), ours: the same tensors, byte for byte."""
    own, theirs = tmp_path / "ours.safetensors", tmp_path / "pia.ckpt"
    with pytest.warns(UserWarning, match="is taken to have|are taken to have"):
        assert convert(["import", str(folder / "motion"), str(own)]) == 0
    assert convert(["export", str(own), str(theirs), "--to", "animatediff"]) == 0
    written = torch.load(theirs, weights_only=True)["state_dict"]
    assert written["conv_in.weight"].shape == (32, 9, 3, 3)
    assert "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.ff_norm.weight" in written
    save_file({name: tensor.numpy() for name, tensor in written.items()}, tmp_path / "pia.safetensors")
    for source in (folder / "motion", tmp_path / "pia.safetensors"):
        tensors = open_tensors(source)
        found = recognise(tensors)["unet"]
        assert not found.unknown and "PIA" in found.table.name
        back = export_tensors(found.parameters, found.table, found.buffers)
        assert library.bytes_of(back) == library.bytes_of(tensors)
    assert convert(["export", str(own), str(tmp_path / "again"), "--to", "diffusers"]) == 0
    again, before = (open_tensors(path) for path in (tmp_path / "again", folder / "motion"))
    assert library.bytes_of(again) == library.bytes_of(before)
    assert diffusers.MotionAdapter.from_pretrained(tmp_path / "again").config.conv_in_channels == 9
    capsys.readouterr()
    assert convert(["inspect", str(theirs)]) == 0
    assert "motion modules of PIA, with a first layer for a mask and the picture's latents" in capsys.readouterr().out

    one, other = (load_unet(SMALL, motion=path) for path in (folder / "motion", theirs))
    assert one[0].motion.conv_in_channels == other[0].motion.conv_in_channels == 9 and one[0].in_channels == 4
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


def test_what_does_not_go_with_pia(folder):
    model = pipeline(folder / "motion").model
    with pytest.raises(InputError, match="motion_scale=9: wanted 0 to 8"):
        dataclasses.replace(SETTINGS, motion_scale=9).check(model)
    with pytest.raises(InputError, match="sample frame 1; the I2V-Adapter wants it clean"):
        unet = dataclasses.replace(model.configs["unet"], self_attention_branches=("first_frame",))
        dataclasses.replace(model, configs={**model.configs, "unet": unet})
    with pytest.raises(InputError, match="first layer against two of the VAE's latents and a mask: 8 against 9"):
        motion = dataclasses.replace(model.configs["unet"].motion, conv_in_channels=8)
        unet = dataclasses.replace(model.configs["unet"], motion=motion)
        dataclasses.replace(model, configs={**model.configs, "unet": unet})
    plain = dataclasses.replace(model.configs["unet"].motion, conv_in_channels=None)
    other = dataclasses.replace(model.configs["unet"], motion=plain)
    with pytest.raises(InputError, match="motion_scale=1 is of PIA's motion modules, and the model has others"):
        SETTINGS.check(dataclasses.replace(model, configs={**model.configs, "unet": other}))


def test_hotshot_xl_is_animatediff_in_other_names(tmp_path, capsys):
    """Three levels, 24 positions, no module in the middle; norms of the resnets over frames, as its code has them."""
    widths = (16, 32, 64)
    adapter = randomise(diffusers.MotionAdapter(**tiny.motion(widths, positions=24)))
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning):
        convert(["export", str(tmp_path / "adapter"), str(tmp_path / "ad.safetensors"), "--to", "animatediff"])
    tensors = {}
    for name, array in load_file(tmp_path / "ad.safetensors").items():
        name = name.replace("motion_modules", "temporal_attentions").replace(".temporal_transformer", "")
        tensors[name.replace("pos_encoder.pe", "pos_encoder.positional_encoding")] = array
    assert "up_blocks.0.temporal_attentions.1.transformer_blocks.0.attention_blocks.0.to_out.0.bias" in tensors
    hotshot = tmp_path / "hsxl_temporal_layers.safetensors"
    save_file(tensors, hotshot)
    found = recognise(open_tensors(hotshot))["unet"]
    assert found.table.name.startswith("Hotshot-XL") and not found.unknown
    back = export_tensors(found.parameters, found.table, found.buffers)
    assert library.bytes_of(back) == library.bytes_of(tensors)
    assert convert(["inspect", str(hotshot)]) == 0
    assert "motion modules of Hotshot-XL (24 frames at most)" in capsys.readouterr().out

    settings = dict(block_out_channels=widths, **tiny.levels(False, True, True), **tiny.of_xl(1, 1, 2))
    randomise(library.unet2d(**settings)).save_pretrained(tmp_path / "b")
    one, other = (load_unet(tmp_path / "b", motion=path) for path in (hotshot, tmp_path / "adapter"))
    assert one[0].motion.max_positions == 24 and not one[0].motion.mid_block and one[0].pooled_norms
    assert one[0] == dataclasses.replace(other[0], motion=one[0].motion)
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])
