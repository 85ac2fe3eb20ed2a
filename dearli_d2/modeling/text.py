"""Classes as text embeddings: prompts, their cache, and cosine classification with synonyms (DEARLi, Sec. 3.2)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import ConfigError
from ..files import cache_dir, write_atomically
from .prompts import text_tower_of

logger = logging.getLogger(__name__)

Names = Sequence[Sequence[str]]


def read_templates(source: str) -> list[str]:
    """Prompt templates with one `{}`: "imagenet" (OpenAI's 80), "simple" (7 of them), "photo" ("a photo of a {}"),
    "name" (the bare name), or the path of a text file with one template a line."""
    lists = {
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
    templates = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    wrong = [t for t in templates if t.count("{}") != 1]
    if wrong or not templates:
        raise ConfigError(f"{path}: each line needs exactly one '{{}}'; wrong: {wrong[:3] or 'no line at all'}")
    return templates


def cosine_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(..., E) and (N, E) to (..., N) in fp32, also under autocast: the result is scaled by up to 100, and a product in
    half precision would then be wrong by whole logits."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


class Vocabulary(nn.Module):
    """Fixed text embeddings of K classes.

    Args:
        embeddings: (S, E) unit-norm, all synonyms of class 0, then of class 1, ...
        synonyms_per_class: K counts that sum to S.
    """

    def __init__(self, embeddings: torch.Tensor, synonyms_per_class: Sequence[int]) -> None:
        super().__init__()
        widest = max(synonyms_per_class)
        index, start = [], 0
        for count in synonyms_per_class:  # short rows repeat their first synonym, which changes no maximum
            index.append([start + (i if i < count else 0) for i in range(widest)])
            start += count
        self.register_buffer("embeddings", embeddings.float(), persistent=False)
        self.register_buffer("index", torch.tensor(index), persistent=False)

    def __len__(self) -> int:
        return len(self.index)

    def cosine(self, embedding: torch.Tensor) -> torch.Tensor:
        """(..., E) to (..., K): cosine with each class, the maximum over its synonyms, in fp32."""
        similarity = cosine_similarity(embedding, self.embeddings)
        if self.index.shape[1] == 1:
            return similarity
        return similarity[..., self.index].amax(-1)


@torch.no_grad()
def build_vocabulary(clip_model: nn.Module, model_name: str, names: Names, templates: Sequence[str]) -> Vocabulary:
    """Encodes names x templates: per synonym the unit-norm mean over templates of unit-norm embeddings.

    Cached on disk by (text-tower weights, names, templates).

    Raises:
        ConfigError: a name that has no token or a prompt longer than the context of the text tower.
    """
    synonyms = [s for class_names in names for s in class_names]
    counts = [len(class_names) for class_names in names]
    # the text tower alone runs in fp32 whatever the caller's autocast: embeddings must not depend on it
    device = clip_model.logit_scale.device
    key = _fingerprint(clip_model, model_name, synonyms, templates)
    path = cache_dir() / "text" / f"{key}.safetensors"
    if path.is_file():
        return Vocabulary(load_file(path)["embeddings"], counts).to(device)
    tokenizer = open_clip.get_tokenizer(model_name)
    _check_tokens(tokenizer, synonyms, templates)
    rows = []
    with torch.autocast(device.type, enabled=False):
        for synonym in synonyms:
            tokens = tokenizer([t.format(synonym) for t in templates]).to(device)
            embedding = F.normalize(clip_model.encode_text(tokens).float(), dim=-1).mean(0)
            rows.append(F.normalize(embedding, dim=-1))
    embeddings = torch.stack(rows)
    contiguous = {"embeddings": embeddings.cpu().contiguous()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary))
    logger.info("text embeddings of %d names x %d templates are cached in %s", len(synonyms), len(templates), path)
    return Vocabulary(embeddings, counts).to(device)


def _check_tokens(tokenizer, synonyms: Sequence[str], templates: Sequence[str]) -> None:
    context = tokenizer.context_length
    longest = max(templates, key=len)
    for synonym in synonyms:
        if not tokenizer.encode(synonym):
            raise ConfigError(f"the class name {synonym!r} has no text token; give it a name in words")
        length = len(tokenizer.encode(longest.format(synonym))) + 2  # start and end token
        if length > context:
            raise ConfigError(
                f"the prompt {longest.format(synonym)!r} has {length} tokens, the text tower reads {context}; "
                "shorten the name or use MODEL.TEXT.TEMPLATES name"
            )


def _fingerprint(clip_model: nn.Module, model_name: str, synonyms: Sequence[str], templates: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([model_name, list(synonyms), list(templates)]).encode())
    tower = text_tower_of(clip_model)
    names = ("ln_final.weight", "positional_embedding", "token_embedding.weight")
    projection = [p for n, p in tower.named_parameters() if n.startswith("text_projection")]
    for weight in (*projection, *map(tower.get_parameter, names)):
        weight = weight.detach().float()
        digest.update(weight.double().sum().cpu().numpy().tobytes() + weight.flatten()[:4096].cpu().numpy().tobytes())
    last_block = tower.transformer.resblocks[-1].mlp.c_proj.weight.detach().float()
    digest.update(last_block.flatten()[:4096].cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
