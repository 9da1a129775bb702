"""`evaluate.py` with `metrics`: runs x metrics x set in all formats, begun again, with weights or videos missing."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CACHE
from PIL import Image

from i2v_jax import commands, media
from i2v_jax.cli import animate_set, evaluate, evaluate_set
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.errors import InputError
from i2v_jax.evaluation import measures, runs

make_mesh = make_mesh
SUFFIXES = evaluate_set.SUFFIXES


def command(monkeypatch, folder, *arguments):
    monkeypatch.setattr(evaluate_set, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1]))
    config = Path(__file__).parent / "configs" / "evaluate.py"
    common = dict(output=folder, name="t", compilation_cache=CACHE)
    flags = [f"--config.{key}={value}" for key, value in common.items()]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"--config={config}", *flags, *arguments])
    evaluate.main()


def folder_of_videos(folder, names, shift=0):
    rng = np.random.default_rng(0)
    for name in names:
        frames = rng.integers(0, 200, (3, 32, 32, 3), np.uint8) + np.uint8(shift)
        media.write_video(folder / f"{name}.mp4", frames, 8)
    return folder


def test_folders_of_videos_are_compared_with_their_truths(tmp_path, monkeypatch, capsys):
    truths = folder_of_videos(tmp_path / "truths", "abc")
    near, far = (folder_of_videos(tmp_path / str(shift), "abc", shift) for shift in (5, 40))
    (far / "c.mp4").write_bytes(b"no video")
    arguments = (
        f"--config.runs=('near: videos={near}', 'far: videos={far}')",
        "--config.metrics=('psnr', 'temporal_flickering', 'clip_temp', 'raft_flow_score')",
        "--config.set=videos",
        f"--config.truths={truths}",
    )
    command(monkeypatch, tmp_path / "out", *arguments)
    said = capsys.readouterr().out
    assert re.search(r"not measured: CLIPTemp, for want of CLIP ViT-B/32.*metric_weights.clip=FILE", said)
    assert "not measured: FlowScore, for want of RAFT" in said
    assert re.search(r"far: 1 not measured: not a video", said)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == sorted(["t.jsonl", *(f"t{suffix}" for suffix in SUFFIXES)])
    text = (tmp_path / "out" / "t.md").read_text()
    assert "| Model Design | PSNR ↑ | Temporal flickering ↑ |" in text and "| far − near |" in text and text in said
    values = json.loads((tmp_path / "out" / "t.json").read_text())
    first, second = values["runs"]
    assert first["labels"] == {"Model Design": "near"} and min(first["clips"]["psnr"]) > max(
        second["clips"]["psnr"][:2]
    )
    assert second["clips"]["psnr"][2] is None and values["not_measured"]["far"] == {"not a video": 1}

    # begun again from the record: nothing is measured, the table is the same
    monkeypatch.setattr(measures.METRICS["psnr"].__class__, "lacks", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"--config={tmp_path / 'out' / 't.json'}"])
    evaluate.main()
    assert (tmp_path / "out" / "t-2.md").read_bytes() == (tmp_path / "out" / "t.md").read_bytes()


class FakePipeline:
    """In the place of a model: the picture drifts by the strength, the prompt and the seed."""

    calls = []

    def __init__(self, model, mesh):
        self.model = model

    def __call__(self, pictures, prompts, seeds, negative_prompts, settings):
        self.calls.append((len(pictures), list(prompts), list(seeds), settings.adapter_scale))
        size = settings.frames, settings.height, settings.width
        drift = [len(prompt) + seed + 9 * settings.adapter_scale for prompt, seed in zip(prompts, seeds)]
        means = [picture.mean((0, 1)) for picture in pictures]
        steps = np.arange(settings.frames)[:, None, None, None]
        return [
            np.broadcast_to(np.clip(mean + steps * by, 0, 255), (*size, 3)).astype(np.uint8)
            for mean, by in zip(means, drift)
        ]


def test_models_animate_pictures_once(tmp_path, monkeypatch):
    """Two runs of one model, which is loaded once; a video that is there is not made again, one that is lost is."""
    loaded = []
    monkeypatch.setattr(animate_set.Model, "of_config", lambda *_: loaded.append(1))
    monkeypatch.setattr(animate_set, "Pipeline", FakePipeline)
    monkeypatch.setattr(animate_set.Settings, "check", lambda *_: None)
    monkeypatch.setattr(FakePipeline, "calls", [])
    for name, colour in (("red", (200, 30, 20)), ("blue", (20, 30, 200)), ("green", (20, 90, 30))):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), colour).save(tmp_path / "set" / f"{name}.png")
    (tmp_path / "set" / "red.txt").write_text("a red disc moves left")
    values = dict(frames=2, height=64, width=64, batch_per_device=2, seed=7)
    arguments = (
        *(f"--config.{key}={value}" for key, value in values.items()),
        "--config.runs=('weak: adapter_scale=0', 'full:')",
        "--config.metrics=('temporal_flickering',)",
        "--config.set=pictures",
        f"--config.source={tmp_path / 'set'}",
        "--config.published=table3",
    )
    command(monkeypatch, tmp_path / "out", *arguments)
    assert loaded == [1] and [call[0] for call in FakePipeline.calls] == [2, 1, 2, 1]
    assert FakePipeline.calls[0] == (2, ["", ""], [7, 8], 0) and FakePipeline.calls[3][1:] == (
        ["a red disc moves left"],
        [9],
        1,
    )
    made = sorted((tmp_path / "out" / "t").glob("*/*.mp4"))
    assert len(made) == 6 and {path.name.split("-")[0] for path in made} == {"red", "blue", "green"}
    text = (tmp_path / "out" / "t.md").read_text()
    assert "| weak |" in text and "| full |" in text and "| Full model (paper) | – |" in text
    before = {path: path.stat().st_mtime_ns for path in made}
    command(monkeypatch, tmp_path / "out", *arguments)
    assert {path: path.stat().st_mtime_ns for path in made} == before and len(FakePipeline.calls) == 4
    made[0].unlink()
    command(monkeypatch, tmp_path / "out", *arguments)
    assert len(FakePipeline.calls) == 5 and made[0].exists() and FakePipeline.calls[4][0] == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["metrics=('clip_tmp',)"], "Did you mean 'clip_temp'"),
        (["metrics=('psnr',)", "set=mjhq"], "Did you mean 'mjhq30k'"),
        (["metrics=('psnr',)", "set=pictures"], "name its folder"),
        (["metrics=('psnr',)", "set=videos"], "every run is a folder of videos"),
        (["metrics=('psnr',)", "published=table9"], "Did you mean 'table"),
        (["metrics=('psnr',)", "runs=('x: t0=2',)"], "t0"),
        (["metrics=('psnr',)", "runs=('x: config=nowhere.py',)"], "No config file"),
        (["metrics=('psnr',)", "runs=('x:', 'x:')"], "stands twice"),
        (["metrics=('clip_temp',)"], "none can be measured"),
        (["metrics=('raft_flow_score',)", "metric_weights.raft=nowhere.pth"], "(?s)none can be measured.*nowhere.pth"),
    ],
)
def test_says_what_is_wrong_before_it_makes_anything(arguments, said, tmp_path, monkeypatch):
    monkeypatch.setattr(animate_set.Model, "of_config", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match=said):
        command(monkeypatch, tmp_path / "out", *(f"--config.{one}" for one in arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["mjhq30k", "small_world"])
@pytest.mark.parametrize("name, count", [("table1", 1), ("table2", 10), ("table3", 4)])
def test_the_papers_tables_are_a_config_each(name, count, place):
    known = commands.load_config(evaluate.DEFAULT)
    config = commands.load_config(f"{evaluate.DEFAULT.parent}/{name}.py:{place}", known)
    assert config.metrics == measures.PAPERS and config.published == config.name == name and config.set == place
    chosen = [runs.compared(text, config.header) for text in config.runs]
    assert len(chosen) == (2 if name == "table1" and place == "mjhq30k" else count)
    for one in chosen:
        base = config
        if one.config:
            base = commands.load_config(
                one.config, commands.load_config(animate_set.SAMPLE / "sd15.py"), animate_set.SAMPLE
            )
        labels = f"{next(iter(one.labels.values()))}: {one.settings}" if one.labels else one.settings
        runs.read_run(labels, config.header, evaluate.Settings.of_config(base))
    with pytest.raises(InputError, match="Did you mean"):
        commands.load_config(f"{evaluate.DEFAULT.parent}/{name}.py:small_word", known)
