"""Small random networks in ONNX with the inputs and outputs that rtmlib's tools expect; what they find depends on the
picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DETECTOR_SIDE, CELLS = 64, 4  # pixels of a detector's picture, and cells along a side that may hold a person each


class Graph:
    """Nodes and constants, by name."""

    def __init__(self, seed: int, height: int | str, width: int | str) -> None:
        self.random, self.nodes, self.constants = np.random.default_rng(seed), [], []
        self.input = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, height, width])

    def constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def pooled(self, stride: int) -> str:
        return self.add("AveragePool", "input", kernel_shape=[stride, stride], strides=[stride, stride])

    def reshaped(self, value: str, *shape: int, output: str = "") -> str:
        return self.add("Reshape", value, self.constant(np.array(shape, np.int64)), output=output)

    def dense(self, value: str, inputs: int, *shape: int, scale: float = 1.0, output: str = "") -> str:
        weights = self.random.normal(0, scale / np.sqrt(inputs), (inputs, int(np.prod(shape)))).astype(np.float32)
        flat = self.add("MatMul", self.reshaped(value, -1, inputs), self.constant(weights))
        return self.reshaped(flat, -1, *shape, output=output)

    def save(self, file: Path, **outputs: list[int | str]) -> Path:
        shaped = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, "random", [self.input], shaped, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        file.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(file))
        return file


def simcc(file: Path, joints: int, seed: int = 0, height: int = 64, width: int = 48) -> Path:
    """A top-down network of RTMPose's kind: a distribution along each axis per joint, twice as fine as pixels."""
    graph = Graph(seed, height, width)
    features = 3 * (height // 16) * (width // 16)
    pooled = graph.pooled(16)
    graph.dense(pooled, features, joints, 2 * width, output="simcc_x")
    graph.dense(pooled, features, joints, 2 * height, output="simcc_y")
    return graph.save(file, simcc_x=["batch", joints, 2 * width], simcc_y=["batch", joints, 2 * height])


def heatmaps(file: Path, joints: int, seed: int = 0, height: int = 64, width: int = 48) -> Path:
    """A top-down network of ViTPose's kind."""
    graph = Graph(seed, height, width)
    features, shape = 3 * (height // 16) * (width // 16), (joints, height // 4, width // 4)
    found = graph.dense(graph.pooled(16), features, *shape)
    graph.add("Sigmoid", found, output="heatmaps")
    return graph.save(file, heatmaps=["batch", *shape])


def brightness(graph: Graph, mean: float = 0.0, deviation: float = 1.0) -> str:
    """``[1, CELLS * CELLS, 1]`` scores: how bright each cell of the picture is, from -0.2 to 0.8; the mean and standard
    deviation are those by which pixels were normalised."""
    stride = DETECTOR_SIDE // CELLS
    cells = graph.reshaped(graph.add("ReduceMean", graph.pooled(stride), axes=[1]), 1, CELLS * CELLS, 1)
    scaled = graph.add("Mul", cells, graph.constant(np.float32([deviation / 255])))
    return graph.add("Sub", scaled, graph.constant(np.float32([0.2 - mean / 255])))


def boxes(seed: int) -> np.ndarray:
    """``[1, CELLS * CELLS, 4]`` corners of a box in each cell, a little off its borders."""
    stride, places = DETECTOR_SIDE / CELLS, np.stack(np.mgrid[:CELLS, :CELLS][::-1], -1).reshape(-1, 2)
    corners = np.concatenate([places, places + 1], 1) * stride
    return (corners + np.random.default_rng(seed).uniform(-2, 2, corners.shape)).astype(np.float32)[None]


def detector(file: Path, seed: int = 1, opened: bool = False, mean: float = 0.0, deviation: float = 1.0) -> Path:
    """A detector of the kind of YOLOX or RTMDet with its suppression inside: a box in each cell that is bright."""
    graph = Graph(seed, *(["height", "width"] if opened else [DETECTOR_SIDE] * 2))
    graph.add("Concat", graph.constant(boxes(seed)), brightness(graph, mean, deviation), output="dets", axis=2)
    return graph.save(file, dets=[1, CELLS * CELLS, 5])


def plain_detector(file: Path, seed: int = 1, classes: int = 1) -> Path:
    """A detector of YOLOX's kind without suppression: boxes by cells of three strides, random scores of classes."""
    graph = Graph(seed, DETECTOR_SIDE, DETECTOR_SIDE)
    places = sum((DETECTOR_SIDE // stride) ** 2 for stride in (8, 16, 32))
    scaled = graph.add("Mul", graph.pooled(16), graph.constant(np.float32([1 / 64])))
    drawn = graph.dense(scaled, 3 * (DETECTOR_SIDE // 16) ** 2, places, 5 + classes)
    place, rest = graph.constant(np.array([0], np.int64)), graph.constant(np.array([4], np.int64))
    end, axis = graph.constant(np.array([5 + classes], np.int64)), graph.constant(np.array([2], np.int64))
    coordinates = graph.add("Tanh", graph.add("Slice", drawn, place, rest, axis))
    scores = graph.add(
        "Sigmoid", graph.add("Mul", graph.add("Slice", drawn, rest, end, axis), graph.constant(np.float32([3])))
    )
    graph.add("Concat", coordinates, scores, output="output", axis=2)
    return graph.save(file, output=[1, places, 5 + classes])


def transformer_detector(file: Path, seed: int = 1) -> Path:
    """A detector of RF-DETR's kind: boxes by their middles in shares of the picture, and logits of classes."""
    graph = Graph(seed, DETECTOR_SIDE, DETECTOR_SIDE)
    middles = boxes(seed).reshape(1, -1, 2, 2)
    middles = np.concatenate([middles.mean(2), middles[:, :, 1] - middles[:, :, 0]], -1) / DETECTOR_SIDE
    graph.add("Identity", graph.constant(middles.astype(np.float32)), output="dets")
    features = 3 * CELLS * CELLS
    graph.dense(graph.pooled(DETECTOR_SIDE // CELLS), features, CELLS * CELLS, 3, scale=3, output="labels")
    return graph.save(file, dets=[1, CELLS * CELLS, 4], labels=[1, CELLS * CELLS, 3])


def rtmo(file: Path, joints: int = 17, seed: int = 2) -> Path:
    """A network of RTMO's kind: boxes with scores, and joints for each."""
    graph = Graph(seed, DETECTOR_SIDE, DETECTOR_SIDE)
    raised = graph.add("Add", brightness(graph), graph.constant(np.float32([0.15])))
    graph.add("Concat", graph.constant(boxes(seed)), raised, output="dets", axis=2)
    features = 3 * CELLS * CELLS
    small = graph.add("Mul", graph.pooled(DETECTOR_SIDE // CELLS), graph.constant(np.float32([1 / 255])))
    places = graph.add("Mul", graph.dense(small, features, CELLS * CELLS, joints, 2), graph.constant(np.float32([64])))
    scores = graph.add("Sigmoid", graph.dense(small, features, CELLS * CELLS, joints, 1, scale=4))
    graph.add("Concat", places, scores, output="keypoints", axis=3)
    return graph.save(file, dets=[1, CELLS * CELLS, 5], keypoints=[1, CELLS * CELLS, joints, 3])
