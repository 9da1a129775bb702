"""Config files and flags, the CSV of a batch, and how commands end: what is wrong is named, nothing is guessed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from i2v_jax.commands import load_config, read_config
from i2v_jax.commands.explained import explain
from i2v_jax.commands.wording import as_called
from i2v_jax.errors import InputError
from i2v_jax.sampling.jobs import Job, read_jobs

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config(prompt="a cat"):
    return ConfigDict(dict(
        # What the video shows.
        prompt=prompt, steps=25, guidance_scale=7.5, match_colours=False, size=(512, 512),
        seed=config_dict.placeholder(int), prior=dict(t0=1.0, keep=0.5),
    ))
"""


@pytest.fixture
def default(tmp_path):
    path = tmp_path / "default.py"
    path.write_text(CONFIG)
    return path


def read(default, *flags):
    return read_config(default, ["sample.py", *map(str, flags)])


def test_flags_change_the_config_and_keep_its_types(default):
    config = read(
        default,
        *(
            "--config.prompt",
            "a dog, running",
            "--config.steps=30",
            "--config.guidance_scale=9",
            "--config.prior.t0=0.9",
        ),
        *("--config.match_colours", "--config.size=(256, 384)", "--config.seed=7"),
    )
    assert config.to_dict() == {
        "prompt": "a dog, running",
        "steps": 30,
        "guidance_scale": 9.0,
        "match_colours": True,
        "size": (256, 384),
        "seed": 7,
        "prior": {"t0": 0.9, "keep": 0.5},
    }
    assert isinstance(config.guidance_scale, float)
    for locked in (config, load_config(default)):
        with pytest.raises(AttributeError):
            locked.stepz = 3
    assert read(default).seed is None


def test_another_file_in_any_place_of_the_command_line(default, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(CONFIG.replace("7.5", "3").replace("steps=25", "steps=4"))
    for flags in (("--config", other, "--config.seed=1"), ("--config.seed", "1", f"--config={other}")):
        config = read(default, *flags)
        assert (config.steps, config.seed, config.guidance_scale) == (4, 1, 3.0)
    # a whole number in the file is still a number for the flags
    assert read(default, f"--config={other}", "--config.guidance_scale=2.5").guidance_scale == 2.5
    assert read(default, f"--config={other}:a bird").prompt == "a bird"


def test_the_json_of_a_run_gives_its_config_back(default, tmp_path):
    config = read(default, "--config.steps=3", "--config.size=(8, 16)", "--config.prior.keep=0.25")
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"config": json.loads(config.to_json()), "versions": {}}))
    again = read(default, f"--config={path}")
    assert again.to_dict() == config.to_dict()
    assert read(default, f"--config={path}", "--config.seed=5").seed == 5
    for name in ("a:b.json", "default.py:.json"):  # named after a picture with a colon in its name
        path = path.rename(tmp_path / name)
        assert read(default, f"--config={path}").to_dict() == config.to_dict()


def test_keys_newer_than_a_file_have_the_default_value(default, tmp_path):
    """They can be set by flags, and setting them leaves the default as it is."""
    old = tmp_path / "old.py"
    old.write_text("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict(dict(steps=4)).lock()")
    record = tmp_path / "record.json"
    record.write_text('{"config": {"steps": 4, "prior": {"keep": 0.25}}}')
    known = load_config(default)
    for path, keep in ((old, 0.5), (record, 0.25)):
        config = load_config(path, known)
        assert config.to_dict() == known.to_dict() | dict(steps=4, prior=dict(t0=1.0, keep=keep))
        config.prior.t0, config.seed = 0.5, 3
        assert known.prior.t0 == 1.0 and known.seed is None and type(config.size) is tuple
        assert read(default, f"--config={path}", "--config.seed=5", "--config.prior.t0=0.75").prior.t0 == 0.75
        with pytest.raises(InputError, match="a whole number is wanted"):
            read(default, f"--config={path}", "--config.seed=x")


@pytest.mark.parametrize("package", [False, True])
def test_config_files_import_those_of_the_checkout(tmp_path, package):
    """From any working directory, also where other `configs` are; nothing of it stays on the import path."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sample.py").touch()
    if package:
        (tmp_path / "configs" / "__init__.py").touch()
    (tmp_path / "mine.py").write_text(
        "from configs.sample.default import get_config as base\ndef get_config():\n"
        "    config = base()\n    config.steps = 3\n    return config\n"
    )
    body = "import sys; before = list(sys.path); config = commands.load_config('mine.py')\n"
    body += "    print(config.steps, config.height, before == sys.path)"
    program = command(tmp_path, body, isolated=True)
    assert program.stdout == f"3 {load_config(ROOT / 'configs/sample/default.py').height} True\n", program.stderr


def test_a_config_file_in_the_home_folder(default, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(default, "--config=~/default.py:a bird").prompt == "a bird"


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.stesp=5", "--config.stesp.*Did you mean '--config.steps'"),
        ("--config.t0=0.5", "Did you mean '--config.prior.t0'"),
        ("--config.prior.kep=0.5", "Did you mean '--config.prior.keep'"),
        ("--config.zzzzzz=1", "Unknown config key --config.zzzzzz.*--help"),
        ("--config.=1", "Unknown config key"),
        ("--config.steps.x=1", "Unknown config key"),
        ("--config.prior={}", "group of keys.*--config.prior.KEY"),
        ("--noconfig.matchcolours", "Did you mean '--config.match_colours'"),
        ("--prompt=x", "Unknown flag --prompt.*Did you mean '--config.prompt'"),
        ("--confg.steps=5", "Did you mean '--config.steps'"),
        ("--config.steps=many", "steps=many.*a whole number"),
        ("--config.steps=2.5", "steps=2.5.*a whole number"),
        ("--config.seed=x", "seed=x.*a whole number"),
        ("--config.guidance_scale=x", "guidance_scale=x.*a number"),
        ("--config.prior.t0=x", "t0=x.*a number"),
        ("--config.match_colours=perhaps", "true or false"),
        ("--config.size=(1,", r"a tuple like '\(1, 2\)'"),
        ("--config.steps", "Missing value"),
        ("--config", "Missing value"),
        ("cat.jpg", "'cat.jpg' belongs to no flag. Write.*quote"),
        ("--config=defualt.py", "No config file at 'defualt.py'"),
    ],
)
def test_a_bad_flag_is_named_with_what_was_meant(default, flag, message):
    with pytest.raises(InputError, match=message):
        read(default, flag)


@pytest.mark.parametrize("command, key", [("sample", "image"), ("finish", "video")])
def test_a_file_without_its_flag_is_told_it(command, key):
    with pytest.raises(InputError, match=f"Did you mean --config.{key}={re.escape(__file__)}"):
        read(ROOT / "configs" / command / "default.py", __file__)


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("a.mp4", ("a.mp4",)),
        ("/here/my poses, new.mp4", ("/here/my poses, new.mp4",)),
        ("canny:low=50,high=150", ("canny:low=50,high=150",)),
        ("('a', 'b c')", ("a", "b c")),
        ("1,2", (1, 2)),
        ("0.5", (0.5,)),
        ("()", ()),
    ],
)
def test_one_text_without_quotes_is_a_tuple_of_it(default, given, wanted):
    assert read(default, f"--config.size={given}").size == wanted


def test_a_key_has_the_short_name_that_a_command_gives_it(default, capsys):
    short = ("steps", "start=prior.t0", "prior.keep")
    config = read_config(default, ["run.py", "--start=0.25", "--steps=3", "--keep=0.5"], short=short)
    assert (config.prior.t0, config.steps, config.prior.keep) == (0.25, 3, 0.5)
    with pytest.raises(SystemExit):
        read_config(default, ["run.py", "--help"], short=short)
    printed = capsys.readouterr().out
    assert "--start (prior.t0)" in printed and "--keep (prior.keep)" in printed and "--steps " in printed


@pytest.mark.parametrize("name", ["sample/sd15", "evaluate/default", "train/sd15_stage1"])
def test_help_explains_every_key_in_one_row(name, capsys):
    """By the comment in the config file, under a heading, with the value."""
    default = ROOT / "configs" / f"{name}.py"
    with pytest.raises(SystemExit):
        read_config(default, ["sample.py", "--help"])
    printed = capsys.readouterr().out
    assert "placeholder" not in printed and "Others" not in printed
    rows = re.findall(r"^  ([a-z][\w.]*) +(?:(\S.*) )?\[", re.sub(r"\n {5,}", " ", printed), re.M)
    assert [key for key, meaning in rows if not meaning] == []
    assert sorted(key for key, _ in rows) == sorted(leaves(load_config(default)))


def leaves(config, prefix=""):
    for key, value in config.items():
        yield from leaves(value, f"{prefix}{key}.") if hasattr(value, "items") else [f"{prefix}{key}"]


def test_what_is_explained_follows_the_files_that_a_config_builds_on():
    sections = explain(ROOT / "configs" / "evaluate" / "prior.py", ROOT)
    assert sections[0].title.startswith("What is compared") and "runs" in sections[0].keys
    found = {key: section for section in sections for key in section.keys}
    assert found["weights.unet"].title.startswith("weights: Each a file") and found["t0"].title.startswith("How the")
    assert found["weights.unet"].keys["weights.unet"] == "in place of the base's own"
    assert "a multiple of 8" in found["height"].keys["height"]


def test_common_keys_have_short_names(default):
    short = ("prompt", "prior.keep", "match_colours", "guidance_scale")
    given = ["--prompt", "a dog, running", "--keep=0.25", "--guidance-scale=2", "--config.steps=3"]
    config = read_config(default, ["sample.py", *given], short=short)
    assert (config.prompt, config.prior.keep, config.guidance_scale, config.steps) == ("a dog, running", 0.25, 2.0, 3)
    assert read_config(default, ["sample.py", "--guidance_scale", "2"], short=short).guidance_scale == 2.0
    for flag, message in {
        "--promt=x": "Unknown flag --promt. Did you mean '--prompt'",
        "--guidance-scale=x": "guidance_scale=x: a number",
        "--prompt": "Missing value",
        "--topolgy=v5e": "Unknown flag --topolgy. Did you mean '--topology'",
        "--t0=0.5": "Did you mean '--config.prior.t0'",
    }.items():
        with pytest.raises(InputError, match=message):
            read_config(default, ["sample.py", flag], short=short, own_flags=dict(topology="of the slice"))


def test_the_projects_own_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = ROOT / "configs" / "sample" / "sd15.py"
    for name in ("configs/sample/default.py", "default"):
        assert read_config(default, ["sample.py", f"--config={name}"]).height == 48
    assert read_config(ROOT / "configs/evaluate/default.py", ["evaluate.py", "--config=prior:p"]).name == "prior_p"
    with pytest.raises(InputError, match="'sdlx'. Did you mean 'sdxl'"):
        read_config(default, ["sample.py", "--config=sdlx"])
    (tmp_path / "configs" / "sample").mkdir(parents=True)
    mine = (ROOT / "configs" / "sample" / "default.py").read_text().replace("height = 48", "height = 56")
    (tmp_path / "configs" / "sample" / "default.py").write_text(mine)  # one's own comes first
    assert read_config(default, ["sample.py", "--config=configs/sample/default.py"]).height == 56


def test_messages_name_commands_as_they_are_called(monkeypatch):
    text = "`python -m convert inspect x`, python sample.py --config=a/sample.py, train.py, python -m x.y, data.store"
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    assert as_called(text) == text
    monkeypatch.setattr(sys, "argv", ["i2v sample"])
    assert as_called(text) == (
        "`i2v convert inspect x`, i2v sample --config=a/sample.py, i2v train, python -m x.y, data.store"
    )


def test_a_missing_config_file_names_its_neighbour(default, tmp_path):
    with pytest.raises(InputError, match="Did you mean '.*default.py'"):
        read(default, f"--config={tmp_path / 'defualt.py'}")
    with pytest.raises(InputError, match="No config file"):
        read(default, f"--config={tmp_path}")


@pytest.mark.parametrize(
    "content, message",
    [
        ("def get_config(:", "fails at line 1: SyntaxError"),
        ("x = 1\ny = 1 / 0", "fails at line 2: ZeroDivisionError"),
        ("import nowhere_to_be_found", "line 1: ModuleNotFoundError"),
        ("x = 1", "no get_config"),
        ("def get_config(): return 3", "ConfigDict"),
        ("def get_config(a, b): return 3", "TypeError"),
        (CONFIG.replace("steps=25", "stesp=25"), "'stesp'.*Did you mean 'steps'"),
        (CONFIG.replace("t0=1.0", "to=1.0"), "'prior.to'.*Did you mean 'prior.t0'"),
        (CONFIG.replace("steps=25", "steps=ConfigDict()"), "steps in .* is a group of keys, a whole number"),
        (CONFIG.replace("steps=25", "steps='25'"), "steps in .* is '25', a whole number"),
        (CONFIG.replace("steps=25", "steps=2.5"), "steps in .* is 2.5, a whole number"),
        (CONFIG.replace("steps=25", "steps=True"), "steps in .* is True, a whole number"),
        (CONFIG.replace("prior=dict(t0=1.0, keep=0.5)", "prior=1"), "'prior'"),
        (CONFIG.replace("return ConfigDict", "config = ConfigDict") + "    config.lock().stesp = 5", "line 10.*steps"),
    ],
)
def test_a_broken_config_file_is_named_with_its_line(default, tmp_path, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read(default, f"--config={path}")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": 3}', '{"config": {"steps": 3, "wings": 2}}'])
def test_a_json_that_is_no_run_is_refused(default, tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(InputError, match="run.json"):
        read(default, f"--config={path}")


def command(tmp_path, body: str, *arguments: str, isolated: bool = False):
    """Runs a command in a folder; `isolated`: the checkout is on the import path only while i2v_jax is imported."""
    program, lines = tmp_path / "program.py", [f"def main():\n    {body}\ncommands.run(main)\n"]
    if isolated:
        lines.insert(0, f"sys.path.remove({str(ROOT)!r})\n")
    program.write_text("import sys\nfrom i2v_jax import commands, errors\n" + "".join(lines))
    return subprocess.run(
        [sys.executable, program, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


def test_how_commands_end(default, tmp_path):
    body = f"print(commands.read_config({str(default)!r}, usage='Makes videos.').steps)"
    good = command(tmp_path, body, "--config.steps=9")
    assert (good.returncode, good.stdout, good.stderr) == (0, "9\n", "")
    bad = command(tmp_path, body, "--config.stesp=9")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: Unknown config key --config.stesp") and "Traceback" not in bad.stderr
    shown = command(tmp_path, body, "--help")
    assert shown.returncode == 0 and "Makes videos." in shown.stdout
    assert "  prompt          What the video shows. [a cat]\n" in shown.stdout
    assert "  guidance_scale  What the video shows. [7.5]\n" in shown.stdout
    (tmp_path / "other.py").write_text(CONFIG.replace("7.5", "3"))
    shown = command(tmp_path, body, "--help", f"--config={tmp_path / 'other.py'}").stdout
    assert "other.py]:" in shown and "  seed            What the video shows. [unset]\n" in shown
    assert "  guidance_scale  What the video shows. [3.0]\n" in shown
    stopped = command(tmp_path, "raise KeyboardInterrupt")
    assert (stopped.returncode, stopped.stderr) == (130, "interrupted\n")
    full = command(tmp_path, "import jax; jax.numpy.zeros(10**15).block_until_ready()")
    assert (full.returncode, full.stdout) == (2, "") and "Traceback" not in full.stderr
    assert full.stderr.startswith("error: The devices have too little memory") and "bfloat16" in full.stderr
    other = command(tmp_path, "import jax; raise jax.errors.JaxRuntimeError('INTERNAL: a fault of ours')")
    assert other.returncode == 1 and "Traceback" in other.stderr
    broken = command(tmp_path, "raise RuntimeError('a fault of ours')")
    assert broken.returncode == 1 and "Traceback" in broken.stderr


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "cat.jpg").touch()
    path = folder / "jobs.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_gives_one_job_per_row(tmp_path):
    absolute = tmp_path / "cat.jpg"
    path = write_csv(
        tmp_path,
        "prompt, picture,seed,negative_prompt\r\n"
        'a cat,cat.jpg,5,blurry\r\n\r\n"a ""big"" cat, running",./cat.jpg,,\r\n,,,\r\n'
        f'"two\nlines, ünïcödé 猫",{absolute},4294967295,\r\n',
        "utf-8-sig",
    )
    assert read_jobs(path, negative_prompt="bad", seed=3) == [
        Job(absolute, "a cat", "blurry", 5),
        Job(absolute, 'a "big" cat, running', "bad", 3),
        Job(absolute, "two\nlines, ünïcödé 猫", "bad", 2**32 - 1),
    ]
    assert read_jobs(write_csv(tmp_path, "picture,prompt\ncat.jpg,\n")) == [Job(absolute, "", "", 0)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no column 'picture'"),
        ("cat.jpg,a cat\n", "column 'cat.jpg'"),
        ("picture,seed\ncat.jpg,1\n", "no column 'prompt'"),
        ("picture,promt\ncat.jpg,1\n", "'promt'.*Did you mean 'prompt'"),
        ("picture;prompt\ncat.jpg;1\n", "Separate the columns by commas"),
        ("picture,prompt,prompt\ncat.jpg,a,b\n", "'prompt' twice"),
        ("picture,prompt\n", "no rows"),
        ("picture,prompt\n\n,\n", "no rows"),
        ("picture,prompt\ncat.jpg,a cat\ncat.jpg,a cat, running\n", "line 3: 3 cells, 2 are wanted. Quote"),
        ("picture,prompt\ncat.jpg\n", "line 2: 1 cells"),
        ("picture,prompt\n,a cat\n", "line 2: no picture at ''"),
        ("picture,prompt\ndog.jpg,a dog\n", "line 2: no picture at 'dog.jpg'"),
        ("picture,prompt,seed\ncat.jpg,a,x\n", "line 2: the seed 'x'"),
        ("picture,prompt,seed\ncat.jpg,a,-1\n", "line 2: the seed '-1'"),
        ("picture,prompt,seed\ncat.jpg,a,1.5\n", "line 2: the seed '1.5'"),
        ("picture,prompt,seed\ncat.jpg,a,4294967296\n", "line 2: the seed '4294967296'"),
        ("picture,prompt,seed\ncat.jpg,a," + "9" * 5000, "line 2: the seed '9"),
        ('picture,prompt\ncat.jpg,"a cat\n', "line 2: .*quotes"),
        ('picture,prompt,image_prompts.pictures\ncat.jpg,a,"(1,)"\n', "line 2: image_prompts.pictures has 1, the path"),
        ('picture,prompt,controls.pictures\ncat.jpg,a,"(None,)"\n', "line 2: controls.pictures has None, the path"),
    ],
)
def test_a_bad_csv_is_named_with_its_line(tmp_path, text, message):
    files = {"image_prompts.pictures": (), "controls.pictures": ()}
    with pytest.raises(InputError, match=message):
        read_jobs(write_csv(tmp_path, text), settings=files)


def test_a_row_names_one_file_as_it_is(tmp_path):
    files = {"image_prompts.pictures": ()}
    text = "picture,prompt,image_prompts.pictures\ncat.jpg,a,style.png\n"
    (job,) = read_jobs(write_csv(tmp_path, text), settings=files)
    assert job.changes == (("image_prompts.pictures", (str(tmp_path / "style.png"),)),)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_with_a_byte_order_mark_is_read(tmp_path, encoding):
    assert read_jobs(write_csv(tmp_path, "picture,prompt\ncat.jpg,café\n", encoding))[0].prompt == "café"
    record = tmp_path / "run.json"
    record.write_bytes('{"config": {"prompt": "café"}}'.encode(encoding))
    assert load_config(record).prompt == "café"


def test_text_of_a_record_or_command_line_that_is_none_is_refused(tmp_path):
    (tmp_path / "run.json").write_bytes('{"config": {"prompt": "café"}}'.encode("cp1252"))
    with pytest.raises(InputError, match="run.json' is not UTF-8 text"):
        load_config(tmp_path / "run.json")
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict(dict(prompt=''))\n"
    )
    argument = b"--config.prompt=caf\xe9".decode("utf-8", "surrogateescape")  # as Python gives it
    with pytest.raises(InputError, match=r"caf\\udce9' is not UTF-8 text"):
        read_config(tmp_path / "config.py", ["sample.py", argument])


def test_a_csv_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="UTF-8"):
        read_jobs(write_csv(tmp_path, "picture,prompt\ncat.jpg,café\n", "latin-1"))
    with pytest.raises(InputError, match="No CSV file"):
        read_jobs(tmp_path / "missing.csv")
