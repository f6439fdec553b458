"""The published PyTorch networks, written out for comparison, with random weights and running statistics."""

import math

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=(size - 1) // 2, bias=False)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def shortcut(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """torchvision's names: conv1, bn1, layer1.0.conv1, layer2.0.downsample.0, fc."""

    def __init__(self, block, stages, num_classes):
        super().__init__()
        self.large = block is Bottleneck
        width = inputs = 64 if self.large else 16
        self.conv1 = conv(3, width, *((7, 2) if self.large else (3, 1)))
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(stages)
        for stage, count in enumerate(stages):
            blocks = []
            for number in range(count):
                blocks.append(block(inputs, width << stage, 2 if stage > 0 and number == 0 else 1))
                inputs = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        if self.large:
            x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3)
        self.convShortcut = None if inputs == width else conv(inputs, width, 1, stride)

    def forward(self, x):
        active = self.bn1(x).relu()
        y = self.conv2(self.bn2(self.conv1(active)).relu())
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, count, inputs, width, stride):
        super().__init__()
        blocks = [WideBlock(width if i else inputs, width, 1 if i else stride) for i in range(count)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class Wide(nn.Module):
    def __init__(self, depth, widen, num_classes):
        super().__init__()
        count, widths = (depth - 4) // 6, [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = conv(3, 16, 3)
        self.block1 = WideStage(count, 16, widths[0], 1)
        self.block2 = WideStage(count, widths[0], widths[1], 2)
        self.block3 = WideStage(count, widths[1], widths[2], 2)
        self.bn1, self.fc = nn.BatchNorm2d(widths[2]), nn.Linear(widths[2], num_classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.bn1(x).relu().mean((2, 3)))


class NormReluConv(nn.Module):
    def __init__(self, inputs, outputs, size):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), conv(inputs, outputs, size)

    def forward(self, x):
        return self.conv(self.norm(x).relu())


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.brc_1, self.brc_2 = NormReluConv(inputs, 4 * growth, 1), NormReluConv(4 * growth, growth, 3)

    def forward(self, x):
        return torch.cat([x, self.brc_2(self.brc_1(x))], 1)


class Dense(nn.Module):
    def __init__(self, num_classes, growth=12):
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", conv(3, 2 * growth, 3))
        channels = 2 * growth
        for stage in (1, 2, 3):
            block = nn.Sequential()
            for number in range(6):
                block.add_module(f"layer{number + 1}", DenseLayer(channels, growth))
                channels += growth
            self.features.add_module(f"block{stage}", block)
            if stage < 3:
                self.features.add_module(f"trans{stage}", nn.AvgPool2d(2, 2))
        self.features.add_module("norm_last", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).relu().mean((2, 3)))


class LeNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, num_classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2, 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2, 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())


def make(name, num_classes=10, seed=0):
    """A network in evaluation mode, every number in it random."""
    torch.manual_seed(seed)
    if name == "resnet50":
        net = Residual(Bottleneck, (3, 4, 6, 3), num_classes)
    elif name.startswith("cifar-resnet"):
        net = Residual(Basic, ((int(name[12:]) - 2) // 6,) * 3, num_classes)
    elif name.startswith("wide-resnet"):
        net = Wide(*map(int, name[11:].split("-")), num_classes)
    else:
        net = {"cifar-densenet40": Dense, "lenet": LeNet}[name](num_classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
            module.num_batches_tracked.fill_(1234)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, math.sqrt(1.0 / module.weight[0].numel()))
    return net.eval()
