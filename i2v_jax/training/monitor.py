"""What a run shows: curves for TensorBoard, a bar in the terminal, and a stop when the loss is no longer finite."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from i2v_jax.errors import InputError
from i2v_jax.media import encode_gif
from i2v_jax.training.step import Metrics
from i2v_jax.training.summary import duration

_torch = sys.modules.setdefault("torch", None)  # else tensorboardX imports it, for a second, and makes no use of it
from tensorboardX import SummaryWriter  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary  # noqa: E402

if _torch is None:
    del sys.modules["torch"]

PEAK_FLOPS = {
    # cloud.google.com/tpu/docs (system architecture); NVIDIA's data sheets
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}
"""Dense bf16 products of one device a second, by how its kind begins."""


SHOWN = 8  # clips in a message
MEASURED = 3  # steps, after the first one, from which the duration is estimated


def peak_flops(device: jax.Device) -> float | None:
    """Returns the bf16 FLOP/s that a device can reach, None where this is not known."""
    kinds = sorted((kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)), key=len)
    return PEAK_FLOPS[kinds[-1]] if kinds else None


class Monitor:
    """Takes what each step tells, and shows it every few steps. Only the first process writes.

    The losses of a step are looked at when the next one has begun, so that the devices never wait for it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        first_step: int,
        steps: int,
        every: int,
        clips: int,
        flops: float | None = None,
        seconds: float = 0.0,
    ):
        """Args:
        folder: of the curves.
        first_step: steps done before this run.
        steps: of the whole training.
        every: steps between two points of the curves.
        clips: in a step, over all hosts.
        flops: of a step on each device, where known.
        seconds: that the training took before this run.
        """
        self.first_step, self.steps, self.start = first_step, steps, time.perf_counter() - seconds
        self.first_done, self.held_out, self.postfix = 0.0, "", ""
        self.every, self.clips, self.flops = every, clips, flops
        self.peak = peak_flops(jax.local_devices()[0])
        self.is_first = jax.process_index() == 0
        # what a killed run has written past its last checkpoint is not shown beside what comes now
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1) if self.is_first else None
        self.bar = tqdm(
            total=steps, initial=first_step, desc="training", unit="step", dynamic_ncols=True, disable=not self.is_first
        )
        self.pending: tuple[int, Metrics, Sequence[str]] | None = None
        self.thread = ThreadPoolExecutor(1)
        self.finished: Future[float] | None = None
        self.last_good = "none"
        self.losses: list[float] = []
        self._restart()

    def _restart(self) -> None:
        self.began, self.waited, self.count = time.perf_counter(), 0.0, 0

    def step(self, step: int, metrics: Metrics, ids: Sequence[str], waited: float, **scalars: float) -> None:
        """Takes a step that was begun.

        Args:
          step: its number, from 1.
          metrics: what it gives; not waited for.
          ids: of its clips on this host.
          waited: seconds that its batch was waited for; counted as far as the devices had nothing to do.
          scalars: further curves, such as the learning rate.

        Raises:
          InputError: the loss, the gradient or the update of the step before this one is not finite.
        """
        if self.finished and self.finished.done():
            self.waited += min(waited, time.perf_counter() - self.finished.result())
        self._check()
        self._estimate(step - 1 - self.first_step)
        self.pending = (step, metrics, ids)
        self.finished = self.thread.submit(_time_of, metrics.loss)
        self.count += 1
        self.bar.update()
        if step % self.every == 0:
            self._check()
            self._show(step, metrics, scalars)
            self._restart()

    def video(self, name: str, video: UInt8[np.ndarray, "f h w 3"], step: int, fps: float) -> None:
        """Shows a sample, as a gif: tensorboardX's own way wants another package for that."""
        if self.writer:
            picture = Summary.Image(height=video.shape[1], width=video.shape[2], colorspace=3)
            picture.encoded_image_string = encode_gif(video, fps)
            summary = Summary(value=[Summary.Value(tag=name, image=picture)])
            self.writer.file_writer.add_summary(summary, step)

    def counts(self, step: int, counts: Mapping[str, Any]) -> None:
        """Shows how many clips were used and left out, by cause."""
        if self.writer:
            for name, count in counts.items():
                self.writer.add_scalar(f"clips/{name}", count, step)

    def seconds(self) -> float:
        """Returns how long the training took until now, in all its runs, compiling and samples included."""
        return time.perf_counter() - self.start

    def held_out_loss(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the loss of clips that are held out, and what else is measured of them, by name."""
        self.held_out = f", held out {values['loss']:.4f}"
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"held_out/{name}", value, step)
            self.writer.flush()

    def pause(self, doing: str = "") -> None:
        """Leaves what comes until `resume` out of the step time: compiling, samples, waiting for a checkpoint.

        Args:
          doing: what that is, where it takes long; stands beside the bar meanwhile.
        """
        self._check()
        if doing:
            self.bar.set_postfix_str(doing)
        self.paused = time.perf_counter()

    def mean_loss(self) -> float:
        """Returns the mean loss of the steps since it was last asked for; after `pause`, so that none is left out."""
        losses, self.losses = self.losses, []
        return sum(losses) / len(losses)

    def resume(self) -> None:
        """Ends what `pause` began."""
        seconds = time.perf_counter() - self.paused
        self.began += seconds
        self.first_done += seconds
        if self.is_first:
            self.bar.start_t += seconds
            self.bar.last_print_t += seconds  # from which the time that is left is reckoned
            self.bar.set_postfix_str(self.postfix, refresh=False)

    def close(self) -> None:
        """Looks at the last step and ends the curves."""
        self._check()
        self.thread.shutdown()
        self.bar.close()
        if self.writer:
            self.writer.close()

    def _check(self) -> None:
        if self.pending is None:
            return
        (step, metrics, ids), self.pending = self.pending, None
        loss, gradient, update = map(float, (metrics.loss, metrics.gradient_norm, metrics.update_norm))
        self.losses.append(loss)
        if not (math.isfinite(loss) and math.isfinite(gradient) and math.isfinite(update)):
            self.bar.close()
            first = jax.process_index() * len(ids)
            each = np.asarray(metrics.each)[first : first + len(ids)]
            ids = [name for name, its in zip(ids, each) if not math.isfinite(its)] or ids
            shown = ", ".join(ids[:SHOWN]) + (f", and {len(ids) - SHOWN} more" if ids[SHOWN:] else "")
            raise InputError(
                f"The loss of step {step} is {loss}, its gradient's norm {gradient}, its update's {update}. "
                f"Clips on this host: {shown}. Last good checkpoint: {self.last_good}; the run goes on from there when "
                "it is started again. Lower the learning rate, set optimizer.clip_norm, or use dtype=float32."
            )

    def _show(self, step: int, metrics: Metrics, scalars: Mapping[str, float]) -> None:
        seconds = (time.perf_counter() - self.began) / self.count
        shown = {
            "loss": float(metrics.loss),
            "gradient_norm": float(metrics.gradient_norm),
            "update_norm": float(metrics.update_norm),
            "step_seconds": seconds,
            "clips_per_second": self.clips / seconds,
            "input_wait_share": self.waited / self.count / seconds,
            **scalars,
        }
        if self.flops:
            shown["teraflops_per_device"] = self.flops / seconds / 1e12
            if self.peak:
                shown["share_of_peak"] = self.flops / seconds / self.peak
        if self.writer:
            for name, value in shown.items():
                self.writer.add_scalar(f"training/{name}", value, step)
            self.writer.flush()
        self.postfix = (
            f"loss {shown['loss']:.4f}{self.held_out}, {shown['clips_per_second']:.2f} clips/s"
            + f", waiting {shown['input_wait_share']:.0%}"
            + (f", {shown['teraflops_per_device']:.2f} TFLOP/s" if self.flops else "")
            + (f" ({shown['share_of_peak']:.0%} of peak)" if "share_of_peak" in shown else "")
        )
        self.bar.set_postfix_str(self.postfix)

    def _estimate(self, done: int) -> None:
        """Says how long it will take, once so many steps of this run are done that it is known."""
        left = self.steps - self.first_step - done
        if done == 1:
            self.first_done = time.perf_counter()
        if done != 1 + MEASURED or not left:
            return
        seconds = (time.perf_counter() - self.first_done) / MEASURED
        end = time.strftime("%A %H:%M", time.localtime(time.time() + seconds * left))
        if self.is_first:
            self.bar.write(
                f"a step takes {seconds:.3g} s: {left:,} steps more are about {duration(seconds * left)}, until {end}"
            )


def _time_of(array: jax.Array) -> float:
    """The moment when an array is computed."""
    array.block_until_ready()
    return time.perf_counter()
