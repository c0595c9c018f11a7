"The norm of every layer of a ConvNet, against one training step on 128 samples and against power iteration."
from statistics import median

import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from timing import interleaved, keep, ratios, table
from torch import nn

from smoothinterp.bounds import layer_norms
from smoothinterp.models import build

SIZES = dict(conv1=32, conv2=32, conv3=16, conv4=8)


def train_step(net, x, y):
    "Forward and backward by the weights."
    net.zero_grad(set_to_none=True)
    F.cross_entropy(net(x), y).backward()


@torch.no_grad()
def there_and_back(conv: nn.Conv2d, v):
    "AᵀA v of a convolution without its bias."
    return F.conv_transpose2d(F.conv2d(v, conv.weight, padding=1), conv.weight, padding=1)


def power_iteration(conv: nn.Conv2d, size: int, steps=200):
    "The usual way: AᵀA on a random vector, over and over."
    v = torch.randn(1, conv.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    for _ in range(steps): v = there_and_back(conv, v / v.norm())
    return v.norm().sqrt().item()


def exact_norms(net):
    "ARPACK in double precision, and the singular values of the linear layer."
    def largest(conv, size):
        n, shape = conv.in_channels * size**2, (1, conv.in_channels, size, size)
        product = LinearOperator((n, n), lambda v: there_and_back(conv,
                                                                  torch.as_tensor(v).view(shape)).flatten().numpy(),
                                 dtype=float)
        return eigsh(product, 1, which='LA', tol=1e-12, return_eigenvectors=False)[0]**.5
    return [largest(net.get_submodule(k), n)
            for k, n in SIZES.items()] + [torch.linalg.matrix_norm(net.linear.weight, 2).item()]


def peer_norms(net):
    "Power iteration for convolutions, singular values for the linear layer."
    return [power_iteration(net.get_submodule(k), n)
            for k, n in SIZES.items()] + [torch.linalg.matrix_norm(net.linear.weight, 2).item()]


def bench(width):
    net, g = build('convnet-a', width).to(memory_format=torch.channels_last), torch.Generator().manual_seed(0)
    x, y = (torch.randn(128, 3, 32, 32, generator=g).to(memory_format=torch.channels_last),
            torch.randint(10, (128,), generator=g))
    cases = {'train step of 128': lambda: train_step(net, x, y),
             'layer_norms': lambda: layer_norms(net, x).operator.tolist(),
             'power iteration, 200': lambda: peer_norms(net)}
    exact = torch.tensor(exact_norms(build('convnet-a', width).double()))
    error = {k: (torch.tensor(cases[k]()) / exact - 1).abs().max().item() for k in list(cases)[1:]}
    assert error['layer_norms'] <= 1e-4 and error['power iteration, 200'] <= 5e-2, error
    seconds = interleaved(cases)
    rows = [{'what': k, 'median ms': 1e3 * median(s), 'min ms': 1e3 * min(s),
             'train steps': ratios(seconds, k, 'train step of 128'),
             'x layer_norms': ratios(seconds, k, 'layer_norms'), 'error': error.get(k, '')} for k, s in seconds.items()]
    keep('layer norms', 'train steps of 128', width, ratios(seconds, 'layer_norms', 'train step of 128'),
         '<= 1 train step')
    keep('layer norms', 'relative error in float32', width, error['layer_norms'], '<= 1e-4 relative')
    keep('layer norms', 'power iteration, 200 steps', width, ratios(seconds, 'power iteration, 200', 'layer_norms'),
         '>= 2 x')
    for row, goal in zip(rows, ('', '<= 1 train step, error <= 1e-4', '>= 2 x layer_norms'), strict=True):
        row['goal'] = goal
    table(f'Layer norms, ConvNet A, w = {width}, 3 x 32 x 32, one thread, float32', rows)


if __name__ == '__main__':
    for width in (8, 32): bench(width)
