"""What a user pays for ``import jaxsmooth``: jax, NumPy and SciPy, and none of the heavier libraries."""

import importlib.util
import json
import subprocess
import sys

HEAVY = {
    "flax",
    "grain",
    "importlib_resources",
    "matplotlib",
    "optax",
    "orbax",
    "pandas",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "tqdm",
    "tyro",
}
TOWER = ["norms", "radius", "confidence", "noise", "sampling", "certification", "stopping", "devices"]


def loaded_after(statement):
    """Top-level modules of a fresh interpreter that has run ``statement``."""
    program = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_package_and_the_tower_load_nothing_heavy():
    modules = ["jaxsmooth"] + [
        f"jaxsmooth.{name}" for name in TOWER if importlib.util.find_spec(f"jaxsmooth.{name}")
    ]
    loaded = loaded_after(f"import {', '.join(modules)}")
    assert "jaxsmooth" in loaded
    assert not loaded & HEAVY


def test_the_measure_sees_what_is_loaded():
    assert "optax" in loaded_after("import jaxsmooth, optax")
