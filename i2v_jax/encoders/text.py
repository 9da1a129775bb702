"""Prompts to text conditions: one piece of code for sampling, training and storing, whatever the family.

A batch holds token ids (`tokens`, `tokens_2`) or what the encoders made of them (`text`, `pooled`). Of weighted prompts
it holds ids in chunks, and their weights (`weights`, `weights_2`).
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from i2v_jax.encoders.emphasis import EMPHASES
from i2v_jax.encoders.prompt_chunks import chunks, rows
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


Side = tuple[Sequence[str], Sequence[str] | None]
"""Prompts, and those for a second text encoder where they differ."""


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


def weights_name(component: str) -> str:
    """What a batch calls the weights of the tokens: `weights`, `weights_2`."""
    return component.replace("text_encoder", "weights")


def empty_name(component: str) -> str:
    """What a batch calls the ids of the empty prompt, for weights that are relative to it."""
    return component.replace("text_encoder", "empty_tokens")


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
    given = _by_encoder(tokenizers, (prompts, prompts_2))
    return {tokens_name(component): tokenizers[component].encode(texts, truncate) for component, texts in given.items()}


def count_chunks(tokenizers: Mapping[str, ClipTokenizer], *sides: Side, truncate: bool = False) -> list[int]:
    """Returns how many chunks each video's weighted prompts take, in the longest of them.

    Args:
      tokenizers: text encoder -> its tokenizer.
      sides: prompts for the first and the second encoder, one per video each; of both sides of guidance.
      truncate: as of `prompt_chunks.chunks`.

    Raises:
      InputError: a prompt that cannot be read as weighted.
    """
    counts = [
        [len(chunks(tokenizers[component], text, truncate)) for text in texts]
        for side in sides
        for component, texts in _by_encoder(tokenizers, side).items()
    ]
    return [max(of_video) for of_video in zip(*counts)]


def tokenize_weighted(
    tokenizers: Mapping[str, ClipTokenizer], *sides: Side, truncate: bool = False
) -> list[dict[str, np.ndarray]]:
    """Returns a batch for each side of guidance: ids and weights [b, chunks, t] of weighted prompts.

    All have as many chunks as the longest prompt; the others are filled up by chunks of the empty one.

    Args:
      tokenizers, sides, truncate: as of `count_chunks`.
    """
    count = max(count_chunks(tokenizers, *sides, truncate=truncate))
    batches = []
    with warnings.catch_warnings(action="ignore"):  # of what is cut, which the count told
        for side in sides:
            batch = {}
            for component, texts in _by_encoder(tokenizers, side).items():
                tokenizer = tokenizers[component]
                ids, weights = zip(*(rows(tokenizer, chunks(tokenizer, text, truncate), count) for text in texts))
                batch[tokens_name(component)], batch[weights_name(component)] = np.stack(ids), np.stack(weights)
                batch[empty_name(component)] = tokenizer.encode([""] * len(texts))
            batches.append(batch)
    return batches


def _by_encoder(tokenizers: Mapping[str, ClipTokenizer], side: Side) -> dict[str, Sequence[str]]:
    """The prompts for each text encoder."""
    prompts, prompts_2 = side
    if prompts_2 is not None and len(tokenizers) < 2 and any(prompts_2):
        raise InputError("A prompt for a second text encoder is given, and this model has one. Leave prompt_2 out.")
    return dict(zip(tokenizers, [prompts, prompts if prompts_2 is None else prompts_2]))


def tokenize_captions(
    tokenizers: Mapping[str, ClipTokenizer], captions: Sequence[str]
) -> dict[str, Int32[np.ndarray, "b t"]]:
    """As `tokenize`, for captions of clips: the ends of long ones are cut, without a word for each."""
    return {tokens_name(component): tokenizer.encode_captions(captions) for component, tokenizer in tokenizers.items()}


def encode(
    recipe: TextRecipe,
    configs: Mapping[str, Any],
    tree: Mapping[str, Any],
    batch: Mapping[str, Array],
    clip_skip: int = 0,
    weighting: str = "a1111",
) -> Text:
    """Returns the text conditions of a batch.

    The states of chunks follow each other; the pooled output is the first chunk's.

    Args:
      recipe: of the family.
      configs: component -> config.
      tree: component -> parameters.
      batch: token ids [b, t]; or `text` and, where the recipe has it, `pooled`, which are returned as they are; or what
        `tokenize_weighted` returns.
      clip_skip: layers that states are taken before, beside those of the recipe.
      weighting: what weights do, a name in `emphasis.EMPHASES`.
    """
    if "text" in batch:
        return Text(batch["text"], batch["pooled"] if recipe.pooled else None)
    outputs = {}
    for part in recipe.encoders:
        config, parameters = configs[part.component], tree[part.component]
        ids = batch[tokens_name(part.component)]
        rows_of_ids = ids.reshape(-1, ids.shape[-1])
        output = CLIPTextEncoder(config).apply({"params": parameters}, rows_of_ids, clip_skip)
        states = getattr(output, part.states)
        if ids.ndim == 3:
            empty = batch[empty_name(part.component)]
            of_empty = CLIPTextEncoder(config).apply({"params": parameters}, empty, clip_skip)
            states = _weighted(
                states, batch[weights_name(part.component)], getattr(of_empty, part.states), EMPHASES[weighting]
            )
            output = output._replace(pooled=output.pooled.reshape(*ids.shape[:2], -1)[:, 0])
        outputs[part.component] = states, output.pooled
    joined = [states for states, _ in outputs.values()]
    joined = joined[0] if len(joined) == 1 else jnp.concatenate(joined, -1)
    return Text(joined, outputs[recipe.pooled][1] if recipe.pooled else None)


def _weighted(states, weights, of_empty, emphasis) -> Float[Array, "b s e"]:
    """The states of chunks with their weights, one after the other."""
    batch, count, length = weights.shape
    whole = jnp.asarray(states, jnp.float32).reshape(batch, count, length, -1)
    changed = emphasis(whole, weights, jnp.asarray(of_empty, jnp.float32))
    return changed.reshape(batch, count * length, -1).astype(states.dtype)


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
        names = [name for name in _prompt_names(recipe, batch) if name in empty]
        batch = {**batch, **{name: _where(drop, empty[name], batch[name]) for name in names}}
    text = encode(recipe, configs, tree, batch)
    return text if empty is not None else zeroed(text, drop)


def swapped(recipe: TextRecipe, batch: Mapping[str, Array], swap: Bool[Array, " b"]) -> Mapping[str, Array]:
    """Returns a batch in which some clips have the prompt of the clip before, the first the last one's.

    Raises:
      InputError: there is one clip only.
    """
    if len(swap) < 2:
        raise InputError(
            "prompt_swap: a batch of one clip has no other prompt. Set objective.prompt_swap=0, or batch=2."
        )
    names = _prompt_names(recipe, batch)
    return {**batch, **{name: _where(swap, jnp.roll(batch[name], 1, 0), batch[name]) for name in names}}


def zeroed(text: Text, where: Bool[Array, " b"]) -> Text:
    """Returns text conditions with zeros in some rows: SDXL's unconditional ones (`force_zeros_for_empty_prompt`)."""
    return Text(*(None if x is None else _where(where, 0, x) for x in text))


def _prompt_names(recipe: TextRecipe, batch: Mapping[str, Array]) -> list[str]:
    """What of a batch is made of prompts."""
    return [name for name in batch if name in ("text", "pooled", *_ids(recipe))]


def _ids(recipe: TextRecipe) -> list[str]:
    return [tokens_name(component) for component in recipe.components]


def _where(rows, replacement, x):
    return jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), jnp.asarray(replacement, x.dtype), x)
