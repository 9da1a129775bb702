"""What the page is made of, without Gradio and without a model: queue, dials, uploads, history, guard, words."""

import asyncio
import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.page import default, sd15
from i2v_jax import commands, media
from i2v_jax.errors import InputError
from i2v_jax.page import command, finishing, guard, uploads, views, words
from i2v_jax.page.desk import CANCELLED, DONE, FAILED, Desk
from i2v_jax.page.dials import NATURAL, NONE, Offers, Request, sizes_like, steps_like, weights_in
from i2v_jax.page.history import PICTURE, History
from i2v_jax.page.options import split
from i2v_jax.page.session import request_of
from i2v_jax.page.uploads import Crop, cropped
from i2v_jax.sampling import record

# The queue.


def test_runs_take_turns_and_one_that_fails_holds_nobody_up():
    order = []

    def work(run):
        order.append(run.task)
        if run.task == 2:
            raise ValueError("broken")
        return run.task * 10

    desk = Desk(work, 10)
    runs = [desk.submit(number) for number in range(4)]
    assert all(run.wait(10) for run in runs) and order == [0, 1, 2, 3]
    assert [run.state for run in runs] == [DONE, DONE, FAILED, DONE] and runs[3].result == 30
    assert str(runs[2].error) == "broken"


def test_a_cancelled_run_stops_between_steps_and_a_waiting_one_never_begins():
    steps, begun = [], threading.Event()

    def work(run):
        for number in range(1000):
            run.stop_if_cancelled()
            steps.append((run.task, number))
            begun.set()
            run.wait(0.01)

    desk = Desk(work, 3)
    first, second, third = (desk.submit(name) for name in "abc")
    assert begun.wait(10) and desk.before(third) == 2
    second.cancel()
    assert desk.before(third) == 1 and second.state == CANCELLED  # at once
    first.cancel()
    assert first.wait(5) and first.state == CANCELLED
    taken = len([name for name, _ in steps if name == "a"])
    third.cancel()
    assert third.wait(5) and len([name for name, _ in steps if name == "a"]) == taken < 1000
    assert not [name for name, _ in steps if name == "b"]


def test_a_full_queue_refuses():
    hold = threading.Event()
    desk = Desk(lambda run: hold.wait(10), 2)
    runs = [desk.submit(0)]
    while desk.before(runs[0]):
        pass
    runs += [desk.submit(1), desk.submit(2)]
    with pytest.raises(InputError, match="2 runs are waiting, which are the most"):
        desk.submit(3)
    runs[1].cancel()
    runs.append(desk.submit(4))  # whose place is free again
    hold.set()
    assert all(run.wait(10) for run in runs)


# Dials.


@pytest.fixture
def offers(tmp_path):
    for name in ("styles", "bases", "motions"):
        (tmp_path / name).mkdir()
    (tmp_path / "styles" / "ink.safetensors").write_bytes(b"")
    (tmp_path / "motions" / "swing.safetensors").write_bytes(b"")
    (tmp_path / "bases" / "dream").mkdir()
    (tmp_path / "bases" / "dream" / "model_index.json").write_text("{}")
    config = default.get_config()
    config.update({name: str(tmp_path / name) for name in ("styles", "bases", "motions")})
    options, sampling = split(config)
    return Offers(options, sampling, 32, 8)


def test_a_request_comes_back_from_its_record(offers, tmp_path):
    base = offers.default
    others = dict(
        prompt="a disc",
        negative_prompt="blur",
        size="64 x 40",
        length=16,
        steps=20,
        seed=7,
        motion="calm",
        closeness="tight",
        obedience="strictly",
        style="ink",
        strength="a hint",
        base="dream",
        learned_motion="swing",
    )
    for name, value in others.items():
        request = dataclasses.replace(base, **{name: value})
        if name == "strength":
            request = dataclasses.replace(request, style="ink")
        offers.check(request)
        config = offers.config_of(request, tmp_path / "x.png", tmp_path)
        assert offers.request_of(record.travelling(config)) == request, name
    whole = dataclasses.replace(base, **others)
    config = offers.config_of(whole, tmp_path / "x.png", tmp_path)
    assert offers.request_of(record.travelling(config)) == whole
    assert (config.t0, config.p, config.windows.length, config.windows.overlap) == (0.8, 1.0, 8, 4)
    assert config.adapter_scale == pytest.approx(1.2) and config.guidance_scale == pytest.approx(2.25)
    plain = offers.config_of(base, tmp_path / "x.png", tmp_path)
    own = offers.config
    same = ("t0", "p", "adapter_scale", "image_token_scale", "guidance_scale", "steps", "frames", "height", "width")
    assert all(plain[key] == own[key] for key in same) and not plain.windows.length


def test_what_is_not_offered_is_refused(offers):
    wrong = dict(
        size="512 x 512",
        length=9,
        steps=1000,
        seed=-1,
        motion="wild",
        closeness="",
        style="../../secret",
        base="/etc/passwd",
        learned_motion="swing.safetensors",
        prompt="x" * 3000,
    )
    for name, value in wrong.items():
        with pytest.raises(InputError):
            offers.check(dataclasses.replace(offers.default, **{name: value}))
    for value in ("x", None, 1.5, [], float("inf"), "1e3"):
        with pytest.raises(InputError, match="whole number"):
            request_of(dict(seed=value))
    assert request_of(dict(seed=3.0, length="8", unknown=1)) == Request(seed=3, length=8)


def test_weights_outside_of_a_folder_are_not_offered(tmp_path):
    folder, outside = tmp_path / "styles", tmp_path / "secret.safetensors"
    folder.mkdir()
    outside.write_bytes(b"")
    (folder / "link.safetensors").symlink_to(outside)
    (folder / ".hidden.safetensors").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    (folder / "ink.safetensors").write_bytes(b"")
    assert [*weights_in(str(folder))] == ["ink"] and weights_in("") == {}


def test_sizes_keep_the_pixels_and_whole_units():
    for height, width in ((48, 48), (512, 512), (1024, 1024), (320, 512)):
        found = sizes_like(height, width)
        assert found[0] == (height, width) and len(set(found)) == len(found) >= 4
        for size in found[1:]:
            assert 0.8 < size[0] * size[1] / (height * width) < 1.25
            assert not any(side % (64 if min(height, width) >= 256 else 8) for side in size)
    assert steps_like(10) == [5, 10, 20] and steps_like(4) == [4]


def test_page_keys_are_no_part_of_a_record():
    for module in (default, sd15):
        config = module.get_config()
        config.password = "secret"
        options, sampling = split(config)
        assert options.password == "secret" and "secret" not in json.dumps(record.travelling(sampling))
        known = commands.load_config(record.KEYS)
        assert set(sampling) == set(known)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("port", 80, "1024 to 65535"),
        ("share", True, "give --config.password"),
        ("styles", "/nowhere/at/all", "is no folder"),
        ("most_runs", 0, "1 or more"),
        ("preview_steps", 0, "1 or more, or unset"),
        ("offered_sizes", (48,), "pairs"),
        ("password", "@/nowhere", "no file"),
    ],
)
def test_options_out_of_range_are_refused(key, value, message):
    config = default.get_config()
    config[key] = value
    with pytest.raises(InputError, match=message):
        split(config)


def test_a_password_comes_from_a_file(tmp_path):
    config = default.get_config()
    (tmp_path / "word").write_text("open sesame\nmore\n")
    config.password = f"@{tmp_path / 'word'}"
    assert split(config)[0].password == "open sesame"


def test_a_busy_port_is_said(tmp_path):
    import socket

    config = default.get_config()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config.port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1:{config.port}.*choose another"):
            command.check_port(split(config)[0])


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "i2v-jax\[page\]"'):
        command.check_gradio()


# Pictures.


def write(folder, name, array=None, **options):
    path = folder / name
    Image.fromarray(np.zeros((4, 4, 3), np.uint8) if array is None else array).save(path, **options)
    return path


def test_crops_have_the_aspect_and_lie_where_they_are_asked_for():
    rows, columns = np.mgrid[:60, :100]
    picture = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    assert cropped(picture, Crop(), 30, 50).shape == (60, 100, 3)
    assert cropped(picture, Crop(), 48, 48).shape == (60, 60, 3)
    left = cropped(picture, Crop(2, 0, 0), 48, 48)
    right = cropped(picture, Crop(2, 1, 1), 48, 48)
    assert left.shape == right.shape == (30, 30, 3)
    assert tuple(left[0, 0]) == (0, 0, 0) and tuple(right[-1, -1]) == (59, 99, 0)
    middle = cropped(picture, Crop(1, 0.5, 0.5), 48, 48)
    np.testing.assert_array_equal(middle, picture[:, 20:80])
    for crop in (Crop(0.5), Crop(99), Crop(1, -1), Crop(1, 0.5, float("nan")), Crop("2")):
        with pytest.raises(InputError, match="wanted"):
            cropped(picture, crop, 8, 8)


def test_pictures_are_read_as_sample_reads_them_and_nothing_else_is(tmp_path):
    good = write(tmp_path, "a.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    np.testing.assert_array_equal(uploads.read(good, (tmp_path,), 1), media.load_picture(good))
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "link.png").symlink_to(good)
    wrong = [None, tmp_path / "none.png", good, folder / "link.png", folder]
    for path in wrong:
        with pytest.raises(InputError):
            uploads.read(path, (folder,), 1)
    write(folder, "large.png", np.zeros((1100, 1000, 3), np.uint8))
    with pytest.raises(InputError, match="1000x1100 pixels. Pictures of at most 1 million"):
        uploads.read(folder / "large.png", (folder,), 1)
    (folder / "bomb.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "text.png").write_bytes(b"<html>")
    for name in ("bomb.eps", "text.png"):
        with pytest.raises(InputError, match="not a picture that is known here"):
            uploads.read(folder / name, (folder,), 1)


# History.


def add_run(history, number):
    stem = history.folder / f"20260101-0000{number:02}-abcdef"
    history.folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".mp4", ".gif", ".png", PICTURE, "-finished-1.gif"):
        Path(f"{stem}{suffix}").write_bytes(b"x")
    config = dict(prompt=f"<b>{number}</b>", width=48, height=48, frames=8, steps=10, seed=number)
    Path(f"{stem}.json").write_text(json.dumps({"config": config}))
    return stem.name


def test_history_is_bounded_and_leaves_others_files_alone(tmp_path):
    history = History(tmp_path, 3)
    names = [add_run(history, number) for number in range(5)]
    (history.folder / "mine.mp4").write_bytes(b"x")
    (history.folder / "20250101-notes.json").write_text("{}")
    history.prune()
    assert history.names() == names[:1:-1]
    assert len([*history.folder.iterdir()]) == 3 * 6 + 2
    history.remove(names[4])
    assert history.names() == [names[3], names[2]]
    for name in ("../x", "", None, names[0], "*", 7):
        with pytest.raises(InputError, match="no longer there"):
            history.entry(name)
    (history.folder / f"{names[3]}.json").write_text("{")
    assert [entry.name for entry in history.entries()] == [names[2]]


def test_words_of_people_are_escaped(tmp_path):
    history = History(tmp_path, 3)
    entry = history.entry(add_run(history, 1))
    other = history.entry(add_run(history, 2))
    shown = [
        views.result(entry, ["<i>"]),
        views.history([entry]),
        views.comparison((entry, other)),
        views.failure("<b>"),
    ]
    assert not any("<b>" in html or "<i>" in html for html in shown)
    assert [name for name, *_ in views.differences(entry, other)] == ["prompt", "seed"]


def test_words_name_no_folders():
    error = InputError("'/tmp/i2v-page-x/ab c/cat.png' is truncated: give --config.image=/home/ann/x.png, or 9:16.")
    told = words.words_of(error)
    assert "/tmp" not in told and "/home" not in told and "'cat.png' is truncated" in told and "9:16" in told


def test_what_nobody_expected_is_not_told(capsys):
    assert words.words_of(KeyError("/home/someone/secret")) == words.UNKNOWN and "secret" in capsys.readouterr().err


def test_wishes_that_are_not_offered_are_refused(tmp_path):
    for name, value in dict(aspect="x", height="9", format="EXE", times=99, text="x" * 999, place="up").items():
        with pytest.raises(InputError):
            dataclasses.replace(finishing.Wishes(), **{name: value}).check((tmp_path,))
    with pytest.raises(InputError, match="Upload it again"):
        finishing.Wishes(music=Path("/etc/passwd")).check((tmp_path,))


# The guard.


def asked(guarded, path, method="GET", headers=(), body=b""):
    """Status and headers of an answer to one request."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = dict(type="http", method=method, path=path, raw_path=path.encode(), headers=list(headers))
    asyncio.run(guarded(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.fixture
def guarded(tmp_path):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for name in ("up", "runs"):
        (tmp_path / name).mkdir()
    folders = (tmp_path / "up", tmp_path / "runs")
    return guard.Guard(app, folders, tmp_path / "up", 1000, 3000, ("127.0.0.1", "localhost"))


LOCALHOST = (b"host", b"localhost:7860")


def test_guard_serves_two_folders_and_few_addresses(guarded, tmp_path):
    inside, secret = tmp_path / "runs" / "a.mp4", tmp_path / "secret.mp4"
    for path in (inside, secret, tmp_path / "runs" / ".x.mp4", tmp_path / "runs" / "a.pem"):
        path.write_bytes(b"x")
    (tmp_path / "runs" / "link.mp4").symlink_to(secret)
    given = [LOCALHOST]
    for path in ("/", "/config", "/assets/a-b.js", f"/gradio_api/file={inside}", "/gradio_api/queue/data"):
        assert asked(guarded, path, headers=given)[0] == 200, path
    names = (secret, inside.with_name("link.mp4"), inside.with_name(".x.mp4"), inside.with_name("a.pem"))
    names = (
        *names,
        inside.parent,
        f"{inside.parent}/../secret.mp4",
        "runs/a.mp4",
        "http://a.b/c.mp4",
        "\0",
        "x" * 9999,
    )
    for path in names:
        assert asked(guarded, f"/gradio_api/file={path}", headers=given)[0] in (403, 404), path
    for path in (
        "/docs",
        "/gradio_api/proxy=http://a",
        "/gradio_api/vibe-code",
        "/monitoring",
        "/gradio_api/run/animate",
    ):
        assert asked(guarded, path, headers=given)[0] == 404, path
    assert asked(guarded, "/gradio_api/run/animate", "POST", given)[0] == 404
    assert asked(guarded, "/", "DELETE", given)[0] == 405
    assert asked(guarded, "/", headers=[(b"host", b"evil.example")])[0] == 403  # a name that was made to lead here
    _, headers = asked(guarded, "/", headers=given)
    assert b"connect-src 'self'" in headers[b"content-security-policy"]


def test_guard_bounds_requests_whatever_they_say_of_their_length(guarded):
    for path, most in (("/gradio_api/upload", 1000), ("/gradio_api/queue/join", guard.LARGEST_CALL)):
        said = [LOCALHOST, (b"content-length", str(most + 1).encode())]
        assert asked(guarded, path, "POST", said)[0] == 413
        assert asked(guarded, path, "POST", [LOCALHOST], bytes(most + 1))[0] == 413
        assert asked(guarded, path, "POST", [LOCALHOST], bytes(most))[0] == 200
    assert asked(guarded, "/", headers=[LOCALHOST, (b"content-length", b"-1")])[0] == 400


def test_old_uploads_make_place(guarded, tmp_path):
    import os
    import time

    for number in range(4):
        path = tmp_path / "up" / f"{number}" / "a.png"
        path.parent.mkdir()
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - 1000 + number,) * 2)
    assert asked(guarded, "/gradio_api/upload", "POST", [LOCALHOST])[0] == 200
    assert [path.name for path in sorted((tmp_path / "up").iterdir())] == ["1", "2", "3"]
    (tmp_path / "up" / "new.png").write_bytes(bytes(5000))
    assert asked(guarded, "/gradio_api/upload", "POST", [LOCALHOST])[0] == 503  # a new one is spared


def test_natural_stands_in_every_dial():
    from i2v_jax.page.dials import CLOSENESS, OBEDIENCE

    assert CLOSENESS[NATURAL] == (1, 1) and OBEDIENCE[NATURAL] == 1 and NONE == Request().style
