"""Names of DINO's vision transformer: facebookresearch's and transformers'."""

from i2v_jax.weights.names import BUFFER, CONV, DENSE, NORM, RAW, Row, Table, under

_ENDS = {"class_token": RAW, "positions": RAW, "patch_embedding": CONV, "norm": NORM}
_LAYER = {"layer_norm1": NORM, "self_attn/out_proj": DENSE, "layer_norm2": NORM, "mlp/fc1": DENSE, "mlp/fc2": DENSE}


def _rows(ours: dict, *theirs: str) -> list[Row]:
    """Rows of parameters under another naming's names, in the same order."""
    return [Row(name, path, kind) for name, (path, kind) in zip(theirs, ours.items(), strict=True)]


DINO = Table(
    "DINO",
    [
        *_rows(_ENDS, "cls_token", "pos_embed", "patch_embed.proj", "norm"),
        *under("blocks.{i}.", "layers_{i}/", _rows(_LAYER, "norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
        *(Row("blocks.{i}.attn.qkv", f"layers_{{i}}/self_attn/{q}_proj", DENSE, (n, 3)) for n, q in enumerate("qkv")),
    ],
)
_SELF = ("layernorm_before", "attention.output.dense", "layernorm_after", "intermediate.dense", "output.dense")
_EMBEDDINGS = ("cls_token", "position_embeddings", "patch_embeddings.projection")
_QKV = [Row(f"attention.attention.{name}", f"self_attn/{name[0]}_proj", DENSE) for name in ("query", "key", "value")]
TRANSFORMERS_VIT = Table(
    "transformers ViT",
    [
        *_rows(_ENDS, *(f"embeddings.{name}" for name in _EMBEDDINGS), "layernorm"),
        *under("encoder.layer.{i}.", "layers_{i}/", _rows(_LAYER, *_SELF) + _QKV),
        *(Row(f"pooler.dense.{leaf}", f"pooler/{leaf}", BUFFER) for leaf in ("weight", "bias")),
    ],
)
DINO_TABLES = (DINO, TRANSFORMERS_VIT)
