"Input-space measures in units: one unit is one forward pass of the same net on one sample, in the same run."
from functools import partial
from statistics import median

import torch
from timing import interleaved, ratios, table

from smoothinterp.augment import svd_factors, svd_paths
from smoothinterp.data import CIFAR10, random_probe
from smoothinterp.geodesic import sharpness_volumes
from smoothinterp.measures import (
    accuracy,
    cross_entropy,
    input_hessian,
    logit_jacobian,
    loss_jacobian,
    tangent_hessian,
    tangent_parts,
)
from smoothinterp.models import build

N, REPEATS = 64, 7


def exact(net, x, y):
    "Largest relative error of each measure in float32 against float64, leaving out samples on kinks."
    fine = build('convnet-a', net.width, seed=0).double()
    fine.load_state_dict(net.state_dict())
    pairs = {'loss Jacobian': lambda m, x: loss_jacobian(m, x, y),
             'logit Jacobian': lambda m, x: logit_jacobian(m, x, y)['operator'],
             'input Hessian': lambda m, x: input_hessian(m, x, y)['frobenius']}
    return {name: (f(net, x) / f(fine, x.double()) - 1).abs().quantile(.95).item() for name, f in pairs.items()}


def bench(width):
    net = build('convnet-a', width, seed=0)
    net.width = width
    x = random_probe('uniform', N, (3, 32, 32), CIFAR10)
    y = torch.randint(10, (N,), generator=torch.Generator().manual_seed(0))
    pixels = CIFAR10.inverse(x)
    few, path = 4, partial(svd_paths, directions=7)
    error = exact(net, x, y)
    # name: call, units it counts, goal in units at w = 8 and w = 32, samples
    cases = {
        'forward': (lambda: accuracy(net, x, y), 1, (1, 1), N),
        'cross-entropy': (lambda: cross_entropy(net, x, y), 1, (1.1, 1.1), N),
        'loss Jacobian': (lambda: loss_jacobian(net, x, y), 2, (2.5, 2.1), N),
        'logit Jacobian': (lambda: logit_jacobian(net, x, y), 11, (16, 11.5), N),
        'input Hessian': (lambda: input_hessian(net, x, y), 11, (17.6, 12.7), N),
        'tangent Hessian, M = 4': (lambda: tangent_hessian(net, x, y, CIFAR10), 10, (13, 11), N),
        'smooth and kink part, M = 4': (lambda: tangent_parts(net, x, y, CIFAR10), 21, (29, 22.5), N),
        'all four over volumes, 7 paths': (lambda: sharpness_volumes(net, pixels[:few], y[:few], CIFAR10, path),
                                           430, (559, 559), few),
    }
    seconds = interleaved({k: v[0] for k, v in cases.items()}, REPEATS)
    rows = [{'measure': k, 'ms a sample': 1e3 * median(seconds[k]) / n, 'units': ratios(seconds, k, 'forward') * N / n,
             'counted': float(units), 'goal': float(goal[width > 8]), 'error (95 %)': error.get(k, '')}
            for k, (_, units, goal, n) in cases.items()]
    table(f'Measures, ConvNet A, w = {width}, {N} images of 3 x 32 x 32, one thread, float32', rows)


def paths():
    "SVD paths, 7 directions of 6 strengths, against one torch.linalg.svd and a reconstruction an anchor."
    pixels = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    factors, out = svd_factors(pixels), svd_paths(pixels, directions=7)

    def one(image):
        U, s, Vt = torch.linalg.svd(image)
        paths = []
        for p in range(7):
            anchors = [image]
            for k in (5, 10, 15, 20, 22, 25):
                kept = s.clone()
                kept[:, 32 - k - p:32 - p] = 0
                anchors.append(U @ kept.diag_embed() @ Vt)
            paths.append(torch.stack(anchors))
        return torch.stack(paths)

    def plain(): return torch.stack([one(image) for image in pixels])

    torch.testing.assert_close(plain(), out, atol=1e-4, rtol=0)
    seconds = interleaved({'copy of the output': out.clone, 'plain svd': plain,
                           'from scratch': lambda: svd_paths(pixels, directions=7),
                           'factors cached': lambda: svd_paths(pixels, directions=7, factors=factors)}, REPEATS)
    rows = [{'SVD paths': k, 'ms an image': 1e3 * median(seconds[k]) / len(pixels), 'x a copy': ratios(seconds, k, 'copy of the output'),
             'plain / this': ratios(seconds, 'plain svd', k)} for k in seconds]
    table('SVD paths, 7 directions x 6 strengths (goals: 5 x faster from scratch, 9 x cached, cached <= 6 copies)', rows)


if __name__ == '__main__':
    paths()
    for width in (8, 32): bench(width)
