"""A trained model as a file for other programs: ONNX, or a program of `torch.export`. See docs/export.md."""
