"Input-space measures in units: one unit is one forward pass of the same net on one sample, in the same run."
import copy
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from timing import interleaved, keep, ratios, table

from smoothinterp.augment import svd_factors, svd_paths
from smoothinterp.batches import frozen
from smoothinterp.data import CIFAR10, random_probe
from smoothinterp.geodesic import sharpness_volumes
from smoothinterp.measures import (
    accuracy,
    cross_entropy,
    input_hessian,
    input_hvp,
    logit_jacobian,
    loss_jacobian,
    on_kink,
    tangent_hessian,
    tangent_parts,
)
from smoothinterp.models import build

N, REPEATS = 64, 7


def forward_over_reverse(net, x, y, directions):
    "The usual Hessian-vector products: forward-mode derivatives of the loss gradient."
    grad = torch.func.grad(lambda x: F.cross_entropy(net(x), y, reduction='sum'))
    return torch.stack([torch.func.jvp(grad, (x,), (u,))[1] for u in directions], 1)


def errors(net, x, y):
    "95th percentile of the relative error of each measure in float32 against float64, samples on kinks left out."
    fine = copy.deepcopy(net).double()
    usable = ~on_kink(net, x, y)
    pairs = {'loss Jacobian': lambda m, x: loss_jacobian(m, x, y), 'logit Jacobian': lambda m,
             x: logit_jacobian(m, x, y)['operator'],
             'input Hessian': lambda m, x: input_hessian(m, x, y)['frobenius']}
    return {name: (f(net, x) / f(fine, x.double()) - 1)[usable].abs().quantile(.95).item() for name, f in pairs.items()}


# name: units counted, goal in units at w = 8 and at w = 32
GOALS = {'loss Jacobian': (2, 2.5, 2.1), 'logit Jacobian': (11, 16, 11.5), 'input Hessian': (11, 17.6, 12.65),
         'tangent Hessian, M = 4': (10, 13, 11), 'all four over volumes': (430, 559, 559)}
EXACT = {'loss Jacobian': 1e-5, 'logit Jacobian': 1e-6, 'input Hessian': 1e-6}


def bench(width):
    net, g = build('convnet-a', width, seed=0), torch.Generator().manual_seed(0)
    x = random_probe('uniform', N, (3, 32, 32), CIFAR10)
    y, pixels, u = torch.randint(10, (N,), generator=g), CIFAR10.inverse(x), torch.randn(4, *x.shape, generator=g)
    few, path = 4, partial(svd_paths, directions=7)
    with frozen(net):
        ours = input_hvp(net, x[:8], y[:8], u[:, :8].transpose(0, 1).flatten(2))
        theirs = forward_over_reverse(net, x[:8], y[:8], u[:, :8])
    torch.testing.assert_close(ours.float(), theirs.flatten(2), rtol=1e-3, atol=1e-5)
    cases = {
        'forward': lambda: accuracy(net, x, y),
        'cross-entropy': lambda: cross_entropy(net, x, y),
        'loss Jacobian': lambda: loss_jacobian(net, x, y),
        'logit Jacobian': lambda: logit_jacobian(net, x, y),
        'input Hessian': lambda: input_hessian(net, x, y),
        'forward over reverse, 4 H u': lambda: forward_over_reverse(net, x, y, u),
        'tangent Hessian, M = 4': lambda: tangent_hessian(net, x, y, CIFAR10),
        'smooth and kink part, M = 4': lambda: tangent_parts(net, x, y, CIFAR10),
        'all four over volumes': lambda: sharpness_volumes(net, pixels[:few], y[:few], CIFAR10, path),
    }
    seconds, error = interleaved(cases, REPEATS), errors(net, x, y)
    rows = []
    for name in cases:
        n = few if 'volumes' in name else N
        units, (counted, *goals) = ratios(seconds, name, 'forward') * N / n, GOALS.get(name, ('', '', ''))
        rows.append({'measure': name, 'ms a sample': 1e3 * median(seconds[name]) / n, 'units': units,
                     'counted': counted and float(counted),
                     'goal': goals[width > 8], 'error': error.get(name, '')})
        if counted: keep(name, 'forward passes', width, units, f'<= {goals[width > 8]} units')
        if name in EXACT: keep(name, 'relative error in float32', width, error[name], f'<= {EXACT[name]} relative')
    keep('input Hessian', 'forward over reverse, 4 H u', width,
         ratios(seconds, 'forward over reverse, 4 H u', 'input Hessian'), '>= 1 x')
    table(f'Measures, ConvNet A, w = {width}, {N} images of 3 x 32 x 32, one thread, float32', rows)


def again(f):
    "Five calls, so that each is measured with its own data in the caches."
    for _ in range(5): f()


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
    cases = {'copy of the output': out.clone, 'plain svd': plain,
             'from scratch': lambda: svd_paths(pixels, directions=7),
             'factors cached': lambda: svd_paths(pixels, directions=7, factors=factors)}
    seconds = interleaved({name: partial(again, f) for name, f in cases.items()}, REPEATS)
    rows = [{'SVD paths': k, 'ms an image': 1e3 * median(seconds[k]) / len(pixels) / 5,
             'x a copy': ratios(seconds, k, 'copy of the output'),
             'plain / this': ratios(seconds, 'plain svd', k)} for k in seconds]
    table('SVD paths, 7 directions x 6 strengths', rows)
    keep('SVD paths', 'torch.linalg.svd, from scratch', None, rows[2]['plain / this'], '>= 5 x')
    keep('SVD paths', 'torch.linalg.svd, factors cached', None, rows[3]['plain / this'], '>= 9 x')
    keep('SVD paths', 'factors cached, copies of the output', None, rows[3]['x a copy'], '<= 6 copies')


if __name__ == '__main__':
    paths()
    for width in (8, 32): bench(width)
