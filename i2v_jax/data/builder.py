"""Prepares clips as a `tensorflow-datasets` dataset of ArrayRecord files, which are read at random and in shares.

    python -m i2v_jax.data.builder --source=clips.csv --videos=videos --output=prepared [--beam=runner=DirectRunner]

A record holds the video file's own bytes, the caption and the id. `data.source` of a training config takes the folder
that the command prints. Clips without a file, without bytes or without a caption are left out and counted.
"""

import argparse
import contextlib
import dataclasses
import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from i2v_jax import commands
from i2v_jax.data.clip import Source, check_caption
from i2v_jax.data.decoding import CAUSES, BadClip, read_bytes
from i2v_jax.data.sources import SPLIT, check_files, open_source
from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk

LEFT_OUT = "left out"  # Beam's namespace for the counters of these
SHARE = 256  # clips that are one element to Beam


@dataclasses.dataclass(kw_only=True)
class ClipsConfig(tfds.core.BuilderConfig):
    """What to prepare, `source` and `videos` of `data.sources.open_source`, and whether on Beam."""

    source: str = ""
    videos: str | None = None
    beam: bool = False


class Clips(tfds.core.GeneratorBasedBuilder):
    """Encoded videos with captions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text, video = tfds.features.Text(), tfds.features.Tensor(shape=(), dtype=np.object_)  # bytes
        features = tfds.features.FeaturesDict({"id": text, "caption": text, "video": video})
        return tfds.core.DatasetInfo(builder=self, features=features, description=self.__doc__)

    def _split_generators(self, dl_manager):
        self.left_out = Counter()
        source = open_source(self.builder_config.source, self.builder_config.videos)
        return {SPLIT: self._generate_examples(source, self.builder_config.beam)}

    def _generate_examples(self, source: Source, beam: bool):
        """Returns an iterator of key and record; or the Beam transform that makes them, each worker its shares."""
        if not beam:
            return records(source, range(len(source)), self.left_out.update)
        import apache_beam

        def count(cause):
            apache_beam.metrics.Metrics.counter(LEFT_OUT, *cause).inc()

        starts = range(0, len(source), SHARE)
        return (
            apache_beam.Create(starts)
            | apache_beam.Reshuffle()
            | apache_beam.FlatMap(lambda i: records(source, range(i, min(i + SHARE, len(source))), count))
        )

    def _process_pipeline_result(self, pipeline_result):
        """Adds up what Beam's workers have counted."""
        for counter in pipeline_result.metrics().query()["counters"]:
            if counter.key.metric.namespace == LEFT_OUT:
                self.left_out[counter.key.metric.name] += counter.committed


def records(
    source: Source, numbers: Iterable[int], left_out: Callable[[list[str]], None]
) -> Iterator[tuple[str, dict[str, str | bytes]]]:
    """Yields id and record of each clip that has a caption and bytes; tells `left_out` the cause for another one."""
    for number in numbers:
        clip = source[number]
        try:
            check_caption(clip)
            yield clip.id, {"id": clip.id, "caption": clip.caption, "video": read_bytes(clip.video)}
        except BadClip as bad:
            left_out([bad.cause])


def prepare(source: str, output: str | Path, videos: str | None = None, beam: Mapping[str, Any] | None = None) -> Clips:
    """Prepares a source.

    Args:
      source, videos: see `data.sources.open_source`.
      output: folder for prepared datasets; this one is at `OUTPUT/clips/NAME/1.0.0`, NAME from the source.
      beam: Beam's pipeline options, with "runner"; None prepares in this process.

    Returns:
      The builder: `.data_dir` is the prepared folder, `.left_out` counts clips without a file or caption by cause.

    Raises:
      InputError: a source that cannot be opened or is prepared already, or Beam is asked for and not installed.
    """
    source, output = on_disk(source), on_disk(output)
    check_files(open_source(source, videos))  # raises before anything is written
    config = ClipsConfig(name=re.sub(r"\W", "_", source.stem), source=str(source), videos=videos, beam=beam is not None)
    with _quiet():
        builder = Clips(config=config, data_dir=output, file_format="array_record")
        there = builder.is_prepared()
    if there:
        raise InputError(f"{builder.data_path} is prepared already. Use it, remove it, or give another output folder.")
    options = None
    if beam is not None:
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError:
            raise InputError("Apache Beam is not installed: pip install apache-beam, or prepare without it.") from None
        options = tfds.download.DownloadConfig(beam_options=PipelineOptions.from_dictionary(dict(beam)))
    with _quiet():
        builder.download_and_prepare(download_config=options)
    return builder


@contextlib.contextmanager
def _quiet():
    """Keeps what the library says of downloads and of folders that it is about to make; progress is still shown."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", required=True, help="a folder of videos and captions, NAME.mp4 and NAME.txt, or a CSV"
    )
    parser.add_argument("--videos", help="where a CSV's paths start; by default its own folder")
    parser.add_argument("--output", required=True, help="folder for prepared datasets")
    parser.add_argument("--beam", help="Beam's options: runner=DirectRunner,direct_num_workers=8,...")
    arguments = vars(parser.parse_args())
    if arguments["beam"] is not None:
        arguments["beam"] = dict(option.partition("=")[::2] for option in arguments["beam"].split(","))
    builder = prepare(**arguments)
    for cause, count in builder.left_out.most_common():
        print(f"left out: {count} clips, {cause}: {CAUSES[cause]}")
    print(f"{builder.info.splits[SPLIT].num_examples} clips in {builder.data_dir}")


if __name__ == "__main__":
    commands.run(main)
