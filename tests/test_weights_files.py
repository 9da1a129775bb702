"""What is done to tensors between files: made contiguous, checked to be finite, cast, counted; a few at a time."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v_jax.errors import InputError
from i2v_jax.weights.lazy import cast, check_finite
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import DTYPES, READ_AHEAD, Entry, Tensors, contiguous

FLOATS = [dtype for dtype in DTYPES.values() if "float" in dtype.name]
SHAPES = [(), (5,), (0, 4), (70, 900), (3, 3, 70, 130), (130, 70, 3, 3), (1000, 2, 3)]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_contiguous_is_the_same_array_in_c_order(dtype):
    random = np.random.default_rng(0)
    for shape in SHAPES:
        array = random.integers(0, 2, shape).astype(dtype)
        for axes in itertools.permutations(range(len(shape))):
            turned = array.transpose(axes)
            made = contiguous(turned)
            assert made.flags.c_contiguous and (made.dtype, made.shape) == (turned.dtype, turned.shape)
            assert made.tobytes() == turned.tobytes()


def test_contiguous_copies_no_array_that_is_so_already():
    array = np.zeros((4, 5))
    assert contiguous(array) is array
    assert contiguous(array[:, ::2]).tolist() == array[:, ::2].tolist()


@given(st.integers(0, 299_999), st.sampled_from(FLOATS), st.sampled_from([np.nan, np.inf, -np.inf]))
@settings(max_examples=60, deadline=None)
def test_a_single_wrong_value_is_found_wherever_it_is(place, dtype, value):
    array = np.ones((3, 100_000), dtype)
    array.reshape(-1)[place] = value
    tensors = Tensors.of({"unet/kernel": array}, "some.safetensors")
    with pytest.raises(InputError) as error:
        check_finite(tensors, {"unet/kernel": "weight"})["unet/kernel"]
    for words in ("some.safetensors", "'weight'", " 1 NaN or infinite", str([*divmod(place, 100_000)])):
        assert words in str(error.value)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_finite_values_pass_up_to_the_largest(dtype):
    is_float = "float" in dtype.name
    largest = ml_dtypes.finfo(dtype).max if is_float else 1
    array = np.array([[0, largest], [-largest if is_float else 0, 1]], dtype)
    for each in (array, array.T, array[:0], array[0, 1]):
        np.testing.assert_array_equal(check_finite(Tensors.of({"a": each}))["a"], each)


def test_the_file_is_named_as_it_lies_on_disk(tmp_path):
    file = tmp_path / "a.safetensors"
    save_tensors(file, Tensors.of({"good": np.ones(3), "bad": np.array([1, np.nan, np.inf])}))
    checked = check_finite(open_tensors(file))
    assert checked["good"].tolist() == [1, 1, 1]
    with pytest.raises(InputError, match=r"a\.safetensors: 'bad' holds 2 .* nan at \[1\]"):
        checked["bad"]


def test_cast_changes_floats_only_and_reads_nothing_early():
    arrays = {
        "kernel": np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32).T,
        "half": np.ones(3, np.float16),
        "ids": np.arange(7),
    }
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        result = cast(Tensors.of(arrays), dtype)
        assert {name: entry.dtype for name, entry in result.entries.items()} == {
            "kernel": np.dtype(dtype),
            "half": np.dtype(dtype),
            "ids": np.dtype(np.int64),
        }
        for name, array in arrays.items():
            assert result[name].dtype == result.entries[name].dtype
            np.testing.assert_array_equal(result[name], array.astype(result[name].dtype))

    def unread():
        raise AssertionError("read before it was asked for")

    cast(check_finite(Tensors({"a": Entry((3,), np.dtype("f4"), unread)}, "lazy")), np.float16)


def test_what_half_precision_cannot_hold_is_refused_by_name_and_value():
    array = np.array([1, -7e4, 65519], np.float32)  # the last rounds to 65504, the largest
    with pytest.raises(InputError, match="'conv/kernel' reaches 7e.04, which float16 cannot hold"):
        cast(Tensors.of({"conv/kernel": array}), np.float16)["conv/kernel"]
    assert cast(Tensors.of({"a": array[::2]}), np.float16)["a"].tolist() == [1, 65504]
    assert cast(Tensors.of({"a": array}), ml_dtypes.bfloat16)["a"].dtype == ml_dtypes.bfloat16
    already = np.array([np.inf], np.float32)  # not made by the cast, so not its business
    assert np.isinf(cast(Tensors.of({"a": already}), np.float16)["a"])


def test_progress_adds_up_to_the_bytes_written(tmp_path):
    tensors = Tensors.of({f"t{i}": np.ones((i, 3), "f4").T for i in range(9)})
    counts = []
    save_tensors(tmp_path / "a.safetensors", tensors, progress=counts.append)
    assert len(counts) == 9 and sum(counts) == sum(array.nbytes for array in tensors.values())
    again = open_tensors(tmp_path / "a.safetensors")
    assert all(again[name].tobytes() == tensors[name].tobytes() for name in tensors)


def test_only_a_few_tensors_are_in_memory_at_once(tmp_path):
    """Each tensor counts as held from its reading until the file has it."""
    read, written, most = [], [], 0

    def entry(name):
        def array():
            nonlocal most
            read.append(name)
            most = max(most, len(read) - len(written))
            return np.zeros(4, "f4")

        return Entry((4,), np.dtype("f4"), array)

    tensors = Tensors({f"t{i:02}": entry(i) for i in range(40)}, "lazy")
    save_tensors(tmp_path / "a.safetensors", tensors, progress=written.append)
    assert len(read) == 40
    assert most <= READ_AHEAD + 1


def test_a_failure_while_reading_leaves_nothing_and_reads_no_further(tmp_path):
    read = []

    def entry(i):
        def array():
            read.append(i)
            if i == 5:
                raise InputError("tensor 5 is damaged")
            return np.zeros(4, "f4")

        return Entry((4,), np.dtype("f4"), array)

    with pytest.raises(InputError, match="tensor 5"):
        save_tensors(tmp_path / "a.safetensors", Tensors({f"t{i:02}": entry(i) for i in range(40)}, "lazy"))
    assert len(read) <= 5 + READ_AHEAD + 2
    assert not list(tmp_path.iterdir())
