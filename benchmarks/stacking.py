"""Three seeds of one width stacked in one network, against one after the other, on one thread: what `engine.stacks`
is taken from."""
import json

import torch
from timing import RESULTS, interleaved, ratios, table

from smoothinterp.data import digits, with_noise
from smoothinterp.models import build
from smoothinterp.stack import Engine, stacks
from smoothinterp.train import Recipe, in_memory

SEEDS = 0, 1, 2
WIDTHS = {8: (.5, 1, 2, 3, 4, 6, 8, 12), 16: (1, 2, 3, 4, 6, 8), 32: (1, 2, 4)}
RECIPE = Recipe(lr=.02, warmup_from=.004, init='he')


def data(size, n):
    "Inputs and noisy labels of each seed: the digits, or as many random images in color."
    if size == 8:
        datas = [with_noise(digits(seed), .2, seed) for seed in SEEDS]
        return [in_memory(d.inputs(d.x)) for d in datas], [d.y for d in datas]
    g = torch.Generator().manual_seed(0)
    x = in_memory(torch.randn(n, 3, size, size, generator=g))
    return [x] * len(SEEDS), [torch.randint(10, (n,), generator=g) for _ in SEEDS]


def engines(size, width, dtype=torch.float):
    "One for all seeds, one for each."
    xs, ys = data(size, 8192 // size)
    nets = [[build('convnet-a', width, 10, xs[0].shape[1], size, 'he', s).to(dtype, memory_format=torch.channels_last)
             for s in SEEDS]
            for _ in range(2)]
    return (Engine(nets[0], xs, ys, RECIPE, list(SEEDS), stack=True),
            [Engine([net], [x], [y], RECIPE, [s]) for net, x, y, s in zip(nets[1], xs, ys, SEEDS, strict=True)])


def bench(size, width):
    together, apart = engines(size, width, torch.double)
    differ = max(abs(a - e.epoch(1)[0]) for a, e in zip(together.epoch(1), apart, strict=True))
    assert differ < 1e-10, differ
    together, apart = engines(size, width)
    seconds = interleaved({'apart': lambda: [e.epoch(1) for e in apart], 'stacked': lambda: together.epoch(1)}, 9)
    n = len(SEEDS) * len(together.samples.order[0])
    return {'pixels': float(size), 'w': float(width), 'apart, samples/s': n / min(seconds['apart']),
            'stacked, samples/s': n / min(seconds['stacked']), 'ratio': ratios(seconds, 'apart', 'stacked'),
            'stacked by rule': 'yes' if stacks(apart[0].net, width, size, 'cpu') else 'no',
            'loss differs, float64': differ}


if __name__ == '__main__':
    rows = [bench(size, w) for size in WIDTHS for w in WIDTHS[size]]
    table('Three seeds, ConvNet A, batch 128, one thread', rows)
    RESULTS.with_name('stacking.json').write_text(json.dumps(rows, indent=0) + '\n')
