"""Images, video, volumes and sound: classification, segmentation, detection, generation, as users write them."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Net, conv, image
from families_sequence import Attention
from family import Family


class ViT(nn.Module):
    """nn.Conv2d patches, class token, learned positions, unbind, SDPA."""

    def __init__(self, dim: int = 16, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, 5, dim))
        self.blocks = nn.ModuleList([nn.ModuleDict({"n1": nn.LayerNorm(dim), "attn": Attention(dim, heads), "n2": nn.LayerNorm(dim), "fc1": nn.Linear(dim, dim * 2), "fc2": nn.Linear(dim * 2, dim)}) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for b in self.blocks:
            x = x + b["attn"](b["n1"](x))
            x = x + b["fc2"](F.gelu(b["fc1"](b["n2"](x))))
        return self.head(self.norm(x)[:, 0])


class UnboundViT(nn.Module):
    """head_dim kept, unbind(0), F.scaled_dot_product_attention."""

    def __init__(self, dim: int = 16, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.embed, self.qkv, self.proj, self.head = nn.Linear(48, dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 4) * (w // 4), -1)
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(b, -1, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, self.num_heads * self.head_dim)
        return self.head((x + self.proj(y)).mean(1))


def window_partition(x: Tensor, size: int) -> Tensor:
    B, H, W, C = x.shape
    x = x.view(B, H // size, size, W // size, size, C)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, C)


def window_reverse(windows: Tensor, size: int, H: int, W: int) -> Tensor:
    B = int(windows.shape[0] / (H * W / size / size))
    x = windows.view(B, H // size, W // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, -1)


class SwinBlock(nn.Module):
    """Windows, a cyclic shift, a relative position table indexed by a buffer, an attention mask in a buffer."""

    def __init__(self, dim: int = 8, heads: int = 2, window: int = 4, shift: int = 2, size: int = 8) -> None:
        super().__init__()
        self.dim, self.num_heads, self.window_size, self.shift_size, self.size = dim, heads, window, shift, size
        self.scale = (dim // heads) ** -0.5
        self.norm1, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        coords = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("relative_position_index", relative[..., 0] * (2 * window - 1) + relative[..., 1])
        regions = torch.arange(size).div(window // 2, rounding_mode="floor").clamp(max=2)
        area = (regions[:, None] * 3 + regions[None, :]).view(1, size, size, 1).float()
        flat = window_partition(area, window).view(-1, window * window)
        self.register_buffer("attn_mask", (flat.unsqueeze(1) - flat.unsqueeze(2)).ne(0) * -100.0)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 12), nn.GELU(), nn.Linear(12, dim))

    def attention(self, x: Tensor) -> Tensor:
        B_, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B_, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(self.window_size**2, self.window_size**2, -1)
        attn = attn + table.permute(2, 0, 1).contiguous().unsqueeze(0)
        nW = self.attn_mask.shape[0]
        attn = attn.view(B_ // nW, nW, self.num_heads, N, N) + self.attn_mask.unsqueeze(1).unsqueeze(0)
        attn = attn.view(-1, self.num_heads, N, N).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B_, N, C))

    def forward(self, x: Tensor) -> Tensor:
        H = W = self.size
        B, L, C = x.shape
        y = self.norm1(x).view(B, H, W, C)
        y = torch.roll(y, shifts=(-self.shift_size, -self.shift_size), dims=(1, 2))
        windows = window_partition(y, self.window_size).view(-1, self.window_size * self.window_size, C)
        y = window_reverse(self.attention(windows).view(-1, self.window_size, self.window_size, C), self.window_size, H, W)
        y = torch.roll(y, shifts=(self.shift_size, self.shift_size), dims=(1, 2)).view(B, H * W, C)
        x = x + y
        return x + self.mlp(x)


class Swin(nn.Module):
    """A patch embedding, a block, patch merging, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Conv2d(3, 8, 2, stride=2), SwinBlock()
        self.norm, self.reduction, self.head = nn.LayerNorm(32), nn.Linear(32, 12, bias=False), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.embed(x).flatten(2).transpose(1, 2))
        B, L, C = x.shape
        x = x.view(B, 8, 8, C)
        x = torch.cat([x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]], -1).view(B, -1, 4 * C)
        return self.head(self.reduction(self.norm(x)).mean(1))


class Video(nn.Module):
    """Divided space-time attention on tubelets."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Conv3d(3, dim, (2, 4, 4), stride=(2, 4, 4))
        self.pos, self.time = nn.Parameter(torch.randn(1, 1, 4, dim)), nn.Parameter(torch.randn(1, 2, 1, dim))
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.spatial, self.temporal, self.head = Attention(dim, heads), Attention(dim, heads), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, c, t, h, w = x.shape
        x = x.flatten(3).permute(0, 2, 3, 1) + self.pos + self.time
        y = x.permute(0, 2, 1, 3).reshape(b * h * w, t, c)
        x = x + self.temporal(self.n1(y)).reshape(b, h * w, t, c).permute(0, 2, 1, 3)
        y = x.reshape(b * t, h * w, c)
        x = x + self.spatial(self.n2(y)).view(b, t, h * w, c)
        return self.head(x.mean((1, 2)))


class Double(nn.Sequential):
    def __init__(self, a: int, b: int, d: int = 2) -> None:
        c, n = (nn.Conv2d, nn.BatchNorm2d) if d == 2 else (nn.Conv3d, nn.BatchNorm3d)
        super().__init__(c(a, b, 3, padding=1, bias=False), n(b), nn.ReLU(inplace=True), c(b, b, 3, padding=1, bias=False), n(b), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Transposed convolutions, padding to the skip's size, concatenation; in two or three dimensions."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        c, t = (nn.Conv2d, nn.ConvTranspose2d) if d == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.pool = nn.MaxPool2d(2) if d == 2 else nn.MaxPool3d(2)
        self.inc, self.down1, self.down2 = Double(2, 4, d), Double(4, 6, d), Double(6, 8, d)
        self.up1, self.conv1, self.up2, self.conv2 = t(8, 6, 2, stride=2), Double(12, 6, d), t(6, 4, 2, stride=2), Double(8, 4, d)
        self.outc = c(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.inc(x)
        b = self.down1(self.pool(a))
        y = self.up1(self.down2(self.pool(b)))
        gaps = [m - n for m, n in zip(b.shape[2:], y.shape[2:])]
        y = F.pad(y, [side for gap in reversed(gaps) for side in (gap // 2, gap - gap // 2)])
        y = self.up2(self.conv1(torch.cat([b, y], dim=1)))
        return self.outc(self.conv2(torch.cat([a, y], dim=1)))


class AttentionGate(nn.Module):
    def __init__(self, g: int = 8, x: int = 6, inner: int = 5) -> None:
        super().__init__()
        self.enc, self.down = conv(3, x), conv(x, g, stride=2)
        self.W_g = nn.Sequential(nn.Conv2d(g, inner, 1), nn.BatchNorm2d(inner))
        self.W_x = nn.Sequential(nn.Conv2d(x, inner, 1), nn.BatchNorm2d(inner))
        self.psi = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        self.out = nn.Conv2d(x + g, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc(x).relu()
        g = F.interpolate(self.down(a).relu(), size=a.shape[2:], mode="bilinear", align_corners=True)
        a = a * self.psi(F.relu(self.W_g(g) + self.W_x(a)))
        return self.out(torch.cat([a, g], dim=1))


class FPN(nn.Module):
    """Lateral connections, top-down sums, heads that are shared between levels; a list of dicts of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.c3, self.c4, self.c5 = conv(3, 6, stride=2), conv(6, 8, stride=2), conv(8, 10, stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(n, 7, 1) for n in (6, 8, 10)])
        self.smooth = nn.ModuleList([conv(7, 7) for _ in range(3)])
        self.cls, self.box = nn.Sequential(conv(7, 5), nn.ReLU(), conv(5, 4)), nn.Sequential(conv(7, 5), nn.ReLU(), conv(5, 4))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        c3 = self.c3(x).relu()
        c4 = self.c4(c3).relu()
        c5 = self.c5(c4).relu()
        p = [f(c) for f, c in zip(self.lateral, (c3, c4, c5))]
        for i in (1, 0):
            p[i] = p[i] + F.interpolate(p[i + 1], size=p[i].shape[-2:], mode="nearest")
        p = [f(y) for f, y in zip(self.smooth, p)]
        return [{"cls": self.cls(y).permute(0, 2, 3, 1).reshape(y.shape[0], -1, 2), "box": self.box(y)} for y in p]


class C2f(nn.Module):
    """YOLOv8's block: chunk, a list that grows, one concatenation."""

    def __init__(self, c1: int, c2: int, n: int = 2) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1, self.cv2 = nn.Conv2d(c1, 2 * self.c, 1), nn.Conv2d((2 + n) * self.c, c2, 1)
        self.m = nn.ModuleList([nn.Sequential(conv(self.c, self.c), nn.SiLU()) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Yolo(nn.Module):
    """Strided stem, C2f, SPPF, an anchor-based head per level with view and sigmoid; outputs in a tuple."""

    def __init__(self, classes: int = 2, anchors: int = 3) -> None:
        super().__init__()
        self.na, self.no = anchors, classes + 5
        self.stem, self.b1, self.down, self.b2 = conv(3, 6, stride=2), C2f(6, 8), conv(8, 8, stride=2), C2f(8, 12)
        self.cv1, self.cv2, self.pool = nn.Conv2d(12, 6, 1), nn.Conv2d(24, 12, 1), nn.MaxPool2d(5, 1, 2)
        self.up, self.mix = nn.Upsample(scale_factor=2), C2f(20, 8)
        self.heads = nn.ModuleList([nn.Conv2d(n, anchors * self.no, 1) for n in (8, 12)])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        a = self.b1(self.stem(x).relu())
        b = self.b2(self.down(a).relu())
        y = self.cv1(b)
        y1 = self.pool(y)
        y2 = self.pool(y1)
        b = self.cv2(torch.cat((y, y1, y2, self.pool(y2)), 1))
        a = self.mix(torch.cat([self.up(b), a], 1))
        z, raw = [], []
        for head, f in zip(self.heads, (a, b)):
            bs, _, ny, nx = f.shape
            r = head(f).view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            yv, xv = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
            s = r.sigmoid()
            xy = s[..., 0:2] * 2 + torch.stack((xv, yv), 2).view(1, 1, ny, nx, 2).to(s)
            z.append(torch.cat((xy, s[..., 2:]), -1).view(bs, -1, self.no))
            raw.append(r)
        return torch.cat(z, 1), raw


class ResnetBlock(nn.Module):
    def __init__(self, a: int, b: int, temb: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, a), conv(a, b)
        self.time_emb_proj = nn.Linear(temb, b)
        self.norm2, self.conv2 = nn.GroupNorm(4, b), conv(b, b)
        self.shortcut = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """DDPM's: 1x1 convolutions, one head over pixels."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.GroupNorm(4, c), nn.Conv2d(c, c * 3, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).unbind(1)
        attn = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * c**-0.5, -1)
        return x + self.proj(torch.einsum("bij,bcj->bci", attn, v).reshape(b, c, h, w))


class Diffusion(nn.Module):
    """A U-Net with sinusoidal time, group norms, attention, and a stack of skips."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.c = c
        self.time = nn.Sequential(nn.Linear(c, 20), nn.SiLU(), nn.Linear(20, 20))
        self.inp, self.d1, self.down, self.d2 = conv(3, c), ResnetBlock(c, c, 20), conv(c, 12, stride=2), ResnetBlock(12, 12, 20)
        self.attn, self.u1, self.up, self.u2 = SpatialAttention(12), ResnetBlock(24, 12, 20), conv(12, 8), ResnetBlock(16, 8, 20)
        self.norm, self.out = nn.GroupNorm(4, 8), conv(8, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.c // 2
        freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half).to(x.dtype)
        args = t[:, None].to(x.dtype) * freqs[None]
        temb = self.time(torch.cat([torch.cos(args), torch.sin(args)], dim=-1))
        h = self.inp(x)
        skips = [h := self.d1(h, temb)]
        skips.append(h := self.d2(self.down(h), temb))
        h = self.attn(h)
        h = self.u1(torch.cat([h, skips.pop()], 1), temb)
        h = self.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.u2(torch.cat([h, skips.pop()], 1), temb)
        return self.out(F.silu(self.norm(h)))


class Modulated(nn.Module):
    """StyleGAN2: the batch as groups of one convolution."""

    def __init__(self, a: int, b: int, w: int, k: int = 3) -> None:
        super().__init__()
        self.out_channels, self.k = b, k
        self.weight, self.affine, self.bias = nn.Parameter(torch.randn(b, a, k, k)), nn.Linear(w, a), nn.Parameter(torch.zeros(b))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        batch, in_channels, height, width = x.shape
        s = self.affine(w)
        weight = self.weight.unsqueeze(0) * s.reshape(batch, 1, -1, 1, 1)
        weight = weight * (weight.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt().reshape(batch, -1, 1, 1, 1)
        x = x.reshape(1, batch * in_channels, height, width)
        x = F.conv2d(x, weight.reshape(batch * self.out_channels, in_channels, self.k, self.k), padding=self.k // 2, groups=batch)
        return F.leaky_relu(x.reshape(batch, self.out_channels, height, width) + self.bias[None, :, None, None], 0.2)


class StyleGAN(nn.Module):
    """A mapping network, a constant input, modulated convolutions, noise, to RGB."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(5, 9), nn.LeakyReLU(0.2), nn.Linear(9, 7), nn.LeakyReLU(0.2))
        self.const = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.c1, self.c2, self.rgb = Modulated(6, 8, 7), Modulated(8, 6, 7), Modulated(6, 3, 7, 1)
        self.noise = nn.Parameter(torch.zeros(1))
        self.register_buffer("fixed", torch.randn(1, 1, 4, 4))

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(F.normalize(z, dim=1))
        x = self.c1(self.const.repeat(z.shape[0], 1, 1, 1), w) + self.fixed * self.noise
        x = self.c2(F.interpolate(x, scale_factor=2, mode="bilinear"), w)
        return self.rgb(x, w)


class Espcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.shuffle = nn.Conv2d(1, 8, 5, padding=2), conv(8, 6), conv(6, 4 * 2**2), nn.PixelShuffle(2)
        self.last = conv(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.shuffle(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))
        return y + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)


class SegNet(nn.Module):
    """Pooling by indices, and undoing it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 6), conv(6, 8), conv(8, 6), conv(6, 2)
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, i = self.pool(self.a(x).relu())
        x = self.c(self.b(x).relu())
        return self.d(self.unpool(x, i))


class Aspp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = conv(3, 6)
        self.branches = nn.ModuleList([nn.Conv2d(6, 4, 1), *(nn.Conv2d(6, 4, 3, padding=d, dilation=d) for d in (2, 3))])
        self.pool, self.project, self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.ReLU()), nn.Conv2d(16, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        f = self.backbone(x).relu()
        parts = [b(f).relu() for b in self.branches]
        parts.append(F.interpolate(self.pool(f), size=f.shape[-2:], mode="bilinear", align_corners=False))
        y = self.head(self.project(torch.cat(parts, dim=1)))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear"), "aux": y.mean((2, 3))}


class Cbam(nn.Module):
    def __init__(self, c: int = 8, r: int = 2) -> None:
        super().__init__()
        self.conv, self.mlp = conv(3, c), nn.Sequential(nn.Flatten(), nn.Linear(c, c // r), nn.ReLU(), nn.Linear(c // r, c))
        self.spatial, self.out = nn.Conv2d(2, 1, 7, padding=3), conv(c, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        a = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(a).unsqueeze(2).unsqueeze(3).expand_as(x)
        s = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return self.out(x * self.spatial(s).sigmoid())


class Eca(nn.Module):
    """A 1D convolution over channels ties neighbours: no channel may go, but what is around it may."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.mix = conv(3, 6), conv(6, 8), conv(8, 2), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        y = self.mix(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return self.c(x * y.sigmoid())


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: half passes, concatenation, shuffle by views."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        h = c // 2
        self.stem, self.head = conv(3, c), nn.Linear(c, 3)
        self.branch = nn.ModuleList([nn.Sequential(nn.Conv2d(h, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU(inplace=True), nn.Conv2d(h, h, 3, padding=1, groups=h, bias=False), nn.BatchNorm2d(h), nn.Conv2d(h, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU(inplace=True)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branch:
            x1, x2 = x.chunk(2, dim=1)
            x = torch.cat((x1, branch(x2)), dim=1)
            b, c, h, w = x.data.size()
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        return self.head(x.mean([2, 3]))


class Ghost(nn.Module):
    def __init__(self, a: int = 6, out: int = 9, ratio: int = 2) -> None:
        super().__init__()
        self.oup = out
        init = math.ceil(out / ratio)
        self.stem = conv(3, a)
        self.primary = nn.Sequential(nn.Conv2d(a, init, 1, bias=False), nn.BatchNorm2d(init), nn.ReLU())
        self.cheap = nn.Sequential(nn.Conv2d(init, init * (ratio - 1), 3, padding=1, groups=init, bias=False), nn.BatchNorm2d(init * (ratio - 1)), nn.ReLU())
        self.head = nn.Conv2d(out, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(self.stem(x))
        out = torch.cat([x1, self.cheap(x1)], dim=1)
        return self.head(out[:, : self.oup, :, :])


class InvertedResidual(nn.Module):
    def __init__(self, c: int = 6, t: int = 3) -> None:
        super().__init__()
        h = c * t
        self.stem = conv(3, c)
        self.expand, self.dw = nn.Sequential(nn.Conv2d(c, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU6(inplace=True)), nn.Sequential(conv(h, h, groups=h, bias=False), nn.BatchNorm2d(h), nn.ReLU6(inplace=True))
        self.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(h, 4, 1), nn.ReLU(), nn.Conv2d(4, h, 1), nn.Hardsigmoid())
        self.project, self.head = nn.Sequential(nn.Conv2d(h, c, 1, bias=False), nn.BatchNorm2d(c)), nn.Linear(c, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.dw(self.expand(x))
        x = x + self.project(y * self.se(y))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class DenseBlock(nn.Module):
    def __init__(self, c: int = 6, growth: int = 4, n: int = 3) -> None:
        super().__init__()
        self.stem = conv(3, c)
        self.layers = nn.ModuleList([nn.Sequential(nn.BatchNorm2d(c + i * growth), nn.ReLU(), nn.Conv2d(c + i * growth, 2 * growth, 1), nn.BatchNorm2d(2 * growth), nn.ReLU(), conv(2 * growth, growth)) for i in range(n)])
        self.transition, self.head = nn.Conv2d(c + n * growth, 5, 1), nn.Linear(5 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = F.avg_pool2d(self.transition(torch.cat(features, 1)), 2)
        return self.head(x.view(x.size(0), -1))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.b1, self.b2, self.b3 = nn.Conv2d(6, 4, 1), nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(), conv(3, 5)), nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), nn.Conv2d(4, 4, (3, 1), padding=(1, 0)))
        self.b4, self.fc = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(6, 3, 1)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.fc(torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1).relu().mean(dim=(-2, -1)))


class Hypercolumns(nn.Module):
    """Features of all depths at one resolution, sampled where a grid says so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(4, 6, stride=2), conv(6, 8, stride=2)
        self.fc = nn.Sequential(nn.Linear(18, 7), nn.ReLU(), nn.Linear(7, 2))

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        a = self.a(x).relu()
        b = self.b(a).relu()
        c = self.c(b).relu()
        columns = [F.grid_sample(f, points.unsqueeze(2), align_corners=False).squeeze(-1) for f in (a, b, c)]
        return self.fc(torch.cat(columns, 1).transpose(1, 2))


class Transformed(nn.Module):
    """A spatial transformer: affine_grid and grid_sample of the image, then a CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.localization = nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.ReLU(True))
        self.fc_loc = nn.Sequential(nn.Linear(6 * 2 * 2, 7), nn.ReLU(True), nn.Linear(7, 3 * 2))
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 5, 3), nn.Linear(5 * 3 * 3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        xs = self.localization(x).view(-1, 6 * 2 * 2)
        theta = self.fc_loc(xs).view(-1, 2, 3)
        x = F.grid_sample(x, F.affine_grid(theta, x.size(), align_corners=False), align_corners=False)
        x = F.relu(F.max_pool2d(self.conv(x), 2))
        return F.log_softmax(self.fc2(F.relu(self.fc1(x.view(-1, 5 * 3 * 3)))), dim=1)


class Unfolded(nn.Module):
    """A convolution by unfold, and a fold back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight, self.out = conv(3, 5), nn.Parameter(torch.randn(6 * 4, 5 * 4)), conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        patches = F.unfold(y, 2, stride=2)
        return self.out(F.fold(self.weight @ patches, y.shape[-2:], 2, stride=2))


class Conformer(nn.Module):
    """Half-step feed-forwards, attention, GLU and depthwise convolution."""

    def __init__(self, d: int = 12, heads: int = 3) -> None:
        super().__init__()
        ff = lambda: nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d * 2), nn.SiLU(), nn.Dropout(0.1), nn.Linear(d * 2, d))
        self.sub, self.lin = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Linear(4 * 5, d)
        self.ff1, self.ff2, self.norm, self.attn = ff(), ff(), nn.LayerNorm(d), Attention(d, heads)
        self.ln, self.pw1, self.dw, self.bn, self.pw2 = nn.LayerNorm(d), nn.Conv1d(d, 2 * d, 1), nn.Conv1d(d, d, 5, padding=2, groups=d), nn.BatchNorm1d(d), nn.Conv1d(d, d, 1)
        self.final, self.out = nn.LayerNorm(d), nn.Linear(d, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sub(x.unsqueeze(1)).relu()
        b, c, t, f = x.size()
        x = self.lin(x.transpose(1, 2).contiguous().view(b, t, c * f))
        x = x + 0.5 * self.ff1(x)
        x = x + self.attn(self.norm(x))
        y = F.glu(self.pw1(self.ln(x).transpose(1, 2)), dim=1)
        x = x + self.pw2(F.silu(self.bn(self.dw(y)))).transpose(1, 2)
        return self.out(self.final(x + 0.5 * self.ff2(x))).log_softmax(-1)


class Wav2Vec(nn.Module):
    """Strided convolutions with group norm, a weight-normed grouped positional convolution, an encoder."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.c1, self.gn, self.c2 = nn.Conv1d(1, 6, 5, stride=2, bias=False), nn.GroupNorm(6, 6), nn.Conv1d(6, 6, 3, stride=2, bias=False)
        self.ln, self.proj = nn.LayerNorm(6), nn.Linear(6, d)
        self.pos = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(d, d, 4, padding=2, groups=2), dim=2)
        self.k, self.v, self.q, self.o, self.norm = *(nn.Linear(d, d) for _ in range(4)), nn.LayerNorm(d)
        self.heads, self.head_dim, self.head = 2, d // 2, nn.Linear(d, 5)

    def forward(self, wave: Tensor) -> Tensor:
        x = F.gelu(self.c2(F.gelu(self.gn(self.c1(wave[:, None])))))
        x = self.proj(self.ln(x.transpose(1, 2)))
        x = x + F.gelu(self.pos(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        return self.head(self.norm(x + self.o(y)))


class Whisper(nn.Module):
    """Convolutions with GELU, sinusoids in a buffer, an encoder and a decoder with cross attention, logits by the embedding."""

    def __init__(self, d: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(6, d, 3, padding=1), nn.Conv1d(d, d, 3, stride=2, padding=1)
        angle = torch.arange(5)[:, None] * torch.exp(-torch.arange(d // 2) / (d // 2))[None]
        self.register_buffer("positional_embedding", torch.cat([angle.sin(), angle.cos()], 1))
        self.n_head = heads
        self.enc, self.dec, self.cross = (nn.ModuleDict({k: nn.Linear(d, d, bias=k != "key") for k in ("query", "key", "value", "out")}) for _ in range(3))
        self.token, self.pos, self.ln, self.mlp = nn.Embedding(11, d), nn.Parameter(torch.randn(8, d)), nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu_(1))

    def attend(self, m: nn.ModuleDict, x: Tensor, xa: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = m["query"](x), m["key"](xa), m["value"](xa)
        n_batch, n_ctx, n_state = q.shape
        scale = (n_state // self.n_head) ** -0.25
        q = q.view(*q.shape[:2], self.n_head, -1).permute(0, 2, 1, 3) * scale
        k = k.view(*k.shape[:2], self.n_head, -1).permute(0, 2, 3, 1) * scale
        v = v.view(*v.shape[:2], self.n_head, -1).permute(0, 2, 1, 3)
        qk = q @ k
        if mask is not None:
            qk = qk + mask[:n_ctx, :n_ctx]
        return m["out"]((F.softmax(qk, dim=-1) @ v).permute(0, 2, 1, 3).flatten(start_dim=2))

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).permute(0, 2, 1)
        x = x + self.positional_embedding
        x = x + self.attend(self.enc, x, x)
        y = self.token(tokens) + self.pos[: tokens.shape[-1]]
        y = y + self.attend(self.dec, y, y, self.mask)
        y = y + self.attend(self.cross, y, x)
        y = self.ln(y + self.mlp(y))
        return y @ torch.transpose(self.token.weight, 0, 1)


class Towers(NamedTuple):
    image: Tensor
    text: Tensor
    logits: Tensor


class Clip(nn.Module):
    """Two towers, projections as parameters, the end-of-text token picked by argmax, a learned temperature."""

    def __init__(self, d: int = 12, e: int = 7) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, d, 4, stride=4), nn.Flatten(2))
        self.block = nn.TransformerEncoderLayer(d, 3, 20, batch_first=True)
        self.token, self.positional, self.ln = nn.Embedding(13, d), nn.Parameter(torch.randn(6, d)), nn.LayerNorm(d)
        self.fc1, self.fc2 = nn.Linear(d, 18), nn.Linear(18, d)
        self.image_projection, self.text_projection = nn.Parameter(torch.randn(d, e)), nn.Parameter(torch.randn(d, e))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, image: Tensor, text: Tensor) -> Towers:
        i = self.block(self.visual(image).permute(0, 2, 1)).mean(1) @ self.image_projection
        t = self.token(text) + self.positional
        t = self.ln(t + self.fc2(F.gelu(self.fc1(t))))
        t = t[torch.arange(t.shape[0]), text.argmax(dim=-1)] @ self.text_projection
        i, t = i / i.norm(dim=1, keepdim=True), t / t.norm(dim=-1, keepdim=True)
        return Towers(i.sum(1), t.sum(1), self.logit_scale.exp() * i @ t.t())


class Coords(nn.Module):
    """CoordConv, squeezes and a hard-coded feature size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(5, 6), conv(6, 4), nn.Linear(4 * 8 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y, z = torch.meshgrid(torch.linspace(-1, 1, h, dtype=x.dtype), torch.linspace(-1, 1, w, dtype=x.dtype), indexing="ij")
        x = torch.cat([x, torch.stack([y, z]).expand(n, -1, -1, -1)], 1)
        return self.fc(self.b(self.a(x).relu()).relu().view(-1, 4 * 8 * 8))


def dcgan() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (5, 1, 1)), nn.ConvTranspose2d(5, 8, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU(True), nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(True), nn.ConvTranspose2d(6, 3, 4, 2, 1, bias=False), nn.Tanh())


VISION = [
    Family("ViT", ViT, image(), (("blocks.0.attn.qkv.weight", 0), ("blocks.1.attn.proj.weight", 1), ("blocks.0.fc1.weight", 0), ("patch_embed.weight", 0), ("pos_embed", 2))),
    Family("ViT, unbound", UnboundViT, image(), (("qkv.weight", 0), ("embed.weight", 0))),
    Family("Swin", Swin, image(3, 16), (("block.qkv.weight", 0), ("block.mlp.1.weight", 0), ("reduction.weight", 0), ("embed.weight", 0))),
    Family("video transformer", Video, lambda: torch.randn(1, 3, 4, 8, 8), (("spatial.qkv.weight", 0), ("temporal.qkv.weight", 0), ("embed.weight", 0))),
    Family("U-Net", UNet, image(2, 12), (("inc.0.weight", 0), ("down2.3.weight", 0), ("up1.weight", 1), ("conv2.3.weight", 0))),
    Family("U-Net in 3D", lambda: UNet(3), lambda: torch.randn(1, 2, 8, 8, 8), (("inc.0.weight", 0), ("down2.3.weight", 0), ("up1.weight", 1), ("conv2.3.weight", 0))),
    Family("attention gate", AttentionGate, image(), (("enc.weight", 0), ("W_g.0.weight", 0), ("down.weight", 0))),
    Family("feature pyramid", FPN, image(3, 16), (("c3.weight", 0), ("lateral.0.weight", 0), ("cls.0.weight", 0), ("smooth.1.weight", 0))),
    Family("YOLO", Yolo, image(3, 16), (("stem.weight", 0), ("b1.cv1.weight", 0), ("b2.cv2.weight", 0), ("cv1.weight", 0), ("mix.m.0.0.weight", 0))),
    Family("diffusion U-Net", Diffusion, lambda: (torch.randn(2, 3, 8, 8), torch.tensor([3, 7])), (("d1.conv1.weight", 0), ("time.0.weight", 0), ("time.2.weight", 0), ("inp.weight", 0), ("attn.proj.weight", 1))),
    Family("DCGAN", dcgan, lambda: torch.randn(2, 5), (("1.weight", 1), ("4.weight", 1))),
    Family("StyleGAN", StyleGAN, lambda: torch.randn(2, 5), (("mapping.0.weight", 0), ("const", 1), ("c1.weight", 0), ("c2.weight", 0))),
    Family("ESPCN", Espcn, image(1), (("a.weight", 0), ("b.weight", 0), ("last.weight", 1))),
    Family("SegNet", SegNet, image(), (("b.weight", 0), ("a.weight", 0))),
    Family("ASPP", Aspp, image(), (("backbone.weight", 0), ("branches.1.weight", 0), ("project.weight", 0))),
    Family("CBAM", Cbam, image(), (("conv.weight", 0), ("mlp.1.weight", 0))),
    Family("ECA", Eca, image(), (("a.weight", 0),)),
    Family("ShuffleNet", Shuffle, image(), (("branch.0.0.weight", 0), ("stem.weight", 0))),
    Family("GhostNet", Ghost, image(), (("stem.weight", 0), ("primary.0.weight", 0))),
    Family("inverted residual", InvertedResidual, image(), (("expand.0.weight", 0), ("se.1.weight", 0), ("stem.weight", 0))),
    Family("DenseNet", DenseBlock, image(), (("stem.weight", 0), ("layers.0.5.weight", 0), ("layers.1.2.weight", 0), ("transition.weight", 0))),
    Family("Inception", Inception, image(), (("b1.weight", 0), ("b3.2.weight", 0), ("b4.1.weight", 0), ("stem.weight", 0))),
    Family("hypercolumns", Hypercolumns, lambda: (torch.randn(2, 3, 8, 8), torch.rand(2, 5, 2) * 2 - 1), (("a.weight", 0), ("c.weight", 0), ("fc.0.weight", 0))),
    Family("spatial transformer", Transformed, lambda: torch.randn(2, 1, 8, 8), (("fc_loc.0.weight", 0), ("fc1.weight", 0), ("conv.weight", 0), ("localization.0.weight", 0))),
    Family("unfold and fold", Unfolded, image(), (("a.weight", 0), ("out.weight", 1))),
    Family("Conformer", Conformer, lambda: torch.randn(2, 8, 10), (("pw1.weight", 0), ("attn.qkv.weight", 0), ("ff1.1.weight", 0), ("sub.weight", 0), ("lin.weight", 0))),
    Family("wav2vec2", Wav2Vec, lambda: torch.randn(2, 41), (("c1.weight", 0), ("q.weight", 0), ("proj.weight", 0))),
    Family("Whisper", Whisper, lambda: (torch.randn(2, 6, 10), torch.randint(0, 11, (2, 4))), (("conv1.weight", 0), ("cross.query.weight", 0), ("mlp.0.weight", 0), ("token.weight", 1))),
    Family("CLIP", Clip, lambda: (torch.randn(2, 3, 8, 8), torch.randint(0, 13, (2, 6))), (("visual.0.weight", 0), ("fc1.weight", 0), ("token.weight", 1), ("image_projection", 1))),
    Family("coordinates", Coords, image(), (("a.weight", 0), ("b.weight", 0))),
    Family("WaveNet", lambda: Net(lambda n, x: n.out(sum_of_skips(n, n.inp(x))), inp=nn.Conv1d(1, 6, 1), dil=nn.ModuleList([nn.Conv1d(6, 2 * 5, 2, dilation=d, padding=d) for d in (1, 2)]), skip=nn.ModuleList([nn.Conv1d(5, 7, 1) for _ in range(2)]), res=nn.ModuleList([nn.Conv1d(5, 6, 1) for _ in range(2)]), out=nn.Conv1d(7, 2, 1)), lambda: torch.randn(2, 1, 12), (("dil.0.weight", 0), ("inp.weight", 0), ("skip.0.weight", 0))),
]  # fmt: skip


def sum_of_skips(net: Net, x: Tensor) -> Tensor:
    skips: Tensor | int = 0
    for dilated, skip, res in zip(net.dil, net.skip, net.res):  # type: ignore[arg-type, call-overload]
        a, b = torch.chunk(dilated(x)[:, :, : x.size(2)], 2, dim=1)
        y = torch.tanh(a) * torch.sigmoid(b)
        skips = skips + skip(y)
        x = x + res(y)
    return F.relu(skips)  # type: ignore[arg-type]
