"""IP-Adapters: the published files and what diffusers makes of them mean the same here, and give its outputs."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from i2v_jax.errors import InputError
from i2v_jax.models.image_projection import ImageProjection, ImageProjectionConfig, Resampler, ResamplerConfig
from i2v_jax.models.unet import UNet
from i2v_jax.weights.assemble import load_image_projection, load_unet
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.translate import export_tensors, recognise
from tests import test_weights as library
from tests import tiny
from tests.helpers import relative_error, with_conditions
from tests.torch_models import randomise

TOKEN = 24  # width
RANK = 2  # of FaceID's LoRA
PICTURE = 12  # width of what a projection reads
STRUCTURES = {
    "SD1.5": dict(
        block_out_channels=(8, 16, 16, 16),
        **tiny.levels(True, True, True, False),
    ),
    "SDXL": dict(
        block_out_channels=(8, 16, 16),
        **tiny.levels(False, True, True),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
    ),
}
COUNTS = {"SD1.5": 16, "SDXL": 70}


@functools.cache
def full_depth(structure):
    """A UNet with as many layers as the published one, and narrow."""
    common = dict(cross_attention_dim=TOKEN, attention_head_dim=2, norm_num_groups=4, layers_per_block=2)
    return diffusers.UNet2DConditionModel(**common, **STRUCTURES[structure])


def linear_projection(normal):
    return {"proj.weight": normal(4 * TOKEN, PICTURE), "proj.bias": normal(4 * TOKEN)} | norm("norm", TOKEN, normal)


def resampler(normal, width=16, inner=64, tokens=5):
    weights = {"latents": normal(1, tokens, width)}
    weights |= {"proj_in.weight": normal(width, PICTURE), "proj_in.bias": normal(width)}
    weights |= {"proj_out.weight": normal(TOKEN, width), "proj_out.bias": normal(TOKEN)}
    weights |= norm("norm_out", TOKEN, normal)
    for i in range(4):
        weights |= norm(f"layers.{i}.0.norm1", width, normal) | norm(f"layers.{i}.0.norm2", width, normal)
        weights |= tiny.resampler_matrices(f"layers.{i}", width, inner, normal)
        weights |= norm(f"layers.{i}.1.0", width, normal)
    return weights


def norm(name, width, normal):
    return {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}


def state_projection(normal):
    weights = {"proj.0.weight": normal(PICTURE, PICTURE), "proj.0.bias": normal(PICTURE)}
    weights |= {"proj.2.weight": normal(TOKEN, PICTURE), "proj.2.bias": normal(TOKEN)}
    return weights | norm("proj.3", TOKEN, normal)


FACE = 16  # width of a face embedding


def face_projection(normal):
    weights = {"proj.0.weight": normal(2 * FACE, FACE), "proj.0.bias": normal(2 * FACE)}
    weights |= {"proj.2.weight": normal(4 * TOKEN, 2 * FACE), "proj.2.bias": normal(4 * TOKEN)}
    return weights | norm("norm", TOKEN, normal)


def face_resampler(normal):
    inner = {name: tensor for name, tensor in resampler(normal, width=TOKEN).items() if name != "latents"}
    return face_projection(normal) | {f"perceiver_resampler.{name}": tensor for name, tensor in inner.items()}


PROJECTIONS = {
    "base": linear_projection,
    "plus": resampler,
    "full face": state_projection,
    "FaceID": face_projection,
    "FaceID plus": face_resampler,
}


def adapter(unet, kind, seed=0):
    """An IP-Adapter file of a UNet: {"image_proj": ..., "ip_adapter": ...}, as tensors of PyTorch."""
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=random) / shape[-1] ** 0.5  # noqa: E731
    attention, number = {}, 0
    for name in unet.attn_processors:
        if "motion_modules" in name or name.startswith("encoder_hid_proj"):  # of one that was loaded before
            continue
        layers = unet.get_submodule(name.removesuffix(".processor"))
        width = layers.to_q.out_features
        if kind.startswith("FaceID"):
            for layer in ("to_q", "to_k", "to_v", "to_out"):
                width_in = (layers.to_out[0] if layer == "to_out" else getattr(layers, layer)).in_features
                attention[f"{number}.{layer}_lora.down.weight"] = normal(RANK, width_in)
                attention[f"{number}.{layer}_lora.up.weight"] = (
                    normal(width, RANK) / 8
                )  # else softmax is all or nothing
        if name.endswith("attn2.processor"):
            attention |= {f"{number}.to_{it}_ip.weight": normal(width, TOKEN) for it in "kv"}
        number += 1
    return {"image_proj": PROJECTIONS[kind](normal), "ip_adapter": attention}


def flat(nested):
    return {f"{part}.{name}": tensor.numpy() for part, weights in nested.items() for name, tensor in weights.items()}


def saved(nested, path):
    if path.suffix == ".bin":
        torch.save(nested, path)
    else:
        save_file(flat(nested), path)
    return path


def parts(source):
    """The image-token weights by path, and the image projection's."""
    found = recognise(open_tensors(source))
    assert not any(it.unknown or it.misshapen for it in found.values())
    tokens = found["unet"].parameters.select(r".*/image_tokens/.*")
    return found, tokens, found["image_proj"].parameters


def exported(found):
    written = [export_tensors(it.parameters, it.table, it.buffers) for it in found.values()]
    return {name: tensors[name] for tensors in written for name in tensors}


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_published_file_lands_where_diffusers_puts_it_and_comes_back(structure, kind, suffix, tmp_path):
    unet = full_depth(structure)
    nested = adapter(unet, kind)
    assert len(nested["ip_adapter"]) == (18 if kind.startswith("FaceID") else 2) * COUNTS[structure]
    file = saved(nested, tmp_path / f"ip{suffix}")
    found, tokens, projection = parts(file)
    assert library.bytes_of(exported(found)) == library.bytes_of(flat(nested))

    unet._load_ip_adapter_weights([nested])
    torch.save(unet.state_dict(), tmp_path / "loaded.bin")
    loaded, their_tokens, their_projection = parts(tmp_path / "loaded.bin")
    assert len(tokens) == 2 * COUNTS[structure]
    assert library.bytes_of(tokens) == library.bytes_of(their_tokens)
    assert library.bytes_of(projection) == library.bytes_of(their_projection)
    assert library.bytes_of(exported(loaded)) == library.bytes_of(library.state_of(unet))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_motion_unet_with_an_adapter_comes_back(kind, tmp_path):
    unet = library.motion_unet()
    unet._load_ip_adapter_weights([adapter(unet, kind)])
    torch.save(unet.state_dict(), tmp_path / "loaded.bin")
    assert library.bytes_of(exported(parts(tmp_path / "loaded.bin")[0])) == library.bytes_of(library.state_of(unet))


@pytest.mark.parametrize("kind, changes", [("base", {}), ("plus", library.SDXL)])
def test_outputs_are_those_of_diffusers(kind, changes, tmp_path, measured):
    """The diffusers UNet with its adapter loaded, saved as it is, against our UNet and projection of that file."""
    unet = randomise(library.unet2d(**changes))
    nested = adapter(unet, kind)
    unet.save_pretrained(tmp_path / "base")
    unet._load_ip_adapter_weights([nested])
    unet.save_pretrained(tmp_path / "loaded")
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    sample, text = normal(2, 4, 8, 8), normal(2, 5, TOKEN)
    picture = normal(2, 7, PICTURE) if kind == "plus" else normal(2, PICTURE)
    added = dict(text_embeds=normal(2, 16), time_ids=normal(2, 6)) if changes else {}
    with torch.no_grad():
        more = {name: torch.tensor(array) for name, array in added.items()}
        more["image_embeds"] = [torch.tensor(picture)[:, None]]
        wanted = unet(torch.tensor(sample), 500, torch.tensor(text), added_cond_kwargs=more).sample.numpy()

    config, projection = load_image_projection(tmp_path / "loaded")
    assert type(config) is (ResamplerConfig if kind == "plus" else ImageProjectionConfig)
    model = (Resampler if kind == "plus" else ImageProjection)(config)
    tokens = jax.jit(model.apply)({"params": projection}, picture)
    config, params = load_unet(tmp_path / "loaded")
    assert config.cross_attention_branches == ("image_tokens",)

    def run(params):
        video = jnp.asarray(sample).transpose(0, 2, 3, 1)[:, None]
        given = dict(sample=video, timesteps=500, text=text, image_tokens=tokens, added=added)
        out = UNet(config).apply({"params": params}, **with_conditions(given))
        return out[:, 0].transpose(0, 3, 1, 2)

    measured(f"UNet with an IP-Adapter, {kind}, against diffusers", relative_error(jax.jit(run)(params), wanted), 1e-5)

    file = saved(nested, tmp_path / "ip.safetensors")
    for ours, same in (
        ((config, params), load_unet(tmp_path / "base", adapters=dict(image_tokens=file))),
        ((model.config, projection), load_image_projection(file)),
    ):
        assert ours[0] == same[0]
        jax.tree.map(np.testing.assert_array_equal, ours[1], same[1])


def test_numbers_of_an_unknown_unet_are_kept(tmp_path):
    nested = adapter(library.unet2d(), "base")
    found, tokens, _ = parts(saved(nested, tmp_path / "ip.safetensors"))
    assert all(path.startswith("numbered_") for path in tokens)
    assert library.bytes_of(exported(found)) == library.bytes_of(flat(nested))


def test_only_one_adapter_is_read(tmp_path):
    unet = library.unet2d()
    unet._load_ip_adapter_weights([adapter(unet, "base"), adapter(unet, "base", seed=1)])
    unet.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"(?s)with one IP-Adapter\).*unexpected '[\w.]*\.to_k_ip\.1\.weight'"):
        load_unet(tmp_path)
