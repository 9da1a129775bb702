"""Single-file Stable Diffusion checkpoints, written by hand from diffusers' models: read as diffusers' own code reads
them, and written back as they were.
"""

import functools
import hashlib
import re

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

from i2v_jax.models.clip import OPENCLIP_BIGG_TEXT, SD15_TEXT, CLIPTextEncoder
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.controlnet import SD15_CONTROLNET
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15, SDXL, UNet
from i2v_jax.models.vae import SD_VAE, SDXL_VAE, AutoencoderKL
from i2v_jax.weights.assemble import load_text_encoder, load_unet, load_vae
from i2v_jax.weights.formats import TABLES, original
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import export_tensors, recognise
from tests import tiny
from tests.helpers import relative_error
from tests.torch_models import randomise

WIDTHS = dict(block_out_channels=(16, 32, 32), norm_num_groups=16)
UNET = dict(**WIDTHS, cross_attention_dim=24, attention_head_dim=8)
UNETS = {
    "SD1.5": UNET | dict(layers_per_block=2) | tiny.levels(True, True, False),
    "SDXL": UNET | dict(layers_per_block=1) | tiny.levels(False, True, True) | tiny.of_xl(1, 2, 3),
}
TEXT = dict(num_hidden_layers=2, vocab_size=99, bos_token_id=97, eos_token_id=2)
UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
CLIP_PREFIX = {"SD1.5": "cond_stage_model.transformer.", "SDXL": "conditioner.embedders.0.transformer."}
OPENCLIP_PREFIX = "conditioner.embedders.1.model."


def make_unet(family, seed=0):
    return randomise(diffusers.UNet2DConditionModel(**UNETS[family]), seed)


def make_controlnet():
    settings = tiny.of_controlnet(UNETS["SD1.5"])
    return randomise(diffusers.ControlNetModel(**settings, conditioning_embedding_out_channels=(8, 16, 24, 32)))


def make_vae():
    return randomise(diffusers.AutoencoderKL(**WIDTHS, **tiny.autoencoder_levels(3), layers_per_block=2))


def make_clip():
    config = transformers.CLIPTextConfig(hidden_size=64, intermediate_size=96, num_attention_heads=1, **TEXT)
    return randomise(transformers.CLIPTextModel(config))


def make_openclip():
    config = transformers.CLIPTextConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=1, projection_dim=64, hidden_act="gelu", **TEXT
    )
    return randomise(transformers.CLIPTextModelWithProjection(config))


# The original layout, by hand: what each module of a diffusers model is called there.

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
}


def original_unet(model, prefix=UNET_PREFIX):
    """A UNet's or ControlNet's state, its layers renumbered as the network runs through them."""
    state, layers = model.state_dict(), model.config.layers_per_block

    def renamed(name):
        module, leaf = name.rsplit(".", 1)
        if module in ENDS:
            return f"{ENDS[module]}.{leaf}"
        if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)", module):
            return f"zero_convs.{match[1]}.0.{leaf}"
        if match := re.fullmatch(r"controlnet_cond_embedding\.(?:blocks\.(\d+)|conv_out)", module):
            count = sum(n.startswith("controlnet_cond_embedding.blocks") for n in state) // 2
            return f"input_hint_block.{2 * (int(match[1]) if match[1] else count) + 2}.{leaf}"
        if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", module):
            kind, place = match[1], 1 if match[1] == "attentions" else 2 * int(match[2])
            return f"middle_block.{place}.{RESNET[match[3]] if kind == 'resnets' else match[3]}.{leaf}"
        side, level, kind, layer, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", module).groups()
        number = int(level) * (layers + 1) + int(layer)
        if kind == "downsamplers":
            return f"input_blocks.{(int(level) + 1) * (layers + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            has_attention = any(n.startswith(f"up_blocks.{level}.attentions") for n in state)
            return f"output_blocks.{number + layers}.{2 if has_attention else 1}.conv.{leaf}"
        block = f"input_blocks.{number + 1}" if side == "down" else f"output_blocks.{number}"
        return f"{block}.0.{RESNET[rest]}.{leaf}" if kind == "resnets" else f"{block}.1.{rest}.{leaf}"

    return {prefix + renamed(name): tensor for name, tensor in state.items()}


def averaged(file):
    """Running averages of a UNet, as the training code keeps them."""
    unet = {name: tensor for name, tensor in file.items() if name.startswith(UNET_PREFIX)}
    ema = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensor / 2 for name, tensor in unet.items()}
    return ema | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}


def original_vae(model, prefix=VAE_PREFIX):
    levels, file = len(model.config.block_out_channels), {}
    for name, tensor in model.state_dict().items():
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        name = name.replace(".upsamplers.0", ".upsample").replace(".resnets.", ".block.")
        if "attentions" in name:
            for new, old in {
                "group_norm": "norm",
                "to_q": "q",
                "to_k": "k",
                "to_v": "v",
                "to_out.0": "proj_out",
            }.items():
                name = name.replace(f"mid_block.attentions.0.{new}", f"mid.attn_1.{old}")
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        file[prefix + name] = tensor.contiguous()
    return file


def original_clip(model, prefix):
    """Names as such files have them, whichever the installed transformers gives its modules."""
    positions = torch.arange(77)[None]
    state = {f"{prefix}text_model.{name}": tensor for name, tensor in flat(model).items()}
    return state | {f"{prefix}text_model.embeddings.position_ids": positions}


def flat(model):
    return {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}


def original_openclip(model, prefix=OPENCLIP_PREFIX):
    state = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    file = {
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "text_projection": state.pop("text_projection.weight").T.contiguous(),
        "ln_final.weight": state.pop("final_layer_norm.weight"),
        "ln_final.bias": state.pop("final_layer_norm.bias"),
        "logit_scale": torch.tensor(4.6),
    }
    for i, layer in enumerate(model.text_model.encoder.layers):
        modules = {
            "ln_1": layer.layer_norm1,
            "attn.out_proj": layer.self_attn.out_proj,
            "ln_2": layer.layer_norm2,
            "mlp.c_fc": layer.mlp.fc1,
            "mlp.c_proj": layer.mlp.fc2,
        }
        block = f"transformer.resblocks.{i}."
        file |= {
            f"{block}{name}.{leaf}": it for name, module in modules.items() for leaf, it in module.state_dict().items()
        }
        fused = [getattr(layer.self_attn, f"{name}_proj").state_dict() for name in "qkv"]
        file |= {f"{block}attn.in_proj_{leaf}": torch.cat([it[leaf] for it in fused]) for leaf in ("weight", "bias")}
    return {prefix + name: tensor for name, tensor in file.items()}


CONSTANTS = {
    "betas": torch.rand(9),
    "alphas_cumprod": torch.rand(9),
    "posterior_mean_coef2": torch.rand(9),
    "sqrt_recipm1_alphas_cumprod": torch.rand(9),
}


@functools.cache
def checkpoint(family):
    """A whole checkpoint: its models, and its tensors."""
    models = {"unet": make_unet(family), "vae": make_vae(), "text_encoder": make_clip()}
    file = original_unet(models["unet"]) | original_vae(models["vae"])
    file |= original_clip(models["text_encoder"], CLIP_PREFIX[family])
    if family == "SDXL":
        models["text_encoder_2"] = make_openclip()
        file |= original_openclip(models["text_encoder_2"]) | {"denoiser.sigmas": torch.rand(9)}
    else:
        file |= averaged(file) | CONSTANTS
    return models, file


def arrays(state):
    return Tensors.of({name: tensor.numpy() for name, tensor in state.items()})


def bytes_of(tensors):
    return {name: (str(tensors[name].dtype), tensors[name].shape, tensors[name].tobytes()) for name in tensors}


def assert_same(tensors, others):
    assert tensors.keys() == others.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], others[name], err_msg=name)


def there_and_back(tensors):
    """Every component into our names and back into its own table's."""
    back = {}
    for imported in recognise(tensors).values():
        assert not imported.unknown and not imported.misshapen
        back |= export_tensors(imported.parameters, imported.table, imported.buffers).entries
    return Tensors(back, "back")


def test_files_by_hand_are_what_diffusers_takes_for_the_original_layout():
    """The yardstick's yardstick: diffusers' converters turn these files into the models that they were made from."""
    for family in UNETS:
        models, file = checkpoint(family)
        unet = single_file_utils.convert_ldm_unet_checkpoint(file, UNETS[family])
        torch.testing.assert_close(unet, dict(models["unet"].state_dict()), rtol=0, atol=0)
        vae = single_file_utils.convert_ldm_vae_checkpoint(file, dict(models["vae"].config))
        torch.testing.assert_close(vae, dict(models["vae"].state_dict()), rtol=0, atol=0)
        clip = single_file_utils.convert_ldm_clip_checkpoint(file)
        del clip["text_model.embeddings.position_ids"]
        clip = {name.removeprefix("text_model."): tensor for name, tensor in clip.items()}
        torch.testing.assert_close(clip, flat(models["text_encoder"]), rtol=0, atol=0)
    openclip = models["text_encoder_2"]
    converted = single_file_utils.convert_open_clip_checkpoint(openclip, file, OPENCLIP_PREFIX)
    torch.testing.assert_close(converted, dict(openclip.state_dict()), rtol=0, atol=0)
    file = checkpoint("SD1.5")[1]
    ema = single_file_utils.convert_ldm_unet_checkpoint(file, UNETS["SD1.5"], extract_ema=True)
    half = {name: tensor / 2 for name, tensor in make_unet("SD1.5").state_dict().items()}
    torch.testing.assert_close(ema, half, rtol=0, atol=0)
    model = make_controlnet()
    converted = single_file_utils.convert_controlnet_checkpoint(original_unet(model, "control_model."), model.config)
    torch.testing.assert_close(converted, dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("family", UNETS)
def test_components_are_those_of_the_models(family):
    models, file = checkpoint(family)
    found = recognise(arrays(file))
    extra = {"noise_schedule"} if family == "SDXL" else {"noise_schedule", "unet_ema"}
    assert found.keys() == models.keys() | extra
    for name, model in models.items():
        of_model = recognise(arrays(model.state_dict()))[name.removesuffix("_2")]
        assert_same(dict(found[name].parameters), dict(of_model.parameters))
    if "unet_ema" in found:
        half = {path: array / 2 for path, array in found["unet"].parameters.items()}
        assert_same(dict(found["unet_ema"].parameters), half)
        assert set(found["unet_ema"].buffers) == {"decay", "num_updates"}


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_controlnet_is_that_of_the_model(prefix):
    model = make_controlnet()
    file = arrays(original_unet(model, prefix))
    found, of_model = recognise(file), recognise(arrays(model.state_dict()))
    assert found.keys() == of_model.keys() == {"controlnet"}
    assert_same(dict(found["controlnet"].parameters), dict(of_model["controlnet"].parameters))
    assert bytes_of(there_and_back(file)) == bytes_of(file)


@pytest.mark.parametrize("storage", ["safetensors", "ckpt", "safetensors, half precision"])
@pytest.mark.parametrize("family", UNETS)
def test_whole_files_round_trip(family, storage, tmp_path):
    _, file = checkpoint(family)
    if "half" in storage:
        file = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in file.items()}
    path = tmp_path / f"model.{storage.split(',')[0]}"
    if path.suffix == ".ckpt":
        torch.save({"state_dict": file, "global_step": 3, "epoch": 1}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in file.items()}, path)
    save_tensors(tmp_path / "back.safetensors", there_and_back(open_tensors(path)))
    assert bytes_of(open_tensors(tmp_path / "back.safetensors")) == bytes_of(arrays(file))


@pytest.mark.parametrize("family", UNETS)
def test_export_needs_no_more_than_the_tree(family):
    """Tables made from paths and shapes alone, as for a model trained here, write what the original code wrote."""
    models, file = checkpoint(family)
    linear = family == "SDXL"
    tables = {
        "unet": original.SDXL_UNET if linear else original.SD15_UNET,
        "vae": original.SD_VAE,
        "text_encoder": original.SDXL_TEXT if linear else original.SD15_TEXT,
        "text_encoder_2": original.SDXL_TEXT_2,
    }
    for name, model in models.items():
        parameters = recognise(arrays(model.state_dict()))[name.removesuffix("_2")].parameters
        exported = export_tensors(parameters, tables[name], Tensors.of({}))
        assert exported.keys() <= file.keys() and len(exported)
        assert bytes_of(exported) == bytes_of(arrays({key: file[key] for key in exported}))
    written = {key for key in file if key.startswith(("model.", "first_stage", "cond_stage", "conditioner"))} - {
        key for key in file if key.endswith(("position_ids", "logit_scale"))
    }
    assert written == set().union(
        *(
            export_tensors(i.parameters, tables[n], Tensors.of({}))
            for n, i in recognise(arrays(file)).items()
            if n in tables
        )
    )


def test_counters_of_averages_that_were_taken_out():
    file = arrays(
        {name: tensor for name, tensor in checkpoint("SD1.5")[1].items() if "model_ema.diffusion" not in name}
    )
    found = recognise(file)
    assert "unet_ema" not in found and {"decay", "num_updates"} < set(found["noise_schedule"].buffers)
    assert bytes_of(there_and_back(file)) == bytes_of(file)


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
@pytest.mark.parametrize("family", UNETS)
def test_bare_unets(family, prefix):
    model = make_unet(family)
    file = arrays(original_unet(model, prefix))
    parameters = recognise(file)["unet"].parameters
    assert_same(dict(parameters), dict(recognise(arrays(model.state_dict()))["unet"].parameters))
    assert bytes_of(there_and_back(file)) == bytes_of(file)


def test_bare_autoencoder_with_what_it_was_trained_with():
    model = make_vae()
    training = {
        "loss.logvar": torch.zeros(()),
        "loss.perceptual_loss.scaling_layer.shift": torch.rand(1, 3, 1, 1),
        "loss.perceptual_loss.net.slice3.10.weight": torch.rand(4, 2, 3, 3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.rand(1, 4, 1, 1),
        "loss.discriminator.main.3.num_batches_tracked": torch.tensor(5),
    }
    file = arrays(original_vae(model, "") | training)
    found = recognise(file)
    assert found.keys() == {"vae"} and len(found["vae"].buffers) == len(training)
    assert_same(dict(found["vae"].parameters), dict(recognise(arrays(model.state_dict()))["vae"].parameters))
    assert bytes_of(there_and_back(file)) == bytes_of(file)


def test_every_table_has_a_name_of_its_own():
    """Our own files remember a format by its name."""
    for component, tables in TABLES.items():
        names = [table.name for table in tables]
        assert len(set(names)) == len(names), component


def test_early_clip_names_and_other_places_of_openclip():
    clip, openclip = make_clip(), make_openclip()
    early = {
        f"cond_stage_model.transformer.{name.removeprefix('text_model.')}": tensor
        for name, tensor in clip.state_dict().items()
    }
    for file, component, model in (
        (early, "text_encoder", clip),
        (original_openclip(openclip, "cond_stage_model.model."), "text_encoder", openclip),
        (original_openclip(openclip, "conditioner.embedders.0.model."), "text_encoder_2", openclip),
    ):
        found = recognise(arrays(file))
        assert found.keys() == {component}
        of_model = recognise(arrays(model.state_dict()))["text_encoder"]
        assert_same(dict(found[component].parameters), dict(of_model.parameters))
        assert bytes_of(there_and_back(arrays(file))) == bytes_of(arrays(file))


# Number of parameters, and SHA-256 of their sorted "name [shape]" lines, in the files that Stability AI, Runway and
# lllyasviel published (lists kept by arenasys/stable-diffusion-webui-model-toolkit).
PUBLISHED = [
    (original.SD15_UNET, SD15, 686, "8c2cafd295071b39e19613339f72e2cd3530e8317a7ac23263132b5c8cfe52a4"),
    (original.SD15_EMA, SD15, 686, "715e221f6645e9909b8094dc0ec6d90d528bc32a3b903f78628fc1ed148c90bd"),
    (original.SDXL_UNET, SDXL, 1680, "3884182d449c8837466d5c933309621d1b023f396b9b342271ac74525ee79408"),
    (original.SD_VAE, SD_VAE, 248, "e9d56f72afb2bd81acba4f3ebcb7806ba50f82607dd976f1f7fe674712c1b01b"),
    (
        original.SD15_TEXT,
        SD15_TEXT,
        196,
        "e5df659b9deaa717e6c5dad9ca862895aa293f143872545cf268dbd5c068e2bb",
    ),
    (
        original.SDXL_TEXT,
        SD15_TEXT,
        196,
        "7a1d2af8235327adccb4b90e950c0674a36adaec98cdc3e9811cc89dd2db7420",
    ),
    (
        original.SDXL_TEXT_2,
        OPENCLIP_BIGG_TEXT,
        389,
        "1540b3c388720b769c6f15d83c838398f737388291c2dc6ac53cd8ce1e9eef8f",
    ),
    (
        original.SD15_CONTROLNET,
        SD15_CONTROLNET,
        340,
        "ebea5bace8ecd0f88245f9ceb3f48dbe266a18b32fb36ed893a282b03d17de74",
    ),
]


@pytest.mark.parametrize("table, config, count, digest", PUBLISHED, ids=lambda it: getattr(it, "name", ""))
def test_names_and_shapes_are_those_of_the_published_files(table, config, count, digest):
    entries = {path: Entry(leaf.shape, np.dtype(leaf.dtype), None) for path, leaf in parameter_shapes(config).items()}
    exported = export_tensors(Tensors(entries, "shapes"), table, Tensors.of({})).entries
    lines = sorted(f"{name} {list(entry.shape)}" for name, entry in exported.items())
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The checkpoints on disk, without any config beside them."""
    folder = tmp_path_factory.mktemp("original")
    for family in UNETS:
        save_file({n: t.contiguous() for n, t in checkpoint(family)[1].items()}, folder / f"{family}.safetensors")
    return {family: folder / f"{family}.safetensors" for family in UNETS}


@pytest.mark.parametrize(
    "family, folder", [("SD1.5", "text_encoder"), ("SDXL", "text_encoder"), ("SDXL", "text_encoder_2")]
)
def test_text_encoders_give_the_models_outputs(files, family, folder, measured):
    tokens = np.random.default_rng(0).integers(0, 97, (2, 77)).astype(np.int32)
    tokens[:, 20:] = 98
    activation = "gelu" if folder == "text_encoder_2" else "quick_gelu"
    config, params = load_text_encoder(files[family], folder=folder, hidden_act=activation)
    out = jax.jit(CLIPTextEncoder(config).apply)({"params": params}, tokens)
    with torch.no_grad():
        ref = checkpoint(family)[0][folder](torch.tensor(tokens, dtype=torch.long), output_hidden_states=True)
    for what, ours, theirs in (
        ("last hidden", out.last_hidden, ref.last_hidden_state),
        ("penultimate", out.penultimate, ref.hidden_states[-2]),
        ("pooled", out.pooled, ref[0] if folder == "text_encoder_2" else ref.pooler_output),
    ):
        measured(f"{family} {folder} of a single file, {what}", relative_error(ours, theirs), 1e-5)


def test_unet_and_autoencoder_give_the_models_outputs(files, measured):
    models, random = checkpoint("SD1.5")[0], np.random.default_rng(0)
    sample, text = (
        random.normal(size=(2, 4, 8, 8)).astype(np.float32),
        random.normal(size=(2, 5, 24)).astype(np.float32),
    )
    with pytest.warns(UserWarning, match="attention heads"):
        config, params = load_unet(files["SD1.5"])
    out = jax.jit(UNet(config).apply)(
        {"params": params}, sample.transpose(0, 2, 3, 1)[:, None], np.array([3.0, 500.0]), Conditions.of_videos(text)
    )
    with torch.no_grad():
        ref = models["unet"](torch.tensor(sample), torch.tensor([3, 500]), torch.tensor(text)).sample
    measured("UNet of a single file", relative_error(out[:, 0].transpose(0, 3, 1, 2), ref), 1e-5)

    config, params = load_vae(files["SD1.5"])
    out = jax.jit(functools.partial(AutoencoderKL(config).apply, method="decode"))(
        {"params": params}, sample.transpose(0, 2, 3, 1)
    )
    with torch.no_grad():
        ref = models["vae"].decode(torch.tensor(sample)).sample
    measured("autoencoder of a single file", relative_error(out.transpose(0, 3, 1, 2), ref), 1e-5)


def test_what_a_file_holds_tells_its_family(files):
    with pytest.warns(UserWarning, match="attention heads"):
        config, _ = load_unet(files["SDXL"])
    assert config.linear_projection and config.added_conditioning.projection_input_dim == 64
    assert load_vae(files["SDXL"])[0].scaling_factor == SDXL_VAE.scaling_factor
    assert load_vae(files["SD1.5"])[0].scaling_factor == SD_VAE.scaling_factor
