"Training on a CPU against the usual loop with a DataLoader: samples a second, in one process on one thread."
import copy
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from timing import interleaved, keep, ratios, table
from torch.utils.data import DataLoader, Dataset

from smoothinterp.data import CIFAR10, to_pixels, torchvision_datasets
from smoothinterp.models import build
from smoothinterp.stack import Engine
from smoothinterp.train import Recipe, epoch_order, in_memory

N, BATCH, GOAL = 1024, 128, {4: 2.0, 8: 1.8, 16: 1.4, 32: 1.15}
RECIPE = Recipe(warmup_epochs=0)


class Images(Dataset):
    "CIFAR-10 as torchvision serves it: a PIL image, ToTensor, Normalize."
    def __init__(self, images, labels):
        torchvision_datasets()
        from torchvision.transforms import Compose, Normalize, ToTensor
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform = Compose([ToTensor(), Normalize(CIFAR10.mean, CIFAR10.std)])

    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def loader_epoch(model, optimizer, loader):
    total = 0
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
    return total / N


def sgd(model): return torch.optim.SGD(model.parameters(), lr=RECIPE.lr, momentum=RECIPE.momentum)


def check(make, images, labels):
    "Both loops compute the same losses in double precision."
    order = epoch_order(N, 0, 1)
    ours, theirs = make().double(), make().double()
    x = CIFAR10(images.double() / 255)
    loader = DataLoader([(x[i], labels[i]) for i in order], BATCH)
    a, = Engine([ours], [in_memory(x)], [labels], RECIPE, [0]).epoch(1)
    b = loader_epoch(theirs, sgd(theirs), loader)
    assert abs(a - b) < 1e-10, (a, b)
    return abs(a - b)


def bench(width):
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randint(256, (N, 3, 32, 32), generator=g,
                                   dtype=torch.uint8), torch.randint(10, (N,), generator=g)
    net = build('convnet-a', width)
    error = check(lambda: copy.deepcopy(net), images[:N], labels) if width <= 8 else float('nan')
    theirs, ours = copy.deepcopy(net), copy.deepcopy(net).to(memory_format=torch.channels_last)
    x, loader = in_memory(CIFAR10(to_pixels(images))), DataLoader(Images(images, labels), BATCH, shuffle=True)
    optimizer, engine = sgd(theirs), Engine([ours], [x], [labels], RECIPE, [0])
    seconds = interleaved({'loader': lambda: loader_epoch(theirs, optimizer, loader),
                           'ours': lambda: engine.epoch(1),
                           'forward': lambda: [ours(part).sum().item() for part in x.split(BATCH)]}, 5)
    flop = 2 * (27_648 * width + 55_296 * width**2 + 80 * width)
    row = {'w': float(width), 'loader, samples/s': N / median(seconds['loader']),
           'ours, samples/s': N / median(seconds['ours']),
           'ratio': ratios(seconds, 'loader', 'ours'), 'goal': GOAL[width],
           'GFLOP/s': 3 * flop * N / median(seconds['ours']) / 1e9,
           'of forward': ratios(seconds, 'forward', 'ours') * 3, 'loss differs': error}
    keep('training', 'against a DataLoader loop', width, row['ratio'], f'>= {GOAL[width]} x')
    keep('training', 'share of the forward GFLOP/s', width, row['of forward'], '>= 0.7 of it')
    return row


if __name__ == '__main__':
    table('Training, ConvNet A, 3 x 32 x 32, batch 128, one thread', [bench(width) for width in GOAL])
