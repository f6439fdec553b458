"""ResNet-50 with random weights and a class for every folder of an ImageNet sample, to see what a sweep costs.

    cd experiments/imagenet-cohen
    jaxsmooth certify --model untrained:resnet50 --data folder:SAMPLE,resize=256,crop=224 --sigma 0.25 --out OUT

SAMPLE has a folder of photographs per class below ``val``, NUM_CLASSES of them.
"""

from flax import nnx

from jaxsmooth.data import statistics
from jaxsmooth.models import registry

NUM_CLASSES = 63


def resnet50() -> nnx.Module:
    """For ``--model``."""
    mean, sd = statistics.IMAGENET
    return registry.build(registry.ModelSpec("resnet50", NUM_CLASSES, (224, 224, 3), mean, sd))
