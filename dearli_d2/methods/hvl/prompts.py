"""Learnable prompts in front of class names, through a frozen CLIP text tower (CoOp; HVL, "HTQG"), and their regularisers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import ConfigError
from ...modeling.clip.text_tower import ClipModel, text_embedding
from ...modeling.clip.tokenizer import tokenizer_of
from ...modeling.mask2former.transformer_decoder import MLP


class PromptLearner(nn.Module):
    """Text embeddings of classes as a function of T learnable tokens in front of each name.

    The text tower is not part of this module: it is frozen, shared with the backbone, and given at each call.

    Args:
        text_tower: of `open_clip`, see `text_tower_of`.
        tokens: T, the number of learnable tokens.
        classes: K, the number of classes.
        per_class: whether every class has learnable tokens of its own.
    """

    tokens: torch.Tensor
    end: torch.Tensor

    def __init__(self, text_tower: ClipModel, tokens: int, classes: int, per_class: bool = False) -> None:
        super().__init__()
        self.context, width = text_tower.positional_embedding.shape
        self.prompt = nn.Parameter(torch.empty(classes if per_class else 1, tokens, width))
        nn.init.normal_(self.prompt, std=0.02)
        self._cache: tuple[tuple, torch.Tensor] | None = None

    def set_names(self, model_name: str, names: Sequence[str]) -> None:
        """Takes the names of the classes.

        Args:
            model_name: OpenCLIP model whose tokenizer is used.
            names: K names, one for each class.

        Raises:
            ConfigError: a name without a token, equal names, or a prompt that does not fit the context.
        """
        tokenizer = tokenizer_of(model_name)
        encoded = _encode(tokenizer, names, self.prompt.shape[1], self.context)
        length, device = max(len(row) for row in encoded), self.prompt.device
        table = torch.tensor([row + [0] * (length - len(row)) for row in encoded], device=device)
        self.register_buffer("tokens", table, persistent=False)
        self.register_buffer("end", torch.tensor([len(row) - 1 for row in encoded], device=device), persistent=False)
        self._cache = None

    def forward(self, text_tower: ClipModel) -> torch.Tensor:
        """Embeds the names behind the prompt. Outside of training the result is kept until the prompt changes.

        Args:
            text_tower: the one of the constructor.

        Returns:
            (K, E) in fp32, unit norm.
        """
        if torch.is_grad_enabled() and self.prompt.requires_grad:
            return self._embed(text_tower)
        if torch.compiler.is_exporting() and self._cache is not None:  # a constant, made by a call before
            return self._cache[1]
        # every optimiser or EMA step and every load changes the prompt in place, which counts its version up
        state = (self.prompt._version, self.prompt.data_ptr(), self.prompt.device)
        if self._cache is None or self._cache[0] != state:
            self._cache = state, self._embed(text_tower)
        return self._cache[1]

    def _embed(self, tower: ClipModel) -> torch.Tensor:
        # the tower ran in fp32 when the fixed embeddings were made; learned ones are compared with them
        with torch.autocast(self.prompt.device.type, enabled=False):
            embedded = tower.token_embedding(self.tokens).float()
            prompt = self.prompt.expand(len(embedded), -1, -1)
            x = torch.cat([embedded[:, :1], prompt, embedded[:, 1:]], 1)
            return F.normalize(text_embedding(tower, x, self.end + self.prompt.shape[1]), dim=-1)


def _encode(tokenizer: Any, names: Sequence[str], tokens: int, context: int) -> list[list[int]]:
    """Start token, tokens of the name and end token of every class."""
    twice = sorted({n for n in names if list(names).count(n) > 1})
    if twice:
        raise ConfigError(f"two classes have the name {twice[0]!r}; textual queries need a name for each class")
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    rows = []
    for name in names:
        words = tokenizer.encode(name)
        if not words:
            raise ConfigError(f"the class name {name!r} has no text token; give it a name in words")
        length = len(words) + tokens + 2
        if length > context:
            raise ConfigError(
                f"MODEL.HVL.PROMPT_TOKENS {tokens} and the class name {name!r} make {length} tokens, the text tower reads "
                f"{context}; use fewer prompt tokens or a shorter name"
            )
        rows.append([start, *words, end])
    return rows


class PromptGenerator(nn.Module):
    """A two-layer MLP beside the identity, between text embeddings and queries: Phi (HVL, "Query Regularization").

    L_anchor holds its output near CLIP's embeddings. The queries are made from that output, so L_anchor constrains what the
    decoder sees. The last layer starts at zero, so the first queries are those of the text embeddings.

    Args:
        dim: width E of the embeddings.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = MLP(dim, dim, dim, 2)
        for parameter in self.mlp.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(K, E) unit-norm to (K, E) unit-norm, fp32."""
        return F.normalize(embeddings + self.mlp(embeddings).float(), dim=-1)


def prompt_loss(learned: torch.Tensor, generated: torch.Tensor, fixed: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """L_prompt = L_topo + L_anchor: learned prompts stay near CLIP's own embeddings (HVL, "Query Regularization").

    Args:
        learned: (K, E) embeddings of the learned prompt, unit norm.
        generated: (K, E), the output of `PromptGenerator` for `learned`.
        fixed: (K, E) embeddings of the fixed prompt, unit norm.
        beta: weight of the separating term of L_anchor.
    """
    return topology_loss(learned, fixed) + anchor_loss(generated, fixed, beta)


def topology_loss(learned: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of all pairwise cosines.

    Args:
        learned: (K, E), unit norm.
        fixed: (K, E), unit norm.
    """
    return (learned @ learned.T - fixed @ fixed.T).square().mean()


def anchor_loss(moved: torch.Tensor, fixed: torch.Tensor, beta: float) -> torch.Tensor:
    """Pulls each class to its own fixed embedding and pushes the classes apart.

    It is the mean distance to the fixed embedding, less beta times the mean of log(1 + distance) over pairs of classes. The
    paper's separating sum is unbounded below. On unit-norm embeddings, and averaged, it is at least -beta log 3.

    Args:
        moved: (K, E), unit norm.
        fixed: (K, E), unit norm.
        beta: weight of the separating term.
    """
    pull = _distance(moved - fixed).mean()
    count = len(moved)
    if count < 2:
        return pull
    push = _distance(moved[:, None] - moved[None]).log1p()
    others = ~torch.eye(count, dtype=torch.bool, device=moved.device)
    return pull - beta * (push * others).sum() / (count * (count - 1))


def _distance(difference: torch.Tensor) -> torch.Tensor:
    # the root of zero has no gradient
    return (difference.square().sum(-1) + 1e-12).sqrt()
