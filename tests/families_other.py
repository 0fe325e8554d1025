"""Tables, graphs, flows, autoencoders, parametrised weights, and other ways of writing a network."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from cases import Net, conv, image
from family import Family


class Dlrm(nn.Module):
    """Bags of embeddings, a bottom MLP, pairwise dot products picked by a triangle of indices."""

    def __init__(self, tables: int = 3, m: int = 6) -> None:
        super().__init__()
        self.emb_l = nn.ModuleList([nn.EmbeddingBag(10, m, mode="sum") for _ in range(tables)])
        self.bot = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, m), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(m + 6, 7), nn.ReLU(), nn.Linear(7, 1), nn.Sigmoid())

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bot(dense)
        ly = [emb(sparse[:, i]) for i, emb in enumerate(self.emb_l)]
        batch, d = x.shape
        T = torch.cat([x] + ly, dim=1).view((batch, -1, d))
        Z = torch.bmm(T, torch.transpose(T, 1, 2))
        _, ni, nj = Z.shape
        li = torch.tensor([i for i in range(ni) for _ in range(i)])
        lj = torch.tensor([j for i in range(nj) for j in range(i)])
        return self.top(torch.cat([x] + [Z[:, li, lj]], dim=1))


class DeepFM(nn.Module):
    """One table with offsets, a factorisation machine, and a deep part on the flattened embeddings."""

    def __init__(self, fields: tuple[int, ...] = (5, 7, 4), k: int = 6) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(sum(fields), k), nn.Embedding(sum(fields), 1)
        self.register_buffer("offsets", torch.tensor([0, *fields[:-1]]).cumsum(0))
        self.embed_output_dim = len(fields) * k
        self.mlp = nn.Sequential(nn.Linear(self.embed_output_dim, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.offsets.unsqueeze(0)
        e = self.embedding(x)
        fm = 0.5 * (e.sum(dim=1) ** 2 - (e**2).sum(dim=1)).sum(dim=1, keepdim=True)
        return torch.sigmoid(self.linear(x).sum(1) + fm + self.mlp(e.view(-1, self.embed_output_dim))).squeeze(1)


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(9, 6), nn.Embedding(11, 7)
        self.user_tower, self.item_tower = nn.Sequential(nn.Linear(6 + 2, 8), nn.ReLU(), nn.Linear(8, 5)), nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 5))
        self.user_bias, self.item_bias = nn.Embedding(9, 1), nn.Embedding(11, 1)

    def forward(self, user: Tensor, item: Tensor, context: Tensor) -> Tensor:
        u = F.normalize(self.user_tower(torch.cat([self.user(user), context], -1)), dim=-1)
        v = F.normalize(self.item_tower(self.item(item)), dim=-1)
        return (u * v).sum(-1) + (self.user_bias(user) + self.item_bias(item)).squeeze(-1)


class MatrixFactorisation(nn.Module):
    """NCF: an element-wise product beside an MLP on a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.gu, self.gi, self.mu, self.mi = nn.Embedding(9, 6), nn.Embedding(8, 6), nn.Embedding(9, 5), nn.Embedding(8, 5)
        self.mlp, self.out = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU()), nn.Linear(10, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        deep = self.mlp(torch.cat([self.mu(user), self.mi(item)], dim=-1))
        return self.out(torch.cat([self.gu(user) * self.gi(item), deep], dim=-1)).view(-1)


class Gcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6, 8))
        self.bias, self.fc = nn.Parameter(torch.zeros(6)), nn.Linear(8, 3)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        a = adj + torch.eye(adj.shape[0], dtype=adj.dtype)
        d = a.sum(1).rsqrt()
        a = d[:, None] * a * d[None, :]
        h = F.relu(torch.mm(a, torch.mm(x, self.w1)) + self.bias)
        return self.fc(F.relu(a.matmul(h @ self.w2)))


class Gat(nn.Module):
    """pyGAT on a dense adjacency: a's halves, e = f(Wh a1 + (Wh a2)^T), -9e15 where there is no edge, heads concatenated."""

    def __init__(self, heads: int = 2, f: int = 5, out: int = 4) -> None:
        super().__init__()
        self.out_features = out
        self.W = nn.ParameterList([nn.Parameter(torch.randn(f, out)) for _ in range(heads)])
        self.a = nn.ParameterList([nn.Parameter(torch.randn(2 * out, 1)) for _ in range(heads)])
        self.fc = nn.Linear(heads * out, 3)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        outs = []
        for W, a in zip(self.W, self.a):
            Wh = torch.mm(x, W)
            e = F.leaky_relu(torch.matmul(Wh, a[: self.out_features, :]) + torch.matmul(Wh, a[self.out_features :, :]).T, 0.2)
            attention = torch.where(adj > 0, e, -9e15 * torch.ones_like(e))
            outs.append(F.elu(torch.matmul(F.softmax(attention, dim=1), Wh)))
        return F.log_softmax(self.fc(torch.cat(outs, dim=1)), dim=1)


class EdgeList(nn.Module):
    """Message passing by index_select and index_add over a list of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.msg, self.upd, self.out = nn.Linear(5, 6), nn.Linear(12, 7), nn.GRUCell(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h, (src, dst) = self.enc(x).relu(), (edges[0], edges[1])
        for _ in range(2):
            m = self.msg(torch.cat([h[src], h[dst]], dim=-1)).relu()
            total = torch.zeros(h.size(0), m.size(1), dtype=m.dtype).index_add_(0, dst, m)
            h = self.upd(total, h)
        return self.out(h.mean(0, keepdim=True))


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.b1, self.b2 = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 10, 1), nn.BatchNorm1d(6), nn.BatchNorm1d(10)
        self.seg, self.out = nn.Conv1d(16, 7, 1), nn.Conv1d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = x.size()[2]
        local = F.relu(self.b1(self.c1(x)))
        whole = torch.max(self.b2(self.c2(local)), 2, keepdim=True)[0].view(-1, 10)
        return self.out(F.relu(self.seg(torch.cat([local, whole.view(-1, 10, 1).repeat(1, 1, n)], 1))))


class Coupling(nn.Module):
    """RealNVP on images: chunk, scale and shift, concatenate; the log determinant is an output."""

    def __init__(self, c: int = 4, hidden: int = 7) -> None:
        super().__init__()
        self.nets = nn.ModuleList([nn.Sequential(conv(c // 2, hidden), nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU(), conv(hidden, c)) for _ in range(2)])
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(c, c))[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        det = torch.zeros(x.shape[0], dtype=x.dtype)
        for net in self.nets:
            a, b = x.chunk(2, dim=1)
            log_s, t = net(a).chunk(2, dim=1)
            s = torch.sigmoid(log_s + 2)
            x = torch.cat([a, (b + t) * s], dim=1)
            x = F.conv2d(x, self.mix[:, :, None, None])
            det = det + s.log().flatten(1).sum(1)
        return x, det


class MaskedCoupling(nn.Module):
    """RealNVP on vectors, with a checkerboard in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]]))
        self.s = nn.ModuleList([nn.Sequential(nn.Linear(4, 9), nn.LeakyReLU(), nn.Linear(9, 4), nn.Tanh()) for _ in range(2)])
        self.t = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 4)) for _ in range(2)])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_det = z.new_zeros(z.shape[0])
        for i in reversed(range(len(self.t))):
            z_ = self.mask[i] * z
            s, t = self.s[i](z_) * (1 - self.mask[i]), self.t[i](z_) * (1 - self.mask[i])
            z, log_det = (1 - self.mask[i]) * (z - t) * torch.exp(-s) + z_, log_det - s.sum(dim=1)
        return z, log_det


@dataclass
class VaeOutput:
    reconstruction: Tensor
    mu: Tensor
    logvar: Tensor


class Vae(nn.Module):
    """Outputs in a dataclass; the decoder views a vector as an image of sizes in the code."""

    def __init__(self, z: int = 5) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
        self.fc_mu, self.fc_var, self.up = nn.Linear(8 * 2 * 2, z), nn.Linear(8 * 2 * 2, z), nn.Linear(z, 8 * 2 * 2)
        self.dec = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(6, 1, 3, 2, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> VaeOutput:
        h = self.enc(x)
        mu, logvar = self.fc_mu(h), self.fc_var(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) if self.training else mu
        return VaeOutput(self.dec(self.up(z).view(-1, 8, 2, 2)), mu, logvar)


class Vq(nn.Module):
    """The nearest code of a book, straight through."""

    def __init__(self, k: int = 9, d: int = 5) -> None:
        super().__init__()
        self.d = d
        self.enc, self.pre, self.book, self.dec = conv(1, 6), nn.Conv2d(6, d, 1), nn.Embedding(k, d), nn.Sequential(conv(d, 7), nn.ReLU(), conv(7, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.pre(self.enc(x).relu()).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, self.d)
        distances = flat.pow(2).sum(1, keepdim=True) + self.book.weight.pow(2).sum(1) - 2 * flat @ self.book.weight.t()
        q = self.book(distances.argmin(1)).view(z.shape)
        loss = F.mse_loss(q.detach(), z)
        return self.dec((z + (q - z).detach()).permute(0, 3, 1, 2)), loss


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(8, 10)), nn.Parameter(torch.randn(5, 8))
        self.b1, self.b2, self.b3 = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.linear(torch.relu(F.linear(x, self.w1, self.b1)), self.w2)
        return F.linear(torch.relu(F.linear(code, self.w2.t(), self.b2)), self.w1.t(), self.b3), code.sum(1)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(1, 6), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
        self.out = nn.Linear(7, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.sigmoid(self.out(torch.abs(self.body(a) - self.body(b))))


class Ode(nn.Module):
    """A Runge-Kutta loop over one shared function of time and state."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.enc, self.f1, self.f2, self.out = nn.Linear(4, d), nn.Linear(d + 1, 9), nn.Linear(9, d), nn.Linear(d, 3)

    def f(self, t: float, y: Tensor) -> Tensor:
        return self.f2(torch.tanh(self.f1(torch.cat([y, torch.full_like(y[:, :1], t)], 1))))

    def forward(self, x: Tensor) -> Tensor:
        y, dt = self.enc(x), 0.5
        for i in range(2):
            k1 = self.f(i * dt, y)
            k2 = self.f((i + 0.5) * dt, y + 0.5 * dt * k1)
            y = y + dt * k2
        return self.out(y)


class Capsules(nn.Module):
    """Primary capsules, a votes tensor, routing by agreement."""

    def __init__(self, inputs: int = 4, outputs: int = 3, a: int = 5, b: int = 6) -> None:
        super().__init__()
        self.conv, self.primary = conv(1, 7), nn.Conv2d(7, a, 3, stride=4)
        self.W = nn.Parameter(torch.randn(1, outputs, inputs, b, a) * 0.3)
        self.out = nn.Linear(b, 2)

    def squash(self, x: Tensor) -> Tensor:
        n = (x**2).sum(-1, keepdim=True)
        return n / (1 + n) * x / (n + 1e-8).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        u = self.squash(self.primary(self.conv(x).relu()).flatten(2).transpose(1, 2))
        u_hat = torch.matmul(self.W, u[:, None, :, :, None]).squeeze(-1)
        b = torch.zeros(u_hat.shape[:3], dtype=x.dtype).unsqueeze(-1)
        for i in range(2):
            c = F.softmax(b, dim=1)
            v = self.squash((c * u_hat).sum(dim=2))
            if i == 0:
                b = b + (u_hat * v.unsqueeze(2)).sum(-1, keepdim=True)
        return self.out(v)


class Kan(nn.Module):
    """Radial bases of every input, a matrix of their coefficients, and a base branch."""

    def __init__(self, widths: tuple[int, ...] = (4, 6, 3), grid: int = 5) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, grid))
        self.coefficients = nn.ParameterList([nn.Parameter(torch.randn(o, i, grid) * 0.3) for i, o in zip(widths, widths[1:])])
        self.base = nn.ModuleList([nn.Linear(i, o, bias=False) for i, o in zip(widths, widths[1:])])

    def forward(self, x: Tensor) -> Tensor:
        for c, base in zip(self.coefficients, self.base):
            basis = torch.exp(-((x[..., None] - self.grid) ** 2))
            x = base(F.silu(x)) + F.linear(basis.view(x.size(0), -1), c.view(c.size(0), -1))
        return x


class Maxout(nn.Module):
    def __init__(self, d: int = 6, k: int = 3) -> None:
        super().__init__()
        self.d, self.k = d, k
        self.lin, self.out = nn.Linear(4, d * k), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lin(x).view(x.size(0), self.d, self.k).max(-1)[0])


class Lora(nn.Module):
    def __init__(self, base: nn.Linear, r: int = 4, alpha: float = 8) -> None:
        super().__init__()
        self.base, self.scaling = base, alpha / r
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(r, base.in_features) * 0.3), nn.Parameter(torch.randn(base.out_features, r) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.lora_A.t() @ self.lora_B.t()) * self.scaling


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


class Positive(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return F.softplus(w)


def positive() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    parametrize.register_parametrization(net[0], "weight", Positive())
    return net


def symmetric() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    parametrize.register_parametrization(net[2], "weight", Symmetric())
    return net


class Standardised(nn.Conv2d):
    """timm's ScaledStdConv: the weight's statistics by batch norm, a gain."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(b, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, weight=self.gain.view(-1), training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Hyper(nn.Module):
    """A network that makes another one's weight."""

    def __init__(self, i: int = 4, h: int = 6) -> None:
        super().__init__()
        self.h, self.i = h, i
        self.maker, self.inner, self.out = nn.Linear(7, h * i), nn.Sequential(nn.Linear(2, 7), nn.Tanh()), nn.Linear(h, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        w = self.maker(self.inner(z)).view(-1, self.h, self.i)
        return self.out(torch.bmm(w, x.unsqueeze(-1)).squeeze(-1).relu())


class Film(nn.Module):
    """Features modulated by a condition: chunk, and unsqueezes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film, self.out = conv(3, 6), nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 12)), conv(6, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gamma, beta = self.film(c).chunk(2, dim=-1)
        return self.out((self.conv(x) * (1 + gamma[..., None, None]) + beta[..., None, None]).relu())


class Duel(nn.Module):
    """An actor and a critic on one body, in a dict; an advantage minus its mean; nan_to_num, where, clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(5 * 6 * 6, 8), nn.ReLU())
        self.v, self.a = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)), nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))

    def forward(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        h = self.body(obs["image"])
        a = self.a(h)
        q = self.v(h) + a - a.mean(1, keepdim=True)
        return {"q": torch.where(obs["legal"] > 0, q, torch.full_like(q, -1e9)), "value": self.v(h).squeeze(-1)}


class Router(nn.Module):
    """Control flow on sizes, modules by name, a module list by index, an optional argument."""

    def __init__(self, widths: list[int], use_skip: bool = True) -> None:
        super().__init__()
        self.widths, self.use_skip = widths, use_skip
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            self.add_module(f"fc_{i}", nn.Linear(a, b))
            self.register_parameter(f"scale_{i}", nn.Parameter(torch.ones(b)))
        self.n_layers = len(widths) - 1

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for i in range(self.n_layers):
            y = getattr(self, f"fc_{i}")(x) * getattr(self, f"scale_{i}")
            if self.use_skip and y.shape[-1] == x.shape[-1]:
                y = y + x
            x = F.relu(y) if i < self.n_layers - 1 else y
        return x if mask is None else x * mask


class SpikingNorms(nn.Module):
    """Buffers indexed by unit: thresholds, running statistics that are kept by hand, a sign pattern."""

    def __init__(self, c: int = 6) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, c), nn.Linear(c, 3)
        self.register_buffer("mean", torch.randn(c))
        self.register_buffer("threshold", torch.rand(1, c))
        self.register_buffer("signs", torch.sign(torch.randn(c)))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        h = (self.fc(x) - self.mean) * self.signs
        if self.training:
            self.mean.mul_(0.9).add_(h.mean(0).detach() * 0.1)
            self.steps += 1
        return self.out(torch.where(h > self.threshold, h, torch.zeros_like(h)))


class Tcn(nn.Module):
    """Old weight norm, causal padding chomped off, residuals."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.weight_norm
        self.c1, self.c2 = norm(nn.Conv1d(3, 6, 3, padding=2)), norm(nn.Conv1d(6, 6, 3, padding=4, dilation=2))
        self.down, self.out = nn.Conv1d(3, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.c1(x)[:, :, :-2].contiguous())
        y = F.relu(self.c2(y)[:, :, :-4].contiguous())
        return self.out(F.relu(y + self.down(x))[:, :, -1])


def old(name: str, build: object) -> object:
    """A deprecated function of PyTorch's, without its warning."""

    def quiet() -> nn.Module:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build()  # type: ignore[operator]

    return quiet


def spectral(new: bool) -> nn.Module:
    norm = parametrizations.spectral_norm if new else torch.nn.utils.spectral_norm
    net = nn.Sequential(norm(conv(3, 6)), nn.LeakyReLU(0.1), norm(conv(6, 8)), nn.LeakyReLU(0.1), nn.Flatten(), norm(nn.Linear(8 * 64, 1)))
    net(torch.randn(2, 3, 8, 8))
    return net


def vec(n: int = 4) -> Tensor:
    return torch.randn(3, n)


OTHER = [
    Family("DLRM", Dlrm, lambda: (vec(), torch.randint(0, 10, (3, 3, 2))), (("emb_l.0.weight", 1), ("bot.0.weight", 0), ("top.0.weight", 0))),
    Family("DeepFM", DeepFM, lambda: torch.randint(0, 4, (3, 3)), (("embedding.weight", 1), ("mlp.0.weight", 0))),
    Family("two towers", TwoTowers, lambda: (torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]), vec(2)), (("user.weight", 1), ("user_tower.0.weight", 0), ("item_tower.2.weight", 0))),
    Family("NCF", MatrixFactorisation, lambda: (torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])), (("gu.weight", 1), ("mu.weight", 1), ("mlp.0.weight", 0))),
    Family("GCN", Gcn, lambda: (torch.randn(7, 5), (torch.rand(7, 7) > 0.5).float()), (("w1", 1), ("w2", 1))),
    Family("GAT", Gat, lambda: (torch.randn(7, 5), (torch.rand(7, 7) + torch.eye(7) > 0.5).float()), (("W.0", 1), ("W.1", 1))),
    Family("edge list", EdgeList, lambda: (torch.randn(7, 5), torch.randint(0, 7, (2, 9))), (("enc.weight", 0), ("msg.weight", 0))),
    Family("PointNet", PointNet, lambda: torch.randn(2, 3, 9), (("c1.weight", 0), ("c2.weight", 0), ("seg.weight", 0))),
    Family("Glow", Coupling, lambda: torch.randn(2, 4, 6, 6), (("nets.0.0.weight", 0), ("nets.1.2.weight", 0))),
    Family("RealNVP", MaskedCoupling, vec, (("s.0.0.weight", 0), ("t.1.0.weight", 0))),
    Family("VAE", Vae, lambda: torch.randn(2, 1, 8, 8), (("enc.0.weight", 0), ("enc.2.weight", 0), ("dec.0.weight", 1), ("up.weight", 0))),
    Family("VQ-VAE", Vq, lambda: torch.randn(2, 1, 6, 6), (("enc.weight", 0), ("dec.0.weight", 0), ("book.weight", 1))),
    Family("tied autoencoder", TiedAutoencoder, lambda: vec(10), (("w1", 0), ("w2", 0))),
    Family("siamese", Siamese, lambda: (torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)), (("body.0.weight", 0), ("body.4.weight", 0), ("body.8.weight", 0))),
    Family("neural ODE", Ode, vec, (("f1.weight", 0), ("enc.weight", 0))),
    Family("capsules", Capsules, lambda: torch.randn(2, 1, 8, 8), (("conv.weight", 0), ("primary.weight", 0), ("W", 3))),
    Family("KAN", Kan, vec, ()),  # views merge inputs with bases of another make-up in every layer: all of it stays
    Family("maxout", Maxout, vec, (("out.weight", 1),)),
    Family("LoRA", lambda: nn.Sequential(Lora(nn.Linear(4, 8)), nn.ReLU(), Lora(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3)), vec, (("0.base.weight", 0), ("0.lora_A", 0), ("2.lora_B", 0))),
    Family("positive weights", positive, vec, (("0.parametrizations.weight.original", 0),)),
    Family("symmetric weights", symmetric, vec, (("4.weight", 0),)),
    Family("orthogonal weights", lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), vec, (("2.weight", 0),)),
    Family("weight norm", lambda: nn.Sequential(parametrizations.weight_norm(conv(3, 6)), nn.ReLU(), parametrizations.weight_norm(conv(6, 8)), nn.ReLU(), conv(8, 2)), image(), (("0.parametrizations.weight.original1", 0), ("2.parametrizations.weight.original1", 0))),
    Family("old weight norm", old("weight_norm", Tcn), lambda: torch.randn(2, 3, 8), (("c1.weight_v", 0), ("c2.weight_v", 0))),
    Family("spectral norm", lambda: spectral(True), image(), (("0.parametrizations.weight.original", 0), ("2.parametrizations.weight.original", 0))),
    Family("old spectral norm", old("spectral_norm", lambda: spectral(False)), image(), (("0.weight_orig", 0), ("2.weight_orig", 0))),
    Family("standardised by batch norm", lambda: nn.Sequential(Standardised(3, 6), nn.ReLU(), Standardised(6, 8), nn.ReLU(), conv(8, 2)), image(), (("0.weight", 0), ("2.weight", 0))),
    Family("hyper-network", Hyper, lambda: (vec(), vec(2)), (("inner.0.weight", 0), ("out.weight", 1))),
    Family("FiLM", Film, lambda: (torch.randn(3, 3, 8, 8), vec(2)), (("conv.weight", 0), ("film.0.weight", 0))),
    Family("actor and critic", Duel, lambda: ({"image": torch.randn(3, 2, 8, 8), "legal": torch.ones(3, 4)},), (("body.0.weight", 0), ("body.3.weight", 0), ("v.0.weight", 0), ("a.0.weight", 0))),
    Family("modules by name", lambda: Router([4, 6, 6, 6, 3]), vec, (("fc_0.weight", 0),)),
    Family("buffers by unit", SpikingNorms, vec, (("fc.weight", 0), ("mean", 0), ("threshold", 1))),
    Family("FiLM by functions", lambda: Net(lambda n, x: n.out(F.dropout(F.layer_norm(n.a(x), (n.width,)), 0.1, n.training)), a=nn.Linear(4, 6), out=nn.Linear(6, 3), width=6), vec, (("a.weight", 0),)),
    Family("bilinear", lambda: Net(lambda n, x, y: n.out(n.mix(n.a(x), n.b(y)).tanh()), a=nn.Linear(4, 6), b=nn.Linear(4, 7), mix=nn.Bilinear(6, 7, 5), out=nn.Linear(5, 3)), lambda: (vec(), vec()), (("mix.weight", 0), ("a.weight", 0), ("b.weight", 0))),
    Family("soft prompts and prototypes", lambda: Net(lambda n, x: -torch.cdist(n.body(x), n.prototypes), body=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), prototypes=nn.Parameter(torch.randn(3, 6))), vec, (("body.0.weight", 0), ("prototypes", 1))),
    Family("cosine head", lambda: Net(lambda n, x: 16 * F.linear(F.normalize(n.body(x)), F.normalize(n.weight)), body=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), weight=nn.Parameter(torch.randn(3, 6))), vec, (("body.0.weight", 0), ("weight", 1))),
    Family("highway", lambda: Net(lambda n, x: n.out(highway(n, n.inp(x))), inp=nn.Linear(4, 6), h=nn.ModuleList([nn.Linear(6, 6) for _ in range(2)]), t=nn.ModuleList([nn.Linear(6, 6) for _ in range(2)]), out=nn.Linear(6, 3)), vec, (("inp.weight", 0),)),
    Family("swapped axes and squeezes", lambda: Net(lambda n, x: n.out(n.b(n.a(x.unsqueeze(1)).squeeze(-1).movedim(1, -1).swapaxes(0, 1)).sum(0)), a=nn.Conv2d(1, 6, (1, 4)), b=nn.Linear(6, 5), out=nn.Linear(5, 3)), lambda: torch.randn(2, 7, 4), (("a.weight", 0), ("b.weight", 0))),
    Family("embedding bag with weights", lambda: Net(lambda n, i, o, w: n.out(n.fc(n.bag(i, o, w)).relu()), bag=nn.EmbeddingBag(10, 6, mode="sum"), fc=nn.Linear(6, 5), out=nn.Linear(5, 3)), lambda: (torch.randint(0, 10, (7,)), torch.tensor([0, 3, 5]), torch.rand(7)), (("bag.weight", 1), ("fc.weight", 0))),
    Family("norms by hand", lambda: Net(lambda n, x: n.out(by_hand(n, n.inp(x))), inp=nn.Linear(4, 6), g=nn.Parameter(torch.ones(6)), out=nn.Linear(6, 3)), vec, (("inp.weight", 0),)),
    Family("mixture density", lambda: Net(mixture, body=nn.Sequential(nn.Linear(4, 8), nn.Tanh()), pi=nn.Linear(8, 5), mu=nn.Linear(8, 10), k=5), vec, (("body.0.weight", 0), ("pi.weight", 0))),
]  # fmt: skip


def highway(net: Net, x: Tensor) -> Tensor:
    for h, t in zip(net.h, net.t):  # type: ignore[arg-type, call-overload]
        gate = torch.sigmoid(t(x))
        x = gate * F.relu(h(x)) + (1.0 - gate) * x
    return x


def by_hand(net: Net, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    std = x.std(-1, keepdim=True, unbiased=False)
    return net.g * (x - mean) / (std + 1e-6)


def mixture(net: Net, x: Tensor) -> Tensor:
    h = net.body(x)
    pi, mu = net.pi(h).softmax(-1), net.mu(h).view(-1, net.k, 2)
    return torch.einsum("bk,bkd->bd", pi, mu) * math.sqrt(2)
