"""What an image costs: every family beside the plain form of its published code, and what partial synthesis saves.

    python -m benchmarks synthesis                       # all parts; about ten minutes on two cores
    python -m benchmarks synthesis --parts partial small # some
    python -m benchmarks synthesis --toy                 # small networks, seconds: does it run?

Ways take turns and medians of wall time are compared, so that a busy machine slows all; the least times are in the
file too. All of them run in one process in which freed memory is kept, as under `eigenlens`: the plain forms gain by
that as well. Networks have random weights scaled so that images spread by about 0.5; `toonfaces` and `ffhq-mobile` are
trained. PSNR compares bf16 with fp32, with a peak of 2. The shares of the peak divide the multiplications of direct
convolutions by the speed of the fastest convolution measured: in fp32 Winograd's algorithm needs fewer.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _plain
from benchmarks._machine import machine
from benchmarks.train_step import plain_generate
from eigenlens import effect, load_generator, runtime
from eigenlens.codes import Codes
from eigenlens.directions import Directions
from eigenlens.errors import UserError
from eigenlens.generator import Generator
from eigenlens.generators.biggan import BigGAN, BigGANConfig, BigGANNetwork
from eigenlens.generators.dcgan import DCGAN, OUTPUTS, DCGANConfig, DCGANNetwork, Step
from eigenlens.generators.proggan import ProgGAN, ProgGANConfig, ProgGANNetwork
from eigenlens.generators.sngan import SNGAN, SNGANConfig, SNGANNetwork
from eigenlens.generators.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Network
from eigenlens.generators.stylegan3 import LayerConfig, StyleGAN3, StyleGAN3Config, StyleGAN3Network

RESULTS = Path(__file__).parent / "results" / "synthesis.json"
PARTS = ("peak", "stylegan2", "partial", "mobilestylegan", "small", "memory", "stylegan3")
PATIENCE = 25.0
"""Seconds after which a comparison stops taking turns."""


# --- networks ---------------------------------------------------------------------------------------------------------


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight so that features keep unit scale, biases small; deterministic."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if "running" in name or name.endswith(("mean", "var", "tracked", "transform", "filter", "input_gain")):
                continue
            fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
            if name.endswith(("affine.bias", "strength")):
                tensor.fill_(1.0 if name.endswith("bias") else 0.1)
            elif tensor.ndim <= 1:
                tensor.normal_(0.0, 0.1, generator=generator)
            elif name.endswith(("const", "noise")):
                tensor.normal_(0.0, 1.0, generator=generator)
            else:
                tensor.normal_(0.0, math.sqrt((1.0 if "affine" in name else 2.0) / fan_in), generator=generator)
    return network


def rescaled(generator: Generator, layers: list[nn.Module], spread: float = 0.5) -> Generator:
    """Scale the weights and biases that give the image so that images spread by `spread`."""
    codes = sample(generator, 2)
    with torch.no_grad():
        factor = spread / float(generator(codes).std())
        for layer in layers:
            layer.weight *= factor
            if getattr(layer, "bias", None) is not None:
                layer.bias *= factor
    return generator


def sample(generator: Generator, n: int) -> Codes:
    """Draw codes where layers read them: w for StyleGANs."""
    return generator.sample(n, label=0 if generator.label_names else None)


def stylegan2(resolution: int, channel_base: int, *, most: int = 512) -> Generator:
    """Make a StyleGAN2 of NVIDIA's widths."""
    widths = tuple(min(channel_base // (4 * 2**level), most) for level in range(int(math.log2(resolution)) - 1))
    network: Any = randomised(StyleGAN2Network(StyleGAN2Config(widths, (most,) * 8, z_dim=most)))
    g = StyleGAN2(network, name=f"stylegan2-{resolution}")
    return rescaled(g, [getattr(network, f"b{4 * 2**level}").torgb for level in range(len(widths))])


def multiplications(generator: Generator) -> float:
    """Return how many floating-point operations the direct convolutions of a StyleGAN2 take for an image."""
    total = 0
    for layer in generator.layers:
        weight = generator.network.get_submodule(layer.name).weight
        pixels = (layer.resolution // (2 if layer.name.endswith("conv0") else 1)) ** 2
        total += 2 * weight.numel() * pixels
    return float(total)


def lowpass(n: int, cutoff: float, width: float, rate: float, *, radial: bool) -> Tensor | None:
    """Design a Kaiser-windowed low-pass filter of `n` taps, or of n x n that is the same in all directions."""
    if n == 1:
        return None
    attenuation = 2.285 * (n - 1) * math.pi * (width / (rate / 2)) + 7.95
    beta = 0.1102 * (attenuation - 8.7) if attenuation > 50 else 0.5842 * max(attenuation - 21, 0) ** 0.4
    window = torch.kaiser_window(n, periodic=False, beta=float(beta), dtype=torch.float64)
    x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / rate
    if radial:
        r = torch.hypot(x[:, None], x[None]).clamp(min=1e-9)
        taps = torch.special.bessel_j1(2 * cutoff * math.pi * r) / (math.pi * r) * torch.outer(window, window)
    else:
        taps = torch.sinc(2 * cutoff * x) * window
    return (taps / taps.sum()).float()


def stylegan3(
    kind: str, resolution: int, *, n_layers: int = 14, channel_base: int = 32768, most: int = 512
) -> Generator:
    """Make a StyleGAN3-T or -R of NVIDIA's schedule (Karras 2021, appendix F)."""
    scale = 2 if kind == "R" else 1
    base, most = channel_base * scale, most * scale
    share = [min(i / (n_layers - 2), 1.0) for i in range(n_layers + 1)]
    cutoffs = [2.0 * (resolution / 2 / 2.0) ** s for s in share]
    stops = [2**2.1 * (resolution / 2 * 2**0.3 / 2**2.1) ** s for s in share]
    rates = [2 ** math.ceil(math.log2(min(2 * stop, resolution))) for stop in stops]
    halves = [max(stop, rate / 2) - cutoff for stop, rate, cutoff in zip(stops, rates, cutoffs, strict=True)]
    sizes = [rate + 20 for rate in rates[:-2]] + [resolution] * 2
    widths = [round(min(base / 2 / cutoff, most)) for cutoff in cutoffs[:-1]] + [3]
    layers, filters = [], {}
    for i in range(n_layers + 1):
        before, is_last = max(i - 1, 0), i == n_layers
        kernel = 1 if is_last or kind == "R" else 3
        between = max(rates[before], rates[i]) * (1 if is_last else 2)
        up, down = between // rates[before], between // rates[i]
        up_taps, down_taps = (1 if factor == 1 or is_last else 6 * factor for factor in (up, down))
        total = (sizes[i] - 1) * down + 1 - (sizes[before] + kernel - 1) * up + up_taps + down_taps - 2
        low = (total + up) // 2
        radial = kind == "R" and i < n_layers - 2
        found = (
            lowpass(up_taps, cutoffs[before], 2 * halves[before], between, radial=False),
            lowpass(down_taps, cutoffs[i], 2 * halves[i], between, radial=radial),
        )
        name = f"L{i}_{sizes[i]}_{widths[i]}"
        shapes = [() if taps is None else tuple(taps.shape) for taps in found]
        filters[name] = found
        layers.append(
            LayerConfig(
                name, widths[before], widths[i], sizes[i], kernel, up, down, (low, total - low) * 2, *shapes,
                1.0 if is_last else math.sqrt(2.0), 1.0 if is_last else 0.2, not is_last, 256.0,
            )
        )  # fmt: skip
    config = StyleGAN3Config(
        resolution, sizes[0], widths[0], float(rates[0]), 2.0, tuple(layers), (most,) * 2, z_dim=most
    )
    network: Any = randomised(StyleGAN3Network(config))
    with torch.no_grad():
        network.input.transform.copy_(torch.eye(3))
        network.input.affine.weight.mul_(0.1)
        network.input.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        for name, (up_filter, down_filter) in filters.items():
            layer = network.layers[name]
            layer.input_gain.fill_(1.0)
            for mine, taps in ((layer.up_filter, up_filter), (layer.down_filter, down_filter)):
                if taps is not None:
                    mine.copy_(taps)
    return rescaled(StyleGAN3(network, name=f"stylegan3-{kind}-{resolution}"), [network.layers[layers[-1].name]])


def dcgan(*, widths: tuple[int, ...] = (512, 256, 128, 64)) -> Generator:
    """Make the DCGAN of the paper, 64 px."""
    steps, size = [Step("deconv", 128, widths[0], kernel=4, norm=widths[0], size=4)], 4
    for before, after in zip(widths, (*widths[1:], 3), strict=True):
        size *= 2
        is_last = after == 3
        about = {"norm": 0 if is_last else after, "activation": "none" if is_last else "relu", "has_bias": is_last}
        steps.append(Step("deconv", before, after, kernel=4, stride=2, padding=1, size=size, **about))
    return DCGAN(randomised(DCGANNetwork(DCGANConfig(tuple(steps)))), name="dcgan")  # type: ignore[arg-type]


def sngan(*, width: int = 256) -> Generator:
    """Make the SNGAN of 64 px that is published with latent directions."""
    config = SNGANConfig(
        z_dim=128, base=4, widths=(4 * width, 2 * width, width, width // 2, width // 4), bypass=(True,) * 4
    )
    return SNGAN(randomised(SNGANNetwork(config)), name="sngan")  # type: ignore[arg-type]


def proggan(*, most: int = 512, levels: int = 6) -> Generator:
    """Make a ProgGAN, 128 px at 6 levels."""
    widths = tuple(min(most, 8192 // 2 ** (level + 2)) for level in range(levels))
    return ProgGAN(randomised(ProgGANNetwork(ProgGANConfig(widths, z_dim=most))), name="proggan")  # type: ignore[arg-type]


def biggan(*, width: int = 96) -> Generator:
    """Make the BigGAN of 128 px."""
    config = BigGANConfig(
        is_deep=False, z_dim=120, n_chunks=6, is_fed_everywhere=True, y_dim=128, n_classes=10, base=4,
        widths=tuple(width * k for k in (16, 16, 8, 4, 2, 1)), hidden=tuple(width * k for k in (16, 8, 4, 2, 1)),
        upsample=(True,) * 5, attention=(4,),
    )  # fmt: skip
    return BigGAN(randomised(BigGANNetwork(config)), name="biggan")  # type: ignore[arg-type]


# --- the plain forms of small networks --------------------------------------------------------------------------------


def eager(generator: Any, codes: Codes) -> Tensor:
    """Run the modules of a small network one after the other, as a training loop does."""
    network, family = generator.network, generator.family
    if family == "eigengan":
        return plain_generate(network, codes.latent[:, 0])
    if family == "dcgan":
        x = codes.latent[:, 0, :, None, None]
        for stage in network.stages:
            x = stage(x)
        return OUTPUTS[network.config.output](x)
    if family == "sngan":
        x = network.linear(codes.latent[:, 0]).unflatten(1, (-1, network.config.base, network.config.base))
        for block in network.blocks:
            x = block(x)
        return torch.tanh(network.rgb(F.relu(network.norm(x))))
    if family == "proggan":
        x = network.from_latent(codes.latent[:, 0])
        for index in range(len(network.convs)):
            x = network.convolved(index, x)
        return network.to_image(x, None)
    inputs = generator._inputs(codes)
    x = network.to_base(inputs.conditions[0])
    for number, block in enumerate(network.blocks, start=1):
        x = block(x, inputs.conditions[number], inputs.truncation)
        x = network.attention[str(number)](x) if str(number) in network.attention else x
    return network.to_image(x, inputs.truncation)


# --- measuring --------------------------------------------------------------------------------------------------------


def turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way, which take turns: at least two each, and no more rounds when patience ends."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for way in ways.values():
            way()
        began = time.perf_counter()
        for done in range(rounds):
            if done >= 2 and time.perf_counter() - began > PATIENCE:
                break
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def row(case: str, seconds: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """Return a row of the table: medians and least times in milliseconds, and ratios to the first way."""
    medians = {name: 1e3 * statistics.median(each) for name, each in seconds.items()}
    first = next(iter(medians.values()))
    return {
        "case": case,
        "median_ms": {name: round(each, 2) for name, each in medians.items()},
        "least_ms": {name: round(1e3 * min(each), 2) for name, each in seconds.items()},
        "ratio": {name: round(each / first, 3) for name, each in medians.items()},
        "rounds": len(next(iter(seconds.values()))),
        **more,
    }


def at(generator: Generator, precision: Any, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return `call` at a precision of the generator."""

    def run() -> Any:
        generator.precision = precision
        return call()

    return run


def psnr(generator: Generator, codes: Codes) -> float:
    """Return the PSNR of bf16 beside fp32 in dB, peak 2."""
    with torch.inference_mode():
        rough, exact = (
            at(generator, "bf16", lambda: generator(codes))(),
            at(generator, "fp32", lambda: generator(codes))(),
        )
    return round(10 * math.log10(4.0 / float((rough - exact).square().mean())), 1)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, in standard deviations of the images."""
    return float((found - expected).abs().max() / expected.std())


def measure_peak(toy: bool) -> list[dict[str, Any]]:
    """Time the convolution that this machine does best."""
    n, side = (64, 16) if toy else (256, 64)
    x, weight = torch.randn(1, n, side, side), torch.randn(n, n, 3, 3)
    ways = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (each.to(dtype).contiguous(memory_format=torch.channels_last) for each in (x, weight))
        ways[str(dtype).removeprefix("torch.")] = lambda a=a, b=b: F.conv2d(a, b, padding=1)
    seconds = turns(ways, 15)
    flops = 2 * weight.numel() * side**2
    peak = {name: round(flops / min(each) / 1e9, 1) for name, each in seconds.items()}
    return [row(f"convolution 3x3, {n} channels, {side} px", seconds, gflops=peak)]


def measure_stylegan2(toy: bool, peak: dict[str, float]) -> list[dict[str, Any]]:
    """Compare the plain form, ours in fp32 and ours in bf16."""
    cases = [(32, 512, 64, (1, 2))] if toy else [(256, 16384, 512, (1, 8)), (1024, 32768, 512, (1, 8))]
    rows = []
    for resolution, base, most, batches in cases:
        g = stylegan2(resolution, base, most=most)
        flops = multiplications(g)
        for n in batches:
            codes = sample(g, n)
            w = codes.latent[:, 0]
            with torch.inference_mode():
                error = difference(g(codes[0]), _plain.stylegan2(g.network, w[:1]))  # type: ignore[arg-type]
            seconds = turns(
                {
                    "plain": lambda g=g, w=w: _plain.stylegan2(g.network, w),
                    "fp32": at(g, "fp32", lambda g=g, codes=codes: g(codes)),
                    "bf16": at(g, "bf16", lambda g=g, codes=codes: g(codes)),
                },
                3 if n > 1 else 9,
            )
            share = {
                name: round(flops * n / statistics.median(seconds[name]) / 1e9 / peak[kind], 2)
                for name, kind in (("plain", "float32"), ("fp32", "float32"), ("bf16", "bfloat16"))
                if peak
            }
            about = {"share_of_peak": share, "psnr_db": psnr(g, codes[0]), "difference": error}
            rows.append(row(f"StyleGAN2 {resolution} px, batch {n}", seconds, **about))
    return rows


def measure_stylegan3(toy: bool) -> list[dict[str, Any]]:
    """Compare the plain form, ours in fp32 and ours in bf16."""
    rows = []
    for kind in ("T", "R"):
        g = stylegan3(kind, 32, n_layers=6, channel_base=512, most=32) if toy else stylegan3(kind, 256)
        codes = sample(g, 1)
        w = codes.latent[:, 0]
        with torch.inference_mode():
            error = difference(g(codes), _plain.stylegan3(g.network, w))  # type: ignore[arg-type]
        ways = {
            "plain": lambda g=g, w=w: _plain.stylegan3(g.network, w),
            "fp32": at(g, "fp32", lambda g=g, codes=codes: g(codes)),
            "bf16": at(g, "bf16", lambda g=g, codes=codes: g(codes)),
        }
        rows.append(
            row(
                f"StyleGAN3-{kind} {g.resolution} px, batch 1", turns(ways, 3), psnr_db=psnr(g, codes), difference=error
            )
        )
    return rows


def measure_mobilestylegan(toy: bool) -> list[dict[str, Any]]:
    """Time `ffhq-mobile`, where its package is installed."""
    try:
        g = load_generator("ffhq-mobile", device="cpu")
    except UserError as error:
        print(f"left out: {error}", file=sys.stderr)
        return []
    codes = g.sample(1, truncation=0.7)
    ways = {name: at(g, name, lambda: g(codes)) for name in ("fp32", "bf16")}
    return [row("MobileStyleGAN 1024 px, batch 1", turns(ways, 2 if toy else 9), psnr_db=psnr(g, codes))]


def measure_partial(toy: bool) -> list[dict[str, Any]]:
    """Time a strip of nine steps beside its parts, and beside nine whole images."""
    rows = []
    small = [(stylegan2(32, 512, most=64), "4-")]
    for g, layers in small if toy else [(stylegan2(256, 16384), layers) for layers in ("11-", "6-")]:
        rows.append(_strip(g, "w+", layers))
    toonfaces = load_generator("toonfaces", device="cpu")
    rows.append(_strip(toonfaces, "z", "4"))
    return rows


def _strip(g: Generator, space: str, layers: str) -> dict[str, Any]:
    codes = g.sample(1, space=space, label=0 if g.label_names else None)
    vector = torch.nn.functional.normalize(g.spaces[space].mask(layers), dim=1)[None]
    directions = Directions(vector, space, ("all",), layers=(layers,), unit="raw")
    layer = g.first_layer_fed(layers, g.spaces[space])
    state = g.start(codes, layer)
    steps = torch.linspace(-2, 2, 9).tolist()
    seconds = turns(
        {
            "whole image": lambda: g(codes),
            "prefix": lambda: g.start(codes, layer),
            "suffix": lambda: g.finish(codes, state),
            "strip of 9": lambda: effect.traverse(g, codes, directions, "all", steps),
        },
        15,
    )
    whole, prefix, suffix, strip = (statistics.median(each) for each in seconds.values())
    about = {
        "strip / (prefix + 9 suffixes)": round(strip / (prefix + 9 * suffix), 3),
        "strip / 9 whole images": round(strip / (9 * whole), 3),
    }
    return row(f"{g.name}, layers {layers}: a strip of 9", seconds, **about)


def measure_small(toy: bool) -> list[dict[str, Any]]:
    """Compare small networks run as a training loop runs them with ours."""
    toonfaces = load_generator("toonfaces", device="cpu")
    cases: list[tuple[Generator, tuple[int, ...]]] = [(toonfaces, (2,) if toy else (64, 1))]
    if toy:
        made = [dcgan(widths=(16, 16, 8, 8)), sngan(width=16), proggan(most=16, levels=3), biggan(width=8)]
        cases += [(g, (2,)) for g in made]
    else:
        cases += [(dcgan(), (64, 1)), (sngan(), (16, 1)), (proggan(), (8, 1)), (biggan(), (4, 1))]
    rows = []
    for g, batches in cases:
        for n in batches:
            codes = sample(g, n)
            with torch.inference_mode():
                error = difference(g(codes), eager(g, codes))
            ways = {
                "plain": lambda g=g, codes=codes: eager(g, codes),
                "fp32": at(g, "fp32", lambda g=g, codes=codes: g(codes)),
                "bf16": at(g, "bf16", lambda g=g, codes=codes: g(codes)),
            }
            seconds = turns(ways, 3 if toy else 15)
            speed = {name: round(n / statistics.median(each), 1) for name, each in seconds.items()}
            about = {"images_per_second": speed, "psnr_db": psnr(g, codes), "difference": error}
            rows.append(row(f"{g.name} {g.resolution} px, batch {n}", seconds, **about))
    return rows


def measure_memory(toy: bool) -> list[dict[str, Any]]:
    """Read the peak memory of processes that render one image of 1024 px, torch and all."""
    rows = []
    for name in ("stylegan2", "ffhq-mobile"):
        for precision in ("fp32", "bf16"):
            words = [sys.executable, "-m", "benchmarks.synthesis", "--render", name, precision, str(int(toy))]
            ran = subprocess.run(words, capture_output=True, text=True)
            if ran.returncode == 0:
                size = "32 px" if toy and name == "stylegan2" else "1024 px"
                rows.append({"case": f"memory of {name} {size}, {precision}", "peak_mb": round(float(ran.stdout))})
            else:
                print(f"left out: memory of {name}: {ran.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    return rows


def render_once(name: str, precision: Any, toy: bool) -> None:
    """Render one image and print the peak memory of this process in MB."""
    if name == "stylegan2":
        g = stylegan2(32, 512, most=64) if toy else _unscaled_1024()
    else:
        g = load_generator(name, device="cpu")
    g.precision = precision
    with torch.inference_mode():
        g(g.sample(1))
    print(peak_mb())


def peak_mb() -> float:
    """Return the most memory that this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells includes the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _unscaled_1024() -> Generator:
    widths = tuple(min(32768 // (4 * 2**level), 512) for level in range(9))
    return StyleGAN2(randomised(StyleGAN2Network(StyleGAN2Config(widths, (512,) * 8))), name="stylegan2")  # type: ignore[arg-type]


# --- the report -------------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a table in Markdown."""
    lines = ["| case | plain ms | fp32 ms | bf16 ms | ratios | more |", "|---|---|---|---|---|---|"]
    for each in results:
        medians, ratios = each.get("median_ms", {}), each.get("ratio", {})
        cells = [f"{medians[name]:,.1f}" if name in medians else "" for name in ("plain", "fp32", "bf16")]
        both = " / ".join(f"{ratios[name]:.2f}" for name in ("fp32", "bf16") if "plain" in ratios)
        more = []
        for name, value in each.items():
            if name in ("case", "median_ms", "least_ms", "ratio", "rounds", "part", "machine", "difference"):
                continue
            if isinstance(value, dict):
                value = ", ".join(f"{key} {number:g}" for key, number in value.items())
            more.append(f"{name.replace('_', ' ')}: {value}")
        if not any(cells) and medians:
            more = [*(f"{name} {value:,.1f} ms" for name, value in medians.items()), *more]
        lines.append(f"| {each['case']} | {' | '.join(cells)} | {both} | {'; '.join(more)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the chosen parts, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--toy", action="store_true", help="small networks: whether it runs, in seconds")
    parser.add_argument("--threads", type=int, help="one a core by default")
    parser.add_argument("--out", type=Path, help=f"by default {RESULTS}, for --toy nowhere")
    parser.add_argument("--render", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    runtime.set_threads(options.threads)
    runtime.keep_freed_memory()
    if options.render:
        render_once(options.render[0], options.render[1], options.render[2] == "1")
        return
    about = machine()
    print(json.dumps(about), flush=True)
    results: list[dict[str, Any]] = []
    peak: dict[str, float] = {}
    for part in options.parts:
        if part == "stylegan2":
            found = measure_stylegan2(options.toy, peak)
        else:
            found = globals()[f"measure_{part}"](options.toy)
        if part == "peak":
            peak = found[0]["gflops"]
        for each in found:
            print(json.dumps(each), flush=True)
        results += [{"part": part, **each, "machine": about} for each in found]
    print("\n" + table(results))
    out = options.out or (None if options.toy else RESULTS)
    if out is not None:
        kept = []
        if out.exists():
            kept = [each for each in json.loads(out.read_text())["results"] if each["part"] not in options.parts]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"results": kept + results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
