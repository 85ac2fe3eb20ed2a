"""Prediction from an exported file, without torch and detectron2.

    from dearli_d2.deploy import OnnxPredictor

    prediction = OnnxPredictor("model.onnx")("photo.jpg")

Everything here needs numpy, Pillow and onnxruntime alone.
"""

from .predictor import OnnxPredictor

__all__ = ["OnnxPredictor"]
