"""DynamiCrafter by the command: from one checkpoint file to videos, between two pictures, in a loop; bad input."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from i2v_jax import commands
from i2v_jax.cli import sample
from i2v_jax.commands.config import load_config
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.encoders import image_tokens
from i2v_jax.encoders.picture_input import in_frames
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.families.over_time import Stage
from i2v_jax.families.weights import Weights
from i2v_jax.media import CLIP_MEAN, CLIP_STD
from i2v_jax.sampling import from_picture
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.stages import encode as encode_stages
from tests import dynamicrafter_models as models
from tests.helpers import relative_error
from tests.test_sample import CACHE, CAT, ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*has no config.json")

SETTINGS = Settings(
    height=64,
    width=64,
    frames=models.FRAMES,
    steps=3,
    guidance_scale=3.0,
    guidance_rescale=0.7,
    sampler="ldm_ddim",
    sampler_options=(("eta", 1.0), ("spacing", "trailing")),
    fs=24,
)
PICTURES = [np.random.default_rng(i).integers(0, 256, (70, 90, 3), np.uint8) for i in range(2)]


@functools.cache
def pipeline(kind="512", devices=1, **shape):
    mesh = make_mesh(shape, jax.devices()[:devices])
    model = Model.load(Weights(str(models.checkpoint(kind))), schedule=models.SCHEDULES[kind], mesh=mesh)
    return Pipeline(model, mesh)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Returns `run(*flags)`: runs the command with the config of 512, and gives (exit code, stdout, stderr)."""

    def run(*flags):
        monkeypatch.setattr(sample, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1]))
        monkeypatch.setattr(Model, "of_config", lambda config, mesh: pipeline().model)
        monkeypatch.setattr(sample, "Pipeline", lambda model, mesh: pipeline())
        given = [
            f"--config={ROOT / 'configs/sample/dynamicrafter.py'}:512",
            f"--config.weights.base={models.checkpoint()}",
            f"--config.compilation_cache={CACHE}",
            f"--config.output={tmp_path / 'out'}",
            "--config.height=64",
            "--config.width=64",
            f"--config.frames={models.FRAMES}",
            "--config.steps=3",
        ]
        monkeypatch.setattr(sys, "argv", ["sample.py", *given, *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            commands.run(sample.main)
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_command_makes_videos_and_records(run, tmp_path):
    """Two seeds of one picture, then from the record the same again; a loop and an interpolation are others."""
    code, out, err = run(f"--config.image={CAT}", "--config.prompt=a cat", "--config.variations=2")
    assert code == 0, err
    (first, second) = sorted((tmp_path / "out").glob("*.mp4"))
    record = json.loads(first.with_suffix(".json").read_text())
    assert record["config"]["fs"] == 24 and record["config"]["sampler"] == "ldm_ddim"
    assert first.read_bytes() != second.read_bytes()
    end = tmp_path / "end.png"
    Image.fromarray(PICTURES[1]).save(end)
    before = first.read_bytes()
    for flag in (f"--config.last_picture={end}", "--config.loop=True"):
        code, out, err = run(f"--config.image={CAT}", "--config.prompt=a cat", flag)
        assert code == 0, err
        made = max((tmp_path / "out").glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        assert made.read_bytes() != before


BAD = {
    "frames of another number": (["--config.frames=2"], "makes tokens for 3 frames"),
    "a frame rate below 0": (["--config.fs=-1"], "fs=-1"),
    "another sampler": (["--config.sampler=euler", "--config.sampler_options.eta=0.0"], "no dynamic rescale"),
    "a loop to another picture": (["--config.loop=True", f"--config.last_picture={CAT}"], "a loop ends in its first"),
    "a last picture that is not there": (["--config.last_picture=nowhere.png"], "nowhere.png"),
    "an adapter's strength": (["--config.adapter_scale=0.5"], "adapter_scale=0.5: DynamiCrafter has no such setting"),
    "a later start": (["--config.t0=0.5"], "t0=0.5: DynamiCrafter"),
    "an empty prompt for nothing": (["--config.prompt_of_first_weights=True"], "the weights are the same throughout"),
    "statistics of nothing": ([f"--config.analytic_init={models.__file__}"], "dynamicrafter_models"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_ends_with_a_message(what, run, tmp_path):
    flags, message = BAD[what]
    code, out, err = run(f"--config.image={CAT}", *flags)
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not list((tmp_path / "out").glob("*"))


def test_a_model_of_another_kind_is_refused():
    """The 256 model by the config of 512, whose file tells its noise schedule; settings of DynamiCrafter elsewhere."""
    with pytest.raises(InputError, match="trained for 'epsilon'"):
        Model.load(Weights(str(models.checkpoint("256"))), schedule=models.SCHEDULES["512"])
    model = dataclasses.replace(pipeline("256").model, schedule=models.SCHEDULES["512"])
    with pytest.raises(InputError, match="dynamicrafter.py:256"):
        SETTINGS.check(model)
    with pytest.raises(InputError, match="holds no motion modules|Leave motion modules and adapters out"):
        Model.load(Weights(str(models.checkpoint()), motion=str(models.checkpoint())), schedule=models.SCHEDULES["512"])


def test_configs_name_the_published_models():
    for name, size in (("256", (256, 256)), ("512", (320, 512)), ("1024", (576, 1024)), ("interp", (320, 512))):
        config = load_config(f"{ROOT}/configs/sample/dynamicrafter.py:{name}")
        assert (config.height, config.width) == size and config.weights.base.endswith("/model.ckpt")
        assert config.noise_schedule.zero_terminal_snr == (name != "256")
    with pytest.raises(InputError, match="wanted one of 256, 512"):
        load_config(f"{ROOT}/configs/sample/dynamicrafter.py:513")


def test_pictures_stand_in_the_frames_they_belong_to():
    rng = np.random.default_rng(0)
    first, last = (rng.normal(size=(1, 1, 2, 2, 4)).astype(np.float32) for _ in range(2))
    assert (in_frames(first, 4) == np.repeat(first, 4, 1)).all()
    two = np.asarray(in_frames(first, 4, last))
    assert (two[:, 0] == first[:, 0]).all() and (two[:, 3] == last[:, 0]).all() and not two[:, 1:3].any()
    assert from_picture.last_pictures([1], dataclasses.replace(SETTINGS, loop=True)) == [1]
    assert from_picture.last_pictures([1], SETTINGS) is None


def test_conditions_of_a_run(measured):
    """Tokens by frame and of a grey picture on the other side, the rate, 77 prompt tokens that frames share."""
    made = pipeline().encode(["a cat", "waves"], ["", ""], pictures=PICTURES, settings=SETTINGS)
    assert made.text.shape == (4, 1, 77, models.WIDTH)
    assert made.image_tokens.shape == (4, models.FRAMES, 16, models.WIDTH)
    assert (np.asarray(made.fs) == 24).all() and made.fs.shape == (4, 1)
    networks = pipeline().model.configs, pipeline().model.parameters
    grey = np.broadcast_to((0.5 - CLIP_MEAN) / CLIP_STD, (1, 28, 28, 3)).astype(np.float32)
    of_grey = image_tokens.encode(*networks, grey).reshape(1, models.FRAMES, 16, models.WIDTH)
    measured("tokens of no picture", relative_error(made.image_tokens[:1], of_grey), 1e-5)


def test_statistics_begin_a_run(tmp_path):
    """Analytic-Init: the file's mean and variance stand in the first latents; of another size they are refused."""
    path, rng = tmp_path / "initial_noise.pt", np.random.default_rng(0)
    mean = torch.from_numpy(rng.normal(size=(4, models.FRAMES, 8, 8)).astype(np.float32))
    torch.save({"Expectation_X0": mean, "Tr_Cov_d": torch.tensor(0.5)}, path)
    options = (("eta", 1.0), ("noisiest", 900), ("spacing", "trailing"))
    settings = dataclasses.replace(SETTINGS, analytic_init=str(path), sampler_options=options)
    sampler = settings.check(pipeline().model)
    noise = rng.normal(size=(1, models.FRAMES, 8, 8, 4)).astype(np.float32)
    begun = from_picture.begun(pipeline().model, sampler.init(noise), settings).latents
    cumprod = models.SCHEDULES["512"].alphas_cumprod[899]
    wanted = np.sqrt(cumprod) * mean.numpy().transpose(1, 2, 3, 0) + np.sqrt(1 - cumprod / 2) * noise
    assert relative_error(begun, wanted) < 1e-6
    with pytest.raises(InputError, match="analytic_init.*of latents"):
        from_picture.begun(pipeline().model, sampler.init(noise[:, :, :4]), settings)


def test_guidance_by_picture_and_prompt_apart(measured):
    """With both of one strength it is plain guidance; without the prompt's, plain guidance by the picture alone."""
    plain = dataclasses.replace(SETTINGS, guidance_rescale=0.0)
    run = functools.partial(pipeline().latents, PICTURES[:1])
    both = run("a cat", settings=dataclasses.replace(SETTINGS, image_guidance_scale=SETTINGS.guidance_scale))
    wanted = run("a cat", settings=SETTINGS)
    measured("DynamiCrafter: guidance apart, of one strength", relative_error(both, wanted), 1e-4)
    of_picture = dataclasses.replace(plain, guidance_scale=0.0, image_guidance_scale=2.0)
    wanted = run("", settings=dataclasses.replace(plain, guidance_scale=2.0))
    apart = run("a cat", settings=of_picture)
    measured("DynamiCrafter: guidance by the picture alone", relative_error(apart, wanted), 1e-4)
    more = run("a cat", settings=dataclasses.replace(SETTINGS, image_guidance_scale=1.0))
    assert relative_error(more, both) > 1e-3
    for changes, message in (
        (dict(image_guidance_scale=-1.0), "image_guidance_scale=-1.0: wanted a number above 0"),
        (dict(image_guidance_scale=float("inf")), "wanted a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(SETTINGS, **changes).check(pipeline().model)


def test_later_weights_may_have_the_empty_prompt():
    """As EDG's published inference runs its second model; the others' prompt by default."""
    parameters = pipeline().model.parameters
    stages = tuple(Stage(above, parameters) for above in (700, 400, 0))
    runs = Pipeline(dataclasses.replace(pipeline().model, over_time=stages), pipeline().mesh)
    settings = dataclasses.replace(SETTINGS, prompt_of_first_weights=True)
    given = dict(negative_prompts=[""], pictures=PICTURES[:1])
    first, second, third = encode_stages(runs, ["a cat"], settings, **given)
    plain = encode_stages(runs, ["a cat"], SETTINGS, **given)
    empty = pipeline().encode([""], settings=SETTINGS, **given)
    assert second is third and plain[0] is plain[1] is plain[2]
    jax.tree.map(np.testing.assert_array_equal, first, plain[0])
    jax.tree.map(np.testing.assert_array_equal, second, empty)
    assert relative_error(second.text, first.text) > 1e-2
    with pytest.raises(InputError, match="the weights are the same throughout"):
        settings.check(pipeline().model)


def test_devices_make_the_same_video(measured):
    one = pipeline().latents(PICTURES, "a cat", settings=SETTINGS)
    eight = pipeline(devices=6, data=2, frames=3).latents(PICTURES, "a cat", settings=SETTINGS)
    measured("DynamiCrafter: one device against six", relative_error(eight, one), 1e-5)
