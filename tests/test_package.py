"""The installed package: one program with all commands, configs and the bundled model, in any folder; nothing else on
the import path."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.processes import environment

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 25e6  # bytes of the wheel
BUILD = "import sys, hatchling.build as b; name = getattr(b, f'build_{sys.argv[2]}')(sys.argv[1]); print('\\n' + name)"


def build(kind: str, folder: Path) -> Path:
    done = subprocess.run([sys.executable, "-c", BUILD, folder, kind], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def i2v(wheel, tmp_path_factory):
    """Returns `i2v(*arguments, cwd=folder)`, which runs the program of an environment with the wheel installed."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", "-q", wheel], check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = {key: value for key, value in environment().items() if key != "PYTHONPATH"}

    def run(*arguments, cwd: Path, code: int = 0, program: str = "i2v") -> subprocess.CompletedProcess:
        command = [home / "bin" / program, *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        return done

    return run


def test_the_wheel_holds_all_and_puts_one_name_on_the_path(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.stat().st_size <= LARGEST
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"i2v_jax"}
    for folder in ("configs", "convert", "assets/small_world", "assets/mivas"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        here = {name for name in here if "__pycache__" not in name}
        assert {f"i2v_jax/bundled/{name}" for name in here} <= set(names), folder
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_sdist_is_whole(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("assets", "benchmarks", "configs", "convert", "docs", "i2v_jax", "tests")
    paths = [*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    here = {str(path.relative_to(ROOT)) for path in paths if path.is_file() and not path.is_symlink()}
    assert {name for name in here if "__pycache__" not in name and not name.startswith(".git")} <= names
    assert {"Makefile", "LICENSE"} <= names and not [name for name in names if name.startswith(".venv")]


def test_the_installed_program_animates_a_picture_of_another_folder(i2v, tmp_path):
    shutil.copy(ROOT / "assets" / "small_world" / "pictures" / "0.png", tmp_path / "star.png")
    options = ("--config=default", "--steps=1", "--frames=2", "--output=here")
    done = i2v("sample", "--image", "star.png", "--prompt", "a pink star moves left", *options, cwd=tmp_path)
    assert "here/star.mp4" in done.stdout
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        f"star{end}" for end in (".mp4", ".gif", ".png", ".json")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"star.png", "here"}


def test_the_installed_programs_other_commands(i2v, tmp_path):
    printed = i2v(cwd=tmp_path).stdout
    for command in ("sample", "train", "evaluate", "convert", "plan", "controls", "study", "store", "finish", "page"):
        assert re.search(rf"^  {command} ", printed, re.M)
        shown = i2v(command, "--help", cwd=tmp_path).stdout
        assert f"usage: i2v {command}" in shown
        assert not re.search(r"python (-m convert|\w+\.py)", shown)
    assert 'pip install "i2v-jax[page]"' in i2v("page", cwd=tmp_path, code=2).stderr  # Gradio is not here
    base = Path(re.search(r"are in (.*)\.$", printed, re.M)[1]) / "assets" / "small_world"
    assert "text_encoder" in i2v("convert", "inspect", base, cwd=tmp_path).stdout
    merged = tmp_path / "merged.safetensors"
    half = i2v(
        *("convert", "merge", "average", *(f"{name}={base / 'motion.safetensors'}" for name in "ab")),
        f"merged={merged}",
        cwd=tmp_path,
    )
    assert merged.is_file() and "unet: motion modules" in half.stdout
    assert "Did you mean 'sample'" in i2v("smaple", cwd=tmp_path, code=2).stderr
    assert "Did you mean 'tiny'" in i2v("train", "--config=tyny", cwd=tmp_path, code=2).stderr
    found = "import importlib.util as u; print([u.find_spec(name) for name in ('convert', 'configs', 'assets')])"
    assert i2v("-c", found, cwd=tmp_path, program="python").stdout == "[None, None, None]\n"
