"""Every format, written by the library that owns it or by hand in its layout: read, compared, written back."""

import json
import re
import shutil
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from i2v_jax import tree
from i2v_jax.models.image_projection import Resampler
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.weights.assemble import load_image_encoder, load_image_projection, load_text_encoder, load_unet, load_vae
from i2v_jax.weights.formats import DIFFUSERS_UNET, PUBLISHED_UNET, TABLES
from i2v_jax.weights.save import config_from_json, config_to_json, save_own
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors, sha256
from i2v_jax.weights.translate import export_tensors, import_tensors, position_tables, recognise
from tests import tiny
from tests.helpers import relative_error

ORACLES = Path(__file__).parent / "data" / "oracles"
SDXL = tiny.of_xl(2, 1)


def unet2d(**changes):
    return diffusers.UNet2DConditionModel(**(tiny.UNET | changes))


def motion_adapter(positions=24, mid_block=False):
    settings = tiny.motion((16, 32), heads=2, positions=positions)
    return diffusers.MotionAdapter(**settings | dict(use_motion_mid_block=mid_block))


def motion_unet(**motion):
    return diffusers.UNetMotionModel.from_unet2d(unet2d(), motion_adapter(**motion))


def text():
    return transformers.CLIPTextConfig(vocab_size=99, **tiny.CLIP)


def vision():
    return transformers.CLIPVisionConfig(image_size=28, patch_size=14, **tiny.CLIP)


def vae():
    return diffusers.AutoencoderKL(block_out_channels=(16, 32), norm_num_groups=8, **tiny.autoencoder_levels(2))


MODELS = {
    "unet": (unet2d, load_unet),
    "unet-sdxl": (lambda: unet2d(**SDXL), load_unet),
    "unet-motion-v1": (motion_unet, load_unet),
    "unet-motion-v2": (lambda: motion_unet(positions=32, mid_block=True), load_unet),
    "vae": (vae, load_vae),
    "text_encoder": (lambda: transformers.CLIPTextModel(text()), load_text_encoder),
    "text_encoder-projected": (lambda: transformers.CLIPTextModelWithProjection(text()), load_text_encoder),
    "image_encoder": (lambda: transformers.CLIPVisionModel(vision()), load_image_encoder),
    "image_encoder-projected": (lambda: transformers.CLIPVisionModelWithProjection(vision()), load_image_encoder),
}
STORAGE = {
    "safetensors": {},
    "sharded": dict(max_shard_size="20KB"),
    "fp16": dict(variant="fp16"),
    "bin": dict(safe_serialization=False),
}


def state_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def bytes_of(tensors) -> dict[str, tuple]:
    return {name: (str(tensors[name].dtype), tensors[name].shape, tensors[name].tobytes()) for name in tensors}


def there_and_back(source, component, table=None):
    """Translates a source into our names and back."""
    tensors = open_tensors(source)
    imported = import_tensors(tensors, table) if table else recognise(tensors)[component]
    assert not imported.unknown and not imported.misshapen
    return export_tensors(imported.parameters, imported.table, imported.buffers)


def arrays(params) -> Tensors:
    return Tensors.of({path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()})


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", MODELS)
def test_library_models_load_and_export_unchanged(name, storage, tmp_path):
    make, load = MODELS[name]
    model = make().half() if storage == "fp16" else make()
    if storage == "bin" and isinstance(model, transformers.PreTrainedModel):
        (tmp_path / "config.json").write_text(model.config.to_json_string())
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        model.save_pretrained(tmp_path, **STORAGE[storage])
    expected = state_of(model)
    if storage == "sharded":
        assert len(list(tmp_path.glob("*-of-*"))) > 1

    stored = open_tensors(tmp_path)  # which has an inner model's name that newer transformers lacks in memory
    expected = {key: expected[key if key in expected else re.sub("^(text|vision)_model.", "", key)] for key in stored}
    component = name.split("-")[0]
    assert bytes_of(there_and_back(tmp_path, component)) == bytes_of(expected)

    dtype = jnp.float16 if storage == "fp16" else jnp.float32
    config, params = load(tmp_path, dtype=dtype)
    table = recognise(open_tensors(tmp_path))[component].table
    parameters = arrays(params)
    positions = position_tables(parameters, config.motion.max_positions) if getattr(config, "motion", None) else None
    exported = export_tensors(parameters, table, positions or Tensors.of({}))
    assert exported.keys() == expected.keys()
    for key in expected:
        if key.endswith("pe"):  # recomputed: PyTorch itself differs in the last bits between machines
            np.testing.assert_allclose(exported[key], expected[key], atol=5e-4 if storage == "fp16" else 3e-6)
        else:
            assert exported[key].dtype == expected[key].dtype
            np.testing.assert_array_equal(exported[key], expected[key])


def test_layers_arrive_where_their_names_say():
    unet = state_of(motion_unet())
    ours = import_tensors(Tensors.of(unet), DIFFUSERS_UNET).parameters
    same = {
        "conv_in/kernel": unet["conv_in.weight"].transpose(2, 3, 1, 0),
        "mid_block/attention/proj_in/kernel": unet["mid_block.attentions.0.proj_in.weight"][:, :, 0, 0].T,
        "mid_block/resnet_1/norm2/scale": unet["mid_block.resnets.1.norm2.weight"],
        "up_blocks_1/layers_1/motion/blocks_0/attn2/to_out/bias": unet[
            "up_blocks.1.motion_modules.1.transformer_blocks.0.attn2.to_out.0.bias"
        ],
    }
    for path, array in same.items():
        np.testing.assert_array_equal(ours[path], array)


@pytest.mark.parametrize("component", TABLES)
def test_projections_keep_their_names_and_no_two_tensors_meet(component):
    """A table that swaps rows survives any round trip; what a layer is called there tells what it is here."""
    states = [state_of(make()) for name, (make, _) in MODELS.items() if name.split("-")[0] == component]
    if component == "unet":
        states += [load_file(ORACLES / folder / "unet.safetensors") for folder in ("official_v1", "official_v2norm")]
    if component == "image_proj":
        states = [load_file(ORACLES / "official_v1" / "image_proj.safetensors")]
    roles = re.compile(r"to_[qkv]|to_out|[qkv]_proj|out_proj|fc\d|conv\d|conv_\w+|linear_\d|time_emb_proj|layer_norm\d")
    for state in states:
        imported = recognise(Tensors.of(state))[component]
        assert len(imported.parameters) + len(imported.buffers) == len(imported.names)
        assert set(imported.names.values()) == state.keys()
        for path, name in imported.names.items():
            if "to_kv" in name:  # keys and values, stored as one
                name = name.replace("to_kv", path.split("/")[-2])
            assert roles.findall(path) == roles.findall(name), (path, name)


@pytest.mark.parametrize("folder", ["official_v1", "official_v2norm"])
@pytest.mark.parametrize("file, component", [("unet", "unet"), ("image_proj", "image_proj")])
def test_published_files_round_trip(folder, file, component, tmp_path):
    source = ORACLES / folder / f"{file}.safetensors"
    back = there_and_back(source, component)
    assert bytes_of(back) == bytes_of(load_file(source))
    save_tensors(tmp_path / "again.safetensors", back, {"format": "pt"})
    assert bytes_of(load_file(tmp_path / "again.safetensors")) == bytes_of(load_file(source))
    with safe_open(tmp_path / "again.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def published_config(folder):
    config = json.loads((ORACLES / folder / "config.json").read_text())
    return config["unet"] | config["extra"] | ({"use_inflated_groupnorm": True} if folder == "official_v2norm" else {})


@pytest.mark.parametrize("folder, pooled, mid", [("official_v1", True, False), ("official_v2norm", False, True)])
def test_merged_published_file_tells_its_own_config(folder, pooled, mid):
    config, params = load_unet(ORACLES / folder / "unet.safetensors", config=published_config(folder))
    assert config.self_attention_branches == ("first_frame",)
    assert config.cross_attention_branches == ("image_tokens",)
    assert (config.pooled_norms, config.motion.mid_block, config.motion.max_positions) == (pooled, mid, 24)
    assert (
        config.motion.num_heads
        == json.loads((ORACLES / folder / "config.json").read_text())["extra"]["motion_module_kwargs"][
            "num_attention_heads"
        ]
    )
    stored = load_file(ORACLES / folder / "unet.safetensors")
    assert tree.count(params) == sum(array.size for name, array in stored.items() if not name.endswith(".pe"))


def test_resampler_reproduces_the_published_tokens():
    folder = ORACLES / "official_v1"
    config, params = load_image_projection(folder / "image_proj.safetensors", head_dim=8)
    assert (config.depth, config.num_heads, config.num_tokens) == (2, 3, 16)
    io = load_file(folder / "io.safetensors")
    given, wanted = io["resampler.input"], io["resampler.output"]
    assert relative_error(jax.jit(Resampler(config).apply)({"params": params}, given), wanted) <= 1e-5


# AnimateDiff's and the adapters' own layouts, written by hand.


def animatediff(state, prefix="module."):
    """A MotionAdapter's state dict in the original layout, tables of positions for both attentions."""
    names = [
        (r"(motion_modules\.\d+\.)", r"\1temporal_transformer."),
        (r"\.norm([12])\.", lambda match: f".norms.{int(match[1]) - 1}."),
        (r"\.norm3\.", ".ff_norm."),
        (r"\.attn([12])\.", lambda match: f".attention_blocks.{int(match[1]) - 1}."),
    ]
    original = {}
    for name, array in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        places = ("attention_blocks.0.pos_encoder", "attention_blocks.1.pos_encoder") if name.endswith("pe") else ("",)
        for place in places:
            original[prefix + name.replace("pos_embed", place)] = array
    return original


def test_animatediff_file_round_trips_and_equals_the_diffusers_form(tmp_path):
    adapter = motion_adapter(positions=32, mid_block=True)
    unet2d().save_pretrained(tmp_path / "base")
    adapter.save_pretrained(tmp_path / "adapter")
    original = animatediff(state_of(adapter))
    states = {"state_dict": {name: torch.tensor(array) for name, array in original.items()}, "global_step": 7}
    torch.save(states, tmp_path / "mm_sd_v15_v2.ckpt")

    opened = open_tensors(tmp_path / "mm_sd_v15_v2.ckpt")
    back = there_and_back(opened, "unet")
    assert bytes_of({opened.prefix + name: back[name] for name in back}) == bytes_of(original)

    heads = dict(num_heads=2, norm_groups=8)
    one = load_unet(tmp_path / "base", motion=tmp_path / "mm_sd_v15_v2.ckpt", motion_config=heads)
    other = load_unet(tmp_path / "base", motion=tmp_path / "adapter")
    assert one[0] == other[0] and one[0].motion.mid_block and one[0].motion.max_positions == 32
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


def ip_adapter(seed=0):
    """Linear projection and the numbered attention weights of `unet2d`: two per cross-attention of down, up, mid."""
    random = np.random.default_rng(seed)
    widths = {1: 16, 3: 16, 5: 16, 7: 32}
    attention = {
        f"{number}.to_{side}_ip.weight": random.normal(size=(width, 24)).astype(np.float32)
        for number, width in widths.items()
        for side in "kv"
    }
    projection = {
        "proj.weight": random.normal(size=(4 * 24, 12)).astype(np.float32),
        "proj.bias": random.normal(size=4 * 24).astype(np.float32),
        "norm.weight": random.normal(size=24).astype(np.float32),
        "norm.bias": random.normal(size=24).astype(np.float32),
    }
    return {"image_proj": projection, "ip_adapter": attention}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    unet2d().save_pretrained(folder)
    return folder


def adapter_file(unet, with_query=True):
    """The first-frame weights of a UNet's every spatial self-attention, under the published names."""
    random, state = np.random.default_rng(1), {}
    for name, array in unet.items():
        if re.fullmatch(r"(?!.*motion_modules).*attn1\.to_q\.weight", name):
            layer, width = name.removesuffix("to_q.weight"), len(array)
            shapes = {"to_q_ff.weight": (width, width), "to_out_ff.weight": (width, width), "to_out_ff.bias": (width,)}
            for leaf, shape in shapes.items():
                if with_query or leaf != "to_q_ff.weight":
                    state[layer + leaf] = random.normal(size=shape).astype(np.float32)
    return state


def test_parts_come_from_files_of_their_own(base, tmp_path):
    motion = motion_adapter()
    save_file(animatediff(state_of(motion), prefix=""), tmp_path / "motion.safetensors")
    unet = load_file(base / "diffusion_pytorch_model.safetensors")
    adapter = adapter_file(unet)
    save_file(adapter, tmp_path / "adapter.safetensors")
    torch.save({p: {n: torch.tensor(a) for n, a in w.items()} for p, w in ip_adapter().items()}, tmp_path / "ip.bin")

    config, params = load_unet(
        base,
        motion=tmp_path / "motion.safetensors",
        adapters=dict(first_frame=tmp_path / "adapter.safetensors", image_tokens=tmp_path / "ip.bin"),
        motion_config=dict(num_heads=2, norm_groups=8),
    )
    assert config.pooled_norms and config.motion.max_positions == 24
    assert (config.self_attention_branches, config.cross_attention_branches) == (("first_frame",), ("image_tokens",))
    parameters = arrays(params)
    merged = export_tensors(parameters, PUBLISHED_UNET, position_tables(parameters, 24))
    expected = unet | adapter | animatediff(state_of(motion), prefix="")
    assert {name for name in merged if not name.endswith("_ip.weight")} == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(merged[name], array, atol=3e-6 if name.endswith("pe") else 0, rtol=0)

    # The merged file then serves as any part, whatever stands in the base.
    save_tensors(tmp_path / "merged.safetensors", merged)
    whole = tmp_path / "merged.safetensors"
    again, same = load_unet(
        whole, config=json.loads((base / "config.json").read_text()), motion_config=dict(num_heads=2, norm_groups=8)
    )
    parts, also = load_unet(
        base,
        motion=whole,
        adapters=dict(first_frame=whole, image_tokens=whole),
        motion_config=dict(num_heads=2, norm_groups=8),
    )
    assert config == again == parts
    jax.tree.map(np.testing.assert_array_equal, params, same)
    jax.tree.map(np.testing.assert_array_equal, params, also)
    only_motion, _ = load_unet(base, motion=whole, motion_config=dict(num_heads=2, norm_groups=8))
    assert only_motion.self_attention_branches == only_motion.cross_attention_branches == ()


def test_missing_query_of_the_first_frame_branch_is_the_layers_own(base, tmp_path):
    unet = load_file(base / "diffusion_pytorch_model.safetensors")
    save_file(adapter_file(unet, with_query=False), tmp_path / "adapter.safetensors")
    leaves = tree.flatten(load_unet(base, adapters=dict(first_frame=tmp_path / "adapter.safetensors"))[1])
    queries = [path for path in leaves if "first_frame/to_q" in path]
    assert len(queries) == 4
    for path in queries:
        np.testing.assert_array_equal(leaves[path], leaves[path.replace("first_frame/", "")])
        assert np.any(leaves[path.replace("to_q", "to_out")])


def test_new_first_frame_branch_starts_as_the_paper_says(base):
    config, params = load_unet(base, self_attention_branches=("first_frame",))
    leaves = tree.flatten(params)
    for path in (path for path in leaves if "first_frame" in path):
        wanted = leaves[path.replace("first_frame/", "")] if "to_q" in path else np.zeros(leaves[path].shape)
        np.testing.assert_array_equal(leaves[path], wanted)
    assert config.self_attention_branches == ("first_frame",)


# The other layouts that exist of one component.


@pytest.mark.parametrize("convolutional", [False, True])
def test_old_vae_attention_names(convolutional, tmp_path):
    model = vae()
    model.save_pretrained(tmp_path)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, array in state_of(model).items():
        for new, there in old_names.items():
            if f"attentions.0.{new}." in name:
                name = name.replace(new, there)
                array = array[..., None, None] if convolutional and array.ndim == 2 else array
        old[name] = array
    new_config, new = load_vae(tmp_path)
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    old_config, same = load_vae(tmp_path)
    assert new_config == old_config
    jax.tree.map(np.testing.assert_array_equal, new, same)
    assert bytes_of(there_and_back(tmp_path, "vae")) == bytes_of(old)


def test_both_encoders_of_a_whole_clip(tmp_path):
    config = transformers.CLIPConfig(text_config=text().to_dict(), vision_config=vision().to_dict(), projection_dim=24)
    clip = transformers.CLIPModel(config)
    clip.save_pretrained(tmp_path)
    state = state_of(clip)
    for load, projection in ((load_text_encoder, "text_projection"), (load_image_encoder, "visual_projection")):
        config, params = load(tmp_path)
        assert config.projection_dim == 24
        np.testing.assert_array_equal(params[projection]["kernel"], state[f"{projection}.weight"].T)


def test_pipeline_folder_gives_each_component(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    for name in ("unet", "vae", "text_encoder", "image_encoder"):
        MODELS[name][0]().save_pretrained(tmp_path / name)
    transformers.CLIPTextModelWithProjection(text()).save_pretrained(tmp_path / "text_encoder_2")
    for load in (load_unet, load_vae, load_text_encoder, load_image_encoder):
        load(tmp_path)
    assert load_text_encoder(tmp_path)[0].projection_dim is None
    assert load_text_encoder(tmp_path, folder="text_encoder_2")[0].projection_dim == 24


def test_bfloat16_is_read_and_written(tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in unet2d().state_dict().items()}
    torch.save(state, tmp_path / "unet.pth")
    save_tensors(tmp_path / "unet.safetensors", open_tensors(tmp_path / "unet.pth"))
    assert bytes_of(open_tensors(tmp_path / "unet.safetensors")) == bytes_of(open_tensors(tmp_path / "unet.pth"))
    name = "conv_in.weight"
    with safe_open(tmp_path / "unet.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor(name), state[name])


# Our own files.


def test_own_files_need_nothing_else(base, tmp_path):
    config, params = load_unet(ORACLES / "official_v1" / "unet.safetensors", config=published_config("official_v1"))
    save_own(tmp_path / "whole.safetensors", {"unet": params}, {"unet": config}, {"trained": "yes"})
    assert open_tensors(tmp_path / "whole.safetensors").metadata["trained"] == "yes"
    again, same = load_unet(tmp_path / "whole.safetensors")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, same)

    adapter = tree.select({"unet": params}, [r"unet/.*/first_frame/.*"])
    save_own(tmp_path / "adapter.safetensors", adapter, {"unet": config})
    fresh = jax.tree.map(lambda leaf: leaf + 1, params)
    save_own(tmp_path / "other.safetensors", {"unet": fresh}, {"unet": config})
    mixed = load_unet(tmp_path / "other.safetensors", adapters=dict(first_frame=tmp_path / "adapter.safetensors"))[1]
    for path, leaf in tree.flatten(mixed).items():
        np.testing.assert_array_equal(leaf, tree.flatten(params if "first_frame" in path else fresh)[path])


def test_configs_survive_json():
    for name, (make, _) in MODELS.items():
        if name.startswith("unet"):
            config = load_unet(Tensors.of(state_of(make())), config=dict(make().config), dtype=jnp.bfloat16)[0]
            assert config_from_json(type(config), config_to_json(config)) == config


def test_every_parameter_passes_through_place_once(base):
    placed = []
    config, params = load_unet(base, dtype=jnp.bfloat16, place=lambda path, array: placed.append(path) or array)
    assert sorted(placed) == sorted(parameter_shapes(config)) == sorted(tree.flatten(params))
    assert {str(leaf.dtype) for leaf in tree.flatten(params).values()} == {"bfloat16"}


def test_hash_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Trees.

TREE = {
    "unet": {"conv": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "first_frame": {"kernel": np.zeros(4)}},
    "vae": {"conv": {"kernel": np.ones(5)}},
}


def test_split_and_merge_are_inverse():
    trainable, frozen = tree.split(TREE, [r"unet/.*/bias", r"unet/first_frame/.*"])
    assert list(tree.flatten(trainable)) == ["unet/conv/bias", "unet/first_frame/kernel"]
    assert list(tree.flatten(frozen)) == ["unet/conv/kernel", "vae/conv/kernel"]
    assert jax.tree.structure(tree.merge(trainable, frozen)) == jax.tree.structure(TREE)
    assert tree.count(trainable) + tree.count(frozen) == tree.count(TREE) == 18
    with pytest.raises(ValueError, match="unet/conv/bias"):
        tree.merge(trainable, TREE)


def test_mask_has_the_trees_structure_and_says_what_is_trained():
    mask = tree.mask(TREE, [r"unet/first_frame/.*"])
    assert jax.tree.structure(mask) == jax.tree.structure(TREE)
    assert [path for path, chosen in tree.flatten(mask).items() if chosen] == ["unet/first_frame/kernel"]
    assert not any(tree.flatten(tree.mask(TREE, [])).values())


@pytest.mark.parametrize("name", [name for name in MODELS if "encoder" in name])
def test_names_that_transformers_has_in_memory_since_5_6(name, tmp_path):
    """A CLIP model's state dict without `text_model.` and `vision_model.`: the same parameters, and back again."""
    make, load = MODELS[name]
    model = make()
    model.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    nested = dict(open_tensors(path))
    flat = {re.sub("^(text|vision)_model.", "", key): np.asarray(tensor) for key, tensor in nested.items()}
    (tmp_path / "flat").mkdir()
    save_file(flat, tmp_path / "flat" / "model.safetensors")
    shutil.copy(tmp_path / "config.json", tmp_path / "flat")
    (config, params), (wanted_config, wanted) = load(tmp_path / "flat"), load(tmp_path)
    assert config == wanted_config
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert bytes_of(there_and_back(tmp_path / "flat", name.split("-")[0])) == bytes_of(flat)
