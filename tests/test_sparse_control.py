"""SparseCtrl against diffusers: the network, its published layouts, guided runs with pictures on few frames."""

import dataclasses
import functools
import re
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.animatediff import pipeline_animatediff_sparsectrl as theirs
from PIL import Image
from safetensors.torch import save_file

from i2v_jax.commands import load_config
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families.identify import Part, check_family
from i2v_jax.families.model import Model
from i2v_jax.families.published import PUBLISHED as PUBLISHED_NETWORKS
from i2v_jax.families.slots import check_slot
from i2v_jax.families.weights import Weights
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.sparse_control import RGB, SCRIBBLE, SparseControlNet, SparseControlNetConfig
from i2v_jax.models.unet import SD15, SDXL
from i2v_jax.sampling.controls.settings import ControlSettings
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.tree import flatten
from i2v_jax.weights.assemble import load_unet, to_device
from i2v_jax.weights.checkpoint import open_checkpoint
from i2v_jax.weights.controls import assemble_control, assemble_controlnet, assemble_sparse_controlnet
from i2v_jax.weights.infer import infer_config
from tests import tiny
from tests.conversions import comes_back_to_diffusers, read, run
from tests.helpers import relative_error, with_conditions
from tests.sdxl_models import VIDEO_SCHEDULE
from tests.test_weights import animatediff, bytes_of, state_of
from tests.torch_models import our_parameters, our_shapes, randomise

MOTION = tiny.motion((32, 64), positions=8)  # the levels of the small base
SMALL = tiny.of_controlnet(tiny.UNET | tiny.levels(False, True, kind="Motion")) | dict(
    block_out_channels=(32, 64),
    attention_head_dim=4,
    cross_attention_dim=32,
    motion_max_seq_length=8,
    motion_num_attention_heads=4,
)
KINDS = {
    "scribble": dict(
        conditioning_channels=3,
        use_simplified_condition_embedding=False,
        conditioning_embedding_out_channels=(8, 16, 24, 32),
    ),
    "RGB": dict(conditioning_channels=4),
}
PUBLISHED = {
    "scribble": (SCRIBBLE, dict(conditioning_channels=3, use_simplified_condition_embedding=False)),
    "RGB": (RGB, dict(conditioning_channels=4)),
}


def model(kind, **changes):
    return randomise(diffusers.SparseControlNetModel(**SMALL | KINDS[kind] | changes), seed=2)


def original(network, prefix=""):
    """A network's tensors under AnimateDiff's names, position tables included."""
    state = state_of(network)
    moving = {name: array for name, array in state.items() if ".motion_modules." in name}
    resting = {name: array for name, array in state.items() if name not in moving}
    renamed = {name: it for name, it in animatediff(moving, "").items() if ".attention_blocks.1." not in name}
    return {prefix + name: array for name, array in (resting | renamed).items()}


def pooled(config):
    """The config with the motion modules' norm as diffusers has it."""
    return dataclasses.replace(config, motion=dataclasses.replace(config.motion, pooled_norm=True))


def channels_second(video):
    return torch.from_numpy(np.moveaxis(video, -1, 1).copy())


@pytest.mark.parametrize(
    "kind, changes", [("scribble", {}), ("RGB", {}), ("scribble", dict(concat_conditioning_mask=False))]
)
def test_equals_diffusers(kind, changes, measured):
    """Two videos of three frames, of which one and two have pictures; what stands at the others means nothing."""
    yardstick = model(kind, **changes)
    config = pooled(SparseControlNetConfig.from_diffusers(yardstick.config))
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    given = dict(sample=normal(2, 3, 8, 12, 4), timesteps=np.array([3, 961], np.int32), text=normal(2, 7, 32))
    scale = config.picture_scale
    picture = rng.random((2, 3, scale * 8, scale * 12, config.picture_channels), np.float32)
    known = np.array([[True, False, False], [False, True, True]])
    where = known[..., None, None, None].astype(np.float32)
    with torch.no_grad():
        wanted = yardstick(
            channels_second(given["sample"]),
            torch.from_numpy(given["timesteps"]),
            torch.from_numpy(given["text"]).repeat_interleave(3, 0),
            controlnet_cond=channels_second(picture * where),
            conditioning_mask=channels_second(np.broadcast_to(where, (*picture.shape[:-1], 1))),
            conditioning_scale=0.7,
        )
    parameters = our_parameters("sparse_controlnet", yardstick.state_dict())
    call = jax.jit(functools.partial(SparseControlNet(config).apply, {"params": parameters}, conditioning_scale=0.7))
    down, middle, levels = call(**with_conditions(given), picture=picture, known=known)
    assert levels is None and len(down) == len(wanted.down_block_res_samples)
    pairs = zip([*down, middle], [*wanted.down_block_res_samples, wanted.mid_block_res_sample], strict=True)
    flat = lambda x: np.moveaxis(np.asarray(x).reshape(-1, *x.shape[2:]), -1, 1)  # noqa: E731
    error = max(relative_error(flat(ours), it) for ours, it in pairs)
    measured(f"diffusers SparseControlNetModel, {kind} {changes or ''}, worst residual", error, 1e-5)
    if config.has_mask and kind == "scribble":
        noisier = with_conditions(given | dict(sample=10 * given["sample"]))
        strange = np.where(known[..., None, None, None], picture, np.nan)
        again = call(**noisier, picture=strange, known=known)
        jax.tree.map(np.testing.assert_array_equal, (down, middle), tuple(again[:2]))
        black = call(**with_conditions(given), picture=picture * where, known=np.ones_like(known))
        assert relative_error(black[1], middle) > 1e-3  # a black picture is not the same as none


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_come_back_byte_for_byte(kind, tmp_path):
    """diffusers' folder and AnimateDiff's file, as it stands and below the key that the published code looks for."""
    network = model(kind)
    network.save_pretrained(tmp_path / "diffusers")
    config, parameters = assemble_sparse_controlnet(tmp_path / "diffusers").load(to_device)
    jax.tree.map(np.testing.assert_array_equal, parameters, our_parameters("sparse_controlnet", network.state_dict()))
    ours = comes_back_to_diffusers(network, config, tmp_path)
    for name, state in (("plain", original(network)), ("nested", original(network, "controlnet."))):
        file, copy = tmp_path / f"{name}.ckpt", tmp_path / f"{name}-back.safetensors"
        tensors = {key: torch.tensor(array) for key, array in original(network).items()}
        torch.save({"controlnet": tensors, "global_step": 1} if name == "nested" else tensors, file)
        loaded = assemble_sparse_controlnet(file, config=config.to_diffusers())
        jax.tree.map(np.testing.assert_array_equal, loaded.load(to_device), (config, parameters))
        run("export", file, copy, "--config", f"sparse_controlnet={tmp_path / 'diffusers' / 'config.json'}")
        assert bytes_of(read(copy)) == bytes_of(state)
    run("export", ours, tmp_path / "published.safetensors", "--to", "animatediff")
    assert bytes_of(read(tmp_path / "published.safetensors")) == bytes_of(original(network))


@pytest.mark.parametrize("kind", KINDS)
def test_verify_runs_it_and_inspect_names_it(kind, tmp_path, capsys):
    network = model(kind)
    network.save_pretrained(tmp_path / "diffusers")
    run("import", tmp_path / "diffusers", tmp_path / "ours.safetensors")
    run("verify", tmp_path / "diffusers", tmp_path / "ours.safetensors", "--run")
    out = capsys.readouterr().out
    assert re.search(r"sparse_controlnet +residuals +\d\.\de-\d+ +1e-05 +ok", out), out
    run("inspect", tmp_path / "ours.safetensors")
    assert f"({kind})" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_config_of_a_published_file(kind):
    """At the published sizes, on the meta device, from AnimateDiff's names alone."""
    preset, settings = PUBLISHED[kind]
    with torch.device("meta"):
        network = diffusers.SparseControlNetModel(**settings)
    shapes = our_shapes("sparse_controlnet", network.state_dict())
    assert SparseControlNetConfig.from_diffusers(network.config) == preset
    assert infer_config("sparse_controlnet", shapes) == preset
    without_tables = {path: shape for path, shape in shapes.items() if not path.endswith("/positions")}
    assert {path: leaf.shape for path, leaf in parameter_shapes(preset).items()} == without_tables


def test_one_given_for_something_else_is_told_what_it_is(tmp_path):
    path = tmp_path / "v3_sd15_sparsectrl_scribble.safetensors"
    save_file({name: torch.tensor(array) for name, array in original(model("scribble")).items()}, path)
    for given, wanted in ((load_unet, "unet"), (assemble_controlnet, "controlnet")):
        with pytest.raises(
            InputError, match=f"holds no {wanted}. It holds: sparse_controlnet.*weights.controls={path}"
        ):
            given(path)
    with pytest.raises(InputError, match="weights.motion: .*It is a SparseCtrl.*weights.controls=.*controls.frames"):
        check_slot("motion", path)
    check_slot("controls", path)
    with pytest.raises(InputError, match="SparseCtrl.* is for Stable Diffusion 1.x.*Stable Diffusion XL"):
        check_family({"unet": Part("base", SDXL), "control_0": Part("sparse.ckpt", SCRIBBLE)})
    check_family({"unet": Part("base", SD15), "control_0": Part("sparse.ckpt", RGB)})


def test_the_config_of_sparse_control_is_of_published_networks():
    config, plain = (load_config(Path(f"configs/sample/{name}.py")) for name in ("sparse", "sd15"))
    assert [PUBLISHED_NETWORKS[source] for source in config.weights.controls] == [RGB]
    assert PUBLISHED_NETWORKS[config.weights.motion]["motion"].max_positions == RGB.motion.max_positions
    ControlSettings.of_config(config.controls).check(1, config.frames)
    changed = {"weights.motion", "weights.adapter", "weights.loras", "weights.controls", "controls.frames"}
    assert {key for key, value in flat(config).items() if value != flat(plain)[key]} == changed


def flat(config):
    return {key.replace("/", "."): value for key, value in flatten(config.to_dict()).items()}


def test_wrong_input_is_refused():
    given = with_conditions(
        dict(sample=jnp.zeros((1, 1, 8, 8, 4)), timesteps=jnp.zeros(1), text=jnp.zeros((1, 1, 768)))
    )
    init = functools.partial(SparseControlNet(RGB).init, jax.random.key(0))
    with pytest.raises(
        InputError, match=r"SparseCtrl was given latents of pictures.*\(64, 64, 3\).*wanted \(8, 8, 4\)"
    ):
        jax.eval_shape(init, **given, picture=jnp.zeros((1, 1, 64, 64, 3)))
    long = with_conditions(
        dict(sample=jnp.zeros((1, 33, 8, 8, 4)), timesteps=jnp.zeros(1), text=jnp.zeros((1, 1, 768)))
    )
    with pytest.raises(InputError, match="33 frames.*SparseCtrl.*32"):
        jax.eval_shape(init, **long, picture=jnp.zeros((1, 33, 8, 8, 4)))
    with pytest.raises(InputError, match="transformer_layers_per_mid_block=3"):
        SparseControlNetConfig.from_diffusers(dict(model("RGB").config) | dict(transformer_layers_per_mid_block=3))


# Through the pipeline.

FRAMES, SIZE, STEPS, AT = 6, 64, 5, (0, 4)
SETTINGS = Settings(
    height=SIZE,
    width=SIZE,
    frames=FRAMES,
    steps=STEPS,
    guidance_scale=5.0,
    sampler_options=(("set_alpha_to_one", False),),
    controls=ControlSettings(scales=0.8, frames=AT),
)
PROMPT, NEGATIVE = "a walk on the beach", "waves"


@functools.cache
def motion_adapter():
    return randomise(diffusers.MotionAdapter(**MOTION), seed=5)


def pictures():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in AT]


def noise():
    return np.random.default_rng(4).standard_normal((1, FRAMES, SIZE // 8, SIZE // 8, 4), np.float32)


def diffusers_latents(network, monkeypatch):
    of_posterior = theirs.retrieve_latents
    monkeypatch.setattr(theirs, "retrieve_latents", lambda encoded: of_posterior(encoded, sample_mode="argmax"))
    pipeline = diffusers.AnimateDiffSparseControlNetPipeline(
        **tiny.parts(),
        motion_adapter=motion_adapter(),
        controlnet=network,
        scheduler=diffusers.DDIMScheduler(**VIDEO_SCHEDULE),
    )
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        made = pipeline(
            PROMPT,
            SIZE,
            SIZE,
            FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=SETTINGS.guidance_scale,
            negative_prompt=NEGATIVE,
            latents=channels_second(noise()),
            conditioning_frames=[Image.fromarray(picture) for picture in pictures()],
            controlnet_conditioning_scale=0.8,
            controlnet_frame_indices=list(AT),
            output_type="latent",
        ).frames
    return np.moveaxis(made.numpy(), 1, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_guided_runs_equal_diffusers(kind, tmp_path, measured, monkeypatch):
    """AnimateDiffSparseControlNetPipeline: pictures on frames 0 and 4 of 6; RGB by the mean of the VAE's posterior."""
    network = model(kind)
    network.save_pretrained(tmp_path / "control")
    motion_adapter().save_pretrained(tmp_path / "motion")
    mesh = make_mesh({}, jax.devices()[:1])
    loaded = Model.load(
        Weights(str(tiny.SMALL), motion=str(tmp_path / "motion"), controls=(str(tmp_path / "control"),)),
        schedule=NoiseSchedule.from_diffusers(VIDEO_SCHEDULE),
        motion_config=dict(pooled_norm=True),
        mesh=mesh,
    )
    configs = dict(loaded.configs) | dict(control_0=pooled(loaded.configs["control_0"]))
    ours = Pipeline(dataclasses.replace(loaded, configs=configs), mesh)
    made = {}
    for label, settings in (
        ("with", SETTINGS),
        ("without", dataclasses.replace(SETTINGS, controls=ControlSettings(scales=0.0, frames=AT))),
        ("elsewhere", dataclasses.replace(SETTINGS, controls=ControlSettings(scales=0.8, frames=(1, 4)))),
    ):
        conditions = ours.encode([PROMPT], [NEGATIVE], settings=settings, controls=[pictures()])
        made[label] = np.asarray(ours.denoise(noise(), conditions, settings))
    wanted = diffusers_latents(network, monkeypatch)
    what = f"diffusers AnimateDiffSparseControlNetPipeline, {kind}: latents after {STEPS} guided steps"
    measured(what, relative_error(made["with"], wanted), 1e-4)
    assert relative_error(made["without"], made["with"]) > 1e-2
    assert relative_error(made["elsewhere"], made["with"]) > 1e-3


def test_a_pipelines_folder_has_it_where_diffusers_looks(tmp_path):
    """`controlnet`, in a folder that diffusers loads as an AnimateDiffSparseControlNetPipeline; and is read again."""
    network = model("RGB")
    network.save_pretrained(tmp_path / "control")
    motion_adapter().save_pretrained(tmp_path / "motion")
    run("export", tiny.SMALL / "unet", tmp_path / "motion", tmp_path / "control", tmp_path / "all", "--to", "diffusers")
    index = diffusers.AnimateDiffSparseControlNetPipeline.load_config(tmp_path / "all")
    assert index["_class_name"] == "AnimateDiffSparseControlNetPipeline"
    assert index["controlnet"] == ["diffusers", "SparseControlNetModel"]
    assert set(open_checkpoint([tmp_path / "all"]).components) == {"unet", "sparse_controlnet"}
    assert assemble_control(tmp_path / "all").config == SparseControlNetConfig.from_diffusers(network.config)
