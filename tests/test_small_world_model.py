"""The bundled model of the small world: what its stages train, what is shipped, and that the adapter does its work."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import CACHE
from safetensors.numpy import load_file, save_file

from assets import make_small_world
from i2v_jax import commands, media
from i2v_jax.cli import evaluate
from i2v_jax.data import small_world
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.errors import InputError
from i2v_jax.evaluation import report
from i2v_jax.families.model import Model, assemble_config
from i2v_jax.models.clip import CLIPTextEncoder
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.sampling import jobs, table
from i2v_jax.training import placement, setup
from i2v_jax.tree import flatten, unflatten
from i2v_jax.weights import mivas
from i2v_jax.weights.assemble import load_text_encoder
from i2v_jax.weights.save import save_own

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "small_world"
TRAINED = dict(
    vae={"vae"},
    pictures={"unet"},
    image_tokens={"unet", "image_encoder", "image_proj"},
    lessons={"unet"},
    captions={"unet", "text_encoder"},
    motion={"unet", "text_encoder"},
    adapter={"unet"},
)


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small_world")
    components, tokenizer = make_small_world.initial_model()
    make_small_world.save(folder / "initial", components, tokenizer, np.float32, 1.0)
    return folder / "initial"


@pytest.mark.parametrize("stage", [*TRAINED, "bundled_motion", "bundled_adapter"])
def test_stages_train_what_they_say(stage, initial):
    config = commands.load_config(f"{ROOT}/configs/train/small_world.py:{stage}").copy_and_resolve_references()
    config.weights.base = str(initial)
    for part, path in (("motion", "motion.safetensors"), ("image_adapter", "ip_adapter.safetensors")):
        config.weights[part] = config.weights[part] and str(initial / path)
    config.weights.image_encoder = str(initial / "image_encoder")
    earlier = [Path(path).parent.name for path in config.weights.trained]
    assert earlier == list(itertools.takewhile(lambda it: it != stage, TRAINED))[1:] * (stage in TRAINED)
    stage = stage.removeprefix("bundled_")
    config.weights.trained = ()
    assembled = assemble_config(config, jax.devices()[0])
    chosen = placement.trained_paths(assembled, config.train)
    assert {path.partition("/")[0] for path in chosen} == TRAINED[stage]
    parts = {name for name in ("image_tokens", "motion", "first_frame") if any(f"/{name}/" in path for path in chosen)}
    known = dict(image_tokens={"image_tokens"}, adapter={"first_frame"})
    known |= dict.fromkeys(("lessons", "captions", "motion"), {"image_tokens", "motion"})
    assert parts == known.get(stage, set())
    setup.make(config, {name: it.config for name, it in assembled.items()}, dict(tokens=np.zeros(20, np.int32)))


def test_no_such_loss():
    config = commands.load_config(f"{ROOT}/configs/train/small_world.py:vae")
    config.loss = "reconstructoin"
    with pytest.raises(InputError, match="known: denoising, reconstruction. Did you mean 'reconstruction'"):
        setup.make(config, {}, dict(tokens=np.zeros(20, np.int32)))


def test_captions_fit_and_are_whole_words(initial):
    tokenizer = ClipTokenizer.from_pretrained(str(initial), "tokenizer")
    for split in small_world.CLIPS:
        captions = [small_world.draw(index, split).caption for index in range(200)]
        for caption, ids in zip(captions, tokenizer.encode(captions)):
            words = len(caption.replace(",", " ,").split())
            assert len(ids) == 20 and np.sum(ids != ids[-1]) == 1 + words


def test_a_word_of_motion_changes_what_the_unet_sees_of_a_caption():
    """By more than a fifth on the mean, at first, and by the same whatever is told beside it."""
    components, tokenizer = make_small_world.initial_model()
    encoder = CLIPTextEncoder(make_small_world.text_config(len(tokenizer.vocabulary)))
    told = [
        f"{subject} moves {way}"
        for way in ("left", "right")
        for subject in ("a red disc", "a blue star", "a pink ring")
    ]
    states = encoder.apply({"params": unflatten(components["text_encoder"])}, tokenizer.encode(told)).last_hidden
    left, right = np.asarray(states.mean(1)).reshape(2, 3, -1)
    size = np.sqrt(np.mean((left - right) ** 2, -1))
    assert size.mean() > 0.2 and np.sqrt(np.mean((left - right).mean(0) ** 2)) > 0.9 * size.mean()


def test_stages_are_put_together(tmp_path, monkeypatch):
    """What each stage leaves is in the files of the model, in float16, and a stage that is done is not run again."""
    monkeypatch.setattr(make_small_world, "RUNS", tmp_path / "runs")
    ran = []

    def train(command, **_):
        stage = command[-1].rpartition(":")[2]
        ran.append(stage)
        config = dataclasses.replace(make_small_world.unet_config(), self_attention_branches=("first_frame",))
        unet = make_small_world.initial_weights(parameter_shapes(config), np.random.default_rng(1))
        components, _ = make_small_world.initial_model()
        kinds = dict(image_tokens="image_tokens", adapter="first_frame")
        left = {}
        for name in TRAINED[stage]:
            leaves = unet if name == "unet" else components[name]
            kept = (path for path in leaves if name != "unet" or f"/{kinds.get(stage, '')}" in path)
            left |= {f"{name}/{path}": leaves[path] + np.float32(len(ran) * (leaves[path].ndim == 1)) for path in kept}
        (tmp_path / "runs" / stage).mkdir(parents=True)
        save_file(left, tmp_path / "runs" / stage / "trained.safetensors")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(make_small_world.subprocess, "run", train)
    monkeypatch.setattr(sys, "argv", ["make_small_world", f"--to={tmp_path / 'model'}"])
    monkeypatch.setattr(make_small_world, "APART", 0)  # what this trains is not words
    make_small_world.main()
    with pytest.raises(InputError, match="model: it is there already; wanted the path of a new folder"):
        make_small_world.main()
    (tmp_path / "model").rename(tmp_path / "first")
    monkeypatch.setattr(make_small_world, "initial_model", lambda: pytest.fail("begun anew"))
    make_small_world.main()
    assert ran == list(TRAINED)
    model = tmp_path / "model"
    known, learned = ((it / "tokenizer" / "vocab.json").read_bytes() for it in (model, tmp_path / "runs" / "initial"))
    assert known == learned
    embedding = load_file(model / "text_encoder" / "model.safetensors")["text_model.embeddings.token_embedding.weight"]
    config = json.loads((model / "text_encoder" / "config.json").read_text())
    assert len(json.loads(known)) == len(embedding) == config["vocab_size"]
    vae = json.loads((model / "vae" / "config.json").read_text())
    base = json.loads((tmp_path / "runs" / "base" / "vae" / "config.json").read_text())
    assert vae["scaling_factor"] == base["scaling_factor"] != 1
    bias = {
        "vae/diffusion_pytorch_model": ("encoder.conv_in.bias", 1),
        "unet/diffusion_pytorch_model": ("conv_in.bias", 6),
        "text_encoder/model": ("text_model.final_layer_norm.bias", 6),
        "image_encoder/model": ("vision_model.post_layernorm.bias", 3),
    }
    for file, (name, value) in bias.items():
        leaf = load_file(model / f"{file}.safetensors")[name]
        assert leaf.dtype == np.float16 and (leaf == value).all()
    motion, adapter = (load_file(model / f"{name}.safetensors") for name in ("motion", "i2v_adapter"))
    assert all((leaf == 6).all() for name, leaf in motion.items() if name.endswith("proj_out.bias"))
    assert len(motion) > 100
    biases = [leaf for leaf in adapter.values() if leaf.ndim == 1]
    assert len(biases) > 5 and all((leaf == 7).all() for leaf in biases)


def test_a_stage_that_fails_ends_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(make_small_world, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(make_small_world.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    monkeypatch.setattr(sys, "argv", ["make_small_world", f"--to={tmp_path / 'model'}"])
    with pytest.raises(SystemExit) as ended:
        make_small_world.main()
    assert ended.value.code == 2 and not (tmp_path / "model").exists()


def test_a_stage_that_makes_two_motions_one_ends_the_command(tmp_path, monkeypatch):
    """With the bundled model as it was, and before later stages train for hours."""
    monkeypatch.setattr(make_small_world, "RUNS", tmp_path / "runs")
    components, tokenizer = make_small_world.initial_model()
    words = tokenizer.encode(["left right"])[0][1:3]
    embedding = components["text_encoder"]["token_embedding/embedding"].copy()
    embedding[words[0]] = 0.99 * embedding[words[1]]
    (tmp_path / "runs" / "vae").mkdir(parents=True)
    save_file({"text_encoder/token_embedding/embedding": embedding}, tmp_path / "runs" / "vae" / "trained.safetensors")
    monkeypatch.setattr(make_small_world.subprocess, "run", lambda *_, **__: pytest.fail("went on"))
    monkeypatch.setattr(sys, "argv", ["make_small_world", f"--to={tmp_path / 'model'}"])
    with pytest.raises(InputError, match="'the camera pans left' and 'the camera pans right' for one"):
        make_small_world.main()
    assert not (tmp_path / "model").exists()


def test_trained_weights_are_put_into_the_bundled_model(tmp_path, monkeypatch):
    """Those in the place of its own; all else stays to the last bit."""
    adapter = "unet/down_blocks_0/layers_0/attention/blocks_0/attn1/first_frame/to_out/bias"
    trained = {"unet/conv_in/kernel": np.full((3, 3, 4, 64), 2, np.float32), adapter: np.full(64, 3, np.float32)}
    save_own(tmp_path / "trained.safetensors", unflatten(trained))
    arguments = ["make_small_world", f"--to={tmp_path / 'model'}", "--trained"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "missing.safetensors")])
    with pytest.raises(InputError, match="missing.safetensors"):
        make_small_world.main()
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "trained.safetensors")])
    make_small_world.main()
    changed = {}
    for path in MODEL.rglob("*"):
        made = tmp_path / "model" / path.relative_to(MODEL)
        if path.suffix == ".safetensors":
            was, now = load_file(path), load_file(made)
            assert was.keys() == now.keys()
            changed |= {name: now[name].ravel()[0] for name in was if not np.array_equal(was[name], now[name])}
        elif path.is_file():
            assert made.read_bytes() == path.read_bytes()
    assert len(changed) == 2 and changed["conv_in.weight"] == 2
    assert next(value for name, value in changed.items() if name.endswith("to_out_ff.bias")) == 3


def test_bundled_files_are_small():
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= 20e6


def test_bundled_pictures_are_held_out_ones():
    bundled = jobs.read_jobs(MODEL / "pictures" / "clips.csv")
    assert [int(job.picture.stem) for job in bundled] == list(make_small_world.PICTURES)
    for job in bundled:
        clip = small_world.make(int(job.picture.stem), "held_out", frames=2, size=make_small_world.SIZE)
        assert job.prompt == clip.caption and np.array_equal(media.load_picture(job.picture), clip.video[0])


def test_bundled_weights_are_those_of_the_configs():
    """The files beside each other make the UNet that the stages train, with every branch."""
    config = commands.load_config(ROOT / "configs" / "sample" / "default.py")
    model = Model.of_config(config, make_mesh({}, jax.devices()[:1]))
    assert model.configs["unet"].self_attention_branches == ("first_frame",)
    ours = parameter_shapes(make_small_world.unet_config())
    paths = parameter_shapes(model.configs["unet"])
    assert ours.keys() == {path for path in paths if "/first_frame/" not in path}
    assert model.configs["vae"].scaling_factor not in (1.0, 0.18215)


def test_the_text_encoder_tells_all_motions_apart():
    """And did at first. Motions that it has made one, no later stage can learn apart."""
    components, tokenizer = make_small_world.initial_model()
    assert make_small_world.least_apart(components["text_encoder"], tokenizer)[0] > 0.2
    config, weights = load_text_encoder(str(MODEL))
    tokenizer = ClipTokenizer.from_pretrained(MODEL, "tokenizer")
    trained = flatten(jax.tree.map(np.array, weights))
    share, *pair = make_small_world.least_apart(trained, tokenizer)
    assert share > 0.3, (share, pair)
    same, other = (tokenizer.encode([f"rotates {word}"])[0][2] for word in ("clockwise", "counterclockwise"))
    trained["token_embedding/embedding"][other] = trained["token_embedding/embedding"][same]
    assert make_small_world.least_apart(trained, tokenizer) == (0, "rotates clockwise", "rotates counterclockwise")


def test_the_parts_do_what_the_paper_says(tmp_path, monkeypatch):
    """Tables 2 and 3 on a few held-out clips, by intervals of differences clip by clip.

    With the adapter, frames are nearer to the true clip than with tokens alone; with tokens, they are more like the
    first one to CLIP; from a smaller t0, they move less.
    """
    monkeypatch.setattr(evaluate, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1]))
    runs = "('no adapter: adapter_scale=0', 'no tokens: image_token_scale=0', 'calm: t0=0.6', 'full:')"
    values = dict(
        first_clip=0, clips=8, steps=5, batch_per_device=8, output=tmp_path, compilation_cache=CACHE, runs=runs
    )
    values |= dict(convolution="xla")  # which runs as fast where programs are compiled quickly
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags])
    evaluate.main()
    record = json.loads((tmp_path / "design.json").read_text())
    no_adapter, no_tokens, calm, full, true, _ = (run["clips"] for run in record["runs"])
    for other, metric, sign in (
        (no_adapter, "psnr", 1),
        (no_adapter, "ssim", 1),
        (no_adapter, "background_drift", -1),
        (no_tokens, "clip_temp", 1),
        (calm, "flow_score", 1),
    ):
        assert report.summarise(sign * np.subtract(full[metric], other[metric])).low > 0, metric
    assert np.mean(full["psnr"]) > 22
    assert np.mean(full["rendered_direction"]) >= 0.8
    assert np.mean(true["direction"]) == 1


@pytest.mark.parametrize("motions", ["swing", "bounce", "sway", "swing+sway"])
def test_the_bundled_mivas_are_put_together(motions):
    """Those of `make sample`: each of its own motion, together at most 3 MB, with pictures."""
    config = commands.load_config(f"{ROOT}/configs/sample/miva.py:{motions}")
    read = [mivas.read(file)[0] for file in config.mivas]
    assert [miva.name for miva in read] == motions.split("+")
    assert sum(path.stat().st_size for path in (ROOT / "assets" / "mivas").glob("*.safetensors")) <= 3e6
    assert len(table.read(config.csv, {})) == 2
