"""The page as people and programs use it: in a browser, by HTTP, many at once, and with bad intent."""

import io
import json
import re
import subprocess
import time
import wave

import av
import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import page_load
from i2v_jax.weights.storage.open import open_tensors
from tests import pages
from tests.processes import ROOT

SMALL_WORLD = ROOT / "assets" / "small_world"
STEPS = 3, 300  # the second takes long enough to be stopped
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A page with a style to choose from."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "styles").mkdir()
    out, into = open_tensors(SMALL_WORLD / "unet")[f"{LAYER}.weight"].shape
    random, layer = np.random.default_rng(0), f"lora_unet_{LAYER.replace('.', '_')}"
    factors = {"lora_down": random.normal(size=(4, into)), "lora_up": random.normal(size=(out, 4))}
    tensors = {f"{layer}.{name}.weight": array.astype(np.float32) for name, array in factors.items()}
    save_file(tensors, folder / "styles" / "ink.safetensors")
    options = f"--config.offered_steps={STEPS}", f"--config.styles={folder / 'styles'}", "--config.most_runs=4"
    with pages.served(folder, *options, "--config.most_megabytes=1", "--config.preview_steps=2") as running:
        yield running
        assert "Traceback" not in (folder / "log.txt").read_text()


def frames_of(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


# A browser.


@pytest.fixture
def person(browser, server):
    """Returns a function that opens the page; nothing is asked of other places, and nothing in the browser fails."""
    contexts, faults, asked = [], [], []

    def opened(**options):
        contexts.append(browser.new_context(accept_downloads=True, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.address)
        page.wait_for_selector("#start")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults and all(url.startswith((server.address, "data:", "blob:")) for url in asked)


def fill(page, picture, prompt, steps=STEPS[0]):
    page.set_input_files("#picture input[type=file]", picture)
    page.wait_for_selector("#picture img")
    page.fill("#prompt textarea", prompt)
    if steps != STEPS[0]:  # which is chosen at first
        page.click("button:has-text('Size, length, seed')")
        choose(page, steps)


def choose(page, value):
    """Presses what a dial calls something, the first that does."""
    page.click(f'label:has(input[value="{value}"]) >> nth=0')


def download(page, selector, folder) -> bytes:
    with page.expect_download() as found:
        page.click(selector)
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path.read_bytes()


def test_a_picture_is_animated_compared_loaded_again_and_finished(person, server, tmp_path):
    page = person()
    fill(page, SMALL_WORLD / "pictures" / "13.png", "a yellow ring, the camera pans right")
    page.click("#start")
    page.wait_for_selector("#stage .working")
    page.wait_for_selector("#stage .done video")
    name = page.get_attribute("#stage .done", "data-run")
    page.wait_for_function("document.querySelector('#stage video').videoWidth === 48")
    made = download(page, "#stage a >> text=Video", tmp_path)
    assert frames_of(made).shape == (8, 48, 48, 3)
    record = json.loads(download(page, "#stage a >> text=Record", tmp_path))
    assert (
        record["config"]["prompt"] == "a yellow ring, the camera pans right" and record["config"]["steps"] == STEPS[0]
    )

    # another, calmer
    choose(page, "calm")
    page.click("#start")
    page.wait_for_selector(f'#stage .done:not([data-run="{name}"])')
    assert page.locator("#history button").count() == 2

    # side by side, in a page that was opened anew
    page.reload()
    page.click("button[role=tab]:has-text('Compare')")
    page.wait_for_selector("#pair video >> nth=1")
    assert "t0" in page.inner_text("#pair table") and "0.8" in page.inner_text("#pair table")

    # loaded again from the history
    page.click("button[role=tab]:has-text('Animate')")
    page.click(f'#history button[data-name="{name}"]')
    page.wait_for_selector(f'#stage .done[data-run="{name}"]')
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('a yellow ring')")
    assert page.get_by_label("natural", exact=True).first.is_checked()
    assert page.locator("#picture img").count() == 1

    # finished
    page.click("button:has-text('Finish for posting')")
    page.fill("#words textarea, #words input", "Hello")
    page.click("#make-finished")
    page.wait_for_selector("#finished video")
    done = download(page, "#finished a", tmp_path)
    assert frames_of(done).shape == (8, 480, 480, 3)
    with av.open(io.BytesIO(done)) as video:
        assert json.loads(video.metadata["comment"])["sample"]["config"]["seed"] == record["config"]["seed"]


def test_stop_ends_the_work(person, server):
    page = person()
    before = set(server.files())
    fill(page, SMALL_WORLD / "pictures" / "2.png", "a white heart moves up", STEPS[1])
    page.click("#start")
    page.wait_for_function("/Step [1-9]\\d* of 300/.test(document.getElementById('stage').innerText)")
    page.wait_for_selector("#stage .working img")  # a preview
    page.click("#stop")
    page.wait_for_selector("#stage .stopped")
    step = int(re.search(r"after step (\d+) of 300", page.inner_text("#stage"))[1])
    assert 0 < step < 290 and page.locator("#start").is_visible()
    at_rest(server)
    left = {path for path in set(server.files()) - before if path.suffix != ".txt" and "i2v-page-" not in str(path)}
    assert not left


def at_rest(server, seconds=2.0):
    """Asserts that the server computes nothing any more."""
    time.sleep(0.5)
    began = server.seconds()
    time.sleep(seconds)
    assert (server.seconds() - began) / seconds < 0.5


def test_closing_the_page_ends_the_work(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(server.address)
    page.wait_for_selector("#start")
    fill(page, SMALL_WORLD / "pictures" / "2.png", "a white heart moves up", STEPS[1])
    page.click("#start")
    page.wait_for_function("/Step [1-9]\\d* of 300/.test(document.getElementById('stage').innerText)")
    context.close()
    time.sleep(2)
    at_rest(server)


def test_what_is_wrong_is_said_in_words_on_a_phone(person, server, tmp_path):
    page = person(viewport=dict(width=390, height=800), has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.tap("#start")
    page.wait_for_selector("#stage .failed")
    assert "Give a picture first" in page.inner_text("#stage")
    page.tap("button:has-text('Crop')")
    (tmp_path / "none.png").write_bytes(b"<script>alert(1)</script>")
    page.set_input_files("#picture input[type=file]", tmp_path / "none.png")
    page.wait_for_selector("#crop .wrong")
    page.tap("#start")
    page.wait_for_function("document.querySelector('#stage').innerText.includes('not a picture that is known here')")
    told = page.inner_text("#stage")
    assert "none.png" in told and "/tmp" not in told and "Traceback" not in told
    page.tap("#examples button >> nth=1")
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a white heart moves up'")
    page.wait_for_selector("#crop img")


# By HTTP.


def ask(server, **changes):
    """What comes of a run that is asked for by HTTP: the last that is told."""
    status, reply = server.upload("a.png", (SMALL_WORLD / "pictures" / "0.png").read_bytes())
    assert status == 200
    arguments = page_load.animate_arguments(page_load.uploaded(reply), 1)
    names = ("picture", "prompt", "negative_prompt", "size", "length", "steps", "seed", "motion", "closeness")
    names += ("obedience", "style", "strength", "base", "learned_motion", "zoom", "x", "y")
    given = dict(zip(names, arguments, strict=True)) | dict(steps=STEPS[0]) | changes
    status, reply = server.call("animate", [*given.values()])
    assert status == 200
    return json.loads(re.findall(rb"event: (?:complete|error)\ndata: (.*)", reply)[-1])


def fetched(server, file) -> bytes:
    status, content = server.ask(f"{page_load.API}/file={file['path']}")
    assert status == 200
    return content


def test_a_record_of_the_page_is_sample_pys_and_a_style_changes_the_video(server, tmp_path):
    (told,) = ask(server)
    record = server.folder / "output" / "page" / f"{told['name']}.json"
    command = [
        page_load.PYTHON,
        "sample.py",
        f"--config={record}",
        f"--config.output={tmp_path}",
        "--config.strict=True",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=server.variables)
    (again,) = tmp_path.glob("*.mp4")
    plain = fetched(server, told["video"])
    np.testing.assert_array_equal(frames_of(again.read_bytes()), frames_of(plain))
    (styled,) = ask(server, style="ink", strength="full")
    assert not np.array_equal(frames_of(fetched(server, styled["video"])), frames_of(plain))
    (shown,) = json.loads(re.findall(rb"event: complete\ndata: (.*)", server.call("history", [1])[1])[-1])
    assert shown[0]["request"]["style"] == "ink" and shown[0]["name"] == styled["name"]


def test_music_is_heard_and_what_is_none_is_refused(server):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        tone = 8000 * np.sin(np.arange(16000) * 0.3)
        file.writeframes(tone.astype("<i2").tobytes())
    name = max(path.stem for path in (server.folder / "output" / "page").glob("*.json"))
    for content, is_sound in ((buffer.getvalue(), True), (b"no sound at all", False)):
        music = page_load.uploaded(server.upload("tone.wav", content)[1])
        wishes = [name, "square 1:1", "cut", "as it is", "MP4 (H.264)", 2, "", "top", music]
        status, reply = server.call("finish", wishes)
        if is_sound:
            (made,) = json.loads(re.findall(rb"event: complete\ndata: (.*)", reply)[-1])
            with av.open(io.BytesIO(fetched(server, made))) as video:
                assert video.streams.audio and video.streams.video[0].frames == 16
        else:
            assert b"is no music that can be read" in reply and b"/tmp" not in reply


def test_the_example_of_the_documentation_runs(server, tmp_path):
    text = (ROOT / "docs" / "page.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = example.replace("http://127.0.0.1:7860", server.address)
    done = subprocess.run(
        [page_load.PYTHON, "-c", script], cwd=ROOT, capture_output=True, text=True, env=server.variables
    )
    assert done.returncode == 0, done.stderr
    assert "'state': 'done'" in done.stdout and done.stdout.strip().endswith(".webm")


def test_many_at_once_some_of_whom_leave(server):
    found = page_load.clients(server, 6, 2, steps=STEPS[0], leaving_steps=STEPS[1])
    assert found == {"made": 4, "left": 2}
    at_rest(server)


def test_malice_is_refused_and_leaks_nothing(server):
    found = page_load.attack(server, 120)
    assert sum(found.values()) == 120
    strange = [what for what in found if "refused" not in what and what != "picture: made"]
    assert not strange and found["picture: made"] <= 1, found  # a good one, under a name that leads elsewhere
    status, reply = server.upload("large.png", bytes(3 * 10**6))
    assert status == 413
    assert ask(server)[0]["state"] == "done"  # and it goes on


def test_memory_of_uploads_and_runs_is_bounded(server):
    for seed in range(5):
        ask(server, seed=seed)
    names = {path.name[:22] for path in (server.folder / "output" / "page").iterdir()}
    assert len(names) == 4


def test_a_password_is_asked_for(tmp_path):
    with pages.served(tmp_path, "--config.password=sesame") as server:
        assert server.ask("config")[0] == server.ask(f"{page_load.API}/queue/data?session_hash=a")[0] == 401
        assert server.call("options", [])[0] == 401 and server.upload("a.png", b"x")[0] == 401
        wrong, right = (f"username=ann&password={word}".encode() for word in ("open", "sesame"))
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        assert server.ask("login", wrong, kind)[0] == 400 and server.ask("login", right, kind)[0] == 200
