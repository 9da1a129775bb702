"""The user study: the page is blind and answered in a browser; rankings are read back; what does not fit is refused."""

import base64
import contextlib
import io
import json
import re
import shutil
import threading
import urllib.error
import urllib.request

import av
import numpy as np
import pytest
import scipy.stats

from i2v_jax import media
from i2v_jax.errors import InputError
from i2v_jax.evaluation.study import command
from i2v_jax.evaluation.study.answers import checked, ranks, read_answers
from i2v_jax.evaluation.study.key import read_key
from i2v_jax.evaluation.study.results import results
from i2v_jax.evaluation.study.serving import server
from i2v_jax.evaluation.study.statistics import agreement, average_ranks, differences, kendalls_w

RUNS = ("zebra-net", "yak-net", "walrus-net")
CASES = ("harbour", "meadow")
QUESTIONS = ("consistency", "quality", "motion")


def make_study(folder, *options, runs=RUNS, cases=CASES):
    """A study of tiny videos, with pictures and prompts; returns the page's path."""
    for number, run in enumerate(runs):
        for case in cases:
            frames = np.full((4, 32, 48, 3), 60 * number + 40, np.uint8)
            frames[:, :, 8:16] = (40 * np.arange(4, dtype=np.uint8))[:, None, None, None]
            media.write_video(folder / "videos" / run / f"{case}.mp4", frames, 8, overwrite=True)
    for case in cases:
        media.write_png(folder / "pictures" / f"{case}.png", np.full((32, 48, 3), 90, np.uint8), overwrite=True)
        (folder / "pictures" / f"{case}.txt").write_text("a </script><b>prompt</b>")
    page = folder / "study.html"
    named = [f"{run}={folder / 'videos' / run}" for run in runs]
    command.main(["make", *named, f"--source={folder / 'pictures'}", f"--to={page}", *options])
    return page


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


def data_of(page):
    """What the page's script reads."""
    (found,) = re.findall(r'<script type="application/json" id="study">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found)


def answers_of(page, person, order, **changes):
    """Answers as the page saves them, of someone to whom runs are of one order by all questions."""
    key, data = read_key(page), data_of(page)
    cases = []
    for case in reversed(data["cases"]):
        owners = key.videos[case["case"]]
        ranked = sorted(case["videos"], key=lambda video: order.index(owners[video]))
        rankings = {question["name"]: ranked for question in data["questions"]}
        cases.append(dict(case=case["case"], shown=list(case["videos"]), seconds=3, rankings=rankings))
    content = dict(format="i2v study answers 1", study=data["study"], person=f"{person:032x}", name="")
    return {**content, "started": "2024-01-01", "finished": f"2024-01-02T{person:02}", "cases": cases, **changes}


def saved(folder, *contents):
    paths = [folder / f"answers-{i}.json" for i in range(len(contents))]
    for path, content in zip(paths, contents):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return list(map(str, paths))


# What the page gives away.


def test_page_names_no_run_and_no_file(study):
    page = study.read_text()
    for word in (*RUNS, *CASES, "videos/", "pictures/", str(study.parent)):
        assert word not in page
    for case in data_of(study)["cases"]:
        for content in case["videos"].values():
            with av.open(io.BytesIO(base64.b64decode(content))) as video:
                told = {**video.metadata, **video.streams.video[0].metadata}
                assert video.streams.video[0].codec_context.name == "h264"
            assert not any(word in str(told) for word in (*RUNS, *CASES))
    assert not re.search(r"https?:|(?:src|href)=", page)  # nothing is fetched


def test_orders_and_ids_are_drawn_by_the_seed(tmp_path):
    cases = tuple(f"case{i}" for i in range(12))
    runs = RUNS[:2]
    one, again, other = (
        make_study(tmp_path / name, f"--seed={seed}", runs=runs, cases=cases)
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert one.read_bytes() == again.read_bytes()
    key, data = read_key(one), data_of(one)
    first = [key.videos[case["case"]][next(iter(case["videos"]))] for case in data["cases"]]
    assert set(first) == set(runs)  # no run is always the first
    ids = {video for case in data["cases"] for video in case["videos"]} | set(key.cases)
    assert len(ids) == len(cases) * 3 and list(key.cases.values()) != list(cases)
    assert not ids & {video for case in data_of(other)["cases"] for video in case["videos"]}
    few = make_study(tmp_path / "few", "--cases=5", runs=runs, cases=cases)
    assert len(read_key(few).cases) == 5


def test_prompt_cannot_leave_its_script(study):
    assert "</script><b>" not in study.read_text()
    assert data_of(study)["cases"][0]["prompt"] == "a </script><b>prompt</b>"


# What answers come to.


def test_answers_are_read_back(study, tmp_path, capsys):
    orders = [RUNS, RUNS, (RUNS[1], RUNS[0], RUNS[2])]
    files = saved(tmp_path, *(answers_of(study, i, order) for i, order in enumerate(orders)))
    command.main(["read", str(study), *files, f"--to={tmp_path / 'results'}"])
    found = json.loads((tmp_path / "results.json").read_text())
    for name in (*QUESTIONS, "overall"):
        values = [found["average_user_ranking"][name][run]["value"] for run in RUNS]
        np.testing.assert_allclose(values, [4 / 3, 5 / 3, 3])
        for run in RUNS:
            one = found["average_user_ranking"][name][run]
            assert one["low"] <= one["value"] <= one["high"]
    assert found["average_user_ranking"]["overall"][RUNS[2]] == dict(value=3.0, low=3.0, high=3.0)
    assert found["people"] == 3 and found["agreement"]["motion"]["w"]["value"] == pytest.approx(7 / 9)
    text = capsys.readouterr().out
    assert f"| {RUNS[0]} | **1.33** [" in text and f"| {RUNS[2]} | 3.00 [3.00, 3.00] |" in text
    assert (tmp_path / "results.md").read_text() in text


def random_ranks(people, cases, runs, seed=0):
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((people, cases, runs)), -1).argsort(-1) + 1.0


def test_kendalls_w_is_friedmans():
    """chi2 = m (n - 1) W."""
    ranked = random_ranks(7, 1, 5)[:, 0]
    chi2 = scipy.stats.friedmanchisquare(*ranked.T).statistic
    assert kendalls_w(ranked) == pytest.approx(chi2 / (7 * 4))


def test_agreement_has_its_chance_level():
    """Random rankings: W is 1 / people, the mean correlation of two people that of scipy, about 0."""
    found = agreement(random_ranks(4, 400, 5))
    assert found.w.low < found.chance == 0.25 < found.w.high and abs(found.spearman) < 0.05
    ranked = random_ranks(4, 1, 5)
    pairs = scipy.stats.spearmanr(ranked[:, 0], axis=1).statistic[np.triu_indices(4, 1)]
    assert agreement(ranked).spearman == pytest.approx(pairs.mean())
    alike = np.broadcast_to(random_ranks(1, 6, 4), (3, 6, 4))
    assert agreement(alike).w == (1, 1, 1)
    alone = agreement(alike[:1])
    assert np.isnan(alone.w.value) and alone.people == 1


def test_intervals_hold_the_truth_and_widen_with_what_differs():
    """Of 50 studies about 95 % of the intervals hold the mean of all people, on the safe side."""
    truth, inside, rng = np.array([1.8, 2.0, 2.2]), [], np.random.default_rng(0)
    for seed in range(50):
        drawn = truth + 0.3 * rng.normal(size=(8, 1, 3)) + 0.3 * rng.normal(size=(1, 10, 3))
        drawn = drawn + 0.3 * rng.normal(size=(8, 10, 3))
        inside += [low <= mean <= high for mean, (_, low, high) in zip(truth, average_ranks(drawn, seed))]
    assert 0.88 < np.mean(inside) <= 1
    noisy, one = random_ranks(5, 8, 3), average_ranks(random_ranks(5, 8, 3))[0]
    assert one.value == noisy[..., 0].mean() and one.high - one.low > 0.2
    assert differences(noisy)[1, 0].value == pytest.approx((noisy[..., 1] - noisy[..., 0]).mean())


def test_incomplete_answers_count_where_asked(study, tmp_path):
    key = read_key(study)
    part = answers_of(study, 1, RUNS)
    part["cases"] = part["cases"][:1]
    del part["cases"][0]["rankings"]["motion"]
    files = saved(tmp_path, part, answers_of(study, 2, RUNS[::-1]))
    with pytest.raises(InputError, match="answers-0.json: it is incomplete: 4 of 6 rankings lack, such as consi"):
        read_answers(files, key)
    people, _ = read_answers(files, key, incomplete=True)
    assert np.isnan(ranks(people, key, "motion")[0]).all() and np.isnan(ranks(people, key, "quality")[0]).sum() == 3
    found = results(people, key)["average_user_ranking"]
    assert found["quality"][RUNS[0]].value == pytest.approx(7 / 3) and found["motion"][RUNS[0]].value == 3


def test_of_a_persons_files_the_newest_counts(study, tmp_path):
    older, newer = answers_of(study, 1, RUNS), answers_of(study, 1, RUNS[::-1], finished="2024-03-01")
    for contents in ((older, newer), (newer, older)):
        people, notes = read_answers(saved(tmp_path, *contents), read_key(study))
        assert [one.finished for one in people] == ["2024-03-01"] and len(notes) == 1


# Bad input.


def spoilt(study, how):
    content = answers_of(study, 1, RUNS)
    case = content["cases"][0]
    ids = list(case["shown"])
    changes = {
        "another study": lambda: content.update(study="0123456789abcdef"),
        "another file": lambda: content.update(format="other"),
        "no person": lambda: content.update(person="../../etc"),
        "a tie": lambda: case["rankings"].update(motion=[ids[0], ids[0], ids[1]]),
        "one left out": lambda: case["rankings"].update(motion=ids[:2]),
        "another question": lambda: case["rankings"].update(beauty=ids),
        "no order shown": lambda: case.pop("shown"),
        "a case twice": lambda: content["cases"].append(case),
        "an unknown case": lambda: case.update(case="nowhere"),
        "a case that is a list": lambda: case.update(case=[1]),
        "numbers": lambda: case["rankings"].update(motion=[1, 2, 3]),
    }
    changes[how]()
    return content


@pytest.mark.parametrize(
    "how, message",
    [
        ("another study", "of another study"),
        ("another file", "no answers of a study"),
        ("no person", "damaged: wanted 'person'"),
        ("a tie", "motion: .* without ties"),
        ("one left out", "each of its 3 videos once"),
        ("another question", "wants rankings by consistency, quality, motion"),
        ("no order shown", "the order shown"),
        ("a case twice", "stands twice"),
        ("an unknown case", "case 'nowhere' is not of this study"),
        ("a case that is a list", "not of this study"),
        ("numbers", "without ties"),
    ],
)
def test_answers_that_do_not_fit_are_refused(study, how, message):
    with pytest.raises(InputError, match=message):
        checked(spoilt(study, how), read_key(study), incomplete=True)


def test_all_bad_files_are_told_at_once(study, tmp_path):
    good = answers_of(study, 1, RUNS)
    files = saved(tmp_path, json.dumps(good)[:100], "[1]", good, spoilt(study, "another study"))
    (tmp_path / "answers-4.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError) as error:
        command.main(["read", str(study), *files, str(tmp_path / "answers-4.json"), str(tmp_path / "absent.json")])
    lines = str(error.value).splitlines()
    assert [re.search(r"(answers-\d|absent)", line)[1] for line in lines] == [
        *("answers-0", "answers-1", "answers-3", "answers-4", "absent")
    ]


@pytest.mark.parametrize("content", ["{}", "[", '{"format": "i2v study key 1"}'])
def test_damaged_keys_are_refused(study, tmp_path, content):
    (tmp_path / "study.key.json").write_text(content)
    with pytest.raises(InputError, match="key"):
        command.main(["read", str(tmp_path / "study.html"), *saved(tmp_path, answers_of(study, 1, RUNS))])


def test_runs_that_do_not_fit_are_refused(study, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(study.parent / "videos", videos)
    two = [f"a={videos / RUNS[0]}", f"b={videos / RUNS[1]}"]
    to = f"--to={tmp_path / 'page.html'}"

    def refused(*arguments, match):
        with pytest.raises(InputError, match=match):
            command.main(["make", to, *arguments])
        assert not list(tmp_path.glob("page*"))

    refused(two[0], match="1 runs: wanted 2 to 12")
    refused(two[0], two[0], match="stands twice")
    refused(two[0], "b", match="wanted NAME=FOLDER")
    refused(two[0], f"b={tmp_path / 'none'}", match="no folder of videos")
    refused(*two, "--cases=3", match="3 cases of 2")
    refused(*two, "--side=2", match="16 pixels")
    refused(*two, "--question=a", match="NAME=TEXT")
    (videos / RUNS[1] / "meadow.mp4").unlink()
    refused(*two, match="b lacks meadow.*--common")
    (videos / RUNS[1] / "harbour.mp4").write_bytes(b"no video")
    refused(*two, "--common", match="harbour.mp4: not a video")
    (videos / RUNS[1] / "harbour.mp4").rename(videos / RUNS[1] / "other.mp4")
    refused(*two, "--common", match="No case has a video of every run")


def test_a_page_is_not_written_over(study):
    before = study.read_bytes(), read_key(study)
    with pytest.raises(InputError, match="is there already"):
        make_study(study.parent, "--seed=9")
    assert (study.read_bytes(), read_key(study)) == before


# The server.


@contextlib.contextmanager
def served(study, folder):
    with server(study.read_bytes(), read_key(study), folder, "127.0.0.1", 0, log=lambda _: None) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def asked(address, content=None):
    """Status and body."""
    data = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data)) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_server_keeps_what_fits_and_serves_nothing_else(study, tmp_path):
    with served(study, tmp_path / "answers") as address:
        assert asked(f"{address}/") == (200, study.read_bytes())
        for path in ("/study.key.json", "/../study.key.json", "/answers"):
            assert asked(address + path)[0] == 404
        assert asked(f"{address}/answers", answers_of(study, 1, RUNS))[0] == 200
        assert asked(f"{address}/answers", answers_of(study, 1, RUNS[::-1]))[0] == 200  # changed, and sent again
        for content in (b"{", b"[" * 10**5, b"[]", spoilt(study, "a tie"), spoilt(study, "another study")):
            assert asked(f"{address}/answers", content)[0] == 400
        assert asked(f"{address}/elsewhere", answers_of(study, 2, RUNS))[0] == 404
    files = sorted((tmp_path / "answers").iterdir())
    assert [json.loads(file.read_text())["person"] for file in files] == [f"{1:032x}"] * 2


def test_serve_refuses_a_page_of_another_study(study, tmp_path):
    other = make_study(tmp_path, "--seed=5")
    shutil.copy(study.with_suffix(".key.json"), other.with_suffix(".key.json"))
    with pytest.raises(InputError, match="not of the study"):
        command.main(["serve", str(other)])


# A browser.


@contextlib.contextmanager
def person(browser, address, **options):
    """A person's page, in a browser that remembers nothing of others; it fetches nothing, and nothing in it fails."""
    context = browser.new_context(accept_downloads=True, **options)
    page = context.new_page()
    page.set_default_timeout(30_000)
    faults, fetched = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(address)
    yield page
    base = address.rpartition("/")[0]
    assert not faults and all(url.startswith((base, "blob:", "data:")) for url in fetched)
    context.close()


def until(page, condition):
    """Waits for something that the page's policy lets nobody wait for within it."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(condition)


def wanted_order(page, key, order):
    """Letters of the shown case's videos in the order that a person likes runs in."""
    shown = page.eval_on_selector_all("fieldset:first-of-type button", "all => all.map(one => one.dataset.video)")
    owners = next(owners for owners in key.videos.values() if shown[0] in owners)
    return ["ABC"[i] for i in sorted(range(3), key=lambda i: order.index(owners[shown[i]]))]


def choose_by(page, key, order, press):
    for name in QUESTIONS:
        assert page.locator("#next").is_disabled()
        for letter in wanted_order(page, key, order)[:2]:  # the last comes by itself
            press(name, letter)
    assert page.locator("#next").is_enabled()


def button(page, question, letter):
    return page.locator(f"fieldset[data-question={question}] button").nth("ABC".index(letter))


def reload(page):
    """As a person does, a moment after the last answer: the browser's store is written behind the page's back."""
    page.wait_for_timeout(500)
    page.reload()


def save(page, folder):
    with page.expect_download() as found:
        page.click("#save")
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path


def test_three_people_answer_in_a_browser(study, browser, tmp_path):
    """By mouse, by keyboard and on a phone; saved as files from the disk, and sent to the server."""
    key = read_key(study)
    with person(browser, study.as_uri()) as page:
        assert page.locator("#count").inner_text() == "0 / 2"
        page.fill("#name", "Ann O'Neil")
        page.click("#begin")
        until(page, "[...document.querySelectorAll('video')].every(one => one.videoWidth === 48 && !one.paused)")
        assert page.locator("b", has_text="prompt").count() == 0
        for _ in CASES:
            choose_by(page, key, RUNS, lambda name, letter: button(page, name, letter).click())
            page.click("#next")
        first = save(page, tmp_path)
        assert "Ann-O-Neil" in first.name
        assert not any(run in page.content() for run in RUNS)
    with person(browser, study.as_uri()) as page:
        page.locator("#begin").press("Enter")
        for _ in CASES:
            choose_by(page, key, RUNS, lambda name, letter: page.keyboard.press(letter.lower()))
            page.keyboard.press("ArrowRight")
        second = save(page, tmp_path)
    with (
        served(study, tmp_path / "sent") as address,
        person(browser, f"{address}/", viewport=dict(width=390, height=800), has_touch=True, is_mobile=True) as page,
    ):
        page.tap("#begin")
        liked = (RUNS[1], RUNS[0], RUNS[2])
        for _ in CASES:
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            choose_by(page, key, liked, lambda name, letter: button(page, name, letter).tap())
            page.tap("#next")
        page.tap("#save")
        until(page, "document.getElementById('told').textContent.startsWith('Sent.')")
    (third,) = (tmp_path / "sent").iterdir()
    people, notes = read_answers([first, second, third], key)
    found = results(people, key)["average_user_ranking"]["overall"]
    assert len(people) == 3 and not notes
    np.testing.assert_allclose([found[run].value for run in RUNS], [4 / 3, 5 / 3, 3])


def test_page_remembers_takes_back_and_saves_no_part_as_the_whole(study, browser, tmp_path):
    key = read_key(study)
    with person(browser, study.as_uri()) as page:
        page.click("#begin")
        order = page.eval_on_selector_all("fieldset:first-of-type button", "all => all.map(one => one.dataset.video)")
        for letter in "ba":
            page.keyboard.press(letter)
        page.keyboard.press("Backspace")  # the last, which came by itself, and the one before
        page.keyboard.press("ArrowRight")  # does nothing yet
        reload(page)
        pressed = 'fieldset:first-of-type button[aria-pressed="true"]'
        assert page.locator(pressed).all_inner_texts() == ["B\n1."]
        assert order == page.eval_on_selector_all(
            "fieldset:first-of-type button", "all => all.map(one => one.dataset.video)"
        )
        for letter in "abcabcabc":
            page.keyboard.press(letter)
        assert page.locator("fieldset:first-of-type .hint").inner_text().startswith("B › A › C")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        with page.expect_download() as found:
            page.click("#part")
        found.value.save_as(tmp_path / "part.json")
        reload(page)
        assert page.locator("#begin").inner_text() == "Go on with case 2"
    with pytest.raises(InputError, match="incomplete: 3 of 6"):
        read_answers([tmp_path / "part.json"], key)
    people, _ = read_answers([tmp_path / "part.json"], key, incomplete=True)
    (rankings,) = [one for one in people[0].rankings.values() if one]
    assert rankings["consistency"] == [order[1], order[0], order[2]] and rankings["motion"] == order
