"""What a run of sampling is asked for and says, with nothing compiled: jobs, going on, records, the bar, messages."""

import json
import re
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from i2v_jax import commands, media
from i2v_jax.cli import sample
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError, flags_in_messages, in_python_words, python_words
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.sampling import batches, command_line, inputs, jobs, record, run, trained_at
from i2v_jax.sampling.presets import preset
from i2v_jax.sampling.progress import COMPILING, Progress, TimeLeft, Work
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.watch import SILENT

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "tests" / "configs" / "sample.py"
BUNDLED = ROOT / "assets" / "small_world"
HASHES = {"/weights/unet.safetensors": "a" * 64}


def config(*flags):
    argv = command_line.begun(["sample.py", *map(str, flags)], sample.BUNDLED, sample.DEFAULT)
    return commands.read_config(sample.DEFAULT, argv)


def picture(path: Path, colour="red", size=(8, 8)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def todo(*flags, given=()):
    return jobs.of_config(config(*flags), set(given))


# What is animated.


def test_without_a_config_the_bundled_model_runs_and_with_another_base_the_real_ones_settings(monkeypatch):
    assert Path(config().weights.base) == BUNDLED and config().height == 48
    assert {job.picture.parent for job in todo()} == {BUNDLED / "pictures"}

    def starts(*flags):
        read = []
        monkeypatch.setattr("sys.argv", ["sample.py", *flags])
        monkeypatch.setattr(sample.jobs, "of_config", lambda config, given: read.append(config) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample.main()
        return read[0]

    assert starts("--config.steps=3").height == 48
    real = starts("--config.weights.base=somebody/model")
    assert (real.height, real.frames, real.weights.motion) == (512, 16, "guoyww/animatediff/mm_sd_v15.ckpt")


def test_what_a_person_did_not_set_is_not_spoken_of(tmp_path, capsys):
    own = picture(tmp_path / "own.png")
    todo(f"--config.image={own}", given=["image"])
    assert capsys.readouterr().out == ""
    todo(f"--config.image={own}", "--config.csv=rows.csv", given=["image", "csv"])
    assert capsys.readouterr().out == f"animating {own}, and not the rows of rows.csv\n"
    todo("--config.prompt=a cat", given=["prompt"])
    assert "the prompts are those of" in capsys.readouterr().out
    argv = ["sample.py", "--config", "x.py", "--config.csv=a", "--noconfig.strict", "--image", "b"]
    assert command_line.given_keys(argv) == {"config", "csv", "strict", "image"}
    assert command_line.source(argv) == "x.py" and command_line.source(["sample.py", "--config=y.py"]) == "y.py"
    assert command_line.source(["sample.py", "--config.steps=3"]) is None


def test_a_folder_is_animated_picture_by_picture_with_the_texts_beside_them(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "C.JPG"):
        picture(tmp_path / name)
    (tmp_path / "C.TXT").write_text("a boat", encoding="utf-16")  # as Windows names and writes it
    (tmp_path / "a.txt").write_text("\ufeffwaves ünd\n", encoding="utf-8")
    (tmp_path / "notes.md").touch()
    made = todo(f"--config.image={tmp_path}", "--config.prompt=a cat", "--config.seed=5")
    assert [(job.picture.name, job.prompt, job.seed) for job in made] == [
        ("C.JPG", "a boat", 5),
        ("a.jpg", "waves ünd", 5),
        ("b.PNG", "a cat", 5),
    ]
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="a.txt' is not UTF-8 text"):
        todo(f"--config.image={tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures .*; it holds no files"):
        todo(f"--config.image={tmp_path / 'empty'}")
    (tmp_path / "empty" / "clip.mp4").touch()
    with pytest.raises(InputError, match="it holds 1 .mp4"):
        todo(f"--config.image={tmp_path / 'empty'}")


def test_a_row_has_a_name_and_settings_of_its_own(tmp_path):
    picture(tmp_path / "cat.png")
    table = tmp_path / "rows.csv"
    table.write_text(
        "picture,prompt,name,steps,t0,match_colours,sampler,sampler_options.eta,sizes.crop,fps\n"
        'cat.png,waves,sea,3,0.5,no,euler,1,"(8, 0)",12\ncat.png,waves,,,,,,,,\n'
    )
    whole = config(f"--config.csv={table}")
    first, second = jobs.of_config(whole, set())
    assert first.name == "sea" and second.name is None and second.changes == ()
    own = first.config(whole)
    assert (own.steps, own.t0, own.match_colours, own.sampler, own.sampler_options.eta) == (3, 0.5, False, "euler", 1.0)
    assert own.sizes.crop == (8, 0) and own.fps == 12 and own.csv is None and own.image == str(tmp_path / "cat.png")
    assert Settings.of_config(own).steps == 3 and Settings.of_config(second.config(whole)).steps == whole.steps == 10
    assert jobs.names([first, second]) == ["sea", "cat"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("picture,prompt,steps\ncat.png,a,many\n", "line 2: steps is 'many', a whole number is wanted"),
        ("picture,prompt,t0\ncat.png,a,half\n", "line 2: t0 is 'half', a number is wanted"),
        ("picture,prompt,match_colours\ncat.png,a,perhaps\n", "match_colours is 'perhaps', true or false is wanted"),
        ("picture,prompt,sizes.crop\ncat.png,a,8\n", "sizes.crop is '8', a tuple"),
        ("picture,prompt,stesp\ncat.png,a,8\n", "'stesp'.* and settings such as steps, t0.*Did you mean 'steps'"),
        ("picture,prompt,dtype\ncat.png,a,float32\n", "column 'dtype'"),
        ("picture,prompt,name\ncat.png,a,../b\n", "line 2: '../b' cannot be the name of a file"),
        ("picture,prompt,name\ncat.png,a,.b\n", "'.b' cannot be"),
    ],
)
def test_bad_columns_are_named(tmp_path, text, message):
    picture(tmp_path / "cat.png")
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        todo(f"--config.csv={tmp_path / 'rows.csv'}")


def test_variations_have_seeds_that_follow_and_stand_in_their_names(tmp_path):
    one = picture(tmp_path / "one.png")
    made = todo(f"--config.image={one}", "--config.variations=3", f"--config.seed={2**32 - 2}")
    assert [job.seed for job in made] == [2**32 - 2, 2**32 - 1, 0]
    assert jobs.names(made) == ["one-seed4294967294", "one-seed4294967295", "one-seed0"]
    with pytest.raises(InputError, match="variations=0: wanted 1 or more"):
        todo(f"--config.image={one}", "--config.variations=0")
    assert jobs.names(todo(f"--config.image={one}")) == ["one"]


def test_names_differ():
    def job(name, seed=1):
        return jobs.Job(Path(f"{name}.png"), "", "", seed)

    assert jobs.names([job("a"), job("b"), job("a")]) == ["a", "b", "a-2"]
    assert jobs.names([job("a"), job("a"), job("a-2")]) == ["a", "a-3", "a-2"]
    assert jobs.names([job("a", 1), job("a", 2), job("a", 2)]) == ["a-seed1", "a-seed2", "a-seed2-2"]


# Going on, and records.


def made(folder: Path, stem: str, own, weights=HASHES) -> None:
    """Writes the files of a video, as a run leaves them."""
    folder.mkdir(exist_ok=True)
    for suffix in batches.SUFFIXES:
        (folder / f"{stem}{suffix}").write_text(json.dumps(record.about(own, weights)))


def test_a_batch_goes_on_with_what_is_not_there_yet(tmp_path):
    one, out = picture(tmp_path / "one.png"), tmp_path / "out"
    whole = config(f"--config.image={one}", "--config.variations=3", f"--config.output={out}")
    all_jobs = jobs.of_config(whole, set())
    names, configs = jobs.names(all_jobs), [job.config(whole) for job in all_jobs]

    def places(configs=configs, weights=HASHES, goes_on=True):
        return [(stem.name, done) for stem, done in batches.stems(out, names, configs, goes_on, lambda: weights)]

    assert places() == [("one-seed42", False), ("one-seed43", False), ("one-seed44", False)]
    made(out, "one-seed42", configs[0])
    made(out, "one-seed43", configs[1])
    assert places() == [("one-seed42", True), ("one-seed43", True), ("one-seed44", False)]
    assert places(goes_on=False)[0] == ("one-seed42-2", False)
    # keys that there were not when a record was written have their defaults
    earlier = json.loads((out / "one-seed43.json").read_text())
    for key in ("prompt_syntax", "prompt_weighting", "clip_skip"):
        del earlier["config"][key]
    for key in ("embeddings", "loras"):
        del earlier["config"]["weights"][key]
    (out / "one-seed43.json").write_text(json.dumps(earlier))
    assert places()[1] == ("one-seed43", True)
    skipping = [own.copy_and_resolve_references() for own in configs]
    for own in skipping:
        own.clip_skip = 1
    assert places(skipping)[1] == ("one-seed43-2", False)
    # the machine, and how it goes about it, may be others
    elsewhere = [own.copy_and_resolve_references() for own in configs]
    for own in elsewhere:
        own.batch_per_device, own.vae_slice, own.compilation_cache, own.preview_every = 1, 2, "elsewhere", 3
    assert places(elsewhere) == places()
    # of other weights, settings or picture it is another video
    assert places(weights={"/weights/unet.safetensors": "b" * 64})[0] == ("one-seed42-2", False)
    for own in elsewhere:
        own.steps = 3
    assert places(elsewhere) == [("one-seed42-2", False), ("one-seed43-2", False), ("one-seed44", False)]
    made(out, "one-seed42-2", elsewhere[0])
    assert places(elsewhere)[0] == ("one-seed42-2", True) and places()[0] == ("one-seed42", True)
    picture(one, "blue")
    assert places()[0] == ("one-seed42-3", False)
    # files of somebody else, or not all of them
    picture(one)
    (out / "one-seed43.gif").unlink()
    assert places()[1] == ("one-seed43-2", False)
    (out / "one-seed42.json").write_text("[]")
    assert places()[0] == ("one-seed42-3", False)


def test_batches_are_of_one_size_and_of_one_kind():
    def video(number, steps=2, done=False):
        return batches.Video(number, None, None, Settings(steps=steps), Path(str(number)), done)

    def shapes(videos, size):
        return [([video.number for video in batch.videos], batch.size) for batch in batches.batches(videos, size)]

    assert shapes([video(i) for i in range(6)], 4) == [([0, 1, 2, 3], 4), ([4, 5], 4)]
    assert shapes([video(i, done=i < 5) for i in range(6)], 4) == [([5], 4)]
    assert shapes([video(0)], 4) == [([0], 1)]
    assert shapes([video(0), video(1, 3), video(2)], 4) == [([0, 2], 2), ([1], 1)]
    apart = batches.batches([video(i) for i in range(3)], 4, alike=lambda video: video.number == 1)
    assert [[video.number for video in batch.videos] for batch in apart] == [[0, 2], [1]]


def test_prompts_are_read_as_each_row_says(tmp_path):
    """All of them before anything costly begins; tokens of embeddings that stand in none are warned of."""
    picture(tmp_path / "cat.png")
    table = tmp_path / "rows.csv"
    rows = ["picture,prompt,prompt_syntax,prompt_weighting,clip_skip", "cat.png,(plain,,,", "cat.png,a (tok:1.2),{},,1"]
    tokenizer = ClipTokenizer.bundled().with_added({"tok": [-1], "other": [-2]})

    def checked(syntax, prompt="a (tok:1.2)", *flags):
        table.write_text("\n".join(rows).format(syntax).replace("a (tok:1.2)", prompt))
        whole = config(f"--config.csv={table}", *flags)
        made = jobs.of_config(whole, set())
        run.check(whole, made, NoiseSchedule())
        run.check_prompts(whole, made, tokenizer)
        return Settings.of_config(made[1].config(whole))

    with pytest.warns(UserWarning, match="no prompt has 'other', so nothing changes by it"):
        assert (read := checked("weighted")).prompt_syntax == "weighted" and read.clip_skip == 1
    with warnings.catch_warnings(action="error"):
        checked("weighted", "tok other " + "many " * 80)
    with pytest.raises(InputError, match="character 3 .*is not closed"):
        checked("weighted", "a (tok")
    with pytest.raises(InputError, match="longer than 77 tokens"):
        checked("plain", "tok other " + "many " * 80)
    with pytest.raises(InputError, match="prompt_syntax='weigted'.*Did you mean 'weighted'"):
        checked("weigted")
    for flag, words in (("clip_skip=-1", "clip_skip=-1: wanted 0"), ("prompt_weighting=mean", "known: a1111, comfyui")):
        with pytest.raises(InputError, match=words):
            checked("plain", "tok other", f"--config.{flag}")


def recorded(tmp_path, **changes):
    """A picture and its record, and a config that begins from it."""
    one = picture(tmp_path / "one.png")
    whole = config(f"--config.image={one}", "--config.strict=False")
    about = record.about(jobs.of_config(whole, set())[0].config(whole), HASHES)
    path = tmp_path / "one.json"
    path.write_text(json.dumps(about | changes))
    return path


def test_a_record_holds_absolute_paths_and_hashes(tmp_path, monkeypatch):
    picture(tmp_path / "one.png")
    (tmp_path / "mine.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    whole = config("--config.image=one.png", "--config.weights.motion=mine.safetensors", "--config.variations=2")
    whole.weights.trained = ("mine.safetensors",)
    whole.weights.adapter = "owner/name"
    values = record.about(jobs.of_config(whole, set())[1].config(whole), HASHES)
    own, mine = values["config"], str(tmp_path / "mine.safetensors")
    assert own["image"] == str(tmp_path / "one.png") and own["seed"] == 43
    assert (own["weights"]["motion"], own["weights"]["trained"], own["weights"]["adapter"]) == (
        mine,
        [mine],
        "owner/name",
    )
    assert list(values["picture"]) == [str(tmp_path / "one.png")] and len(values["picture"][own["image"]]) == 64
    assert not {"variations", "strict", "preview_every"} & own.keys()  # it is one video's
    (tmp_path / "one.json").write_text(json.dumps(values))
    assert config("--config=one.json").variations == 1


def test_a_run_from_a_record_names_what_differs(tmp_path):
    path = recorded(tmp_path)
    run = config(f"--config={path}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record.compare(record.read(path), str(path), run, HASHES)
        record.compare(record.read(path), str(path), run, {"/moved/unet.safetensors": "a" * 64})
    content = json.loads(path.read_text())
    content["versions"]["jax"] = "0.1"
    for weights, wanted in (
        (HASHES, "jax was 0.1, is "),
        (
            {"/weights/unet.safetensors": "b" * 64},
            "no file of weights is the one that was /weights/unet.safetensors .*aaaa",
        ),
        (HASHES | {"/weights/lora": "c" * 64}, "/weights/lora .SHA-256 cccc.* was not among the weights"),
    ):
        with pytest.warns(UserWarning, match=f"not that of .*one.json.*{wanted}"):
            record.compare(content, str(path), run, weights)
        run.strict = True
        with pytest.raises(InputError, match=f"{wanted}.*leave --config.strict out"):
            record.compare(content, str(path), run, weights)
        run.strict = False
    picture(tmp_path / "one.png", "blue")
    assert "one.png is not the one that was" in record.differences(record.read(path), run, HASHES)[0]
    other = config(f"--config={path}", f"--config.image={picture(tmp_path / 'other.png', 'green')}")
    assert record.differences(record.read(path), other, HASHES) == []  # another picture is meant
    assert "other.png is not" in record.differences(record.read(path), other, HASHES, strict=True)[0]
    folder = config(f"--config={path}", f"--config.image={tmp_path}")
    assert record.differences(record.read(path), folder, HASHES) == []
    assert (
        "is no picture, and the record is of" in record.differences(record.read(path), folder, HASHES, strict=True)[0]
    )


def test_a_record_of_an_earlier_version_says_nothing_of_its_picture(tmp_path):
    path = recorded(tmp_path)
    content = json.loads(path.read_text())
    del content["picture"]
    path.write_text(json.dumps(content))
    assert record.differences(record.read(path), config(f"--config={path}"), HASHES) == []
    assert record.read(sample.DEFAULT) == {} and record.read(tmp_path / "none.json") == {}


def test_a_records_picture_is_found_beside_it(tmp_path):
    path = recorded(tmp_path)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("one.png", "one.json"):
        (tmp_path / name).rename(moved / name)
    content, image = record.read(moved / "one.json"), str(tmp_path / "one.png")
    assert record.find_picture(content, moved / "one.json", image) == str(moved / "one.png")
    assert record.find_picture(content, moved / "one.json", "another.png") == "another.png"
    picture(moved / "one.png", "blue")
    assert record.find_picture(content, moved / "one.json", image) == image
    assert path.name == "one.json"


# What is said of a run.


def test_the_time_left_is_of_all_videos_and_counts_no_compiling():
    time, written = [0.0], []

    class File:
        def write(self, text):
            written.append(text)

        def flush(self):
            pass

        def isatty(self):
            return False

    def spend(seconds):
        time[0] += seconds

    works = [Work("video 1-2 of 4", 2, 10), Work("video 3-4 of 4", 2, 10)]
    with Progress(works, clock=lambda: time[0], file=File(), mininterval=0) as progress:
        progress.begin(works[0])
        progress.on_stage("encoding", True)
        assert COMPILING in written[-1] and "video 1-2 of 4" in written[-1] and "left" not in written[-1]
        spend(100)
        progress.on_stage("steps", True)
        spend(100)
        progress.on_stage("steps", False)
        spend(3)
        progress.on_step(1, 2)
        assert (
            "steps  25%" in written[-1]
            and "1/4 steps" in written[-1]
            and "00:09 left + decoding + writing" in written[-1]
        )
        spend(3)
        progress.on_step(2, 2)
        progress.on_stage("decoding", False)
        spend(4)
        progress.on_stage("writing", False)
        spend(1)
        progress.end()
        assert "00:11 left]" in written[-1]  # two steps of 3, decoding 4, writing 1
        progress.begin(works[1])
        progress.on_stage("encoding", False)
        spend(2)
        progress.on_stage("steps", False)
        for step in (1, 2):
            spend(3)
            progress.on_step(step, 2)
        for stage, seconds in (("decoding", 4), ("writing", 1)):
            progress.on_stage(stage, False)
            spend(seconds)
        progress.end()
        assert "100%" in written[-1] and "4/4 steps" in written[-1] and "00:00 left" in written[-1]


def test_larger_videos_take_longer():
    left = TimeLeft([Work("", 2, 1.0), Work("", 5, 4.0)])
    assert left.seconds() is None
    left.done("steps", 2.0, 6.0)
    assert left.seconds() == pytest.approx(60.0)


def test_it_is_said_what_a_model_knows_and_was_trained_at(tmp_path):
    weights = preset().weights
    bundled = trained_at.of_folder(weights)
    assert bundled.knows.startswith("18 motions of one or two plain shapes")
    own = preset().settings
    assert trained_at.departures(bundled, own) is None
    larger = Settings(height=96, width=48, frames=16)
    assert "height=96, frames=16: the model was trained at sides of 48 pixels, 8 frames" in trained_at.departures(
        bundled, larger
    )
    assert trained_at.of_folder(Weights(str(tmp_path))) == trained_at.TrainedAt()
    assert trained_at.departures(trained_at.TrainedAt(), larger) is None
    for name in ("sd15", "sdxl"):  # nobody is warned of a config as it is shipped
        widths = (320, 640, 1280, 1280)[: 4 if name == "sd15" else 3]
        assert trained_at.departures(trained_at.PUBLISHED[widths], preset(name).settings) is None
    wide = Settings(height=384, width=640)
    assert "width=640: the model was trained at sides of 256 to 512 pixels, 16 frames" in trained_at.departures(
        trained_at.PUBLISHED[(320, 640, 1280, 1280)], wide
    )


# The command, with a pipeline that computes nothing: a video's colours are its seed, its prompt's length and its steps.


class Painter:
    """What the command asks of a pipeline."""

    calls = []

    def __init__(self, model, mesh):
        self.model, self.mesh = model, mesh

    def count_chunks(self, prompts, *others, **given):
        return [1] * len(prompts)

    def latents(self, pictures, prompts, seeds, negative_prompts, settings, *, watch, batch_size, **others):
        self.calls.append((len(pictures), batch_size))
        colours = [[seed % 256, len(prompt), settings.steps] for seed, prompt in zip(seeds, prompts)]
        latents = np.array(colours, np.float32)[:, None, None, None].repeat(settings.frames, 1)
        for stage, compiles in (("encoding", True), ("steps", True), ("steps", False)):
            watch.on_stage(stage, compiles)
        total = settings.steps
        for done in range(1, total + 1):
            if watch.wants_latents(done):
                watch.on_latents(done, total, latents)
            watch.on_step(done, total)
        return latents

    def decode(self, latents, settings, watch=SILENT):
        watch.on_stage("decoding", False)
        return latents.astype(np.uint8).repeat(settings.height, 2).repeat(settings.width, 3)

    def decode_slices(self, latents, settings, watch=SILENT):
        yield from self.decode(latents, settings, watch)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Returns `command(*flags)`: runs it, and gives (exit code, stdout, stderr)."""
    monkeypatch.setattr(sample, "Pipeline", Painter)
    monkeypatch.setattr(sample, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1]))

    def run(*flags, source=SMALL):
        Painter.calls.clear()
        argv = ["sample.py", f"--config={source}", f"--config.output={tmp_path / 'out'}"]
        if source == SMALL:
            argv += ["--config.height=64", "--config.width=64", "--config.frames=3", "--config.match_colours=False"]
        monkeypatch.setattr("sys.argv", [*argv, *map(str, flags)])
        with pytest.raises(SystemExit) as exit:
            commands.run(sample.main)
        return exit.value.code, *capsys.readouterr()

    return run


def stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.mp4"))


def test_the_command_goes_on_with_a_batch(tmp_path, command):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for name in "abc":
        picture(pictures / f"{name}.png")
    (pictures / "b.txt").write_text("waves")
    flags = [f"--config.image={pictures}", "--config.batch_per_device=2"]
    code, said, shown = command(*flags)
    assert code == 0 and stems(out) == ["a", "b", "c"] and Painter.calls == [(2, 2), (1, 2)], shown
    assert json.loads((out / "b.json").read_text())["config"]["prompt"] == "waves"
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.stem != "c"}
    for path in out.glob("c.*"):
        path.unlink()
    code, said, _ = command(*flags)
    assert code == 0 and Painter.calls == [(1, 2)] and stems(out) == ["a", "b", "c"]
    assert f"2 of 3 are there already, of the same settings: {out / 'a'}, {out / 'b'}\n" in said
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    code, said, shown = command(*flags)
    assert code == 0 and "3 of 3 are there already" in said and "step" not in shown and not Painter.calls
    command(*flags, "--config.seed=1")
    assert stems(out) == ["a", "a-2", "b", "b-2", "c", "c-2"]


def test_the_command_takes_variations_and_rows_with_settings(tmp_path, command):
    one, out = picture(tmp_path / "one.png"), tmp_path / "out"
    assert command(f"--config.image={one}", "--config.variations=2")[0] == 0
    text = "picture,prompt,name,seed,frames\none.png,waves,sea,5,\none.png,waves,short,,1\n"
    (tmp_path / "rows.csv").write_text(text)
    assert command("--config.image=", f"--config.csv={tmp_path / 'rows.csv'}")[0] == 0
    assert stems(out) == ["one-seed42", "one-seed43", "sea", "short"] and Painter.calls == [(1, 1), (1, 1)]
    record = json.loads((out / "short.json").read_text())["config"]
    assert (record["frames"], record["seed"], record["prompt"]) == (1, 42, "waves")
    code, _, shown = command("--config.image=", f"--config.csv={tmp_path / 'rows.csv'}", "--config.frames=99")
    assert code == 2 and "frames=99: these motion modules know" in shown


def test_the_command_shows_unfinished_videos(tmp_path, command, monkeypatch):
    seen, written = [], media.write_png

    def write_png(path, sheet, overwrite):
        written(path, sheet, overwrite)
        seen.append((path, sheet.shape))

    monkeypatch.setattr(media, "write_png", write_png)
    assert command("--config.steps=5", "--config.preview_every=2")[0] == 0
    sheet = (2 * 64 + 4, 2 * 64 + 4, 3)  # the picture and three frames
    assert seen == [(tmp_path / "out" / "cat-preview.png", sheet)] * 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"cat{s}" for s in (".gif", ".json", ".mp4", ".png")
    ]
    code, _, shown = command("--config.preview_every=-1")
    assert code == 2 and "preview_every=-1: wanted 0 or more" in shown


def test_the_command_warns_or_refuses_where_a_record_differs(tmp_path, command):
    path = tmp_path / "out" / "cat.json"
    assert command()[0] == 0
    code, _, shown = command("--config.strict", source=path)
    assert code == 0 and "warning" not in shown and stems(tmp_path / "out") == ["cat", "cat-2"]
    run = json.loads(path.read_text())
    file = next(name for name in run["weights"] if name.endswith("motion.safetensors"))
    run["weights"][file], run["versions"]["flax"] = "0" * 64, "0.1"
    path.write_text(json.dumps(run))
    message = f"this run is not that of {path}: flax was 0.1, is .*; no file of weights is the one that was {file}"
    code, _, shown = command("--config.strict", source=path)
    assert code == 2 and re.search(f"error: {message}", shown) and not Painter.calls
    code, _, shown = command(source=path)
    assert code == 0 and re.search(f"warning: {message}.*The video may differ", shown)


def test_rows_take_the_place_of_a_records_picture(tmp_path, command):
    assert command()[0] == 0
    for name in ("one.png", "two.png"):
        picture(tmp_path / name)
    (tmp_path / "rows.csv").write_text("picture,prompt\none.png,a\ntwo.png,b\n")
    code, _, _ = command(f"--config.csv={tmp_path / 'rows.csv'}", source=tmp_path / "out" / "cat.json")
    assert code == 0 and stems(tmp_path / "out") == ["cat", "one", "two"]


def test_second_prompts_are_looked_at_before_anything_is_made(tmp_path, command):
    code, _, shown = command("--config.prompt_2=a b")
    assert code == 2 and "a prompt for a second text encoder, and Stable Diffusion 1.5 has one" in shown
    code, _, shown = command(f"--config.prompt_2={'word ' * 100}")
    assert code == 2 and "77" in shown and not Painter.calls


def test_the_command_says_what_the_bundled_model_knows(tmp_path, command):
    own = picture(tmp_path / "own.png")
    code, said, shown = command(f"--config.image={own}", source=sample.BUNDLED)
    assert code == 0 and said.startswith("this model knows 18 motions of one or two plain shapes")
    assert "animating" not in said and "trained at" not in shown


# From Python.


def test_pictures_are_taken_in_every_form(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (6, 5, 3), np.uint8)
    path = tmp_path / "one.png"
    Image.fromarray(array).save(path)
    grey, alpha = array[..., 0], np.dstack([array, np.full((6, 5), 255, np.uint8)])
    forms = [
        path,
        str(path),
        Image.open(path),
        array,
        alpha,
        array / 255,
        jax.numpy.asarray(array),
        media.load_picture(path),
    ]
    for form in forms:
        np.testing.assert_array_equal(inputs.as_picture(form), array)
    np.testing.assert_array_equal(inputs.as_picture(grey), np.repeat(grey[..., None], 3, -1))
    turned = Image.fromarray(array).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(inputs.as_picture(Image.open(tmp_path / "turned.png")), array)
    for wrong in (
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((8, 8, 3), np.int32),
        np.full((8, 8, 3), 7.0),
        np.zeros((0, 8, 3)),
    ):
        with pytest.raises(InputError, match="A picture is .*; wanted uint8 RGB"):
            inputs.as_picture(wrong)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="truncated or broken"):
        inputs.as_picture(Image.open(path))
    with pytest.raises(InputError, match="No picture at 'nowhere.png'"):
        inputs.as_picture("nowhere.png")


def test_one_or_many():
    one, two = (np.full((4, 4, 3), value, np.uint8) for value in (1, 2))
    pictures, seeds, texts = inputs.batch_of(one, "a cat", None)
    assert len(pictures) == 1 and seeds == [0] and texts == {"prompts": ["a cat"]}
    for many in ([one, two], (one, two), np.stack([one, two]), jax.numpy.stack([one, two])):
        pictures, seeds, texts = inputs.batch_of(many, "a cat", None, negative_prompts="bad", prompts_2=None)
        np.testing.assert_array_equal(np.stack(pictures), np.stack([one, two]))
        assert seeds == [0, 1] and texts == {"prompts": ["a cat"] * 2, "negative_prompts": ["bad"] * 2}
    pictures, seeds, texts = inputs.batch_of(one, ["a", "b", "c"], 7)
    assert len(pictures) == 3 and pictures[0] is pictures[2] and seeds == [7] * 3
    for two_seeds in (np.array([3, 4]), range(3, 5), [np.uint32(3), jax.numpy.asarray(4)]):
        assert inputs.batch_of(one, "a", two_seeds)[1] == [3, 4]
    for arguments, message in [
        ((one, "a", [1.5]), "seed=1.5: a whole number"),
        ((one, "a", -1), "seed=-1: wanted 0 to 4294967295"),
        (([one, two], ["a"], None), "2 pictures, 1 prompts: wanted as many of prompts"),
        (([], "a", None), "No pictures"),
        ((one, [None], None), "prompts: None is no text"),
    ]:
        with pytest.raises(InputError, match=message):
            inputs.batch_of(*arguments)


def test_presets_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = preset()
    small.weights.check()
    assert small.settings.height == 48 and small.schedule.prediction_type == "v_prediction"
    assert preset("sdxl").weights.base == "stabilityai/stable-diffusion-xl-base-1.0"
    assert preset(recorded(tmp_path)).weights == small.weights
    with pytest.raises(InputError, match="neither one of .*default,.* sd15, sdxl,.* nor a file.*Did you mean 'sdxl'"):
        preset("sdlx")


def test_messages_name_arguments_in_python_and_flags_in_commands():
    for message, wanted in {
        "--config.noise_schedule.prediction_type=sample.": "NoiseSchedule(prediction_type='sample').",
        "set --config.weights.base to a folder": "set Weights(base=...) to a folder",
        "such as --config.batch=4.": "such as batch=4.",
        "--config.dtype=bfloat16, or --config.mesh.frames=2": "dtype='bfloat16', or mesh.frames=2",
        "Write --config.mesh.frames=N": "Write mesh.frames=N",
        "nothing here": "nothing here",
    }.items():
        assert in_python_words(message) == wanted
    with pytest.raises(InputError, match=r"set Weights\(base=...\) to the folder"):
        Model.load(Weights())
    with pytest.raises(InputError, match="nowhere/at/all does not exist"):
        Model.load("/nowhere/at/all")
    with flags_in_messages(), pytest.raises(InputError, match="set --config.weights.base to the folder"):
        with python_words():
            Weights().check()
