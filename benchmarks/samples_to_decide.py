"""How many samples does it take to decide "is the radius at least r"?

Simulates several procedures on the radii of published certification logs (Cohen et al. 2019,
``idx label predict radius correct time``, tab-separated): class A of an image has probability Phi(R/sigma),
0.45 where the log abstains, and 0.99999 where R is the largest radius that 100,000 samples can give. Prints the
mean number of samples and the fraction certified.

    python benchmarks/samples_to_decide.py 0.25=LOG_AT_SIGMA_0.25.tsv 0.50=LOG_AT_SIGMA_0.50.tsv
"""

import argparse
import csv
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import scipy
from scipy import special

sys.path.insert(0, str(Path(__file__).resolve().parent))
import literature

from jaxsmooth import stopping

PROCEDURES = ("fixed", "staged", "union bound", "betting", "group-sequential")
RADII_PER_SIGMA = (1.0, 2.0, 3.0)  # the questions: r = sigma, 2 sigma, 3 sigma
_CHUNK = 512  # samples per step of the simulation


def read_probabilities(path: Path, sigma: float) -> np.ndarray:
    """The probability of class A of every image of a log."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    radius = np.array([float(row["radius"]) for row in rows])
    abstained = np.array([int(row["predict"]) == -1 for row in rows])
    p = special.ndtr(radius / sigma)
    return np.where(abstained, 0.45, np.where(radius >= 3.81 * sigma, 0.99999, p))


def boundaries_of(plan: stopping.StoppingPlan) -> literature.Boundaries:
    """A plan's boundaries, spread over every number of samples; the last look always decides."""
    certify_at = np.full(plan.num_samples + 1, 2 * plan.num_samples)
    give_up_at = np.full(plan.num_samples + 1, -1)
    certify_at[plan.looks], give_up_at[plan.looks] = plan.certify_at, plan.give_up_at
    give_up_at[plan.looks[-1]] = plan.certify_at[-1] - 1
    return literature.Boundaries(certify_at, give_up_at)


def simulate(
    rng: np.random.Generator, p: np.ndarray, boundaries: literature.Boundaries
) -> tuple[np.ndarray, np.ndarray]:
    """Runs a sequential procedure, sample by sample, once for every entry of p: certified, samples used."""
    num_samples = boundaries.certify_at.size - 1
    certified = np.zeros(p.size, bool)
    samples = np.full(p.size, num_samples)
    counts = np.zeros(p.size, np.int32)
    active = np.arange(p.size)
    start = 0
    while active.size and start < num_samples:
        size = min(_CHUNK, num_samples - start)
        successes = rng.random((active.size, size), np.float32) < p[active, None].astype(np.float32)
        path = counts[active, None] + np.cumsum(successes, axis=1, dtype=np.int32)
        n = np.arange(start + 1, start + size + 1)
        up = path >= boundaries.certify_at[n]
        stop = up | (path <= boundaries.give_up_at[n])
        first, stopped = np.argmax(stop, axis=1), np.any(stop, axis=1)
        samples[active[stopped]] = n[first[stopped]]
        certified[active[stopped]] = up[stopped, first[stopped]]
        counts[active] = path[:, -1]
        active = active[~stopped]
        start += size
    return certified, samples


def run_procedure(
    name: str, rng: np.random.Generator, p: np.ndarray, p0: float, alpha: float, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Certified and samples used, one entry per entry of p."""
    if name == "fixed":
        boundary = literature.fixed_boundary(p0, alpha, num_samples)
        return rng.binomial(num_samples, p) >= boundary, np.full(p.shape, num_samples)
    if name == "staged":
        return literature.staged(
            rng, p, p0, alpha, stages=(num_samples // 100, num_samples // 10, num_samples)
        )
    if name == "group-sequential":
        plan = stopping.stopping_plan(
            float(special.ndtri(p0)), sigma=1.0, alpha=alpha, num_samples=num_samples
        )
        return simulate(rng, p, boundaries_of(plan))
    design = literature.union_bound if name == "union bound" else literature.betting
    return simulate(rng, p, design(p0, alpha, num_samples))


def measure(p: np.ndarray, sigma: float, ratio: float, options: argparse.Namespace) -> dict:
    """One row of the table."""
    p0 = float(special.ndtr(ratio))
    runs = np.tile(p, options.runs)
    row: dict = {"sigma": sigma, "radius": ratio * sigma, "images": p.size, "runs_per_image": options.runs}
    for name in PROCEDURES:
        rng = np.random.default_rng([options.seed, int(1000 * sigma), int(1000 * ratio)])
        certified, samples = run_procedure(name, rng, runs, p0, options.alpha, options.num_samples)
        row[name] = {
            "mean_samples": float(samples.mean()),
            "standard_error": float(samples.std() / np.sqrt(samples.size)),
            "certified": float(certified.mean()),
        }
    # Without simulation noise: exact operating characteristics of the plan at every distinct p.
    start = time.perf_counter()
    plan = stopping.stopping_plan(
        ratio * sigma, sigma=sigma, alpha=options.alpha, num_samples=options.num_samples
    )
    setup = time.perf_counter() - start
    values, inverse = np.unique(p, return_inverse=True)
    exact = stopping.operating_characteristics(plan, values)
    boundary = literature.fixed_boundary(p0, options.alpha, options.num_samples)
    fixed = special.betainc(boundary, options.num_samples - boundary + 1, p)
    row["exact"] = {
        "mean_samples": float(exact.mean_samples[inverse].mean()),
        "certified": float(exact.certified[inverse].mean()),
        "certified_fixed": float(fixed.mean()),
        "error": plan.error,
        "setup_seconds": setup,
    }
    row["wald_lower_bound"] = float(literature.wald_lower_bound(p, p0, options.num_samples).mean())
    return row


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| sigma, r | fixed n | CertifyAdp (Horvath 2022) | union bound (Voracek 2024) | betting, KT | "
        "group-sequential | the same, exactly | Wald-type bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['sigma']:g}, {row['radius']:g}", f"{row['fixed']['certified']:.4f}"]
        cells += [
            f"{row[name]['mean_samples']:.0f} / {row[name]['certified']:.4f}" for name in PROCEDURES[1:]
        ]
        exact = row["exact"]
        cells += [
            f"{exact['mean_samples']:.0f} / {exact['certified']:.4f} (fixed n: {exact['certified_fixed']:.4f})"
        ]
        cells += [f"{row['wald_lower_bound']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Reads the arguments, simulates, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", metavar="SIGMA=LOG", help="a log and the sigma of its noise")
    parser.add_argument("--num-samples", type=int, default=100_000)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--runs", type=int, default=2, help="simulated runs per image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()

    start = time.perf_counter()
    rows = []
    for log in options.logs:
        sigma_text, _, path = log.partition("=")
        p = read_probabilities(Path(path), float(sigma_text))
        rows += [measure(p, float(sigma_text), ratio, options) for ratio in RADII_PER_SIGMA]
    print(table(rows))
    if options.json:
        record = {
            "command": f"python benchmarks/samples_to_decide.py --num-samples {options.num_samples} "
            f"--alpha {options.alpha:g} --runs {options.runs} --seed {options.seed}",
            "logs": [Path(log.partition("=")[2]).name for log in options.logs],
            "machine": {
                "system": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
            },
            "versions": {
                "jaxsmooth": metadata.version("jaxsmooth"),
                "python": platform.python_version(),
                "numpy": np.__version__,
                "scipy": scipy.__version__,
            },
            "seconds": time.perf_counter() - start,
            "rows": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
