"""Sets to measure on, the journal of what is measured, runs by text, tables: what they hold, and what they refuse."""

import csv
import io
import json
import math
import zipfile

import numpy as np
import pytest
from PIL import Image

from i2v_jax import media
from i2v_jax.errors import InputError
from i2v_jax.evaluation import journal, measuring, published, runs, sets, tables
from i2v_jax.evaluation.journal import Journal
from i2v_jax.evaluation.metric import Metric
from i2v_jax.evaluation.networks import Networks
from i2v_jax.evaluation.report import Run


def picture(path, colour=(10, 200, 30), size=(24, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def video(path, frames=3, height=16, width=24, seed=0):
    rng = np.random.default_rng(seed)
    media.write_video(path, rng.integers(0, 256, (frames, height, width, 3), np.uint8), 8)
    return path


# Sets.


def test_a_folder_of_pictures_with_their_prompts(tmp_path):
    picture(tmp_path / "cat.png")
    picture(tmp_path / "dog.jpg", (200, 0, 0))
    (tmp_path / "cat.txt").write_text("a cat\n")
    cat, dog = sets.pictures(tmp_path)
    assert (cat.name, cat.prompt, dog.name, dog.prompt) == ("cat", "a cat", "dog", None)
    assert cat.picture().shape == (16, 24, 3) and (cat.picture()[0, 0] == (10, 200, 30)).all() and cat.truth is None
    before = cat.identity
    picture(tmp_path / "cat.png", size=(30, 30))
    assert sets.pictures(tmp_path)[0].identity != before
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        sets.pictures(empty)
    with pytest.raises(InputError, match="No pictures at .*: wanted a folder of them, or a CSV"):
        sets.pictures(tmp_path / "nowhere")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_csv_of_pictures(encoding, tmp_path):
    picture(tmp_path / "cat.png")
    (tmp_path / "set.csv").write_text("picture,prompt,name\ncat.png,eine Katze übt,a\ncat.png,,b\n", encoding=encoding)
    first, second = sets.pictures(tmp_path / "set.csv")
    assert (first.name, first.prompt, second.name, second.prompt) == ("a", "eine Katze übt", "b", None)
    (tmp_path / "set.csv").write_bytes("picture,prompt\ncat.png,übt\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        sets.pictures(tmp_path / "set.csv")
    (tmp_path / "set.csv").write_text("picture,prompt\ndog.png,a\n")
    with pytest.raises(InputError, match="line 2: no picture at 'dog.png'"):
        sets.pictures(tmp_path / "set.csv")


def mjhq(folder, unpacked=True, per_category=6):
    entries = {}
    for category in ("animals", "food"):
        for number in range(per_category):
            name = f"{category[0]}{number}"
            entries[name] = {"category": category, "prompt": f"{category} {number}"}
            picture(folder / "mjhq30k_imgs" / category / f"{name}.jpg", (number * 20, 0, 0))
    (folder / "meta_data.json").write_text(json.dumps(entries))
    if not unpacked:
        files = sorted((folder / "mjhq30k_imgs").glob("*/*.jpg"))
        with zipfile.ZipFile(folder / "mjhq30k_imgs.zip", "w") as archive:
            for file in files:
                archive.write(file, f"{file.parent.name}/{file.name}")
                file.unlink()
    return folder


@pytest.mark.parametrize("unpacked", [True, False])
def test_mjhq30k_is_drawn_by_seed(unpacked, tmp_path):
    folder = mjhq(tmp_path, unpacked)
    items = sets.mjhq30k(folder, 5, seed=1)
    names = [item.name for item in items]
    assert len(set(names)) == 5 and names == [item.name for item in sets.mjhq30k(folder, 5, seed=1)]
    assert names != [item.name for item in sets.mjhq30k(folder, 5, seed=2)]
    assert {item.prompt for item in sets.mjhq30k(folder, 0)} == {
        f"{c} {n}" for c in ("animals", "food") for n in range(6)
    }
    food = sets.mjhq30k(folder, 3, category="food")
    assert all(item.prompt.startswith("food") for item in food)
    number = int(food[0].prompt.split()[1])
    assert abs(int(food[0].picture()[0, 0, 0]) - 20 * number) < 4 and food[0].identity


def test_what_is_wrong_with_mjhq30k_is_said(tmp_path):
    with pytest.raises(InputError, match="no meta_data.json.*hf download"):
        sets.mjhq30k(tmp_path)
    folder = mjhq(tmp_path)
    for arguments, said in (
        (dict(count=13), "13 pictures of 12"),
        (dict(category="animal"), "Did you mean 'animals'"),
    ):
        with pytest.raises(InputError, match=said):
            sets.mjhq30k(folder, **arguments)
    (folder / "mjhq30k_imgs" / "food" / "f2.jpg").unlink()
    with pytest.raises(InputError, match="1 of 12 pictures of meta_data.json are not there, such as food/f2.jpg"):
        sets.mjhq30k(folder, 0)
    (folder / "meta_data.json").write_text(json.dumps({"a": {"category": "food"}}))
    with pytest.raises(InputError, match="'a' is"):
        sets.mjhq30k(folder, 0)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "meta_data.json").write_text(json.dumps({"a": {"category": "food", "prompt": "b"}}))
    (damaged / "mjhq30k_imgs.zip").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match="is damaged"):
        sets.mjhq30k(damaged, 1)


def test_truths_go_by_names(tmp_path):
    items = [sets.Item("a"), sets.Item("b")]
    file = video(tmp_path / "a.mp4", 4)
    first, second = sets.with_truths(items, tmp_path)
    assert first.truth().shape == (4, 16, 24, 3) and second.truth is None and first.identity != items[0].identity
    with pytest.raises(InputError, match="no video that is called as one of the set, such as 'c'"):
        sets.with_truths([sets.Item("c")], tmp_path)
    file.with_suffix(".webm").write_bytes(b"")
    with pytest.raises(InputError, match="a.mp4 and a.webm"):
        sets.videos_in(tmp_path)


# The journal.


def test_the_journal_keeps_what_is_known_and_passes_a_torn_line(tmp_path):
    first = Journal(tmp_path / "new" / "a.jsonl")
    first.add("k1", {"m": 1.5}, item="a")
    first.add("k2", {"m": None}, item="b", lacks={"m": "no picture"})
    first.add("k1", {"n": 2.0})
    with open(first.path, "ab") as file:
        file.write(b'{"key": "k3", "values": {"m": 3')
    again = Journal(first.path)
    assert again.get("k1") == {"key": "k1", "values": {"m": 1.5, "n": 2.0}, "item": "a"}
    assert again.get("k2")["values"] == {"m": None} and again.get("k3") == {}
    again.add("k3", {"m": 4.0})
    assert Journal(first.path).get("k3")["values"] == {"m": 4.0}
    first.path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no journal of measurements"):
        Journal(first.path)


def test_keys_tell_measurements_apart():
    assert journal.key_of("a", 1) == journal.key_of("a", 1) != journal.key_of("a", 2)


class Killed(BaseException):
    """A kill, at whatever it was doing."""


def counting(calls, killed=None):
    """A metric that counts how often it measures each video, and may be killed."""

    def measure(case, networks):
        calls.append(case.name)
        if killed and killed():
            raise Killed
        return float(case.video.mean())

    return Metric("psnr", "PSNR", "dB", "higher", 2, "the mean, for this test", measure)


def test_two_hundred_videos_killed_twenty_times_make_the_same_table(tmp_path):
    """Nothing is measured twice but what was in flight; some kills cut a line of the journal."""
    made = video(tmp_path / "clip.mp4")
    videos = {f"v{i}": tmp_path / f"v{i}.mp4" for i in range(200)}
    for path in videos.values():
        path.write_bytes(made.read_bytes())
    items = [sets.Item(name) for name in videos]
    whole = measuring.measure_run(
        {"Model": "a"}, videos, items, [counting([])], Networks({}), Journal(tmp_path / "1.jsonl")
    )

    rng, calls, kills = np.random.default_rng(0), [], 0
    while True:
        left = int(rng.integers(3, 15)) if kills < 20 else 10**6
        before = len(calls)
        metric = counting(calls, lambda left=left, before=before: len(calls) - before > left)
        log = Journal(tmp_path / "2.jsonl")
        try:
            resumed = measuring.measure_run({"Model": "a"}, videos, items, [metric], Networks({}), log)
            break
        except Killed:
            kills += 1
            if kills % 3 == 0:
                with open(log.path, "ab") as file:
                    file.write(b'{"key": "half a li')
    assert kills == 20 and len(calls) == 200 + 20
    assert max(map(calls.count, videos)) <= 2 and set(calls) == set(videos)
    table = [tables.as_markdown(tables.table_of([one.run], ["psnr"])) for one in (whole, resumed)]
    assert table[0] == table[1]


def test_what_fails_is_counted_by_cause_and_the_rest_measured(tmp_path):
    videos = {name: tmp_path / f"{name}.mp4" for name in ("good", "other", "one", "damaged", "empty", "text")}
    video(videos["good"])
    video(videos["other"], 5, 32, 32)
    video(videos["one"], 1)
    content = videos["good"].read_bytes()
    videos["damaged"].write_bytes(content[: len(content) // 2])
    videos["empty"].write_bytes(b"")
    videos["text"].write_text("no video at all")
    items = [sets.Item(name) for name in (*videos, "absent")]
    two = Metric("ssim", "SSIM", "1", "higher", 3, "of two frames, for this test", lambda case, networks: 1.0, frames=2)
    log = Journal(tmp_path / "log.jsonl")
    for _ in range(2):  # the same from the journal
        found = measuring.measure_run({"Model": "a"}, videos, items, [counting([]), two], Networks({}), log)
        assert found.causes.total() == 4 and found.causes["empty file"] == found.causes["missing file"] == 1
        assert found.sizes == {(3, 16, 24): 1, (5, 32, 32): 1, (1, 16, 24): 1}
        assert found.lacking["ssim"] == {"1 frame, 2 are wanted": 1} and not found.lacking["psnr"]
        assert np.isfinite(found.run.clips["psnr"]).sum() == 3 and np.nansum(found.run.clips["ssim"]) == 2


def test_a_changed_video_is_measured_again_and_a_new_metric_alone(tmp_path):
    videos, calls = {"a": video(tmp_path / "a.mp4")}, []
    log, items = Journal(tmp_path / "log.jsonl"), [sets.Item("a")]
    first = counting(calls)
    second = Metric("ssim", "SSIM", "1", "higher", 3, "for this test", lambda case, networks: 2.0)
    measuring.measure_run({"Model": "a"}, videos, items, [first], Networks({}), log)
    found = measuring.measure_run({"Model": "b"}, videos, items, [first, second], Networks({}), log)
    assert calls == ["a"] and found.run.clips["ssim"] == [2.0]
    media.write_video(videos["a"], np.zeros((4, 16, 16, 3), np.uint8), 8, overwrite=True)
    measuring.measure_run({"Model": "a"}, videos, items, [first], Networks({}), log)
    assert calls == ["a", "a"]


# Runs.


def test_runs_are_read(tmp_path):
    video(tmp_path / "my videos" / "a.mp4")
    one = runs.compared(f"SVD: videos='{tmp_path}/my videos'", "Method")
    assert one == runs.Compared({"Method": "SVD"}, "", "", f"{tmp_path}/my videos")
    one = runs.compared("Ours, fewer steps: config=sd15 steps=10", "Method")
    assert one == runs.Compared({"Method": "Ours, fewer steps"}, "steps=10", "sd15")
    assert runs.compared("t0=0.8 p=1.0", "Method") == runs.Compared({}, "t0=0.8 p=1.0")
    for text, said in (
        (f"videos={tmp_path}", "has no name"),
        (f"a: videos={tmp_path} steps=3", "have no settings"),
        ("a: videos=nowhere", "no folder of videos"),
        (f"a: videos={tmp_path}", "holds no videos"),
        ("a: videos='x", "Check its quotes"),
        (3, "is no text"),
    ):
        with pytest.raises(InputError, match=said):
            runs.compared(text, "Method")
    with pytest.raises(InputError, match="stands twice"):
        runs.check_labels([{"Method": "a"}, {"Method": "a"}])
    with pytest.raises(InputError, match="the set has 'b', the folder 'a'"):
        runs.videos_of(["b"], tmp_path / "my videos")


def test_folders_of_runs_can_be_files():
    assert runs.folder_name({"Method": "w/o I2V: *?"}, "0123456789") == "w-o-I2V-01234567"
    assert runs.folder_name({"t0": 0.8, "p": 1.0}, "0123456789") == "t0=0.8-p=1.0-01234567"


# Tables.


@pytest.fixture
def table():
    some = [
        Run({"Method": "ours & new"}, {"clip_temp": [0.9, 0.95, math.nan], "raft_warping_error": [1.0, 3.0, 2.0]}),
        Run({"Method": "SVD_1"}, {"clip_temp": [0.8, 0.7, 0.6], "raft_warping_error": [math.nan] * 3}),
    ]
    return tables.table_of(some, ["clip_temp", "raft_warping_error"], 0, published.rows("table1")[-1:])


def test_markdown_has_intervals_the_best_and_the_papers_row(table):
    lines = tables.as_markdown(table).splitlines()
    assert lines[0] == "| Method | CLIPTemp ↑ | WarpingError ↓ |"
    assert lines[2].startswith("| ours & new | **0.9250** [0.9000, 0.9500] | **2.0000** [")
    assert lines[3].startswith("| SVD_1 | 0.7000 [") and lines[3].endswith("| – |")
    assert lines[4] == "| I2V-Adapter (SDXL) (paper) | 0.9389 | 11.8388 |"


def test_latex_and_csv_say_the_same(table):
    latex = tables.as_latex(table)
    assert r"ours \& new & \textbf{0.9250} {\tiny [0.9000, 0.9500]}" in latex and r"SVD\_1" in latex
    assert latex.count(r"\\") == 4 and r"\end{tabular}" in latex
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(table))))
    first = rows[0]
    assert (first["Method"], first["metric"], float(first["mean"]), first["videos"]) == (
        "ours & new",
        "clip_temp",
        0.925,
        "2",
    )
    assert rows[-1]["source"] == "I2V-Adapter paper" and float(rows[-1]["mean"]) == 11.8388 and len(rows) == 5


def test_published_rows_are_the_papers_and_a_wrong_name_is_told():
    assert [len(published.rows(name)) for name in ("table1", "table2", "table3")] == [7, 10, 4]
    assert published.rows("table3")[-1].values == published.rows("table1")[-1].values  # the same model
    with pytest.raises(InputError, match="Did you mean 'table1'"):
        published.rows("tabel1")
