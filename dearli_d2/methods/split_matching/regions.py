"""Regions that nobody annotated: clusters of frozen CLIP features, and their embeddings (Split Matching, Sec. 3.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from ...errors import ConfigError
from ...modeling.backbone.open_clip import OpenCLIPBackbone
from ...modeling.clustering import cosine_kmeans
from .structures import Regions


@dataclass(frozen=True)
class RegionSettings:
    """The settings of regions.

    Args:
        image_size: side in pixels of the square image that CLIP sees.
        windows: sides in cells of the windows whose means are the first centroids.
        iterations: largest number of iterations of K-means.
        fusion: cosine from which on two clusters are merged.
        min_area: smallest region, as a share of the image.
        crop_size: side in pixels of the image that shows a region alone.
        embedding: "cls" of the image that shows the region alone, or "dense", the mean of the dense features in it.
    """

    image_size: int = 512
    windows: tuple[int, ...] = (8, 16)
    iterations: int = 10
    fusion: float = 0.95
    min_area: float = 0.01
    crop_size: int = 224
    embedding: str = "cls"

    def to_json(self) -> dict:
        """The entries of a cache's manifest."""
        return {**asdict(self), "windows": list(self.windows)}


class RegionFinder:
    """Finds the regions of whole images. Nothing is learned, so the same image always gives the same regions.

    Args:
        clip: a frozen CLIP model.
        mean: mean of 0..255 RGB for CLIP, 3 values.
        std: deviation of 0..255 RGB for CLIP, 3 values.
        settings: see `RegionSettings`.

    Raises:
        ConfigError: sizes that CLIP cannot take, or was not trained with.
    """

    def __init__(self, clip: OpenCLIPBackbone, mean: torch.Tensor, std: torch.Tensor, settings: RegionSettings) -> None:
        _check_sizes(clip, settings)
        self.clip, self.settings = clip, settings
        self.mean, self.std = mean.view(3, 1, 1), std.view(3, 1, 1)
        self.cluster = cluster

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, unannotated: torch.Tensor) -> list[Regions]:
        """Finds the regions of a batch of images.

        Args:
            images: (B, 3, S, S) 0..255, whole images as squares of `image_size`.
            unannotated: (B, S, S) bool.

        Returns:
            Regions inside the unannotated pixels of each image; perhaps none.
        """
        device = images.device
        normalized = (images.float() - self.mean.to(device, non_blocking=True)) / self.std.to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=False):
            dense = self.clip.embed_dense(self.clip.encode(normalized))
            labels = self.cluster(dense, self.settings)  # (B, h, w)
            return self._regions(normalized, dense, labels, unannotated)

    def _regions(
        self, images: torch.Tensor, dense: torch.Tensor, labels: torch.Tensor, unannotated: torch.Tensor
    ) -> list[Regions]:
        size, grid = images.shape[-2:], labels.shape[1:]
        full = F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()
        full = torch.where(unannotated, full, 0)
        count = int(labels.max()) + 1
        area = torch.zeros(len(labels), count, dtype=torch.int64, device=labels.device)
        area.scatter_add_(1, full.flatten(1), torch.ones_like(full.flatten(1)))
        kept = area >= self.settings.min_area * size[0] * size[1]
        kept[:, 0] = False
        owner, cluster_id = kept.nonzero(as_tuple=True)
        masks = full[owner] == cluster_id[:, None, None]
        if self.settings.embedding == "dense":
            embeddings = mean_of_cells(dense[owner], masks)
        else:
            embeddings = self._embed(images[owner], masks)
        results = []
        for index in range(len(images)):
            mine = owner == index
            numbers = torch.zeros(count, dtype=torch.uint8, device=labels.device)
            numbers[cluster_id[mine]] = torch.arange(1, int(mine.sum()) + 1, dtype=torch.uint8, device=labels.device)
            results.append(Regions(numbers[labels[index]].view(grid), embeddings[mine], size[0]))
        return results

    def _embed(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """(U, E) embeddings, unit norm, of the regions that (U, S, S) masks show in (U, 3, S, S) images."""
        masked = images * masks[:, None]  # 0 is the mean colour
        side = (self.settings.crop_size,) * 2
        crops = F.interpolate(masked, size=side, mode="bilinear", align_corners=False)
        shown = F.interpolate(masks[:, None].float(), size=side, mode="nearest")[:, 0] > 0
        parts = [
            self.clip.embed_region(self.clip.encode(crop), mask)
            for crop, mask in zip(crops.split(64), shown.split(64), strict=True)
        ]
        return torch.cat(parts) if parts else images.new_zeros(0, self.clip.embedding_dim)


def _check_sizes(clip: OpenCLIPBackbone, settings: RegionSettings) -> None:
    stride = clip.dense_shape.stride
    if settings.image_size % stride:
        raise ConfigError(
            f"MODEL.SPLIT.REGIONS.IMAGE_SIZE {settings.image_size} is no multiple of {stride}, the cells of {clip.arch}; the "
            f"nearest is {max(round(settings.image_size / stride), 1) * stride}"
        )
    if settings.embedding == "cls" and clip.image_size not in (None, settings.crop_size):
        raise ConfigError(
            f"MODEL.SPLIT.REGIONS.CROP_SIZE is {settings.crop_size}, but the weights of {clip.arch} were trained with images of "
            f"{clip.image_size} pixels; set it to {clip.image_size}"
        )


def mean_of_cells(dense: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Means of features under masks. The weight of a cell is the share of it that the mask covers.

    Args:
        dense: (U, E, h, w).
        masks: (U, H, W).

    Returns:
        (U, E), unit norm.
    """
    share = F.adaptive_avg_pool2d(masks[:, None].float(), (dense.shape[-2], dense.shape[-1]))
    return F.normalize((dense * share).sum((2, 3)), dim=-1)


def cluster(dense: torch.Tensor, settings: RegionSettings) -> torch.Tensor:
    """Clusters the cells of each image.

    K-means runs at each scale of windows and starts from the windows' means. Then similar clusters of all scales are merged
    and small ones dropped. Each cell goes to the nearest cluster that is left.

    Args:
        dense: (B, E, h, w), unit norm.
        settings: see `RegionSettings`.

    Returns:
        (B, h, w) int64, the cluster numbers 1, 2, ... of each image.
    """
    batch, _, height, width = dense.shape
    points = dense.flatten(2).transpose(1, 2)
    centroids, areas = [], []
    for window in settings.windows:
        seeds = window_seeds(dense, min(window, height, width))
        assignment, means = cosine_kmeans(points, seeds, settings.iterations)
        count = torch.zeros(means.shape[:2], device=dense.device)
        count.scatter_add_(1, assignment, torch.ones_like(assignment, dtype=count.dtype))
        centroids.append(means)
        areas.append(count / (height * width) / len(settings.windows))
    # merging asks for a number at each of its steps: on the host, where none of them waits
    means, shares = torch.cat(centroids, 1).cpu(), torch.cat(areas, 1).cpu()
    fused = [fuse(*image, settings.fusion, settings.min_area) for image in zip(means, shares, strict=True)]
    labels = [(p @ f.to(p.device, non_blocking=True).T).argmax(-1) + 1 for p, f in zip(points, fused, strict=True)]
    return torch.stack(labels).view(batch, height, width)


def equal_stripes(dense: torch.Tensor, settings: RegionSettings, count: int = 10) -> torch.Tensor:
    """In place of `cluster` where features have no content: as many clusters as a usual image has, of one size."""
    batch, _, height, width = dense.shape
    return (torch.arange(height) * count // height + 1)[None, :, None].repeat(batch, 1, width)


def window_seeds(dense: torch.Tensor, window: int) -> torch.Tensor:
    """Means of windows with half a window between them (eq. 1).

    Args:
        dense: (B, E, h, w).
        window: side in cells.

    Returns:
        (B, S, E), unit norm.
    """
    means = F.avg_pool2d(dense, window, stride=max(window // 2, 1))
    return F.normalize(means.flatten(2).transpose(1, 2), dim=-1)


def fuse(centroids: torch.Tensor, areas: torch.Tensor, threshold: float, min_area: float) -> torch.Tensor:
    """Merges the two most similar clusters while their cosine is at least `threshold`, then drops small ones.

    Clusters below `min_area` are dropped, but the largest always stays.

    Args:
        centroids: (S, E), unit norm.
        areas: (S,), shares of the image; empty clusters are left out.
        threshold: a cosine.
        min_area: a share of the image.

    Returns:
        (F, E) area-weighted means, unit norm.
    """
    centroids, areas = centroids[areas > 0], areas[areas > 0]
    similarity = (centroids @ centroids.T).fill_diagonal_(-1)
    while len(centroids) > 1:
        best = int(similarity.argmax())
        first, second = sorted(divmod(best, len(centroids)))
        if similarity[first, second] < threshold:
            break
        weight = areas[[first, second], None]
        merged = F.normalize((centroids[[first, second]] * weight).sum(0), dim=-1)
        kept = torch.arange(len(centroids), device=centroids.device) != second
        centroids[first], areas[first] = merged, areas[first] + areas[second]
        centroids, areas, similarity = centroids[kept], areas[kept], similarity[kept][:, kept]
        row = centroids @ merged
        row[first] = -1
        similarity[first], similarity[:, first] = row, row
    large = areas >= min_area
    large[areas.argmax()] = True
    return centroids[large]


def candidate_masks(regions: Regions, pixels: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Masks of the regions in a view of the image. They are disjoint and outside of what is annotated.

    Args:
        regions: regions of the image.
        pixels: (S, S) int, the pixel of the whole image, as a square of `regions.size`, behind each pixel of the view;
            -1 = padding.
        annotated: (S, S) bool.

    Returns:
        (U, S, S) bool.
    """
    if not len(regions):
        return torch.zeros(0, *pixels.shape, dtype=torch.bool, device=pixels.device)
    size = regions.size
    inside = pixels.long().clamp(min=0)
    height, width = regions.cells.shape
    row, column = inside // size * height // size, inside % size * width // size
    number = regions.cells[row, column].long()
    number = torch.where((pixels < 0) | annotated, 0, number)
    return number == torch.arange(1, len(regions) + 1, device=number.device)[:, None, None]


def region_masks(regions: Regions, unannotated: torch.Tensor) -> torch.Tensor:
    """Masks of the regions in the whole image as a square.

    Args:
        regions: regions of the image.
        unannotated: (s, s) bool.

    Returns:
        (U, s, s) bool.
    """
    size = unannotated.shape[0]
    pixels = torch.arange(size * size, device=unannotated.device).view(size, size)
    return candidate_masks(regions, pixels, ~unannotated)
