"""Animates a picture with the networks beside this file, by ONNX Runtime alone:

    pip install onnxruntime numpy pillow tokenizers
    python run.py cat.png --prompt "a cat turns its head" --weights int8 --output cat.webp

Size, frames, steps and strengths are those of the export (run.json). Where noise_SEED.npz is there, that seed's noise
is JAX's, and so is the video; all other noise is NumPy's.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


class Networks:
    """The networks with one kind of weights; one at a time is in memory, from its first call to another's."""

    def __init__(self, folder, weights, threads=0):
        self.folder, self.name, self.session, self.options = folder / weights, None, None, onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        # products of int8 weights by float32 activations, which this runtime would else round to int8, too
        self.options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")

    def __call__(self, name, **inputs):
        """Runs a network; returns its outputs by name."""
        if name != self.name:
            self.name = self.session = None
            file, providers = self.folder / f"{name}.onnx", onnxruntime.get_available_providers()
            self.session, self.name = onnxruntime.InferenceSession(file, self.options, providers), name
        given = {wanted.name: np.asarray(inputs[wanted.name]) for wanted in self.session.get_inputs()}
        return dict(zip([output.name for output in self.session.get_outputs()], self.session.run(None, given)))


def token_ids(folder, encoders, prompt):
    """Token ids [1, length] of a prompt for each text encoder; what is too long is cut."""
    found = {}
    for name, kind in encoders.items():
        words = Tokenizer.from_file(str(folder / kind["file"])).encode(prompt, add_special_tokens=False).ids
        if len(words) > kind["length"] - 2:
            print(f"{prompt!r} is longer than {kind['length'] - 2} tokens; its end is cut")
        ids = [kind["start"], *words[: kind["length"] - 2], kind["end"]]
        found[name] = np.array([ids + [kind["pad"]] * (kind["length"] - len(ids))], np.int32)
    return found


def open_picture(file):
    """A picture as a person sees it: turned as the camera was, what is transparent on white."""
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def fitted(image, width, height, fit):
    """A picture in the video's size, by its `fit`: crop, pad, stretch."""
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    scale = min(height / image.height, width / image.width)
    size = [width, height] if fit == "stretch" else [max(1, round(side * scale)) for side in image.size]
    made = Image.new("RGB", (width, height))
    made.paste(image.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return made


def clip_pixels(image, size, mean, std):
    """A picture [1, size, size, 3] as CLIP takes it: the shorter side resized, the middle cropped."""
    short = min(image.size)
    image = image.resize([size * side // short for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in image.size)
    pixels = np.asarray(image)[top : top + size, left : left + size].astype(np.float32) / 255
    return ((pixels - np.array(mean, np.float32)) / np.array(std, np.float32))[None]


def noise_of(folder, seed, run):
    """What is random in a run: the draw of the first frame, the prior's mask and noise, the noise of each step."""
    if (folder / f"noise_{seed}.npz").exists():
        return dict(np.load(folder / f"noise_{seed}.npz"))
    draws, video = np.random.default_rng(seed), (1, run["frames"], *run["latents"])
    steps = (len(run["steps"]["timestep"]) if run["stochastic"] else 0, *video)
    made = dict(posterior=(1, *run["latents"]), prior=video, steps=steps)
    made = {name: draws.standard_normal(shape, np.float32) for name, shape in made.items()}
    return made | dict(mask=draws.random(video) < run["p"])


def conditions(networks, run, folder, picture, prompts):
    """What the UNet is given beside latents and time: of the negative prompt, if there is guidance, then the prompt."""
    sides = []
    for prompt in prompts:
        made = networks("text_encoder", **token_ids(folder, run["tokens"], prompt))
        is_zero = run["zeros_for_empty_prompt"] and prompt is not prompts[-1] and not prompt
        sides.append({name: states * (0 if is_zero else 1) for name, states in made.items()})
    if clip := run["image_encoder"]:
        pixels = clip_pixels(picture, **clip)
        for number, side in enumerate(sides):
            nothing = np.array([number < len(sides) - 1])
            side |= networks("image_encoder", pixels=pixels * ~nothing, unconditional=nothing)
    joined = {name: np.concatenate([side[name] for side in sides]) for name in sides[0]}
    return {"text": joined.pop("states"), **joined, "sizes": np.array(run["sizes"], np.float32)}


def animate(folder, picture, prompt, negative_prompt, seed, weights, guidance_scale, t0, threads=0, report=print):
    """Makes a video; returns its frames, uint8 [frames, height, width, 3].

    `picture` is an image of Pillow's; `weights` the name of a folder beside this file; `t0` in (0, 1] starts the run
    late, from the picture with less noise; `report` is called with a line of text now and then.
    """
    run = json.loads((folder / "run.json").read_text())
    networks, steps = Networks(folder, weights, threads), {k: np.float32(v) for k, v in run["steps"].items()}
    late = np.flatnonzero(steps["timestep"] <= t0 * run["num_train_timesteps"])
    if not 0 < t0 <= 1 or not len(late):
        raise SystemExit(f"t0 = {t0} leaves no step. Give a number up to 1, which is the whole run.")
    noise, size = noise_of(folder, seed, run), (run["width"], run["height"], run["fit"])
    prompts = [negative_prompt, prompt] if run["guided"] else [prompt]
    given = conditions(networks, run, folder, picture, prompts) | dict(guidance_scale=np.float32(guidance_scale))
    pixels = np.asarray(fitted(picture, *size), np.float32)[None] / 127.5 - 1
    encoded = networks("vae_encoder", picture=pixels, noise=noise["posterior"])
    first, x0, start = encoded["latents"], None, late[0]
    x = np.where(noise["mask"], first, encoded["blurred"])
    x = steps["scale"][start] * (steps["alpha"][start] * x + steps["sigma"][start] * noise["prior"])
    for i in late:  # each sampler's step is a sum of what is known, with weights from the table
        x[:, :1] = first
        now = {name: table[i] for name, table in steps.items()}
        latents = x / now["scale"]
        latents[:, :1] = first
        prediction = networks("unet", latents=latents, timestep=now["timestep"], **given)["prediction"]
        before, x0 = x0, now["x0_of_x"] * x + now["x0_of_prediction"] * prediction
        added = now["of_noise"] * noise["steps"][i] if run["stochastic"] else 0
        previous = now["of_previous_x0"] * (x0 if before is None else before)
        x = now["of_x"] * x + now["of_prediction"] * prediction + previous + added
        report(f"step {i - start + 1} of {len(late)}")
    x[:, :1] = first
    slices = np.split(x[0], run["frames"] // run["frames_at_once"])
    made = np.concatenate([networks("vae_decoder", latents=piece)["pictures"] for piece in slices])
    return np.round(np.clip(made / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


def main():
    folder = Path(__file__).resolve().parent
    run = json.loads((folder / "run.json").read_text())
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("picture", help="becomes the first frame")
    flags.add_argument("--weights", choices=run["weights"], default=run["weights"][-1])
    flags.add_argument("--output", default="video.webp", help="an animated .webp, .gif or .png")
    flags.add_argument("--threads", type=int, default=0, help="of the processor; 0: all")
    for name in ("prompt", "negative_prompt", "seed", "guidance_scale", "t0", "fps"):
        flags.add_argument(f"--{name}", type=type(run[name]), default=run[name], help=f"{run[name]!r} at the export")
    given = vars(flags.parse_args())
    output, fps, file = given.pop("output"), given.pop("fps"), given.pop("picture")
    if Path(output).exists() or not output.endswith((".webp", ".gif", ".png")):
        flags.error(f"--output={output}: wanted a new file, .webp, .gif or .png")
    if given["seed"] < 0 or not fps > 0:
        flags.error(f"seed {given['seed']}, fps {fps}: wanted a seed from 0 on, and an fps above 0")
    try:
        picture = open_picture(file)
    except OSError as error:
        flags.error(f"{file} cannot be read as a picture: {error}")
    frames = [Image.fromarray(frame) for frame in animate(folder, picture, **given)]
    options = dict(lossless=True) if output.endswith(".webp") else {}
    frames[0].save(output, save_all=True, append_images=frames[1:], duration=1000 / fps, loop=0, **options)
    print(output)


if __name__ == "__main__":
    main()
