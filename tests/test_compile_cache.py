"""Where compiled programs are kept: one folder a user, from any folder, and for Python users; JAX's own wins."""

import jax
import pytest

from i2v_jax.devices.compile_cache import cache_folder, use_compile_cache
from i2v_jax.errors import InputError
from i2v_jax.families import model
from i2v_jax.sampling.pipeline import Pipeline

SECONDS = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """No folder is set in JAX, and the user's home is empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    before = jax.config.jax_compilation_cache_dir, getattr(jax.config, SECONDS)
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update(SECONDS, before[1])


def test_one_folder_a_user(unset, monkeypatch):
    assert cache_folder("auto") == unset / ".cache" / "i2v-jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(unset / "else"))
    assert cache_folder("auto") == unset / "else" / "i2v-jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(unset / ".cache" / "i2v-jax")
    assert getattr(jax.config, SECONDS) == 0


def test_what_the_person_has_set_in_jax_is_left(unset):
    jax.config.update("jax_compilation_cache_dir", str(unset / "own"))
    jax.config.update(SECONDS, 3.0)
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(unset / "own") == str(cache_folder())
    assert getattr(jax.config, SECONDS) == 3.0
    jax.config.update("jax_compilation_cache_dir", "")  # none
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == "" and cache_folder() is None


def test_a_folder_that_is_named(unset):
    jax.config.update("jax_compilation_cache_dir", str(unset / "own"))
    jax.config.update(SECONDS, 3.0)
    use_compile_cache("~/here", least_seconds=None)
    assert jax.config.jax_compilation_cache_dir == str(unset / "here") == str(cache_folder("~/here"))
    assert getattr(jax.config, SECONDS) == 3.0
    use_compile_cache("")
    assert jax.config.jax_compilation_cache_dir == "" and cache_folder("") is None


def test_a_home_that_cannot_be_written_keeps_nothing(unset, monkeypatch):
    (unset / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(unset / "file"))
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None and cache_folder() is None


def test_loading_a_model_or_making_a_pipeline_sets_it(unset, monkeypatch):
    with pytest.raises(AttributeError):
        Pipeline(None)
    assert jax.config.jax_compilation_cache_dir == str(unset / ".cache" / "i2v-jax")
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.raises(InputError, match="Nothing gives the unet"):
        model.Model.load(None)
    assert jax.config.jax_compilation_cache_dir == str(unset / ".cache" / "i2v-jax")
