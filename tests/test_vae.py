"""The autoencoder equals diffusers' PyTorch and Flax ones on the same weights."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

from i2v_jax.errors import InputError
from i2v_jax.models.vae import SD_VAE, SDXL_VAE, TINY_VAE, AutoencoderKL, VAEConfig, sample_posterior
from i2v_jax.training.reconstruction import Reconstruction, ReconstructionLoss
from i2v_jax.tree import flatten
from tests import tiny
from tests.helpers import relative_error
from tests.torch_models import our_parameters, our_shapes, randomise

# Widths that change and widths that do not, so that both kinds of residual block are there.
SMALL = dict(
    block_out_channels=(16, 32, 32),
    **tiny.autoencoder_levels(3),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=16,
)
CONFIG = VAEConfig.from_diffusers(SMALL)
SIZES = [(32, 32), (36, 20)]  # latents of 8x8, and of 9x5: odd and not square


@pytest.fixture(scope="module")
def torch_vae():
    return randomise(diffusers.AutoencoderKL(**SMALL))


@pytest.fixture(scope="module")
def parameters(torch_vae):
    return our_parameters("vae", torch_vae.state_dict())


def images(height, width, count=2):
    return np.random.default_rng(0).uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


def latents(height, width, count=2):
    return np.random.default_rng(1).normal(size=(count, height // 4, width // 4, 4)).astype(np.float32)


def run(config, parameters, method, x):
    return jax.jit(lambda p, x: AutoencoderKL(config).apply({"params": p}, x, method=method))(parameters, x)


def channels_first(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_diffusers_pytorch(torch_vae, parameters, size, measured):
    with torch.no_grad():
        posterior = torch_vae.encode(channels_first(images(*size))).latent_dist
        decoded = torch_vae.decode(channels_first(latents(*size))).sample
    mean, logvar = run(CONFIG, parameters, "encode", images(*size))
    for name, ours, theirs in (
        ("mean", mean, posterior.mean),
        ("log variance", logvar, posterior.logvar),
        ("picture", run(CONFIG, parameters, "decode", latents(*size)), decoded),
    ):
        measured(f"diffusers AutoencoderKL, {size}: {name}", relative_error(ours, theirs.permute(0, 2, 3, 1)), 1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_diffusers_flax(torch_vae, parameters, size, measured):
    flax_vae = diffusers.FlaxAutoencoderKL(**SMALL)
    weights = {"params": convert_pytorch_state_dict_to_flax(torch_vae.state_dict(), flax_vae)}

    @jax.jit
    def yardstick(weights, images, latents):
        posterior = flax_vae.apply(weights, images, method=flax_vae.encode).latent_dist
        return posterior.mean, posterior.logvar, flax_vae.apply(weights, latents, method=flax_vae.decode).sample

    expected = yardstick(weights, images(*size).transpose(0, 3, 1, 2), latents(*size))
    mean, logvar = run(CONFIG, parameters, "encode", images(*size))
    decoded = run(CONFIG, parameters, "decode", latents(*size)).transpose(0, 3, 1, 2)
    for name, ours, theirs in zip(("mean", "log variance", "picture"), (mean, logvar, decoded), expected):
        measured(f"diffusers FlaxAutoencoderKL, {size}: {name}", relative_error(ours, theirs), 1e-5)


@pytest.mark.parametrize("choice", [dict(convolution="winograd"), dict(attention="blocked")])
def test_implementations_agree(parameters, choice):
    height, width = 84, 76  # latents of 21x19: attention over enough places to be done in blocks
    config = dataclasses.replace(CONFIG, **choice)
    for method, x in (("encode", images(height, width, 1)), ("decode", latents(height, width, 1))):
        reference = run(CONFIG, parameters, method, x)
        assert relative_error(np.stack(run(config, parameters, method, x)), np.stack(reference)) <= 1e-5


def test_bfloat16_is_near_float32(parameters):
    config = dataclasses.replace(CONFIG, dtype=jnp.bfloat16)
    for method, x in (("encode", images(32, 32)), ("decode", latents(32, 32))):
        out = run(config, parameters, method, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
        assert relative_error(np.stack(out), np.stack(run(CONFIG, parameters, method, x))) <= 3e-2


def test_posterior_samples_equal_diffusers():
    generator = np.random.default_rng(2)
    mean, logvar, noise = generator.normal(size=(3, 2, 3, 5, 4)).astype(np.float32)
    logvar *= 30  # beyond what a posterior is held to
    moments = channels_first(np.concatenate([mean, logvar], -1))
    posterior = DiagonalGaussianDistribution(moments)
    expected = posterior.mean + posterior.std * channels_first(noise)
    assert np.abs(logvar).max() > 30
    assert relative_error(sample_posterior(mean, logvar, noise), expected.permute(0, 2, 3, 1)) <= 1e-6


def test_size_that_is_no_multiple_is_refused(parameters):
    with pytest.raises(InputError, match="34x32.*multiples of 4"):
        run(CONFIG, parameters, "encode", images(34, 32))


PUBLISHED = dict(
    act_fn="silu",
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    force_upcast=True,
    in_channels=3,
    latent_channels=4,
    layers_per_block=2,
    norm_num_groups=32,
    out_channels=3,
    sample_size=512,
    up_block_types=["UpDecoderBlock2D"] * 4,
)


def test_published_configs_are_the_presets():
    assert VAEConfig.from_diffusers(PUBLISHED) == SD_VAE  # its file has no scaling factor
    assert VAEConfig.from_diffusers(PUBLISHED | dict(scaling_factor=0.13025)) == SDXL_VAE
    assert SD_VAE.downscale == TINY_VAE.downscale == 8


def test_preset_has_the_published_parameters():
    with torch.device("meta"):
        state = diffusers.AutoencoderKL(**PUBLISHED).state_dict()
    ours = jax.eval_shape(AutoencoderKL(SD_VAE).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert {path: leaf.shape for path, leaf in flatten(ours).items()} == our_shapes("vae", state)


@pytest.mark.parametrize(
    "setting", [dict(mid_block_add_attention=False), dict(up_block_types=["AttnUpDecoderBlock2D"]), dict(in_channels=4)]
)
def test_unsupported_setting_is_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        VAEConfig.from_diffusers(SMALL | setting)


@pytest.mark.parametrize("crop", [0, 16])
def test_reconstruction_loss_is_that_of_pytorch(torch_vae, parameters, crop, measured):
    """Loss, and gradients of encoder and decoder, for two clips of three frames, whole or a square of each."""
    video = np.random.default_rng(2).integers(0, 256, (2, 3, 32, 40, 3), dtype=np.uint8)
    loss = ReconstructionLoss(CONFIG, Reconstruction(crop=crop, edges=0.5, divergence=0.1))
    draws = loss.draw(jax.random.key(0), dict(video=video))

    def ours(parameters):
        return loss({"vae": parameters}, dict(video=video), draws)

    (value, seen), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(parameters)
    height, width = (crop, crop) if crop else (32, 40)
    squares = np.stack([clip[:, y : y + height, x : x + width] for clip, (y, x) in zip(video, draws.corners)])
    images = channels_first(squares.reshape(-1, height, width, 3) / np.float32(127.5) - 1)
    torch_vae.zero_grad()
    posterior = torch_vae.encode(images).latent_dist
    noise = np.array(draws.posterior).reshape(6, height // 4, width // 4, 4)
    error = torch_vae.decode(posterior.mean + posterior.std * channels_first(noise)).sample - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    theirs = error.abs().mean() + 0.5 * edges + 0.1 * posterior.kl().mean() / posterior.mean[0].numel()
    theirs.backward()
    measured(f"reconstruction loss, crop={crop}", relative_error(value, theirs.detach()), 1e-5)
    np.testing.assert_allclose(np.mean(seen["each"]), value, rtol=1e-6)
    assert seen["decoded"].shape == squares.shape
    expected = flatten(our_parameters("vae", {name: weight.grad for name, weight in torch_vae.named_parameters()}))
    # all in one, as some (of the keys' biases) are nothing but rounding
    here, there = (np.concatenate([np.ravel(leaves[p]) for p in expected]) for leaves in (flatten(gradients), expected))
    measured(f"reconstruction loss, crop={crop}: gradients", relative_error(here, there), 1e-4)


def test_squares_of_the_reconstruction_loss_are_drawn_from_everywhere():
    batch = dict(video=np.zeros((500, 1, 12, 20, 3), np.uint8))
    corners = ReconstructionLoss(CONFIG, Reconstruction(crop=8)).draw(jax.random.key(0), batch).corners
    assert set(map(int, corners[:, 0])) == set(range(5)) and set(map(int, corners[:, 1])) == set(range(13))
    for crop in (10, 16):
        with pytest.raises(InputError, match=f"crop={crop}: wanted a multiple of 4, 12"):
            ReconstructionLoss(CONFIG, Reconstruction(crop=crop)).draw(jax.random.key(0), batch)


@pytest.mark.parametrize("settings", [dict(edges=-1), dict(divergence=float("nan"))])
def test_bad_weights_of_the_reconstruction_loss(settings):
    with pytest.raises(InputError, match="wanted 0 or more"):
        Reconstruction(**settings)
