"""ONNX: a network's graph by jax2onnx, with its weights in the safetensors file beside it, as ONNX's external data.

The graph is made without weights, of any size; here they are put in the place of its first inputs. What jax2onnx 0.13
writes is made plainer: products as MatMul, which runtimes do faster than Einsum.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.device.networks import Network, joined
from convert.device.precisions import SCALE, channel_axis
from convert.device.stablehlo import Traced
from i2v_jax.errors import InputError
from i2v_jax.tree import unflatten
from i2v_jax.weights.tensors import Tensors

OPSET = 20  # the first that has Gelu; ONNX Runtime 1.17 and later read it
EXTRA = "jax2onnx, onnx and onnxruntime"


def load_libraries() -> None:
    """Imports what only this command wants.

    Raises:
      InputError: it is not installed; says how to install it.
    """
    try:
        import jax2onnx  # noqa: F401
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"`device` wants {EXTRA}, and there is no {error.name}: `pip install 'i2v-jax[device]'`, or, in a "
            "checkout, `.venv/bin/pip install -r requirements-test.txt`."
        ) from error
    # of its plug-ins for libraries that are not used here, some do not load with every JAX
    logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)


def convert(network: Network, traced: Traced, parameters: Mapping[str, Tensors]) -> Any:
    """Returns the `onnx.ModelProto` of a network whose parameters are its first inputs, float32, named by their paths.

    Args:
      network, traced: see `stablehlo.trace`.
      parameters: component -> its parameters, which are not read.
    """
    from jax2onnx import to_onnx

    every = joined(network, parameters).entries
    specs = [jax.ShapeDtypeStruct(every[path].shape, jnp.float32) for path in traced.paths]
    names = [*traced.paths, *network.inputs]

    def call(*arrays):
        given = dict(zip(names, arrays))
        unused = {path: jnp.zeros(entry.shape) for path, entry in every.items() if path not in given}
        tree = unflatten({path: given[path] for path in traced.paths} | unused)
        made = network.call(tree, {name: given[name] for name in network.inputs})
        return tuple(made[name] for name in traced.outputs)

    inputs = specs + list(network.specs.values())
    model = to_onnx(call, inputs, model_name=network.name, opset=OPSET, input_names=names)
    _name_outputs(model.graph, traced.outputs)
    del model.graph.value_info[:]  # jax2onnx tells some shapes wrongly, which runtimes warn of
    _plain_products(model.graph)
    _without_dead_nodes(model.graph)
    return model


def with_weights(model: Any, weights: Tensors, file: Path) -> Any:
    """Returns a copy of `convert`'s model whose weights are those of a safetensors file, which stands beside it.

    Args:
      model: of `convert`.
      weights: as stored, see `precisions.stored`.
      file: a safetensors file of them.
    """
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(model)
    graph, offsets = made.graph, _offsets(file)
    kept = [given for given in graph.input if given.name not in weights]
    read = [given.name for given in graph.input if given.name in weights]
    del graph.input[:]
    graph.input.extend(kept)
    nodes = []
    for path in read:
        nodes += _decoded(graph, path, weights)
    for name, entry in weights.entries.items():
        held = f"{name}.stored" if name in read and entry.dtype != np.float32 else name
        graph.initializer.append(_external(held, entry, file.name, offsets[name]))
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def _decoded(graph: Any, path: str, weights: Tensors) -> list[Any]:
    """Nodes that make float32 of a stored parameter; scales come after a transpose, which then is of constants."""
    from onnx.helper import make_node

    entry = weights.entries[path]
    if entry.dtype == np.float32:
        return []
    if entry.dtype == np.float16:
        return [make_node("Cast", [f"{path}.stored"], [path], f"{path}.cast", to=1)]
    axis = channel_axis(path, len(entry.shape))
    readers = [node for node in graph.node if path in node.input]
    if not all(node.op_type == "Transpose" for node in readers):
        return [make_node("DequantizeLinear", [f"{path}.stored", path + SCALE], [path], f"{path}.scaled", axis=axis)]
    made = []
    for number, node in enumerate(readers):
        order = next(list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
        turned, output = f"{path}.turned{number}", node.output[0]
        made.append(make_node("Transpose", [f"{path}.stored"], [turned], f"{turned}.node", perm=order))
        given = [turned, path + SCALE]
        made.append(make_node("DequantizeLinear", given, [output], f"{turned}.scaled", axis=order.index(axis)))
        graph.node.remove(node)
    return made


def _external(name: str, entry: Any, file: str, span: tuple[int, int]) -> Any:
    from onnx import TensorProto
    from onnx.helper import np_dtype_to_tensor_dtype

    tensor = TensorProto(name=name, dims=entry.shape, data_type=np_dtype_to_tensor_dtype(entry.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", span[0]), ("length", span[1] - span[0])):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _offsets(file: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file begins and ends in it, bytes."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    spans = {name: fields["data_offsets"] for name, fields in header.items() if name != "__metadata__"}
    return {name: (8 + length + begin, 8 + length + end) for name, (begin, end) in spans.items()}


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    from onnx.helper import make_node

    for output, name in zip(graph.output, names, strict=True):
        graph.node.append(make_node("Identity", [output.name], [name], f"{name}.output"))
        output.name = name


def _plain_products(graph: Any) -> None:
    """Replaces every Einsum of two arrays that is a product of matrices by MatMul, between transposes where needed."""
    nodes = []
    for node in graph.node:
        equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
        nodes += _product(node, equation) if node.op_type == "Einsum" else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _product(node: Any, equation: str) -> list[Any]:
    from onnx.helper import make_node

    operands, result = equation.replace(" ", "").split("->")
    first, second = operands.split(",")
    shared = [axis for axis in first if axis in second]
    batch, summed = ([axis for axis in shared if (axis in result) == kept] for kept in (True, False))
    left = [axis for axis in first if axis not in second]
    right = [axis for axis in second if axis not in first]
    whole = len(summed) == len(right) == 1 and (len(left) == 1 or not batch) and {*batch, *left, *right} == {*result}
    if not whole or len(first + second) != len(set(first)) + len(set(second)):
        return [node]
    orders = [*batch, *left, *summed], [*batch, *summed, *right], [*batch, *left, *right]
    made, names = [], []
    for number, (axes, order) in enumerate(zip((first, second), orders)):
        names.append(node.input[number])
        if list(axes) != order:
            names[-1] = f"{node.output[0]}.turned{number}"
            perm = [axes.index(axis) for axis in order]
            made.append(make_node("Transpose", [node.input[number]], names[-1:], f"{names[-1]}.node", perm=perm))
    turned = orders[2] != list(result)
    product = f"{node.output[0]}.product" if turned else node.output[0]
    made.append(make_node("MatMul", names, [product], f"{product}.node"))
    if turned:
        perm = [orders[2].index(axis) for axis in result]
        made.append(make_node("Transpose", [product], node.output, f"{node.output[0]}.node", perm=perm))
    return made


def _without_dead_nodes(graph: Any) -> None:
    """Removes nodes and constants that no output depends on, such as those of parameters that are not used."""
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    constants = [constant for constant in graph.initializer if constant.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(constants)
