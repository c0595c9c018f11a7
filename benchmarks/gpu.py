"Training on a GPU: samples a second eagerly, as CUDA graphs in TF32 and bf16, and several networks at once; skipped without one."
import sys
import time
from dataclasses import replace
from statistics import median

import torch
from timing import table

from smoothinterp.engine import Engine, fast_cuda, gpu_group
from smoothinterp.models import build
from smoothinterp.study import WIDTHS20
from smoothinterp.train import Recipe, epoch_order, in_memory, train_epoch

N, BATCH, REPEATS = 12_800, 128, 5
WIDTHS = 4, 8, 16, 64

RECIPE = Recipe(warmup_epochs=0)


def data():
    g = torch.Generator().manual_seed(0)
    return in_memory(torch.randn(N, 3, 32, 32, generator=g)).cuda(), torch.randint(10, (N,), generator=g).cuda()


def networks(width, n): return [build('convnet-a', width, seed=s).cuda().to(memory_format=torch.channels_last) for s in range(n)]


def eager(width, x, y):
    net, = networks(width, 1)
    sgd = torch.optim.SGD(net.parameters(), lr=RECIPE.lr, momentum=RECIPE.momentum)
    def epoch(e):
        with fast_cuda('tf32'): return [train_epoch(net, sgd, x, y, epoch_order(N, 0, e).cuda(), BATCH)]
    return epoch


def graph(width, x, y, n, precision):
    return Engine(networks(width, n), [x] * n, [y] * n, replace(RECIPE, precision=precision), list(range(n)), stack=True).epoch


def timed(epochs):
    "Name to median seconds of an epoch, interleaved; the first epochs have to agree."
    first = {name: epoch(1)[0] for name, (epoch, _) in epochs.items()}
    assert max(abs(loss - first['eager']) for loss in first.values()) < 1e-2, first
    seconds = {name: [] for name in epochs}
    for e in range(2, 2 + REPEATS):
        for name, (epoch, _) in epochs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            epoch(e)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(s) for name, s in seconds.items()}


def bench(width, x, y):
    "Samples a second of all networks together, by name."
    n = gpu_group(width)
    epochs = {'eager': (eager(width, x, y), 1), 'tf32': (graph(width, x, y, 1, 'tf32'), 1), 'bf16': (graph(width, x, y, 1, 'bf16'), 1)}
    if n > 1: epochs |= {f'{p}, grouped': (graph(width, x, y, n, p), n) for p in ('tf32', 'bf16')}
    return {name: epochs[name][1] * N / s for name, s in timed(epochs).items()}


def study_minutes(speeds: list[dict], name: str) -> float:
    "Minutes of 20 widths for 536 epochs of 50,000 images, by a parabola in the width through what was measured."
    w = torch.tensor(WIDTHS, dtype=torch.double)
    best = torch.tensor([1 / max(s.get(name, 0), s.get(f'{name}, grouped', 0)) for s in speeds], dtype=torch.double)
    a = torch.linalg.lstsq(w[:, None]**torch.arange(3), best[:, None]).solution[:, 0]
    return sum(float(a @ torch.tensor([1., v, v * v], dtype=torch.double)) for v in WIDTHS20) * 536 * 50_000 / 60


if __name__ == '__main__':
    if not torch.cuda.is_available(): sys.exit(print('no GPU: skipped'))
    x, y = data()
    speeds = [bench(width, x, y) for width in WIDTHS]
    table(f'Samples/s, ConvNet A, 3 x 32 x 32, batch {BATCH}, {torch.cuda.get_device_name()}',
          [{'w': float(w), 'group': float(gpu_group(w))} | {k: s.get(k, float('nan')) for k in
           ('eager', 'tf32', 'bf16', 'tf32, grouped', 'bf16, grouped')} | {'tf32 / eager': s['tf32'] / s['eager']}
           for w, s in zip(WIDTHS, speeds, strict=True)])
    for name in ('eager', 'tf32', 'bf16'): print(f'20 widths, 536 epochs, without evaluation, {name}: {study_minutes(speeds, name):.0f} minutes')
