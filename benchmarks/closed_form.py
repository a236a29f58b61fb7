"""What the methods that need no training cost, and how exact they are, beside the published ways.

    python -m benchmarks.closed_form                      # all parts
    python -m benchmarks.closed_form --parts w sefa       # some
    python -m benchmarks.closed_form --without-slow       # leaves out what takes minutes (IncrementalPCA on features)

Each way runs on one thread, the larger ones in a process of their own: CPU seconds are what compares on a machine that
others use too. Memory is the peak above the data. Ours run as a user runs them, `GANSpace().fit(generator)`, on a
generator whose samples are rows of the stored data. The data are made, not drawn from a network: 200,000 x 512 numbers
like w (leaky ReLU of a Gaussian with a power-law spectrum) and 10,000 x 32,768 like a layer's features (rank 400 and
noise).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._machine import machine

MODULE = "benchmarks.closed_form"
RESULTS = Path(__file__).parent / "results" / "closed_form.json"
PARTS = ("w", "regression", "features", "linear", "sefa")
K = 80
STYLEGAN2_1024 = {
    **{f"b{r}.conv{i}": c for r, cs in {
        4: (None, 512), 8: (512, 512), 16: (512, 512), 32: (512, 512), 64: (512, 512),
        128: (512, 256), 256: (256, 128), 512: (128, 64), 1024: (64, 32),
    }.items() for i, c in enumerate(cs) if c},
    "b1024.torgb": 32,
}  # fmt: skip
"""Layer -> channels that its affine map gives, of a 1024 px StyleGAN2 (config F), with the ToRGB that SeFa takes."""


# --- the ways: each takes data and returns what it found --------------------------------------------------------------


def ours_w(rows: np.ndarray) -> dict[str, Any]:
    """Run GANSpace on w."""
    from eigenlens.methods.ganspace import GANSpace

    found = GANSpace(n_directions=K, n_samples=len(rows)).fit(_stored(w=rows))
    return {"basis": found.vectors[:, 0].numpy(), "stdev": found.sigma.numpy()}


def incremental(rows: np.ndarray, batch: int) -> dict[str, Any]:
    """Run scikit-learn's IncrementalPCA as GANSpace does: whiten=False, batch rows a partial_fit."""
    from sklearn.decomposition import IncrementalPCA

    model = IncrementalPCA(K, whiten=False, batch_size=batch)
    for start in range(0, len(rows), batch):
        model.partial_fit(rows[start : start + batch])
    return {"basis": model.components_, "stdev": np.sqrt(model.explained_variance_)}


def exact_w(rows: np.ndarray) -> dict[str, Any]:
    """Run NumPy's SVD in float64."""
    wide = rows.astype(np.float64)
    wide -= wide.mean(0)
    _, singular, right = np.linalg.svd(wide, full_matrices=False)
    return {"basis": right[:K], "stdev": singular[:K] / np.sqrt(len(rows) - 1)}


def ours_features(rows: np.ndarray) -> dict[str, Any]:
    """Run the block iteration of GANSpace over a file, with the regression."""
    from eigenlens.methods import ganspace

    generator = _stored(features=rows)
    source = ganspace._Source(generator, generator.space("z"), "first", None, None, 0)
    found = ganspace._blocks(source, len(rows), K, 0, "disk", None)
    return {"basis": found.basis.numpy(), "stdev": found.stdev.numpy()}


def exact_features(rows: np.ndarray) -> dict[str, Any]:
    """Decompose the centred Gram matrix by block iteration until it stands, and carry it back."""
    shift = rows.mean(0)
    gram = np.zeros((len(rows), len(rows)), np.float64)
    for start in range(0, rows.shape[1], 2048):
        some = rows[:, start : start + 2048] - shift[start : start + 2048]
        gram += some @ some.T
    block = np.linalg.qr(np.random.default_rng(0).standard_normal((len(rows), 200)))[0]
    for _ in range(25):
        block = np.linalg.qr(gram @ block)[0]
    values, frame = np.linalg.eigh(block.T @ gram @ block)
    order = np.argsort(-values)[:K]
    left = (block @ frame[:, order]).astype(np.float32)
    basis = left.T @ rows - np.outer(left.sum(0), shift)
    basis = basis.astype(np.float64) / np.linalg.norm(basis, axis=1, keepdims=True)
    return {"basis": basis, "stdev": np.sqrt(values[order] / (len(rows) - 1))}


def ours_regression(rows: np.ndarray) -> dict[str, Any]:
    """Regress w on whitened components from moments, as GANSpace does in the same pass."""
    import torch

    from eigenlens.methods.linalg import Moments

    scores, latents = rows[:, :K], rows[:, K:]
    moments = Moments(K, latents.shape[1])
    for start in range(0, len(rows), 8192):
        moments.add(torch.from_numpy(scores[start : start + 8192]), torch.from_numpy(latents[start : start + 8192]))
    solved = torch.linalg.solve(moments.covariance(), moments.cross_covariance()).numpy()
    return {"basis": solved / np.linalg.norm(solved, axis=1, keepdims=True), "stdev": np.ones(K)}


def authors_regression(rows: np.ndarray) -> dict[str, Any]:
    """Solve the same least squares with scipy.linalg.lstsq, driver gelsd, as GANSpace does."""
    from scipy.linalg import lstsq

    scores, latents = rows[:, :K] - rows[:, :K].mean(0), rows[:, K:] - rows[:, K:].mean(0)
    solved = lstsq(scores, latents, lapack_driver="gelsd")[0]
    return {"basis": solved / np.linalg.norm(solved, axis=1, keepdims=True), "stdev": np.ones(K)}


# --- generators that hold the data ------------------------------------------------------------------------------------


def _stored(**data: np.ndarray) -> Any:
    """Make a generator whose samples of w, or whose features, are the rows of an array."""
    import torch

    from eigenlens.codes import Codes, Space
    from eigenlens.generator import Generator, Layer

    (kind, rows), = data.items()  # fmt: skip

    class Stored(Generator):
        family = "stored"

        def sample(self, n: int, *, start: int = 0, space: str | None = None, **_: Any) -> Codes:
            if kind == "w":
                return Codes(self.spaces["w"], torch.from_numpy(rows[start : start + n])[:, None])
            numbers = torch.arange(start, start + n, dtype=torch.float32)
            latent = torch.cos(numbers[:, None] * torch.arange(1, 129) ** 1.5)[:, None]
            latent[:, 0, 0] = numbers
            return Codes(self.spaces["z"], latent)

        def features(self, codes: Codes, layer: str) -> torch.Tensor:
            first = int(codes.latent[0, 0, 0])
            return torch.from_numpy(rows[first : first + len(codes)])

    spaces = {"z": Space("z", 1, 128)}
    if kind == "w":
        spaces["w"] = Space("w", 1, rows.shape[1], law="mapped from z")
    return Stored(
        torch.nn.Module(), name="stored", spaces=spaces, layers=[Layer("first", 1, 1)], resolution=64,
        default_space=kind if kind == "w" else "z",
    )  # fmt: skip


def stylegan2_matrices(seed: int = 0) -> Any:
    """Make a generator whose style matrices have the shapes of a 1024 px StyleGAN2 and random entries."""
    import torch

    from eigenlens.codes import Part, Space
    from eigenlens.generator import Generator, Layer, StyleMatrix

    parts = tuple(Part(f"slot{i}", i, i, 0, 512, ()) for i in range(len(STYLEGAN2_1024)))
    chance = torch.Generator().manual_seed(seed)
    matrices = {
        name: StyleMatrix(torch.randn(channels, 512, generator=chance), parts[i])
        for i, (name, channels) in enumerate(STYLEGAN2_1024.items())
    }

    class Matrices(Generator):
        family = "stored"

        def style_matrices(self, layers: str = "all") -> dict[str, StyleMatrix]:
            return {name: matrix for name, matrix in matrices.items() if matrix.part in self.style_space.picked(layers)}

    w = Space("w", 1, 512)
    wide = Space("w+", len(parts), 512, parts, broadcast_of="w")
    return Matrices(
        torch.nn.Module(), name="stylegan2-1024", spaces={"w": w, "w+": wide}, layers=[Layer("first", 4, 512)],
        resolution=1024, default_space="w+",
    )  # fmt: skip


# --- data -------------------------------------------------------------------------------------------------------------


def make_w(n: int) -> np.ndarray:
    """Make rows like w: a leaky ReLU of a Gaussian with a power-law spectrum, turned."""
    chance = np.random.default_rng(1)
    spectrum = (np.arange(1, 513) ** -0.6).astype(np.float32)
    first, second = (np.linalg.qr(chance.standard_normal((512, 512)))[0].astype(np.float32) for _ in range(2))
    rows = np.empty((n, 512), np.float32)
    for start in range(0, n, 20_000):
        drawn = chance.standard_normal((min(20_000, n - start), 512), dtype=np.float32) @ (first * spectrum[:, None])
        rows[start : start + len(drawn)] = np.where(drawn > 0, drawn, 0.2 * drawn) @ (second * spectrum[:, None] * 4)
    return rows


def make_features(n: int) -> np.ndarray:
    """Make rows like features: rank 400 with a power-law spectrum, and noise."""
    chance = np.random.default_rng(2)
    spectrum = (np.arange(1, 401) ** -0.5).astype(np.float32)
    basis = chance.standard_normal((400, 32_768), dtype=np.float32) / np.sqrt(np.float32(32_768))
    rows = np.empty((n, 32_768), np.float32)
    for start in range(0, n, 1000):
        size = min(1000, n - start)
        rows[start : start + size] = (chance.standard_normal((size, 400), dtype=np.float32) * spectrum) @ basis
        rows[start : start + size] += 0.0005 * chance.standard_normal((size, 32_768), dtype=np.float32) + 0.01
    return rows


def make_regression(n: int) -> np.ndarray:
    """Make 80 scores and 512 latents that depend on them."""
    chance = np.random.default_rng(3)
    scores = chance.standard_normal((n, K), dtype=np.float32)
    latents = scores @ chance.standard_normal((K, 512), dtype=np.float32)
    return np.concatenate([scores, latents + 5 * chance.standard_normal((n, 512), dtype=np.float32)], axis=1)


# --- measuring --------------------------------------------------------------------------------------------------------

WAYS: dict[str, tuple[Callable[[int], np.ndarray], int, dict[str, Callable[[np.ndarray], dict[str, Any]]]]] = {
    "w": (make_w, 200_000, {
        "numpy SVD, float64": exact_w,
        "eigenlens: moments in one pass": ours_w,
        "IncrementalPCA, batch 2000": lambda rows: incremental(rows, 2000),
        "IncrementalPCA, batch 10000": lambda rows: incremental(rows, 10_000),
    }),
    "regression": (make_regression, 300_000, {
        "scipy lstsq, gelsd": authors_regression,
        "eigenlens: cross-moments": ours_regression,
    }),
    "features": (make_features, 10_000, {
        "Gram matrix, 25 block iterations": exact_features,
        "eigenlens: Krylov blocks, 3 readings": ours_features,
        "IncrementalPCA, batch 2000": lambda rows: incremental(rows, 2000),
    }),
}  # fmt: skip
"""Part -> how its data are made, how many rows, and the ways, the reference first."""
SLOW = {("features", "IncrementalPCA, batch 2000")}


def memory(key: str) -> float:
    """Return a figure of this process's memory in MiB: VmRSS, or VmHWM, its peak."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


def run_one(part: str, way: str, data: str, answer: str) -> None:
    """Run one way in this process; write what it found, and print what it cost."""
    import torch

    torch.set_num_threads(1)
    rows = np.load(data)
    function = WAYS[part][2][way]
    if way.startswith("eigenlens"):
        _import_all()
    small = rows[:400].copy() if part != "features" else None
    if small is not None and not way.startswith("numpy"):
        torch.linalg.eigh(torch.eye(8))  # libraries load before the clock starts
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    found = function(rows)
    cost = {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "extra_mib": memory("VmHWM") - before,
        "data_mib": rows.nbytes / 2**20,
    }
    np.savez(answer, **found)
    print(json.dumps(cost))


def _import_all() -> None:
    import eigenlens.methods.ganspace
    import eigenlens.methods.linalg  # noqa: F401


def angles(found: dict[str, np.ndarray], truth: dict[str, np.ndarray], top: int) -> tuple[float, float]:
    """Return the largest principal angle of the first `top`, and the largest between single ones, in degrees."""
    ours, theirs = (np.linalg.qr(each["basis"][:top].astype(np.float64).T)[0] for each in (found, truth))
    inside = ours.T @ theirs
    span = np.arcsin(min(1.0, np.linalg.norm(theirs - ours @ inside, 2)))
    each = [found["basis"][i].astype(np.float64) for i in range(top)]
    single = 0.0
    for i, vector in enumerate(each):
        unit, other = vector / np.linalg.norm(vector), truth["basis"][i].astype(np.float64)
        other = other / np.linalg.norm(other)
        rest = unit - (unit @ other) * other
        single = max(single, np.arcsin(min(1.0, float(np.linalg.norm(rest)))))
    return float(np.degrees(span)), float(np.degrees(single))


def measure_part(part: str, folder: Path, *, without_slow: bool) -> list[dict[str, Any]]:
    """Run every way of a part on the same data."""
    make, n, ways = WAYS[part]
    data = folder / f"{part}.npy"
    np.save(data, make(n))
    results: list[dict[str, Any]] = []
    truth: dict[str, np.ndarray] = {}
    for way in ways:
        if without_slow and (part, way) in SLOW:
            continue
        answer = folder / "answer.npz"
        command = [sys.executable, "-m", MODULE, "--one", part, way, str(data), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)
        if done.returncode:
            raise RuntimeError(f"{part}, {way}: {done.stderr}")
        found = dict(np.load(answer))
        truth = truth or found
        span20, single20 = angles(found, truth, 20)
        span80, _ = angles(found, truth, K)
        stdev = float(np.abs(found["stdev"] / truth["stdev"] - 1).max())
        row = {"part": part, "way": way, **json.loads(done.stdout)}
        row |= {"span20_deg": span20, "component20_deg": single20, "span80_deg": span80, "stdev_error": stdev}
        results.append(row)
        print(
            f"{part:10} {way:38} {row['cpu_s']:8.2f} CPU s ({row['wall_s']:7.1f} wall) {row['extra_mib']:7.0f} MiB  "
            f"span20 {span20:.1e}°  each20 {single20:.1e}°  span80 {span80:.1e}°  stdev {stdev:.0e}",
            flush=True,
        )
    data.unlink()
    return results


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def best(function: Callable[[], Any], times: int = 7) -> tuple[float, float]:
    """Return the least CPU and wall seconds of several runs, after one that loads."""
    if times > 1:
        function()  # the first run loads libraries
    costs = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        costs.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(cpu for cpu, _ in costs), min(wall for _, wall in costs)


def measure_sefa() -> list[dict[str, Any]]:
    """Time SeFa on all layers of a 1024 px StyleGAN2, without and with `agreement`, and the authors' eig."""
    from eigenlens.methods.sefa import SeFa

    generator = stylegan2_matrices()
    stacked = np.concatenate([m.weight.numpy() for m in generator.style_matrices().values()]).T  # [512, channels]

    def authors() -> np.ndarray:
        weight = stacked / np.linalg.norm(stacked, axis=0, keepdims=True)
        return np.linalg.eig(weight @ weight.T)[1]

    ways = {
        "eigenlens": lambda: SeFa(agreement_draws=0).fit(generator),
        "eigenlens, with agreement": lambda: SeFa().fit(generator),
        "authors' normalise and eig": authors,
    }
    return [_timed("sefa", way, function) for way, function in ways.items()]


def measure_linear() -> list[dict[str, Any]]:
    """Time GANSpace's closed form on a linear layer 128 -> 4096, beside IncrementalPCA and regression on 20,000."""
    import torch

    from eigenlens.methods import ganspace

    chance = torch.Generator().manual_seed(0)
    matrix = torch.randn(4096, 128, generator=chance) * torch.linspace(2, 1, 128)
    generator = _stored(features=np.zeros((1, 4096), np.float32))
    source = ganspace._Source(generator, generator.space("z"), "first", None, None, 0)

    def sampled() -> None:
        from scipy.linalg import lstsq

        z = np.random.default_rng(0).standard_normal((20_000, 128), dtype=np.float32)
        rows = z @ matrix.numpy().T
        found = incremental(rows, 2000)
        scores = (rows - rows.mean(0)) @ found["basis"].T / found["stdev"]
        lstsq(scores, z, lapack_driver="gelsd")

    rows = [_timed("linear", "eigenlens: closed form", lambda: ganspace._from_matrix(matrix, source, K))]
    return [*rows, _timed("linear", "IncrementalPCA and regression, 20,000 samples", sampled, times=1)]


def _timed(part: str, way: str, function: Callable[[], Any], times: int = 7) -> dict[str, Any]:
    cpu, wall = best(function, times)
    print(f"{part:10} {way:46} {cpu * 1e3:9.1f} CPU ms ({wall * 1e3:9.1f} wall)", flush=True)
    return {"part": part, "way": way, "cpu_s": cpu, "wall_s": wall}


def main() -> None:
    """Measure the chosen parts, print them, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--without-slow", action="store_true", help="leave out what takes minutes")
    parser.add_argument("--threads", type=int, default=1, help="threads of the parts that are timed in this process")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(*options.one)
        return
    if "OPENBLAS_NUM_THREADS" not in os.environ:  # BLAS reads it when it loads, so start anew with it
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.closed_form", *sys.argv[1:]], os.environ | ONE_THREAD
        )
    about = machine("numpy", "scipy", "scikit-learn")
    print(json.dumps(about), flush=True)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            if part in WAYS:
                results += measure_part(part, Path(folder), without_slow=options.without_slow)
            else:
                import torch

                torch.set_num_threads(options.threads)
                results += measure_sefa() if part == "sefa" else measure_linear()
            write(options.out, about, results)


def write(path: Path, about: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Write the results, keeping those of parts and ways that did not run this time."""
    measured = {row["part"]: {each["way"] for each in results if each["part"] == row["part"]} for row in results}
    kept = []
    if path.exists():
        for row in json.loads(path.read_text())["results"]:
            part, way = row["part"], row["way"]
            if part not in measured or ((part, way) in SLOW and way not in measured[part]):
                kept.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row | {"machine": about} for row in results]
    path.write_text(json.dumps({"results": kept + rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
