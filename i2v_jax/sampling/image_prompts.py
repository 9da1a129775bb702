"""Image prompts: which pictures and faces a run's image tokens are of (IP-Adapter), and how much each counts.

Tokens of several pictures stand side by side, as diffusers' `load_ip_adapter` has them. The weight of a picture scales
what is read of its tokens (their values): with 1 for all, that is diffusers'.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from i2v_jax.encoders import image_tokens
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.media import Picture
from i2v_jax.sampling import face_embeddings
from i2v_jax.sampling.from_picture import clip_input
from i2v_jax.sampling.inputs import AnyPicture, as_picture

FACE_ADAPTER = "h94/IP-Adapter-FaceID/ip-adapter-faceid_sd15.bin"


@dataclass(frozen=True)
class ImagePrompts:
    """What the image tokens are of.

    Attributes:
      pictures: further pictures; () for the animated one alone.
      weights: of each picture, the animated one first where it is among them; () for 1 each.
      own_picture: whether the animated picture is among them, where there are others.
      face_embedding: for FaceID: a file, see `face_embeddings.read`, or an array [e] or [n, e]; "" for none.
    """

    pictures: tuple[AnyPicture, ...] = ()
    weights: tuple[float, ...] = ()
    own_picture: bool = True
    face_embedding: Any = ""

    @classmethod
    def of_config(cls, group: Mapping[str, Any]) -> "ImagePrompts":
        """Returns what `config.image_prompts` asks for."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in group.items()})

    @classmethod
    def of(cls, given: "ImagePrompts | AnyPicture | Sequence[AnyPicture]") -> "ImagePrompts":
        """Returns what a caller from Python asks for: pictures alone take the place of the animated one."""
        if isinstance(given, cls):
            return given
        is_one = isinstance(given, str | Path) or not isinstance(given, Sequence)
        return cls((given,) if is_one else tuple(given), own_picture=False)

    @property
    def has_face(self) -> bool:
        """Whether there is a face embedding."""
        return not (isinstance(self.face_embedding, str) and not self.face_embedding)

    @property
    def files(self) -> list[Path]:
        """The files that are read beside the animated picture."""
        named = [*self.pictures, self.face_embedding]
        return [Path(name).expanduser() for name in named if isinstance(name, str | Path) and str(name)]

    def faces(self) -> Float32[np.ndarray, "n e"] | None:
        """Reads the face embeddings; None where there are none. Raises InputError as `face_embeddings.read`."""
        if not self.has_face:
            return None
        if isinstance(self.face_embedding, str | Path):
            return face_embeddings.read(self.face_embedding)
        return face_embeddings.rows([self.face_embedding], "face_embedding")

    def others(self) -> list[Picture]:
        """Reads the further pictures. Raises InputError for one that cannot be read."""
        return [as_picture(picture) for picture in self.pictures]

    def count(self, faces: int = 0, reads: bool = True) -> int:
        """How many pictures (of a FaceID that reads none: faces) there are tokens of."""
        return len(self.pictures) + (self.own_picture or not self.pictures) if reads else faces

    def check_values(self) -> None:
        """Raises InputError for what no model can do: a file that cannot be read, weights that make no sense."""
        for weight in self.weights:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise InputError(f"image_prompts.weights={self.weights}: {weight!r} is no finite number.")
        self.others()
        faces = self.faces()
        most = max(self.count(), 0 if faces is None else len(faces))
        if len(self.weights) > most:
            raise InputError(self._miscounted(most))

    def check(self, model: Model) -> None:
        """Raises InputError for what a model's image adapter cannot do; says what to give."""
        given = self.pictures or self.weights or self.has_face
        if not model.wants_image_tokens:
            if given:
                raise InputError("image_prompts: the model has no image adapter. Give one: weights.image_adapter.")
            return
        projection = model.configs["image_proj"]
        faces = self.faces()
        if faces is None and projection.face_dim:
            raise InputError(
                "image_prompts.face_embedding: the image adapter is a FaceID, whose tokens are of a face embedding. "
                f"Give a file of one: ArcFace's, {projection.face_dim} numbers (insightface: face.normed_embedding)."
            )
        if faces is not None and not projection.face_dim:
            raise InputError(
                "image_prompts.face_embedding: the image adapter reads pictures, and no face embedding. Leave it out, "
                f"or give a FaceID, such as {FACE_ADAPTER}, as weights.image_adapter."
            )
        if faces is not None and faces.shape[1] != projection.face_dim:
            raise InputError(
                f"image_prompts.face_embedding: vectors of {faces.shape[1]} numbers; this FaceID reads "
                f"{projection.face_dim}, those of insightface's ArcFace (buffalo_l)."
            )
        if self.pictures and not projection.reads:
            raise InputError("image_prompts.pictures: this FaceID looks at faces' embeddings alone. Leave them out.")
        count = self.count(0 if faces is None else len(faces), bool(projection.reads))
        if faces is not None and projection.reads and len(faces) not in (1, count):
            raise InputError(
                f"image_prompts.face_embedding: {len(faces)} faces for {count} pictures; a FaceID plus wants one for "
                "each picture, in their order, or one for all. own_picture=False leaves the animated picture out."
            )
        if self.weights and len(self.weights) != count:
            raise InputError(self._miscounted(count))

    def strengths(self) -> dict[str, Float32[np.ndarray, " n"]]:
        """Returns the strength of each picture's tokens, for `models.adapters.image_tokens`; {} where all are 1."""
        return {"image_weights": np.array(self.weights, np.float32)} if set(self.weights) - {1} else {}

    def _miscounted(self, count: int) -> str:
        first = ", the animated picture first" if self.own_picture or not self.pictures else ""
        return f"image_prompts.weights has {len(self.weights)} numbers for {count} pictures; wanted one each{first}."


class TokenEncoder:
    """Makes a model's image tokens, of several pictures or faces to a video."""

    def __init__(self, model: Model):
        self.model = model
        self._encode = jax.jit(functools.partial(image_tokens.encode, model.configs))
        self._encode_nothing = jax.jit(functools.partial(image_tokens.encode_unconditional, model.configs))

    def __call__(
        self,
        pictures: Sequence[Picture],
        settings: Any,
        spread: Callable[[np.ndarray], Array],
    ) -> Float[Array, "b n d"]:
        """Returns the tokens of each video.

        Args:
          pictures: the animated ones.
          settings: of the run, with its `image_prompts` and the size of the video.
          spread: puts an array's rows, as many to each video, on the devices.
        """
        prompts, pixels_of = settings.image_prompts, functools.partial(clip_input, self.model, settings=settings)
        projection, faces = self.model.configs["image_proj"], prompts.faces()
        count, pixels = prompts.count(0 if faces is None else len(faces), bool(projection.reads)), None
        if projection.reads:
            others = [pixels_of(picture) for picture in prompts.others()]
            of_video = [[pixels_of(one)] if count > len(others) else [] for one in pictures]
            pixels = spread(np.stack([one for own in of_video for one in (*own, *others)]))
        if faces is not None:
            faces = spread(np.tile(np.broadcast_to(faces, (count, faces.shape[1])), (len(pictures), 1)))
        tokens = self._encode(self._tree(), pixels, faces=faces)
        return tokens.reshape(len(pictures), -1, tokens.shape[-1])

    def of_model(self, model: Model) -> "TokenEncoder":
        """Returns the same programs for a model with other parameters."""
        other = copy.copy(self)
        other.model = model
        return other

    def nothing(self, like: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns the unconditional tokens, as many as there are conditional ones."""
        none = self._encode_nothing(self._tree())
        return jnp.broadcast_to(jnp.tile(none, (1, like.shape[1] // none.shape[1], 1)), like.shape)

    def _tree(self) -> dict[str, Any]:
        return {name: self.model.parameters[name] for name in image_tokens.components(self.model.configs)}
