"""``jaxsmooth demo``: the whole way on handwritten digits."""

import dataclasses
from pathlib import Path

from jaxsmooth import validation
from jaxsmooth.cli import certify, report, train


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train a small network on handwritten digits with noise, certify test images, report.

    Takes about half a minute on two cores and downloads nothing. Starting it again uses what is there.
    """

    out: Path = Path("jaxsmooth-demo")
    """Folder to write: new, empty, or one of an earlier demo."""


def run(options: Demo) -> None:
    """Runs train, certify and report one after the other."""
    out = options.out
    known = {"checkpoint", "results", "curve.png"}
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - known):
        raise validation.InputError(f"out must be a new folder or one of an earlier demo, got {out}")
    checkpoint, results, curve = out / "checkpoint", out / "results", out / "curve.png"
    print(
        "1/3  training on 1,297 scanned digits with Gaussian noise, sigma 0.25 (pixels in [0, 1])", flush=True
    )
    train.run(train.Train(out=checkpoint))
    print("\n2/3  certifying 250 test images, 10,000 noised copies each, at alpha 0.001", flush=True)
    certify.run(certify.Certify(checkpoint=checkpoint, out=results, num_samples=10_000, skip=2))
    print("\n3/3  certified accuracy: the share of images that are classified correctly and provably stay so")
    print("     under any change of l2 length up to the radius\n", flush=True)
    new_curve = not curve.exists()
    report.run(report.Report(paths=(str(results),), plot=str(curve) if new_curve else None))
    print(
        f"\nwhere things are: the network in {checkpoint}, the certificates in {results}, the curve in {curve}\n"
        "what to try next:\n"
        f"  jaxsmooth report {results} --bound one-sided      the same counts with the bound of the papers\n"
        f"  jaxsmooth certify --checkpoint {checkpoint} --out {results}-all --num-samples 10000\n"
        f"  jaxsmooth predict --checkpoint {checkpoint} --max 20\n"
        "  jaxsmooth --help"
    )
