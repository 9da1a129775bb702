"""`evaluate.py` samples held-out clips with several settings and writes what it measured."""

import json
import sys
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from conftest import CACHE

from i2v_jax import commands
from i2v_jax.cli import evaluate
from i2v_jax.data import small_world
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.errors import InputError
from i2v_jax.sampling.pipeline import Settings

make_mesh = make_mesh
FILES = (".md", ".json", ".png", ".mp4", ".gif")


def command(monkeypatch, *arguments):
    monkeypatch.setattr(evaluate, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1]))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    evaluate.main()


def small(folder: Path, *more: str) -> list[str]:
    values = dict(clips=2, frames=4, height=64, width=64, steps=4, batch_per_device=2, vae_slice=4, output=folder)
    values |= dict(compilation_cache=CACHE, attention="xla", convolution="xla")
    config = Path(__file__).parent / "configs" / "evaluate.py"
    return [f"--config={config}", *(f"--config.{key}={value}" for key, value in values.items()), *more]


def test_writes_tables_values_plot_and_videos(tmp_path, monkeypatch, capsys):
    runs = "('w/o I2V-Adapter: adapter_scale=0', 'Full model:')"
    command(monkeypatch, *small(tmp_path, f"--config.runs={runs}", "--config.first_clip=7", "--config.opposite"))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"design{suffix}" for suffix in FILES)
    table = (tmp_path / "design.md").read_text()
    assert (
        "| Model Design | CLIPTemp ↑ | FlowScore ↑ | WarpingError ↓ |" in table
        and table[-200:] in capsys.readouterr().out
    )

    record = json.loads((tmp_path / "design.json").read_text())
    names = [run["labels"]["Model Design"] for run in record["runs"]]
    assert names == ["w/o I2V-Adapter", "Full model", "true clips", "true clips, true flow"]
    scenes = [small_world.draw(number, "held_out").opposite() for number in (7, 8)]
    assert record["captions"] == [scene.caption for scene in scenes]
    without, full, true, truth = (run["clips"] for run in record["runs"])
    assert without["psnr"] != full["psnr"] and min(true["ssim"]) == 1
    assert truth["direction"] == [1, 1] and truth["flow_score"] != true["flow_score"]
    wanted = [np.linalg.norm(small_world.render_clip(scene, 4, 64).flow, axis=-1).mean() for scene in scenes]
    np.testing.assert_allclose(truth["flow_score"], wanted, rtol=1e-5)
    assert record["weights"] and all(len(values) == 2 for values in full.values())
    with av.open(str(tmp_path / "design.mp4")) as file:
        assert len(list(file.decode(video=0))) == 4

    command(monkeypatch, f"--config={tmp_path / 'design.json'}")  # the record runs again, to the same values
    again = json.loads((tmp_path / "design-2.json").read_text())
    for one, other in zip(record["runs"], again["runs"]):
        for metric in one["clips"]:
            np.testing.assert_allclose(one["clips"][metric], other["clips"][metric], rtol=1e-6)


def test_reads_runs_as_the_papers_tables_label_them():
    base = Settings(frames=8)
    labels, settings = evaluate.read_run("t0=0.8 p=1.0", "Model Design", base)
    assert labels == {"t0": 0.8, "p": 1.0} and (settings.t0, settings.p, settings.frames) == (0.8, 1.0, 8)
    labels, settings = evaluate.read_run("no adapter: adapter_scale=0", "Model Design", base)
    assert labels == {"Model Design": "no adapter"} and settings.adapter_scale == 0


@pytest.mark.parametrize(
    "argument, said",
    [
        ("runs=('x: adaptor_scale=0',)", "Did you mean 'adapter_scale'"),
        ("runs=('x: t0=high',)", "a number is wanted"),
        ("runs=('x: t0=2',)", "t0"),
        ("runs=('x: frames=8',)", "frames is the same for all"),
        ("runs=('x:', 't0=1')", "either all have a name"),
        ("runs=('',)", "neither a name nor a setting"),
        ("runs=()", "wanted one or more"),
        ("runs=(1, 2)", "1 is no text"),
        ("height=8", "square"),
        ("first_clip=-1", "first_clip=-1: wanted 0 or more"),
        ("split=test", "no split 'test'"),
        ("clips=0", "clips=0: wanted 1 or more"),
        ("flow=farneback", "No optical flow 'farneback'"),
        ("width=128", "square"),
    ],
)
def test_says_what_is_wrong_before_it_loads_anything(argument, said, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.Model, "of_config", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match=said):
        command(monkeypatch, *small(tmp_path, f"--config.{argument}"))
    assert not list(tmp_path.iterdir())


def test_clips_too_small_for_ssim_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="height=8: wanted 16 or more"):
        command(monkeypatch, *small(tmp_path, "--config.height=8", "--config.width=8"))


@pytest.mark.parametrize("sweep, labels", [("t0", [1.0, 0.9, 0.8, 0.7, 0.6]), ("p", [0.9, 0.7, 0.5, 0.3, 0.1])])
def test_the_sweeps_are_the_papers(sweep, labels):
    config = commands.load_config(f"{evaluate.DEFAULT.parent}/prior.py:{sweep}", commands.load_config(evaluate.DEFAULT))
    runs = [evaluate.read_run(text, config.header, evaluate.Settings.of_config(config)) for text in config.runs]
    assert [run[sweep] for run, _ in runs] == labels and all(set(run) == {"t0", "p"} for run, _ in runs)
    evaluate.check(config, runs)
