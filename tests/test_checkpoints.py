"""Checkpoints: what is read is what was written, on any devices; a stopped run goes on as if it had not been."""

import json
import shutil
import signal
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2v_jax.devices.mesh import make_mesh, parameter_sharding, placer
from i2v_jax.errors import InputError
from i2v_jax.training.checkpoints import Checkpoints, checksum
from i2v_jax.training.fingerprint import fingerprint
from i2v_jax.training.optimizer import KINDS, Optimizer
from i2v_jax.training.preemption import EXIT_CODE, INTERRUPTED
from i2v_jax.training.step import init_state
from i2v_jax.weights.storage.open import open_tensors
from tests import processes
from tests.helpers import relative_error

MESHES = ({"data": 1}, {"data": 8}, {"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 4}, {"fsdp": 8})
ABOUT = dict(frozen={"unet": dict(sha256="0", parameters=1, dtype="float32")}, seed=3, config={"steps": 5})


def mesh_of(shape):
    return make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


def state_on(shape, value=0.0, optimizer="adamw"):
    """A state whose arrays hold numbers that are not those of another value."""
    mesh = mesh_of(shape)
    rng = np.random.default_rng(0)
    trained = {"unet": {"kernel": rng.normal(size=(512, 256)).astype("f4"), "norm": {"bias": np.ones(7, "f4")}}}
    state = init_state(trained, Optimizer(optimizer).make(10), averaging=True)
    state = jax.tree.map(lambda x: x + jnp.asarray(value, x.dtype), state)
    return jax.tree.map(lambda x: jax.device_put(x, parameter_sharding(mesh, x.shape)), state)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def write(folder, steps, optimizer="adamw", **options):
    """Writes a checkpoint for each step, with a state and a position of its own."""
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, state_on({"data": 2, "fsdp": 4}, step, optimizer), [{"taken": 10 * step}], ABOUT)
    checkpoints.close()


def steps_in(folder):
    return sorted(int(path.name) for path in Path(folder).iterdir() if path.name.isdigit())


@pytest.mark.parametrize("optimizer", KINDS)
@pytest.mark.parametrize("shape", MESHES, ids=json.dumps)
def test_what_is_read_is_what_was_written_on_any_mesh(shape, optimizer, tmp_path):
    write(tmp_path, [4], optimizer)
    wanted = state_on(shape, optimizer=optimizer)
    state, positions, about = Checkpoints(tmp_path).restore(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted), ABOUT
    )
    same(state, state_on(shape, 4, optimizer))
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x.sharding == y.sharding, state, wanted)))
    assert positions == [{"taken": 40}] and about == ABOUT


def test_the_state_of_another_kind_of_optimizer_is_refused(tmp_path):
    write(tmp_path, [4])
    with pytest.raises(InputError, match="optimizer"):
        Checkpoints(tmp_path).restore(state_on({"data": 1}, optimizer="muon"), ABOUT)


def test_weights_are_read_from_a_checkpoint_as_from_any_folder(tmp_path):
    write(tmp_path, [1])
    for name in ("trained", "average"):
        tensors = open_tensors(tmp_path / "1" / name)
        np.testing.assert_array_equal(tensors["unet/kernel"], state_on({}, 1).trained["unet/kernel"])


def test_a_state_may_change_while_it_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state), donate_argnums=0)
    state = state_on({"data": 8}, 1)
    for number in range(1, 6):
        written = jax.tree.map(jnp.copy, state)
        checkpoints.save(number, state, [], ABOUT)
        for _ in range(3):
            state = step(state)
        same(checkpoints.restore(state, ABOUT)[0], written)


def test_so_many_stay(tmp_path):
    write(tmp_path / "latest", range(1, 6), keep=2)
    assert steps_in(tmp_path / "latest") == [4, 5]
    assert sorted(path.name for path in (tmp_path / "latest").iterdir()) == ["4", "5"]  # and nothing else
    with pytest.raises(InputError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_the_best_stay_and_the_latest_even_over_a_restart(tmp_path):
    metrics = {1: 0.5, 2: 0.1, 3: 0.9, 4: None, 5: 0.3, 6: float("nan"), 7: 0.8, 8: 0.7}
    for steps in ((1, 2, 3, 4), (5, 6, 7, 8)):
        checkpoints = Checkpoints(tmp_path, keep=2, best=True)
        for step in steps:
            checkpoints.save(step, state_on({}, step), [], ABOUT, metric=metrics[step])
        assert checkpoints.latest() == step
        checkpoints.close()
    assert steps_in(tmp_path) == [2, 5, 8]


def damage(path, kind, rng):
    content = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif content:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_used(tmp_path):
    """Files of the latest one cut, or a bit flipped. What is read is always one that was written, whole."""
    write(tmp_path / "whole", [1, 2])
    latest = tmp_path / "whole" / "2"
    files = [path for part in ("trained", "about") for path in (latest / part).rglob("*") if path.is_file()]
    rng, passed_over = np.random.default_rng(0), 0
    for number, (file, kind) in enumerate((file, kind) for file in files for kind in ("cut", "flip")):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / file.relative_to(tmp_path / "whole"), kind, rng)
        checkpoints = Checkpoints(folder, best=True)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            state, positions, _ = checkpoints.restore(state_on({}), ABOUT)
        step = positions[0]["taken"] // 10
        same(state, state_on({}, step))
        if step == 1:
            passed_over += 1
            messages = [str(it.message) for it in told if it.category is UserWarning]
            assert len(messages) == 1 and f"The checkpoint of step 2 in {folder} is damaged" in messages[0]
            assert (folder / "2.damaged").is_dir() and checkpoints.latest() == 1
        shutil.rmtree(folder)
    assert passed_over > number / 3
    checkpoints = Checkpoints(tmp_path / "whole")
    (latest / "about" / "metadata").unlink()
    with pytest.warns(UserWarning, match="step 2 .* damaged"):
        checkpoints.restore(state_on({}), ABOUT)
    checkpoints.save(2, state_on({}, 5), [], ABOUT)  # the run comes by again
    same(checkpoints.restore(state_on({}), ABOUT)[0], state_on({}, 5))


def test_no_whole_checkpoint_is_an_error_and_not_a_new_run(tmp_path):
    write(tmp_path, [1, 2])
    for step in (1, 2):
        (tmp_path / str(step) / "about" / "metadata").write_text("{")
    for _ in range(2):
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(InputError, match="No checkpoint in .* step 1:"):
            Checkpoints(tmp_path).restore(state_on({}), ABOUT)
    with pytest.raises(InputError, match="No checkpoint"):
        Checkpoints(tmp_path / "empty").restore(state_on({}), ABOUT)


def test_other_frozen_weights_are_refused(tmp_path):
    frozen = {"unet/kernel": jnp.ones(3), "vae/kernel": jnp.ones((2, 2)), "vae/bias": jnp.ones(2)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_on({}), [], dict(frozen=fingerprint(frozen)))

    def refusal(**changes):
        with pytest.raises(InputError, match="checkpoint of step 1 .* other frozen weights") as error:
            checkpoints.restore(state_on({}), dict(frozen=fingerprint(frozen | changes)))
        return str(error.value)

    other = {"vae/bias": jnp.array([1.0, 1.0000001])}
    message = refusal(**other)
    assert "unet" not in message
    for weights in (frozen, frozen | other):
        assert fingerprint(weights)["vae"]["sha256"] in message
    assert "vae: dtype float32 before, bfloat16, float32 now" in refusal(**{"vae/bias": jnp.ones(2, jnp.bfloat16)})
    assert "vae: parameters 6 before, 7 now" in refusal(**{"vae/bias": jnp.ones(3)})
    assert "text_encoder: absent before, there now" in refusal(**{"text_encoder/bias": jnp.ones(3)})
    checkpoints.restore(state_on({}), dict(frozen=fingerprint(dict(reversed(frozen.items())))))


def test_other_trained_weights_are_refused(tmp_path):
    write(tmp_path, [1])
    state, checkpoints = state_on({}), Checkpoints(tmp_path)
    with pytest.raises(InputError, match="average/unet/kernel .* there, absent here.*average_decay"):
        checkpoints.restore(state._replace(average=None), ABOUT)
    wider = state.trained | {"unet/kernel": jnp.ones((3, 3))}
    with pytest.raises(InputError, match=r"1 differ, such as trained/unet/kernel .*512, 256.* there, .*3, 3.* here"):
        checkpoints.restore(state._replace(trained=wider), ABOUT)


def test_a_run_may_go_on_with_another_rate_and_clipping(tmp_path):
    write(tmp_path, [1])
    state, other = state_on({}), Optimizer(learning_rate=1.0, schedule="cosine", clip_norm=1.0).make(20)
    wanted = state._replace(optimizer=other.init(state.trained))
    same(Checkpoints(tmp_path).restore(wanted, ABOUT)[0].optimizer, state_on({}, 1).optimizer)


def test_a_fingerprint_is_the_same_on_any_mesh_and_of_nothing_else():
    rng = np.random.default_rng(0)
    arrays = {f"unet/{i}": rng.normal(size=(256, 512)).astype("f4") for i in range(5)} | {"vae/x": np.ones(3, "f4")}
    prints = []
    for shape in MESHES:
        put = placer(mesh_of(shape))
        prints.append(fingerprint({path: put(path, array) for path, array in arrays.items()}))
    assert all(it == prints[0] for it in prints)
    assert prints[0]["unet"]["parameters"] == 5 * 256 * 512
    first = {"unet/a": jnp.zeros((2, 3)), "unet/b": jnp.ones(4)}
    others = (
        {"unet/a": jnp.zeros((3, 2)), "unet/b": jnp.ones(4)},
        {"unet/a": jnp.zeros((2, 3)), "unet/c": jnp.ones(4)},
        {"unet/a": jnp.zeros((2, 3)), "unet/b": jnp.ones(4, jnp.int32).view("float32")},
        {"unet/a": jnp.zeros((2, 3)), "unet/b": jnp.ones(4).at[2].set(jnp.nan)},
        {"unet/a": -jnp.zeros((2, 3)), "unet/b": jnp.ones(4)},
    )
    hashes = [fingerprint(weights)["unet"]["sha256"] for weights in (first, *others)]
    assert len(set(hashes)) == len(hashes)


def test_a_checksum_sees_any_bit_and_any_exchange_on_any_mesh():
    array = np.random.default_rng(0).normal(size=(512, 256)).astype("f4")
    sums = {int(checksum(placer(mesh_of(shape))("", array))) for shape in MESHES}
    assert len(sums) == 1
    flipped = array.copy()
    flipped.view("u4")[3, 5] ^= 1
    exchanged = array.copy()
    exchanged[0], exchanged[1] = array[1], array[0]
    assert len(sums | {int(checksum(other)) for other in (flipped, exchanged, array.T)}) == 4
    for dtype in ("bool", "int8", "bfloat16", "int32"):
        assert int(checksum(jnp.zeros(3, dtype))) != int(checksum(jnp.zeros(3, dtype).at[1].set(1)))


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write checkpoints to .*file"):
        Checkpoints(tmp_path / "file")
    checkpoints = Checkpoints(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "gone").write_text("")
    with pytest.raises(InputError, match="gone"):
        checkpoints.save(1, state_on({}), [], ABOUT)
        checkpoints.wait()


def toy(folder, steps, *rest):
    return ["-m", "tests.toy_run", folder, steps, *rest]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A toy run's results after a number of steps, without a stop."""

    def run(steps):
        folder = tmp_path_factory.mktemp("unbroken")
        processes.finish(processes.start(toy(folder, steps)))
        return processes.results(folder)

    return run


def test_killed_at_random_the_end_is_the_same(unbroken, tmp_path):
    kills, endless = 4, 999  # `benchmarks/kills.py` kills train.py 25 times
    counts = processes.kill_at_random(toy(tmp_path, endless), kills, "step ", np.random.default_rng(0))
    assert len(counts) == kills
    steps = steps_in(tmp_path / "checkpoints")[-1] + 5
    assert "begins at 0\n" not in processes.finish(processes.start(toy(tmp_path, steps)))
    ours, theirs = processes.results(tmp_path), unbroken(steps)
    for path in ("unet.up", "unet.down"):
        assert ours[path].tobytes() == theirs[path].tobytes()


STOPS = [(signal.SIGTERM, EXIT_CODE), (signal.SIGINT, INTERRUPTED)]


@pytest.mark.parametrize("stop, code", STOPS)
def test_a_signal_saves_and_the_next_start_goes_on(stop, code, unbroken, tmp_path):
    process = processes.start(toy(tmp_path, 1000))
    assert processes.wait_for(process, "step 3")
    process.send_signal(stop)
    output = processes.finish(process, code)
    last = int(output.split("step ")[-1])
    assert 3 < last < 8 and steps_in(tmp_path / "checkpoints")[-1] == last and "Traceback" not in output
    output = processes.finish(processes.start(toy(tmp_path, 12)))
    assert f"begins at {last}" in output
    assert processes.results(tmp_path)["unet.up"].tobytes() == unbroken(12)["unet.up"].tobytes()


BUSY = """
import hashlib, sys
from i2v_jax.training.preemption import Preemption
Preemption(unsaved=sys.argv[1] == "unsaved")
print("ready")
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as a compiler: Python handles no signal until it is done
"""


@pytest.fixture
def busy():
    """Starts BUSY with an argument; whatever comes, it does not stay."""
    started = []

    def start(argument):
        started.append(processes.start(["-c", BUSY, argument]))
        assert processes.wait_for(started[0], "ready")
        return started[0]

    yield start
    started[0].kill()


def test_a_second_interrupt_ends_at_once_whatever_the_process_does(busy):
    process = busy("unsaved")
    process.send_signal(signal.SIGINT)
    assert processes.wait_for(process, "interrupted: what is done is saved after this step; Ctrl-C once more ends")
    process.send_signal(signal.SIGINT)
    output = processes.finish(process, INTERRUPTED, seconds=10)
    assert "interrupted again: ended at once" in output and "Traceback" not in output


def test_the_first_interrupt_ends_at_once_where_nothing_is_to_be_saved(busy):
    process = busy("saved")
    process.send_signal(signal.SIGINT)
    assert "interrupted; nothing is lost" in processes.finish(process, INTERRUPTED, seconds=10)


def test_a_signal_to_one_of_two_processes_stops_both_and_one_process_goes_on(unbroken, measured, tmp_path):
    """SIGINT, which makes a SIGTERM for JAX's service."""
    coordinator = f"localhost:{processes.free_port()}"
    mesh = json.dumps({"data": 2, "fsdp": 4})
    both = [processes.start(toy(tmp_path, 1000, mesh, coordinator, 2, i), devices=4) for i in range(2)]
    assert processes.wait_for(both[0], "step 3")
    both[1].send_signal(signal.SIGINT)
    outputs = [processes.finish(process, code) for process, code in zip(both, (EXIT_CODE, INTERRUPTED))]
    last = [int(output.split("step ")[-1].split()[0]) for output in outputs]
    assert last[0] == last[1] == steps_in(tmp_path / "checkpoints")[-1]
    steps = last[0] + 5
    processes.finish(processes.start(toy(tmp_path, steps, json.dumps({"data": 4, "fsdp": 2})), devices=8))
    ours, theirs = processes.results(tmp_path), unbroken(steps)
    for path in ("unet.up", "unet.down"):
        measured(f"resumed on other processes and mesh: {path}", relative_error(ours[path], theirs[path]), 1e-5)
