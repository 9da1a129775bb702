"""The command `sample.py` from its flags to its files, on the small model of tests/data: what comes out, and how bad
input ends: exit code 2, a message that says what to mend, and nothing in the output folder."""

import csv
import errno
import functools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from conftest import CACHE
from PIL import Image

from i2v_jax import commands, media
from i2v_jax.cli import sample
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families.arithmetic import choose_dtype
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling import batches, record
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.weights import assemble
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from tests.processes import environment
from tests.tiny import SMALL

ROOT = Path(__file__).resolve().parents[1]
CAT = ROOT / "assets" / "cat.jpg"
FLAGS = [
    f"--config={ROOT / 'tests' / 'configs' / 'sample.py'}",
    f"--config.compilation_cache={CACHE}",
    "--config.height=64",
    "--config.width=64",
    "--config.frames=3",
    "--config.steps=4",  # of which t0 leaves two
    "--config.attention=xla",  # the other kernels have their own tests; these compile faster
    "--config.convolution=xla",
]
SUFFIXES = [".gif", ".json", ".mp4", ".png"]
LONG_PROMPT = " ".join(map(str, range(10, 60)))  # a token for each digit: 37 numbers and a half fit

load_model, MODELS = Model.of_config, {}


def shared_model(config, mesh):
    key = config.weights.to_json(), config.dtype, config.attention, config.convolution, mesh
    if key not in MODELS:
        MODELS[key] = load_model(config, mesh)
    return MODELS[key]


@functools.cache
def shared_pipeline(model, mesh):
    return Pipeline(model, mesh)


@pytest.fixture(scope="module", autouse=True)
def models_are_forgotten():
    yield
    MODELS.clear()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Returns `run(*flags, devices=1)`: runs the command in this process and gives (exit code, stdout, stderr).

    Runs that load the same weights the same way share the networks and their compiled programs.
    """

    def run(*flags, devices=1):
        monkeypatch.setattr(Model, "of_config", shared_model)
        monkeypatch.setattr(sample, "Pipeline", shared_pipeline)
        monkeypatch.setattr(sample, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:devices]))
        monkeypatch.setattr(sys, "argv", ["sample.py", *FLAGS, f"--config.output={tmp_path / 'out'}", *map(str, flags)])
        with pytest.raises(SystemExit) as exit:
            commands.run(sample.main)
        return exit.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def good(run, tmp_path):
    """Returns `good(*flags, devices=1)`: runs the command and gives what it wrote to stdout and stderr."""

    def good(*flags, devices=1):
        code, out, err = run(*flags, devices=devices)
        assert code == 0, err
        return out, err

    return good


@pytest.fixture
def bad(run, tmp_path):
    """Returns `bad(message, *flags)`: runs the command, which has to end well-behaved with a message like that."""

    def bad(message, *flags):
        code, out, err = run(*flags)
        assert code == 2, err
        error = err[err.index("error: ") :]
        assert re.search(message, error), error
        assert "Traceback" not in err and not list((tmp_path / "out").glob("*"))

    return bad


def decode(path: Path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def videos(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.mp4"))}


def picture(path: Path, mode: str = "RGB", size=(80, 64)) -> Path:
    Image.open(CAT).resize(size).convert(mode).save(path)
    return path


# What comes out.


def test_the_command_in_a_process_of_its_own(tmp_path, good):
    flags = [flag for flag in FLAGS if "compilation_cache" not in flag]
    command = [sys.executable, "-X", "importtime", ROOT / "sample.py", *flags]
    command += [f"--config.compilation_cache={CACHE}", "--config.output=here", "--config.fps=12", "--config.seed=7"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["loading weights onto 1 cpu", "here/cat.mp4  .gif  .png  .json"]
    assert "video 1 of 1: steps 100%" in done.stderr and re.search(r"2/2 steps .* left", done.stderr)
    stages = "compiling .once for each size.", "steps", "writing", "done"
    assert re.search(".*".join(f"video 1 of 1: {stage}" for stage in stages), done.stderr, re.DOTALL)
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.M))
    assert "jax" in imported and not {"torch", "diffusers", "transformers", "tensorflow"} & imported

    out = tmp_path / "here"
    assert sorted(path.name for path in out.iterdir()) == [f"cat{suffix}" for suffix in SUFFIXES]
    stream, frames = decode(out / "cat.mp4")
    assert frames.shape == (3, 64, 64, 3) and stream.average_rate == 12
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    with Image.open(out / "cat.gif") as gif:
        assert (gif.size, gif.n_frames) == ((64, 64), 3)
    with Image.open(out / "cat.png") as sheet:
        assert sheet.size == (2 * 64 + 4, 2 * 64 + 4)  # the picture and three frames
    record = json.loads((out / "cat.json").read_text())
    assert record["config"]["seed"] == 7 and record["config"]["prompt"] == "a cat, the camera zooms in"
    assert {"i2v_jax", "python", "jax", "flax"} <= record["versions"].keys()
    files = {"unet", "vae", "text_encoder", "image_encoder", "motion", "i2v_adapter", "ip_adapter"}
    assert {file for name in record["weights"] for file in files if f"/{file}" in name} == files
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in record["weights"].values())

    # its JSON makes the same run anywhere: here, in this process
    good(f"--config={out / 'cat.json'}")
    again = decode(tmp_path / "out" / "cat.mp4")[1].astype(int)
    assert np.abs(again - frames).mean() < 1


def test_the_json_makes_the_same_files_and_none_is_overwritten(tmp_path, good):
    out, flags = tmp_path / "out", ["--config.seed=4294967295", "--config.t0=0.9", "--config.p=0.25"]
    assert good("--config.prompt=waves", *flags)[0].endswith(f"{out / 'cat'}.mp4  .gif  .png  .json\n")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    good(f"--config={out / 'cat.json'}")
    assert sorted(path.name for path in out.iterdir()) == sorted(f"cat{n}{s}" for n in ("", "-2") for s in SUFFIXES)
    for suffix in SUFFIXES:
        assert (out / f"cat{suffix}").read_bytes() == before[f"cat{suffix}"]
        if suffix != ".json":  # whose keys may come in another order
            assert (out / f"cat-2{suffix}").read_bytes() == before[f"cat{suffix}"], suffix
    assert json.loads((out / "cat-2.json").read_text()) == json.loads(before["cat.json"])
    good(f"--config={out / 'cat.json'}", "--config.seed=1")
    assert (out / "cat-3.mp4").read_bytes() != before["cat.mp4"]


def test_a_row_of_a_csv_makes_the_video_it_makes_alone(tmp_path, good):
    one, two = picture(tmp_path / "one.png"), picture(tmp_path / "two.png", size=(64, 90))
    rows = [(one, "waves", "blurry", 5), (two, "a, cat", "", 6), (one, "", "", "")]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("picture", "prompt", "negative_prompt", "seed"), *rows])
    good(f"--config.csv={tmp_path / 'rows.csv'}", "--config.image=", "--config.seed=9")
    batch = videos(tmp_path / "out")
    assert sorted(batch) == ["one-seed5", "one-seed9", "two"]

    alone = tmp_path / "alone"
    for image, prompt, negative_prompt, seed in rows:
        flags = dict(image=image, prompt=prompt, negative_prompt=negative_prompt, seed=seed or 9, output=alone)
        good(*(f"--config.{key}={value}" for key, value in flags.items()))
    names = dict(zip(("one", "one-2", "two"), sorted(batch)))  # made alone, and in the batch
    assert {names[name]: video for name, video in videos(alone).items()} == batch

    # so does each row's own JSON
    for name in batch:
        again = tmp_path / "again" / name
        good(f"--config={tmp_path / 'out' / name}.json", f"--config.output={again}")
        assert list(videos(again).values()) == [batch[name]]

    # beside another on the same device too, but for roundings; the contact sheets hold the frames without loss
    together = tmp_path / "together"
    flags = [f"--config.csv={tmp_path / 'rows.csv'}", "--config.image=", f"--config.output={together}"]
    good(*flags, "--config.seed=9", "--config.batch_per_device=2")
    for own, name in names.items():
        sheets = (media.load_picture(path).astype(int) for path in (together / f"{name}.png", alone / f"{own}.png"))
        difference = np.abs(np.subtract(*sheets))
        assert difference.mean() < 0.002, name


def test_a_batch_that_was_stopped_goes_on(tmp_path, good, run, monkeypatch):
    """What is there is left as it is; what is made is to the bit what an unbroken run makes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a", (80, 64)), ("b", (64, 90)), ("c", (64, 64))):
        picture(folder / f"{name}.png", size=size)
    (folder / "b.txt").write_text("waves")
    flags = [f"--config.image={folder}", "--config.batch_per_device=2", "--config.guidance_scale=1"]
    whole = tmp_path / "whole"
    good(*flags, f"--config.output={whole}")
    out = tmp_path / "out"

    written = batches.write
    with monkeypatch.context() as stopped:
        calls = []
        stopped.setattr(batches, "write", lambda *it: calls.append(it) or written(*it) if not calls else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            good(*flags)
    assert sorted(videos(out)) == ["a"]
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    said, _ = good(*flags)
    assert f"1 of 3 are there already, of the same settings: {out / 'a'}\n" in said
    assert videos(out) == videos(whole) and sorted(videos(out)) == ["a", "b", "c"]
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    assert json.loads((out / "b.json").read_text())["config"]["prompt"] == "waves"

    said, shown = good(*flags)
    assert "3 of 3 are there already" in said and "step" not in shown and len(list(out.iterdir())) == 12
    good(*flags, "--config.seed=1")
    assert sorted(videos(out)) == ["a", "a-2", "b", "b-2", "c", "c-2"]


def test_pictures_of_every_colour_mode_and_rotation(tmp_path, good):
    upright = picture(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter to the right
    with Image.open(upright) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
        image.convert("RGBA").save(tmp_path / "opaque.png")
        image.convert("L").save(tmp_path / "grey.png")
        image.convert("L").convert("RGB").save(tmp_path / "greyrgb.png")
        image.convert("CMYK").save(tmp_path / "cmyk.tif")
    names = ["upright.png", "turned.png", "opaque.png", "grey.png", "greyrgb.png", "cmyk.tif"]
    rows = "".join(f"{name},waves\n" for name in names)
    (tmp_path / "rows.csv").write_text(f"picture,prompt\n{rows}")
    good(f"--config.csv={tmp_path / 'rows.csv'}", "--config.image=")
    made = videos(tmp_path / "out")
    assert made["turned"] == made["opaque"] == made["upright"] == made["cmyk"] != made["grey"] == made["greyrgb"]


def test_a_picture_of_another_aspect_is_fitted_as_told(tmp_path, good):
    wide = picture(tmp_path / "wide.png", size=(128, 64))
    made = set()
    for fit in media.FITS:
        fitted = Image.fromarray(media.fit_picture(media.load_picture(wide), 64, 64, fit))
        fitted.save(tmp_path / f"{fit}.png")
        good(f"--config.image={wide}", f"--config.fit={fit}", "--config.image_token_scale=0")
        good(f"--config.image={tmp_path / f'{fit}.png'}", "--config.image_token_scale=0")
        (video,) = {path.read_bytes() for path in (tmp_path / "out").glob("*.mp4")}
        made.add(video)
        shutil.rmtree(tmp_path / "out")
    assert len(made) == 3


@pytest.mark.parametrize(
    "flags",
    [
        ["--config.sampler=euler", "--config.guidance_scale=1", "--config.frames=1"],
        ["--config.sampler=euler_ancestral", "--config.sampler_options.spacing=trailing", "--config.guidance_scale=1"],
        ["--config.sampler=dpmpp_2m", "--config.sampler_options.karras_sigmas", "--config.guidance_rescale=0.7"],
        ["--config.sampler=lcm", "--config.guidance_scale=1"],
    ],
    ids=lambda flags: flags[0].split("=")[1],
)
def test_every_sampler_runs(tmp_path, good, flags):
    good(*flags)
    frames = decode(tmp_path / "out" / "cat.mp4")[1]
    assert frames.shape == (1 if "--config.frames=1" in flags else 3, 64, 64, 3)


def test_all_frames_that_the_motion_modules_know_in_an_odd_size(tmp_path, good):
    good("--config.frames=24", "--config.height=72", "--config.width=104", "--config.steps=1", "--config.vae_slice=5")
    assert decode(tmp_path / "out" / "cat.mp4")[1].shape == (24, 72, 104, 3)


def test_a_long_video_and_one_that_goes_on_from_it(tmp_path, good, bad):
    """More frames than motion modules know, with prompts by frame; then its frames and the new ones in one file."""
    flags = ["--config.steps=1", "--config.guidance_scale=1", "--config.windows.length=8"]
    bad("no prompt for frame 0", "--config.prompt_travel={4: 'waves'}")
    bad("windows.length=99: these motion modules know 1 to 24 frames", "--config.windows.length=99", *flags[:2])
    bad("join=True, and .* is no video", "--config.join=True")
    good(*flags, "--config.frames=66", "--config.prompt_travel={0: 'a cat', 40: 'waves'}")
    out = tmp_path / "out"
    assert sorted(path.suffix for path in out.iterdir()) == SUFFIXES
    frames = decode(out / "cat.mp4")[1]
    assert frames.shape == (66, 64, 64, 3)
    made = json.loads((out / "cat.json").read_text())["config"]
    assert made["windows"]["length"] == 8 and made["prompt_travel"].startswith("{0:")
    good(*flags[:2], f"--config.image={out / 'cat.mp4'}", "--config.join=True", f"--config.output={tmp_path / 'on'}")
    joined = decode(tmp_path / "on" / "cat.mp4")[1]
    assert len(joined) == 66 + 3 - 1 and np.abs(joined[:66].astype(int) - frames).mean() < 4


def test_a_long_prompt_is_cut_when_allowed(good):
    warning = re.escape("these words do not fit: '47 48")
    _, err = good(f"--config.prompt={LONG_PROMPT}", "--config.truncate_prompts")
    assert len(re.findall(f"warning: .*{warning}", err)) == 1


def test_help_shows_the_keys_with_what_they_mean(run):
    code, out, err = run("--help")
    assert code == 0 and "usage: python sample.py" in out and not err
    assert re.search(r"^  fit +a picture of another aspect.* \[crop\]$", out, re.M)
    assert re.search(r"^  --width +in pixels.* \[128\]$", out, re.M)


@pytest.mark.parametrize("platform, dtype", [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_the_dtype_suits_the_devices_unless_it_is_given(platform, dtype):
    assert choose_dtype("auto", platform) == dtype
    for given in ("float32", "bfloat16"):
        assert choose_dtype(given, platform) == given


def configured(**weights):
    flags = [f"--config.weights.{part}={source}" for part, source in weights.items()]
    return commands.read_config(sample.DEFAULT, ["sample.py", *FLAGS, *flags])


def test_every_file_that_is_read_is_hashed_whatever_form_its_source_has(tmp_path, monkeypatch):
    shutil.copytree(SMALL / "unet", tmp_path / "unet")
    for part, folder in (("motion", "motion_adapter"), ("ip_adapter", "image_proj"), ("ip_adapter", "unet")):
        place = tmp_path / part / folder / "model.safetensors"
        place.parent.mkdir(parents=True)
        kind = {"image_proj": r"image_proj\..*", "unet": r"ip_adapter\..*"}.get(folder, ".*")
        save_tensors(place, open_tensors(SMALL / f"{part}.safetensors").select(kind))
    folders = dict(unet=tmp_path, motion=tmp_path / "motion", image_adapter=tmp_path / "ip_adapter")
    parts = {part: SMALL for part in ("vae", "text_encoder")} | dict(tokenizer=SMALL / "tokenizer", base="")
    read = set()

    def spy(*arguments, **named):
        tensors = open_tensors(*arguments, **named)
        read.update(tensors.files())
        return tensors

    monkeypatch.setattr(assemble, "open_tensors", spy)
    without_image = configured(image_adapter="")
    for config in (configured(), configured(**folders), configured(**folders, **parts), without_image):
        read.clear()
        weights = Weights.of_config(config.weights)
        weights.check()
        load_model(config, make_mesh({}, jax.devices()[:1]))
        assert set(weights.files()) == read
        assert set(record.hashes(read)) == set(map(str, read))


def test_the_prediction_type_is_that_of_the_model_that_gives_the_unet(tmp_path, bad):
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text('{"prediction_type": "v_prediction"}')
    message = "trained for 'v_prediction'.*Set --config.noise_schedule.prediction_type=v_"
    with pytest.raises(InputError, match=message):
        check_schedule(Weights(base=tmp_path), NoiseSchedule())
    check_schedule(Weights(base=tmp_path), NoiseSchedule(prediction_type="v_prediction"))
    check_schedule(Weights(base=SMALL), NoiseSchedule())
    bad(message, f"--config.weights.base={tmp_path}", "--config.weights.unet=")
    for broken in ("{", "[]"):
        file.write_text(broken)
        with pytest.raises(InputError, match="cannot be read as JSON|holds a JSON list; wanted an object"):
            check_schedule(Weights(base=tmp_path), NoiseSchedule())


def test_the_end_does_not_wait_for_the_hashes():
    lines = "import time", "from i2v_jax.sampling import record", "record.in_background(time.sleep, 300)"
    program = "\n".join((*lines, "raise KeyboardInterrupt"))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in done.stderr
    assert record.in_background(sum, [1, 2]).result() == 3
    with pytest.raises(ZeroDivisionError):
        record.in_background(lambda: 1 / 0).result()


# How bad input ends.


@pytest.mark.parametrize(
    "message, flags",
    [
        ("Unknown config key --config.stepz.*Did you mean '--config.steps'", ["--config.stepz=3"]),
        ("Name what to animate: ", ["--config.image="]),
        ("height=60: wanted a multiple of 8, such as 64", ["--config.height=60"]),
        ("width=0: wanted a multiple of 8, such as 8", ["--config.width=0"]),
        ("frames=25: these motion modules know 1 to 24 frames", ["--config.frames=25"]),
        ("frames=0: wanted 1 or more", ["--config.frames=0"]),
        ("steps", ["--config.steps=0"]),
        ("t0 = 0.0 given; wanted a number in .0, 1.", ["--config.t0=0"]),
        ("t0 = 1.5 given", ["--config.t0=1.5"]),
        ("p=-0.1: wanted a probability", ["--config.p=-0.1"]),
        ("p=nan", ["--config.p=nan"]),
        ("unknown sampler 'dimm'.*Did you mean 'ddim'", ["--config.sampler=dimm"]),
        ("unknown spacing 'trailin'.*Did you mean 'trailing'", ["--config.sampler_options.spacing=trailin"]),
        ("unknown noise schedule 'liner'.*Did you mean 'linear'", ["--config.noise_schedule.kind=liner"]),
        ("dtype='float23'; known: .*Did you mean 'float32'", ["--config.dtype=float23"]),
        ("Unknown attention 'xl'; known: .*Did you mean 'xla'", ["--config.attention=xl"]),
        ("attention='flash' runs on TPUs; this is cpu", ["--config.attention=flash"]),
        ("attention='cudnn' runs on NVIDIA GPUs in bfloat16; this is cpu", ["--config.attention=cudnn"]),
        ("Unknown convolution 'winogrand'.*Did you mean 'winograd'", ["--config.convolution=winogrand"]),
        ("fit='cropp'; known: .*Did you mean 'crop'", ["--config.fit=cropp"]),
        ("seed=-1: a whole number from 0 to 4294967295", ["--config.seed=-1"]),
        ("seed=4294967296", ["--config.seed=4294967296"]),
        ("fps .* is 0, a positive number is wanted", ["--config.fps=0"]),
        ("batch_per_device=0: wanted 1 or more", ["--config.batch_per_device=0"]),
        ("vae_slice=0", ["--config.vae_slice=0"]),
        ("Mesh data=3, fsdp=1, frames=1 does not fit 1 devices", ["--config.mesh.data=3"]),
        ("longer than 77 tokens; these words do not fit: '47 48.*truncate_prompts", [f"--config.prompt={LONG_PROMPT}"]),
        ("these words do not fit: '47 48", [f"--config.negative_prompt={LONG_PROMPT}"]),
        ("No CSV file at 'nowhere.csv'", ["--config.image=", "--config.csv=nowhere.csv"]),
        ("/nowhere/model does not exist", ["--config.weights.base=/nowhere/model"]),
        ("no image encoder or no image projection", ["--config.weights.image_encoder="]),
        ("without motion modules only 1 frame", ["--config.weights.motion="]),
        (
            "Nothing gives the vae, text_encoder, tokenizer: set --config.weights.base",
            ["--config.weights.base=", f"--config.weights.unet={SMALL}"],
        ),
        (
            "prediction_type='v_prediction', but .* 'epsilon', says .*scheduler_config.json. Set --config.noise",
            ["--config.noise_schedule.prediction_type=v_prediction"],
        ),
        (
            "ip_adapter.safetensors holds no motion modules",
            [f"--config.weights.motion={SMALL / 'ip_adapter.safetensors'}"],
        ),
    ],
    ids=lambda value: value[-1].removeprefix("--config.")[:30] if isinstance(value, list) else "",
)
def test_a_bad_flag_ends_well(bad, message, flags):
    bad(message, *flags)


def test_a_bad_picture_ends_well(tmp_path, bad):
    content = CAT.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("a cat")
    (tmp_path / "empty.png").touch()
    (tmp_path / "empty").mkdir()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for name, message in {
        "none.png": "No picture at .*none.png",
        "empty": "empty' holds no pictures",
        "cut.jpg": "cut.jpg' is truncated or broken",
        "text.png": "text.png' is not a picture",
        "empty.png": "empty.png' is not a picture",
        "moving.gif": "moving.gif' holds 2 pictures .animated",
    }.items():
        bad(message, f"--config.image={tmp_path / name}")
    # in a batch the last one counts too, before the first is made
    (tmp_path / "rows.csv").write_text(f"picture,prompt\n{CAT},waves\ncut.jpg,waves\n")
    bad("cut.jpg' is truncated", "--config.image=", f"--config.csv={tmp_path / 'rows.csv'}")
    (tmp_path / "rows.csv").write_text(f"picture,prompt\n{CAT},waves\n{CAT},{LONG_PROMPT}\n")
    bad("these words do not fit", "--config.image=", f"--config.csv={tmp_path / 'rows.csv'}")


def test_nothing_large_is_touched_before_the_prompts_are_checked(tmp_path, bad, monkeypatch):
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(SMALL / name, tmp_path / name)
    base, long = f"--config.weights.base={tmp_path}", f"--config.prompt={LONG_PROMPT}"
    bad("these words do not fit: '47 48", base, long)
    bad("No weights in", base)

    def snapshot_download(repo, allow_patterns):
        raise AssertionError(f"{repo} is fetched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    flags = [f"--config.weights.tokenizer={SMALL / 'tokenizer'}", "--config.weights.base=owner/name"]
    bad("these words do not fit: '47 48", *flags, long)
    monkeypatch.setitem(sys.modules, "torch", None)
    bad(
        "owner/name/mm.ckpt is a PyTorch pickle.*pip install torch",
        *flags[1:],
        "--config.weights.motion=owner/name/mm.ckpt",
    )


def change(source: Path, path: Path, edit) -> Path:
    """Writes a copy of a weights file whose dictionary of tensors `edit` has changed."""
    tensors = {name: np.array(tensor) for name, tensor in open_tensors(source).items()}
    edit(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, Tensors.of(tensors))
    if (source.parent / "config.json").exists():
        shutil.copy(source.parent / "config.json", path.parent)
    return path


def test_bad_weights_end_well(tmp_path, bad):
    source, path = SMALL / "motion.safetensors", tmp_path / "motion.safetensors"
    path.write_bytes(source.read_bytes()[:-1000])
    bad("motion.safetensors is cut short or damaged", f"--config.weights.motion={path}")
    path.write_bytes(source.read_bytes()[:20])
    bad("motion.safetensors is cut short or damaged", f"--config.weights.motion={path}")
    path.write_text("weights")
    bad("neither safetensors nor a PyTorch pickle", f"--config.weights.motion={path}")

    name = next(name for name in open_tensors(source) if name.endswith("to_q.weight"))
    misspelt = name.replace("to_q", "to_qq")
    for edit, message in [
        (lambda tensors: tensors.pop(name), f"1 missing, 0 unexpected.*\n.*missing '{name}'"),
        (lambda tensors: tensors.update({misspelt: tensors[name]}), f"unexpected '{misspelt}'.*Did you mean '{name}'"),
        (
            lambda tensors: tensors.update({name: tensors[name][1:]}),
            rf"'{name}' has shape \[31, 32\], wanted \[32, 32\]",
        ),
    ]:
        bad(message, f"--config.weights.motion={change(source, path, edit)}")
    shutil.copytree(SMALL, tmp_path / "small")
    (tmp_path / "small" / "tokenizer" / "vocab.json").write_text("{")
    bad("tokenizer.*cannot be read", f"--config.weights.base={tmp_path / 'small'}")


@pytest.mark.parametrize(
    "part, tensor, message",
    [
        ("unet", "conv_out.bias", "latents are no longer finite after step 1 of 2"),
        ("vae", "decoder.conv_out.bias", "VAE decodes to numbers that are not finite"),
    ],
)
def test_numbers_that_are_not_finite_end_well(tmp_path, bad, part, tensor, message):
    def edit(tensors):
        tensors[tensor][0] = np.nan

    source = SMALL / part / "diffusion_pytorch_model.safetensors"
    path = change(source, tmp_path / part / source.name, edit)
    bad(message, f"--config.weights.{part}={path}", "--config.guidance_scale=1", "--config.sampler=lcm")


def test_an_output_folder_that_cannot_be_written_ends_well(tmp_path, bad, run, monkeypatch):
    (tmp_path / "file").touch()
    bad("Nothing can be written in .*file': Not a directory", f"--config.output={tmp_path / 'file'}")
    bad("Nothing can be written in .*file/new'", f"--config.output={tmp_path / 'file' / 'new'}")

    # a disk that is full before the run
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        bad("Nothing can be written in .*File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    # and one that fills up during it, at the last of the four files
    left = iter(range(3))

    def sync(file):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(media.os, "fsync", sync)
    bad("No space for [0-9]+ bytes in .*Free some, or write elsewhere")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_ends_well(tmp_path, run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(media, "encode_gif", interrupt)
    code, _, err = run()
    assert code == 130 and err.endswith("interrupted\n")
    assert not (tmp_path / "out").exists()
