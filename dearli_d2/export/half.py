"""Float16 for the layers with weights of an ONNX graph. All else stays in float32: norms, attention, sampling grids, cosines."""

from __future__ import annotations

from typing import Any

import numpy as np

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LEAST = 1024  # numbers in a weight
# functions whose products the model computes in float32 under autocast too: they are scaled by up to 100
_FULL = ("in cosine_similarity", "in clip_head", "in embed_pooled")
_TRACE = "pkg.torch.onnx.stack_trace"
_LARGEST = float(np.finfo(np.float16).max)


def halve(model: Any) -> None:
    """Converts the layers with weights; inputs and outputs of the graph keep their types.

    Args:
        model: `ModelProto`, changed in place. Its nodes still say which line of the program they come from.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    weights = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    halves: dict[str, str] = {}
    casts: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []

    def half_weight(name: str) -> str:
        if name not in halves:
            halves[name] = f"{name}_half"
            values = numpy_helper.to_array(weights[name]).clip(-_LARGEST, _LARGEST).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(values, halves[name]))
        return halves[name]

    def half_input(name: str) -> str:
        if name in weights:
            return half_weight(name)
        if name not in casts:
            casts[name] = f"{name}_half"
            nodes.append(helper.make_node("Cast", [name], [casts[name]], to=TensorProto.FLOAT16))
        return casts[name]

    for node in graph.node:
        if _is_layer(node, weights):
            node.input[:] = [half_input(name) if name else "" for name in node.input]
            result, node.output[0] = node.output[0], f"{node.output[0]}_half"
            casts[result] = node.output[0]  # the next layer takes it as it is
            nodes += [node, helper.make_node("Cast", [node.output[0]], [result], to=TensorProto.FLOAT)]
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    nodes = [node for node in nodes if node.op_type != "Cast" or node.output[0] in used]
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _is_layer(node: Any, weights: dict[str, Any]) -> bool:
    if node.op_type not in _LAYERS or node.input[1] not in weights:
        return False
    if np.prod(weights[node.input[1]].dims) < _LEAST:
        return False
    trace = next((entry.value for entry in node.metadata_props if entry.key == _TRACE), "")
    return not any(name in trace for name in _FULL)
