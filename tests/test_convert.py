"""`python -m convert`: every command, on models that the real libraries made, and on input that is wrong."""

import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import diffusers
import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from convert import early
from convert import networks as running
from i2v_jax.errors import InputError
from i2v_jax.models import networks
from i2v_jax.models.motion import frame_positions
from i2v_jax.tree import flatten, unflatten
from i2v_jax.weights.assemble import load_image_projection, load_text_encoder, load_unet, load_vae
from i2v_jax.weights.checkpoint import open_checkpoint
from i2v_jax.weights.low_rank import load_lora
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from tests import test_formats_original as original
from tests import test_ip_adapter as ip_adapter
from tests import test_pia as pia
from tests import test_sparse_control as sparse_control
from tests import test_t2i_adapter as t2i_adapter
from tests import test_weights as library
from tests import tiny
from tests.conversions import convert
from tests.helpers import relative_error
from tests.oracles import FOLDER as ORACLES
from tests.torch_models import randomise

WIDE = dict(block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=8, sample_size=8)
RANK = 4


def refused(*arguments, words=()):
    with pytest.raises(InputError) as caught:
        convert(*arguments)
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)


def raw(path):
    """A file's tensors as they stand in it, names joined by dots, by the libraries' own readers."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".msgpack":
        state = flax.serialization.msgpack_restore(path.read_bytes())
        return {name.replace("/", "."): np.asarray(leaf) for name, leaf in flatten(state).items()}
    state = torch.load(path, weights_only=True)
    return {name.replace("/", "."): tensor.numpy() for name, tensor in flatten(state.get("state_dict", state)).items()}


def contents(path):
    return library.bytes_of(raw(path))


def same(one, other):
    """Equal configs and equal trees, bit for bit."""
    assert one[0] == other[0]
    assert flatten(one[1]).keys() == flatten(other[1]).keys()
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


def layers(model, kind):
    return [name for name, it in model.named_modules() if isinstance(it, torch.nn.Linear) and kind in name]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base; its motion modules, first-frame adapter, IP-Adapter, LoRA; an autoencoder; a text encoder."""
    folder = tmp_path_factory.mktemp("sources")
    base = randomise(library.unet2d(**WIDE))
    base.save_pretrained(folder / "base")
    motion = randomise(diffusers.MotionAdapter(**tiny.motion((32, 64), groups=32, heads=8, positions=24)))
    state = {name: torch.tensor(it) for name, it in library.animatediff(library.state_of(motion)).items()}
    torch.save({"epoch": 1, "state_dict": state}, folder / "motion.ckpt")
    random = torch.Generator().manual_seed(5)
    adapter, kohya, peft = {}, {}, {}
    for name in layers(base, "attn1.to_q"):
        width = base.get_submodule(name).out_features
        normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
        block = name.removesuffix(".to_q")
        adapter[f"{block}.to_q_ff.weight"] = normal(width, width)
        adapter |= {f"{block}.to_out_ff.weight": normal(width, width), f"{block}.to_out_ff.bias": normal(width)}
        down, up = normal(RANK, width), normal(width, RANK)
        layer = f"lora_unet_{name.replace('.', '_')}"
        kohya |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(2.0)}
        peft |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    save_torch(adapter, folder / "adapter.safetensors")
    save_torch(kohya, folder / "kohya.safetensors")
    save_torch(peft, folder / "peft.safetensors")
    nested = ip_adapter.adapter(base, "plus")
    ip_adapter.saved(nested, folder / "ip.bin")
    ip_adapter.saved(nested, folder / "ip.safetensors")
    nested = ip_adapter.adapter(
        ip_adapter.full_depth("SD1.5"), "base"
    )  # whose numbers tell, without a base, what they mean
    ip_adapter.saved(nested, folder / "ip_sd15.bin")
    ip_adapter.saved(nested, folder / "ip_sd15.safetensors")
    randomise(library.vae()).save_pretrained(folder / "vae")
    randomise(transformers.CLIPTextModel(library.text())).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def joined(files):
    """Base, motion modules, adapter and image tokens imported into one file of ours."""
    path = files / "joined.safetensors"
    sources = [files / name for name in ("base", "motion.ckpt", "adapter.safetensors", "ip.bin")]
    assert convert("import", *sources, path) == 0
    return path


@pytest.fixture(scope="module")
def pipeline(files):
    """A pipeline's folder, with what else lies in one."""
    folder = files / "pipeline"
    for name, source in (("unet", "base"), ("vae", "vae"), ("text_encoder", "text_encoder")):
        shutil.copytree(files / source, folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    parts = dict(
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        scheduler=["diffusers", "DDIMScheduler"],
    )
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **parts}))
    return folder


# Import.


def test_joined_sources_are_the_model_that_its_parts_make(files, joined):
    adapters = dict(first_frame=files / "adapter.safetensors", image_tokens=files / "ip.bin")
    same(load_unet(joined), load_unet(files / "base", motion=files / "motion.ckpt", adapters=adapters))
    same(load_image_projection(joined), load_image_projection(files / "ip.bin"))


def test_a_pipeline_is_imported_whole(pipeline, tmp_path, capsys):
    ours = tmp_path / "all.safetensors"
    assert convert("import", pipeline, ours) == 0
    for load in (load_unet, load_vae, load_text_encoder):
        same(load(ours), load(pipeline))
    captured = capsys.readouterr()
    assert "writing: 100%" in captured.err  # the progress bar
    assert all(name in captured.out for name in ("unet", "vae", "text_encoder"))
    assert convert("verify", pipeline, ours) == 0


def test_orbax_folder(files, tmp_path):
    assert convert("import", files / "base", tmp_path / "ours", "--dtype", "bf16") == 0
    assert convert("verify", files / "base", tmp_path / "ours") == 0


@pytest.mark.parametrize("dtype, name", [("bf16", "bfloat16"), ("f16", "float16")])
def test_dtype(dtype, name, files, tmp_path, measured):
    ours = tmp_path / "ours.safetensors"
    assert convert("import", files / "base", ours, "--dtype", dtype) == 0
    tensors = open_tensors(ours)
    assert {entry.dtype.name for entry in tensors.entries.values()} == {name}
    for path, leaf in flatten(load_unet(files / "base")[1]).items():
        assert np.array_equal(tensors[f"unet/{path}"], np.asarray(leaf).astype(name))
    assert convert("verify", files / "base", ours) == 0  # equal once the source is rounded, too


def test_only(files, joined, tmp_path):
    ours, pattern = tmp_path / "ours.safetensors", "unet/.*/first_frame/.*"
    assert convert("import", joined, ours, "--only", pattern) == 0
    chosen = {name: it for name, it in contents(joined).items() if re.fullmatch(pattern, name)}
    assert contents(ours) == chosen
    refused("import", joined, tmp_path / "x.safetensors", "--only", "unet/.*/first_fram/.*", words=["matches nothing"])
    refused("import", joined, tmp_path / "x.safetensors", "--only", "(", words=["no regular expression"])


def test_lora_is_merged_at_a_scale(files, tmp_path, measured):
    ours = tmp_path / "ours.safetensors"
    assert convert("import", files / "base", ours, "--lora", f"{files / 'kohya.safetensors'}=0.5") == 0
    merged, base, lora = (
        raw(ours),
        load_file(files / "base" / "diffusion_pytorch_model.safetensors"),
        raw(files / "kohya.safetensors"),
    )
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = (lora[f"lora_unet_{name.replace('.', '_')}.lora_{it}.weight"] for it in ("down", "up"))
    wanted = base[f"{name}.weight"] + 0.5 * 2 / RANK * up @ down
    ours_there = merged["unet/down_blocks_0/layers_0/attention/blocks_0/attn1/to_q/kernel"].T
    measured("LoRA merged on import", relative_error(ours_there, wanted), 1e-6)
    options = ("--lora", f"{files / 'kohya.safetensors'}=0.5")
    assert convert("verify", files / "base", ours, *options) == 0
    assert convert("verify", files / "base", ours) == 1
    refused("import", files / "base", ours, "--lora", f"{files / 'kohya.safetensors'}=x", words=["FILE=SCALE"])


@pytest.mark.parametrize("name", ["a=b.safetensors", "best=0.7.safetensors", "style=0.5"])
@pytest.mark.parametrize("scale", ["", "=0.5"])
def test_a_lora_s_name_may_have_an_equals_sign(name, scale, files, tmp_path):
    shutil.copy(files / "kohya.safetensors", tmp_path / name)
    plain, ours = tmp_path / "plain.safetensors", tmp_path / "ours.safetensors"
    assert convert("import", files / "base", plain, "--lora", f"{files / 'kohya.safetensors'}{scale}") == 0
    assert convert("import", files / "base", ours, "--lora", f"{tmp_path / name}{scale}") == 0
    assert contents(ours) == contents(plain)


def test_config_of_a_file_that_has_none(files, tmp_path):
    lone = tmp_path / "unet.safetensors"
    shutil.copy(files / "base" / "diffusion_pytorch_model.safetensors", lone)
    config = json.loads((files / "base" / "config.json").read_text()) | dict(attention_head_dim=4)
    (tmp_path / "heads.json").write_text(json.dumps(config))
    assert convert("import", lone, tmp_path / "ours.safetensors", "--config", f"unet={tmp_path / 'heads.json'}") == 0
    assert load_unet(tmp_path / "ours.safetensors")[0].num_heads == (4, 4)
    out = tmp_path / "x.safetensors"
    refused("import", lone, out, "--config", "unet=nothing.json", words=["nothing.json"])
    refused("import", lone, out, "--config", "nothing.json", words=["COMPONENT=FILE"])


# Export.


def written_by_hand(name, files, folder):
    """A file of each format that is one file."""
    if name == "published I2V-Adapter":
        return ORACLES / "official_v1" / "unet.safetensors"
    if name.startswith("Stable Diffusion"):
        family, path = ("SDXL" if name.endswith("XL") else "SD1.5"), folder / "sd.safetensors"
        state = original.original_unet(original.make_unet(family)) | original.original_vae(original.make_vae())
        state |= original.original_clip(original.make_clip(), original.CLIP_PREFIX[family])
        state |= original.averaged(state) if family == "SD1.5" else original.original_openclip(original.make_openclip())
        save_torch({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
        return path
    if name == "ControlNet":
        path = folder / "controlnet.safetensors"
        state = original.original_unet(original.make_controlnet(), "control_model.")
        save_torch({key: tensor.contiguous() for key, tensor in state.items()}, path)
        return path
    if name == "diffusers":
        path = folder / "unet.safetensors"
        shutil.copy(files / "base" / "diffusion_pytorch_model.safetensors", path)
        return path
    if name == "Flax":
        assert convert("export", files / "base", folder / "unet.msgpack", "--to", "flax") == 0
        return folder / "unet.msgpack"
    return files / name


SINGLE_FILES = (
    "published I2V-Adapter",
    "Stable Diffusion 1.5",
    "Stable Diffusion XL",
    "ControlNet",
    "diffusers",
    "Flax",
    "motion.ckpt",  # names with the prefix `module.`
    "adapter.safetensors",
    "ip_sd15.bin",
    "ip_sd15.safetensors",
    "kohya.safetensors",
    "peft.safetensors",
)


@pytest.mark.filterwarnings("ignore:.*has no config.json")
@pytest.mark.parametrize("name", SINGLE_FILES)
def test_export_gives_the_file_back(name, files, tmp_path):
    """Through our own format, and at once; every key and byte, without saying which format it was."""
    source = written_by_hand(name, files, tmp_path)
    ours, again = tmp_path / "ours.safetensors", tmp_path / f"again{source.suffix}"
    assert convert("import", source, ours) == 0
    assert convert("export", ours, again) == 0
    assert contents(again) == contents(source)
    assert convert("verify", source, again) == 0
    assert convert("export", source, again, "--overwrite") == 0
    assert contents(again) == contents(source)


def motion_modules(folder, tables, **settings):
    """Motion modules in AnimateDiff's layout, with position tables or without."""
    state = library.animatediff(library.state_of(randomise(library.motion_adapter(**settings))))
    state = {name.removeprefix("module."): it for name, it in state.items() if tables or not name.endswith(".pe")}
    save_file(state, folder / "mm.safetensors")
    return folder / "mm.safetensors"


def test_motion_modules_without_position_tables_are_animate_lcm_s(tmp_path):
    """AnimateLCM's file: v2's names, no tables; 64 frames, as ComfyUI-AnimateDiff-Evolved has it."""
    source, ours, again = (
        motion_modules(tmp_path, False, mid_block=True),
        tmp_path / "o.safetensors",
        tmp_path / "a.safetensors",
    )
    with pytest.warns(UserWarning, match="AnimateLCM, which knows 64 frames.*--motion-frames"):
        assert convert("import", source, ours) == 0
    assert open_checkpoint([ours]).components["unet"].config.motion.max_positions == 64
    assert convert("export", ours, again) == 0
    assert contents(again) == contents(source)
    assert convert("export", ours, again, "--to", "animatediff", "--overwrite") == 0
    assert contents(again) == contents(source)
    assert convert("verify", source, again, "--motion-frames", 64) == 0


def test_motion_modules_whose_frames_no_file_tells(tmp_path):
    source, ours, again = motion_modules(tmp_path, False), tmp_path / "o.safetensors", tmp_path / "a.safetensors"
    refused("import", source, ours, words=[source, "--motion-frames N", "24 for AnimateDiff v1"])
    for wrong in ("0", "-3", "x", "1e9"):
        refused("import", source, ours, f"--motion-frames={wrong}", words=[wrong, "24 or 32"])
    assert convert("import", source, ours, "--motion-frames", 16) == 0
    assert open_checkpoint([ours]).components["unet"].config.motion.max_positions == 16
    assert convert("export", ours, again) == 0
    assert contents(again) == contents(source)
    assert convert("export", ours, tmp_path / "folder", "--to", "diffusers") == 0  # whose modules have tables
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["motion_max_seq_length"] == 16
    assert any(name.endswith("pos_embed.pe") for name in raw(next((tmp_path / "folder").glob("*.safetensors"))))


def test_folders_go_out_as_they_came(pipeline, files, tmp_path):
    """Without --to: a component's or a pipeline's, of diffusers or of Flax."""
    library.motion_adapter().save_pretrained(tmp_path / "adapter")
    assert convert("export", files / "base", tmp_path / "flax", "--to", "flax") == 0
    newer = tmp_path / "newer"  # as transformers 5.6 and later write it
    shutil.copytree(files / "text_encoder", newer)
    state = load_file(newer / "model.safetensors")
    save_file({name.removeprefix("text_model."): it for name, it in state.items()}, newer / "model.safetensors")
    for i, source in enumerate((tmp_path / "adapter", files / "text_encoder", newer, tmp_path / "flax", pipeline)):
        ours, back = tmp_path / f"{i}.safetensors", tmp_path / f"back{i}"
        assert convert("import", source, ours) == 0
        assert convert("export", ours, back) == 0
        kinds = ("*.safetensors", "*.msgpack")
        names = {path.relative_to(source) for kind in kinds for path in source.rglob(kind)}
        assert names and names == {path.relative_to(back) for kind in kinds for path in back.rglob(kind)}
        for name in names:
            assert contents(back / name) == contents(source / name)
    refused("export", files / "kohya.safetensors", tmp_path / "no", words=["names no file", "--to diffusers"])
    assert not (tmp_path / "no").exists()


def test_published_layouts_of_a_joined_model(files, joined, tmp_path, capsys):
    base = library.bytes_of(raw(files / "base" / "diffusion_pytorch_model.safetensors"))
    motion = {name.removeprefix("module."): it for name, it in contents(files / "motion.ckpt").items()}
    adapter, image_tokens = contents(files / "adapter.safetensors"), contents(files / "ip.safetensors")

    assert (
        convert("export", joined, tmp_path / "ff.safetensors", "--to", "i2v-adapter", "--only", ".*/first_frame/.*")
        == 0
    )
    assert contents(tmp_path / "ff.safetensors") == adapter
    assert convert("export", joined, tmp_path / "merged.pth", "--to", "i2v-adapter") == 0
    merged = contents(tmp_path / "merged.pth")
    tokens = {name for name in merged if name.endswith("_ip.weight")}
    assert len(tokens) == sum("_ip." in name for name in image_tokens)
    assert {name: it for name, it in merged.items() if name not in tokens} == base | motion | adapter
    capsys.readouterr()
    assert convert("export", joined, tmp_path / "mm.ckpt", "--to", "animatediff") == 0
    assert contents(tmp_path / "mm.ckpt") == motion
    assert (
        "left out, as animatediff has no place for them: image_proj, unet, unet: first-frame" in capsys.readouterr().out
    )
    for suffix in (".safetensors", ".bin"):
        assert convert("export", joined, tmp_path / f"ip{suffix}", "--to", "ip-adapter") == 0
        assert contents(tmp_path / f"ip{suffix}") == image_tokens


def test_original_layout_of_a_joined_model_is_what_diffusers_reads(files, joined, tmp_path):
    assert convert("export", joined, tmp_path / "sd.safetensors", "--to", "sd") == 0
    state = {name: torch.tensor(it) for name, it in raw(tmp_path / "sd.safetensors").items()}
    model = diffusers.UNet2DConditionModel.from_pretrained(files / "base")
    read = convert_ldm_unet_checkpoint(state, model.config)
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], it) for name, it in model.state_dict().items())


def test_diffusers_folder_of_a_joined_model(files, joined, tmp_path):
    assert convert("export", joined, tmp_path / "out", "--to", "diffusers") == 0
    model = diffusers.UNetMotionModel.from_pretrained(tmp_path / "out")
    for part in ("base", "out"):
        state = open_tensors(files / part if part == "base" else tmp_path / part)
        assert all(np.array_equal(model.state_dict()[name].numpy(), state[name]) for name in state)


def test_flax_folder(files, joined, tmp_path):
    assert convert("export", joined, tmp_path / "out", "--to", "flax") == 0
    model, params = diffusers.FlaxUNet2DConditionModel.from_pretrained(tmp_path / "out")
    assert len(jax.tree.leaves(params)) == len(open_tensors(files / "base"))
    same(load_unet(tmp_path / "out"), load_unet(files / "base"))


def test_lora_kept_apart(files, tmp_path):
    ours = tmp_path / "ours.safetensors"
    assert convert("import", files / "base", files / "kohya.safetensors", ours) == 0
    assert sum("/lora/" in name for name in raw(ours)) == len(raw(files / "kohya.safetensors"))
    assert convert("export", ours, tmp_path / "kohya.safetensors", "--to", "kohya") == 0
    assert contents(tmp_path / "kohya.safetensors") == contents(files / "kohya.safetensors")
    assert convert("export", ours, tmp_path / "peft.safetensors", "--to", "peft") == 0
    assert contents(tmp_path / "peft.safetensors") == contents(files / "peft.safetensors")
    for lora in load_lora(tmp_path / "peft.safetensors").values():  # whose names have no place for alpha
        assert {float(it) for path, it in lora.parameters.items() if path.endswith("alpha")} == {2.0}
    refused("export", ours, tmp_path / "peft.bin", "--to", "peft", words=["alphas", ".safetensors"])
    assert convert("export", ours, tmp_path / "base.safetensors", "--to", "sd") == 0
    assert not any("lora" in name for name in raw(tmp_path / "base.safetensors"))


def test_two_loras_kept_apart(files, tmp_path):
    """The later one's layers are whole: the other's alpha is none of theirs. One for another model is refused."""
    both = tmp_path / "both.safetensors"
    with pytest.warns(UserWarning, match="replaces layers of .*kohya"):
        convert("import", files / "kohya.safetensors", files / "peft.safetensors", both)
    convert("import", files / "peft.safetensors", tmp_path / "peft.safetensors")
    assert contents(both) == contents(tmp_path / "peft.safetensors")
    state = {name: np.pad(it, [(0, 2)] * it.ndim) for name, it in load_file(files / "peft.safetensors").items()}
    save_file(state, tmp_path / "wide.safetensors")
    refused("import", files / "base", tmp_path / "wide.safetensors", tmp_path / "out", words=["for another model"])


def test_weights_of_a_training_checkpoint(files, joined, tmp_path):
    """Such a folder holds what was trained and nothing else: what its motion modules came from tells the rest."""
    trained = open_tensors(joined).select(r"unet/.*/(motion|first_frame)/.*(kernel|bias|scale)")
    state = {name: np.asarray(it) * 2 for name, it in trained.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "trained", unflatten(state))
    for name, sources in {
        "part": ["motion.ckpt"],
        "whole": ["base", "motion.ckpt"],
        "ours": ["joined.safetensors"],
    }.items():
        out = tmp_path / f"{name}.ckpt"
        convert("export", *(files / it for it in sources), tmp_path / "trained", out, "--to", "animatediff")
        before, after = {k.removeprefix("module."): v for k, v in raw(files / "motion.ckpt").items()}, raw(out)
        assert before.keys() == after.keys()
        for key in before:
            if key.endswith(".pe"):  # computed here
                np.testing.assert_allclose(after[key], before[key], atol=1e-6)
            else:
                np.testing.assert_array_equal(after[key], before[key] * 2)
    out = tmp_path / "adapter.safetensors"
    convert(
        "export", files / "motion.ckpt", tmp_path / "trained", out, "--to", "i2v-adapter", "--only", ".*/first_frame/.*"
    )
    assert raw(out).keys() == raw(files / "adapter.safetensors").keys()
    refused("export", tmp_path / "trained", out, "--to", "animatediff", "--overwrite", words=["as a source before it"])


def test_pipeline_folder_variants_and_shards(pipeline, tmp_path):
    options = ("--to", "diffusers", "--dtype", "f16", "--write-variant", "fp16", "--shard-size", "300KB")
    assert convert("export", pipeline, tmp_path / "half", *options) == 0
    names = {str(path.relative_to(tmp_path / "half")) for path in (tmp_path / "half").rglob("*") if path.is_file()}
    assert {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"} <= names
    assert "unet/diffusion_pytorch_model.safetensors.index.fp16.json" in names
    assert "text_encoder/model.fp16.safetensors" in names
    model = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "half" / "unet", variant="fp16", torch_dtype=torch.float16
    )
    for name, tensor in diffusers.UNet2DConditionModel.from_pretrained(pipeline / "unet").state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.half())
    # beside full precision, the variant asked for is read
    shutil.copytree(pipeline, tmp_path / "both")
    for path in (tmp_path / "half").rglob("*fp16*"):
        shutil.copy(path, tmp_path / "both" / path.relative_to(tmp_path / "half"))
    for variant, dtype in ((("--variant", "fp16"), "float16"), ((), "float32")):
        ours = tmp_path / f"{dtype}.safetensors"
        assert convert("import", tmp_path / "both", ours, *variant) == 0
        assert {str(it.dtype) for it in raw(ours).values()} == {dtype}


def test_hub_ids(pipeline, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo, allow_patterns):
        asked.append((repo, *allow_patterns))
        return str(pipeline)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert convert("import", "owner/name", tmp_path / "hub.safetensors") == 0
    assert {repo for repo, *_ in asked} == {"owner/name"} and asked[0] == ("owner/name", "model_index.json")
    assert convert("import", pipeline, tmp_path / "here.safetensors") == 0
    assert contents(tmp_path / "hub.safetensors") == contents(tmp_path / "here.safetensors")


# What is there is not lost.


def damaged(files, folder):
    """The base, one weight of it NaN."""
    shutil.copytree(files / "base", folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_out.weight"][0, 0, 0, 0] = np.nan
    save_file(state, path)
    return folder


def test_output_that_is_there_is_kept_unless_told(files, joined, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"before")
    refused("import", files / "base", out, words=[out, "--overwrite"])
    refused("export", files / "base", out, "--to", "sd", words=[out, "--overwrite"])
    assert out.read_bytes() == b"before"
    refused("import", files / "base", tmp_path / "no" / "out.safetensors", words=["no folder"])
    assert convert("import", files / "base", out, "--overwrite") == 0
    same(load_unet(out), load_unet(files / "base"))
    assert convert("import", out, out, "--overwrite") == 0  # onto itself
    same(load_unet(out), load_unet(files / "base"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize("to", ["file", "folder"])
def test_failure_leaves_what_was_there(to, files, tmp_path, monkeypatch):
    bad = damaged(files, tmp_path / "bad")
    place = tmp_path / "place"
    place.mkdir()
    if to == "file":
        out, command = place / "out.safetensors", ("import",)
        out.write_bytes(b"before")
    else:
        out, command = place / "out", ("export", "--to", "diffusers")
        shutil.copytree(files / "base", out)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    def fails(source, *options, words):
        refused(*command, source, out, "--overwrite", *options, words=words)
        assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
        assert len(list(place.iterdir())) == 1

    fails(bad, words=["conv_out.weight", "NaN", bad])
    state = load_file(bad / "diffusion_pytorch_model.safetensors")
    state["conv_out.weight"][0, 0, 0, 0] = 1e6
    save_file(state, bad / "diffusion_pytorch_model.safetensors")
    fails(bad, "--dtype", "f16", words=["conv_out", "float16"])

    def full(file, data, at):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    fails(files / "base", words=["Cannot write", "No space left"])


def test_a_file_that_takes_a_few_bytes_at_a_time_is_written_whole(tmp_path, monkeypatch):
    write, rng = os.pwrite, np.random.default_rng(0)
    tensors = Tensors.of({f"{n}": rng.normal(size=(n, 7)).astype(np.float32) for n in (0, 1, 3000, 9000)})
    save_tensors(tmp_path / "at-once.safetensors", tensors)
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:50_001], at))
    save_tensors(tmp_path / "slowly.safetensors", tensors)
    written = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("at-once", "slowly")]
    assert written[0] == written[1]
    read = load_file(tmp_path / "slowly.safetensors")
    assert read.keys() == tensors.keys() and all(np.array_equal(read[name], tensors[name]) for name in read)


def test_files_are_asked_of_the_disk_before_they_are_read(tmp_path, monkeypatch):
    """Of a command line's words those that are large files, with a name before or without; so many bytes in all."""
    asked, begun = {}, []
    monkeypatch.setattr(early, "MOST", 5 * early.PIECE)
    monkeypatch.setattr(early.threading, "Thread", lambda target, args, daemon: begun.append((target, args)) or Mock())
    monkeypatch.setattr(early.os, "posix_fadvise", lambda file, at, count, what: asked.setdefault(file, []).append(at))
    for name, pieces in (("a", 3), ("b=c", 4), ("small", 1), ("late", 9)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(pieces * early.PIECE)
    names = ("one=a", "b=c", "small", "no=file", "late", "\0", "a + 0.5 * b", "--to")
    early.read_early([name.replace("=a", f"={tmp_path}/a") if "=a" in name else f"{tmp_path}/{name}" for name in names])
    assert [(path.name, size // early.PIECE) for _, (path, size) in begun] == [("a", 3), ("b=c", 2)]
    for target, args in begun:
        target(*args)
    assert sorted(at // early.PIECE for each in asked.values() for at in each) == [0, 0, 1, 1, 2]
    early._read(tmp_path / "gone", 1)


def test_folders_are_replaced_only_if_they_are_models(files, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(files / "base", out)
    (out / "thesis.tex").write_text("years of work")
    export = ("export", files / "base", out, "--to", "diffusers")
    refused(*export, words=["--overwrite"])
    refused(*export, "--overwrite", words=["thesis.tex"])
    assert (out / "thesis.tex").is_file()
    (out / "thesis.tex").unlink()
    (out / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"old")
    assert convert(*export, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    refused("export", out, out, "--to", "diffusers", "--overwrite", words=["holds the source"])
    refused("import", out, tmp_path, "--overwrite", words=["holds the source"])


def test_folders_of_loras_are_no_model(files, tmp_path):
    loras = tmp_path / "loras"
    loras.mkdir()
    shutil.copy(files / "kohya.safetensors", loras / "mine.safetensors")
    refused("import", files / "base", loras, "--overwrite", words=["mine.safetensors"])
    assert contents(loras / "mine.safetensors") == contents(files / "kohya.safetensors")


def test_links_are_replaced_and_what_they_point_to_stays(files, tmp_path):
    model = shutil.copytree(files / "vae", tmp_path / "model")
    before = {path: path.read_bytes() for path in model.iterdir()}
    for name, target in (("link", model), ("dangling", tmp_path / "nothing")):
        out = tmp_path / name
        out.symlink_to(target)
        export = ("export", files / "base", out, "--to", "diffusers")
        refused(*export, words=["--overwrite"])
        assert convert(*export, "--overwrite") == 0
        assert not out.is_symlink()
        same(load_unet(out), load_unet(files / "base"))
    assert {path: path.read_bytes() for path in model.iterdir()} == before
    (tmp_path / "file").write_bytes(b"a file where a folder is to be")
    assert convert("import", files / "base", tmp_path / "file", "--overwrite") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "link", "model"]


def test_an_address_is_no_place_to_write_to(files):
    refused("import", files / "base", "gs://bucket/base.safetensors", words=["is an address", "Mount the bucket"])


@pytest.mark.parametrize(
    "name, command",
    [
        ("out.safetensors", ["import"]),
        ("orbax", ["import"]),
        ("out.ckpt", ["export", "--to", "sd"]),
        ("out.msgpack", ["export", "--to", "flax"]),
        ("folder", ["export", "--to", "diffusers"]),
    ],
)
def test_a_disk_without_room(name, command, files, tmp_path, monkeypatch):
    """Nothing is begun that has no room; what fails in the middle (here by the system's limit) is told as such."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        refused(*command, files / "base", tmp_path / name, words=[f"Cannot write {tmp_path / name}", "File too large"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    refused(*command, files / "base", tmp_path / name, words=[f"Cannot write {tmp_path / name}", "1.0 kB are free"])
    assert not list(tmp_path.iterdir())


def test_output_is_looked_at_before_sources_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("convert.sources.open_checkpoint", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "out.safetensors").touch()
    refused("import", "owner/name", tmp_path / "out.safetensors", words=["--overwrite"])
    refused("import", "owner/name", tmp_path / "out.ckpt", words=["out.ckpt", "export"])
    refused("export", "owner/name", tmp_path / "out", "--to", "sd", words=["names no file"])


# Inspect.


def sparse(path, shapes, values=None):
    """A safetensors file of full size that takes no room: a header, a hole, and the values of few tensors."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for name, value in (values or {}).items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(value, np.float32).tobytes())
    return path


def shapes_of(make):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}


MOTION = {
    "v1": (
        dict(motion_max_seq_length=24, use_motion_mid_block=False),
        "for Stable Diffusion 1.5; motion modules v1 (24",
    ),
    "v2": (
        dict(motion_max_seq_length=32, use_motion_mid_block=True),
        "for Stable Diffusion 1.5; motion modules v2 (32",
    ),
    "v3": (
        dict(motion_max_seq_length=32, use_motion_mid_block=False),
        "for Stable Diffusion 1.5; motion modules v3 (32",
    ),
    "SDXL-beta": (
        dict(motion_max_seq_length=32, use_motion_mid_block=False, block_out_channels=(320, 640, 1280)),
        "for Stable Diffusion XL; motion modules SDXL-beta (32",
    ),
}


def inspected(path, capsys):
    capsys.readouterr()
    assert convert("inspect", path) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
def test_inspect_a_base(family, tmp_path, capsys):
    settings = dict(cross_attention_dim=768) if family == "SD1.5" else tiny.SDXL
    file = sparse(tmp_path / "unet.safetensors", shapes_of(lambda: diffusers.UNet2DConditionModel(**settings)))
    out = inspected(file, capsys)
    name, parameters = {"SD1.5": ("1.x", "859,520,964"), "SDXL": ("XL", "2,567,463,684")}[family]
    assert f"{file}: Stable Diffusion {name}\n" in out
    assert parameters in out and "float32" in out and "not convertible" not in out


@pytest.mark.parametrize("version", MOTION)
def test_inspect_motion_modules(version, tmp_path, capsys, monkeypatch):
    settings, wanted = MOTION[version]
    if version != "v2":  # whether all is there is looked up in the whole network, which takes seconds
        monkeypatch.setattr("convert.inspecting.open_checkpoint", lambda opened, skip_unknown: None)
    shapes = shapes_of(lambda: diffusers.MotionAdapter(**settings))
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    shapes = {name: array.shape for name, array in library.animatediff(shapes).items()}
    tables = {name: frame_positions(*shape[1:]) for name, shape in shapes.items() if name.endswith(".pe")}
    out = inspected(sparse(tmp_path / "mm.safetensors", shapes, tables), capsys)
    assert wanted in out.splitlines()[0] and "not convertible" not in out


@pytest.mark.parametrize(
    "kind, wanted", [("base", "IP-Adapter, 4 image tokens"), ("plus", "IP-Adapter plus, 16 image")]
)
def test_inspect_ip_adapters(kind, wanted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ip_adapter, "TOKEN", 768)
    monkeypatch.setattr(ip_adapter, "PICTURE", 1024 if kind == "base" else 1280)
    monkeypatch.setitem(
        ip_adapter.PROJECTIONS, "plus", lambda normal: ip_adapter.resampler(normal, width=768, inner=768, tokens=16)
    )
    unet = ip_adapter.full_depth("SD1.5")
    out = inspected(ip_adapter.saved(ip_adapter.adapter(unet, kind), tmp_path / "ip.bin"), capsys)
    assert "Stable Diffusion 1.x" in out and wanted in out


def test_inspect_small_things(files, joined, capsys):
    assert f"LoRA of rank {RANK} on 4 layers" in inspected(files / "kohya.safetensors", capsys)
    assert "I2V-Adapter\n" in inspected(files / "adapter.safetensors", capsys)
    assert "vae alone, of any family" in inspected(files / "vae", capsys)
    out = inspected(joined, capsys)
    assert all(
        part in out for part in ("motion modules v1 (24 frames", "first-frame adapter", "image tokens", "image_proj")
    )
    capsys.readouterr()
    assert convert("inspect", files / "adapter.safetensors", "--keys") == 0
    out = capsys.readouterr().out
    assert "attn1.to_q_ff.weight" in out and "/attn1/first_frame/to_q/kernel" in out


def test_inspect_partial_files(files, tmp_path, capsys):
    state = load_file(files / "base" / "diffusion_pytorch_model.safetensors")
    del state["conv_out.bias"]
    save_file(state | {"colour": np.zeros(3, np.float32)}, tmp_path / "part.safetensors")
    out = inspected(tmp_path / "part.safetensors", capsys)
    assert "1 unknown, beside unet: colour" in out and "conv_out.bias" in out and "not convertible as it is" in out


# Verify and diff.


def changed(path, out, change):
    """A copy of one of our files, its tensors changed, its metadata kept."""
    with safe_open(path, "np") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    change(state)
    save_file(state, out, metadata)
    return out


def test_verify_finds_one_changed_bit(files, joined, tmp_path, capsys):
    sources = [files / name for name in ("base", "motion.ckpt", "adapter.safetensors", "ip.bin")]
    assert convert("verify", *sources, joined) == 0
    assert capsys.readouterr().out.endswith("verified\n")
    name = "unet/down_blocks_0/layers_0/motion/proj_in/kernel"

    def flip(state):
        state[name].view(np.uint32)[3, 5] ^= 1

    assert convert("verify", *sources, changed(joined, tmp_path / "flipped.safetensors", flip)) == 1
    assert f"different: {name}" in capsys.readouterr().out
    without = changed(joined, tmp_path / "cut.safetensors", lambda state: None)
    assert convert("verify", files / "base", without) == 1  # more than the source has
    assert "added" in capsys.readouterr().out
    # a part that was not converted is none that is wrong
    assert (
        convert(
            "import",
            joined,
            tmp_path / "base.safetensors",
            "--only",
            r"unet/(?!.*/(motion|first_frame|image_tokens)/).*",
        )
        == 0
    )
    capsys.readouterr()
    assert convert("verify", *sources, tmp_path / "base.safetensors") == 0
    assert re.search(r"unet: motion modules .* not converted", capsys.readouterr().out)


def errors(out):
    return {
        (row[0], row[1]): (float(row[2]), float(row[3]))
        for line in out.splitlines()
        if len(row := re.split(r"\s{2,}", line)) == 6 and re.fullmatch(r"\de-\d\d", row[3])
    }


def test_verify_runs_both_networks(files, joined, tmp_path, capsys, measured):
    sources = [files / name for name in ("base", "motion.ckpt", "adapter.safetensors", "ip.bin")]
    assert convert("verify", *sources, files / "vae", joined, "--run") == 0
    out = capsys.readouterr().out
    found = errors(out)
    assert {("unet", "noise"), ("image_proj", "image tokens")} == found.keys()
    for (component, output), (error, bar) in found.items():
        assert bar == 1e-5
        measured(f"verify --run: {component}, {output}", error, 1e-5)
    assert "the file's own names, diffusers, as AnimateDiff" in out
    assert "first-frame adapter: left out on both sides" in out and "vae " in out

    def swap(state):
        layer = "unet/down_blocks_0/layers_0/attention/blocks_0/attn1"
        state[f"{layer}/to_q/kernel"], state[f"{layer}/to_k/kernel"] = (
            state[f"{layer}/to_k/kernel"].copy(),
            state[f"{layer}/to_v/kernel"].copy(),
        )

    swapped = changed(joined, tmp_path / "swapped.safetensors", swap)
    assert convert("verify", *sources, swapped, "--run") == 1
    (error, _), again = errors(capsys.readouterr().out).values()
    assert error > 1e-3 and again[0] <= 1e-5


def test_verify_runs_find_a_wrong_config(files, tmp_path, capsys):
    """Every tensor is right, the network is not."""
    ours = tmp_path / "ours.safetensors"
    assert convert("import", files / "text_encoder", ours) == 0
    with safe_open(ours, "np") as file:
        metadata = file.metadata()
    assert '"quick_gelu"' in metadata["configs"]
    save_file(load_file(ours), ours, metadata | {"configs": metadata["configs"].replace('"quick_gelu"', '"gelu"')})
    assert convert("verify", files / "text_encoder", ours) == 0
    assert convert("verify", files / "text_encoder", ours, "--run") == 1
    out = capsys.readouterr().out
    assert re.search(r"text_encoder +tokens .* WRONG ", out)
    assert "hidden_act=quick_gelu in the source, gelu in the converted" in out


def test_verify_bars_know_rounding(files, tmp_path, capsys, measured):
    for dtype, bar in (("f16", 5e-3), ("bf16", 5e-2)):
        ours = tmp_path / f"{dtype}.safetensors"
        assert convert("import", files / "text_encoder", ours, "--dtype", dtype) == 0
        capsys.readouterr()
        assert convert("verify", files / "text_encoder", ours, "--run") == 0
        for (_, output), (error, shown) in errors(capsys.readouterr().out).items():
            assert shown == bar and error > 1e-5
            measured(f"verify --run: text_encoder in {dtype}, {output}", error, bar)


@pytest.mark.filterwarnings("ignore:.*has no config.json")
def test_verify_runs_what_diffusers_reads_of_single_files(files, tmp_path, capsys, measured):
    """A text encoder in the original layout against diffusers' reading, a merged LoRA by our tables."""
    state = original.original_openclip(original.make_openclip())
    save_torch({key: tensor.contiguous().clone() for key, tensor in state.items()}, tmp_path / "te.safetensors")
    assert convert("import", tmp_path / "te.safetensors", tmp_path / "ours.safetensors") == 0
    assert convert("verify", tmp_path / "te.safetensors", tmp_path / "ours.safetensors", "--run") == 0
    out = capsys.readouterr().out
    assert "diffusers, as a single file" in out
    for (component, output), (error, _) in errors(out).items():
        measured(f"verify --run: OpenCLIP {component}, {output}", error, 1e-5)


@pytest.mark.parametrize("kind", ["base", "full face"])
def test_verify_runs_every_kind_of_image_projection(kind, tmp_path, capsys, measured):
    """The resampler runs above, in the joined file."""
    random = torch.Generator().manual_seed(3)
    weights = ip_adapter.PROJECTIONS[kind](lambda *shape: torch.randn(*shape, generator=random) / shape[-1] ** 0.5)
    file = ip_adapter.saved({"image_proj": weights}, tmp_path / "projection.safetensors")
    assert convert("import", file, tmp_path / "ours.safetensors") == 0
    assert convert("verify", file, tmp_path / "ours.safetensors", "--run") == 0
    ((error, bar),) = errors(capsys.readouterr().out).values()
    assert bar == 1e-5
    measured(f"verify --run: image_proj, {kind}", error, 1e-5)


def one_of(name, files, folder):
    """A file or folder of a format, tiny."""
    if name in SINGLE_FILES:
        return written_by_hand(name, files, folder)
    out = folder / "source"
    models = {
        "UNetMotionModel": library.motion_unet,
        "MotionAdapter": library.motion_adapter,
        "CLIP vision": lambda: transformers.CLIPVisionModelWithProjection(library.vision()),
        "ControlNetModel": original.make_controlnet,
        "SparseControlNetModel": lambda: sparse_control.model("RGB"),
        "T2IAdapter": lambda: t2i_adapter.model("light_adapter"),
        "PIA": pia.motion_adapter,
    }
    published = {
        "SparseCtrl": lambda: sparse_control.original(sparse_control.model("scribble"), "controlnet."),
        "T2I-Adapter": lambda: t2i_adapter.original(library.state_of(t2i_adapter.model("full_adapter_xl"))),
    }
    if name in models:
        randomise(models[name]()).save_pretrained(out)
    elif name in published:
        state = {key: torch.tensor(array) for key, array in published[name]().items()}
        torch.save(state, out := folder / "source.ckpt")
    elif name == "Flax folder":
        assert convert("export", files / "text_encoder", out, "--to", "flax") == 0
    elif (kind := name.removesuffix(" projection")) in ip_adapter.PROJECTIONS and kind != name:
        random = torch.Generator().manual_seed(3)
        weights = ip_adapter.PROJECTIONS[kind](lambda *shape: torch.randn(*shape, generator=random) / shape[-1] ** 0.5)
        out = ip_adapter.saved({"image_proj": weights}, folder / "projection.safetensors")
    elif name in ("AnimateLCM", "AnimateDiff-Lightning"):
        out = motion_modules(folder, name != "AnimateLCM", mid_block=True)
    elif name == "Hotshot-XL":
        names = {"motion_modules": "temporal_attentions", ".temporal_transformer": "", ".pe": ".positional_encoding"}
        state = load_file(motion_modules(folder, True))
        for theirs, its in names.items():
            state = {key.replace(theirs, its): tensor for key, tensor in state.items()}
        save_file(state, out := folder / "hotshot.safetensors")
    elif name == "LoHa":
        layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        state = {f"{layer}.hada_w{i}_{end}": torch.ones(*shape) for i in (1, 2) for end, shape in LOHA.items()}
        save_torch(state | {f"{layer}.alpha": torch.ones(())}, out := folder / "loha.safetensors")
    elif "LoRA" in name:
        layer, down, up = {
            "dotted LoRA": ("unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q", "lora_down", "lora_up"),
            "motion LoRA": (f"{TEMPORAL}.attention_blocks.0.processor.to_q_lora", "down", "up"),
            "MotionDirector's LoRA": (f"{TEMPORAL}.ff.net.0.processor.proj_lora", "down", "up"),
        }[name]
        state = {f"{layer}.{down}.weight": torch.ones(2, 32), f"{layer}.{up}.weight": torch.ones(32, 2)}
        save_torch(state, out := folder / "lora.safetensors")
    else:
        out = files / name
    return out


LOHA = {"a": (32, 2), "b": (2, 32)}
TEMPORAL = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
DOCUMENTED = {
    "diffusers and transformers folders": (
        *("base", "vae", "text_encoder", "UNetMotionModel", "MotionAdapter", "CLIP vision"),
        *("ControlNetModel", "SparseControlNetModel", "T2IAdapter"),
    ),
    "Flax": ("Flax", "Flax folder"),
    "single-file Stable Diffusion": ("Stable Diffusion 1.5", "Stable Diffusion XL"),
    "original ControlNet": ("ControlNet",),
    "AnimateDiff motion modules": ("motion.ckpt",),
    "SparseCtrl": ("SparseCtrl",),
    "T2I-Adapter": ("T2I-Adapter",),
    "AnimateLCM": ("AnimateLCM",),
    "AnimateDiff-Lightning": ("AnimateDiff-Lightning",),
    "PIA": ("PIA",),
    "Hotshot-XL": ("Hotshot-XL",),
    "I2V-Adapter": ("published I2V-Adapter", "adapter.safetensors"),
    "IP-Adapter": ("ip_sd15.bin", "base projection", "plus projection", "full face projection"),
    "LoRA of kohya-ss": ("kohya.safetensors",),
    "LoRA with dots": ("dotted LoRA",),
    "LoRA of diffusers": ("peft.safetensors",),
    "LoRA's kin": ("LoHa",),
    "motion LoRA": ("motion LoRA", "MotionDirector's LoRA"),
    "textual inversions": (),  # no network: see test_embeddings.py
    "RAFT": (),  # the libraries have no such network: see test_raft.py
    "DOVER": (),  # likewise: see test_dover.py
    "Upscalers": (),  # likewise: see test_upscaler.py
    "IFNet": (),  # likewise: see test_ifnet.py
    "I3D": (),  # likewise: see test_i3d.py
    "DynamiCrafter": (),  # likewise: see test_dynamicrafter.py and test_dynamicrafter_files.py
    "ours": ("joined.safetensors",),
}
"""What docs/formats.md lists, by how its rows begin."""


def test_every_documented_format_is_run():
    text = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()
    rows = [line[2:].replace("**", "") for line in text.splitlines() if line.startswith("| **")]
    starts = sorted(DOCUMENTED, key=len, reverse=True)
    found = [next((start for start in starts if row.startswith(start)), row) for row in rows]
    assert sorted(found) == sorted(DOCUMENTED)


def test_every_network_is_run():
    assert running.NETWORKS.keys() == networks.NETWORKS.keys()


@pytest.mark.filterwarnings("ignore:.*has no (config.json|position tables)")
@pytest.mark.parametrize("name", [name for names in DOCUMENTED.values() for name in names])
def test_verify_runs_every_format(name, files, joined, tmp_path, capsys):
    """None ends in an error of a command's own: all is equal, and what was run is within its bar."""
    source = one_of(name, files, tmp_path)
    for ours in (tmp_path / "ours.safetensors", tmp_path / "orbax"):
        assert convert("import", source, ours) == 0
        if ours.suffix:
            assert convert("verify", source, ours) == 0
    capsys.readouterr()
    assert convert("verify", source, tmp_path / "orbax", "--run") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("verified") and "not run." not in out


def test_verify_runs_nothing_without_pytorch(files, tmp_path, monkeypatch):
    assert convert("import", files / "text_encoder", tmp_path / "ours.safetensors") == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "diffusers" else True)
    arguments = ("verify", files / "text_encoder", tmp_path / "ours.safetensors")
    assert convert(*arguments) == 0
    refused(*arguments, "--run", words=["pip install diffusers"])


def test_diff_of_equal_files(files, joined, tmp_path, capsys):
    shutil.copy(joined, tmp_path / "copy.safetensors")
    assert convert("diff", joined, tmp_path / "copy.safetensors") == 0
    assert f"{len(raw(joined))} of {len(raw(joined))} tensors have equal values" in capsys.readouterr().out
    assert convert("diff", files / "base", files / "base") == 0


def test_diff_names_what_differs(files, joined, tmp_path, capsys):
    names = [f"unet/conv_{place}/{leaf}" for place in ("in", "out") for leaf in ("kernel", "bias")]

    def change(state):
        del state[names[0]]
        state["unet/extra"] = np.zeros(3, np.float32)
        state[names[1]] = state[names[1]].astype(np.float16).astype(np.float16)
        state[names[2]] = state[names[2]].reshape(-1)
        state[names[3]] += np.float32([0, 0.25, 0, 0])

    assert convert("diff", joined, changed(joined, tmp_path / "other.safetensors", change)) == 1
    out = capsys.readouterr().out
    assert re.search(rf"only in FIRST +{names[0]}\n", out) and re.search(r"only in SECOND +unet/extra\n", out)
    assert re.search(rf"{names[1]} +float32 32 +float16 32\n", out)
    assert re.search(rf"{names[2]} +float32 3x3x32x4 +float32 1152\n", out)
    assert re.search(rf"0\.25 +\S+ +{names[3]}\n", out)


def test_diff_of_two_formats(files, tmp_path, capsys):
    assert convert("export", files / "base", tmp_path / "sd.safetensors", "--to", "sd") == 0
    capsys.readouterr()
    assert convert("diff", files / "base", tmp_path / "sd.safetensors") == 0
    assert "under this program's own names" in capsys.readouterr().out
    state = load_file(tmp_path / "sd.safetensors")
    state["model.diffusion_model.out.2.bias"][1] += 1
    save_file(state, tmp_path / "sd.safetensors")
    assert convert("diff", files / "base", tmp_path / "sd.safetensors") == 1
    assert re.search(r"1 +\S+ +unet/conv_out/bias\n", capsys.readouterr().out)
    # a tensor that nothing knows has no name of ours
    save_file(state | {"model.diffusion_model.colour": np.zeros(3, np.float32)}, tmp_path / "sd.safetensors")
    convert("diff", files / "base", tmp_path / "sd.safetensors")
    assert re.search("not compared.*model.diffusion_model.colour", capsys.readouterr().out)
    # of no known format: by their own names
    for name, value in (("a", 1), ("b", 2)):
        save_file({"colour": np.full(3, value, np.float32)}, tmp_path / f"{name}.safetensors")
    assert convert("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors") == 1
    assert re.search(r"1 +1 +colour\n", capsys.readouterr().out)


def test_diff_of_a_pipeline_and_one_of_fewer_parts(pipeline, tmp_path, capsys):
    fewer = shutil.copytree(pipeline, tmp_path / "fewer")
    shutil.rmtree(fewer / "vae")
    assert convert("diff", pipeline, fewer) == 1
    out = capsys.readouterr().out
    assert "different formats" not in out and "only in FIRST  vae/decoder.conv_in.bias" in out


# The command line.


@pytest.mark.parametrize("command", ["import", "export", "inspect", "verify", "diff"])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as left:
        convert(command, "--help")
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert f"python -m convert {command} " in out.split("examples:")[1]
    assert "examples:\n" in out and out.count("python -m convert ") >= 2


def test_wrong_command_lines(files, tmp_path):
    out = tmp_path / "out.safetensors"
    refused("export", files / "base", out, "--to", "diffuser", words=["diffuser", "Did you mean 'diffusers'"])
    refused("export", files / "base", tmp_path / "out.xyz", "--to", "sd", words=["out.xyz", ".safetensors"])
    refused("export", files / "base", out, "--to", "kohya", words=["nothing that is part of kohya", "unet"])
    refused("import", files / "base", out, "--dtype", "f8", words=["f8", "bf16"])
    refused("export", files / "base", tmp_path / "out", "--to", "diffusers", "--shard-size", "5", words=["'5'", "5GB"])
    refused("import", files / "bas", out, words=[files / "bas", "Did you mean 'base'"])
    config = files / "base" / "config.json"
    refused("import", files / "base", out, "--config", f"unt={config}", words=["'unt'", "Did you mean 'unet'"])
    for scale in ("much", "nan", "inf"):
        refused("import", files / "base", out, "--lora", f"x.safetensors={scale}", words=[scale, "FILE=SCALE"])
    refused("import", files / "base", files / "motion.ckpt", "--only", ".*", out, words=["not between"])
    refused("imprt", files / "base", out, words=["imprt", "--help"])
    refused(words=["--help"])
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*are left out, as there is none to change")
def test_sources_that_do_not_fit(files, joined, tmp_path):
    out = tmp_path / "out.safetensors"
    refused("import", files / "text_encoder", files / "kohya.safetensors", out, "--lora", files / "kohya.safetensors",
            words=["kohya.safetensors", "text_encoder"])  # fmt: skip
    refused("export", joined, out, words=["came as", "--to"])
    refused("import", files / "ip.bin", out, words=["ip.bin", "base UNet"])
    assert not list(tmp_path.iterdir())


def test_exit_codes(files, tmp_path):
    """Of the process: 0 where all is well, 1 for a difference, 2 with one message for bad input; no traceback."""

    def run(*arguments):
        command = [sys.executable, "-m", "convert", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    assert run("export", "--help")[0] == 0
    state = load_file(files / "adapter.safetensors")
    state[next(iter(state))][0] += 1
    save_file(state, tmp_path / "other.safetensors")
    code, out, _ = run("diff", files / "adapter.safetensors", tmp_path / "other.safetensors")
    assert code == 1 and "largest difference" in out
    code, out, error = run("import", tmp_path / "nothing.safetensors", tmp_path / "out.safetensors")
    assert code == 2 and error.startswith("error: ") and "nothing.safetensors" in error and len(error.splitlines()) == 1
    with subprocess.Popen(
        [sys.executable, "-m", "convert", "inspect", "--keys", files / "base"],
        **dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent),
    ) as listing:
        listing.stdout.close()  # as `| head` does
        assert listing.stderr.read() == "" and listing.wait() == 0
