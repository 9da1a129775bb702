"""Names of LPIPS: the package `lpips`, whose file repeats its heads, and torchvision's classifiers, which have none."""

from i2v_jax.models.lpips import BACKBONES
from i2v_jax.weights.names import BUFFER, CONV, Row, Table

HEAD = "lin{k}/weight"
"""Where the heads lie among buffers, [1, c, 1, 1]."""
SECOND_HEAD = "lins_{k}/weight"
"""Where their second copies lie."""
SCALING = {"shift": "scaling_layer/shift", "scale": "scaling_layer/scale"}


def _whole(backbone: str) -> Table:
    rows = [
        Row(f"net.slice{i}.{layer.number}", f"features_{layer.number}", CONV)
        for i, stage in enumerate(BACKBONES[backbone], 1)
        for layer in stage.layers
    ]
    rows += [Row("lin{k}.model.1.weight", HEAD, BUFFER), Row("lins.{k}.model.1.weight", SECOND_HEAD, BUFFER)]
    rows += [Row(f"scaling_layer.{theirs}", ours, BUFFER) for theirs, ours in SCALING.items()]
    return Table(f"lpips, {backbone}", rows)


LPIPS_ALEX, LPIPS_VGG = _whole("alex"), _whole("vgg")
TORCHVISION_CLASSIFIER = Table(
    "torchvision classifier",
    [
        Row("features.{i}", "features_{i}", CONV),
        *(Row(f"classifier.{{i}}.{leaf}", f"classifier_{{i}}/{leaf}", BUFFER) for leaf in ("weight", "bias")),
    ],
)
LPIPS_TABLES = (LPIPS_ALEX, LPIPS_VGG, TORCHVISION_CLASSIFIER)
