"""Prediction from an exported file, without torch and detectron2."""
