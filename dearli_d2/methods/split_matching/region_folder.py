"""Regions on disk."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ...errors import ConfigError, DatasetError
from ...files import write_atomically
from ...masks.file_per_image import OTHER_IMAGE, FilePerImage, image_digest
from .structures import Regions

logger = logging.getLogger(__name__)


class RegionFolder(FilePerImage):
    """A folder of regions: `regions/STEM.safetensors` for each image."""

    def path(self, file_name: str) -> Path:
        return self.folder / "regions" / f"{Path(file_name).stem}.safetensors"

    def write(self, file_name: str, regions: Regions) -> None:
        """Stores the regions of one image, whole or not at all."""
        content = {
            "cells": regions.cells.cpu().contiguous(),
            "embeddings": regions.embeddings.cpu().contiguous(),
            "size": torch.tensor(regions.size),
        }
        about = {"digest": image_digest(file_name)} if Path(file_name).is_file() else None
        write_atomically(self.path(file_name), lambda temporary: save_file(content, temporary, about))

    def stored_digest(self, file_name: str) -> str | None:
        try:
            with safe_open(self.path(file_name), "pt") as file:
                return (file.metadata() or {}).get("digest")
        except (SafetensorError, OSError):  # `read` names it
            return None

    def read(self, file_name: str) -> Regions | None:
        """The regions of an image.

        Returns:
            None without a file, and for a damaged one, which the log names. The regions are then found anew.

        Raises:
            DatasetError: regions of another image of that name.
        """
        path = self.path(file_name)
        if not path.is_file():
            return None
        if not self.made_for(file_name):
            raise DatasetError(
                f"{file_name}: {path} {OTHER_IMAGE}; delete the file and make it again, or choose another folder"
            )
        try:
            content = load_file(path)
            return Regions(content["cells"], content["embeddings"], int(content["size"]))
        except (SafetensorError, KeyError, OSError) as error:
            logger.warning("%s is damaged and made anew: %s", path, error)
            return None

    def check_settings(self, settings: dict) -> None:
        """Raises `ConfigError` if the folder was made with other settings."""
        manifest = self.manifest()
        if manifest is None:
            raise ConfigError(
                f"MODEL.SPLIT.REGIONS.CACHE {self.folder} holds no manifest.json; dearli regions makes it"
            )
        for key, value in settings.items():
            if manifest.get(key) != value:
                raise ConfigError(
                    f"MODEL.SPLIT.REGIONS.CACHE {self.folder} was made with {key} {manifest.get(key)}, not {value}; make it "
                    "again in another folder, or leave the key empty"
                )
