"""Text embeddings and zero-shot recognition of an OpenCLIP model."""
