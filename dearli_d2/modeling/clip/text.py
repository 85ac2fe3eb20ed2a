"""Classes as text embeddings: prompts, their cache, and cosine classification with synonyms (DEARLi, Sec. 3.2)."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ...errors import ConfigError
from ...files import cache_dir, read_text, write_atomically
from ...progress import progress
from .text_tower import ClipModel, text_embedding, text_tower_of
from .tokenizer import tokenizer_of

logger = logging.getLogger(__name__)

Names = Sequence[Sequence[str]]


# the prompts of ViLD (Gu et al. 2022) as FC-CLIP and DEARLi use them
VILD_TEMPLATES = (
    "a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene", "There is the {} in the scene",
    "a photo of a {} in the scene", "a photo of a small {}.", "a photo of a medium {}.", "a photo of a large {}.",
    "This is a photo of a small {}.", "This is a photo of a medium {}.", "This is a photo of a large {}.",
    "There is a small {} in the scene.", "There is a medium {} in the scene.", "There is a large {} in the scene.",
)  # fmt: skip


def read_templates(source: str) -> list[str]:
    """Prompt templates with one `{}` each.

    Args:
        source: "vild" (14 of them), "imagenet" (OpenAI's 80), "simple" (7), "photo" ("a photo of a {}"), "name" (the bare
            name), or the path of a text file with one template a line.

    Raises:
        ConfigError: another name, or a line without exactly one `{}`.
    """
    lists = {
        "vild": lambda: list(VILD_TEMPLATES),
        "imagenet": lambda: [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES],
        "simple": lambda: [template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES],
        "photo": lambda: ["a photo of a {}"],
        "name": lambda: ["{}"],
    }
    if source in lists:
        return lists[source]()
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"MODEL.TEXT.TEMPLATES: {source!r} is neither a file nor one of {sorted(lists)}")
    templates = [line.strip() for line in read_text(path, ConfigError).splitlines() if line.strip()]
    wrong = [t for t in templates if t.count("{}") != 1]
    if wrong or not templates:
        raise ConfigError(f"{path}: each line needs exactly one '{{}}'; wrong: {wrong[:3] or 'no line at all'}")
    return templates


def cosine_similarity(a: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Cosines (..., N) of (..., E) embeddings and (N, E) embeddings of unit norm, in fp32 also under autocast.

    They are scaled by up to 100. A product in half precision would then be wrong by whole logits.
    """
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ unit.T


def _unit_rows(*tables: torch.Tensor | None) -> torch.Tensor:
    """The rows of all tables in fp32, of unit norm."""
    return F.normalize(torch.cat([table.float() for table in tables if table is not None]), dim=-1)


class Vocabulary(nn.Module):
    """Fixed text embeddings of K classes.

    Args:
        embeddings: (S, E), all synonyms of class 0, then of class 1, and so on. They are scaled to unit norm.
        synonyms_per_class: K counts that sum to S.
    """

    embeddings: torch.Tensor
    owner: torch.Tensor

    def __init__(self, embeddings: torch.Tensor, synonyms_per_class: Sequence[int]) -> None:
        super().__init__()
        owner = torch.repeat_interleave(torch.arange(len(synonyms_per_class)), torch.tensor(synonyms_per_class))
        self.classes = len(synonyms_per_class)
        self.register_buffer("embeddings", _unit_rows(embeddings), persistent=False)
        self.register_buffer("owner", owner, persistent=False)  # (S,) class of each row

    def __len__(self) -> int:
        return self.classes

    def cosine(self, embedding: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        """Cosine with each class, the maximum over its synonyms, in fp32.

        Args:
            embedding: (..., E).
            more: (N, E) further embeddings, each a class of its own.

        Returns:
            (..., K), or (..., K + N) with `more`.
        """
        unit = self.embeddings if more is None else torch.cat([self.embeddings, _unit_rows(more)])
        return self._best(cosine_similarity(embedding, unit))

    def _best(self, similarity: torch.Tensor) -> torch.Tensor:
        """(..., S + N) to (..., K + N): the maximum over the synonyms of each class."""
        if len(self.owner) == self.classes:
            return similarity
        names, more = similarity.split([len(self.owner), similarity.shape[-1] - len(self.owner)], -1)
        best = similarity.new_empty(*similarity.shape[:-1], self.classes)
        best = best.scatter_reduce(-1, self.owner.expand_as(names), names, "amax", include_self=False)
        return torch.cat([best, more], -1) if more.shape[-1] else best


class GivenVocabulary(nn.Module):
    """A `Vocabulary` whose embeddings come from outside, with as many names for each class.

    Args:
        embeddings: (K, S, E) unit-norm, the S names of each class.
    """

    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    def cosine(self, embedding: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        """See `Vocabulary.cosine`."""
        classes, names = self.embeddings.shape[:2]
        similarity = cosine_similarity(embedding, _unit_rows(self.embeddings.flatten(0, 1), more))
        best = similarity[..., : classes * names].unflatten(-1, (classes, names)).amax(-1)
        return best if more is None else torch.cat([best, similarity[..., classes * names :]], -1)


def padded_embeddings(vocabulary: Vocabulary) -> torch.Tensor:
    """(K, S, E): the embeddings of a vocabulary, where classes with fewer names repeat their first one.

    S is at least 2: a traced graph takes a side of 1 for a constant.
    """
    rows = [vocabulary.embeddings[vocabulary.owner == c] for c in range(len(vocabulary))]
    most = max(2, *map(len, rows))
    return torch.stack([torch.cat([row, row[:1].expand(most - len(row), -1)]) for row in rows])


def text_fingerprint(clip_model: ClipModel, model_name: str, templates: Sequence[str]) -> str:
    """A hash of what embeddings depend on beside the names: the text tower and the prompts."""
    return _fingerprint(clip_model, [tokenizer_of(model_name)([template.format("") for template in templates])])


@torch.no_grad()
def build_vocabulary(clip_model: ClipModel, model_name: str, names: Names, templates: Sequence[str]) -> Vocabulary:
    """Encodes names x templates: per synonym the unit-norm mean over templates of unit-norm embeddings.

    The cache on disk knows them by the tokens of all prompts, and by the weights and settings of the text tower.

    Raises:
        ConfigError: a name that has no token or a prompt longer than the context of the text tower.
    """
    synonyms = [s for class_names in names for s in class_names]
    counts = [len(class_names) for class_names in names]
    device = clip_model.logit_scale.device
    tokenizer = tokenizer_of(model_name)
    _check_tokens(tokenizer, synonyms, templates)
    tokens = [tokenizer([t.format(synonym) for t in templates]) for synonym in synonyms]
    if isinstance(clip_model.logit_scale, FakeTensor):  # weights without content, see `dearli_d2.rehearsal`
        return Vocabulary(_encode(clip_model, tokens[0][:1].to(device)).repeat(len(synonyms), 1), counts)
    path = cache_dir() / "text" / f"{_fingerprint(clip_model, tokens)}.safetensors"
    embeddings = _read_cached(path)
    if embeddings is None:
        rows = []
        logger.info("text embeddings of %d names x %d templates are made, once", len(synonyms), len(templates))
        # the text tower alone runs in fp32 whatever the caller's autocast: embeddings must not depend on it
        with torch.autocast(device.type, enabled=False):
            for prompts in progress(tokens, "text embeddings", len(tokens), "name"):
                embedding = F.normalize(_encode(clip_model, prompts.to(device)), dim=-1).mean(0)
                rows.append(F.normalize(embedding, dim=-1))
        embeddings = torch.stack(rows).cpu().contiguous()
        write_atomically(path, lambda temporary: save_file({"embeddings": embeddings}, temporary))
        logger.info("text embeddings are cached in %s", path)
    return Vocabulary(embeddings, counts).to(device)


def _encode(clip_model: ClipModel, tokens: torch.Tensor) -> torch.Tensor:
    """(B, context) tokens to (B, E), as `clip_model.encode_text`. A causal tower does not read the padding after the end."""
    tower = text_tower_of(clip_model)
    if tower.attn_mask is None:
        return clip_model.encode_text(tokens).float()
    end = tokens.argmax(-1)  # the end token has the highest number
    return text_embedding(tower, tower.token_embedding(tokens[:, : int(end.max()) + 1]).float(), end)


def _read_cached(path: Path) -> torch.Tensor | None:
    if not path.is_file():
        return None
    try:
        return load_file(path)["embeddings"]
    except (SafetensorError, KeyError, OSError) as error:
        logger.warning("%s is damaged (%s); the text embeddings are made again", path, error)
        return None


def _check_tokens(tokenizer: Any, synonyms: Sequence[str], templates: Sequence[str]) -> None:
    context = tokenizer.context_length
    longest = max(templates, key=lambda template: len(tokenizer.encode(template)))
    for synonym in synonyms:
        if not tokenizer.encode(synonym):
            raise ConfigError(f"the class name {synonym!r} has no text token; give it a name in words")
        length = len(tokenizer.encode(longest.format(synonym))) + 2  # start and end token
        if length > context:
            raise ConfigError(
                f"the prompt {longest.format(synonym)!r} has {length} tokens, the text tower reads {context}; "
                "shorten the name or use MODEL.TEXT.TEMPLATES name"
            )


def _fingerprint(clip_model: ClipModel, tokens: Sequence[torch.Tensor]) -> str:
    """A hash of everything that the embeddings depend on.

    These are the tokens, the weights, and the kinds and plain settings of all modules (activation, heads, pooling).
    """
    tower: ClipModel = getattr(clip_model, "text", clip_model)  # without it the text tower's parts lie beside "visual"
    digest = hashlib.sha256()
    for prompts in tokens:
        digest.update(prompts.numpy().tobytes())
    for name, module in tower.named_modules():
        if not name.startswith("visual"):
            plain = {
                k: getattr(v, "__qualname__", v)
                for k, v in vars(module).items()
                if k != "training" and (isinstance(v, int | float | str) or inspect.isroutine(v))
            }
            digest.update(f"{name} {type(module).__qualname__} {sorted(plain.items())}\n".encode())
    for name, tensor in (*tower.named_parameters(), *tower.named_buffers()):
        if not name.startswith(("visual.", "logit_")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
