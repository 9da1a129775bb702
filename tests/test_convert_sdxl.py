"""SDXL in every format, by the command: in, out again with the same keys and bytes, and over from one to another."""

import dataclasses
import json

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file as save_torch

from i2v_jax import tree
from i2v_jax.models.image_projection import IP_ADAPTER_PLUS_SDXL, IP_ADAPTER_SDXL
from i2v_jax.models.motion import SDXL_BETA
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SDXL
from i2v_jax.weights.assemble import assemble_image_projection, assemble_unet, load_unet
from i2v_jax.weights.formats import diffusers as names
from i2v_jax.weights.formats import ip_adapter as ip_adapter_names
from i2v_jax.weights.save import save_own
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import export_tensors, position_tables
from tests import test_formats_original as original
from tests import test_ip_adapter as ip_adapter
from tests import test_lora as lora
from tests import test_weights as library
from tests import tiny
from tests.test_convert import contents, convert, raw, refused, same
from tests.test_formats_diffusers import tokenizer
from tests.torch_models import randomise

pytestmark = pytest.mark.filterwarnings("ignore:.*has no config.json")

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline's folder as diffusers writes it: two text encoders, two tokenizers that pad differently."""
    folder = tmp_path_factory.mktemp("sdxl") / "pipeline"
    models = original.checkpoint("SDXL")[0]
    for place in ("tokenizer", "tokenizer_2"):
        tokenizer(folder.parent / place)
    tokenizers = [transformers.CLIPTokenizer.from_pretrained(folder.parent / it) for it in ("tokenizer", "tokenizer_2")]
    tokenizers[1].pad_token = "!"
    diffusers.StableDiffusionXLPipeline(
        **models,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=diffusers.EulerDiscreteScheduler(),
        force_zeros_for_empty_prompt=True,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The same model as one file of the original layout."""
    path = tmp_path_factory.mktemp("single") / "sdxl.safetensors"
    save_torch({name: tensor.contiguous().clone() for name, tensor in original.checkpoint("SDXL")[1].items()}, path)
    return path


def weights_of(folder):
    """Every component's tensors in a pipeline's folder."""
    found = {name: next((folder / name).glob("*.safetensors")) for name in COMPONENTS}
    return {f"{name}/{key}": it for name, path in found.items() for key, it in contents(path).items()}


def test_a_folder_comes_back_whole(pipeline, tmp_path):
    out = tmp_path / "out"
    assert convert("export", pipeline, out, "--to", "diffusers") == 0
    assert weights_of(out) == weights_of(pipeline)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        files = {path.name: path.read_bytes() for path in (pipeline / name).iterdir()}
        assert files and {path.name: path.read_bytes() for path in (out / name).iterdir()} == files
    index, before = (json.loads((folder / "model_index.json").read_text()) for folder in (out, pipeline))
    assert {key: it for key, it in before.items() if key != "_diffusers_version" and it != [None, None]} == index
    again = diffusers.DiffusionPipeline.from_pretrained(out)
    assert type(again) is diffusers.StableDiffusionXLPipeline and again.config.force_zeros_for_empty_prompt
    assert (again.tokenizer.pad_token, again.tokenizer_2.pad_token) == ("<|endoftext|>", "!")


def test_folder_and_single_file_become_each_other(pipeline, single, tmp_path):
    """Through our own file, which holds both text encoders; what only one of the two holds is no weight."""
    ours, file, folder = tmp_path / "ours.safetensors", tmp_path / "file.safetensors", tmp_path / "folder"
    assert convert("import", pipeline, ours) == 0
    assert convert("export", ours, file, "--to", "sd") == 0
    assert contents(file) == without_constants(contents(single))
    assert convert("verify", pipeline, file) == 0

    configs = [f"{name}={pipeline / name / 'config.json'}" for name in COMPONENTS]
    options = [option for config in configs for option in ("--config", config)]
    assert convert("export", single, folder, "--to", "diffusers", *options) == 0
    assert without_constants(weights_of(folder)) == weights_of(pipeline)


def without_constants(tensors):
    """All but what the original code stores beside weights."""
    constants = ("position_ids", "logit_scale", "denoiser.sigmas")
    return {name: it for name, it in tensors.items() if not name.endswith(constants)}


def test_a_single_file_is_written_as_one_again(single, tmp_path):
    ours, again = tmp_path / "ours.safetensors", tmp_path / "again.safetensors"
    assert convert("import", single, ours) == 0
    assert {name.partition("/")[0] for name in raw(ours)} >= set(COMPONENTS)
    assert convert("export", ours, again, "--to", "sd") == 0
    assert contents(again) == contents(single)


def motion_state():
    """Motion modules as in mm_sdxl_v10_beta.ckpt: three levels, none in the middle, 32 positions."""
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=16,
        motion_num_attention_heads=8,
        motion_max_seq_length=32,
        use_motion_mid_block=False,
    )
    return randomise(adapter), library.animatediff(library.state_of(randomise(adapter)), prefix="")


def test_motion_modules_of_sdxl_beta_come_back(pipeline, tmp_path, capsys):
    adapter, state = motion_state()
    levels = {tuple(name.split(".")[:2]) for name in state}
    assert levels == {(f"{side}_blocks", str(level)) for side in ("down", "up") for level in range(3)}
    file, ours, again = (tmp_path / name for name in ("mm.ckpt", "ours.safetensors", "again.ckpt"))
    torch.save({name: torch.tensor(it) for name, it in state.items()}, file)
    assert convert("inspect", file) == 0
    assert "motion modules SDXL-beta (32 frames" in capsys.readouterr().out
    for sources in ([file], [pipeline / "unet", file]):
        assert convert("import", *sources, ours, "--overwrite") == 0
        assert convert("export", ours, again, "--to", "animatediff", "--overwrite") == 0
        assert contents(again) == contents(file)
    assert load_unet(ours)[0].motion.max_positions == 32 and not load_unet(ours)[0].pooled_norms
    folder = tmp_path / "adapter"
    assert convert("export", file, folder, "--to", "diffusers") == 0
    loaded = diffusers.MotionAdapter.from_pretrained(folder)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in adapter.state_dict().items())


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("kind", ["base", "plus"])
def test_ip_adapters_come_back(kind, suffix, tmp_path):
    """Of a UNet with SDXL's 70 cross-attentions, whose numbers tell without it where they belong."""
    unet = ip_adapter.full_depth("SDXL")
    file = ip_adapter.saved(ip_adapter.adapter(unet, kind), tmp_path / f"ip{suffix}")
    ours, again = tmp_path / "ours.safetensors", tmp_path / f"again{suffix}"
    assert convert("import", file, ours) == 0
    assert sum("/image_tokens/" in name for name in raw(ours)) == 2 * 70
    assert convert("export", ours, again, "--to", "ip-adapter") == 0
    assert contents(again) == contents(file)
    unet.save_pretrained(tmp_path / "base")
    assert convert("import", tmp_path / "base", file, ours, "--overwrite") == 0
    assert convert("export", ours, again, "--to", "ip-adapter", "--overwrite") == 0
    assert contents(again) == contents(file)


def lora_alphas(state):
    return {name: float(it) for name, it in state.items() if name.endswith("alpha")}


def test_loras_come_back_and_become_each_other(tmp_path):
    """kohya-ss' of the UNet, in the original's names, and of both text encoders; the same as diffusers writes them."""
    state = lora.kohya(lora.pipeline(is_sdxl=True), original_numbers=True)
    assert {name.split("_")[1] for name in state} == {"unet", "te1", "te2"}
    file = lora.save(tmp_path / "kohya.safetensors", state)
    ours, peft, again = (tmp_path / f"{name}.safetensors" for name in ("ours", "peft", "again"))
    assert convert("import", file, ours) == 0
    assert convert("export", ours, again, "--to", "kohya") == 0
    assert contents(again) == contents(file)

    assert convert("export", ours, peft, "--to", "peft") == 0
    assert {name.split(".")[0] for name in raw(peft)} == set(COMPONENTS) - {"vae"}
    assert convert("import", peft, ours, "--overwrite") == 0
    assert convert("export", ours, again, "--to", "peft", "--overwrite") == 0
    assert contents(again) == contents(peft)
    assert convert("export", ours, again, "--to", "kohya", "--overwrite") == 0
    back = raw(again)
    assert lora_alphas(back) == lora_alphas(raw(file))
    for name, it in raw(file).items():
        np.testing.assert_array_equal(back[name], it, err_msg=name)
    assert back.keys() == raw(file).keys()


def test_a_lora_of_another_family_is_named(pipeline, tmp_path):
    """Whatever the command, and before anything is written."""
    other, ours = tmp_path / "pixel_art.safetensors", tmp_path / "ours.safetensors"
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    pair = {"lora_down": torch.zeros(2, 768), "lora_up": torch.zeros(32, 2)}
    save_torch({f"{layer}.{name}.weight": it for name, it in pair.items()}, other)
    words = ("pixel_art.safetensors (LoRA) is for Stable Diffusion 1.x",)
    refused("import", pipeline, ours, "--lora", other, words=words)
    assert not ours.exists()
    assert convert("import", pipeline, ours) == 0
    refused("verify", pipeline, ours, "--lora", other, words=words)


def test_controlnets_come_back(tmp_path):
    settings = tiny.of_controlnet(original.UNETS["SDXL"])
    model = randomise(
        diffusers.ControlNetModel(**settings, conditioning_embedding_out_channels=(8, 16, 24, 32)), seed=4
    )
    model.save_pretrained(tmp_path / "controlnet")
    ours, single, folder = tmp_path / "ours.safetensors", tmp_path / "file.safetensors", tmp_path / "folder"
    assert convert("import", tmp_path / "controlnet", ours) == 0
    assert convert("export", ours, folder, "--to", "diffusers") == 0
    stem = "diffusion_pytorch_model.safetensors"
    assert contents(folder / stem) == contents(tmp_path / "controlnet" / stem)
    assert convert("export", ours, single, "--to", "sd") == 0
    by_hand = {name: it.numpy() for name, it in original.original_unet(model, "control_model.").items()}
    assert contents(single) == library.bytes_of(by_hand)
    assert convert("verify", tmp_path / "controlnet", single) == 0


def test_a_trained_adapter_is_published_and_read_back(pipeline, tmp_path, capsys):
    """What train.py leaves, in the names of the published I2V-Adapter, for a base that has linear projections."""
    config, params = load_unet(pipeline / "unet", self_attention_branches=("first_frame",))
    random = np.random.default_rng(0)
    trained = tree.select({"unet": params}, ["unet/.*/first_frame/.*"])
    flat = {path: random.standard_normal(leaf.shape).astype(np.float32) for path, leaf in tree.flatten(trained).items()}
    file, published, again = (tmp_path / f"{name}.safetensors" for name in ("trained", "published", "again"))
    save_own(file, tree.unflatten(flat), {"unet": config})
    assert convert("export", file, published, "--to", "i2v-adapter") == 0
    assert len(raw(published)) == len(flat) and all("_ff." in name for name in raw(published))
    assert convert("import", published, again) == 0
    assert contents(again) == contents(file)
    capsys.readouterr()
    assert convert("verify", file, published) == 0 and capsys.readouterr().out.endswith("verified\n")
    one, other = (load_unet(pipeline / "unet", adapters={"first_frame": it}) for it in (file, published))
    same(one, other)
    assert one[0] == config
    np.testing.assert_array_equal(
        tree.flatten(one[1])["mid_block/attention/blocks_0/attn1/first_frame/to_q/kernel"],
        flat["unet/mid_block/attention/blocks_0/attn1/first_frame/to_q/kernel"],
    )


def of_shapes(shapes, source):
    """Tensors that are never read."""
    return Tensors({name: Entry(shape, np.dtype(np.float32), None) for name, shape in shapes.items()}, source)


def test_published_files_fit_at_their_real_sizes():
    """Base, mm_sdxl_v10_beta, an I2V-Adapter and ip-adapter_sdxl, each from a file of its own, by names and shapes."""
    branches = dict(self_attention_branches=("first_frame",), cross_attention_branches=("image_tokens",))
    config = dataclasses.replace(SDXL, motion=SDXL_BETA, **branches)
    network = of_shapes({path: leaf.shape for path, leaf in parameter_shapes(config).items()}, "network")
    assert sum("/image_tokens/to_k/" in path for path in network) == 70
    motion = network.select(r".*/motion/.*")
    files = dict(
        motion=export_tensors(motion, names.PUBLISHED_UNET_LINEAR, position_tables(motion, 32)),
        first_frame=export_tensors(network.select(r".*/first_frame/.*"), names.PUBLISHED_UNET_LINEAR, Tensors.of({})),
        image_tokens=export_tensors(
            network.select(r".*/image_tokens/.*"),
            ip_adapter_names.ip_adapter_table(network),
            Tensors.of({}),
        ),
    )
    base = network.select(r"(?!.*/(motion|first_frame|image_tokens)/).*")
    base = export_tensors(base, names.DIFFUSERS_UNET_LINEAR, Tensors.of({}))
    found = assemble_unet(base, config=SDXL.to_diffusers(), motion=files.pop("motion"), adapters=files)
    assert found.config == config and found.parameters.entries.keys() == network.entries.keys()


@pytest.mark.parametrize("config", [IP_ADAPTER_SDXL, IP_ADAPTER_PLUS_SDXL], ids=["linear", "plus"])
def test_image_projections_at_their_real_sizes(config):
    """ip-adapter_sdxl reads bigG's 1280 channels, ip-adapter-plus_sdxl_vit-h ViT-H's; both make tokens 2048 wide."""
    network = of_shapes({path: leaf.shape for path, leaf in parameter_shapes(config).items()}, "network")
    file = export_tensors(network, ip_adapter_names.IMAGE_PROJECTION, Tensors.of({}))
    found = assemble_image_projection(file)
    assert found.config == config
    assert (config.embed_dim, config.cross_attention_dim) == (1280, 2048)
    assert config.num_tokens == (4 if config is IP_ADAPTER_SDXL else 16)
