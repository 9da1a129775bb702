"""LoRA files of every spelling: read, merged as diffusers and PEFT merge them, written back."""

import functools
import json
import re

import diffusers
import ml_dtypes
import numpy as np
import peft
import pytest
import torch
import transformers
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors.torch import save_file

from i2v_jax.errors import InputError
from i2v_jax.weights.formats import TABLES
from i2v_jax.weights.formats.clip import CLIP_TEXT, CLIP_TEXT_FLAT
from i2v_jax.weights.formats.diffusers import DIFFUSERS_UNET, DIFFUSERS_UNET_LINEAR
from i2v_jax.weights.formats.lora import (
    DIFFUSERS_LORA,
    DIFFUSERS_LORA_LINEAR,
    DIFFUSERS_LORA_TEXT,
    DIFFUSERS_LORA_TEXT_2,
    KOHYA_SDXL,
    KOHYA_TEXT,
    KOHYA_TEXT_1,
    KOHYA_TEXT_2,
    KOHYA_UNET,
    LORA_TABLES,
)
from i2v_jax.weights.low_rank import export_lora, load_lora, merge_lora, with_alphas
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import export_tensors, import_tensors, recognise
from tests import tiny
from tests.helpers import relative_error
from tests.torch_models import randomise

SD15 = tiny.UNET | dict(layers_per_block=2)
SDXL = SD15 | tiny.levels(False, True) | tiny.of_xl(1, 2)
CLIP = dict(vocab_size=99, **tiny.CLIP)
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2", "conv1", "conv_shortcut"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
DIFFUSERS = {"unet": DIFFUSERS_LORA, "text_encoder": DIFFUSERS_LORA_TEXT, "text_encoder_2": DIFFUSERS_LORA_TEXT_2}


def pipeline(is_sdxl=False):
    """A Stable Diffusion pipeline of tiny random models, without what no LoRA changes."""
    config = transformers.CLIPTextConfig(**CLIP)
    parts = dict(vae=None, tokenizer=None, scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False))
    text = randomise(transformers.CLIPTextModel(config), 1)
    if not is_sdxl:
        unet = randomise(diffusers.UNet2DConditionModel(**SD15))
        none = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        return diffusers.StableDiffusionPipeline(unet=unet, text_encoder=text, **parts, **none)
    unet = randomise(diffusers.UNet2DConditionModel(**SDXL))
    text_2 = randomise(transformers.CLIPTextModelWithProjection(config), 2)
    return diffusers.StableDiffusionXLPipeline(
        unet=unet, text_encoder=text, text_encoder_2=text_2, tokenizer_2=None, **parts
    )


def motion_unet():
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=2, motion_norm_num_groups=8, motion_num_attention_heads=2
    )
    return randomise(diffusers.UNetMotionModel.from_unet2d(diffusers.UNet2DConditionModel(**SD15), adapter))


def weights(model):
    """A model's dense and convolutional layers by name."""
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }


def components(pipe):
    return {name: getattr(pipe, name) for name in COMPONENTS if hasattr(pipe, name)}


def factors(weight, rank, random):
    """Random factors of a layer's change, as PyTorch stores them."""
    out, inside, *window = weight.shape
    down = random.normal(size=(rank, inside, *window)) / inside**0.5
    up = random.normal(size=(out, rank, *(1 for _ in window)))
    return {"down": torch.tensor(down, dtype=torch.float32), "up": torch.tensor(up, dtype=torch.float32)}


def nested(component, name):
    """What kohya-ss calls a layer: a text encoder's with `text_model`, which transformers has left out since 5.6."""
    is_inner = component != "unet" and not name.startswith(("text_model.", "text_projection"))
    return f"text_model.{name}" if is_inner else name


def kohya(pipe, original_numbers=False):
    """A LoRA of every layer in kohya-ss' layout, ranks of 2 and 4, written by hand."""
    random, state = np.random.default_rng(0), {}
    is_sdxl = hasattr(pipe, "text_encoder_2")
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if is_sdxl else "lora_te_"}
    for component, model in components(pipe).items():
        for i, (name, weight) in enumerate(weights(model).items()):
            if component == "unet" and original_numbers:
                name = original_name(name)
            if name.startswith("add_embedding") and not original_numbers:
                continue  # diffusers reads it only by its original name
            layer = prefixes.get(component, "lora_te2_") + nested(component, name).replace(".", "_")
            it = factors(weight, 2 if component == "unet" and i % 3 == 0 else 4, random)  # one rank for texts: theirs
            state[f"{layer}.lora_down.weight"], state[f"{layer}.lora_up.weight"] = it["down"], it["up"]
            state[f"{layer}.alpha"] = torch.tensor(3.0)
    return state


def original_name(name):
    """The name that the original SDXL code has for a layer of diffusers' UNet with two layers a level."""
    resnet = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}
    fixed = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    kinds = {"resnets": 0, "attentions": 1}
    if name in fixed:
        return fixed[name]
    for ours, theirs in (resnet | {"conv_shortcut": "skip_connection"}).items():
        name = re.sub(rf"(resnets\.\d\.){ours}$", rf"\1{theirs}", name)
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        side, level, kind, index, rest = match.groups()
        number = 3 * int(level) + int(index) + (side == "down")
        return f"{'in' if side == 'down' else 'out'}put_blocks.{number}.{kinds[kind]}.{rest}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{match[3]}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", name):
        return f"input_blocks.{3 * int(match[1]) + 3}.0.op"
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.conv", lambda m: f"output_blocks.{3 * int(m[1]) + 2}.2.conv", name)


def base_table(component, model):
    if component == "unet":
        return DIFFUSERS_UNET_LINEAR if model.config.get("use_linear_projection") else DIFFUSERS_UNET
    is_flat = not any(name.startswith("text_model.") for name in model.state_dict())  # since transformers 5.6
    return CLIP_TEXT_FLAT.of_tree({}) if is_flat else CLIP_TEXT


def merged_here(component, model, lora, scale=1.0):
    """A model's state dict with a LoRA merged by us."""
    table = base_table(component, model)
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    imported = import_tensors(Tensors.of(state), table)
    merged = merge_lora(imported.parameters, lora, scale)
    return export_tensors(merged, table, imported.buffers)


def worst(merged, fused):
    """The largest relative error of a tensor of the yardstick, whose names may be those of a wrapped model."""
    fused = unwrapped(fused)
    assert fused.keys() == merged.keys()
    return max(relative_error(merged[name], tensor.numpy()) for name, tensor in fused.items())


def unwrapped(state):
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}


def assert_changed(before, after, pattern=".*"):
    """The yardstick itself must have changed the layers, so that a comparison means something."""
    after = unwrapped(after)
    names = [name for name in before if re.fullmatch(pattern, name)]
    assert names and not [name for name in names if torch.equal(before[name], after[f"{name}.weight"])]


def save(path, state, metadata=None):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def bytes_of(tensors):
    return {name: (str(tensors[name].dtype), tensors[name].shape, tensors[name].tobytes()) for name in tensors}


def there_and_back(found):
    """What was read, written by the tables that are known by the same names."""
    tables = {name: {table.name: table for table in TABLES[name]}[it.table.name] for name, it in found.items()}
    return export_lora({name: it.parameters for name, it in found.items()}, tables)


def test_no_two_tables_of_a_component_have_one_name():
    for tables in LORA_TABLES.values():
        assert len({table.name for table in tables}) == len(tables)


# kohya-ss.


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sdxl, original numbers"])
def test_kohya_merges_as_diffusers_fuses(kind, tmp_path, measured):
    pipe = pipeline(kind != "sd15")
    state = kohya(pipe, kind == "sdxl, original numbers")
    found = load_lora(save(tmp_path / "lora.safetensors", state))
    assert found.keys() == components(pipe).keys()
    ours = {name: merged_here(name, model, found[name].parameters, 0.7) for name, model in components(pipe).items()}
    before = {name: weights(model) for name, model in components(pipe).items()}
    pipe.load_lora_weights(state)
    pipe.fuse_lora(components=list(found), lora_scale=0.7)
    for name, model in components(pipe).items():
        assert_changed(before[name], model.state_dict(), ".*" if "original" in kind else "(?!add_embedding).*")
        what = f"LoRA merged, against diffusers' fuse_lora: kohya {kind}, {name}"
        measured(what, worst(ours[name], model.state_dict()), 1e-5)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sdxl, original numbers"])
def test_kohya_reads_as_diffusers_converts(kind, tmp_path):
    pipe = pipeline(kind != "sd15")
    state = kohya(pipe, kind == "sdxl, original numbers")
    for i, name in enumerate(name for name in state if name.endswith("alpha")):
        state[name] = torch.tensor(float(1 + i))
    file = save(tmp_path / "lora.safetensors", state)
    theirs, alphas = dict(state), {}
    if kind == "sdxl, original numbers":
        theirs = _maybe_map_sgm_blocks_to_diffusers(theirs, pipe.unet.config)
    theirs, alphas = _convert_non_diffusers_lora_to_diffusers(theirs)
    unet = convert_unet_state_dict_to_peft({n: it for n, it in theirs.items() if n.startswith("unet.")})
    texts = {n: it for n, it in theirs.items() if n.startswith("text_encoder")}
    theirs = {
        n.replace(".processor", ""): it
        for n, it in (unet | convert_state_dict_to_peft(convert_state_dict_to_diffusers(texts))).items()
    }
    found = load_lora(file)
    tables = DIFFUSERS | ({"unet": DIFFUSERS_LORA_LINEAR} if kind != "sd15" else {})
    ours = export_lora({name: it.parameters for name, it in found.items()}, tables)
    assert bytes_of(ours) == bytes_of({name: tensor.numpy() for name, tensor in theirs.items()})
    held = [float(it.parameters[path]) for it in found.values() for path in it.parameters if path.endswith("alpha")]
    assert sorted(held) == sorted(alphas.values())


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sdxl, original numbers"])
@pytest.mark.parametrize("alpha", [(), (1,), None])
def test_kohya_round_trips(kind, alpha, tmp_path):
    pipe = pipeline(kind != "sd15")
    state = {name: it.half() for name, it in kohya(pipe, kind == "sdxl, original numbers").items()}
    if alpha is None:
        state = {name: it for name, it in state.items() if not name.endswith("alpha")}
    else:
        state = {name: it.reshape(alpha) if name.endswith("alpha") else it for name, it in state.items()}
    found = load_lora(save(tmp_path / "lora.safetensors", state))
    assert bytes_of(there_and_back(found)) == bytes_of({name: it.numpy() for name, it in state.items()})


# Other spellings of kohya-ss' tensors, by other programs and from newer libraries.


def original_sd15(name):
    """The name that the original SD1.5 code has: no transformer stands before the first upsampler."""
    return original_name(name).replace("output_blocks.2.2.conv", "output_blocks.2.1.conv")


def same(name):
    return name


def flat(name):
    """What transformers >= 5.6 calls a layer of a text encoder."""
    return name.removeprefix("text_model.")


UP_DOWN = {"down": ".lora_down.weight", "up": ".lora_up.weight"}
A_B = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
# by OneTrainer: its own, and OMI's; by ComfyUI; by LyCORIS
OF_PROGRAMS = {
    "OneTrainer": (("lora_unet.", same), ("lora_te.", "lora_te1.", "lora_te2."), same, UP_DOWN),
    "OneTrainer, flat": (("lora_unet.", same), ("lora_te.", "lora_te1.", "lora_te2."), flat, UP_DOWN),
    "kohya, dotted": (("lora_unet.", original_name), ("lora_te.", "lora_te1.", "lora_te2."), same, UP_DOWN),
    "OMI": (("unet.", original_name), ("clip_l.", "clip_l.", "clip_g."), same, UP_DOWN),
    "OMI, flat": (("unet.", original_name), ("clip_l.", "clip_l.", "clip_g."), flat, UP_DOWN),
    "ComfyUI": (
        ("diffusion_model.", original_sd15),
        ("text_encoders.clip_l.transformer.",) * 2 + ("text_encoders.clip_g.transformer.",),
        same,
        UP_DOWN,
    ),
    "lora_A": (("diffusion_model.", original_sd15), ("clip_l.", "clip_l.", "clip_g."), same, A_B),
    "LyCORIS": (("lycoris_", same), ("lora_te_", "lora_te1_", "lora_te2_"), same, UP_DOWN),
    "kohya, flat": (("lora_unet_", same), ("lora_te_", "lora_te1_", "lora_te2_"), flat, UP_DOWN),
    "kohya, original numbers": (("lora_unet_", original_sd15), ("lora_te_", "lora_te1_", "lora_te2_"), same, UP_DOWN),
}


def respelled(pipe, spelling):
    """The LoRA of `kohya(pipe)`, and the same as another program names it; without what kohya-ss' spelling lacks."""
    (prefix, unet), texts, text, ends = OF_PROGRAMS[spelling]
    is_sdxl = hasattr(pipe, "text_encoder_2")
    unet = original_name if is_sdxl and unet is original_sd15 else unet
    theirs = {"unet": prefix, "text_encoder": texts[is_sdxl], "text_encoder_2": texts[2]}
    kohyas = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if is_sdxl else "lora_te_"}
    ends = {ends["down"]: UP_DOWN["down"], ends["up"]: UP_DOWN["up"], ".alpha": ".alpha"}
    state, right = kohya(pipe), {}
    for component, model in components(pipe).items():
        for layer in map(functools.partial(nested, component), weights(model)):
            kohyas_name = kohyas.get(component, "lora_te2_") + layer.replace(".", "_")
            if f"{kohyas_name}.alpha" in state:
                name = theirs[component] + (unet if component == "unet" else text)(layer)
                name = name if "." in theirs[component] else name.replace(".", "_")
                right |= {name + end: state[kohyas_name + kohyas_end] for end, kohyas_end in ends.items()}
    return state, right


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("spelling", OF_PROGRAMS)
def test_other_programs_names_mean_the_same_and_come_back(spelling, family, tmp_path):
    state, theirs = respelled(pipeline(family == "sdxl"), spelling)
    found, wanted = (
        load_lora(save(tmp_path / "lora.safetensors", theirs)),
        load_lora(save(tmp_path / "k.safetensors", state)),
    )
    assert {name: bytes_of(it.parameters) for name, it in found.items()} == {
        name: bytes_of(it.parameters) for name, it in wanted.items()
    }
    assert bytes_of(there_and_back(found)) == bytes_of({name: tensor.numpy() for name, tensor in theirs.items()})


@pytest.mark.parametrize("prefix", ["text_encoder.", "text_encoder_2.", "base_model.model.", ""])
@pytest.mark.parametrize(
    "pattern", ["encoder.layers.0.self_attn.q_proj", "^encoder.layers.0.self_attn.q_proj", "q_proj"]
)
def test_text_loras_of_newer_transformers(prefix, pattern, tmp_path):
    """Without `text_model.`, alphas by metadata whose patterns have the same names."""
    random, flat_state, nested = np.random.default_rng(0), {}, {}
    for name, weight in weights(pipeline().text_encoder).items():
        if name.endswith(("q_proj", "v_proj")):
            for leaf, tensor in factors(weight, 4, random).items():
                flat_state[prefix + flat(name) + A_B[leaf]] = nested[
                    prefix + "text_model." + flat(name) + A_B[leaf]
                ] = tensor
    component = prefix.removesuffix(".") if prefix.startswith("text") else "text_encoder"
    settings = {
        f"{component}.{key}": value for key, value in dict(r=4, lora_alpha=8, alpha_pattern={pattern: 2}).items()
    }
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    found = load_lora(save(tmp_path / "flat.safetensors", flat_state, metadata))
    assert list(found) == [component]
    alphas = {p: float(it) for p, it in found[component].parameters.items() if p.endswith("alpha")}
    assert alphas["layers_0/self_attn/q_proj/lora/alpha"] == 2 and alphas["layers_1/self_attn/v_proj/lora/alpha"] == 8
    exported = there_and_back(found)
    assert bytes_of(exported) == bytes_of({name: tensor.numpy() for name, tensor in flat_state.items()})
    written = json.loads(exported.metadata["lora_adapter_metadata"])[f"{component}.target_modules"]
    assert written and not any("text_model" in name for name in written)
    (other,) = load_lora(save(tmp_path / "nested.safetensors", nested)).values()
    held = found[component].parameters.select(r".*(down|up)")
    assert bytes_of(held) == bytes_of(other.parameters)


def test_kohya_files_are_written_for_each_model():
    text = {"layers_0/mlp/fc1/lora/down": np.zeros((32, 2), np.float32)}
    conv = {"up_blocks_0/upsample/lora/down": np.zeros((3, 3, 32, 2), np.float32)}
    tables = {
        "lora_unet_up_blocks_0_upsamplers_0_conv": KOHYA_UNET,
        "lora_unet_output_blocks_2_2_conv": KOHYA_SDXL,
        "lora_te_text_model_encoder_layers_0_mlp_fc1": KOHYA_TEXT,
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": KOHYA_TEXT_1,
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": KOHYA_TEXT_2,
    }
    for layer, table in tables.items():
        lora = Tensors.of(conv if "unet" in layer else text)
        assert set(export_lora({"it": lora}, {"it": table})) == {f"{layer}.lora_down.weight"}


def test_convolutions_of_lycoris_merge_as_its_formula_says(tmp_path, measured):
    """W[o, c, h, w] + scale * alpha / rank * sum of up[o, m] mid[m, n, h, w] down[n, c]."""
    model, random = pipeline().unet, np.random.default_rng(0)
    weight = model.mid_block.resnets[0].conv1.weight.detach()
    out, inside = weight.shape[:2]
    shapes = {"down": (4, inside, 1, 1), "mid": (4, 4, 3, 3), "up": (out, 4, 1, 1)}
    it = {leaf: torch.tensor(random.normal(size=shape), dtype=torch.float32) for leaf, shape in shapes.items()}
    layer = "lora_unet_mid_block_resnets_0_conv1"
    state = {f"{layer}.lora_{leaf}.weight": tensor for leaf, tensor in it.items()}
    state[f"{layer}.alpha"] = torch.tensor(2.0)
    found = load_lora(save(tmp_path / "lora.safetensors", state))
    assert bytes_of(there_and_back(found)) == bytes_of({name: tensor.numpy() for name, tensor in state.items()})
    ours = merged_here("unet", model, found["unet"].parameters, 0.5)["mid_block.resnets.0.conv1.weight"]
    change = torch.einsum("omij,mnhw,ncij->ochw", it["up"], it["mid"], it["down"])
    measured("LoRA merged: LyCORIS' mid, against its formula", relative_error(ours, weight + 0.25 * change), 1e-5)


# PEFT and diffusers.


def adapted(model, targets, **settings):
    """A model with a random LoRA of PEFT's."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **settings)
    return peft.get_peft_model(model, config)


SETTINGS = {
    "alpha": dict(lora_alpha=7),
    "patterns": dict(
        lora_alpha=7,
        rank_pattern={"to_q": 2},
        alpha_pattern={"attn1.to_q": 3, "to_q": 5, "^mid_block.resnets.0.conv1": 2},
    ),
    "rslora": dict(lora_alpha=7, use_rslora=True),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_peft_folder_merges_as_peft_does(settings, tmp_path, measured):
    model = pipeline().unet
    before = weights(model)
    wrapped = adapted(model, TARGETS, **SETTINGS[settings])
    wrapped.save_pretrained(tmp_path)
    found = load_lora(tmp_path)
    assert list(found) == ["unet"]
    ours = merged_here("unet", diffusers_copy(before), found["unet"].parameters)
    fused = wrapped.merge_and_unload().state_dict()
    assert_changed(before, fused, rf".*({'|'.join(TARGETS)})")
    measured(f"LoRA merged, against PEFT's merge_and_unload: {settings}", worst(ours, fused), 1e-5)
    stored = bytes_of(open_tensors(tmp_path / "adapter_model.safetensors"))
    assert bytes_of(there_and_back(found)) == stored


def diffusers_copy(before):
    """The same random UNet again, of whose layers nothing was changed."""
    model = pipeline().unet
    for name, weight in weights(model).items():
        assert torch.equal(weight, before[name])
    return model


@pytest.mark.parametrize("settings", SETTINGS)
def test_diffusers_file_merges_as_diffusers_fuses(settings, tmp_path, measured):
    """Saved by save_lora_weights with its metadata, which tell the alphas."""
    pipe = pipeline()
    before = {name: weights(model) for name, model in components(pipe).items()}
    layers, metadata = {}, {}
    for name, model in components(pipeline()).items():
        wrapped = adapted(model, TARGETS if name == "unet" else TEXT_TARGETS, **SETTINGS[settings])
        layers[f"{name}_lora_layers"] = peft.get_peft_model_state_dict(wrapped)
        layers[f"{name}_lora_layers"] = {
            layer.removeprefix("base_model.model."): it for layer, it in layers[f"{name}_lora_layers"].items()
        }
        config = wrapped.peft_config["default"].to_dict()
        kept = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora")
        metadata[f"{name}_lora_adapter_metadata"] = {key: config[key] for key in kept}
    pipe.save_lora_weights(tmp_path, **layers, **metadata)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    found = load_lora(tmp_path)
    ours = {name: merged_here(name, model, found[name].parameters, 0.7) for name, model in components(pipe).items()}
    pipe.load_lora_weights(file)
    pipe.fuse_lora(lora_scale=0.7)
    for name, model in components(pipe).items():
        targets = "|".join(TARGETS + TEXT_TARGETS)
        assert_changed(before[name], model.state_dict(), rf".*({targets})")
        what = f"LoRA merged, against diffusers' fuse_lora: PEFT names, {settings}, {name}"
        measured(what, worst(ours[name], model.state_dict()), 1e-5)
    assert bytes_of(there_and_back(found)) == bytes_of(open_tensors(file))


def test_diffusers_reads_what_we_write(tmp_path, measured):
    """From kohya-ss, alphas and ranks of every layer its own, to a file that diffusers fuses as we merge."""
    pipe = pipeline()
    before = {name: weights(model) for name, model in components(pipe).items()}
    state = kohya(pipe)
    for i, name in enumerate(name for name in state if name.endswith("alpha")):
        state[name] = torch.tensor(float(1 + i % 5))
    found = load_lora(save(tmp_path / "kohya.safetensors", state))
    ours = {name: merged_here(name, model, found[name].parameters, 0.7) for name, model in components(pipe).items()}
    written = export_lora({name: it.parameters for name, it in found.items()}, DIFFUSERS)
    save_tensors(tmp_path / "lora.safetensors", written, written.metadata)
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    pipe.fuse_lora(lora_scale=0.7)
    for name, model in components(pipe).items():
        assert_changed(before[name], model.state_dict())
        measured(f"LoRA written here, fused by diffusers: {name}", worst(ours[name], model.state_dict()), 1e-5)


FC1 = "encoder.layers.0.mlp.fc1"
OLD_UNET = [
    (r"\.(to_[qkv])\.lora_(\w)", r".processor.\1_lora.\2"),
    (r"\.to_out\.0\.lora_(\w)", r".processor.to_out_lora.\1"),
]
OLD_TEXT = [(r"\.([qkv]|out)_proj\.lora_(\w)", r".to_\1_lora.\2"), (r"\.lora_([AB])", r".lora_linear_layer.\1")]
SPELLINGS = {
    "attentions as in 0.22, other layers as in PEFT": [
        (r"\.(to_[qkv]|to_out\.0)\.lora_(\w)", r".\1.lora.\2"),
        (r"\.([qkv]|out)_proj\.lora_(\w)", r".\1_proj.lora_linear_layer.\2"),
    ],
    "all as in 0.22": [
        (r"^(unet.*)\.lora_([AB])", r"\1.lora.\2"),
        (r"^(text.*)\.lora_([AB])", r"\1.lora_linear_layer.\2"),
    ],
    "attention processors": [*OLD_UNET, (r"^(unet.*)\.lora_([AB])", r"\1.lora.\2"), *OLD_TEXT],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_older_diffusers_files_merge_as_diffusers_fuses(spelling, tmp_path, measured):
    pipe, random, state = pipeline(), np.random.default_rng(0), {}
    for component, model in components(pipe).items():
        for name, weight in weights(model).items():
            for leaf, tensor in factors(weight, 4, random).items():
                name_there = f"{component}.{name}.lora_{'A' if leaf == 'down' else 'B'}"
                for pattern, replacement in SPELLINGS[spelling]:
                    name_there = re.sub(pattern, replacement, name_there)
                state[re.sub(r"\.A$", ".down", re.sub(r"\.B$", ".up", name_there)) + ".weight"] = tensor
    assert not spelling.startswith("all") or not any("lora_A" in name for name in state)
    before = {name: weights(model) for name, model in components(pipe).items()}
    found = load_lora(save(tmp_path / "lora.safetensors", state))
    ours = {name: merged_here(name, model, found[name].parameters) for name, model in components(pipe).items()}
    # diffusers judges by the first name whether there is anything to rename
    pipe.load_lora_weights(dict(sorted(state.items(), key=lambda item: re.search("lora_[AB]", item[0]) is not None)))
    pipe.fuse_lora()
    for name, model in components(pipe).items():
        assert_changed(before[name], model.state_dict())
        what = f"LoRA merged, against diffusers' fuse_lora: {spelling}, {name}"
        measured(what, worst(ours[name], model.state_dict()), 1e-5)
    stored = {name: tensor.numpy() for name, tensor in state.items()}
    assert bytes_of(there_and_back(found)) == bytes_of(stored)

    # alone, without the component's name, as the oldest files are; and with alphas as tensors
    for component in found:
        alone = {n.removeprefix(f"{component}."): it for n, it in stored.items() if n.startswith(f"{component}.")}
        assert bytes_of(there_and_back(load_lora(Tensors.of(alone)))) == bytes_of(alone)
        layer = "conv_in" if component == "unet" else f"{next(iter(alone)).partition('encoder.layers')[0]}{FC1}"
        alone |= {f"{layer}.alpha": np.ones(())}
        assert bytes_of(there_and_back(load_lora(Tensors.of(alone)))) == bytes_of(alone)


# AnimateDiff.


def motion_lora(model):
    """A motion LoRA in AnimateDiff's own layout: the temporal attentions' four projections."""
    random, state = np.random.default_rng(0), {}
    for name, weight in weights(model).items():
        if match := re.fullmatch(r"(.*motion_modules\.\d\.)(.*)\.attn([12])\.(to_[qkv]|to_out)(\.0)?", name):
            layer = (
                f"{match[1]}temporal_transformer.{match[2]}.attention_blocks.{int(match[3]) - 1}.processor.{match[4]}"
            )
            for leaf, tensor in factors(weight, 4, random).items():
                state[f"{layer}_lora.{leaf}.weight"] = tensor
    return state


def test_motion_lora_merges_as_diffusers_fuses(tmp_path, measured):
    model = motion_unet()
    before = weights(model)
    original = motion_lora(model)
    torch.save({"state_dict": original, "epoch": 3}, tmp_path / "v2_lora_ZoomIn.ckpt")
    diffusers_form = {}
    for name, tensor in original.items():
        name = name.replace(".temporal_transformer", "").replace("attention_blocks.0", "attn1")
        diffusers_form[f"unet.{name.replace('attention_blocks.1', 'attn2')}"] = tensor
    save(tmp_path / "zoom_in.safetensors", diffusers_form)
    for file, state in (("v2_lora_ZoomIn.ckpt", original), ("zoom_in.safetensors", diffusers_form)):
        found = load_lora(tmp_path / file)
        assert list(found) == ["unet"]
        assert bytes_of(there_and_back(found)) == bytes_of({name: tensor.numpy() for name, tensor in state.items()})
        ours = merged_here("unet", model, found["unet"].parameters, 0.7)
        fused = motion_unet()
        fused.load_lora_adapter(dict(diffusers_form), prefix="unet")
        fused.fuse_lora(lora_scale=0.7)
        assert_changed(before, fused.state_dict(), r".*motion_modules.*(to_\w|to_out\.0)")
        error = worst({name: ours[name] for name in ours if not name.endswith(".pe")}, without_positions(fused))
        measured(f"LoRA merged, against diffusers' fuse_lora: motion LoRA, {file}", error, 1e-5)


def motion_director(model, spell):
    """A temporal LoRA of MotionDirector's: of every dense layer in the motion modules' blocks."""
    random, state = np.random.default_rng(0), {}
    for name, weight in weights(model).items():
        if match := re.fullmatch(r"(.*motion_modules\.\d\.)(transformer_blocks\.\d\.)(.*)", name):
            layer = re.sub(r"attn([12])\.", lambda m: f"attention_blocks.{int(m[1]) - 1}.", match[3])
            layer = f"{match[1]}temporal_transformer.{match[2]}{layer}"
            for leaf, tensor in factors(weight, 4, random).items():
                state[spell(layer, leaf)] = tensor
    return state


def in_processor(layer, leaf):
    """As its `convert_to_motion_lora_key` names a layer: the last part of the name moves behind `processor`."""
    parent, _, last = layer.rpartition(".")
    return f"{parent}.processor.{last}_lora.{leaf}.weight"


@pytest.mark.parametrize("spell", [in_processor, lambda layer, leaf: f"{layer}.lora_{leaf}.weight"])
def test_temporal_loras_of_motion_director_merge_as_they_were_trained(spell, tmp_path, measured):
    """Trained as `linear(x) + up(down(x))`, without an alpha."""
    model = motion_unet()
    state = motion_director(model, spell)
    right = {name: tensor.numpy().copy() for name, tensor in without_positions(model).items()}
    changed = {name.rpartition(".")[0] for name in right} & {
        name for name in weights(model) if re.search(r"motion_modules.*transformer_blocks", name)
    }
    factors_of = list(state.values())
    assert 2 * len(changed) == len(factors_of)
    for name, down, up in zip((it for it in weights(model) if it in changed), factors_of[::2], factors_of[1::2]):
        right[f"{name}.weight"] += 0.7 * (up @ down).numpy()
    found = load_lora(save(tmp_path / "temporal.safetensors", state, {"model_type": "motion_director", "rank": "4"}))
    assert list(found) == ["unet"]
    assert bytes_of(there_and_back(found)) == bytes_of({name: tensor.numpy() for name, tensor in state.items()})
    ours = merged_here("unet", model, found["unet"].parameters, 0.7)
    error = max(relative_error(ours[name], right[name]) for name in right)
    measured("LoRA merged, against up @ down: MotionDirector's temporal", error, 1e-6)


def test_spatial_loras_of_motion_director_are_read(tmp_path):
    """Attentions as in diffusers' processors, feed-forward layers with `_lora` behind their own names."""
    random, state, wanted = np.random.default_rng(0), {}, {}
    for name, weight in weights(pipeline().unet).items():
        if re.search(r"attn[12]|ff\.net|attentions\.\d\.proj_in", name):
            layer = re.sub(r"(attn[12])\.(to_[qkv]|to_out)(\.0)?", r"\1.processor.\2", name)
            for leaf, tensor in factors(weight, 4, random).items():
                state[f"{layer}_lora.{leaf}.weight"] = wanted[f"unet.{name}{A_B[leaf]}"] = tensor
    found = load_lora(save(tmp_path / "spatial.safetensors", state))["unet"]
    assert bytes_of(found.parameters) == bytes_of(
        load_lora(save(tmp_path / "p.safetensors", wanted))["unet"].parameters
    )
    assert bytes_of(there_and_back({"unet": found})) == bytes_of({name: it.numpy() for name, it in state.items()})


def without_positions(model):
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".pe")}


# Merging.

LAYER = "down_blocks_0/layers_0/resnet/conv1"


def small(dtype=np.float32):
    """Two layers and a LoRA of one of them."""
    random = np.random.default_rng(0)
    shapes = {
        f"{LAYER}/kernel": (3, 3, 8, 6),
        "conv_in/kernel": (3, 3, 4, 8),
        f"{LAYER}/lora/down": (3, 3, 8, 2),
        f"{LAYER}/lora/up": (2, 6),
    }
    arrays = {path: random.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    base = {path: array.astype(dtype) for path, array in arrays.items() if "lora" not in path}
    lora = {path: array for path, array in arrays.items() if "lora" in path}
    return Tensors.of(base, "base"), Tensors.of(lora | {f"{LAYER}/lora/alpha": np.float32(3)}, "lora")


def test_merging_at_a_scale_and_its_negative_returns_the_base(measured):
    base, lora = small()
    there = merge_lora(base, lora, 0.8)
    kernel = f"{LAYER}/kernel"
    assert relative_error(there[kernel], base[kernel]) > 0.1
    measured(
        "LoRA merged and taken out again", relative_error(merge_lora(there, lora, -0.8)[kernel], base[kernel]), 1e-6
    )
    measured(
        "LoRA merged twice is at twice the scale",
        relative_error(merge_lora(there, lora, 0.8)[kernel], merge_lora(base, lora, 1.6)[kernel]),
        1e-6,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_merged_layers_are_rounded_once_to_the_bases_dtype(dtype):
    base, lora = small(dtype)
    merged = merge_lora(base, lora, 1.0)
    kernel = f"{LAYER}/kernel"
    exact = base[kernel].astype(np.float64) + 3 / 2 * np.einsum(
        "hwir,ro->hwio", *(lora[f"{LAYER}/lora/{leaf}"].astype(np.float64) for leaf in ("down", "up"))
    )
    assert merged[kernel].dtype == merged.entries[kernel].dtype == dtype
    steps = np.abs(merged[kernel].astype(np.float64) - exact) / np.abs(exact).max()
    assert steps.max() <= (1e-6 if dtype == np.float32 else ml_dtypes.finfo(dtype).eps)
    np.testing.assert_array_equal(merged["conv_in/kernel"], base["conv_in/kernel"])


def test_nothing_is_read_before_it_is_asked_for():
    def unread():
        raise AssertionError("read")

    base, lora = (it.holding({p: Entry(e.shape, e.dtype, unread) for p, e in it.entries.items()}) for it in small())
    merged = merge_lora(base, lora, 1.0)
    with pytest.raises(AssertionError, match="read"):
        merged[f"{LAYER}/kernel"]


BROKEN = {
    "no such layer": ({"down_blocks_0/layers_0/resnet/conv3": LAYER}, {}, r"conv3.*base does not have.*conv1'"),
    "half": ({}, {f"{LAYER}/lora/up": None}, r"conv1' has lora/down without lora/up"),
    "other half": ({}, {f"{LAYER}/lora/down": None}, r"conv1' has lora/up without lora/down"),
    "only alpha": (
        {},
        {f"{LAYER}/lora/down": None, f"{LAYER}/lora/up": None},
        r"conv1' has lora/alpha without lora/down",
    ),
    "ranks": ({}, {f"{LAYER}/lora/up": (3, 6)}, r"conv1' do not fit together: down \[3, 3, 8, 2\], up \[3, 6\]"),
    "width": ({}, {f"{LAYER}/lora/up": (2, 5)}, r"shape \[3, 3, 8, 5\]; in base it has shape \[3, 3, 8, 6\]"),
    "no rank": ({}, {f"{LAYER}/lora/up": (6,)}, r"do not fit together"),
    "empty": ({}, {f"{LAYER}/lora/up": (0, 6), f"{LAYER}/lora/down": (3, 3, 8, 0)}, r"do not fit together"),
    "alphas": ({}, {f"{LAYER}/lora/alpha": (2,)}, r"alpha has shape \[2\]; wanted one number"),
    "not LoRA": ({}, {"conv_in/kernel": (3, 3, 4, 8)}, r"'conv_in/kernel' is no LoRA weight"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_named(case):
    moved, shapes, message = BROKEN[case]
    base, lora = small()
    arrays = {path: lora[path] for path in lora}
    for path, shape in shapes.items():
        arrays.pop(path, None)
        if shape:
            arrays[path] = np.zeros(shape, np.float32)
    for there, here in moved.items():
        arrays = {path.replace(here, there): array for path, array in arrays.items()}
    with pytest.raises(InputError, match=message):
        merge_lora(base, Tensors.of(arrays, "lora"), 1.0)


REFUSED = {
    "lora_unet_conv_in.a1.weight": "GLoRA",
    "lora_unet_conv_in.oft_blocks": "OFT",
    "unet.conv_in.lora_B.bias": "biases",
    "string_to_param.*": "textual inversion",
    "emb_params": "textual inversion",
    "clip_g": "textual inversion",
    "<cat-toy>": "textual inversion",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_methods_are_refused_by_name(name):
    state = {name: np.zeros((4, 4)), "lora_unet_conv_in.lora_down.weight": np.zeros((2, 4, 3, 3))}
    with pytest.raises(InputError, match=rf"{re.escape(name)}'.*{REFUSED[name]}"):
        load_lora(Tensors.of(state))


@pytest.mark.parametrize("name, shape", [("lora_unet_nothing_like_it.alpha", ()), ("conv_in.weight", (8, 4, 3, 3))])
def test_what_is_no_lora_weight_is_named(name, shape):
    state = {name: np.zeros(shape), "lora_unet_conv_in.lora_down.weight": np.zeros((2, 4, 3, 3))}
    with pytest.raises(InputError, match=re.escape(name)):
        load_lora(Tensors.of(state))


@pytest.mark.parametrize(
    "settings, message",
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"unet.r": 4, "unet.lora_alpha": "much"}', "cannot be used"),
        ('{"unet.r": 4, "unet.alpha_pattern": 3}', "cannot be used"),
        ('{"unet.r": 4, "unet.alpha_pattern": {"(a+)+b": 3}}', r"'\(a\+\)\+b' is a regular expression"),
    ],
)
def test_damaged_settings_are_refused(settings, message):
    state = {"unet.conv_in.lora_A.weight": np.zeros((2, 4, 3, 3)), "unet.conv_in.lora_B.weight": np.zeros((8, 2, 1, 1))}
    tensors = Tensors({n: Entry.of(a) for n, a in state.items()}, "lora", {"lora_adapter_metadata": settings})
    with pytest.raises(InputError, match=message):
        load_lora(tensors)


def test_settings_beside_a_whole_model_change_nothing(tmp_path):
    pipeline().unet.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    imported = recognise(open_tensors(tmp_path))["unet"]
    assert with_alphas("unet", imported) == imported


def test_settings_written_are_diffusers_own(tmp_path):
    """Every layer's alpha and rank arrive in the tree of the file that we wrote, and of the next."""
    found = load_lora(save(tmp_path / "kohya.safetensors", kohya(pipeline())))
    trees = {name: it.parameters for name, it in found.items()}
    written = export_lora(trees, DIFFUSERS)
    settings = json.loads(written.metadata["lora_adapter_metadata"])
    assert settings["unet.lora_alpha"] == settings["text_encoder.lora_alpha"] == 3
    again = load_lora(written)
    for name, lora in trees.items():
        assert bytes_of(again[name].parameters) == bytes_of(lora)
