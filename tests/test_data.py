"""Clips: the right pixels, the same for a seed whatever reads them, each once an epoch; what is damaged, by cause."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2v_jax.data import builder, loader
from i2v_jax.data.clip import Clip
from i2v_jax.data.decoding import CAUSES, BadClip, Cut, central_sizes, choose_frames, read_clip, resize
from i2v_jax.data.loader import Loader
from i2v_jax.data.sources import open_source
from i2v_jax.errors import InputError
from i2v_jax.media import clip_pixels, load_picture
from tests import clips

CONFIG = dict(
    source="", videos=None, frames=4, stride=2, height=16, width=16, workers=0, buffer=2, max_bad=0.5, bad_list=""
)


OF_THE_SOURCE = ("missing file", "no caption", "caption is no text")

PRECISE = dict(interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)


def numbers_of(clip):
    """Which frames of a `clips.numbered` video these are."""
    return np.round(np.median(clip[..., 0], (1, 2)) / 4).astype(int).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine good clips, and one without a caption."""
    path = tmp_path_factory.mktemp("folder")
    for i in range(10):
        (path / f"clip{i}.mp4").write_bytes(clips.encode(clips.numbered(12 + i)))
        if i != 4:
            (path / f"clip{i}.txt").write_text(f"caption {i}\n")
    return path


# Pixels.


@pytest.mark.parametrize("count, stride", [(16, 4), (13, 4), (12, 3), (10, 3), (7, 2), (4, 1)])
def test_stride_is_the_largest_that_fits(count, stride):
    chosen = {tuple(choose_frames(count, Cut(4, 4), np.random.default_rng(seed))) for seed in range(100)}
    assert {np.diff(c).tolist() == [stride] * 3 for c in chosen} == {True}
    assert {c[0] for c in chosen} == set(range(count - 3 * stride))  # every start there is, and no other


def test_too_short():
    with pytest.raises(BadClip, match="too short"):
        choose_frames(3, Cut(4, 1), np.random.default_rng())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"g": "250", "preset": "medium", "x264-params": "scenecut=0"},  # many pictures that no other needs
        {"g": "6", "preset": "medium", "x264-params": "open-gop=1:scenecut=0"},
        {"codec": "libx265", "preset": "fast", "x265-params": "log-level=none:keyint=10"},
        {"codec": "mpeg4", "g": "5", "bf": "2"},
        {"codec": "libvpx-vp9", "g": "10", "deadline": "realtime", "crf": "20", "b": "0"},
    ],
    ids=["h264", "h264 one key frame", "h264 open groups", "hevc", "mpeg4", "vp9"],
)
def test_frames_are_those_of_decoding_everything(options):
    video = clips.encode(clips.numbered(60, 48, 64), **options)
    with av.open(io.BytesIO(video)) as container:
        whole = list(container.decode(video=0))
    for seed in range(4):
        cut = Cut(5, 3, 48, 64)
        chosen = choose_frames(60, cut, np.random.default_rng(seed))
        clip = read_clip(video, cut, np.random.default_rng(seed)).video
        assert (clip == resize([whole[number] for number in chosen], cut)).all()


@pytest.mark.parametrize("shape, size", [((96, 160), (32, 32)), ((160, 96), (32, 32)), ((64, 64), (16, 32))])
def test_middle_of_the_picture_antialiased(shape, size, measured):
    height, width = shape
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = (np.asarray(coarse) // 2 + rng.integers(0, 128, (2, *shape, 1))).astype(np.uint8)
    video = clips.encode(fine, crf="1")
    with av.open(io.BytesIO(video)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24", **PRECISE)
    scale = max(size[0] / height, size[1] / width)
    h, w = size[0] / scale, size[1] / scale
    box = ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
    wanted = np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC, box=box))
    clip = read_clip(video, Cut(2, 1, *size), np.random.default_rng(0)).video
    assert clip.shape == (2, *size, 3) and clip.dtype == np.uint8
    error = np.abs(clip[0].astype(float) - wanted).mean() / 255
    measured(f"clip {shape} to {size} against Pillow, mean of the range", error, 1e-2)


@pytest.mark.parametrize("keys", ["5", "250"])
def test_what_was_edited_away_stays_away(keys):
    """A file may hold frames before the start that it tells players; with key frames among them or not."""
    video = clips.encode(clips.numbered(30), times=range(-10, 20), g=keys)
    for seed in range(10):
        chosen = choose_frames(20, Cut(4, 2, 16, 16), np.random.default_rng(seed))
        clip = read_clip(video, Cut(4, 2, 16, 16), np.random.default_rng(seed)).video
        assert numbers_of(clip) == [10 + i for i in chosen]


def turned(frames, degrees):
    """An mp4 of frames that are to be turned counterclockwise when they are shown."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": "4"}
        stream.set_display_rotation(degrees)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_turned_video_is_upright(degrees):
    frames = clips.numbered(4, 32, 48)
    upright = np.rot90(frames, degrees // 90, (1, 2))
    clip = read_clip(turned(frames, degrees), Cut(4, 1, *upright.shape[1:3]), np.random.default_rng(0)).video
    assert np.abs(clip.astype(int) - upright).mean() < 8


@pytest.mark.parametrize(
    "shape, size, corner",
    [
        ((1080, 1920), (512, 512), (0, 199)),  # the picture becomes 512 x 910.2
        ((1920, 1080), (512, 512), (199, 0)),
        ((480, 640), (512, 512), (0, 85)),  # enlarged to 512 x 682.7
        ((512, 512), (512, 512), (0, 0)),
        ((4096, 2161), (256, 384), (236, 0)),  # 727.8 x 384
    ],
)
def test_sizes_are_of_the_scaled_picture(shape, size, corner):
    sizes = central_sizes(*shape, Cut(1, 1, *size))
    assert sizes.tolist() == [*shape, *corner, *size] and sizes.dtype == np.float32


@pytest.mark.parametrize("degrees", [0, 90, 180])
@pytest.mark.parametrize("shape, size", [((96, 160), (48, 32)), ((160, 96), (32, 48)), ((64, 160), (64, 64))])
def test_sizes_say_where_the_pixels_were(shape, size, degrees, measured):
    """A gradient's values say which part of the upright picture the pixels are of."""
    upright = np.zeros((2, *shape, 3), np.uint8)
    upright[0, ..., 0] = 100
    upright[..., 1], upright[..., 2] = np.linspace(0, 255, shape[1]), np.linspace(0, 255, shape[0])[:, None]
    video = turned(np.rot90(upright, -degrees // 90, (1, 2)), degrees)
    pixels, (height, width, top, left, *target), *_ = read_clip(video, Cut(2, 1, *size), np.random.default_rng(0))
    assert (height, width) == shape and tuple(target) == size == pixels.shape[1:3]
    scale = max(size[0] / height, size[1] / width)
    y, x = ((np.arange(side) + 0.5 + start) / scale - 0.5 for side, start in zip(size, (top, left)))
    across = np.mean(pixels[1, ..., 1].mean(0) / 255 * (width - 1) - x) * scale
    down = np.mean(pixels[1, ..., 2].mean(1) / 255 * (height - 1) - y) * scale
    measured(f"crop of a clip {shape} to {size} turned by {degrees}, pixels", max(abs(across), abs(down)), 0.75)


def test_colours_of_hd_are_bt709():
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [128, 128, 128]], np.uint8)
    frames = colours[None, None].repeat(720, 1).repeat(16, 2)  # 64 x 720: columns
    frames = np.concatenate([frames, 255 - frames])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 720, 64, "yuv420p"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(image.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
    clip = read_clip(buffer.getvalue(), Cut(2, 1, 64, 64), np.random.default_rng(0)).video
    assert np.abs(clip[0, 32, 8::16].astype(int) - colours).max() < 6


# Damage.


@pytest.mark.parametrize("cause", [cause for cause in clips.DAMAGES if cause not in OF_THE_SOURCE])
def test_damaged_videos_are_told_by_cause(cause):
    with pytest.raises(BadClip) as caught:
        read_clip(clips.DAMAGES[cause](), Cut(4, 2, 16, 16), np.random.default_rng(0))
    assert caught.value.cause == cause


def test_file_that_ends_between_two_frames():
    video = clips.encode(clips.noise(8), container={"moov_size": "4096"})
    with av.open(io.BytesIO(video)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    with pytest.raises(BadClip, match="frames missing.*5 packets, 8"):
        read_clip(video[: starts[5]], Cut(4, 1, 16, 16), np.random.default_rng(0))


def test_damage_is_not_painted_over():
    """Changed bytes of H.264 pictures are seen, but for the few that make another valid stream."""
    cut, rng = Cut(4, 2, 16, 16), np.random.default_rng(0)
    original = clips.encode(clips.noise(8).repeat(4, 1).repeat(4, 2))
    whole, start = read_clip(original, cut, np.random.default_rng(0)).video, original.index(b"mdat") + 100
    wrong = 0
    for _ in range(60):
        video = bytearray(original)
        for place in rng.integers(start, len(video) - 2000, 3):
            video[place] ^= int(rng.integers(1, 256))
        try:
            wrong += (read_clip(bytes(video), cut, np.random.default_rng(0)).video != whole).any()
        except BadClip as bad:
            assert bad.cause in ("damaged", "frames missing")
    assert wrong <= 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_damage_never_escapes(data):
    video = bytearray(VIDEO)
    for _ in range(data.draw(st.integers(1, 8))):
        video[data.draw(st.integers(0, len(video) - 1))] = data.draw(st.integers(0, 255))
    video = video[: data.draw(st.integers(1, len(video)))]
    try:
        clip = read_clip(bytes(video), Cut(4, 2, 16, 16), np.random.default_rng(0)).video
        assert clip.shape == (4, 16, 16, 3)
    except BadClip as bad:
        assert bad.cause in CAUSES


VIDEO = clips.encode(clips.noise(8))


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    (tmp_path / "folder.mp4").mkdir()
    for name in ("pipe.mp4", "folder.mp4", "none.mp4"):
        with pytest.raises(BadClip, match="missing file"):
            read_clip(tmp_path / name, Cut(), np.random.default_rng(0))


def test_playlists_lead_nowhere(tmp_path):
    (tmp_path / "part.ts").write_bytes(VIDEO)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{tmp_path / 'part.ts'}\n#EXT-X-ENDLIST\n"
    with pytest.raises(BadClip, match="not a video|no video stream"):
        read_clip(playlist.encode(), Cut(4, 1), np.random.default_rng(0))


def test_a_thousand_files_a_tenth_of_them_damaged(tmp_path):
    """Two hosts, one with worker processes: over an epoch and more."""
    count, per_cause = 1000, 10
    good = [clips.encode(clips.noise(8, seed)) for seed in range(8)]
    damaged = {cause: make() for cause, make in clips.DAMAGES.items()}
    wrong = {f"clip{100 * i + 7 * k}": cause for k, cause in enumerate(damaged) for i in range(per_cause)}
    for i in range(count):
        name = f"clip{i}"
        video = damaged[wrong[name]] if name in wrong else good[i % len(good)]
        if video is not clips.NO_FILE:
            (tmp_path / f"{name}.mp4").write_bytes(video)
        if wrong.get(name) != "no caption":
            text = b"caf\xe9" if wrong.get(name) == "caption is no text" else name.encode()
            (tmp_path / f"{name}.txt").write_bytes(text)
    assert len(wrong) == 10 * len(damaged) == 140
    seen = [Counter(), Counter()]  # per epoch
    reports = []
    for host, workers in ((0, 0), (1, 2)):
        config = CONFIG | dict(source=str(tmp_path), workers=workers, bad_list=str(tmp_path / "bad{host}.jsonl"))
        clips_of_host = loader.make(config, 1, seed=3, host=host, hosts=2)
        while (epoch := clips_of_host.order.position(clips_of_host.taken) / count) < 1.05:
            _, [name] = next(clips_of_host)
            epoch = clips_of_host.order.position(clips_of_host.taken - 1) // count
            if epoch < 2:
                seen[epoch][name] += 1
        reports.append(clips_of_host.report())
        clips_of_host.close()
    assert seen[0] == {f"clip{i}": 1 for i in range(count) if f"clip{i}" not in wrong}
    assert max(seen[1].values()) == 1 and not seen[1].keys() & wrong.keys()
    listed = [
        json.loads(line) for host in range(2) for line in (tmp_path / f"bad{host}.jsonl").read_text().splitlines()
    ]
    assert {entry["id"]: entry["cause"] for entry in listed} == wrong
    assert all(reports[0]["bad"][cause] + reports[1]["bad"][cause] >= per_cause for cause in damaged)


# Order.


class Toys:
    """A source of numbers."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return Clip(str(number), "", b"")


class ToyReader:
    """Gives what was drawn for each number; some are bad, one kills the process that reads it, one never ends."""

    def __init__(self, bad=(), kills=None, hangs=None):
        self.bad, self.kills, self.hangs = bad, kills, hangs

    def __call__(self, clip, rng):
        if int(clip.id) in self.bad:
            raise BadClip("frozen")
        if clip.id == self.kills:
            os.abort()
        if clip.id == self.hangs:
            time.sleep(1000)
        return {"drawn": rng.integers(1 << 30)}


def toys(count, batch_size, bad=(), **options):
    return Loader(Toys(count), ToyReader(bad), batch_size, **(dict(seed=5) | options))


def take(some, batches):
    """Returns [(id, drawn)] of the next batches."""
    return [pair for _ in range(batches) for batch, ids in [next(some)] for pair in zip(ids, batch["drawn"].tolist())]


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))  # batch size, hosts, batches of each


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.sets(st.integers(0, 29), max_size=6), st.lists(shapes, min_size=1, max_size=4), st.data())
def test_every_good_clip_once_an_epoch_on_any_hosts(count, bad, runs, data):
    """Runs that follow one another on other hosts with other batches skip and repeat nothing."""
    bad = {number for number in bad if number < count - 1}
    states, used = None, set()
    for batch_size, hosts, batches in runs:
        some = [toys(count, batch_size, bad, host=host, hosts=hosts) for host in range(hosts)]
        for one in some:
            if states:
                one.restore(json.loads(json.dumps(states)))
            for _ in range(data.draw(st.integers(0, batches))):
                before = one.taken
                _, ids = next(one)
                positions = [one.order.position(i) for i in range(before, one.taken)]
                clips_of = [(epoch, number) for epoch, number in map(one.order.clip, positions) if number not in bad]
                assert [str(number) for _, number in clips_of] == ids
                assert not used & set(clips_of)
                used |= set(clips_of)
        states = [one.state() for one in some]
    left, start = loader.unused(states)
    order = some[0].order
    rest = {order.clip(position) for position in [*left, *range(start, start + count)]}
    whole = {(epoch, number) for epoch in range(start // count) for number in range(count) if number not in bad}
    assert whole <= used | rest and not used & rest


def test_all_hosts_batches_are_those_of_one_host():
    alone = take(toys(10, 4), 6)
    both = [toys(10, 2, host=host, hosts=2) for host in range(2)]
    assert alone == [pair for _ in range(6) for one in both for pair in take(one, 1)]


def test_epochs_and_seeds_differ_and_all_of_a_clip_follows_from_them():
    drawn = take(toys(8, 4), 4)
    assert sorted(drawn[:8]) != sorted(drawn[8:]) and [i for i, _ in drawn[:8]] != [i for i, _ in drawn[8:]]
    assert drawn == take(toys(8, 4), 4)
    assert drawn != take(toys(8, 4, seed=6), 4)
    assert sorted(drawn[:8]) == sorted(take(toys(8, 2), 4))  # in whatever batch


def test_restored_loader_goes_on_with_the_next_batch():
    whole = toys(10, 3, bad={2, 7})
    take(whole, 5)
    state = json.loads(json.dumps(whole.state()))
    wanted = take(whole, 5)
    for again in (toys(10, 3, bad={2, 7}), whole):
        again.restore(state)
        assert again.state() == state
        assert take(again, 5) == wanted
        assert again.report() == whole.report()


def test_state_of_other_data_is_refused():
    with pytest.raises(InputError, match="clips=9"):
        toys(9, 3).restore(toys(10, 3).state())
    with pytest.raises(InputError, match="seed=6"):
        toys(10, 3, seed=6).restore(toys(10, 3).state())
    with pytest.raises(InputError, match="those of all"):
        toys(10, 3).restore(toys(10, 3, host=0, hosts=2).state())


@pytest.fixture(scope="module")
def in_process(folder):
    return list(batches(folder, 0))


def batches(folder, workers, count=6):
    config = CONFIG | dict(source=str(folder), workers=workers)
    some = loader.make(config, 4, seed=1, tokenize=letters, image_size=8)
    for _ in range(count):
        yield *next(some), some.state()
    some.close()


def letters(captions):
    ends = np.array([ord(caption[-1]) for caption in captions], np.int32)
    return {"tokens": np.array([[len(caption)] for caption in captions], np.int32), "tokens_2": ends[:, None]}


def test_batches_hold_clips_tokens_and_pictures(in_process):
    for batch, ids, _ in in_process:
        assert batch["video"].shape == (4, 4, 16, 16, 3) and batch["video"].dtype == np.uint8
        assert batch["tokens"].tolist() == [[9]] * 4 and batch["tokens_2"].tolist() == [[ord(name[-1])] for name in ids]
        assert batch["sizes"].tolist() == [[32, 32, 0, 0, 16, 16]] * 4 and batch["sizes"].dtype == np.float32
        assert (batch["pixels"] == np.stack([clip_pixels(video[0], 8) for video in batch["video"]])).all()
        assert all(np.diff(numbers_of(video)).tolist() == [2, 2, 2] for video in batch["video"])
    assert len({name for _, ids, _ in in_process for name in ids}) == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder, in_process, workers):
    for (batch, ids, state), (wanted, wanted_ids, wanted_state) in zip(batches(folder, workers), in_process):
        assert ids == wanted_ids and state == wanted_state
        assert all((batch[name] == wanted[name]).all() for name in wanted)


def test_clips_that_kill_their_worker_are_found():
    first, second = take(toys(9, 1), 2)
    some = Loader(Toys(9), ToyReader(kills=first[0], hangs=second[0]), 1, seed=5, workers=1, buffer=1, seconds=1)
    assert take(some, 3) == take(toys(9, 1), 5)[2:]
    assert some.report()["bad"] == {"kills the decoder": 2}
    some.close()


def test_workers_end_with_their_parent_and_not_before(folder):
    """SIGTERM goes to all processes of a job, SIGKILL only to one."""
    code = f"""
import multiprocessing, os, signal, sys
from i2v_jax.data import loader
if __name__ == "__main__":
    some = loader.make({CONFIG | dict(source=str(folder), workers=1)}, 1, seed=0)
    next(some)
    [worker] = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    for _ in range(20):
        next(some)
    print(worker.pid, worker.is_alive(), flush=True)
    sys.stdin.read()
"""
    script = folder.parent / "parent.py"
    script.write_text(code)
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as parent:
        worker, alive = parent.stdout.readline().split()
        assert alive == b"True"
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not os.path.exists(f"/proc/{int(worker)}"):
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


def test_bad_clips_are_listed_once(tmp_path):
    file = tmp_path / "lists" / "bad{host}.jsonl"
    for _ in range(2):  # a run, and another one after it
        take(toys(9, 2, bad={2, 7}, bad_list=str(file)), 8)
    entries = [json.loads(line) for line in (tmp_path / "lists" / "bad0.jsonl").read_text().splitlines()]
    assert sorted(entry["id"] for entry in entries) == ["2", "7"]
    assert all(entry["cause"] == "frozen" for entry in entries)


# Text.

TEXT = "a café terrace, 猫"


def captioned(path, content):
    (path / "a.mp4").write_bytes(VIDEO)
    (path / "a.txt").write_bytes(content)
    return open_source(path)[0]


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        "\ufeff".encode("utf-16-be") + TEXT.encode("utf-16-be"),
        f"\ufeff\r\n {TEXT}\ufeff\r\n".encode(),  # as files that were joined
    ],
)
def test_captions_are_utf_8_or_utf_16(tmp_path, content):
    clip = captioned(tmp_path, content)
    assert (clip.caption, clip.unreadable) == (TEXT, "")


@pytest.mark.parametrize(
    "content, what",
    [
        ("café".encode("cp1252"), "byte 0xe9"),
        ("café".encode("utf-16-le"), "byte 0xe9|number 0"),
        ("cafe".encode("utf-16-le"), "number 0 in line 1"),
        (TEXT.encode("utf-32"), "number 0"),
        (TEXT.encode("utf-16")[:-1], "truncated|0x"),
        ("猫".encode("shift_jis"), "byte 0x"),
    ],
)
def test_captions_in_other_bytes_are_bad(tmp_path, content, what):
    clip = captioned(tmp_path, content)
    with pytest.raises(BadClip, match=f"(?s)caption is no text.*not UTF-8 text.*({what})"):
        loader.Reader(Cut(4, 1, 8, 8), None)(clip, np.random.default_rng(0))
    left_out = Counter()
    assert not list(builder.records([clip], [0], left_out.update)) and left_out == {"caption is no text": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_are_utf_8_or_utf_16(tmp_path, encoding):
    (tmp_path / "clips.csv").write_bytes(f'path,caption\r\na.mp4,"{TEXT}\r\n, asleep"\r\n'.encode(encoding))
    assert open_source(tmp_path / "clips.csv")[0].caption == f"{TEXT}\r\n, asleep"
    for other in ("cp1252", "utf-16-le"):
        (tmp_path / "clips.csv").write_bytes("path,caption\na.mp4,café\n".encode(other))
        with pytest.raises(InputError, match="not UTF-8 text, nor UTF-16 with a byte order mark"):
            open_source(tmp_path / "clips.csv")


# Files.


@pytest.mark.parametrize(
    "ending, container, codec",
    [
        (".MP4", "mp4", "libx264"),
        (".m4v", "mp4", "libx264"),
        (".MOV", "mov", "libx264"),
        (".mkv", "matroska", "libx264"),
        (".webm", "webm", "libvpx-vp9"),
        (".avi", "avi", "mpeg4"),
        (".Gif", "gif", "gif"),
    ],
)
def test_videos_of_any_ending(tmp_path, ending, container, codec):
    with av.open(tmp_path / f"a{ending}", "w", format=container) as output:
        stream = output.add_stream(codec, rate=20)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "rgb8" if codec == "gif" else "yuv420p"
        stream.options = {"deadline": "realtime"} if codec == "libvpx-vp9" else {}
        for frame in clips.numbered(8) * 4:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    (tmp_path / "a.TXT").write_text("moves")
    [clip] = open_source(tmp_path)
    assert (clip.id, clip.caption, clip.video) == ("a", "moves", tmp_path / f"a{ending}")
    assert read_clip(clip.video, Cut(8, 1, 32, 32), np.random.default_rng(0)).video.shape == (8, 32, 32, 3)
    (tmp_path / "clips.csv").write_text("videoid,name\na,moves\n")
    assert open_source(tmp_path / "clips.csv")[0] == clip


def test_of_videos_of_one_name_the_mp4_is_taken(tmp_path):
    for name in ("a.gif", "a.mp4", "a.MP4", "._a.mp4", "a.txt", "b.MOV", "b.gif"):
        (tmp_path / name).touch()
    assert [clip.video.name for clip in open_source(tmp_path)] == ["a.mp4", "b.MOV"]


def test_missing_files_are_told_before_anything_is_read(folder, tmp_path):
    with pytest.warns(UserWarning, match="(?s)1 of 10 clips looked at.*1 no caption.*first is 'clip4'.*left out"):
        loader.make(CONFIG | dict(source=str(folder)), 1, seed=0)
    rows = "".join(f"clip{number}.mp4,a\n" for number in range(20))  # ten of them are there
    table = str(write_table(tmp_path, f"path,caption\n{rows}"))
    config = CONFIG | dict(source=table, videos=str(folder))
    with pytest.warns(UserWarning, match="10 of 20 clips"):
        loader.make(config, 1, seed=0)
    with pytest.raises(InputError, match="(?s)10 of 20 .*10 missing file.*'clip10'.*or raise data.max_bad=0.4"):
        loader.make(config | dict(max_bad=0.4), 1, seed=0)
    with pytest.raises(InputError, match="(?s)20 of 20 .*missing file.*no file at .*data.videos"):
        loader.make(config | dict(videos=str(tmp_path), max_bad=1.0), 1, seed=0)
    (tmp_path / "clip0.wmv").touch()
    with pytest.raises(InputError, match="clip0.mp4'; there is clip0.wmv"):
        builder.prepare(table, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("make", [str, Path])
@pytest.mark.parametrize(
    "address, mend", [("https://a.org/clips.csv", "curl"), ("gs://bucket/clips", "gcsfuse"), ("s3://b/c", "Mount")]
)
def test_addresses_are_named_whole(address, mend, make):
    for read in (open_source, load_picture):
        with pytest.raises(InputError, match=f"'{address}' is an address.*{mend}"):
            read(make(address))


# Errors.


def test_too_many_bad_clips_stop_the_run():
    some = toys(20, 2, bad=range(5), max_bad=0.2)
    with pytest.raises(InputError, match="5 of .* data.max_bad=0.2:\n  5 frozen: all frames"):
        take(some, 20)
    assert len(take(toys(20, 2, bad=range(4), max_bad=0.2), 40)) == 80


@pytest.mark.parametrize("hosts", [1, 3])
def test_no_good_clip_at_all_stops_the_run(hosts):
    with pytest.raises(InputError, match="none of the latest 9 different ones is good:\n  [0-9]+ frozen: all frames"):
        next(toys(9, 2, bad=range(9), max_bad=1.0, host=0, hosts=hosts))
    assert take(toys(9, 2, bad=range(8), max_bad=1.0, host=0, hosts=hosts), 5)  # one is enough


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(frames=0), "data.frames=0"),
        (dict(workers=-1), "data.workers=-1"),
        (dict(max_bad=2.0), "data.max_bad=2.0"),
        (dict(source="/nowhere"), "No data at '/nowhere'"),
        (dict(source="gs://bucket/clips"), "'gs://bucket/clips' is an address.*gcsfuse"),
        (dict(bad_list="gs://bucket/bad.jsonl"), "'gs://bucket/bad.jsonl' is an address"),
    ],
)
def test_config_out_of_range(folder, change, message):
    with pytest.raises(InputError, match=message):
        loader.make(CONFIG | dict(source=str(folder)) | change, 1, seed=0)


# Sources.


def write_table(path, text):
    (path / "clips.csv").write_text(text)
    return path / "clips.csv"


def test_table_in_the_layout_of_webvid(tmp_path):
    file = tmp_path / "videos" / "000001_000050" / "11.mp4"
    file.parent.mkdir(parents=True)
    file.write_bytes(VIDEO)
    table = write_table(
        tmp_path,
        'videoid,contentUrl,duration,page_dir,name\n11,https://a/b.mp4,PT00H00M10S,000001_000050,"A cat, asleep"\n'
        "12,https://a/c.mp4,PT00H00M11S,000001_000050,A dog\n",
    )
    source = open_source(table, tmp_path / "videos")
    assert len(source) == 2 and source[0] == Clip("000001_000050/11", "A cat, asleep", file)
    read_clip(source[0].video, Cut(4, 1, 8, 8), np.random.default_rng(0))
    with pytest.raises(BadClip, match="missing file"):
        read_clip(source[1].video, Cut(4, 1, 8, 8), np.random.default_rng(0))


def test_table_with_paths(tmp_path):
    source = open_source(write_table(tmp_path, "path,caption\nsub/a.webm, a \n"))
    assert source[0] == Clip("sub/a.webm", "a", tmp_path / "sub" / "a.webm")
    with pytest.raises(InputError, match="'gs://bucket/videos' is an address"):
        open_source(tmp_path / "clips.csv", "gs://bucket/videos")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"columns \(none\); wanted 'videoid'"),
        ("id,text\n1,a\n", "columns id, text; wanted"),
        ("videoid,name\n1,a,b\n", "line 2: 3 cells under 2"),
        ("videoid,name\n1,a\n1,b\n", "line 3: '1.mp4' is there twice"),
        ("videoid,name\n", "no rows"),
        ('videoid,name\n1,"a\n', "line 2: .*quotes"),
    ],
)
def test_broken_tables(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        open_source(write_table(tmp_path, text))


def test_sources_that_are_none(tmp_path):
    with pytest.raises(
        InputError, match=r"holds no videos \(.mp4, .m4v, .*\) and no pictures, but nothing. Give the folder"
    ):
        open_source(tmp_path)
    (tmp_path / "inside").mkdir()
    for name in ("a.wmv", "b.wmv", "a.txt", "notes"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="but 2 .wmv, 1 .txt, 1 folders, 1 others."):
        open_source(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a prepared dataset"):
        open_source(tmp_path)


def test_prepared_dataset_is_its_source(folder, tmp_path, capsys):
    made = builder.prepare(str(folder), tmp_path)
    assert made.left_out == {"no caption": 1}
    prepared, source = open_source(made.data_dir), open_source(folder)
    wanted = {clip.id: clip for clip in (source[i] for i in range(10)) if clip.caption}
    assert len(prepared) == 9
    for clip in (prepared[i] for i in range(9)):
        assert clip == wanted[clip.id]._replace(video=wanted[clip.id].video.read_bytes())
    some = loader.make(CONFIG | dict(source=str(made.data_dir), workers=1), 9, seed=1)
    assert sorted(next(some)[1]) == sorted(wanted)
    some.close()
    with pytest.raises(InputError, match="prepared already"):
        builder.prepare(str(folder), tmp_path)
    for above in (tmp_path, made.data_path.parent):
        with pytest.raises(InputError, match=f"holds no videos .* Give the prepared folder inside: {made.data_dir}"):
            open_source(above)


def test_any_name_can_be_prepared_quietly(tmp_path, caplog, capsys):
    (tmp_path / "a.mp4").write_bytes(VIDEO)
    table = write_table(tmp_path, "path,caption\na.mp4,a\n")  # clips.csv, in a dataset called clips
    assert len(open_source(builder.prepare(table, tmp_path / "prepared").data_dir)) == 1
    said = capsys.readouterr()
    assert not caplog.records and not said.out and "WARNING" not in said.err and "Error" not in said.err


@pytest.mark.parametrize("change", [dict(source="gs://b/clips"), dict(videos="gs://b/videos"), dict(output="gs://b")])
def test_addresses_are_not_prepared(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    given = dict(source=write_table(tmp_path, "path,caption\na.mp4,a\n"), output="prepared") | change
    with pytest.raises(InputError, match=f"{[*change.values()][0]!r} is an address"):
        builder.prepare(**given)
    assert os.listdir() == ["clips.csv"]
