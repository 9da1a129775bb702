"""A LoRA is trained by the command, from pictures; what comes out is a LoRA like any other."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from convert.__main__ import main as convert
from i2v_jax import media
from i2v_jax.data.decoding import BadClip, Cut, read_clip
from i2v_jax.data.small_world import make
from i2v_jax.data.small_world.looks import LOOKS
from i2v_jax.data.sources import open_source
from i2v_jax.errors import InputError
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.low_rank import load_lora, merge_lora
from i2v_jax.weights.new_lora import factor_shapes, merged, with_new_lora
from i2v_jax.weights.tensors import Tensors
from tests import train_runs
from tests.processes import ROOT, environment, run_here

STYLE = dict(
    lora__rank=2,
    train="('.*/lora/.*',)",
    branches="()",
    objective__first_frame="noisy",
    data__frames=1,
    data__workers=0,
    weights__image_adapter="",
    weights__motion="",
    weights__adapter="",
    batch=8,
)


def write_pictures(folder, count=3, suffix=".png"):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}{suffix}")
        (folder / f"{number}.txt").write_text(f"thing number {number}, ink")
    return folder


def kernels(rng):
    shapes = {"unet/a/conv/kernel": (3, 3, 4, 6), "unet/b/to_q/kernel": (5, 4), "unet/b/to_k/kernel": (5, 4)}
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def test_factors_are_merged_as_files_are():
    """By the formula of `weights.loras`, whose equality with PEFT and diffusers other tests show."""
    rng = np.random.default_rng(0)
    whole = kernels(rng)
    shapes = factor_shapes({path: leaf.shape for path, leaf in whole.items()}, ("unet/a/conv", "unet/b/to_q"), 2)
    assert shapes["unet/a/conv/lora/down"] == (3, 3, 4, 2) and shapes["unet/b/to_q/lora/up"] == (2, 4)
    factors = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    base, lora = (
        Tensors.of({path.removeprefix("unet/"): it for path, it in part.items()}) for part in (whole, factors)
    )
    theirs = merge_lora(base, lora, 1.0)
    ours = merged(whole | factors)
    assert ours.keys() == whole.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path.removeprefix("unet/")], rtol=1e-6, atol=1e-6)
    assert not np.array_equal(ours["unet/a/conv/kernel"], whole["unet/a/conv/kernel"])
    np.testing.assert_array_equal(ours["unet/b/to_k/kernel"], whole["unet/b/to_k/kernel"])


def test_gradients_of_factors_are_those_of_the_kernel_by_the_chain_rule():
    rng = np.random.default_rng(1)
    kernel, x, wanted = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4), (7, 5), (7, 4)))
    down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 2), (2, 4)))

    def loss(kernel):
        return jnp.sum(jnp.tanh(x @ kernel) * wanted)

    def of_factors(down, up):
        return loss(merged({"l/kernel": kernel, "l/lora/down": down, "l/lora/up": up})["l/kernel"])

    of_kernel = jax.grad(loss)(kernel + down @ up)
    of_down, of_up = jax.grad(of_factors, (0, 1))(down, up)
    np.testing.assert_allclose(of_down, of_kernel @ up.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_up, down.T @ of_kernel, rtol=1e-4, atol=1e-4)


def test_the_program_is_the_same_in_every_process(tmp_path):
    """The order of layers is not that of a set of texts, which differs from process to process."""
    script = (
        "import jax, numpy as np; from i2v_jax.weights.new_lora import merged;"
        "flat = {f'l{i}/{leaf}': np.ones(s, 'f') for i in range(6) for leaf, s in "
        "(('kernel', (i + 2, 3)), ('lora/down', (i + 2, 1)), ('lora/up', (1, 3)))};"
        "print(jax.jit(merged).lower(flat).as_text())"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment() | {"PYTHONHASHSEED": seed}, capture_output=True
        ).stdout
        for seed in "123"
    }
    assert len(texts) == 1 and b"dot_general" in texts.pop()


def test_muon_takes_factors_for_matrices():
    flat = {path: jnp.ones(shape) for path, shape in (("a/lora/down", (5, 2)), ("a/lora/up", (2, 4)), ("a/bias", (4,)))}
    state = Optimizer(kind="muon").make(10).init(flat)
    text = str(jax.tree.structure(state))
    assert jax.tree.leaves(state) and "MuonState" in text
    updates, _ = Optimizer(kind="muon", learning_rate=1.0, weight_decay=0.0).make(10).update(flat, state, flat)
    singular = np.linalg.svd(updates["a/lora/down"], compute_uv=False)  # made orthogonal, but for what is of rank 1
    assert singular[0] > 0.1


def test_new_factors_change_nothing_and_are_the_same_for_a_seed():
    whole = kernels(np.random.default_rng(0))
    entries = Tensors.of({path.removeprefix("unet/"): leaf for path, leaf in whole.items()})
    base = {"unet": Assembled(None, entries, Tensors.of({}))}

    def begun(seed):
        found = with_new_lora(base, ("unet/.*",), 2, np.random.default_rng(seed))["unet"].parameters
        return {f"unet/{path}": found[path] for path in found}

    one, again, other = begun(0), begun(0), begun(1)
    for path, leaf in merged(one).items():
        np.testing.assert_array_equal(leaf, whole[path])
    assert all(np.array_equal(one[path], again[path]) for path in one)
    down = "unet/a/conv/lora/down"
    assert np.abs(one[down]).max() <= 1 / 6 and not np.array_equal(one[down], other[down])


def test_the_command_trains_one_that_is_sampled_with_and_converted(tmp_path):
    source = write_pictures(tmp_path / "pictures")
    command = train_runs.train(source, tmp_path / "run", **STYLE)
    run_here([*command, "--config.steps=1"])
    first = train_runs.trained(tmp_path / "run")
    assert "from step 1" in run_here([*command, "--config.steps=2"])
    trained = tmp_path / "run" / "trained.safetensors"
    second = load_file(trained)
    assert second and all("/lora/" in path and "/motion/" not in path for path in second)
    assert all(np.any(leaf) for path, leaf in second.items() if path.endswith("attn1/to_v/lora/up"))
    assert any(not np.array_equal(leaf, first[path]) for path, leaf in second.items())

    assert convert(["export", str(trained), str(tmp_path / "kohya.safetensors"), "--to", "kohya"]) == 0
    ours, theirs = (load_lora(path)["unet"].parameters for path in (trained, tmp_path / "kohya.safetensors"))
    for path in ours:
        np.testing.assert_array_equal(np.squeeze(ours[path]), np.squeeze(theirs[path]))

    flags = dict(height=64, width=64, frames=2, steps=1, weights__loras=f"('{trained}=0.8',)")
    flags |= dict(output=tmp_path / "out", compilation_cache=ROOT / ".cache" / "jax")
    run_here(
        ["sample.py", "--config=tests/configs/sample.py"]
        + [f"--config.{key.replace('__', '.')}={it}" for key, it in flags.items()]
    )
    assert (tmp_path / "out" / "cat.mp4").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(lora__rank=-1), "lora.rank=-1: wanted 1 or more; 0 for no LoRA"),
        (dict(lora__layers="('unet/.*/to_qq',)"), "the pattern 'unet/.*/to_qq' matches no layer"),
        (dict(lora__layers="('unet/(',)"), "is not a regular expression"),
        (dict(train="('unet/.*/attn1/to_q/lora/.*',)"), "`train` leaves out unet/.*/lora/"),
        (
            dict(train="('.*/lora/.*', 'unet/conv_out/.*')"),
            "`train` also matches unet/conv_out/bias.*Train one at a time",
        ),
        (dict(lora__layers="('vae/.*',)"), "matches 'vae/.*'; a LoRA is of unet, text_encoder, text_encoder_2"),
        (dict(objective__first_frame="clean"), "Clips of one frame .* objective.first_frame='noisy'"),
        (dict(data__frames=4), "a picture is one frame, 4 are wanted: data.frames=1"),
    ],
)
def test_what_cannot_be_trained_is_said(changes, words, tmp_path, monkeypatch):
    from i2v_jax.cli import train

    source = write_pictures(tmp_path / "pictures")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", train_runs.train(source, tmp_path / "run", **(STYLE | changes), steps=1))
    with pytest.raises(InputError, match=words):
        train.main()


# Pictures as clips.


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_a_picture_is_a_clip_of_one_frame(suffix, tmp_path):
    """Cut and scaled as a video's frame is; its size is told."""
    source = open_source(write_pictures(tmp_path / "pictures", suffix=suffix))
    assert [source.id_of(number) for number in range(len(source))] == ["0", "1", "2"]
    clip = source[1]
    assert clip.caption == "thing number 1, ink"
    frames = read_clip(clip.video, Cut(1, 1, 40, 40), np.random.default_rng(0))
    np.testing.assert_array_equal(frames.video, media.load_picture(clip.video)[None, :, 4:44])
    np.testing.assert_array_equal(frames.sizes, [40, 48, 0, 4, 40, 40])


def test_a_picture_is_seen_as_a_camera_held_it(tmp_path):
    pixels = np.zeros((40, 48, 3), np.uint8)
    pixels[:, :24] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "x").mkdir()
    Image.fromarray(pixels).save(tmp_path / "x" / "a.png", exif=turned)
    frames = read_clip(tmp_path / "x" / "a.png", Cut(1, 1, 48, 40), np.random.default_rng(0))
    assert (frames.video[0, :24] == 255).all() and (frames.video[0, 24:] == 0).all()


def test_pictures_beside_videos_are_no_clips(tmp_path):
    """Such as one small picture of each video."""
    source = write_pictures(tmp_path / "both")
    train_runs.write_clips(tmp_path / "videos", 1)
    (source / "video.mp4").write_bytes((tmp_path / "videos" / "0.mp4").read_bytes())
    (source / "video.txt").write_text("a video")
    both = open_source(source)
    assert [Path(both[number].video).name for number in range(len(both))] == ["0.mp4", "1.mp4", "2.mp4", "video.mp4"]


@pytest.mark.parametrize("content", ["cut", "animated"])
def test_a_picture_that_cannot_be_used_has_a_cause(content, tmp_path):
    file = write_pictures(tmp_path / "x") / "0.png"
    if content == "cut":
        file.write_bytes(file.read_bytes()[:200])
    else:
        frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
        frames[0].save(file, save_all=True, append_images=frames[1:])
    with pytest.raises(BadClip, match="not a picture"):
        read_clip(file, Cut(1, 1, 40, 40), np.random.default_rng(0))


def test_the_small_world_writes_pictures_of_another_look(tmp_path):
    command = [sys.executable, "-m", "i2v_jax.data.small_world", str(tmp_path), "--look=blueprint", "--clips=2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    source = open_source(tmp_path)
    assert [source[number].caption for number in range(2)] == [
        "a blue disc and an orange ring, blueprint",
        "a white ring and a green ring, blueprint",
    ]
    picture = media.load_picture(source[0].video).astype(int)
    plain = make(0, "train", 2).video
    np.testing.assert_array_equal(picture, LOOKS["blueprint"](plain)[0])
    assert (picture[..., 2] > picture[..., 0]).mean() > 0.99 and len(plain) == 2
