"""Animates pictures: python sample.py --config configs/sample/sd15.py --config.image=cat.jpg --config.prompt="a cat"

Without --config, with the small model that comes with the code. Writes an mp4, a gif, a contact sheet and a JSON that
reproduces the run: `python sample.py --config run.json`. A batch that is begun again goes on where it was.
"""

import functools
import sys

from i2v_jax import commands
from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.families import few_steps
from i2v_jax.families.arithmetic import choose_dtype
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.family import SD15
from i2v_jax.families.model import Model, load_tokenizers
from i2v_jax.families.weights import Weights
from i2v_jax.sampling import batches, command_line, jobs, record, run, trained_at
from i2v_jax.sampling.pipeline import Pipeline

DEFAULT = commands.ROOT / "configs" / "sample" / "sd15.py"  # explains the keys
BUNDLED = DEFAULT.with_name("default.py")  # the small model
SHORT = (
    *("image", "csv", "prompt", "negative_prompt", "seed", "variations"),
    *("height", "width", "frames", "steps", "output"),
    "control=controls.pictures",
)


def main() -> None:
    argv = command_line.begun(commands.in_full(sys.argv, SHORT), BUNDLED, DEFAULT)
    config = commands.read_config(DEFAULT, argv, usage=__doc__, short=SHORT)
    use_compile_cache(config.compilation_cache)

    # Whatever can be wrong is found before anything costly begins.
    source = command_line.source(argv)
    recorded = record.read(source)
    given = command_line.given_keys(argv)
    if config.csv and "csv" in given and "image" not in given:
        config.image = ""  # the rows in the place of a record's picture
    if recorded and config.image:
        config.image = record.find_picture(recorded, source, config.image)
        config.controls.pictures = record.find_control_pictures(recorded, source, config.controls.pictures)
    todo = jobs.of_config(config, given)
    schedule = NoiseSchedule(**config.noise_schedule)
    run.check(config, todo, schedule)
    weights = Weights.of_run(config)
    weights.check()
    check_schedule(weights, schedule)
    few_steps.warn(weights, [few_steps.Chosen.of_config(job.config(config), schedule) for job in todo])
    mesh = make_mesh(config.mesh)
    config.dtype = choose_dtype(config.dtype, mesh.devices.flat[0].platform)
    tokenizers = load_tokenizers(weights, SD15)  # the first is alike in all families
    run.check_prompts(config, todo, *tokenizers.values())
    if knows := trained_at.of_folder(weights).knows:
        print(f"this model knows {knows}; for pictures of all kinds: --config={DEFAULT}")

    model = Model.of_config(config, mesh)
    # takes seconds, while programs compile
    hashing = record.in_background(record.hashes, weights.files(model.family.components(False)))
    videos = run.plan(config, todo, model, trained_at.of_model(weights, model), hashing.result)
    if recorded:
        record.compare(recorded, source, config, hashing.result())
    pipeline = Pipeline(model, mesh)
    size = config.batch_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    alike = functools.partial(run.chunks_of, pipeline)
    run.animate(pipeline, batches.batches(videos, size, alike), config.preview_every, hashing.result)
