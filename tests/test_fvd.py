"""FVD: its distance against SciPy's matrix root, its features against the published code, runs of it begun again."""

import csv
import json

import numpy as np
import pytest
import scipy.linalg

from i2v_jax import media
from i2v_jax.errors import InputError
from i2v_jax.evaluation import measuring, networks, report, sets, tables
from i2v_jax.evaluation.journal import Journal
from i2v_jax.evaluation.measures.fvd import distance, features, frechet
from i2v_jax.evaluation.metric import Case, SetMetric
from i2v_jax.evaluation.report import Run
from i2v_jax.evaluation.together import Together, packed, unpacked
from tests import i3d_oracle
from tests.helpers import relative_error
from tests.metric_oracles import recorded, settings, video
from tests.test_evaluate_set import command
from tests.test_i3d import file_of


def published(first, second):
    """The distance as the published codes take it, by the root of a product of covariances."""
    one, other = (np.cov(each, rowvar=False) for each in (first, second))
    root = scipy.linalg.sqrtm(one @ other)
    return np.square(first.mean(0) - second.mean(0)).sum() + np.trace(one + other - 2 * np.real(root))


@pytest.mark.parametrize("counts", [(60, 50), (12, 12), (9, 40)])
def test_the_distance_is_the_published_ones(counts):
    """Of more videos than features, as many, and fewer, where covariances have no full rank."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(count, 12)) @ rng.normal(size=(12, 12)) + rng.normal(size=12) for count in counts)
    assert frechet(first, second) == pytest.approx(published(first, second), rel=1e-6)
    assert frechet(first, first) == pytest.approx(0, abs=1e-9 * published(first, second))


def test_of_known_normal_distributions():
    """Two numbers that are c apart and spread s and t: c^2 + (s - t)^2."""
    first, second = np.array([[-1.0], [1.0]]), np.array([[4.0], [10.0]])
    assert frechet(first, second) == pytest.approx(7**2 + (2**0.5 - 18**0.5) ** 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return file_of(i3d_oracle.state("small"), tmp_path_factory.mktemp("i3d") / "rgb_imagenet.pt")


def test_features_are_of_16_frames_as_the_published_code_takes_them(weights, measured):
    clip = video(settings("i3d")["resized"]["video"])
    longer, loaded = np.concatenate([clip, clip[:3]]), networks.Networks({"i3d": weights})
    found = features(Case("a", longer, truth=longer[::-1]), loaded)
    measured("FVD's features of a resized video", relative_error(found[0], recorded("i3d")["resized.logits"]), 1e-5)
    assert found.shape == (2, 11) and abs(found[0] - found[1]).max() > 1e-3
    with pytest.raises(InputError, match="a: 15 frames in the true video"):
        features(Case("a", clip, truth=clip[:15]), loaded)


def fakes(count, shift, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return [np.float32(rng.normal(size=(2, width)) + np.array([[shift], [0]])) for _ in range(count)]


def test_features_outlive_a_journal():
    one = fakes(1, 0.3)[0]
    np.testing.assert_array_equal(unpacked(json.loads(json.dumps(packed(one)))), one)


def test_intervals_are_of_the_set():
    """Around the number; narrower of more videos; the difference of two runs is of the videos that both have."""
    some, more = (Together(distance, fakes(count, 1)) for count in (20, 320))
    for one in (some, more):
        value, low, high, count = one.summary(3)
        assert (
            value == distance(np.float64(np.stack(one.features))) and low < value < high and count == len(one.features)
        )
    assert np.ptp(more.summary()[1:3]) < np.ptp(some.summary()[1:3]) / 2
    far = Together(distance, [None, *fakes(20, 3)[1:]])
    value, low, high, count = (far - some).summary()
    assert count == 19 and low > 0
    assert value == pytest.approx(far.summary()[0] - Together(distance, some.features[1:]).summary()[0])
    assert np.isnan(Together(distance, [None, *fakes(1, 0)]).summary()[0])


def test_tables_and_files_have_the_number():
    near, far = (
        Run({"Method": name}, {"fvd": Together(distance, fakes(9, shift)), "psnr": [20.0] * 9})
        for name, shift in (("near", 0), ("far", 4))
    )
    table = tables.table_of([near, far], ["fvd", "psnr"])
    lines = tables.as_markdown(table).splitlines()
    value = report.summarise(near.clips["fvd"]).mean
    assert lines[0] == "| Method | FVD ↓ | PSNR ↑ |" and lines[2].startswith(f"| near | **{value:.1f}** [")
    row = next(csv.DictReader(tables.as_csv(table).splitlines()))
    assert row["metric"] == "fvd" and float(row["mean"]) == value and row["videos"] == "9"
    content = json.loads(report.as_json([near, far], {}))["runs"][0]
    assert content["summary"]["fvd"]["mean"] == value and content["clips"].keys() == {"psnr"}
    assert "fvd" not in report.within_clips([near, far])[0].clips
    assert report.points([near, far], ["fvd", "psnr"])[:4] == b"\x89PNG"
    (apart,) = report.differences([near, far])
    assert report.summarise(apart.clips["fvd"]).low > 0


def folder(path, names, frames=16, seed=0):
    path.mkdir()
    rng = np.random.default_rng(seed)
    for name in names:
        media.write_video(path / f"{name}.mp4", rng.integers(0, 256, (frames, 24, 32, 3), np.uint8), 8)
    return path


class Killed(BaseException):
    """A kill."""


def test_a_run_that_is_killed_goes_on(tmp_path):
    """No video's features are made twice but those in flight, and the distance is the same."""
    names = ["a", "b", "c", "d"]
    videos = sets.videos_in(folder(tmp_path / "videos", names))
    items = sets.with_truths([sets.Item(name) for name in names], folder(tmp_path / "truths", names[:3], seed=1))
    calls = []

    def measure(case, _):
        calls.append(case.name)
        if len(calls) == 2:
            raise Killed
        return np.float32([case.video.mean((0, 1, 2)), case.truth.mean((0, 1, 2))])

    metric = SetMetric(
        "fvd", "FVD", "1", "lower", 1, "for this test", measure, wants=("truth",), of_set=distance, advised=9
    )

    def run():
        log = Journal(tmp_path / "log.jsonl")
        return measuring.measure_run({"Model": "a"}, videos, items, [metric], networks.Networks({}), log)

    with pytest.raises(Killed):
        run()
    first, again = run(), run()
    assert calls == ["a", "b", "b", "c"] and first.lacking["fvd"] == {"no truth": 1}
    assert first.run.clips["fvd"].count == 3 and first.run.clips["fvd"].features[3] is None
    assert first.run.clips["fvd"].summary() == again.run.clips["fvd"].summary()


def test_the_command(tmp_path, monkeypatch, weights, capsys):
    """Two folders against true videos; without these it says what is wanted, and measures the rest."""
    names = ["a", "b"]
    truths = folder(tmp_path / "truths", names, seed=1)
    runs = {name: folder(tmp_path / name, names, frames) for name, frames in (("same", 16), ("short", 12))}
    for name in names:
        (runs["same"] / f"{name}.mp4").write_bytes((truths / f"{name}.mp4").read_bytes())
    arguments = (
        "--config.set=videos",
        "--config.metrics=('fvd', 'temporal_flickering')",
        "--config.runs=({})".format(", ".join(f"'{name}: videos={path}'" for name, path in runs.items())),
        f"--config.metric_weights.i3d={weights}",
    )
    command(monkeypatch, tmp_path / "out", *arguments)
    said = capsys.readouterr().out
    assert (
        "not measured: FVD, which compares a set of videos with true ones" in said and "--config.truths=FOLDER" in said
    )
    assert "| Model Design | Temporal flickering ↑ |" in said
    alone = (arguments[0], "--config.metrics=('fvd',)", *arguments[2:])
    with pytest.raises(InputError, match="(?s)none can be measured.*FVD, which compares"):
        command(monkeypatch, tmp_path / "out", *alone)

    command(monkeypatch, tmp_path / "out", *arguments, f"--config.truths={truths}")
    said = capsys.readouterr().out
    assert "| Model Design | FVD ↓ | Temporal flickering ↑ |" in said and "| same | **0.0** [" in said
    assert "short: FVD not of 2: 12 frames, 16 are wanted" in said and "| short | – |" in said
    assert "FVD is of 2 videos, published ones of 2048 or more" in said
    lines = [json.loads(line) for line in (tmp_path / "out" / "t.jsonl").read_text().splitlines()]
    kept = [value for line in lines for name, value in line["values"].items() if name.startswith("fvd:") and value]
    assert len(kept) == 2 and unpacked(kept[0]).shape == (2, 11)
