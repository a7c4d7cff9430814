"""What a step of training costs in eager PyTorch: the generator of `configs/hippocampus.parameters.json`, its denoising
loss and Adam. `cargo bench --bench training` lets it take turns with `cdal` where CDAL_BENCH_TORCH names an interpreter
that has PyTorch; the project itself does not need it.

    python benches/training_torch.py PARAMETERS BATCH THREADS

Takes one step for each line of standard input and answers each with a line, the first once it is ready.
"""

import json
import math
import sys

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError:
    sys.exit("PyTorch is missing; left out")

EPSILON = 1e-6


class Fir(nn.Module):
    """Depthwise blur with stride 2, or its transpose."""

    def __init__(self, taps, gain):
        super().__init__()
        taps = torch.tensor(taps, dtype=torch.float32)
        kernel = torch.outer(taps, taps)
        self.register_buffer("kernel", kernel / kernel.sum() * gain)

    def down(self, x):
        return F.conv2d(x, self._kernel(x), stride=2, padding=1, groups=x.shape[1])

    def up(self, x):
        return F.conv_transpose2d(x, self._kernel(x), stride=2, padding=1, groups=x.shape[1])

    def blur(self, x):
        return F.conv2d(x, self._kernel(x), padding=2, groups=x.shape[1])

    def _kernel(self, x):
        return self.kernel.expand(x.shape[1], 1, -1, -1)


class AdaptiveNorm(nn.Module):
    def __init__(self, channels, latent):
        super().__init__()
        self.groups = min(channels // 4, 32)
        self.style = nn.Linear(latent, 2 * channels)

    def forward(self, x, z):
        gamma, beta = self.style(z)[:, :, None, None].chunk(2, 1)
        return gamma * F.group_norm(x, self.groups, eps=EPSILON) + beta


class ResBlock(nn.Module):
    def __init__(self, p, n_in, n_out, resample=None):
        super().__init__()
        self.resample = resample
        self.norms = nn.ModuleList([AdaptiveNorm(n_in, p["z_emb_dim"]), AdaptiveNorm(n_out, p["z_emb_dim"])])
        self.convs = nn.ModuleList([nn.Conv2d(n_in, n_out, 3, padding=1), nn.Conv2d(n_out, n_out, 3, padding=1)])
        self.time = nn.Linear(4 * p["num_channels_dae"], n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out or resample else None
        self.fir = Fir(p["fir_kernel"], 4.0 if resample == "up" else 1.0)

    def forward(self, x, temb, z):
        h = F.silu(self.norms[0](x, z))
        if self.resample:
            filtered = getattr(self.fir, self.resample)
            h, x = filtered(h), filtered(x)
        h = self.convs[0](h) + self.time(F.silu(temb))[:, :, None, None]
        h = self.convs[1](F.silu(self.norms[1](h, z)))
        return ((self.skip(x) if self.skip else x) + h) / math.sqrt(2)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(min(channels // 4, 32), channels, eps=EPSILON)
        self.maps = nn.ModuleList([nn.Conv2d(channels, channels, 1) for _ in range(4)])

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in self.maps[:3])
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), -1)
        return (x + self.maps[3]((v @ weights.transpose(1, 2)).view_as(x))) / math.sqrt(2)


class Generator(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p, nf = p, p["num_channels_dae"]
        widths = [nf * multiplier for multiplier in p["ch_mult"]]
        self.time = nn.Sequential(nn.Linear(nf, 4 * nf), nn.SiLU(), nn.Linear(4 * nf, 4 * nf))
        latent = [nn.Linear(p["nz"], p["z_emb_dim"]), nn.SiLU()]
        for _ in range(p["n_mlp"]):
            latent += [nn.Linear(p["z_emb_dim"], p["z_emb_dim"]), nn.SiLU()]
        self.latent = nn.Sequential(*latent)
        self.condition_stem = nn.Conv2d(1, nf, 3, padding=1)
        self.condition = nn.ModuleList([
            nn.Sequential(nn.GroupNorm(32, nf), nn.SiLU(), nn.Conv2d(nf, nf, 3, padding=1),
                          nn.GroupNorm(32, nf), nn.SiLU(), nn.Conv2d(nf, nf, 3, padding=1))
            for _ in range(p["cond_enc_layers"] * p["cond_enc_num_res_blocks"])])
        self.stem = nn.Conv2d(p["num_channels"], nf, 3, padding=1)
        self.fir = Fir(p["fir_kernel"], 1.0)
        size, skips, h, pyramid = p["image_size"], [nf], nf, p["num_channels"]
        self.down, self.pyramid, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        attends = lambda: nn.ModuleList([Attention(h)] if size in p["attn_resolutions"] else [])  # noqa: E731
        for level, width in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(p["num_res_blocks"]):
                block, h = ResBlock(p, h, width), width
                blocks.append(nn.ModuleList([block, attends()]))
                skips.append(h)
            self.down.append(nn.ModuleList([blocks]))
            if level < len(widths) - 1:
                self.down[-1].append(ResBlock(p, h, h, "down"))
                self.pyramid.append(nn.Conv2d(pyramid, h, 3, stride=2))
                pyramid, size = h, size // 2
                skips.append(h)
        self.middle = nn.ModuleList([ResBlock(p, h, h), Attention(h), ResBlock(p, h, h)])
        for level, width in reversed(list(enumerate(widths))):
            blocks = nn.ModuleList()
            for _ in range(p["num_res_blocks"] + 1):
                blocks.append(ResBlock(p, h + skips.pop(), width))
                h = width
            self.up.append(nn.ModuleList([blocks, attends()]))
            if level:
                self.up[-1].append(ResBlock(p, h, h, "up"))
                size *= 2
        self.out = nn.Sequential(nn.GroupNorm(min(h // 4, 32), h, eps=EPSILON), nn.SiLU(),
                                 nn.Conv2d(h, p["num_channels"], 3, padding=1), nn.Tanh())

    def forward(self, x, t, image, z):
        half = self.p["num_channels_dae"] // 2
        angles = t[:, None] * torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
        temb = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        z = self.latent(z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt())
        condition = self.condition_stem(image)
        for block in self.condition:
            condition = condition + block(condition)
        h, pyramid = self.stem(x) + condition, x
        skips = [h]
        for level, (blocks, *rest) in enumerate(self.down):
            for block, attention in blocks:
                h = block(h, temb, z)
                for attend in attention:
                    h = attend(h)
                skips.append(h)
            for block in rest:
                h = pyramid = (self.pyramid[level](self.fir.blur(pyramid)) + block(h, temb, z)) / math.sqrt(2)
                skips.append(h)
        h = self.middle[2](self.middle[1](self.middle[0](h, temb, z)), temb, z)
        for blocks, attention, *rest in self.up:
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], 1), temb, z)
            for attend in attention:
                h = attend(h)
            for block in rest:
                h = block(h, temb, z)
        return self.out(h)


def main(parameters, batch, threads):
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    with open(parameters) as file:
        p = json.load(file)
    network, batch, size = Generator(p), int(batch), p["image_size"]
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.5, 0.9))
    x, target = torch.randn(2, batch, p["num_channels"], size, size)
    image, z, t = torch.randn(batch, 1, size, size), torch.randn(batch, p["nz"]), torch.arange(batch) % p["num_timesteps"]
    print(sum(values.numel() for values in network.parameters()), flush=True)
    for _ in sys.stdin:
        optimiser.zero_grad()
        loss = F.mse_loss(network(x, t, image, z), target)
        loss.backward()
        optimiser.step()
        print(loss.item(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
