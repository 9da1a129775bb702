"""Stored clips: training on them is training on the videos; a pass that is cut off loses and repeats nothing."""

import dataclasses
import math
import signal
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2v_jax import tree
from i2v_jax.data import loader, stored
from i2v_jax.data.clip import Clip
from i2v_jax.data.decoding import BadClip
from i2v_jax.data.sources import open_source
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.encoders import image_tokens
from i2v_jax.errors import InputError
from i2v_jax.models import clip, image_projection, motion, unet, vae
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.training import store
from i2v_jax.training.objective import Loss, Objective
from tests import clips, processes
from tests.helpers import relative_error

CUT = dict(frames=4, stride=1, height=32, width=32)
CONFIG = dict(source="", videos=None, **CUT, workers=0, buffer=2, max_bad=0.5, bad_list="")
TINY = Path(__file__).parents[1] / "tests" / "configs" / "train.py"
ABOUT = dict(cut=CUT, arrays=["text", "image_tokens"], hosts=1)

CONFIGS = dict(
    unet=dataclasses.replace(
        unet.TINY,
        motion=dataclasses.replace(motion.V1, norm_groups=8, num_heads=2),
        cross_attention_dim=clip.TINY_TEXT.width,
        cross_attention_branches=("image_tokens",),
    ),
    vae=vae.TINY_VAE,
    text_encoder=clip.TINY_TEXT,
    image_encoder=clip.TINY_VISION,
    image_proj=dataclasses.replace(
        image_projection.TINY_RESAMPLER,
        embed_dim=clip.TINY_VISION.width,
        cross_attention_dim=clip.TINY_TEXT.width,
    ),
)


def random_weights(configs=CONFIGS):
    """Weights that keep the size of what goes through them, so that every input matters to the output."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        drawn = rng.normal(0, max(1, math.prod(leaf.shape[:-1])) ** -0.5, leaf.shape)
        return (drawn + path.endswith("/scale")).astype(np.float32)

    return {
        name: tree.unflatten({path: draw(path, leaf) for path, leaf in parameter_shapes(config).items()})
        for name, config in configs.items()
    }


def letters(captions):
    ids = np.zeros((len(captions), clip.TINY_TEXT.max_positions), np.int32)
    ids[:, :9] = [[ord(letter) for letter in caption] for caption in captions]
    return ids


def test_loss_on_stored_clips_is_that_on_videos(tmp_path, measured):
    for i in range(4):
        (tmp_path / f"clip{i}.mp4").write_bytes(clips.encode(clips.noise(5, seed=i) // 4 + 60 * np.uint8(i)))
        (tmp_path / f"clip{i}.txt").write_text("abcd"[i] * 9)
    weights = random_weights()
    make = dict(seed=0, wanted=("text", "image_tokens"), image_size=clip.TINY_VISION.image_size)
    make["tokenize"] = lambda captions: {"tokens": letters(captions)}
    videos = loader.make(CONFIG | dict(source=str(tmp_path)), 4, **make)
    encoders = store.Encoders(CONFIGS, weights, vae_slice=2)
    writer = stored.Writer(tmp_path / "stored", 0, ABOUT)
    empty = encoders.empty(dict(tokens=letters([" " * 9])))
    writer.write_empty(**empty)
    store.store(videos, encoders, writer, epochs=1)
    found = stored.read_empty(tmp_path / "stored")
    assert found.keys() == empty.keys() and all((found[name] == empty[name].astype(np.float16)).all() for name in empty)

    batch, ids = next(loader.make(CONFIG | dict(source=str(tmp_path)), 4, **make))
    source = open_source(tmp_path / "stored")
    records = {record["id"]: record for record in (source[i] for i in range(4))}
    from_store, stored_ids = next(loader.make(CONFIG | dict(source=str(tmp_path / "stored")), 4, **make))
    assert from_store.keys() == {"latents", "text", "image_tokens"} and set(ids) == set(stored_ids) == records.keys()
    rows = [stored_ids.index(name) for name in ids]
    mean, std = (np.stack([records[name][key] for name in ids]).astype(np.float32) for key in ("mean", "std"))
    from_store = {key: array[rows] for key, array in from_store.items()}
    posterior = (from_store["latents"] - mean) / std
    assert abs(posterior.mean()) < 0.1 and abs(posterior.std() - 1) < 0.1

    schedule, objective = ANIMATEDIFF_SD15, Objective(prompt_dropout=0.25, joint_dropout=0.25)
    seen = []
    for given, nothing in ((batch, dict(tokens=letters([" " * 9])[0])), (from_store, empty)):
        loss = Loss(CONFIGS, schedule, objective, nothing)
        draws = loss.draw(jax.random.key(6), given)._replace(posterior=posterior)
        assert 0 < draws.drop.sum() < 4 and 0 < draws.drop_both.sum() < 4
        seen.append(jax.jit(loss.__call__)(weights, given, draws)[1])
    for name in ("noisy", "prediction", "each"):
        measured(f"{name}, of stored clips against videos", relative_error(seen[1][name], seen[0][name]), 1e-3)


@pytest.mark.parametrize("reads", ["penultimate", "image_embeds"])
@pytest.mark.parametrize("from_store", [False, True], ids=["videos", "stored"])
def test_joint_dropout_gives_what_guidance_leads_away_from(reads, from_store):
    """A dropped clip has the loss of one with the empty prompt and the sampler's unconditional image tokens."""
    configs = dict(CONFIGS)
    if reads == "image_embeds":
        vision = clip.TINY_VISION
        configs["image_proj"] = image_projection.ImageProjectionConfig(vision.projection_dim, 4, clip.TINY_TEXT.width)
    weights = random_weights(configs)
    tokens = np.repeat(image_tokens.encode_unconditional(configs, weights), 2, axis=0)
    rng, size = np.random.default_rng(0), clip.TINY_VISION.image_size
    latent = dict(latents=rng.normal(size=(2, 4, 8, 8, 4)).astype(np.float32))
    encoders, prompts = store.Encoders(configs, weights), letters(["a" * 9, "b" * 9])
    empty = encoders.empty(dict(tokens=letters([" " * 9])))
    np.testing.assert_allclose(empty["image_tokens"], tokens[0], rtol=1e-5, atol=1e-5)
    batch = latent | dict(tokens=prompts, pixels=rng.normal(size=(2, size, size, 3)).astype(np.float32))
    nothing = dict(tokens=letters([" " * 9])[0])
    given = batch
    if from_store:
        seen = encoders(batch | dict(video=np.zeros((2, 1, 32, 32, 3), np.uint8)))
        given = latent | {name: seen[name] for name in ("text", "image_tokens")}
        nothing = empty
    loss = Loss(configs, ANIMATEDIFF_SD15, Objective(joint_dropout=0.5), nothing)
    draws = loss.draw(jax.random.key(0), batch)._replace(drop=np.zeros(2, bool), drop_both=np.array([True, False]))
    unconditional = latent | dict(tokens=letters([" " * 9] * 2), image_tokens=np.asarray(tokens))
    run = jax.jit(loss.__call__)
    each = run(weights, given, draws)[1]["each"]
    kept = run(weights, given, draws._replace(drop_both=np.zeros(2, bool)))[1]["each"]
    plain = dataclasses.replace(loss, objective=Objective(), empty=dict(tokens=letters([" " * 9])[0]))
    wanted = jax.jit(plain.__call__)(weights, unconditional, draws)[1]["each"]
    np.testing.assert_allclose(each, [wanted[0], kept[1]], rtol=1e-5)
    without_prompt = draws._replace(drop=draws.drop_both, drop_both=np.zeros(2, bool))
    for other in (kept, run(weights, given, without_prompt)[1]["each"]):
        assert abs(other[0] / wanted[0] - 1) > 1e-4


def test_stored_without_a_zero_pictures_tokens():
    loss = Loss(CONFIGS, ANIMATEDIFF_SD15, Objective(joint_dropout=0.1), dict(text=np.zeros((77, 32), np.float32)))
    batch = dict(latents=jnp.zeros((2, 4, 8, 8, 4)), text=jnp.zeros((2, 77, 32)), image_tokens=jnp.zeros((2, 16, 32)))
    with pytest.raises(InputError, match="Store them again"):
        jax.eval_shape(loss.__call__, random_weights(), batch, loss.draw(jax.random.key(0), batch))


class Toys:
    """A source of numbers."""

    def __len__(self):
        return 10

    def __getitem__(self, number):
        return Clip(str(number), "", b"")


def number_of(item, rng):
    if item.id in "37":
        raise BadClip("frozen")
    return {"video": np.full(3, int(item.id))}


def encode(batch):
    return {name: batch["video"].astype(np.float32) for name in ("mean", "std", "text")}


def stop_at(calls):
    def run(batch, left=[calls]):  # noqa: B006 (counts down)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return encode(batch)

    return run


@pytest.mark.parametrize("hosts", [1, 2])
def test_pass_that_is_cut_off_goes_on(tmp_path, monkeypatch, hosts):
    monkeypatch.setattr(store, "PART", 4)
    about = ABOUT | dict(hosts=hosts)

    def run(host, encode):
        source = loader.Loader(Toys(), number_of, 2, seed=1, host=host, hosts=hosts)
        store.store(source, encode, stored.Writer(tmp_path, host, about), epochs=3)

    for host in range(hosts):
        for calls in (1, 4, 2):
            with pytest.raises(KeyboardInterrupt):
                run(host, stop_at(calls))
            with pytest.raises(InputError, match=f"has not ended on host {host}"):
                open_source(tmp_path)
        run(host, encode)
        run(host, stop_at(1))  # nothing is left to do
    source = open_source(tmp_path)
    seen = Counter(source[i]["id"] for i in range(len(source)))
    assert seen == {str(number): 3 for number in range(10) if number not in (3, 7)}
    assert all((source[i]["mean"] == int(source[i]["id"])).all() for i in range(len(source)))


def test_stored_clips_in_worker_processes(tmp_path):
    store.store(loader.Loader(Toys(), number_of, 2, seed=1), encode, stored.Writer(tmp_path, 0, ABOUT), epochs=1)
    alone, helped = (
        loader.Loader(open_source(tmp_path), stored.StoredReader(("text",)), 4, seed=2, workers=workers)
        for workers in (0, 2)
    )
    for _ in range(3):
        (wanted, wanted_ids), (batch, ids) = next(alone), next(helped)
        assert ids == wanted_ids and all((batch[name] == wanted[name]).all() for name in wanted)
    helped.close()


def test_errors(tmp_path):
    make = dict(seed=0, wanted=("text", "image_tokens"))
    store.store(loader.Loader(Toys(), number_of, 2, seed=1), encode, stored.Writer(tmp_path, 0, ABOUT), epochs=1)
    with pytest.raises(InputError, match="data.height=64, but the clips .* height=32"):
        loader.make(CONFIG | dict(source=str(tmp_path), height=64), 2, **make)
    with pytest.raises(InputError, match="stored with another hosts"):
        stored.Writer(tmp_path, 0, ABOUT | dict(hosts=2))
    (tmp_path / "clips-00000-00000.array_record").unlink()
    with pytest.raises(InputError, match="does not hold whole stored clips"):
        open_source(tmp_path)
    other = tmp_path / "other"
    stored.Writer(other, 0, ABOUT | dict(arrays=["text"])).write([("1", encode({"video": np.ones(3)}))], {}, True)
    with pytest.raises(InputError, match="wants image_tokens .* holds none, only text.* weights.image_adapter"):
        loader.make(CONFIG | dict(source=str(other)), 2, **make)


def write(folder, about=ABOUT, **arrays):
    """Stores one clip."""
    writer = stored.Writer(folder, 0, about)
    arrays = dict(mean=np.zeros(3), std=np.zeros(3), text=np.full(3, 7.0)) | arrays
    writer.write([("1", stored.narrow(arrays))], {}, True)
    return open_source(folder)


def test_a_batch_has_the_stored_arrays_that_are_wanted(tmp_path):
    """Sizes are exact: float16 has no 4097."""
    sizes, pooled = np.float32([4097, 2161, 236, 0, 256, 384]), np.full(5, 1 / 3)
    source = write(tmp_path, ABOUT | dict(arrays=["text", "pooled", "sizes"]), pooled=pooled, sizes=sizes)
    make = dict(config=CONFIG | dict(source=str(tmp_path)), batch_size=1, seed=0)
    batch, _ = next(loader.make(**make, wanted=("sizes", "pooled")))
    assert batch.keys() == {"latents", "sizes", "pooled"} and all(array.dtype == np.float32 for array in batch.values())
    assert batch["sizes"].tolist() == [sizes.tolist()]
    assert batch["pooled"].tolist() == [pooled.astype(np.float16).tolist()] and source[0]["pooled"].dtype == np.float16
    assert next(loader.make(**make))[0].keys() == {"latents", "text"}
    with pytest.raises(InputError, match="wants image_tokens .* holds none, only text, pooled, sizes"):
        loader.make(**make, wanted=("text", "image_tokens"))


@pytest.mark.parametrize("tokens", [False, True])
def test_clips_stored_by_earlier_versions_are_read(tmp_path, tokens):
    """They say whether there are image tokens, not which arrays there are."""
    source = write(tmp_path, dict(cut=CUT, image_tokens=tokens, hosts=1), image_tokens=np.ones(2))
    assert source.arrays == ["text", "image_tokens"][: 1 + tokens]
    wanted = dict(config=CONFIG | dict(source=str(tmp_path)), batch_size=1, seed=0, wanted=source.arrays)
    assert next(loader.make(**wanted))[0].keys() == {"latents", *source.arrays}
    with pytest.raises(InputError, match="wants sizes"):
        loader.make(**wanted | dict(wanted=("text", "sizes")))


def test_the_same_command_goes_on_in_its_folder(tmp_path):
    """JSON has lists for tuples; and an earlier version may have said less."""
    about = ABOUT | dict(weights=dict(base="a", trained=("b", "c")))
    assert not stored.Writer(tmp_path, 0, about).progress["done"]
    write(tmp_path, about)
    assert stored.Writer(tmp_path, 0, about).progress["done"]
    later = about | dict(family="sd15", weights=about["weights"] | dict(text_encoder_2=""))
    assert stored.Writer(tmp_path, 0, later).progress["done"]
    for change, name in (
        (dict(weights=dict(base="a", trained=("b",))), 'weights.trained (["b", "c"] there, ["b"] here)'),
        (dict(arrays=["text"]), 'arrays (["text", "image_tokens"] there, ["text"] here)'),
        (dict(cut=CUT | dict(height=64), hosts=2), "cut.height (32 there, 64 here), hosts (1 there, 2 here)"),
    ):
        with pytest.raises(InputError, match="Give another folder") as refused:
            stored.Writer(tmp_path, 0, about | change)
        assert f"stored with another {name}. Give" in str(refused.value)
    before = tmp_path / "before"
    stored.Writer(before, 0, dict(cut=CUT, image_tokens=True, hosts=1))
    stored.Writer(before, 0, about)
    with pytest.raises(InputError, match="another arrays"):
        stored.Writer(before, 0, about | dict(arrays=["text"]))


SHIPPED = "configs/train/sd15_stage1.py"
SIZE = {"frames": 2, "stride": 1, "height": 16, "width": 16}


def write_videos(folder, count):
    for i in range(count):
        (folder / f"clip{i}.mp4").write_bytes(clips.encode(clips.noise(4, seed=i)))
        (folder / f"clip{i}.txt").write_text("a clip")
    return folder


def command(videos, output, *flags, epochs=2, **changes):
    """The command with the shipped config and the tests' small weights."""
    small = Path("tests/data/small")
    settings = {f"data.{key}": value for key, value in SIZE.items()} | {
        "data.source": videos,
        "data.workers": 0,
        "weights.base": small,
        "weights.motion": small / "motion.safetensors",
        "weights.image_adapter": small / "ip_adapter.safetensors",
        "weights.image_encoder": small / "image_encoder",
        "compilation_cache": processes.ROOT / ".cache" / "jax",
        "batch": 2,
    }
    given = [f"--config.{key}={value}" for key, value in (settings | changes).items()]
    name = ["-m", "i2v_jax.training.store"]
    return [*name, f"--output={output}", f"--epochs={epochs}", f"--config={SHIPPED}", *given, *flags]


def stored_ids(folder):
    source = open_source(folder)
    return sorted(source[i]["id"] for i in range(len(source)))


def test_the_command_again_goes_on_stopped_or_finished(tmp_path):
    """With the shipped config. Ctrl-C stores what is encoded; a kill loses the part that was begun."""
    videos = write_videos(tmp_path, 3)
    again = command(videos, tmp_path / "stored", epochs=100)
    for signal_sent, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = processes.start(again)
        assert processes.wait_for(process, "clip/s]", 3)
        process.send_signal(signal_sent)
        output = processes.finish(process, code)
        assert "Traceback" not in output
        assert ("the same command goes on from there" in output) == (signal_sent != signal.SIGKILL)
        with pytest.raises(InputError, match="has not ended on host 0"):
            open_source(tmp_path / "stored")
    processes.finish(processes.start(again))
    assert stored_ids(tmp_path / "stored") == sorted(100 * [f"clip{i}" for i in range(3)])
    files = [file for file in (tmp_path / "stored").iterdir() if "lock" not in file.name]
    before = [file.stat().st_mtime_ns for file in files]
    assert f"stored in {tmp_path / 'stored'}" in processes.finish(processes.start(again))
    assert before == [file.stat().st_mtime_ns for file in files]
    batch, _ = next(
        loader.make(CONFIG | SIZE | dict(source=str(tmp_path / "stored")), 6, seed=0, wanted=("text", "image_tokens"))
    )
    assert batch["latents"].shape == (6, 2, 2, 2, 4) and batch["text"].shape[:2] == (6, 77)


def test_hosts_store_their_shares_in_any_order(tmp_path):
    """The second one first and to its end, in a folder that the first one then finds."""
    videos, output = write_videos(tmp_path, 5), tmp_path / "stored"

    def run(host, code=0, **changes):
        flags = {"distributed.mode": "flags", "distributed.processes": 2, "distributed.process": host}
        return processes.finish(processes.start(command(videos, output, **(flags | changes))), code)

    assert "host 0 of 2 still to come: the same command there" in run(1)
    with pytest.raises(InputError, match="has not ended on host 0"):
        open_source(output)
    assert "stored with another batch (1 there, 2 here)" in run(0, 2, batch=4)
    assert "still to come" not in run(0)
    assert stored_ids(output) == sorted(2 * [f"clip{i}" for i in range(5)])


def test_which_host_this_is():
    flags = dict(mode="flags", coordinator=None, processes=4, process=3)
    assert store.which_host(flags) == (3, 4)
    for change in (dict(process=4), dict(process=None), dict(processes=None)):
        with pytest.raises(InputError, match="wanted how many hosts store, and which of them this is"):
            store.which_host(flags | change)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "Wanted: --output=FOLDER"),
        (["--output=x", "--epochs=0"], "--epochs of 1 or more"),
        (["--output=x", "--config.data.source={stored}"], "holds stored clips already"),
        (["--output=gs://bucket/x"], "'gs://bucket/x' is an address"),
        (["--output=x", "--config.train=('vae/.*',)"], "'vae/.*' is to be trained"),
        (["--output=x", "--confg=y"], "Unknown flag --confg"),
    ],
)
def test_commands_that_make_no_sense(tmp_path, monkeypatch, flags, message):
    store.store(loader.Loader(Toys(), number_of, 2, seed=1), encode, stored.Writer(tmp_path, 0, ABOUT), epochs=1)
    monkeypatch.setattr(sys, "argv", ["store", f"--config={TINY}", *(flag.format(stored=tmp_path) for flag in flags)])
    monkeypatch.setattr(store.jax.config, "update", lambda *_: None)  # the tests' own cache stays
    with pytest.raises(InputError, match=message):
        store.main()


def test_every_encoder_is_frozen_where_clips_are_stored():
    stored.check_frozen(["unet/conv_in/kernel"])
    for name in ("vae", "text_encoder", "text_encoder_2", "image_encoder", "image_proj"):
        with pytest.raises(InputError, match=f"'{name}/x/kernel' is to be trained"):
            stored.check_frozen([f"{name}/x/kernel"])
