"""A stable import path of public functions; they live in `mask2former.inference`."""

from .mask2former.inference import instance_inference, panoptic_inference, semantic_inference

__all__ = ["instance_inference", "panoptic_inference", "semantic_inference"]
