"""What is measured on a video: likeness to a picture or another video, amount and soundness of motion.

CLIPTemp, FlowScore and WarpingError are the I2V-Adapter paper's (section 4.1), which takes them from EvalCrafter (Liu
et al. 2023). Videos are uint8 RGB [frames height width 3]; each function returns one number for one video.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from skimage.metrics import structural_similarity

from i2v_jax.data.optical_flow import Picture, warp
from i2v_jax.evaluation.flow import Flows, Video, edges
from i2v_jax.media import clip_pixels
from i2v_jax.models.clip import CLIPVisionConfig, CLIPVisionEncoder

ROUNDING = 1 / 12  # mean square of what rounding to whole numbers takes away


def clip_embedding(
    config: CLIPVisionConfig, parameters: Mapping[str, Any]
) -> Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n d"]]:
    """Returns a function from pictures to their embeddings by a CLIP vision encoder.

    Those are its projected output. Where it has no projection, as an encoder that was trained for image tokens alone,
    they are the mean of its penultimate states, which these are made of: nothing trains what comes after. EvalCrafter
    takes CLIP ViT-B/32.
    """
    model = CLIPVisionEncoder(config)

    @jax.jit
    def embed(parameters, pixels):
        output = model.apply({"params": parameters}, pixels)
        return jnp.float32(output.penultimate.mean(1) if output.image_embeds is None else output.image_embeds)

    def embed_pictures(pictures):
        pixels = np.stack([clip_pixels(picture, config.image_size) for picture in pictures])
        return np.asarray(embed(parameters, pixels))

    return embed_pictures


def clip_temp(picture: Float[np.ndarray, "d"], frames: Float[np.ndarray, "f d"]) -> float:
    """CLIPTemp: mean cosine similarity of the input picture's embedding to each frame's; -1 to 1, higher is more alike.

    This is the paper's definition. EvalCrafter's metric of this name compares each frame to the next one instead.

    Args:
      picture: embedding of the input picture, see `clip_embedding`.
      frames: embeddings of all frames, the first one too.
    """
    picture, frames = np.float64(picture), np.float64(frames)
    return float(np.mean(frames @ picture / (np.linalg.norm(frames, axis=1) * np.linalg.norm(picture))))


def flow_score(flows: Flows) -> float:
    """FlowScore: mean length of the flow over all pixels and pairs of neighbouring frames; 0 upward, higher moves more.

    In pixels per frame at the video's own size, as in EvalCrafter: neither divided by the size nor by time, so only
    videos of one size and frame rate compare.

    Args:
      flows: from each frame to the next, pixels.
    """
    return float(np.linalg.norm(np.float64(flows), axis=-1).mean())


def warping_error(video: Video, flows: Flows, visible: Bool[np.ndarray, "f-1 h w"]) -> float:
    """WarpingError: how much a frame differs from the next one, fetched back along the flow; 0 to 3000, lower better.

    Squared differences of RGB values of 0 to 1, summed over the channels; mean over the pixels that the next frame
    shows too, but for the edges of motion; mean over pairs of neighbouring frames; in thousandths. This is
    EvalCrafter's definition but for the thousandths (the unit of the paper's values, 7 to 25, is not given) and the
    size: EvalCrafter first halves the frames, which clips of 64 pixels do not bear, and tells what can be trusted in
    pixels of what is left; here it is told as at 512 pixels, see `flow.visible`.

    Args:
      flows: from each frame to the next, pixels.
      visible: what the next frame shows too, see `flow.visible`. A pair without any counts as 0.
    """
    frames = np.float32(video) / 255
    squares = [((warp(b, flow) - a) ** 2).sum(-1) for a, b, flow in zip(frames[:-1], frames[1:], flows)]
    trusted = visible & ~edges(flows)
    return float(1000 * np.mean([square[seen].mean() if seen.any() else 0 for square, seen in zip(squares, trusted)]))


def psnr(video: Video, reference: Video) -> float:
    """Peak signal-to-noise ratio, mean over frames; 0 to 58.9 dB, where only rounding differs.

    Args:
      reference: of the same shape, such as the true clip. A picture compares as a video of one frame.
    """
    square = np.array([((np.float64(frame) - other) ** 2).mean() for frame, other in zip(video, reference)])
    return float(np.mean(10 * np.log10(255**2 / np.maximum(square, ROUNDING))))


def ssim(video: Video, reference: Video) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of sigma 1.5), mean over frames; -1 to 1, 1 when equal.

    Args:
      reference: of the same shape, such as the true clip; sides of 11 pixels or more.
    """
    settings = dict(channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(np.mean([structural_similarity(a, b, **settings) for a, b in zip(video, reference)]))


def background_drift(video: Video, background: Bool[np.ndarray, "h w"], picture: Picture) -> float:
    """Mean absolute difference of the background to the input picture's, over all frames; 0 to 255.

    Args:
      background: pixels that should stand still in all frames.
      picture: of the video's size.

    Returns:
      NaN where there is no such pixel, as under a moving camera.
    """
    if not background.any():
        return float("nan")
    return float(np.abs(np.float64(video)[:, background] - picture[background]).mean())
