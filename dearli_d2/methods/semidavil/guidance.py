"""Dense language guidance: pixels and caption tokens attend to each other, both as keys and as values (SemiDAViL, Sec. 3.2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from ...errors import DatasetError
from ...modeling.clip.text_tower import ClipModel, text_tower_of, token_features
from ...modeling.clip.tokenizer import tokenizer_of

_CACHED = 4096  # captions


class DenseLanguageGuidance(nn.Module):
    """DLG: pixels and caption tokens attend to each other (SemiDAViL, Sec. 3.2).

    The projection back to C starts at zero, so that the module starts as the identity.

    Args:
        vision_dim: channels C of the dense features.
        text_dim: of the tokens.
        dim: d of keys and values.
    """

    def __init__(self, vision_dim: int, text_dim: int, dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.vision_key, self.vision_value = nn.Linear(vision_dim, dim), nn.Linear(vision_dim, dim)
        self.text_key, self.text_value = nn.Linear(text_dim, dim), nn.Linear(text_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, vision_dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def attention(
        self, pixels: torch.Tensor, text: torch.Tensor, present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The affinities of each pixel and each token.

        Args:
            pixels: (B, N, C).
            text: (B, n, text_dim).
            present: (B, n) bool, False = padding.

        Returns:
            The affinities of pixels and tokens (eq. 2) in fp32, normalised (eq. 3) over the tokens and over the pixels:
            (B, N, n) each. Padding has no weight for any pixel.
        """
        keys = self.vision_key(pixels), self.text_key(text)
        with torch.autocast(pixels.device.type, enabled=False):
            affinity = self.scale * keys[0].float() @ keys[1].float().transpose(1, 2)
            over_tokens = affinity.masked_fill(~present[:, None], -torch.inf).softmax(2)
        return over_tokens, affinity.softmax(1)

    def forward(self, vision: torch.Tensor, text: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) features and the tokens of `attention` to (B, C, h, w) multimodal features."""
        pixels = vision.flatten(2).transpose(1, 2)
        text = text.masked_fill(~present[..., None], 0)
        over_tokens, over_pixels = self.attention(pixels, text, present)
        attended_text = self.text_value(text)  # passed on to the pixels it is F_V
        attended_vision = over_pixels.transpose(1, 2).to(pixels.dtype) @ self.vision_value(pixels)  # F_L
        fused = over_tokens.to(attended_text.dtype) @ (attended_text + attended_vision)
        result = pixels + self.project(self.norm(fused))
        return result.transpose(1, 2).unflatten(2, vision.shape[2:])


class CaptionEncoder:
    """Features of all tokens of a caption from a frozen OpenCLIP text tower, before pooling.

    The tower is given at each call, since it belongs to the backbone. The features of the latest captions are cached.

    Args:
        model_name: OpenCLIP model, for its tokenizer.
        context: longest caption in tokens, start and end included.
    """

    def __init__(self, model_name: str, context: int) -> None:
        self.context = context
        self.tokenizer = tokenizer_of(model_name)
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __deepcopy__(self, memo: dict) -> CaptionEncoder:
        return self  # a teacher shares the frozen tower, so also what it gave

    def forget(self) -> None:
        """Other weights of the text tower: nothing kept is valid any more."""
        self._cache.clear()

    def tokens(self, caption: str, owner: str = "a caption") -> list[int]:
        """Start token, words, end token. `owner`: whose caption an error is about.

        Raises:
            DatasetError: no word, or more tokens than the text tower reads.
        """
        words = self.tokenizer.encode(caption)
        if not words:
            raise DatasetError(f"{owner}: no text token in {caption!r}")
        if len(words) + 2 > self.context:
            raise DatasetError(
                f"{owner}: {len(words) + 2} tokens, the text tower reads {self.context}; shorten {caption!r}"
            )
        return [self.tokenizer.sot_token_id, *words, self.tokenizer.eot_token_id]

    @torch.no_grad()
    def __call__(
        self, clip_model: ClipModel, captions: Sequence[str | tuple[str, ...]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, n, text_dim) features in fp32 and (B, n) bool, False = padding, on the device of the model.

        An image with several captions has the tokens of all.
        """
        tower = text_tower_of(clip_model)
        device = tower.positional_embedding.device
        several = [(c,) if isinstance(c, str) else c for c in captions]
        every = list(dict.fromkeys(c for parts in several for c in parts))
        for caption in every:
            if caption not in self._cache:
                self._cache[caption] = self._encode(
                    tower, torch.tensor([self.tokens(caption)]).to(device, non_blocking=True)
                )[0]
            self._cache.move_to_end(caption)
        rows = [torch.cat([self._cache[c] for c in parts]).to(device) for parts in several]
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        features = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        present = torch.zeros(features.shape[:2], dtype=torch.bool)
        for row, tokens in zip(present, rows, strict=True):
            row[: len(tokens)] = True
        return features, present.to(device, non_blocking=True)

    @staticmethod
    def _encode(tower: ClipModel, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            return token_features(tower, tower.token_embedding(tokens).float())


def text_width(clip_model: ClipModel) -> int:
    """Channels of the features of `CaptionEncoder`."""
    return text_tower_of(clip_model).positional_embedding.shape[1]
