"""Recurrent nets and Transformers of all kinds, as users write them."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cases import Net
from family import Family

# recurrent --------------------------------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """A bidirectional LSTM of several layers over packed sequences."""

    def __init__(self, vocab: int = 20, embedding: int = 8, hidden: int = 6, tags: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, embedding, padding_idx=0)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.fc = nn.Linear(2 * hidden, tags)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.fc(out)


class LastState(nn.Module):
    """The final hidden states of both directions, concatenated."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.hidden_size = 6
        self.rnn = kind(5, self.hidden_size, batch_first=True, bidirectional=True, **options)  # type: ignore[arg-type]
        self.fc = nn.Linear(self.hidden_size * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x)
        if isinstance(h, tuple):
            h = h[0]
        return self.fc(torch.cat([h[-2], h[-1]], dim=1))


class InitialState(nn.Module):
    """The hidden state is made by hand, from sizes the module keeps."""

    def __init__(self, input_size: int = 5, hidden_size: int = 6, num_layers: int = 2) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
        c0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, num_layers=2, proj_size=6, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0].mean(1))


class CellLoop(nn.Module):
    """Stepping cells, as decoders do."""

    def __init__(self, cell: type[nn.RNNCellBase], hidden: int = 6) -> None:
        super().__init__()
        self.hidden = hidden
        self.first, self.second, self.out = cell(5, hidden), cell(hidden, 7), nn.Linear(7, 3)  # type: ignore[call-arg, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        a = b = None
        steps = []
        for t in range(x.shape[1]):
            a = self.first(x[:, t], a)
            b = self.second(a[0] if isinstance(a, tuple) else a, b)
            steps.append(self.out(b[0] if isinstance(b, tuple) else b))
        return torch.stack(steps, 1)


class HandWrittenLSTM(nn.Module):
    def __init__(self, inputs: int = 5, hidden: int = 6) -> None:
        super().__init__()
        self.hidden = hidden
        self.x2h, self.h2h = nn.Linear(inputs, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.out = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), self.hidden)
        c = torch.zeros_like(h)
        for step in x.unbind(1):
            i, f, g, o = (self.x2h(step) + self.h2h(h)).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class HandWrittenGRU(nn.Module):
    """Bare parameters and sliced gates."""

    def __init__(self, inputs: int = 5, hidden: int = 6) -> None:
        super().__init__()
        self.n = hidden
        self.W = nn.Parameter(torch.randn(inputs, 3 * hidden) * 0.3)
        self.U = nn.Parameter(torch.randn(hidden, 3 * hidden) * 0.3)
        self.b = nn.Parameter(torch.zeros(3 * hidden))
        self.out = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.n, dtype=x.dtype)
        n = self.n
        for t in range(x.size(1)):
            gx, gh = x[:, t] @ self.W + self.b, h @ self.U
            z = torch.sigmoid(gx[:, :n] + gh[:, :n])
            r = torch.sigmoid(gx[:, n : 2 * n] + gh[:, n : 2 * n])
            h = (1 - z) * h + z * torch.tanh(gx[:, 2 * n :] + r * gh[:, 2 * n :])
        return self.out(h)


class Captions(nn.Module):
    """CNN + LSTM over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.lstm = nn.LSTM(6 * 2 * 2, 7, batch_first=True)
        self.fc = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c, h, w = x.shape
        y = self.cnn(x.view(b * t, c, h, w)).view(b, t, -1)
        return self.fc(self.lstm(y)[0][:, -1])


class CRNN(nn.Module):
    """Text recognition: columns of the feature map are steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d((1, None)))
        self.rnn = nn.LSTM(8, 5, bidirectional=True)
        self.embedding = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cnn(x).squeeze(2).permute(2, 0, 1)
        recurrent, _ = self.rnn(y)
        T, b, h = recurrent.size()
        return self.embedding(recurrent.view(T * b, h)).view(T, b, -1)


class Seq2Seq(nn.Module):
    """A GRU encoder, and a decoder with additive attention."""

    def __init__(self, vocab: int = 13, embedding: int = 7, hidden: int = 6) -> None:
        super().__init__()
        self.src, self.tgt = nn.Embedding(vocab, embedding), nn.Embedding(vocab, embedding)
        self.encoder = nn.GRU(embedding, hidden, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(hidden * 2, 8)
        self.keys, self.query, self.v = nn.Linear(hidden * 2, 5, bias=False), nn.Linear(8, 5, bias=False), nn.Linear(5, 1, bias=False)
        self.cell = nn.GRUCell(embedding + hidden * 2, 8)
        self.out = nn.Linear(8 + hidden * 2 + embedding, vocab)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.src(source))
        h = torch.tanh(self.bridge(torch.cat((last[0], last[1]), dim=-1)))
        keys, outputs = self.keys(memory), []
        for token in self.tgt(target).transpose(0, 1):
            scores = self.v(torch.tanh(keys + self.query(h).unsqueeze(1))).squeeze(-1)
            context = torch.bmm(F.softmax(scores, -1).unsqueeze(1), memory).squeeze(1)
            h = self.cell(torch.cat([token, context], -1), h)
            outputs.append(self.out(torch.cat([h, context, token], -1)))
        return torch.stack(outputs, dim=1)


class ConvLSTM(nn.Module):
    def __init__(self, hidden_dim: int = 5) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.conv = nn.Conv2d(2 + hidden_dim, 4 * hidden_dim, 3, padding=1)
        self.head = nn.Conv2d(hidden_dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, steps, _, height, width = x.size()
        h = torch.zeros(b, self.hidden_dim, height, width, dtype=x.dtype, device=self.conv.weight.device)
        c = torch.zeros_like(h)
        for t in range(steps):
            gates = self.conv(torch.cat([x[:, t], h], dim=1))
            i, f, o, g = torch.split(gates, self.hidden_dim, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


# attention --------------------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Fused qkv, as timm has it."""

    def __init__(self, dim: int = 16, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class ChunkAttention(nn.Module):
    """nanoGPT: split by n_embd, causal mask in a buffer."""

    def __init__(self, n_embd: int = 16, n_head: int = 4, block_size: int = 12) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.n_head, self.n_embd = n_head, n_embd
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class EinsumAttention(nn.Module):
    """lucidrains' way, without einops: chunk, then heads by view, then einsum."""

    def __init__(self, dim: int = 12, heads: int = 3, dim_head: int = 6) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = self.heads
        q, k, v = (t.view(b, n, h, -1).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        attn = (torch.einsum("bhid,bhjd->bhij", q, k) * self.scale).softmax(dim=-1)
        out = torch.einsum("bhij,bhjd->bhid", attn, v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1)) + x


class SeparateAttention(nn.Module):
    """BERT's way: all_head_size, transpose_for_scores, an additive mask."""

    def __init__(self, hidden_size: int = 16, num_attention_heads: int = 4) -> None:
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.attention_head_size = int(hidden_size / num_attention_heads)
        self.all_head_size = self.num_attention_heads * self.attention_head_size
        self.query, self.key, self.value = (nn.Linear(hidden_size, self.all_head_size) for _ in range(3))
        self.dense, self.norm = nn.Linear(self.all_head_size, hidden_size), nn.LayerNorm(hidden_size)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        new_shape = x.size()[:-1] + (self.num_attention_heads, self.attention_head_size)
        return x.view(new_shape).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.transpose_for_scores(self.query(x)), self.transpose_for_scores(self.key(x)), self.transpose_for_scores(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        probs = nn.functional.softmax(scores + (1.0 - mask[:, None, None, :]) * -1e4, dim=-1)
        context = torch.matmul(probs, v).permute(0, 2, 1, 3).contiguous()
        context = context.view(context.size()[:-2] + (self.all_head_size,))
        return self.norm(self.dense(context) + x)


class LiteralAttention(nn.Module):
    """A tutorial's: every size is a number in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.fc1, self.fc2, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(-1, 6, 4, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (F.softmax(q @ k.transpose(2, 3) / 2.0, -1) @ v).transpose(1, 2).reshape(-1, 6, 16)
        x = x + self.o(y)
        return self.head((x + self.fc2(F.gelu(self.fc1(x)))).mean(1))


class Classifier(nn.Module):
    """Any block between a projection and a head."""

    def __init__(self, *blocks: nn.Module, dim: int = 16, inputs: int = 5) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(inputs, dim), nn.ModuleList(blocks), nn.Linear(dim, 3)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x, *rest)
        return self.head(x.mean(dim=1))


@dataclass
class LlamaArgs:
    dim: int = 16
    n_heads: int = 4
    n_kv_heads: int = 2
    vocab: int = 19
    norm_eps: float = 1e-5
    max_seq_len: int = 12


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class GroupedQuery(nn.Module):
    """Grouped queries, rotary positions by halves (NeoX) or by neighbours (GPT-J, as real numbers), repeated keys, SDPA."""

    def __init__(self, args: LlamaArgs, neighbours: bool) -> None:
        super().__init__()
        self.args, self.neighbours = args, neighbours
        self.n_rep = args.n_heads // args.n_kv_heads
        self.head_dim = args.dim // args.n_heads
        self.wq = nn.Linear(args.dim, args.n_heads * self.head_dim, bias=False)
        self.wk, self.wv = (nn.Linear(args.dim, args.n_kv_heads * self.head_dim, bias=False) for _ in range(2))
        self.wo = nn.Linear(args.n_heads * self.head_dim, args.dim, bias=False)
        inv = 1.0 / (10000 ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim))
        angles = torch.outer(torch.arange(args.max_seq_len).float(), inv)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotary(self, x: Tensor) -> Tensor:
        cos, sin = (t[: x.shape[1]][None, :, None, :] for t in (self.cos, self.sin))
        if self.neighbours:
            real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
            return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(3)
        return x * torch.cat([cos, cos], -1) + rotate_half(x) * torch.cat([sin, sin], -1)

    def forward(self, x: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        q = self.wq(x).view(bsz, seqlen, self.args.n_heads, self.head_dim)
        k = self.wk(x).view(bsz, seqlen, self.args.n_kv_heads, self.head_dim)
        v = self.wv(x).view(bsz, seqlen, self.args.n_kv_heads, self.head_dim)
        q, k = self.rotary(q), self.rotary(k)
        k = k[:, :, :, None, :].expand(bsz, seqlen, self.args.n_kv_heads, self.n_rep, self.head_dim).reshape(bsz, seqlen, self.args.n_heads, self.head_dim)
        v = torch.repeat_interleave(v, self.n_rep, dim=2)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.wo(out.transpose(1, 2).contiguous().view(bsz, seqlen, -1))


class Llama(nn.Module):
    def __init__(self, neighbours: bool = False) -> None:
        super().__init__()
        args = LlamaArgs()
        self.tok = nn.Embedding(args.vocab, args.dim)
        self.attn, self.n1, self.n2, self.norm = GroupedQuery(args, neighbours), *(RMSNorm(args.dim, args.norm_eps) for _ in range(3))
        self.w1, self.w3, self.w2 = nn.Linear(args.dim, 22, bias=False), nn.Linear(args.dim, 22, bias=False), nn.Linear(22, args.dim, bias=False)
        self.output = nn.Linear(args.dim, args.vocab, bias=False)
        self.output.weight = self.tok.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok(tokens)
        h = h + self.attn(self.n1(h))
        n = self.n2(h)
        h = h + self.w2(F.silu(self.w1(n)) * self.w3(n))
        return self.output(self.norm(h))


class ComplexRotary(nn.Module):
    """Meta's first LLaMA: rotary positions as complex numbers."""

    def __init__(self, dim: int = 16, n_heads: int = 2) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, dim // n_heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        freqs = torch.outer(torch.arange(12).double(), 1.0 / (100 ** (torch.arange(0, self.head_dim, 2).double() / self.head_dim)))
        self.freqs_cis = torch.polar(torch.ones_like(freqs), freqs)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (w(x).view(b, s, self.n_heads, self.head_dim) for w in (self.wq, self.wk, self.wv))
        freqs = self.freqs_cis[:s].to(x.device).view(1, s, 1, self.head_dim // 2)
        q, k = (torch.view_as_real(torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2)) * freqs).flatten(3) for t in (q, k))
        scores = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) / math.sqrt(self.head_dim)
        return self.wo((scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).contiguous().view(b, s, -1))


class Alibi(nn.Module):
    """A slope per head, in a buffer that is indexed by head."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.register_buffer("slopes", torch.tensor([2 ** (-8 * (i + 1) / heads) for i in range(heads)]))

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        position = torch.arange(t, device=x.device)
        bias = -(position[None] - position[:, None]).abs()[None] * self.slopes[:, None, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(b, t, self.heads * self.head_dim))


class RelativeBias(nn.Module):
    """T5: an embedding from bucketed distances to heads."""

    def __init__(self, dim: int = 16, heads: int = 4, buckets: int = 7) -> None:
        super().__init__()
        self.heads, self.dim_head, self.buckets = heads, dim // heads, buckets
        self.inner_dim = self.heads * self.dim_head
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.bias = nn.Embedding(buckets, heads)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        shape = lambda y: y.view(b, -1, self.heads, self.dim_head).transpose(1, 2)
        place = torch.arange(t, device=x.device)
        bucket = (place[None, :] - place[:, None]).clamp(-(self.buckets // 2), self.buckets // 2) + self.buckets // 2
        scores = torch.matmul(shape(self.q(x)), shape(self.k(x)).transpose(3, 2)) + self.bias(bucket).permute(2, 0, 1).unsqueeze(0)
        y = F.softmax(scores.float(), dim=-1).type_as(scores) @ shape(self.v(x))
        return self.o(y.transpose(1, 2).contiguous().view(b, -1, self.inner_dim))


class Decoder(nn.Module):
    """A GPT with tied embeddings, learned positions, logits and loss in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(19, 16), nn.Embedding(12, 16)
        self.ln_1, self.attn, self.ln_2, self.ln_f = nn.LayerNorm(16), ChunkAttention(), nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp = nn.ModuleDict({"fc": nn.Linear(16, 4 * 16), "proj": nn.Linear(4 * 16, 16)})
        self.lm_head = nn.Linear(16, 19, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor) -> dict[str, Tensor]:
        x = self.wte(idx) + self.wpe(torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device))
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp["proj"](F.gelu(self.mlp["fc"](self.ln_2(x))))
        logits = self.lm_head(self.ln_f(x))
        return {"logits": logits, "loss": F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))}


class Cached(nn.Module):
    """Keys and values of former steps, in buffers as long as the longest sequence."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim) for _ in range(4))
        self.register_buffer("cache_k", torch.zeros(2, 12, heads, self.head_dim))
        self.register_buffer("cache_v", torch.zeros(2, 12, heads, self.head_dim))

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, self.heads, self.head_dim) for f in (self.wq, self.wk, self.wv))
        cache_k, cache_v = self.cache_k.clone(), self.cache_v.clone()
        cache_k[:b, 2 : 2 + s] = k
        cache_v[:b, 2 : 2 + s] = v
        keys, values = cache_k[:b, : 2 + s], cache_v[:b, : 2 + s]
        y = F.scaled_dot_product_attention(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        return self.wo(y.transpose(1, 2).reshape(b, s, -1))


class Growing(nn.Module):
    """Decoding step by step: keys and values grow by concatenation."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim) for _ in range(4))

    def step(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = (f(x).view(x.shape[0], -1, self.heads, self.head_dim).transpose(1, 2) for f in (self.wq, self.wk, self.wv))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.wo(y.transpose(1, 2).flatten(2)), (k, v)

    def forward(self, x: Tensor) -> Tensor:
        past, outs = None, []
        for t in range(x.shape[1]):
            y, past = self.step(x[:, t : t + 1], past)
            outs.append(y)
        return torch.cat(outs, dim=1)


class Torch(nn.Module):
    """PyTorch's own attention layer, in a block of one's own."""

    def __init__(self, dim: int = 16, cross: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 4, batch_first=True, kdim=cross, vdim=cross)
        self.mlp = nn.Sequential(nn.Linear(dim, 22), nn.GELU(), nn.Linear(22, dim))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        y, weights = self.attn(n, n, n, need_weights=True)
        return y + self.mlp(y)


class Full(nn.Module):
    """nn.Transformer, with masks, learned positions and a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.src, self.tgt, self.pos = nn.Embedding(15, 16), nn.Embedding(15, 16), nn.Parameter(torch.randn(1, 12, 16) * 0.1)
        self.transformer = nn.Transformer(16, 4, 1, 1, 22, 0.1, batch_first=True)
        self.generator = nn.Linear(16, 15)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1), device=tgt.device).to(self.pos.dtype)
        a = self.src(src) * math.sqrt(16) + self.pos[:, : src.size(1)]
        b = self.tgt(tgt) * math.sqrt(16) + self.pos[:, : tgt.size(1)]
        return self.generator(self.transformer(a, b, tgt_mask=mask))


class CrossModel(nn.Module):
    """An encoder-decoder by hand with cross attention."""

    def __init__(self, d_model: int = 16, h: int = 4) -> None:
        super().__init__()
        self.h, self.d_k = h, d_model // h
        self.enc, self.dec = nn.Linear(5, d_model), nn.Linear(6, d_model)
        self.linears = nn.ModuleList([nn.Linear(d_model, d_model) for _ in range(4)])
        self.norm, self.out = nn.LayerNorm(d_model), nn.Linear(d_model, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, x = self.enc(source), self.dec(target)
        n = x.size(0)
        q, k, v = [f(y).view(n, -1, self.h, self.d_k).transpose(1, 2) for f, y in zip(self.linears, (x, memory, memory))]
        p = F.softmax(torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.d_k), dim=-1)
        y = torch.matmul(p, v).transpose(1, 2).contiguous().view(n, -1, self.h * self.d_k)
        return self.out(self.norm(x + self.linears[-1](y)))


class DenseMoE(nn.Module):
    def __init__(self, dim: int = 8, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, experts)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(dim, 11), nn.GELU(), nn.Linear(11, dim)) for _ in range(experts)])

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        y = torch.stack([expert(x) for expert in self.experts], dim=-2)
        return torch.einsum("...e,...ed->...d", weights, y)


class EinsumMoE(nn.Module):
    """All experts in one parameter, capacity-less dispatch by einsum."""

    def __init__(self, dim: int = 8, hidden: int = 11, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(dim, experts) * 0.3)
        self.w1, self.w2 = nn.Parameter(torch.randn(experts, dim, hidden) * 0.3), nn.Parameter(torch.randn(experts, hidden, dim) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.softmax(x @ self.gate, dim=-1)
        hidden = F.silu(torch.einsum("btd,edh->bteh", x, self.w1))
        return torch.einsum("bteh,ehd,bte->btd", hidden, self.w2, gates)


class RoutedMoE(nn.Module):
    """Mixtral's loop: top-k, one_hot, torch.where, index_add_."""

    def __init__(self, dim: int = 8, experts: int = 4, top_k: int = 2) -> None:
        super().__init__()
        self.top_k, self.num_experts = top_k, experts
        self.gate = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList([nn.ModuleDict({"w1": nn.Linear(dim, 11), "w2": nn.Linear(11, dim)}) for _ in range(experts)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        b, s, d = hidden_states.shape
        x = hidden_states.view(-1, d)
        weights, chosen = torch.topk(F.softmax(self.gate(x), dim=1), self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        final = torch.zeros((b * s, d), dtype=x.dtype, device=x.device)
        mask = F.one_hot(chosen, num_classes=self.num_experts).permute(2, 1, 0)
        for index in range(self.num_experts):
            nth, token = torch.where(mask[index])
            state = x[None, token].reshape(-1, d)
            expert = self.experts[index]
            final.index_add_(0, token, expert["w2"](F.silu(expert["w1"](state))) * weights[token, nth, None])
        return final.reshape(b, s, d)


class MaskedMoE(nn.Module):
    """Top-k by scattering the gates: every expert runs."""

    def __init__(self, dim: int = 8, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, experts)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(dim, 11), nn.ReLU(), nn.Linear(11, dim)) for _ in range(experts)])

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        top, index = logits.topk(2, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, index, top.softmax(-1))
        return sum(gates[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))  # type: ignore[return-value]


class Mamba(nn.Module):
    """A selective state-space block with a sequential scan."""

    def __init__(self, d_model: int = 8, d_state: int = 5, d_conv: int = 3, expand: int = 2) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = int(expand * d_model), d_state, math.ceil(d_model / 4)
        self.in_proj = nn.Linear(d_model, self.d_inner * 2, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + d_state * 2, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float().repeat(self.d_inner, 1)))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, l, _ = x.shape
        x, res = self.in_proj(x).split(split_size=[self.d_inner, self.d_inner], dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[:, :, :l].transpose(1, 2))
        A = -torch.exp(self.A_log)
        delta, B, C = self.x_proj(x).split(split_size=[self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        dA = torch.exp(torch.einsum("bld,dn->bldn", delta, A))
        dB = torch.einsum("bld,bln,bld->bldn", delta, B, x)
        h, ys = torch.zeros((b, self.d_inner, self.d_state), dtype=x.dtype, device=x.device), []
        for i in range(l):
            h = dA[:, i] * h + dB[:, i]
            ys.append(torch.einsum("bdn,bn->bd", h, C[:, i, :]))
        return self.out_proj((torch.stack(ys, dim=1) + x * self.D) * F.silu(res))


class S4D(nn.Module):
    """A diagonal state-space kernel by a Vandermonde product, convolved by FFT."""

    def __init__(self, d: int = 8, n: int = 6) -> None:
        super().__init__()
        self.log_dt, self.C = nn.Parameter(torch.rand(d)), nn.Parameter(torch.randn(d, n))
        self.log_A, self.D = nn.Parameter(torch.rand(d, n)), nn.Parameter(torch.randn(d))
        self.output = nn.Conv1d(d, 2 * d, 1)

    def forward(self, u: Tensor) -> Tensor:
        u = u.transpose(1, 2)
        L = u.size(-1)
        dtA = -torch.exp(self.log_A) * torch.exp(self.log_dt).unsqueeze(-1)
        K = torch.exp(dtA.unsqueeze(-1) * torch.arange(L, device=u.device))
        k = torch.einsum("hn,hnl->hl", self.C, K)
        y = torch.fft.irfft(torch.fft.rfft(k, n=2 * L) * torch.fft.rfft(u, n=2 * L), n=2 * L)[..., :L]
        return F.glu(self.output(F.gelu(y + u * self.D.unsqueeze(-1))), dim=-2).transpose(1, 2)


class LinearAttention(nn.Module):
    """Kernelised attention with cumulative sums."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (f(x).reshape(b, n, self.heads, d // self.heads) for f in (self.to_q, self.to_k, self.to_v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("bnhd,bnhe->bnhde", k, v).cumsum(1)
        z = 1 / torch.einsum("bnhd,bnhd->bnh", q, k.cumsum(1)).unsqueeze(-1)
        return self.out((torch.einsum("bnhd,bnhde->bnhe", q, kv) * z).reshape(b, n, d))


class Perceiver(nn.Module):
    """Learned latents ask the inputs."""

    def __init__(self, latents: int = 5, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.cross = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ff = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.embed, self.head = nn.Linear(5, dim), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        z = self.latents.unsqueeze(0).expand(x.shape[0], -1, -1)
        z = z + self.cross(z, tokens, tokens, need_weights=False)[0]
        return self.head((z + self.ff(z)).mean(1))


class SetTransformer(nn.Module):
    """Induced set attention: heads by splitting and concatenating on the batch."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.dim_V = heads, dim
        self.seed = nn.Parameter(torch.randn(1, 2, dim))
        self.fc_x, self.fc_q, self.fc_k, self.fc_v, self.fc_o = nn.Linear(5, dim), *(nn.Linear(dim, dim) for _ in range(4))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        k_in, q_in = self.fc_x(x), self.seed.repeat(x.size(0), 1, 1)
        q, k, v = self.fc_q(q_in), self.fc_k(k_in), self.fc_v(k_in)
        split = self.dim_V // self.heads
        q_, k_, v_ = (torch.cat(t.split(split, 2), 0) for t in (q, k, v))
        a = torch.softmax(q_.bmm(k_.transpose(1, 2)) / math.sqrt(self.dim_V), 2)
        o = torch.cat((q_ + a.bmm(v_)).split(q.size(0), 0), 2)
        return self.head(o + F.relu(self.fc_o(o))).squeeze(1)


class Gmlp(nn.Module):
    def __init__(self, dim: int = 8, ffn: int = 12, length: int = 6) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(dim), nn.Linear(dim, ffn), nn.Linear(ffn // 2, dim)
        self.gate_norm, self.spatial = nn.LayerNorm(ffn // 2), nn.Conv1d(length, length, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.inner(self.norm(x))).chunk(2, dim=-1)
        return self.outer(u * self.spatial(self.gate_norm(v)))


class Mixer(nn.Module):
    def __init__(self, dim: int = 8, tokens: int = 6) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token = nn.Sequential(nn.Linear(tokens, 10), nn.GELU(), nn.Linear(10, tokens))
        self.channel = nn.Sequential(nn.Linear(dim, 14), nn.GELU(), nn.Linear(14, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel(self.n2(x))


class Fnet(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.norm, self.ff = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 14), nn.GELU(), nn.Linear(14, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(self.norm(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real))


class MultiQuery(nn.Module):
    """One key and value for all heads; the fused projection is split in uneven parts."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.fused = nn.Linear(dim, dim + 2 * self.head_dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.fused(x).split((d, self.head_dim, self.head_dim), dim=-1)
        q = q.view(b, n, self.heads, self.head_dim).transpose(1, 2)
        attn = torch.einsum("bhid,bjd->bhij", q, k) / self.head_dim**0.5
        return self.out(torch.einsum("bhij,bjd->bhid", attn.softmax(-1), v).transpose(1, 2).reshape(b, n, d))


class CopyTask(nn.Module):
    """A classification token, learned positions, a padding mask by torch.where and cumsum positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pos = nn.Embedding(15, 16, padding_idx=0), nn.Embedding(12, 16)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 22, batch_first=True, norm_first=True), 2, enable_nested_tensor=False)
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        keep = tokens.ne(0)
        positions = torch.cumsum(keep.long(), 1) * keep
        x = torch.cat([self.cls.expand(tokens.shape[0], -1, -1), self.embed(tokens) + self.pos(positions)], 1)
        mask = torch.cat([torch.zeros_like(keep[:, :1]), ~keep], 1)
        return self.fc(self.norm(self.encoder(x, src_key_padding_mask=mask)[:, 0]))


def steps(n: int = 6, width: int = 5) -> Tensor:
    return torch.randn(2, n, width)


def tokens(n: int = 6, top: int = 13) -> Tensor:
    return torch.randint(1, top, (2, n))


SEQUENCE = [
    Family("packed bidirectional LSTM", Tagger, lambda: (tokens(), torch.tensor([6, 4])), (("lstm.weight_hh_l0", 1), ("lstm.weight_hh_l1_reverse", 1), ("embed.weight", 1))),
    Family("last states of an LSTM", lambda: LastState(nn.LSTM, num_layers=2), steps, (("rnn.weight_hh_l0", 1), ("rnn.weight_hh_l1", 1), ("rnn.weight_hh_l1_reverse", 1))),
    Family("last states of a GRU", lambda: LastState(nn.GRU), steps, (("rnn.weight_hh_l0", 1),)),
    Family("last states of an RNN", lambda: LastState(nn.RNN, nonlinearity="relu"), steps, (("rnn.weight_hh_l0", 1),)),
    Family("LSTM with a first state", InitialState, steps, (("lstm.weight_hh_l0", 1), ("lstm.weight_hh_l1", 1))),
    Family("LSTM with projections", Projected, steps, (("lstm.weight_hh_l0", 1),)),  # its projection: PyTorch wants it smaller than the state, which therefore stays
    Family("LSTM cells", lambda: CellLoop(nn.LSTMCell), steps, (("first.weight_hh", 1), ("second.weight_hh", 1))),
    Family("GRU cells", lambda: CellLoop(nn.GRUCell), steps, (("first.weight_hh", 1), ("second.weight_hh", 1))),
    Family("RNN cells", lambda: CellLoop(nn.RNNCell), steps, (("first.weight_hh", 1), ("second.weight_hh", 1))),
    Family("LSTM by hand", HandWrittenLSTM, steps, (("h2h.weight", 1),)),
    Family("GRU by hand", HandWrittenGRU, steps, (("U", 0),)),
    Family("CNN and LSTM", Captions, lambda: torch.randn(2, 3, 3, 8, 8), (("cnn.0.weight", 0), ("lstm.weight_hh_l0", 1))),
    Family("CRNN", CRNN, lambda: torch.randn(2, 1, 8, 12), (("cnn.0.weight", 0), ("cnn.3.weight", 0), ("rnn.weight_hh_l0", 1))),
    Family("seq2seq with attention", Seq2Seq, lambda: (tokens(), tokens(4)), (("encoder.weight_hh_l0", 1), ("cell.weight_hh", 1), ("keys.weight", 0), ("src.weight", 1))),
    Family("ConvLSTM", ConvLSTM, lambda: torch.randn(2, 3, 2, 6, 6), (("head.weight", 1),)),
    Family("fused qkv, permuted", lambda: Classifier(Attention(), Attention()), steps, (("blocks.0.qkv.weight", 0), ("blocks.0.proj.weight", 1), ("embed.weight", 0))),
    Family("nanoGPT", Decoder, lambda: (tokens(), tokens()), (("attn.c_attn.weight", 0), ("attn.c_proj.weight", 1), ("mlp.fc.weight", 0), ("wte.weight", 1))),
    Family("einsum attention", lambda: Classifier(EinsumAttention(), dim=12), steps, (("blocks.0.to_qkv.weight", 0), ("blocks.0.to_out.0.weight", 1), ("embed.weight", 0))),
    Family("attention of BERT", lambda: Classifier(SeparateAttention()), lambda: (steps(), torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])), (("blocks.0.query.weight", 0), ("blocks.0.value.weight", 0), ("embed.weight", 0))),
    Family("attention in numbers", LiteralAttention, lambda: steps(6, 16), (("fc1.weight", 0), ("v.weight", 0))),
    Family("LLaMA by halves", Llama, tokens, (("attn.wk.weight", 0), ("attn.wo.weight", 1), ("w1.weight", 0), ("tok.weight", 1))),
    Family("LLaMA by neighbours", lambda: Llama(True), tokens, (("attn.wk.weight", 0), ("attn.wo.weight", 1), ("w1.weight", 0), ("tok.weight", 1))),
    Family("complex rotary", lambda: Classifier(ComplexRotary()), steps, (("blocks.0.wv.weight", 0), ("embed.weight", 0))),
    Family("ALiBi", lambda: Classifier(Alibi()), steps, (("blocks.0.qkv.weight", 0), ("blocks.0.slopes", 0))),
    Family("relative bias", lambda: Classifier(RelativeBias()), steps, (("blocks.0.q.weight", 0), ("blocks.0.bias.weight", 1))),
    Family("multi-query", lambda: Classifier(MultiQuery()), steps, (("blocks.0.out.weight", 1), ("embed.weight", 0))),
    Family("cached keys", lambda: Classifier(Cached()), steps, (("blocks.0.wv.weight", 0), ("embed.weight", 0))),
    Family("growing cache", lambda: Classifier(Growing()), steps, (("blocks.0.wv.weight", 0), ("blocks.0.wo.weight", 1), ("embed.weight", 0))),
    Family("MultiheadAttention", lambda: Classifier(Torch()), steps, (("blocks.0.attn.in_proj_weight", 0), ("blocks.0.mlp.0.weight", 0), ("embed.weight", 0))),
    Family("MultiheadAttention, other keys", lambda: Net(lambda n, x, y: n.out(n.attn(n.a(x), y, y)[0]), a=nn.Linear(5, 16), attn=nn.MultiheadAttention(16, 4, kdim=7, vdim=7, batch_first=True), out=nn.Linear(16, 3)), lambda: (steps(), steps(4, 7)), (("attn.v_proj_weight", 0), ("attn.q_proj_weight", 0))),
    Family("TransformerEncoder", CopyTask, lambda: torch.cat([tokens(4), torch.zeros(2, 2, dtype=torch.long)], 1), (("encoder.layers.0.self_attn.in_proj_weight", 0), ("encoder.layers.1.linear1.weight", 0), ("embed.weight", 1))),
    Family("TransformerDecoder", lambda: Net(lambda n, x, y: n.out(n.dec(n.a(x), n.b(y))), a=nn.Linear(5, 16), b=nn.Linear(7, 16), dec=nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 22, batch_first=True), 2), out=nn.Linear(16, 3)), lambda: (steps(), steps(4, 7)), (("dec.layers.0.multihead_attn.in_proj_weight", 0), ("dec.layers.0.self_attn.in_proj_weight", 0), ("dec.layers.1.linear1.weight", 0))),
    Family("nn.Transformer", Full, lambda: (tokens(), tokens(4)), (("transformer.encoder.layers.0.linear1.weight", 0), ("transformer.decoder.layers.0.linear1.weight", 0))),  # it compares its mask's values, which torch.export cannot follow
    Family("encoder-decoder by hand", CrossModel, lambda: (steps(), steps(4, 6)), (("linears.0.weight", 0), ("linears.2.weight", 0), ("enc.weight", 0), ("dec.weight", 0))),
    Family("dense mixture of experts", lambda: Classifier(DenseMoE(), dim=8), steps, (("blocks.0.experts.1.0.weight", 0), ("embed.weight", 0))),
    Family("experts in one parameter", lambda: Classifier(EinsumMoE(), dim=8), steps, (("blocks.0.w1", 2), ("blocks.0.w1", 0), ("embed.weight", 0))),
    Family("routed mixture of experts", lambda: Classifier(RoutedMoE(), dim=8), steps, (("blocks.0.experts.1.w1.weight", 0),)),  # how many tokens an expert gets depends on values: the width that they have stays
    Family("masked mixture of experts", lambda: Classifier(MaskedMoE(), dim=8), steps, (("blocks.0.experts.1.0.weight", 0), ("embed.weight", 0))),
    Family("Mamba", lambda: Classifier(Mamba(), dim=8), steps, (("blocks.0.A_log", 0), ("blocks.0.A_log", 1), ("blocks.0.dt_proj.weight", 1), ("embed.weight", 0))),
    Family("S4D", lambda: Classifier(S4D(), dim=8), steps, (("blocks.0.C", 1), ("blocks.0.D", 0), ("blocks.0.output.weight", 1), ("embed.weight", 0))),
    Family("linear attention", lambda: Classifier(LinearAttention()), steps, (("blocks.0.to_v.weight", 0), ("embed.weight", 0))),
    Family("Perceiver", Perceiver, steps, (("latents", 1), ("cross.in_proj_weight", 0), ("ff.1.weight", 0))),
    Family("set transformer", SetTransformer, steps, (("fc_v.weight", 0), ("fc_k.weight", 0))),
    Family("gMLP", lambda: Classifier(Gmlp(), dim=8), steps, (("blocks.0.outer.weight", 1), ("embed.weight", 0))),
    Family("MLP-Mixer", lambda: Classifier(Mixer(), dim=8), steps, (("blocks.0.token.0.weight", 0), ("blocks.0.channel.0.weight", 0), ("embed.weight", 0))),
    Family("FNet", lambda: Classifier(Fnet(), dim=8), steps, (("blocks.0.ff.0.weight", 0),)),
]  # fmt: skip
