"""Files of different families are told apart, and messages name them; nothing here is compiled."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import main as convert
from i2v_jax import commands
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families.arithmetic import Arithmetic
from i2v_jax.families.few_steps import Chosen, sampler_warning
from i2v_jax.families.identify import (
    Part,
    check_family,
    count_cross_attentions,
    explain,
    levels_of,
    open_part,
    prompts_of,
)
from i2v_jax.families.model import assemble
from i2v_jax.families.weights import Weights
from i2v_jax.models import clip, controlnet, image_projection, vae
from i2v_jax.models.unet import SD15, SDXL, AddedConditioning, UNetConfig
from tests import sdxl_models

SD2 = dataclasses.replace(SD15, cross_attention_dim=1024, linear_projection=True)
REFINER = UNetConfig(
    block_out_channels=(384, 768, 1536, 1536),
    cross_attention_dim=1280,
    transformer_depth=(4, 4, 4, 4),
    added_conditioning=AddedConditioning(256, 2560),
)
OPENCLIP_H_TEXT = clip.CLIPTextConfig(width=1024, mlp_width=4096, num_layers=23, num_heads=16, hidden_act="gelu")
BIGG_VISION = clip.CLIPVisionConfig(width=1664, mlp_width=8192, num_layers=48, num_heads=16, projection_dim=1280)
IP_SDXL = image_projection.ImageProjectionConfig(embed_dim=1280, cross_attention_dim=2048)
IP_PLUS_SDXL = image_projection.ResamplerConfig(width=1280, num_heads=20, mlp_width=5120, cross_attention_dim=2048)


def lora_shapes(prompts, levels=3):
    """A few of a LoRA's layers: those that tell what it is for."""
    layer = "down_blocks_1/layers_0/attention/blocks_0"
    return {
        f"{layer}/attn1/to_q/lora/down": (640, 8),
        f"{layer}/attn2/to_k/lora/down": (prompts, 8),
        f"{layer}/attn2/to_k/lora/up": (8, 640),
        f"{layer}/attn2/to_k/lora/alpha": (),
    }


def motion_shapes(*widths):
    """The norms of motion modules, by which their levels are known."""
    last = len(widths) - 1
    shapes = {}
    for level, width in enumerate(widths):
        for block, layers in ((f"down_blocks_{level}", 2), (f"up_blocks_{last - level}", 3)):
            shapes |= {f"{block}/layers_{i}/motion/norm/scale": (width,) for i in range(layers)}
            shapes |= {f"{block}/layers_{i}/motion/blocks_0/attn1/to_q/kernel": (width, width) for i in range(layers)}
    return shapes


def first_frame_shapes(*widths):
    """First-frame layers of a UNet's levels; 0 where one has no attention."""
    last = len(widths) - 1
    shapes = {}
    for level, width in enumerate(widths):
        for block, layers in ((f"down_blocks_{level}", 2), (f"up_blocks_{last - level}", 3)):
            for i in range(layers if width else 0):
                shapes[f"{block}/layers_{i}/attention/blocks_0/attn1/first_frame/to_q/kernel"] = (width, width)
    coarsest = [width for width in widths if width][-1]
    shapes["mid_block/attention/blocks_0/attn1/first_frame/to_q/kernel"] = (coarsest, coarsest)
    return shapes


def token_shapes(count, prompts):
    """Attention weights of an IP-Adapter."""
    layers = (f"numbered_{2 * i + 1}/attention/blocks_0/attn2/image_tokens" for i in range(count))
    return {f"{layer}/to_{letter}/kernel": (prompts, 8) for layer in layers for letter in "kv"}


OF_SD15 = {
    "unet": Part("runwayml/sd15", SD15),
    "motion": Part("mm_sd_v15.ckpt", motion_shapes(320, 640, 1280, 1280)),
    "adapter": Part("i2v_module.pth", first_frame_shapes(320, 640, 1280, 0)),
    "image_adapter": Part("ip-adapter-plus_sd15.bin", image_projection.IP_ADAPTER_PLUS_SD15),
    "image_tokens": Part("ip-adapter-plus_sd15.bin", token_shapes(16, 768)),
    "image_encoder": Part("models/image_encoder", clip.VIT_H_VISION),
    "vae": Part("sd-vae-ft-mse", vae.SD_VAE),
    "text_encoder": Part("clip-vit-large-patch14", clip.SD15_TEXT),
    "lora": Part("pixel.safetensors", lora_shapes(768)),
    "controlnet": Part("sd-controlnet-canny", controlnet.SD15_CONTROLNET),
}
OF_SDXL = {
    "unet": Part("juggernautXL.safetensors", SDXL),
    "motion": Part("mm_sdxl_v10_beta.ckpt", motion_shapes(320, 640, 1280)),
    "adapter": Part("my_xl_adapter", first_frame_shapes(0, 640, 1280)),
    "image_adapter": Part("ip-adapter-plus_sdxl.bin", IP_PLUS_SDXL),
    "image_tokens": Part("ip-adapter-plus_sdxl.bin", token_shapes(70, 2048)),
    "image_encoder": Part("models/image_encoder", clip.VIT_H_VISION),
    "vae": Part("sdxl-vae-fp16-fix", vae.SDXL_VAE),
    "text_encoder": Part("xl/text_encoder", clip.SD15_TEXT),
    "text_encoder_2": Part("xl/text_encoder_2", clip.OPENCLIP_BIGG_TEXT),
    "lora": Part("papercut.safetensors", lora_shapes(2048)),
    "controlnet": Part("controlnet-canny-sdxl-1.0", controlnet.SDXL_CONTROLNET),
}
ALIKE = {"vae", "text_encoder", "image_encoder"}  # parts that both families have, or that shapes do not tell apart


@pytest.mark.parametrize("parts", [OF_SD15, OF_SDXL], ids=["SD1.5", "SDXL"])
def test_what_belongs_together_passes_in_silence(parts):
    with warnings.catch_warnings(action="error"):
        check_family(parts)
        for slot in parts:
            check_family({"unet": parts["unet"], slot: parts[slot]})


@pytest.mark.parametrize("slot", sorted(OF_SD15.keys() - ALIKE - {"unet"}))
@pytest.mark.parametrize("base, stranger", [(OF_SDXL, OF_SD15), (OF_SD15, OF_SDXL)], ids=["on SDXL", "on SD1.5"])
def test_a_part_of_the_other_family_is_named(base, stranger, slot):
    with pytest.raises(InputError) as error:
        check_family(base | {slot: stranger[slot]})
    message = str(error.value)
    of, wanted = ("1.x", "XL") if base is OF_SDXL else ("XL", "1.x")
    assert f"{stranger[slot].source} (" in message and f"is for Stable Diffusion {of}" in message
    assert f"{base['unet'].source} is a model of Stable Diffusion {wanted}" in message
    other_base = {
        "1.x": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "XL": "stabilityai/stable-diffusion-xl-base-1.0",
    }
    assert other_base[of] in message
    hints = {"motion": "guoyww/animatediff/", "image_adapter": "h94/IP-Adapter/", "image_tokens": "h94/IP-Adapter/"}
    hints |= {"lora": "latent-consistency/lcm-lora-", "controlnet": "canny"}
    hints |= {"adapter": "train.py makes one" if wanted == "XL" else "space-xun/i2v_adapter"}
    assert hints[slot] in message


def test_sd2_is_no_base_for_sdxl_parts():
    base = {"unet": Part("sd21", SD2)}
    for slot in ("motion", "adapter", "image_adapter", "lora", "controlnet"):
        with pytest.raises(InputError, match=r"is for Stable Diffusion XL; sd21 is a model of Stable Diffusion 2.x"):
            check_family(base | {slot: OF_SDXL[slot]})
    with pytest.raises(InputError, match="clip-vit.* is CLIP ViT-L/14.*wants OpenCLIP ViT-H/14"):
        check_family(base | {"text_encoder": OF_SD15["text_encoder"]})
    check_family(base | {"text_encoder": Part("sd21/text_encoder", OPENCLIP_H_TEXT)})


@pytest.mark.parametrize(
    "config, message",
    [
        (REFINER, "xl.safetensors is the refiner of.*Give the base, such as stabilityai/stable-diffusion-xl-base-1.0"),
        (dataclasses.replace(SDXL, in_channels=9), "inpainting.*9 channels.*takes 4.*stable-diffusion-xl-base-1.0"),
        (dataclasses.replace(SD15, in_channels=9), "inpainting.*9 channels.*takes 4.*stable-diffusion-v1-5"),
        (dataclasses.replace(SDXL, in_channels=8), "instruct-pix2pix.*8 channels.*takes 4"),
    ],
    ids=["refiner", "SDXL inpainting", "SD1.5 inpainting", "instruct-pix2pix"],
)
def test_bases_that_make_no_picture_from_a_prompt_alone_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        check_family({"unet": Part("xl.safetensors", config)})


def test_image_encoders_fit_their_adapter():
    linear = {"image_adapter": Part("ip-adapter_sdxl.bin", IP_SDXL)}
    message = (
        "projected output are 1024 wide; ip-adapter_sdxl.* 1280 wide. Give OpenCLIP ViT-bigG/14.*sdxl_models/image_"
    )
    with pytest.raises(InputError, match=f"encoder is an image encoder .*ViT-H/14.*{message}"):
        check_family(OF_SDXL | linear)
    check_family(OF_SDXL | linear | {"image_encoder": Part("bigG", BIGG_VISION)})
    with pytest.raises(InputError, match="states are 1664 wide.*Give OpenCLIP ViT-H/14, such as h94.*models/image_enc"):
        check_family(OF_SD15 | {"image_encoder": Part("bigG", BIGG_VISION)})
    without = {slot: part for slot, part in OF_SD15.items() if slot != "image_adapter"}
    check_family(without | {"image_encoder": Part("bigG", BIGG_VISION)})  # nothing reads it


def test_text_encoders_are_those_of_the_base():
    first, second = OF_SDXL["text_encoder"], OF_SDXL["text_encoder_2"]
    message = "xl/text_encoder_2, given as the text encoder, is OpenCLIP ViT-bigG/14.*wants CLIP ViT-L/14"
    with pytest.raises(InputError, match=message):
        check_family(OF_SDXL | {"text_encoder": second, "text_encoder_2": first})  # as wide together, and swapped
    with pytest.raises(InputError, match="xl/text_encoder, given as the second text encoder"):
        check_family(OF_SDXL | {"text_encoder_2": first})
    with pytest.raises(InputError, match="runwayml/sd15 .*has one text encoder, and xl/text_encoder_2"):
        check_family(OF_SD15 | {"text_encoder_2": second})
    unprojected = dataclasses.replace(clip.OPENCLIP_BIGG_TEXT, projection_dim=640)
    with pytest.raises(InputError, match="pooled output 640 wide; juggernautXL.safetensors wants 1280"):
        check_family(OF_SDXL | {"text_encoder_2": Part("half", unprojected)})


def test_autoencoders_are_told_by_their_scale_alone():
    with pytest.warns(UserWarning, match="sd-vae-ft-mse scales latents by 0.18215.*Shapes do not tell.*sdxl-vae-fp16"):
        check_family(OF_SDXL | {"vae": OF_SD15["vae"]})
    with pytest.warns(UserWarning, match="sdxl-vae-fp16-fix scales latents by 0.13025.*such as stabilityai/sd-vae-ft"):
        check_family(OF_SD15 | {"vae": OF_SDXL["vae"]})
    with pytest.raises(InputError, match="flux-vae is an autoencoder whose latents have 16 channels.*takes 4"):
        check_family(OF_SDXL | {"vae": Part("flux-vae", vae.VAEConfig(latent_channels=16))})


def test_cross_attentions_are_counted():
    assert (count_cross_attentions(SD15), count_cross_attentions(SDXL)) == (16, 70)
    with pytest.raises(InputError, match="with 40 cross-attentions;.* it has 70"):
        check_family(OF_SDXL | {"image_tokens": Part("of a distilled SDXL", token_shapes(40, 2048))})


# The small models of other tests: of no published family, and judged by agreement alone.


def test_small_models_pass_where_they_agree_and_are_told_where_not():
    base = UNetConfig.from_diffusers(sdxl_models.UNET)
    small = {
        "unet": Part("base", base),
        "motion": Part("motion", motion_shapes(16, 32, 64)),
        "adapter": Part("adapter", first_frame_shapes(0, 32, 64)),
        "image_tokens": Part("ip", token_shapes(count_cross_attentions(base), 40)),
        "vae": Part("vae", vae.SD_VAE),
        "text_encoder": Part("one", clip.CLIPTextConfig(width=16)),
        "text_encoder_2": Part("two", clip.CLIPTextConfig(width=24, projection_dim=20)),
        "lora": Part("lora", lora_shapes(40)),
    }
    with warnings.catch_warnings(action="error"):
        check_family(small)
    for slot, part, message in (
        (
            "motion",
            OF_SDXL["motion"],
            "is for Stable Diffusion XL; base is of no published family: its levels are 16, 32",
        ),
        ("motion", Part("odd", motion_shapes(16, 32)), "is for a UNet of 2 levels, 16, 32 channels wide"),
        ("adapter", Part("odd", first_frame_shapes(0, 32, 48)), "odd .first-frame adapter. is for a UNet of 3 levels"),
        ("lora", OF_SD15["lora"], "pixel.safetensors .LoRA. is for Stable Diffusion 1.x"),
        ("text_encoder", Part("odd", clip.CLIPTextConfig(width=32)), "is one whose states are 32 wide; base .*16 wide"),
    ):
        with pytest.raises(InputError, match=message):
            check_family(small | {slot: part})


def test_files_are_opened_and_told_apart_unread(tmp_path):
    sources = {
        "unet": sdxl_models.folder(),
        "motion": sdxl_models.motion(),
        "adapter": sdxl_models.first_frame_adapter(),
        "image_adapter": sdxl_models.image_adapter("plus"),
        "image_encoder": sdxl_models.image_encoder(),
        "vae": sdxl_models.folder(),
        "text_encoder": sdxl_models.folder(),
        "text_encoder_2": sdxl_models.folder(),
    }
    explain(sources)
    assert levels_of(open_part("motion", sources["motion"]).config) == (16, 32, 64)
    assert levels_of(open_part("adapter", sources["adapter"]).config)[1:] == (32, 64)
    assert open_part("text_encoder_2", sources["text_encoder_2"]).config.projection_dim == sdxl_models.POOLED
    other = tmp_path / "pixel_art.safetensors"
    down, up = np.zeros((2, 768), np.float32), np.zeros((32, 2), np.float32)
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, other)
    assert prompts_of(open_part("lora", other).config) == 768
    with pytest.raises(InputError, match="pixel_art.safetensors .LoRA. is for Stable Diffusion 1.x"):
        explain(sources | {"lora": other})
    explain({"unet": tmp_path / "nowhere"} | {"motion": sources["motion"]})  # another error's business
    explain(sources | {"motion": tmp_path / "nowhere"})


# Few-step models.

XL_SCHEDULER = dict(_class_name="EulerDiscreteScheduler", timestep_spacing="leading", prediction_type="epsilon")


BASE = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.mark.parametrize(
    "source, sort, good, bad",
    [
        ("stabilityai/sdxl-turbo", "Turbo", "euler_ancestral", "ddim"),
        ("/models/dreamshaperXL_v21TurboDPMSDE.safetensors", "Turbo", "euler", "dpmpp_2m"),
        ("~/sd_xl_turbo_1.0_fp16.safetensors", "Turbo", "euler_ancestral", "lcm"),
        ("ByteDance/SDXL-Lightning/sdxl_lightning_4step.safetensors", "Lightning", "euler", "ddim"),
        (
            "ByteDance/AnimateDiff-Lightning/animatediff_lightning_4step_comfyui.safetensors",
            "Lightning",
            "euler",
            "lcm",
        ),
        ("latent-consistency/lcm-lora-sdxl", "LCM", "lcm", "ddim"),
        ("./LCM_Dreamshaper_v7.safetensors", "LCM", "lcm", "euler"),
        ("h1t/TCD-SD15-LoRA", "TCD", "tcd", "ddim"),
        ("wangfuyun/AnimateLCM/AnimateLCM_sd15_t2v_lora.safetensors", "AnimateLCM", "lcm", "ddim"),
        ("ByteDance/Hyper-SD/Hyper-SDXL-8steps-lora.safetensors", "Hyper-SD", "ddim", "dpmpp_2m"),
        ("ByteDance/Hyper-SD/Hyper-SDXL-1step-Unet.safetensors", "Hyper-SD", "lcm", "ddim"),
        ("ByteDance/Hyper-SD/Hyper-SD15-1step-lora.safetensors", "Hyper-SD", "tcd", "ddim"),
    ],
)
def test_names_of_few_step_models_are_known(source, sort, good, bad):
    own_timesteps = good in ("lcm", "tcd")
    warning = sampler_warning((BASE, source), {}, XL_SCHEDULER, Chosen(bad))
    assert source in warning and sort in warning and f"sampler={bad}" in warning and f"sampler={good}"[:12] in warning
    assert sampler_warning((BASE, source), {}, XL_SCHEDULER, Chosen(good)) is None
    leading, trailing = (sampler_warning((BASE, source), {}, None, Chosen(good, it)) for it in ("leading", "trailing"))
    assert trailing is None and (leading is None if own_timesteps else "spacing=leading" in leading)


XL_LIGHTNING = "ByteDance/SDXL-Lightning/sdxl_lightning_{}.safetensors"
VIDEO_LIGHTNING = "ByteDance/AnimateDiff-Lightning/animatediff_lightning_{}step_diffusers.safetensors"
HYPER = "ByteDance/Hyper-SD/Hyper-SD{}.safetensors"
EULER = Chosen("euler", "trailing", 4, 1.0, NoiseSchedule())
DDIM = EULER._replace(sampler="ddim")
ANIMATE_LCM = "wangfuyun/AnimateLCM/AnimateLCM_sd15_t2v"


@pytest.mark.parametrize(
    "sources, good, departures",
    [
        (
            [VIDEO_LIGHTNING.format(4)],
            EULER,
            {
                "steps=8": EULER._replace(steps=8),
                "guidance_scale=7.5": EULER._replace(guidance_scale=7.5),
                "noise_schedule.kind=scaled_linear": EULER._replace(schedule=NoiseSchedule("scaled_linear")),
            },
        ),
        ([VIDEO_LIGHTNING.format(2)], EULER._replace(steps=3), {"steps=4": EULER, "steps=1": EULER._replace(steps=1)}),
        ([XL_LIGHTNING.format("8step_lora")], EULER._replace(steps=8), {"steps=4": EULER}),
        (
            [XL_LIGHTNING.format("1step_unet_x0")],
            EULER._replace(steps=1, schedule=NoiseSchedule(prediction_type="sample")),
            {"noise_schedule.prediction_type=epsilon": EULER._replace(steps=1)},
        ),
        (
            [HYPER.format("XL-1step-Unet")],
            Chosen("lcm", "leading", 1, 1.0, NoiseSchedule(), (800,)),
            {"sampler_options.timesteps=()": Chosen("lcm", "leading", 1, 1.0, NoiseSchedule(), ())},
        ),
        (
            [HYPER.format("15-1step-lora")],
            Chosen("tcd", "leading", 4, 1.0),
            {"steps=25": Chosen("tcd", "leading", 25, 1.0)},
        ),
        (
            [HYPER.format("15-8steps-CFG-lora")],
            DDIM._replace(steps=8, guidance_scale=6.0),
            {"guidance_scale=1": DDIM._replace(steps=8), "steps=4": DDIM._replace(guidance_scale=6.0)},
        ),
        ([HYPER.format("15-4steps-lora")], DDIM, {"guidance_scale=5": DDIM._replace(guidance_scale=5.0)}),
        (["stabilityai/sdxl-turbo"], EULER, {"steps=25": EULER._replace(steps=25)}),
        (
            [ANIMATE_LCM + ".ckpt", ANIMATE_LCM + "_lora.safetensors"],
            Chosen("lcm", "leading", 6, 2.0, NoiseSchedule()),
            {
                "guidance_scale=7.5": Chosen("lcm", "leading", 6, 7.5, NoiseSchedule()),
                "steps=25": Chosen("lcm", "leading", 25, 2.0, NoiseSchedule()),
            },
        ),
        (["latent-consistency/lcm-lora-sdv1-5"], Chosen("lcm", steps=4), {"steps=50": Chosen("lcm", steps=50)}),
    ],
)
def test_a_run_is_judged_by_all_that_its_makers_say(sources, good, departures):
    """And by nothing else: each warning names the one thing that is otherwise."""
    assert sampler_warning([BASE, *sources], None, None, good) is None
    for departure, chosen in departures.items():
        assert f"this run has {departure}. Its makers' settings: " in sampler_warning(sources, None, None, chosen)


def test_a_file_is_known_by_its_metadata(tmp_path):
    """Tools write down the name that a LoRA had where it was made, whatever its file is called since."""
    for key in ("modelspec.title", "ss_output_name"):
        file = tmp_path / f"fast.{key}.safetensors"
        save_file({"x": np.zeros(1, "f")}, file, {key: "Hyper-SD15-4steps-lora", "format": "pt"})
        assert "Hyper-SD model" in sampler_warning([str(file)], None, None, EULER._replace(sampler="dpmpp_2m"))
        assert sampler_warning([str(file)], None, None, DDIM) is None
    save_file({"x": np.zeros(1, "f")}, tmp_path / "plain.safetensors")
    assert sampler_warning([str(tmp_path / "plain.safetensors")], None, None, DDIM) is None


def test_animate_lcm_wants_its_lora():
    chosen = Chosen("lcm", "leading", 6, 2.0, NoiseSchedule())
    warning = sampler_warning([BASE, ANIMATE_LCM + ".ckpt"], None, None, chosen)
    assert "no such LoRA" in warning and "AnimateLCM_sd15_t2v_lora.safetensors" in warning


@pytest.mark.parametrize(
    "source", ["stabilityai/stable-diffusion-xl-base-1.0", "/turbo/hyperrealism_xl.safetensors", "~/calcmodel", ""]
)
def test_other_names_say_nothing(source):
    assert sampler_warning((source,), None, None, Chosen("ddim", "leading", 25, 7.5)) is None
    assert sampler_warning((source,), {"time_cond_proj_dim": None}, XL_SCHEDULER, Chosen("ddim")) is None


def test_settings_of_few_step_models_are_known():
    trailing = XL_SCHEDULER | dict(timestep_spacing="trailing")
    for unet, scheduler, sort, good in (
        ({"time_cond_proj_dim": 256}, XL_SCHEDULER, "LCM", "lcm"),
        ({}, dict(_class_name="LCMScheduler"), "LCM", "lcm"),
        ({}, dict(_class_name="TCDScheduler"), "TCD", "tcd"),
        ({}, trailing, "Turbo", "euler"),
        ({"_name_or_path": "stabilityai/sdxl-turbo"}, None, "Turbo", "euler_ancestral"),
    ):
        assert sort in sampler_warning(("model",), unet, scheduler, Chosen("ddim"))
        assert sampler_warning(("model",), unet, scheduler, Chosen(good)) is None
    # velocity models sampled down to pure noise are spread so too
    assert sampler_warning(("model",), {}, trailing | dict(prediction_type="v_prediction"), Chosen("ddim")) is None
    assert sampler_warning(("model",), {}, trailing | dict(rescale_betas_zero_snr=True), Chosen("ddim")) is None


def test_convert_says_which_source_is_of_which_family(tmp_path):
    """A LoRA for SD1.5 beside SDXL, and motion modules; what is wrong otherwise keeps its own message."""
    base = str(sdxl_models.folder())
    lora = tmp_path / "style.safetensors"
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {"down": (4, 768), "up": (640, 4)}
    save_file({f"{layer}.lora_{leaf}.weight": np.zeros(shape, "f") for leaf, shape in shapes.items()}, lora)
    command = ["import", base, str(tmp_path / "out.safetensors")]
    with pytest.raises(InputError, match=r"style.safetensors \(LoRA\) is for Stable Diffusion 1.x; .*base is"):
        convert([*command, "--lora", str(lora)])
    motion = "assets/small_world/motion.safetensors"
    with pytest.raises(InputError, match=r"motion.safetensors \(motion modules\) is for a UNet of .* levels"):
        convert(["import", base, motion, str(tmp_path / "out.safetensors")])
    with pytest.raises(InputError, match="no/such/file"):
        convert(["import", base, "no/such/file.safetensors", str(tmp_path / "out.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()


def test_motion_modules_whose_frames_no_file_tells_get_them_from_the_weights_of_a_run(tmp_path):
    given = commands.load_config(commands.ROOT / "configs" / "sample" / "default.py").weights
    of_tables = load_file(given.motion)
    given.motion = str(tmp_path / "motion.safetensors")
    save_file({name: leaf for name, leaf in of_tables.items() if not name.endswith(".pe")}, given.motion)
    arithmetic = Arithmetic.on(jax.devices()[0], "float32")
    with pytest.raises(InputError, match="no position tables.*--config.weights.motion_frames=N"):
        assemble(Weights.of_config(given), arithmetic)
    given.motion_frames = 20
    assert assemble(Weights.of_config(given), arithmetic)["unet"].config.motion.max_positions == 20
    given.motion_frames = 0
    with pytest.raises(InputError, match="weights.motion_frames=0: wanted 1 or more"):
        Weights.of_config(given).check()
