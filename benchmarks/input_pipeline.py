"""Clips a second of the input pipeline, against decoding the same frames with PyAV and doing nothing else.

    python -m benchmarks.input_pipeline [--workers 2] [--clips 24] [--rounds 3] [--size 256]

H.264 videos of 720x1280, made here, to clips of 16 frames at stride 4. Decoding alone: as many processes, each opening
a video, seeking to the key frame before the clip and decoding up to its last frame; no picture is converted or resized.
Both are warm, and take turns in one run.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from i2v_jax.data.decoding import Cut, choose_frames
from i2v_jax.data.loader import Loader, Reader
from i2v_jax.data.sources import open_source

HEIGHT, WIDTH, FPS, SEED = 720, 1280, 24, 0


def make_videos(folder: Path, count: int, frames: int) -> None:
    """Writes videos of a textured picture that moves under a slowly changing light, with a little noise."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3)).repeat(8, 0).repeat(8, 1)
        texture = (coarse + np.roll(coarse, 4, 0) + np.roll(coarse, 4, 1)) / 3
        noise = rng.normal(0, 4, (HEIGHT, WIDTH, 1))
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            for i in range(frames):
                light = 0.7 + 0.3 * np.sin(i / 20)
                picture = np.roll(texture, (i, 2 * i), (0, 1)) * light + np.roll(noise, 31 * i, 1)
                frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        (folder / f"{number}.txt").write_text("a texture that moves")


def decode_alone(path: str, start: int, stop: int) -> int:
    """Decodes frames up to number `stop`, from the key frame before `start`; returns how many were decoded."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(int(start / FPS / stream.time_base), stream=stream)
        for count, frame in enumerate(container.decode(stream)):
            if round(frame.time * FPS) >= stop:
                return count + 1
    raise AssertionError(f"{path} ended before frame {stop}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--clips", type=int, default=24, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=120, help="of a video")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        make_videos(Path(folder), arguments.videos, arguments.frames)
        compare(arguments, Path(folder), pool)


def compare(arguments: argparse.Namespace, folder: Path, pool) -> None:
    cut, source = Cut(16, 4, arguments.size, arguments.size), open_source(folder)
    loader = Loader(source, Reader(cut, None), 1, seed=SEED, workers=arguments.workers, buffer=1)
    pool.starmap(decode_alone, [(str(source[0].video), 0, 1)] * arguments.workers)
    ratios = []
    for _ in range(arguments.rounds):
        for _ in range(3 * arguments.workers):  # workers start, and whatever they hold ready is used up
            next(loader)
        taken = loader.taken
        begin = time.perf_counter()
        for _ in range(arguments.clips):
            next(loader)
        ours = arguments.clips / (time.perf_counter() - begin)
        loader.close()
        same = [loader.order.clip(position) for position in range(taken, taken + arguments.clips)]
        jobs = []
        for epoch, number in same:
            chosen = choose_frames(arguments.frames, cut, np.random.default_rng((SEED, epoch, number)))
            jobs.append((str(source[number].video), chosen[0], chosen[-1]))
        begin = time.perf_counter()
        pool.starmap(decode_alone, jobs, chunksize=1)
        alone = arguments.clips / (time.perf_counter() - begin)
        ratios.append(ours / alone)
        print(f"pipeline {ours:.2f} clips/s, decoding alone {alone:.2f} clips/s: {ratios[-1]:.2f}", flush=True)
    print(f"median {statistics.median(ratios):.2f}   (wanted 0.9)")


if __name__ == "__main__":
    main()
