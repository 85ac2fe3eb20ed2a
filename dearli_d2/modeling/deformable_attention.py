"""A stable import path of public functions; they live in `mask2former.deformable_attention`."""

from .mask2former.deformable_attention import MSDeformAttn, multi_scale_deformable_attention

__all__ = ["MSDeformAttn", "multi_scale_deformable_attention"]
