"""A MIVA is trained by the command, without captions; gone on with; ends by itself; is sampled with beside another."""

import json
import sys

import numpy as np
import pytest

from i2v_jax.data.clip import Clip
from i2v_jax.data.decoding import BadClip, Cut, Frames
from i2v_jax.data.loader import Reader
from i2v_jax.errors import InputError
from i2v_jax.training.early_stop import BEST, HISTORY, EarlyStop
from i2v_jax.weights.mivas import KEY, read
from tests import train_runs
from tests.processes import ROOT, run_here

MIVA = dict(
    miva__rank=2,
    miva__tokens=77,
    miva__parts="('frames','prompt','motion')",
    train="('unet/.*/miva/.*',)",
    branches="()",
    objective__prompt_dropout=1.0,
    objective__implicit_dropout=0.1,
    weights__image_adapter="",
    batch=8,
)


def test_the_command_trains_one_that_is_sampled_with_beside_another(tmp_path):
    source = train_runs.write_stored(tmp_path / "stored", 10)
    changes = MIVA | dict(held_out__share=0.2, held_out__every_steps=1, held_out__patience=5)
    command = train_runs.train(source, tmp_path / "swing", **changes)
    printed = run_here([*command, "--config.steps=1"])
    assert "% of its UNet, a file of" in printed
    first = train_runs.trained(tmp_path / "swing")
    assert "from step 1" in run_here([*command, "--config.steps=2"])
    second = train_runs.trained(tmp_path / "swing")
    assert second.keys() == first.keys() and all("/miva/" in path for path in second)
    history = dict(json.loads((tmp_path / "swing" / HISTORY).read_text()))
    assert history.keys() == {1, 2}
    file = tmp_path / "swing" / "trained.safetensors"
    miva, _ = read(file)
    assert (miva.name, miva.about["rank"]) == ("swing", 2)
    told = miva.about["trained"]
    assert told["steps"] == min(history, key=history.get) and told["held_out_loss"] == min(history.values())
    assert told["clips"] < 10 and KEY in (tmp_path / "swing" / BEST).read_bytes()[:100_000].decode(errors="ignore")

    other = tmp_path / "other.safetensors"
    other.write_bytes(file.read_bytes())
    flags = dict(height=64, width=64, frames=2, steps=1, mivas=f"('{file}=0.8', '{other}')", prompt="")
    flags |= dict(output=tmp_path / "out", compilation_cache=ROOT / ".cache" / "jax", weights__image_adapter="")
    flags |= dict(weights__adapter="")
    printed = run_here(
        ["sample.py", "--config=tests/configs/sample.py"]
        + [f"--config.{key.replace('__', '.')}={it}" for key, it in flags.items()]
    )
    assert "2 MIVAs: swing x 0.8, swing x 1; " in printed
    record = json.loads((tmp_path / "out" / "cat.json").read_text())
    assert record["config"]["mivas"] == [f"{file}=0.8", str(other)] and str(file) in record["weights"]


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(miva__rank=-1), "miva.rank=-1: wanted 1 or more"),
        (dict(miva__parts="('frame',)"), "wanted one or more of frames, prompt, motion"),
        (dict(held_out__patience=2), "held_out.patience=2 without clips that are held out"),
        (dict(held_out__patience=-1), "held_out.patience=-1: wanted 0"),
        (dict(data__flip=True), "stored latents, which are not mirrored"),
        (dict(objective__implicit_dropout=2.0), "implicit_dropout=2.0: wanted a share"),
    ],
)
def test_what_cannot_be_trained_is_said(changes, words, tmp_path, monkeypatch):
    from i2v_jax.cli import train

    source = train_runs.write_stored(tmp_path / "stored", 3)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", train_runs.train(source, tmp_path / "run", **(MIVA | changes), steps=1))
    with pytest.raises(InputError, match=words):
        train.main()


def test_one_clip_alone_is_not_enough_to_hold_one_back(tmp_path, monkeypatch):
    from i2v_jax.cli import train

    source = train_runs.write_stored(tmp_path / "stored", 1)
    monkeypatch.chdir(ROOT)
    changes = MIVA | dict(held_out__share=0.1)
    monkeypatch.setattr(sys, "argv", train_runs.train(source, tmp_path / "run", **changes, steps=1))
    with pytest.raises(InputError, match="held_out.share=0.1 of one clip: wanted 2 clips or more, or held_out.share=0"):
        train.main()


# Ending by itself.


def measure(stop, losses, start=1):
    kept = []

    def save(path):
        kept.append(path)
        path.write_bytes(b"weights")

    return [stop.measured(step, loss, save, True) for step, loss in enumerate(losses, start)], kept


def test_a_run_ends_when_held_out_clips_no_longer_gain(tmp_path):
    stop = EarlyStop(tmp_path, 2)
    ends, kept = measure(stop, [3.0, 1.0, 2.0, 1.5])
    assert ends == [False, False, False, True] and stop.best == 2 and len(kept) == 2


def test_a_run_that_goes_on_knows_what_it_measured(tmp_path):
    measure(EarlyStop(tmp_path, 2), [3.0, 1.0, 2.0, 1.5])
    again = EarlyStop(tmp_path, 2, step=3)
    assert again.best == 2 and not again.is_over and EarlyStop(tmp_path, 2, step=4).is_over
    assert measure(again, [1.5], start=4)[0] == [True]
    assert EarlyStop(tmp_path, 2).best is None


def test_damaged_measurements_are_refused(tmp_path):
    (tmp_path / HISTORY).write_text("[1]")
    with pytest.raises(InputError, match="held_out.json is damaged"):
        EarlyStop(tmp_path, 2)


# Clips.


def clip(caption=""):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    return Clip("a", caption, lambda cut, rng: Frames(pixels, np.zeros(6, np.float32))), pixels


def test_clips_need_no_captions_where_none_are_wanted():
    given, pixels = clip()
    with pytest.raises(BadClip, match="no caption"):
        Reader(Cut(4, 1, 8, 8), None)(given, np.random.default_rng(0))
    item = Reader(Cut(4, 1, 8, 8), None, no_captions=True)(given, np.random.default_rng(0))
    assert item["caption"] == ""
    np.testing.assert_array_equal(item["video"], pixels)
    item = Reader(Cut(4, 1, 8, 8), None, no_captions=True)(clip("moves left")[0], np.random.default_rng(0))
    assert item["caption"] == ""


def test_every_other_clip_is_mirrored_whole():
    given, pixels = clip("a")
    reader = Reader(Cut(4, 1, 8, 8), None, flip=True)
    found = [reader(given, np.random.default_rng(seed))["video"] for seed in range(20)]
    mirrored = [np.array_equal(video, pixels[:, :, ::-1]) for video in found]
    assert all(flipped or np.array_equal(video, pixels) for flipped, video in zip(mirrored, found))
    assert 4 < sum(mirrored) < 16
