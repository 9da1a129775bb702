"""Folders written for diffusers and transformers: the library loads them, and computes what the source computes."""

import dataclasses
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from i2v_jax import tree
from i2v_jax.errors import InputError
from i2v_jax.models import clip, controlnet, unet, vae
from i2v_jax.models.motion import SDXL_BETA, V1, V2, V3, MotionConfig
from i2v_jax.weights.assemble import load_unet
from i2v_jax.weights.folders import copy_rest, write_component, write_model_index
from i2v_jax.weights.formats import PUBLISHED_UNET
from i2v_jax.weights.save import save_own
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import export_tensors, recognise
from tests import test_weights as library
from tests import tiny
from tests.oracles import FOLDER as ORACLES
from tests.torch_models import randomise

CONFIGS = {
    "unet": unet.UNetConfig,
    "controlnet": controlnet.ControlNetConfig,
    "vae": vae.VAEConfig,
    "text_encoder": clip.CLIPTextConfig,
    "image_encoder": clip.CLIPVisionConfig,
}
MODELS = {name: make for name, (make, _) in library.MODELS.items()} | {
    "controlnet": lambda: diffusers.ControlNetModel.from_unet(library.unet2d()),
    "controlnet-sdxl": lambda: diffusers.ControlNetModel.from_unet(library.unet2d(**library.SDXL)),
}
STORAGE = {"float32": {}, "sharded": dict(max_shard_bytes=20_000), "float16": dict(variant="fp16")}
PRESETS = [
    preset
    for module, cls in ((unet, "UNetConfig"), (vae, "VAEConfig"), (clip, "CLIPTextConfig"), (clip, "CLIPVisionConfig"))
    for preset in vars(module).values()
    if type(preset) is getattr(module, cls)
]


def config_of(component, source):
    return CONFIGS[component].from_diffusers(json.loads((Path(source) / "config.json").read_text()))


def write(component, source, folder, config=None, **options):
    """Takes a component from a source into our names and writes its folder."""
    held = recognise(open_tensors(source))[component]
    write_component(folder, component, held.parameters, held.buffers, config or config_of(component, source), **options)


def inputs(model):
    """A call of any of the models, random."""
    random = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=model.dtype)  # noqa: E731
    if isinstance(model, transformers.PreTrainedModel):
        if isinstance(model.config, transformers.CLIPTextConfig):
            return dict(input_ids=torch.randint(99, (2, 7), generator=random))
        return dict(pixel_values=normal(2, 3, 28, 28))
    if isinstance(model, diffusers.AutoencoderKL):
        return dict(sample=normal(2, 3, 16, 16))
    frames = (3,) if isinstance(model, diffusers.UNetMotionModel) else ()
    prompts = normal(6 if frames else 2, 5, 24)  # one per frame
    call = dict(sample=normal(2, 4, *frames, 8, 8), timestep=500, encoder_hidden_states=prompts)
    if isinstance(model, diffusers.ControlNetModel):
        call["controlnet_cond"] = normal(2, 3, 64, 64)
    if model.config.addition_embed_type:
        call["added_cond_kwargs"] = dict(text_embeds=normal(2, 16), time_ids=normal(2, 6))
    return call


def outputs(model):
    """What the model returns first: a tensor, or a ControlNet's list of them."""
    first = model.eval()(**inputs(model))[0]
    return first if isinstance(first, list) else [first]


def assert_same(model, source):
    """The same class and weights bit for bit, and so the same output."""
    assert type(model) is type(source)
    ours, theirs = model.state_dict(), source.state_dict()
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name
    with torch.no_grad():
        assert all(map(torch.equal, outputs(model), outputs(source)))


def loaded(model, folder, **options):
    """The folder, loaded by the library without missing or unexpected tensors."""
    again, report = type(model).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return again


def settings(model, *without):
    """The model's settings as JSON has them, but for where it was loaded from."""
    return json.loads(json.dumps({k: v for k, v in model.config.items() if k[0] != "_" and k not in without}))


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", MODELS)
def test_library_loads_what_is_written(name, storage, tmp_path):
    component = name.split("-")[0]
    model = randomise(MODELS[name]())
    dtype = getattr(torch, "float16" if storage == "float16" else "float32")
    model.to(dtype).save_pretrained(tmp_path / "source")
    write(component, tmp_path / "source", tmp_path / "ours", **STORAGE[storage])
    variant = dict(variant="fp16") if storage == "float16" else {}
    again = loaded(model, tmp_path / "ours", torch_dtype=dtype, **variant)
    assert_same(again.float(), model.float())

    model.to(dtype).save_pretrained(
        tmp_path / "theirs", max_shard_size="20KB" if storage == "sharded" else "5GB", **variant
    )
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    if storage == "sharded":
        assert len(names) > 3 and len([it for it in names if it.endswith(".index.json")]) == 1
        for path in (tmp_path / "ours").glob("*.safetensors"):
            assert path.stat().st_size < 30_000 or len(load_file(path)) == 1
    else:
        assert names == {path.name for path in (tmp_path / "theirs").iterdir()}


@pytest.mark.parametrize("name, cls", [("unet", "FlaxUNet2DConditionModel"), ("vae", "FlaxAutoencoderKL")])
def test_flax_models_of_diffusers_load_what_is_written(name, cls, tmp_path):
    groups = dict(block_out_channels=(32, 64), norm_num_groups=32)  # the Flax UNet knows no other number
    model = randomise(library.unet2d(**groups) if name == "unet" else library.vae())
    model.save_pretrained(tmp_path / "source")
    write(name, tmp_path / "source", tmp_path / "ours", flax=True)
    _, params = getattr(diffusers, cls).from_pretrained(tmp_path / "ours")
    wanted = recognise(open_tensors(tmp_path / "source"))[name].parameters
    held = {path.replace("/", "."): np.asarray(leaf) for path, leaf in tree.flatten(params).items()}
    again = recognise(Tensors.of(held))[name].parameters
    assert library.bytes_of(again) == library.bytes_of(wanted)


def test_shards_of_a_variant_are_named_as_the_libraries_name_them(tmp_path):
    model = library.unet2d().half()
    model.save_pretrained(tmp_path / "theirs", variant="fp16", max_shard_size="60KB")
    write("unet", tmp_path / "theirs", tmp_path / "ours", variant="fp16", max_shard_bytes=60_000)
    assert_same(loaded(model, tmp_path / "ours", variant="fp16", torch_dtype=torch.float16).float(), model.float())
    assert (tmp_path / "ours" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    assert any((tmp_path / "ours").glob("diffusion_pytorch_model.fp16-00001-of-*.safetensors"))


@pytest.mark.parametrize("preset", PRESETS)
def test_configs_survive_the_libraries_json(preset):
    again = type(preset).from_diffusers(json.loads(json.dumps(preset.to_diffusers())))
    assert again == preset
    if isinstance(preset, unet.UNetConfig):
        for motion in (V1, V2, V3, SDXL_BETA, MotionConfig(num_heads=4, num_layers=2)):
            if preset.norm_groups == motion.norm_groups:
                with_motion = dataclasses.replace(preset, motion=motion)
                assert unet.UNetConfig.from_diffusers(with_motion.to_diffusers()) == with_motion
            adapter = motion.to_diffusers_adapter(preset.block_out_channels, preset.layers_per_block)
            assert MotionConfig.from_diffusers(adapter) == motion


def test_settings_that_only_the_source_knows_are_kept(tmp_path):
    model = diffusers.UNet2DConditionModel(**tiny.UNET, sample_size=17, upcast_attention=True)
    model.save_pretrained(tmp_path / "source")
    raw = json.loads((tmp_path / "source" / "config.json").read_text())
    write("unet", tmp_path / "source", tmp_path / "ours", raw_config=raw)
    assert settings(loaded(model, tmp_path / "ours")) == settings(model)
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == raw


# Parts of a UNet.


@pytest.fixture(scope="module")
def motion_source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion")
    adapter = randomise(library.motion_adapter(positions=32, mid_block=True))
    base = randomise(library.unet2d(), seed=1)
    model = diffusers.UNetMotionModel.from_unet2d(base, adapter)
    for name, it in dict(adapter=adapter, base=base, whole=model).items():
        it.save_pretrained(folder / name)
    return folder, adapter, base, model


@pytest.mark.parametrize("part", ["adapter", "base"])
def test_parts_of_a_motion_unet_are_written_apart(part, motion_source, tmp_path):
    folder, adapter, base, _ = motion_source
    held = recognise(open_tensors(folder / "whole"))["unet"]
    config = config_of("unet", folder / "whole")
    pattern = r".*/motion/.*" if part == "adapter" else r"(?!.*/motion/).*"
    parameters, buffers = held.parameters.select(pattern), held.buffers.select(pattern)
    write_component(tmp_path, "unet", parameters, buffers, config)
    model = {"adapter": adapter, "base": base}[part]
    again = loaded(model, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert settings(again, "sample_size") == settings(model, "sample_size")


def test_base_and_motion_from_files_of_their_own_become_a_motion_unet(motion_source, tmp_path):
    """The original layout of AnimateDiff beside a picture model, loaded, then written without the position tables."""
    folder, adapter, _, model = motion_source
    original = library.animatediff(library.state_of(adapter))
    save_tensors(tmp_path / "motion.safetensors", Tensors.of(original))
    config, params = load_unet(
        folder / "base",
        motion=tmp_path / "motion.safetensors",
        motion_config=dict(num_heads=2, norm_groups=8),
    )
    write_component(tmp_path / "unet", "unet", library.arrays(params), Tensors.of({}), config)
    again = loaded(model, tmp_path / "unet")
    for name, tensor in model.state_dict().items():
        atol = 3e-6 if name.endswith("pe") else 0  # computed here
        torch.testing.assert_close(tensor, again.state_dict()[name], atol=atol, rtol=0)


@pytest.mark.parametrize("branch, place", [("first_frame", "I2V-Adapter"), ("image_tokens", "IP-Adapter")])
def test_weights_that_diffusers_cannot_hold_are_refused(branch, place, tmp_path):
    config, params = load_unet(
        ORACLES / "official_v1" / "unet.safetensors", config=library.published_config("official_v1")
    )
    held = library.arrays(params).select(rf"(?!.*/(motion|(?!{branch})(first_frame|image_tokens))/).*")
    with pytest.raises(InputError, match=f"no place for {branch}.*{place}"):
        write_component(tmp_path / "unet", "unet", held, Tensors.of({}), config)
    assert not (tmp_path / "unet").exists()


def test_motion_norms_that_a_motion_unet_cannot_have_are_refused(motion_source, tmp_path):
    held = recognise(open_tensors(motion_source[0] / "whole"))["unet"]
    config = config_of("unet", motion_source[0] / "whole")
    config = dataclasses.replace(config, motion=dataclasses.replace(config.motion, norm_groups=4))
    with pytest.raises(InputError, match="MotionAdapter"):
        write_component(tmp_path / "unet", "unet", held.parameters, held.buffers, config)


# Pipelines.


def tokenizer(folder):
    """A tokenizer of single letters, as small as they come."""
    folder.mkdir(parents=True)
    letters = [chr(i) for i in range(97, 123)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


PIPELINES = {
    "StableDiffusionPipeline": ("unet", False),
    "StableDiffusionXLPipeline": ("unet-sdxl", True),
    "AnimateDiffPipeline": ("unet-motion-v2", False),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_diffusers_loads_and_runs_the_pipeline(pipeline, tmp_path):
    unet_name, is_xl = PIPELINES[pipeline]
    source, folder = tmp_path / "source", tmp_path / "ours"
    models = dict(unet=unet_name, vae="vae", text_encoder="text_encoder")
    models |= dict(text_encoder_2="text_encoder-projected") if is_xl else {}
    made = {}
    for name, kind in models.items():
        made[name] = randomise(MODELS[kind]())
        made[name].save_pretrained(source / name)
        component = name.removesuffix("_2")
        held = recognise(open_tensors(source / name))[component]
        write_component(folder / name, name, held.parameters, held.buffers, config_of(component, source / name))
    for name in ("tokenizer", "tokenizer_2") if is_xl else ("tokenizer",):
        tokenizer(source / name)
    diffusers.DDIMScheduler(steps_offset=1, clip_sample=False).save_pretrained(source / "scheduler")
    (source / "scheduler" / "evil.py").write_text("raise SystemExit")
    copy_rest(source, folder)
    write_model_index(folder)

    assert not (folder / "scheduler" / "evil.py").exists()
    again = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(again).__name__ == pipeline
    assert type(again.scheduler) is diffusers.DDIMScheduler and again.scheduler.config.steps_offset == 1
    for name, model in made.items():
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, getattr(again, name).state_dict()[key])


def test_index_keeps_what_the_sources_index_says(tmp_path):
    for name in ("unet", "vae"):
        MODELS[name]().save_pretrained(tmp_path / "source" / name)
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "source" / "scheduler")
    before = {"_class_name": "Old", "scheduler": ["diffusers", "PNDMScheduler"], "is_special": True, "lost": ["a", "b"]}
    (tmp_path / "source" / "model_index.json").write_text(json.dumps(before))
    shutil.copytree(tmp_path / "source", tmp_path / "ours")
    write_model_index(tmp_path / "ours", tmp_path / "source")
    after = json.loads((tmp_path / "ours" / "model_index.json").read_text())
    assert after["_class_name"] == "StableDiffusionPipeline" and after["is_special"] and "lost" not in after
    assert after["scheduler"] == ["diffusers", "PNDMScheduler"]
    assert after["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_parts_without_a_pipeline_are_refused(tmp_path):
    library.vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match="no pipeline of vae"):
        write_model_index(tmp_path)


# The published layout.

PARTS = {
    "merged": r".*",
    "adapter": r".*/first_frame/.*",
    "motion": r".*/motion/.*",
    "adapter and motion": r".*/(first_frame|motion)/.*",
}
THEIR_PARTS = {
    "merged": r".*",
    "adapter": r".*(_ff\.weight|_ff\.bias)",
    "motion": r".*motion_modules.*",
    "adapter and motion": r".*(_ff\.weight|_ff\.bias|motion_modules.*)",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("folder", ["official_v1", "official_v2norm"])
def test_published_files_come_back_from_our_own(folder, part, tmp_path):
    source = ORACLES / folder / "unet.safetensors"
    held = recognise(open_tensors(source))["unet"]
    everything = held.parameters.holding({**held.parameters.entries, **held.buffers.entries})
    save_own(tmp_path / "own.safetensors", {"unet": everything.select(PARTS[part])})
    own = recognise(open_tensors(tmp_path / "own.safetensors"))["unet"]
    save_tensors(tmp_path / "back.safetensors", export_tensors(own.parameters, PUBLISHED_UNET, own.buffers))
    wanted = Tensors.of(load_file(source)).select(THEIR_PARTS[part])
    assert wanted and library.bytes_of(load_file(tmp_path / "back.safetensors")) == library.bytes_of(wanted)
    assert np.all([np.any(array) for array in wanted.values()])
