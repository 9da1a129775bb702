"""Training runs: the same on any devices and in any number of processes, stopped or not; what is frozen stays so."""

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from i2v_jax import commands, tree
from i2v_jax.devices import mesh
from i2v_jax.devices.mesh import make_mesh, on_this_host, parameter_sharding, put, put_batch, replicated, use_mesh
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.errors import InputError
from i2v_jax.families.model import assemble_config
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15
from i2v_jax.training import placement, setup, summary
from i2v_jax.training.checkpoints import Checkpoints
from i2v_jax.training.fingerprint import fingerprint
from i2v_jax.training.lock import lock
from i2v_jax.training.monitor import Monitor
from i2v_jax.training.objective import Loss, Objective
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.resume import changes
from i2v_jax.training.step import Metrics, init_state, make_step
from i2v_jax.weights.save import save_own
from tests import processes, train_runs
from tests.test_stored import CONFIGS, random_weights

BATCH, STEPS = 8, 12
LAYOUTS = (
    ({"data": 8}, "replicated"),
    ({"data": 2, "fsdp": 4}, "fsdp"),
)


class Run:
    """The small model on random latents, placed on a mesh as `train.py` places it."""

    def __init__(self, shape, **changes):
        config = commands.load_config("tests/configs/train.py").copy_and_resolve_references()
        config.update_from_flattened_dict(dict(batch=BATCH) | changes)
        count = int(np.prod(list(shape.values())))
        self.mesh = make_mesh(shape, jax.devices()[:count])
        self.assembled = assemble_config(config, jax.devices()[0])
        configs = {name: it.config for name, it in self.assembled.items()}
        chosen = placement.trained_paths(self.assembled, config.train)
        self.trained, self.frozen = placement.load_weights(self.assembled, chosen, config, self.mesh)
        self.loss, self.optimizer, step = setup.make(config, configs, dict(text=np.zeros((77, 32), np.float32)))
        abstract = placement.abstract_state(config, tree.unflatten(self.trained), self.optimizer, self.mesh)
        self.state = placement.new_state(self.trained, self.optimizer, config, abstract)
        self.step = placement.jit_step(step, abstract, self.mesh)
        shapes = placement.abstract_batch(config, configs, self.mesh, stored=True)
        self.shapes = {name: it.shape for name, it in shapes.items()} | {"latents": (BATCH, 3, 4, 4, 4)}

    def go(self, steps):
        """Goes on for some steps, and returns their losses."""
        losses = []
        with use_mesh(self.mesh):
            for _ in range(steps):
                rng = np.random.default_rng(int(self.state.step))
                batch = {name: rng.normal(size=shape).astype("f4") for name, shape in self.shapes.items()}
                placed = put_batch(batch, self.mesh)
                self.state, metrics = self.step(self.state, self.frozen, placed, jax.random.key(0))
                losses.append(float(metrics.loss))
        return np.array(losses)


@pytest.fixture(scope="module")
def on_one_device():
    run = Run({"data": 1})
    return run, run.go(20)


@pytest.mark.parametrize("shape, frozen", LAYOUTS, ids=json.dumps)
def test_losses_do_not_depend_on_the_devices(shape, frozen, on_one_device, measured, monkeypatch):
    monkeypatch.setattr(mesh, "SMALLEST_SHARDED", 32)  # else nothing of a small model is cut
    run = Run(shape, frozen=frozen)
    cut = [not leaf.is_fully_replicated for leaf in run.state.trained.values()]
    assert any(cut) == (shape.get("fsdp", 1) > 1)
    losses, expected = run.go(20), on_one_device[1]
    assert len(set(expected)) == 20
    what = "x".join(map(str, (shape["data"], shape.get("fsdp", 1))))
    measured(f"losses of 20 steps, {what} devices, frozen weights {frozen}", np.abs(losses / expected - 1).max(), 1e-5)


def test_resumed_on_another_mesh(on_one_device, measured, tmp_path):
    about = dict(frozen=fingerprint(on_one_device[0].frozen))
    begun, checkpoints = Run({"data": 1}), Checkpoints(tmp_path)
    begun.go(5)
    checkpoints.save(5, begun.state, [], about)
    shape, frozen = LAYOUTS[1]
    run = Run(shape, frozen=frozen)
    run.state, _, _ = checkpoints.restore(run.state, dict(frozen=fingerprint(run.frozen)))
    losses, expected = run.go(15), on_one_device[1][5:]
    measured("losses after a resume on another mesh", np.abs(losses / expected - 1).max(), 1e-5)


def test_frozen_weights_are_what_they_were_after_200_steps(on_one_device):
    run, _ = on_one_device
    start = Run({"data": 1})
    before = {path: np.asarray(leaf).tobytes() for path, leaf in start.frozen.items()}
    run.go(200 - int(run.state.step))
    assert int(run.state.step) == 200
    assert run.frozen.keys() == before.keys() and not run.frozen.keys() & run.state.trained.keys()
    assert all(np.asarray(leaf).tobytes() == before[path] for path, leaf in run.frozen.items())
    assert all((leaf != start.trained[path]).any() for path, leaf in run.state.trained.items())


def test_gradients_and_optimizer_state_are_of_the_trained_weights_alone():
    """24.8M x 12 bytes for Stable Diffusion 1.5, and a few counters."""
    gradients = []

    def update(gradient, state, params):
        gradients.append(gradient)
        return optimizer.update(gradient, state, params)

    def bytes_of(arrays):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))

    run, optimizer = Run({"data": 1}), Optimizer().make(1)
    step = make_step(run.loss, optax.GradientTransformation(optimizer.init, update))
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in run.shapes.items()}
    jax.eval_shape(step, run.state, run.frozen, batch, jax.random.key(0))
    count = tree.count(run.trained)
    assert gradients[0].keys() == run.trained.keys() and bytes_of(gradients) == 4 * count
    assert bytes_of(run.state.optimizer) == 8 * count + 8

    shapes = parameter_shapes(dataclasses.replace(SD15, self_attention_branches=("first_frame",)))
    trained = tree.select({"unet": tree.unflatten(shapes)}, [r"unet/.*/first_frame/.*"])
    state = jax.eval_shape(lambda trained: init_state(trained, optimizer), trained)
    assert bytes_of(state.trained) + bytes_of(state.optimizer) == 12 * 24_793_280 + 8  # gradients are as the first


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return train_runs.write_clips(tmp_path_factory.mktemp("clips") / "clips", 12)


@pytest.fixture(scope="module")
def unbroken(clips, tmp_path_factory):
    """The folder of a run on one device."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "output").write_text(processes.finish(processes.start(command(clips, folder))))
    return folder


def command(clips, folder, **changes):
    settings = dict(steps=STEPS, batch=BATCH, log__every_steps=1, held_out__share=0.2, held_out__every_steps=100)
    return train_runs.train(clips, folder, **settings | changes)


def of_two(clips, folder, second=None, **changes):
    """The commands of two processes of one run, the second's clips perhaps others."""
    changes |= dict(distributed__mode="flags", distributed__processes=2)
    changes |= dict(distributed__coordinator=f"localhost:{processes.free_port()}")
    return [
        command(source, folder, distributed__process=i, **changes) for i, source in enumerate((clips, second or clips))
    ]


def test_two_processes_train_as_one(clips, unbroken, measured, tmp_path):
    commands = of_two(clips, tmp_path, mesh__data=2, mesh__fsdp=2)
    both = [processes.start(command, devices=2) for command in commands]
    for process in both:
        processes.finish(process)
    one, two = (np.array(list(train_runs.losses(folder).values())) for folder in (unbroken, tmp_path))
    assert len(one) == len(two) == STEPS
    measured(f"losses of {STEPS} steps, 2 processes x 2 devices", np.abs(two / one - 1).max(), 1e-5)
    one, two = (train_runs.curves(folder)["held_out/loss"] for folder in (unbroken, tmp_path))
    assert one.keys() == two.keys() == {STEPS}
    measured("held-out loss, 2 processes x 2 devices", abs(two[STEPS] / one[STEPS] - 1), 1e-5)


def test_all_options_at_once_and_all_that_a_run_shows(clips, tmp_path):
    """A CSV decoded by worker processes, two hosts, samples, curves, a running average, batches in parts."""
    table = tmp_path / "clips.csv"
    table.write_text("path,name\n" + "".join(f'{video.name},"moves, {video.stem}"\n' for video in clips.glob("*.mp4")))
    folder = tmp_path / "run"
    settings = dict(
        steps=2,
        batch=4,
        accumulate=2,
        average_decay=0.5,
        objective__min_snr_gamma=5.0,
        optimizer__schedule="cosine",
        optimizer__warmup_steps=1,
        optimizer__clip_norm=1.0,
        data__videos=clips,
        data__workers=1,
        samples__every_steps=1,
        samples__steps=1,
        held_out__share=0,
    )
    both = [processes.start(command) for command in of_two(table, folder, **settings)]
    output, other = map(processes.finish, both)
    assert "clips to train on" in output and "clips to train on" not in other
    for step in (1, 2):
        with av.open(folder / "samples" / f"{step:08d}_0.mp4") as video:
            assert sum(1 for _ in video.decode(video=0)) == 4
    first, second = list(train_runs.losses(folder).values())
    assert first > 0 and second > 0 and first != second
    shown = train_runs.curves(folder)
    names = ("loss", "gradient_norm", "update_norm", "step_seconds", "clips_per_second", "input_wait_share")
    assert {f"training/{name}" for name in (*names, "teraflops_per_device", "learning_rate")} <= shown.keys()
    assert {"samples/0", "clips/good"} <= shown.keys()
    trained, average = (load_file(folder / f"{name}.safetensors") for name in ("trained", "average"))
    assert trained.keys() == average.keys()
    assert any(not np.array_equal(trained[name], average[name]) for name in trained)


def test_where_one_process_cannot_go_on_all_say_why_and_end(clips, tmp_path):
    """The second one's clips are damaged; the first one waits for it in the first step."""
    damaged = tmp_path / "damaged"
    shutil.copytree(clips, damaged)
    for video in damaged.glob("*.mp4"):
        video.write_bytes(b"no video")
    both = [processes.start(command) for command in of_two(clips, tmp_path / "run", damaged)]
    first, second = (processes.finish(process, 2) for process in both)
    assert "error: process 1 cannot go on. " in first
    for output in (first, second):
        assert "are bad, more than the share data.max_bad" in output and "Traceback" not in output


def workers_of(process) -> set[int]:
    """The processes below a run."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    return {int(pid) for thread in threads for pid in thread.read_text().split()}


def all_end(pids, seconds=10) -> bool:
    """Whether processes, which may be no children of this one, end in time."""
    until = time.monotonic() + seconds
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return not alive


def test_a_run_that_is_killed_and_stopped_ends_as_an_unbroken_one(clips, unbroken, tmp_path):
    """With worker processes, which neither Ctrl-C, sent to them too, nor a kill leaves behind. The held-out loss, here
    drawn more often, changes nothing, and is the same."""

    def begin():
        changed = dict(checkpoints__every_steps=1, data__workers=2, held_out__every_steps=4)
        changed |= dict(held_out__share=0.5)  # but the run began with less
        share = changed if (tmp_path / "config.json").exists() else changed | dict(held_out__share=0.2)
        return processes.start(command(clips, tmp_path, **share), start_new_session=True)

    process = begin()
    assert processes.wait_for(process, "training:", 5)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    assert len(workers) >= 2 and all_end(workers)
    process = begin()
    assert processes.wait_for(process, "training:", 4)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)
    output = processes.finish(process, 130)
    assert "Traceback" not in output and "interrupted: what is done is saved after this step" in output
    (last,) = re.findall(r"stopped by a signal after step (\d+); the same command goes on from there", output)
    assert len(workers) >= 2 and all_end(workers)
    output = processes.finish(begin())
    assert f"from step {last}\n" in output and f", {STEPS - int(last)} steps left" in output
    assert f"held_out.share stays 0.2, as the run in {tmp_path} began; 0.5 wants another folder" in output
    assert "going on with" not in output
    held_out = [train_runs.curves(folder)["held_out/loss"] for folder in (tmp_path, unbroken)]
    assert held_out[0].keys() == {4, 8, 12} and held_out[0][STEPS] == held_out[1][STEPS] > 0
    ours, theirs = train_runs.trained(tmp_path), train_runs.trained(unbroken)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_a_run_says_what_it_does_and_how_long_it_takes(unbroken):
    output = (unbroken / "output").read_text()
    found = re.search(
        r"(\d+) clips to train on, (\d+) more are held out\n12 steps of 8 clips are ([\d.]+) epochs", output
    )
    kept, held, epochs = int(found[1]), int(found[2]), float(found[3])
    assert kept + held == 12 and held >= 1 and epochs == pytest.approx(STEPS * BATCH / kept, abs=0.01)
    assert re.search(rf"\ncurves: .*tensorboard --logdir {unbroken / 'curves'}\n", output)
    assert re.search(r"a step takes [\d.]+ s: 8 steps more are about \d+ s, until \w+day \d\d:\d\d", output)
    drawn = train_runs.curves(unbroken)
    for name in ("loss", "loss_at_125", "loss_at_375", "loss_at_625", "loss_at_875", "psnr"):
        assert drawn[f"held_out/{name}"].keys() == {STEPS} and drawn[f"held_out/{name}"][STEPS] > 0
    assert re.search(r"12 steps in (\d+ min )?\d+ s, compiling", output)
    config = commands.load_config(unbroken / "config.json", commands.load_config("configs/train/sd15_stage1.py"))
    assert config.batch == 8 and config.train == ("unet/.*/first_frame/.*",) and config.folder == str(unbroken)


TRAINING = sorted(str(file) for file in Path("configs/train").glob("*.py"))


@pytest.mark.parametrize("source", [*TRAINING, "configs/train/small_world.py:vae"])
def test_the_config_that_a_run_leaves_is_the_one_that_it_was_started_with(source, tmp_path):
    known = commands.load_config("configs/train/sd15_stage1.py")
    config = commands.load_config(source, known)
    summary.write_config(tmp_path, json.loads(config.to_json_best_effort()))
    again = commands.load_config(tmp_path / "config.json", known)
    assert again.to_dict() == config.to_dict()
    assert repr(sorted(tree.flatten(again.to_dict()).items())) == repr(sorted(tree.flatten(config.to_dict()).items()))


@pytest.mark.parametrize("source", TRAINING)
def test_the_pictures_that_a_shipped_config_samples_from_are_there(source):
    config = commands.load_config(source, commands.load_config("configs/train/sd15_stage1.py"))
    assert [picture for picture in config.samples.pictures if not Path(picture).is_file()] == []


def test_a_run_goes_on_with_the_share_that_it_began_with(tmp_path):
    assert summary.held_out_share(tmp_path, 0.1, has_checkpoints=False) == 0.1
    assert summary.held_out_share(tmp_path, 0.1, has_checkpoints=True) == 0  # an earlier version's
    summary.write_config(tmp_path, dict(held_out=dict(share=0.3)))
    assert summary.held_out_share(tmp_path, 0.1, has_checkpoints=True) == 0.3
    assert summary.held_out_share(tmp_path, 0.1, has_checkpoints=False) == 0.1


def test_durations_and_epochs_in_words():
    words = {0.4: "0 s", 59.6: "1 min", 200: "3 min 20 s", 7500: "2 h 5 min", 3600: "1 h", 97_259: "1 d 3 h"}
    assert [summary.duration(seconds) for seconds in words] == list(words.values())
    none, steps = summary.describe_clips(1000, 0, steps=500, batch=4, done=100)
    assert none.startswith("1,000 clips to train on; none are held out (--config.held_out.share=")
    assert steps == "500 steps of 4 clips are 2.00 epochs, 400 steps left"


def test_the_duration_is_estimated_once_and_is_that_of_all_runs(tmp_path, capsys):
    metrics = Metrics(*map(jnp.asarray, (0.5, [0.5], 1.0, 1.0)))
    monitor = Monitor(tmp_path, first_step=10, steps=100, every=2, clips=1, seconds=1000)
    for step in range(11, 18):
        monitor.step(step, metrics, ["one"], 0.0)
    monitor.close()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "a step takes" in line]
    assert "86 steps more are about" in line
    assert 1000 < monitor.seconds() < 1060


def test_a_resume_on_other_base_weights_is_refused(clips, unbroken, tmp_path):
    weights = load_file(processes.ROOT / "tests" / "data" / "small" / "motion.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] * 1.01
    save_file(weights, tmp_path / "motion.safetensors", {"format": "pt"})
    changed = command(clips, unbroken, weights__motion=tmp_path / "motion.safetensors")
    message = processes.finish(processes.start(changed), 2)
    assert "was trained on other frozen weights" in message and "unet: sha256" in message
    assert "Traceback" not in message


def test_what_is_not_finite_stops_a_run_that_then_goes_on_from_before(tmp_path):
    """On stored clips, for which no encoder is loaded. The first step's rate is 0, so that its checkpoint is good."""
    source = train_runs.write_stored(tmp_path / "stored", 12)
    settings = dict(steps=3, batch=BATCH, train="unet/conv_out/bias", convolution="xla", checkpoints__every_steps=1)
    too_fast = dict(optimizer__learning_rate=1e30, optimizer__warmup_steps=1)
    run = processes.start(train_runs.train(source, tmp_path / "run", **settings, **too_fast))
    message = processes.finish(run, 2)
    assert re.search(r"error: The loss of step 2 is .*update's inf. Clips on this host: \d+, ", message)
    assert f"Last good checkpoint: step 1 in {tmp_path / 'run'}" in message and "Traceback" not in message
    assert not (tmp_path / "run" / "trained.safetensors").exists()
    output = processes.finish(processes.start(train_runs.train(source, tmp_path / "run", **settings)))
    assert f"going on in {tmp_path / 'run'} from step 1\n" in output
    assert "going on with optimizer.learning_rate 1e+30 -> 0.001\n" in output
    assert output.count("going on with") == 2
    assert all(np.isfinite(array).all() for array in train_runs.trained(tmp_path / "run").values())
    config = commands.load_config("tests/configs/train.py")
    unet = assemble_config(config, jax.devices()[0])["unet"]
    count = sum(entry.size for entry in unet.parameters.entries.values())
    assert f"4 parameters are trained, {count - 4:,} are frozen" in output


@pytest.mark.parametrize("which", ["loss", "gradient_norm", "update_norm"])
def test_whatever_is_not_finite_is_told_with_the_clips(which, tmp_path):
    finite = Metrics(*map(jnp.asarray, (0.5, [0.5], 1.0, 1.0)))
    monitor = Monitor(tmp_path, first_step=0, steps=9, every=9, clips=1)
    monitor.last_good = "step 3 in here"
    monitor.step(4, finite, ["one"], 0.0)
    monitor.step(5, finite._replace(**{which: jnp.asarray(jnp.nan)}), ["two"], 0.0)
    with pytest.raises(InputError, match="step 5 .*nan.* two. Last good checkpoint: step 3 in here"):
        monitor.pause()


def test_waiting_counts_as_far_as_the_devices_have_nothing_to_do(tmp_path):
    class Late:
        """A loss that is there after half a second."""

        def block_until_ready(self):
            time.sleep(0.5)

        def __float__(self):
            return 0.5

    metrics = Metrics(*map(jnp.asarray, (0.5, [0.5], 1.0, 1.0)))
    monitor = Monitor(tmp_path, first_step=0, steps=9, every=9, clips=1)
    monitor.step(1, metrics._replace(loss=Late()), ["one"], 3.0)
    assert monitor.waited == 0  # before any step there is nothing to tell how long devices had nothing to do
    monitor.step(2, metrics, ["two"], 3.0)
    assert monitor.waited == 0  # the first step is still being computed
    monitor.finished.result()
    time.sleep(0.1)
    monitor.step(3, metrics, ["three"], 3.0)
    assert 0.1 <= monitor.waited < 3
    monitor.close()


def test_the_time_that_is_left_is_reckoned_without_compiling(tmp_path):
    metrics = Metrics(*map(jnp.asarray, (0.5, [0.5], 1.0, 1.0)))
    monitor = Monitor(tmp_path, first_step=0, steps=100, every=100, clips=1)
    monitor.pause("compiling, once")
    time.sleep(2)
    monitor.resume()
    for step in range(1, 4):
        time.sleep(0.15)
        monitor.step(step, metrics, ["one"], 0.0)
    assert monitor.bar.format_dict["rate"] > 2
    monitor.close()


def test_the_clip_whose_loss_is_not_finite_is_named(tmp_path):
    monitor = Monitor(tmp_path, first_step=0, steps=9, every=9, clips=3)
    monitor.step(1, Metrics(*map(jnp.asarray, (jnp.nan, [0.5, jnp.nan, 0.5], 1.0, 1.0))), ["one", "two", "three"], 0.0)
    with pytest.raises(InputError, match="Clips on this host: two. Last"):
        monitor.pause()


def test_a_size_without_latents_is_refused_before_weights_are_loaded(clips, tmp_path):
    output = processes.finish(processes.start(command(clips, tmp_path / "run", data__height=36)), 2)
    assert "error: data.height=36: wanted a multiple of 8, such as 32." in output and "loading" not in output
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_a_folder_is_refused_by_all_its_processes(clips, tmp_path):
    held = lock(tmp_path)
    for process in [processes.start(command) for command in of_two(clips, tmp_path)]:
        message = processes.finish(process, 2)
        assert f"Another run is at work in {tmp_path} (process {os.getpid()} on " in message
        assert "Traceback" not in message and "loading" not in message
    lock(tmp_path, "another").close()
    held.close()
    lock(tmp_path).close()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write to the run's folder"):
        lock(tmp_path / "file")


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path), lock(tmp_path):
        pass


def test_what_a_resume_changes_is_told():
    before = json.loads(commands.load_config("tests/configs/train.py").to_json_best_effort())
    now = json.loads(commands.load_config("tests/configs/train.py").to_json_best_effort())
    assert changes(before, now) == []
    del before["lora"], before["control"]  # which a run of before had not, and which are off
    assert changes(before, now) == []
    now["folder"], now["mesh"]["fsdp"], now["log"]["every_steps"], now["data"]["workers"] = "other", 2, 7, 3
    assert changes(before, now) == []
    now["optimizer"]["learning_rate"], now["data"]["source"], now["optimizer"]["clip_norm"] = 3e-4, "other", 1.0
    now["train"] = tuple(now["train"])  # JSON's lists are the same
    now["frozenness"] = 1  # unlike `frozen`, not known to change nothing
    assert changes(before, now) == [
        "optimizer.learning_rate 0.001 -> 0.0003",
        "optimizer.clip_norm None -> 1.0",
        "data.source data/clips -> other",
        "frozenness None -> 1",
    ]


@pytest.mark.parametrize(
    "patterns, words",
    [
        ((), "`train` names no weights"),
        (("unet/.*/first_frames/.*",), "'unet/.*/first_frames/.*' matches no parameter. Did you mean 'first_frame'"),
        (("unet/conv_out/bais",), "Did you mean 'unet/conv_out/bias'"),
        (("unet/conv_out/.*", "motion/.*"), "'motion/.*' matches no parameter. It matches a part of 'unet/.*/motion/"),
        (("unet/(",), "not a regular expression"),
    ],
)
def test_patterns_that_train_nothing(patterns, words, on_one_device):
    with pytest.raises(InputError, match=words):
        placement.trained_paths(on_one_device[0].assembled, patterns)


NOT_IN_THE_LOSS = (
    r"vae/(decoder|post_quant_conv)/.*",
    r"image_encoder/(layers_1|post_layernorm|visual_projection)/.*",  # its last hidden states but one are used
)


def matching(patterns, paths):
    return {path for path in paths if any(re.fullmatch(pattern, path) for pattern in patterns)}


def test_all_that_the_loss_looks_at_can_be_trained():
    """One step on videos, of the smallest networks, by the optimizer whose program is the smallest. Weights that the
    loss never looks at stay."""
    weights = random_weights()
    before = tree.flatten(weights)
    rng, size = np.random.default_rng(0), CONFIGS["image_encoder"].image_size
    batch = dict(
        video=rng.integers(0, 256, (2, 2, 16, 16, 3)).astype(np.uint8),
        tokens=rng.integers(0, 50, (2, 77)).astype(np.int32),
        pixels=rng.normal(size=(2, size, size, 3)).astype(np.float32),
    )
    loss = Loss(CONFIGS, ANIMATEDIFF_SD15, Objective(), dict(tokens=np.zeros(77, np.int32)))
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    state = init_state(weights, optimizer)
    assert state.trained.keys() == before.keys()
    state, metrics = jax.jit(make_step(loss, optimizer))(state, {}, batch, jax.random.key(0))
    assert np.isfinite(metrics.loss)
    same = {path for path, leaf in state.trained.items() if np.array_equal(leaf, before[path])}
    assert same == matching(NOT_IN_THE_LOSS, state.trained)


def test_what_is_trained_can_be_loaded(unbroken, tmp_path):
    """The file that a run leaves, and its checkpoint, as an adapter; others of motion modules, in these's place."""

    def load(**sources):
        config = commands.load_config("tests/configs/train.py").copy_and_resolve_references()
        config.update_from_flattened_dict({f"weights.{part}": str(source) for part, source in sources.items()})
        unet = assemble_config(config, jax.devices()[0])["unet"]
        return unet.config, {f"unet/{path}": entry.read() for path, entry in unet.parameters.entries.items()}

    config, plain = load()
    trained = train_runs.trained(unbroken)
    assert trained.keys() == matching([r"unet/.*/first_frame/.*"], plain)
    for source in ("trained.safetensors", f"checkpoints/{STEPS}/trained"):
        loaded_config, loaded = load(adapter=unbroken / source)
        assert loaded_config == config
        assert all(np.array_equal(leaf, trained.get(path, plain[path])) for path, leaf in loaded.items())

    chosen = matching([r"unet/.*/(motion|first_frame)/.*"], plain)
    changed = {path: leaf + np.float32(1) for path, leaf in plain.items() if path in chosen}
    save_own(tmp_path / "trained.safetensors", tree.unflatten(changed), {"unet": config})
    checkpoints = Checkpoints(tmp_path / "checkpoints", configs={"unet": config})
    checkpoints.save(1, init_state(tree.unflatten(changed), Optimizer().make(1)), [], {})
    checkpoints.close()
    for file in (tmp_path / "trained.safetensors", tmp_path / "checkpoints/1/trained"):
        loaded_config, loaded = load(motion=file, adapter=file)
        assert loaded_config == config and config.motion.max_positions
        assert all(np.array_equal(leaf, changed.get(path, plain[path])) for path, leaf in loaded.items())


def test_no_second_copy_of_what_lies_whole_on_a_device_already():
    spread = make_mesh({"data": 4, "fsdp": 2})
    array = np.arange(1 << 17, dtype=np.float32)
    arrays = {
        "whole": put(array, replicated(spread)),
        "cut": put(array, parameter_sharding(spread, array.shape)),
    }
    here = on_this_host(arrays, spread)
    assert not arrays["cut"].is_fully_replicated
    for name, leaf in here.items():
        np.testing.assert_array_equal(leaf, array)
        assert leaf.devices() == {spread.devices.flat[0]}
        held = [it.data.unsafe_buffer_pointer() for it in arrays[name].addressable_shards]
        assert (leaf.unsafe_buffer_pointer() in held) == (name == "whole")
