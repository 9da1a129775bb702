"""The small world: made clips whose every motion is known. Textured shapes move over a background under a camera.

A clip follows from its split and number alone. Its first frame does not say which way anything goes, though a shape's
size hints at whether it grows, shrinks or rotates (`LARGER`); its caption says nothing but colours, shapes and motions.
"""

from i2v_jax.data.small_world.drawing import RenderedClip, make, render, render_clip
from i2v_jax.data.small_world.paths import NOVEL
from i2v_jax.data.small_world.scene import (
    CAMERA,
    CAMERA_MOTIONS,
    CLIPS,
    KINDS,
    MOTIONS,
    STILL,
    Effect,
    Motion,
    Object,
    Scene,
    draw,
)
from i2v_jax.data.small_world.source import SmallWorld

__all__ = [
    "CAMERA",
    "CAMERA_MOTIONS",
    "CLIPS",
    "KINDS",
    "MOTIONS",
    "NOVEL",
    "STILL",
    "Effect",
    "Motion",
    "Object",
    "RenderedClip",
    "Scene",
    "SmallWorld",
    "draw",
    "make",
    "render",
    "render_clip",
]
