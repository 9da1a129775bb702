"""Prompts to text conditions: one piece of code for sampling, training and storing, whatever the family.

A batch holds token ids (`tokens`, `tokens_2`) or what the encoders made of them (`text`, `pooled`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from i2v_jax.errors import InputError
from i2v_jax.models.clip import CLIPTextEncoder
from i2v_jax.models.tokenizer import END, ClipTokenizer


class TextPart(NamedTuple):
    """One of the text encoders of a family.

    Attributes:
      component: its name.
      states: the field of `CLIPTextOutput` that the network attends to.
      pad_token: of its tokenizer.
    """

    component: str
    states: str
    pad_token: str = END


class TextRecipe(NamedTuple):
    """How a family reads prompts.

    Attributes:
      encoders: whose states are joined along their channels.
      pooled: the component whose pooled, projected output conditions the network too; None where none does.
    """

    encoders: tuple[TextPart, ...]
    pooled: str | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """The encoders' names."""
        return tuple(part.component for part in self.encoders)


class Text(NamedTuple):
    """What prompts come to."""

    states: Float[Array, "b t e"]
    pooled: Float[Array, "b p"] | None


def tokens_name(component: str) -> str:
    """What a batch calls the ids for a text encoder: `tokens`, `tokens_2`."""
    return component.replace("text_encoder", "tokens")


def tokenizer_name(component: str) -> str:
    """The folder and the config key of a text encoder's tokenizer: `tokenizer`, `tokenizer_2`."""
    return component.replace("text_encoder", "tokenizer")


def tokenize(
    tokenizers: Mapping[str, ClipTokenizer],
    prompts: Sequence[str],
    prompts_2: Sequence[str] | None = None,
    truncate: bool = False,
) -> dict[str, Int32[np.ndarray, "b t"]]:
    """Returns the ids of prompts for each text encoder, by `tokens_name`.

    Args:
      tokenizers: text encoder -> its tokenizer.
      prompts: one per video.
      prompts_2: for the second encoder; by default the same.
      truncate: cut prompts that are too long with a warning, in place of an error.

    Raises:
      InputError: a prompt that is too long, or prompts for a second encoder where there is none.
    """
    if prompts_2 is not None and len(tokenizers) < 2 and any(prompts_2):
        raise InputError("A prompt for a second text encoder is given, and this model has one. Leave prompt_2 out.")
    given = [prompts, prompts if prompts_2 is None else prompts_2]
    return {
        tokens_name(component): tokenizer.encode(texts, truncate)
        for (component, tokenizer), texts in zip(tokenizers.items(), given)
    }


def tokenize_captions(
    tokenizers: Mapping[str, ClipTokenizer], captions: Sequence[str]
) -> dict[str, Int32[np.ndarray, "b t"]]:
    """As `tokenize`, for captions of clips: the ends of long ones are cut, without a word for each."""
    return {tokens_name(component): tokenizer.encode_captions(captions) for component, tokenizer in tokenizers.items()}


def encode(recipe: TextRecipe, configs: Mapping[str, Any], tree: Mapping[str, Any], batch: Mapping[str, Array]) -> Text:
    """Returns the text conditions of a batch.

    Args:
      recipe: of the family.
      configs: component -> config.
      tree: component -> parameters.
      batch: token ids; or `text` and, where the recipe has it, `pooled`, which are returned as they are.
    """
    if "text" in batch:
        return Text(batch["text"], batch["pooled"] if recipe.pooled else None)
    outputs = {
        component: CLIPTextEncoder(configs[component]).apply({"params": tree[component]}, batch[tokens_name(component)])
        for component in recipe.components
    }
    states = [getattr(outputs[part.component], part.states) for part in recipe.encoders]
    joined = states[0] if len(states) == 1 else jnp.concatenate(states, -1)
    return Text(joined, outputs[recipe.pooled].pooled if recipe.pooled else None)


def encode_dropped(
    recipe: TextRecipe,
    configs: Mapping[str, Any],
    tree: Mapping[str, Any],
    batch: Mapping[str, Array],
    drop: Bool[Array, " b"],
    empty: Mapping[str, Array] | None,
) -> Text:
    """As `encode`, with some clips' prompts replaced by what a model is given without a prompt.

    Args:
      recipe, configs, tree, batch: as of `encode`.
      drop: which clips; states and pooled output go together.
      empty: the empty prompt as a batch has it, by the same names without the batch axis; None: zeros stand for it.
    """
    if empty is not None:
        names = [name for name in batch if name in empty and name in ("text", "pooled", *_ids(recipe))]
        batch = {**batch, **{name: _where(drop, empty[name], batch[name]) for name in names}}
    text = encode(recipe, configs, tree, batch)
    return text if empty is not None else zeroed(text, drop)


def zeroed(text: Text, where: Bool[Array, " b"]) -> Text:
    """Returns text conditions with zeros in some rows: SDXL's unconditional ones (`force_zeros_for_empty_prompt`)."""
    return Text(*(None if x is None else _where(where, 0, x) for x in text))


def _ids(recipe: TextRecipe) -> list[str]:
    return [tokens_name(component) for component in recipe.components]


def _where(rows, replacement, x):
    return jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), jnp.asarray(replacement, x.dtype), x)
