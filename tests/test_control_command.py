"""`sample.py` with ControlNets: the bundled small world model, and small random networks beside it."""

import functools
import json
import re
import shutil
import sys
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
from conftest import CACHE
from PIL import Image

from i2v_jax import commands, media
from i2v_jax.cli import sample
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.families.model import Model
from i2v_jax.sampling.pipeline import Pipeline
from tests.torch_models import randomise

WORLD = Path(__file__).resolve().parents[1] / "assets" / "small_world"
FRAMES = 3
NONE = "no control network"
load_model = Model.of_config


@functools.cache
def shared_model(weights, mesh):
    config = commands.read_config(sample.BUNDLED, ["sample.py", f"--config.compilation_cache={CACHE}"])
    config.weights.controls = weights
    return load_model(config, mesh)


@functools.cache
def shared_pipeline(model, mesh):
    return Pipeline(model, mesh)


@pytest.fixture(scope="module")
def controlnet(tmp_path_factory):
    """The folder of a random ControlNet for the small world: four pixels are a latent."""
    settings = json.loads((WORLD / "unet" / "config.json").read_text())
    made = diffusers.ControlNetModel.from_unet(
        diffusers.UNet2DConditionModel.from_config(settings),
        conditioning_embedding_out_channels=(8, 16, 24),
        load_weights_from_unet=False,
    )
    folder = tmp_path_factory.mktemp("controlnet")
    randomise(made).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def outlines(tmp_path_factory):
    """Two videos of control pictures, as a folder each."""
    root = tmp_path_factory.mktemp("outlines")
    for number, name in enumerate(("one", "two")):
        (root / name).mkdir()
        rng = np.random.default_rng(number)
        for frame in range(FRAMES):
            dots = 255 * (rng.random((48, 48)) < 0.1).astype(np.uint8)
            Image.fromarray(dots).convert("RGB").save(root / name / f"{frame}.png")
    return root


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, controlnet):
    """Returns `run(*flags, controls=1)`: runs the command and gives (exit code, stdout, stderr)."""

    def run(*flags, source=None, controls=1):
        monkeypatch.setattr(Model, "of_config", lambda config, mesh: shared_model(config.weights.controls, mesh))
        monkeypatch.setattr(sample, "Pipeline", shared_pipeline)
        monkeypatch.setattr(sample, "make_mesh", lambda shape: make_mesh({}, jax.devices()[:1]))
        fixed = [f"--config.compilation_cache={CACHE}", f"--output={tmp_path / 'out'}"]
        if source is None:
            picture = [f"--image={WORLD / 'pictures' / '0.png'}", "--prompt=a red disc moves left"]
            fixed += [*picture, "--steps=2", f"--frames={FRAMES}", "--config.match_colours=False"]
            fixed += [f"--config.weights.controls={(str(controlnet),) * controls}"]
        argv = ["sample.py", *([f"--config={source}"] if source else []), *fixed, *map(str, flags)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit:
            commands.run(sample.main)
        return exit.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def good(run):
    def good(*flags, **options):
        code, out, err = run(*flags, **options)
        assert code == 0, err
        return out, err

    return good


def sheet(path):
    """The frames without loss."""
    return media.load_picture(path).astype(int)


def test_control_pictures_move_the_video_and_stand_in_the_record(tmp_path, good, outlines, controlnet):
    out = tmp_path / "out"
    good("--config.controls.scales=0", f"--control={outlines / 'one'}")
    for name in ("one", "two"):
        good("--config.controls.scales=100", f"--control={outlines / name}")  # its weights are small
    good(controls=0)
    off, one, two, plain = (sheet(out / f"0{end}.png") for end in ("", "-2", "-3", "-4"))
    assert np.abs(off - plain).max() <= 1
    for first, second in ((off, one), (one, two)):
        assert np.abs(first - second).max() > 2

    record = json.loads((out / "0-2.json").read_text())
    assert record["config"]["controls"]["pictures"] == [str(outlines / "one")]
    assert [sorted(Path(name).name for name in files) for files in record["controls"]] == [["0.png", "1.png", "2.png"]]
    assert any(str(controlnet) in name for name in record["weights"])
    assert "controls" not in json.loads((out / "0-4.json").read_text())


def test_a_record_is_run_again_and_knows_its_control_pictures(tmp_path, good, run, outlines):
    out, here = tmp_path / "out", tmp_path / "here"
    shutil.copytree(outlines / "one", here)
    good(f"--control={here}")
    first, source = (out / "0.mp4").read_bytes(), out / "0.json"
    _, err = good(source=source)
    assert (out / "0-2.mp4").read_bytes() == first and "this run is not" not in err
    # moved, beside the record
    shutil.move(here, out / "here")
    _, err = good(source=source)
    assert (out / "0-3.mp4").read_bytes() == first and "this run is not" not in err
    # others
    shutil.move(out / "here", here)
    shutil.copy(outlines / "two" / "0.png", here / "0.png")
    _, err = good(source=source)
    assert "the control pictures" in err and "are not those that were" in err
    code, _, err = run("--config.strict", source=source)
    assert code == 2 and "the control pictures" in err
    # gone
    shutil.rmtree(here)
    code, _, err = run(source=source)
    assert code == 2 and "No control pictures at" in err and "Traceback" not in err


def test_a_row_of_a_csv_has_control_pictures_of_its_own(tmp_path, good, outlines):
    out, table = tmp_path / "out", tmp_path / "rows.csv"
    shutil.copytree(outlines / "two", tmp_path / "two")
    picture = WORLD / "pictures" / "0.png"
    rows = [("a", outlines / "one", ""), ("b", "two", ""), ("c", "two", "0.5")]
    lines = [f"{picture},a red disc moves left,{name},{source},{scale}\n" for name, source, scale in rows]
    table.write_text("picture,prompt,name,controls.pictures,controls.scales\n" + "".join(lines))
    alike = "--config.batch_per_device=1"  # beside others a video differs by roundings
    good("--image=", f"--csv={table}", alike)
    made = {name: (out / f"{name}.mp4").read_bytes() for name in "abc"}
    assert len(set(made.values())) == 3
    alone = tmp_path / "alone"
    for name, source, scale in rows:
        strength = f"--config.controls.scales={scale or 1.0}"
        good(f"--control={tmp_path / source}", strength, alike, f"--output={alone / name}")
        assert (alone / name / "0.mp4").read_bytes() == made[name]
    # begun again: all are there; with other control pictures under the same name, that row is made anew
    assert "3 of 3 are there already" in good("--image=", f"--csv={table}")[0]
    shutil.copy(outlines / "one" / "1.png", tmp_path / "two" / "1.png")
    assert "1 of 3 are there already" in good("--image=", f"--csv={table}")[0]


def test_a_batch_of_before_there_were_controls_goes_on(tmp_path, good):
    """Records without the newer keys are taken for what they were."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("0.png", "2.png"):
        shutil.copy(WORLD / "pictures" / name, folder)
    flags = [f"--image={folder}"]
    good(*flags, controls=0)
    for path in (tmp_path / "out").glob("*.json"):
        record = json.loads(path.read_text())
        del record["config"]["controls"], record["config"]["weights"]["controls"]
        del record["config"]["weights"]["configs"]["controlnet"]
        path.write_text(json.dumps(record))
    assert "2 of 2 are there already" in good(*flags, controls=0)[0]
    good(source=tmp_path / "out" / "0.json")


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "The model has 1 control network, and no control pictures are given: .*--control=PICTURES"),
        (["--control=nowhere.mp4"], "No control pictures at '.*nowhere.mp4'"),
        (["--control=https://example.org/a.mp4"], "is an address, and a path on this machine is wanted"),
        (["--control=('one', 'two')"], "Control pictures are given for 2 control networks, and the model has 1"),
        (["--control=one", "--frames=4"], "has 3 pictures, and the run 4 frames"),
        (["--control=one", "--config.controls.scales=(1, 2)"], "2 values for 1 control networks"),
        (["--control=one", "--config.controls.scales=1e999"], "inf is not a finite number"),
        (["--control=one", "--config.controls.ends=2"], "2 is not a share of the run"),
        (["--control=one", "--config.controls.process=cany"], "No preprocessor 'cany'"),
        (["--control=one", "--config.controls.frame_scales=(1, 2)"], "2 scales for 3 frames"),
        (["--control=one", "--config.controls.scale=1"], "Did you mean '--config.controls.scales'"),
        (["--control=one", "--control=two"], "for 2 control networks, and the model has 1"),
        (["--control=one", NONE], "the model has no control network. Name one by --config.weights.controls"),
    ],
)
def test_bad_input_ends_before_anything_costly(tmp_path, run, outlines, monkeypatch, flags, message):
    monkeypatch.chdir(outlines)
    monkeypatch.setattr(sample, "Weights", None)  # nothing is opened
    code, _, err = run(*(flag for flag in flags if flag != NONE), controls=int(NONE not in flags))
    assert code == 2 and re.search(message, err) and "Traceback" not in err, err
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name, family", [("pose", "sd15"), ("sdxl_pose", "sdxl")])
def test_configs_of_poses_are_plain_ones_with_a_controlnet(name, family):
    configs = [commands.load_config(sample.DEFAULT.with_name(f"{one}.py")) for one in (name, family)]
    (source,) = configs[0].weights.controls
    assert "openpose" in source
    configs[0].weights.controls = ()
    assert configs[0] == configs[1]
