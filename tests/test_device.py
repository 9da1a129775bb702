"""`python -m convert device`: every exported network against JAX, the runner's video against sample.py's, bad input."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from jax import export
from PIL import Image

from convert import device
from convert.device import described, networks, onnx_graph, precisions
from convert.device import measured as table
from convert.tables import megabytes
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion import samplers
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.media import fit_picture, load_picture
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.tree import unflatten
from i2v_jax.weights.tensors import Entry, Tensors
from tests import sdxl_models
from tests.conversions import convert
from tests.processes import ROOT
from tests.tiny import SMALL

for library in ("onnx", "onnxruntime", "jax2onnx"):
    pytest.importorskip(library, reason="requirements-test.txt has it; an environment of newer libraries does not")
runner = importlib.import_module("convert.device.runner")  # which wants them

BAR = 1e-4
SEED = 7
CAT = ROOT / "assets" / "cat.jpg"
FLAGS = [f"--config={ROOT / 'tests' / 'configs' / 'sample.py'}", "--config.height=32", "--config.width=48"]
FLAGS += ["--config.frames=3", "--config.steps=4", "--config.p=0.5", f"--config.seed={SEED}", "--config.dtype=float32"]


class Exported(NamedTuple):
    """An export: its folder, the run's flags, and what the command makes of them."""

    folder: Path
    flags: list[str]
    model: Model
    parameters: dict[str, Tensors]
    settings: Settings


def flags_of(family: str) -> list[str]:
    if family == "sd15":  # with noise in each step, and two runs of the decoder
        options = dict(height=64, frames=4, vae_slice=2, guidance_rescale=0.5) | {"sampler_options.eta": 0.5}
        return [*FLAGS, *(f"--config.{name}={value}" for name, value in options.items())]
    weights = dict(motion=sdxl_models.motion(), image_adapter=sdxl_models.image_adapter("plus"), adapter="")
    weights |= dict(base=sdxl_models.folder(), image_encoder=sdxl_models.image_encoder())
    options = ["--config.sampler=euler", "--config.sizes.crop=(3, 5)", "--config.negative_prompt="]
    return [*FLAGS, *options, *(f"--config.weights.{name}={file}" for name, file in weights.items())]


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def exported(request, tmp_path_factory) -> Exported:
    folder, flags = tmp_path_factory.mktemp("device") / "exported", flags_of(request.param)
    kinds = [f"--weights={kind}" for kind in ("int8", "float32")] if request.param == "sdxl" else []
    assert convert("device", folder, "--no-measuring", f"--noise={SEED}", *kinds, *flags) == 0
    config, _ = device.read_config(flags)
    return Exported(folder, flags, *device.assembled(config), Settings.of_config(config))


def test_every_network_is_jax_s_with_every_kind_of_weights(exported, measured):
    for network in networks.of_run(exported.model, exported.settings):
        entries = networks.joined(network, exported.parameters).entries
        every = {path: np.asarray(entry.read(), np.float32) for path, entry in entries.items()}
        call = jax.jit(network.call)
        for kind in json.loads((exported.folder / "run.json").read_text())["weights"]:
            file = exported.folder / kind / f"{network.name}.safetensors"
            weights = table.arrays(file)
            same = {path: np.asarray(precisions.restored(weights, path)) for path in every if path in weights}
            wanted = {name: np.asarray(x) for name, x in call(unflatten(every | same), network.inputs).items()}
            made = {"ONNX": runner.Networks(exported.folder, kind, threads=1)(network.name, **network.inputs)}
            if kind == dict(sd15="int8", sdxl="float32")[exported.model.family.name]:  # these compile longest
                program = export.deserialize(bytearray(file.with_suffix(".stablehlo").read_bytes()))
                made["StableHLO"] = jax.jit(program.call)(weights, network.inputs)
            for name, outputs in made.items():
                assert outputs.keys() == wanted.keys()
                measured(f"exported {network.name}, {kind}: {name} against JAX", table.farthest(outputs, wanted), BAR)


def test_the_runner_s_video_is_sample_s(exported, tmp_path):
    config, job = device.read_config(exported.flags)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    model = Model.load(
        Weights.of_run(config),
        schedule=NoiseSchedule(**config.noise_schedule),
        attention="xla",
        convolution="xla",
        mesh=mesh,
    )
    picture = load_picture(CAT)
    wanted = Pipeline(model, mesh)([picture], [job.prompt], [SEED], [job.negative_prompt], exported.settings)[0]
    files = ["--weights=float32", "--output=video.png"]
    blocked = "import sys; sys.path.insert(0, sys.argv[1]); del sys.argv[1]; import run; run.main(); "
    blocked += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", blocked, exported.folder, CAT, *files]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"jax", "flax", "torch", "i2v_jax", "onnx", "safetensors"} & set(done.stdout.splitlines()[-1].split())
    with Image.open(tmp_path / "video.png") as video:
        made = []
        for number in range(video.n_frames):
            video.seek(number)
            made.append(np.asarray(video.convert("RGB")))
    assert len(made) == exported.settings.frames and np.ptp(wanted) > 50
    assert np.abs(np.int16(made) - wanted).max() <= 1  # a number between two of 8 bits may be rounded to either


@pytest.mark.parametrize("exported", ["sd15"], indirect=True)
def test_other_seeds_and_weights_give_other_videos_and_guidance_and_t0_are_heeded(exported):
    run = json.loads((exported.folder / "run.json").read_text())
    known = dict(prompt=run["prompt"], negative_prompt=run["negative_prompt"], seed=SEED, weights="float32", t0=1.0)
    known |= dict(guidance_scale=run["guidance_scale"], threads=1)
    picture, lines = runner.open_picture(CAT), []

    def video(**changes):
        return runner.animate(exported.folder, picture, **known | changes, report=lines.append)

    first = video()
    assert lines == [f"step {number} of 4" for number in (1, 2, 3, 4)]
    for changes in (dict(seed=3), dict(prompt="a dog"), dict(guidance_scale=9.0), dict(t0=0.5)):
        assert (video(**changes) != first).any(), changes
    assert (video(seed=3) == video(seed=3)).all()
    with pytest.raises(SystemExit, match="leaves no step"):
        video(t0=0.0001)


@pytest.mark.parametrize("exported", ["sd15"], indirect=True)
def test_the_table_tells_sizes_seconds_errors_and_psnr(exported):
    run = json.loads((exported.folder / "run.json").read_text())
    network = networks.of_run(exported.model, exported.settings)[0]
    wanted = table.reference(network, networks.joined(network, exported.parameters))
    rows = [table.row(exported.folder / kind, network, wanted) for kind in run["weights"]]
    assert [row.sizes[0] for row in rows] == sorted([row.sizes[0] for row in rows], reverse=True)
    assert max(rows[0].errors) < BAR < min(rows[2].errors) < 0.1
    shown = table.videos(exported.folder, run, load_picture(CAT))
    assert shown[0].psnr is None and 25 < shown[2].psnr < shown[1].psnr
    page = table.page(rows, shown, run, "a machine")
    assert f"| int8 | {shown[2].seconds:.1f} | {shown[2].psnr:.1f} dB |" in page
    assert f"| int8 | text_encoder | {megabytes(rows[2].sizes[0])} |" in page


@pytest.mark.parametrize("name", [name for name in samplers.SAMPLERS if name != "ldm_ddim"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_table_of_sums_is_the_sampler(name, prediction, measured):
    options = dict(eta=0.5) if name in ("ddim", "tcd") else {}
    schedule = NoiseSchedule("linear", 0.00085, 0.012, prediction_type=prediction)
    sampler = samplers.make(name, schedule, 6, **options)
    steps, rng = described.steps_table(sampler), np.random.default_rng(0)
    state, x, x0 = sampler.init(rng.standard_normal(50)), None, None
    x = np.asarray(state.latents)
    for i in range(6):
        prediction, noise = rng.standard_normal((2, 50), np.float32)
        now, before = {key: values[i] for key, values in steps.items()}, x0
        x0 = now["x0_of_x"] * x + now["x0_of_prediction"] * prediction
        x = now["of_x"] * x + now["of_prediction"] * prediction + now["of_noise"] * noise
        x = x + now["of_previous_x0"] * (x0 if before is None else before)
        state = sampler.step(state, i, prediction, noise)
    measured("a sampler's steps as a table", np.linalg.norm(x - state.latents) / np.linalg.norm(x), 1e-5)


@given(strategies.integers(1, 5), strategies.integers(1, 7), strategies.integers(0, 2**32 - 1), strategies.booleans())
@settings(max_examples=50, deadline=None)
def test_int8_is_as_near_as_its_scale_says(rows, columns, seed, is_table):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((rows, columns)).astype(np.float32) * 10.0 ** rng.integers(-6, 3, columns)
    array[:, 0] *= rng.integers(0, 2)
    path = "a/embedding" if is_table else "a/kernel"
    entries = precisions.stored(Tensors({path: Entry.of(array), "a/bias": Entry.of(array[0])}, "test"), "int8").entries
    weights = {name: entry.read() for name, entry in entries.items()}
    assert weights[path].dtype == np.int8 and weights["a/bias"].dtype == np.float32
    scales = precisions.along(weights[path + precisions.SCALE], 0 if is_table else 1, 2)
    assert (np.abs(np.asarray(precisions.restored(weights, path)) - array) <= 0.5001 * scales).all()
    assert scales.size == (rows if is_table else columns) and (weights[path] >= -127).all()


def test_pictures_and_prompts_are_read_as_sample_reads_them(tmp_path):
    picture = load_picture(CAT)[:301, :202]
    for fit in ("crop", "pad", "stretch"):
        made = runner.fitted(Image.fromarray(picture), 64, 48, fit)
        np.testing.assert_array_equal(np.asarray(made), fit_picture(picture, 48, 64, fit))
    tokenizer = ClipTokenizer.from_folder(SMALL / "tokenizer")
    (tmp_path / "words.json").write_text(tokenizer.library_file(), encoding="utf-8")
    special = {name: tokenizer.vocabulary[f"<|{name}oftext|>"] for name in ("start", "end")}
    kind = special | dict(file="words.json", length=tokenizer.length, pad=tokenizer.vocabulary[tokenizer.pad_token])
    for prompt in ("", "A cat's  <|endoftext|> 12 naïve ねこ", "a cat " * 60):
        ids = runner.token_ids(tmp_path, {"tokens": kind}, prompt)["tokens"]
        np.testing.assert_array_equal(ids, tokenizer.encode_captions([prompt]))


def test_a_product_of_matrices_is_written_as_one():
    from onnx.helper import make_node

    def kinds(equation):
        node = make_node("Einsum", ["a", "b"], ["c"], equation=equation)
        return [made.op_type for made in onnx_graph._product(node, equation)]

    assert kinds("abcd,de->abce") == ["MatMul"]
    assert kinds("bshd,bthd->bhst") == ["Transpose", "Transpose", "MatMul"]
    assert kinds("bhst,bthd->bshd") == ["Transpose", "MatMul", "Transpose"]
    assert kinds("ab,cb->") == kinds("abc,abd->ab") == ["Einsum"]


def refused(folder, *arguments, words):
    with pytest.raises(InputError) as caught:
        convert("device", folder, *arguments)
    assert words in str(caught.value), str(caught.value)
    assert not list(folder.parent.glob(f".{folder.name}*"))


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    for flag, words in (
        ("--config.deep_cache_every=2", "DeepCache"),
        ("--config.windows.length=2", "windows"),
        ("--config.prompt_syntax=weighted", "weighted prompts"),
        ("--config.free_init.iterations=2", "FreeInit"),
        ("--config.height=33", "multiple of 8"),
        ("--config.wieght=3", "Unknown config key"),
        ("--wights=int8", "unrecognized arguments: --wights=int8"),
    ):
        refused(folder, *FLAGS, flag, words=words)
    refused(folder, "--config.prompt", "a cat", words="unrecognized arguments: a cat")
    monkeypatch.setattr(device, "check_space", lambda *_: (_ for _ in ()).throw(InputError("no room")))
    refused(folder, "--no-measuring", *FLAGS, words="no room")
    assert not folder.exists()


@pytest.mark.parametrize("library", ["onnxruntime", "jax2onnx"])
def test_a_missing_library_is_named(library, tmp_path):
    without = "import runpy, sys; sys.modules[sys.argv.pop(1)] = None; runpy.run_module('convert', run_name='__main__')"
    command = [sys.executable, "-c", without, library, "device", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"there is no {library}: `pip install 'i2v-jax[device]'`" in done.stderr


@pytest.mark.parametrize("exported", ["sd15"], indirect=True)
def test_only_an_export_is_replaced(exported, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(exported.folder, folder)
    refused(folder, *exported.flags, words="is there already")
    (folder / "cat.webp").write_text("mine")
    refused(folder, "--overwrite", "--no-measuring", *exported.flags, words="cat.webp")
    assert (folder / "cat.webp").read_text() == "mine" and (folder / "float32" / "unet.onnx").is_file()
