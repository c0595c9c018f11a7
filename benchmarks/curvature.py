"""Gradient norms, trace, eigenvalues and spectral density in parameter space against BackPACK, PyHessian and
curvlinops, in train steps."""
import contextlib
import importlib.util
import io
import warnings
from unittest.mock import patch

import torch
import torch.nn.functional as F
from timing import interleaved, keep, ratios, table
from torch import nn

from smoothinterp.curvature import (
    drawn_trace,
    estimate,
    exact_trace,
    hessian_product,
    layer_blocks,
    layer_eigenvalues,
    quadrature,
    smoothed,
    top_eigenvalues,
)
from smoothinterp.data import digits
from smoothinterp.gradients import gradient_norms
from smoothinterp.models import build

warnings.filterwarnings('ignore')


def installed(name): return importlib.util.find_spec(name) is not None


def train_step(net, x, y):
    "Forward and backward by the weights, 64 samples at a time."
    for a, b in zip(x.split(64), y.split(64), strict=True):
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(a), b).backward()


def backpack_net(net):
    "The same network, extended."
    from backpack import extend
    return (extend(build('convnet-a', net.conv1.out_channels).to(memory_format=torch.channels_last)),
            extend(nn.CrossEntropyLoss(reduction='sum')))


def backpack(net, loss, x, y, extension, name):
    "Sum over parameters of what an extension leaves in them, batch by batch."
    from backpack import backpack
    found = []
    for a, b in zip(x.split(64), y.split(64), strict=True):
        net.zero_grad(set_to_none=True)
        with backpack(extension): loss(net(a), b).backward()
        found.append([getattr(p, name) for p in net.parameters()])
        for p in net.parameters(): delattr(p, name)
    return found


def pyhessian(net, x, y):
    "PyHessian's object for one batch of data."
    from pyhessian import hessian
    return hessian(net, nn.CrossEntropyLoss(), data=(x, y), cuda=False)


def report(title, seconds, ours, unit, errors, goals):
    rows = [{'what': k, 'median ms': 1e3 * sorted(s)[len(s) // 2], 'min ms': 1e3 * min(s),
             'train steps': ratios(seconds, k, unit),
             f'x {ours}': ratios(seconds, k, ours), 'error': errors.get(k, ''), 'goal': goals.get(k, '')}
            for k, s in seconds.items()]
    table(title, rows)


def keep_all(measure, width, seconds, ours, error, goals):
    "Keep what the README shows: train steps, error, and the peers by their ratio."
    steps, exact, peers = goals
    if steps: keep(measure, 'train steps', width, ratios(seconds, ours, 'train step'), f'<= {steps} train steps')
    keep(measure, 'relative error in float32', width, error, f'<= {exact} relative')
    for peer, bound in peers.items():
        if peer in seconds: keep(measure, peer, width, ratios(seconds, peer, ours), f'>= {bound} x')


def close(got, want): return ((got.double() - want) / want).abs().max().item()


def bench_gradients(net, x, y, exact):
    cases, errors = {'train step': lambda: train_step(net, x, y),
                     'gradient_norms': lambda: gradient_norms(net, x, y)['total']}, {}
    if installed('backpack'):
        from backpack.extensions import BatchL2Grad
        theirs = backpack_net(net)
        squares = lambda: backpack(*theirs, x, y, BatchL2Grad(), 'batch_l2')
        cases['BackPACK BatchL2Grad'] = lambda: torch.cat([sum(p) for p in squares()]).sqrt()
    want = gradient_norms(exact, x.double(), y)['total']
    errors = {k: close(f(), want) for k, f in list(cases.items())[1:]}
    assert errors['gradient_norms'] < 1e-5 and max(errors.values()) < 1e-3, errors
    seconds, width = interleaved(cases), net.conv1.out_channels
    keep_all('parameter-gradient norms', width, seconds, 'gradient_norms', errors['gradient_norms'],
             (1.5, 1e-6, {'BackPACK BatchL2Grad': 1.4}))
    report(f'Per-sample gradient norms, w = {width}', seconds, 'gradient_norms', 'train step', errors,
           {'gradient_norms': '<= 1.5 train steps, 1e-6', 'BackPACK BatchL2Grad': '>= 1.4 x'})


def bench_trace(net, x, y, exact):
    cases = {'train step': lambda: train_step(net, x, y), 'exact_trace': lambda: exact_trace(net, x, y)['total'].mean(),
             'drawn_trace': lambda: drawn_trace(net, x, y)['total'].mean()}
    if installed('backpack'):
        from backpack.extensions import DiagGGNExact
        theirs = backpack_net(net)
        cases['BackPACK DiagGGNExact'] = lambda: sum(d.sum()
                                                     for p in backpack(*theirs, x, y, DiagGGNExact(), 'diag_ggn_exact')
                                                     for d in p) / len(x)
    if installed('pyhessian'):
        probes = pyhessian(net, x, y)
        cases['PyHessian, 20 probes'] = lambda: torch.tensor(probes.trace(maxIter=20, tol=float("-inf"))).mean()
    want = exact_trace(exact, x.double(), y)['total'].mean()
    errors = {k: close(f(), want) for k, f in list(cases.items())[1:]}
    error = estimate(drawn_trace(net, x, y)['total']).error
    assert errors['exact_trace'] < 1e-6 and errors.get('BackPACK DiagGGNExact', 0) < 1e-4, errors
    assert errors['drawn_trace'] * want < 5 * error, errors
    seconds, width = interleaved(cases, 5), net.conv1.out_channels
    keep_all('Hessian trace', width, seconds, 'exact_trace', errors['exact_trace'],
             (7, 1e-6, {'BackPACK DiagGGNExact': 1.8, 'PyHessian, 20 probes': 1}))
    report(f'Trace of the loss Hessian, w = {width}', seconds, 'exact_trace', 'train step', errors,
           {'exact_trace': '<= 7 train steps, 1e-6', 'BackPACK DiagGGNExact': '>= 1.8 x',
            'PyHessian, 20 probes': 'slower, inexact'})


def trained_digits(width=6, steps=100):
    "A digits network after a little training, and 256 digits."
    data, net = digits(), build('convnet-a', width, 10, 1, 8).to(memory_format=torch.channels_last)
    x, optimizer = data.inputs(data.x), torch.optim.Adam(net.parameters(), 1e-2)
    for i in range(steps):
        part = slice(i % 8 * 125, i % 8 * 125 + 125)
        optimizer.zero_grad()
        F.cross_entropy(net(x[part]), data.y[part]).backward()
        optimizer.step()
    return net, x[:256].to(memory_format=torch.channels_last), data.y[:256]


def in_double(net):
    "The digits network in double precision."
    exact = build('convnet-a', net.conv1.out_channels, 10, 1, 8).double()
    exact.load_state_dict(net.state_dict())
    return exact


def bench_eigenvalues():
    net, x, y = trained_digits()
    exact, counted = in_double(net), {}
    def ours():
        found = top_eigenvalues(net, x, y, k=3)
        counted['top_eigenvalues'] = found.products
        return found.values
    def theirs():
        with contextlib.redirect_stdout(io.StringIO()):
            return torch.tensor(pyhessian(net, x, y).eigenvalues(maxIter=300, tol=1e-4, top_n=3)[0])
    def train(): F.cross_entropy(net(x), y).backward()
    cases = {'train step': train, 'top_eigenvalues': ours}
    if installed('pyhessian'): cases['PyHessian'] = theirs
    if installed('curvlinops'):
        cases['curvlinops, eigsh'] = lambda: curvlinops_top(net, x, y, list(net.parameters()), 3, counted)
    want = top_eigenvalues(exact, x.double(), y, k=3, tolerance=1e-12).values
    errors = {k: close(f(), want) for k, f in list(cases.items())[1:]}
    assert errors['top_eigenvalues'] < 1e-4 and max(errors.values()) < 5e-2, errors
    assert counted['top_eigenvalues'] <= 25, counted
    with hessian_product(net, x, y) as product:
        v = torch.randn(sum(p.numel() for p in net.parameters()))
        cases['one product'] = lambda: product(v)
        seconds = interleaved(cases, 5)
    keep_all('top 3 eigenvalues, digits', 6, seconds, 'top_eigenvalues', errors['top_eigenvalues'],
             (None, 1e-4, {'PyHessian': 1.7}))
    keep('top 3 eigenvalues, digits', 'Hessian-vector products', 6, counted['top_eigenvalues'], '<= 25 products')
    goals = {'top_eigenvalues': '<= 25 products, 1e-4', 'PyHessian': '>= 1.7 x', 'one product': '1.7 train steps'}
    report(f'Largest three eigenvalues, digits, w = 6, 256 samples; products: {counted}', seconds, 'top_eigenvalues',
           'train step', errors, goals)


def curvlinops_top(net, x, y, parameters, k, counted):
    "ARPACK on curvlinops' Hessian by some parameters, float64 [k]."
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh
    H, calls = HessianLinearOperator(net, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False), []
    def times(v):
        calls.append(1)
        return (H @ torch.as_tensor(v, dtype=torch.float32).flatten()).double().numpy()
    values = eigsh(LinearOperator(H.shape, times, dtype=float), k, which='LA', tol=1e-4, return_eigenvectors=False)
    counted['curvlinops'] = counted.get('curvlinops', 0) + len(calls)
    return torch.tensor(values[::-1].copy())


def bench_layers():
    net, x, y = trained_digits()
    parameters, blocks, counted = list(net.parameters()), layer_blocks(net), {}
    def ours():
        found = layer_eigenvalues(net, x, y).values()
        counted['layer_eigenvalues'] = sum(e.products for e in found)
        return torch.cat([e.values for e in found])
    def theirs():
        counted['curvlinops'] = 0
        return torch.cat([curvlinops_top(net, x, y, [parameters[i] for i in block], 1, counted)
                          for block in blocks.values()])
    cases = {'train step': lambda: F.cross_entropy(net(x), y).backward(), 'layer_eigenvalues': ours}
    if installed('curvlinops'): cases['curvlinops, eigsh'] = theirs
    want = torch.cat([e.values for e in layer_eigenvalues(in_double(net), x.double(), y, tolerance=1e-12).values()])
    errors = {k: close(f(), want) for k, f in list(cases.items())[1:]}
    assert max(errors.values()) < 1e-4, errors
    seconds = interleaved(cases, 5)
    keep_all('largest eigenvalue per layer, digits', 6, seconds, 'layer_eigenvalues', errors['layer_eigenvalues'],
             (None, 1e-4, {'curvlinops, eigsh': 1}))
    keep('largest eigenvalue per layer, digits', 'Hessian-vector products', 6, counted['layer_eigenvalues'],
         '<= 75 products')
    report(f'Largest eigenvalue of {len(blocks)} layers, digits, w = 6, 256 samples; products: {counted}', seconds,
           'layer_eigenvalues', 'train step', errors, {'layer_eigenvalues': '<= 1e-4', 'curvlinops, eigsh': '>= 1 x'})


def removed_eig(T, eigenvectors):
    "What PyHessian calls, `torch.eig`, which PyTorch no longer has, for a symmetric matrix."
    values, vectors = torch.linalg.eigh(T)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def bench_density(steps=50):
    """Nodes and weights from the same probe, compared as the smoothed density that is drawn of them. curvlinops'
    spectrum cannot be given a probe: it draws Gaussian ones, of a Hessian that it rescales by ARPACK's products."""
    net, x, y = trained_digits()
    torch.manual_seed(0)
    signs = torch.cat([torch.randint_like(p, high=2).flatten() for p in net.parameters()]) * 2 - 1
    def ours(net=net, x=x, signs=signs):
        with hessian_product(net, x, y) as product: return quadrature(product, signs, steps)
    def theirs():
        torch.manual_seed(0)
        with patch.object(torch, 'eig', removed_eig, create=True):
            return [torch.tensor(v[0]).double() for v in pyhessian(net, x, y).density(iter=steps, n_v=1)]
    cases = {'train step': lambda: F.cross_entropy(net(x), y).backward(), 'quadrature': ours}
    if installed('pyhessian'): cases['PyHessian'] = theirs
    exact = ours(in_double(net), x.double(), signs.double())
    grid, width = torch.linspace(exact[0].min(), exact[0].max(), 1000).double(), exact[0].max().item() / 100
    want = smoothed(*exact, grid, width)
    errors = {k: ((smoothed(*f(), grid, width) - want).abs().max() / want.max()).item()
              for k, f in list(cases.items())[1:]}
    assert max(errors.values()) < 1e-3, errors
    seconds, measure = interleaved(cases, 5), 'spectral density, digits, 50 products'
    keep_all(measure, 6, seconds, 'quadrature', errors['quadrature'], (None, 1e-4, {'PyHessian': 1}))
    report('Spectral density, one probe of 50 products, digits, w = 6, 256 samples; error over the peak', seconds,
           'quadrature', 'train step', errors, {'quadrature': '<= 1e-4', 'PyHessian': '>= 1 x'})


if __name__ == '__main__':
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(128, 3, 32, 32, generator=g).to(memory_format=torch.channels_last),
            torch.randint(10, (128,), generator=g))
    for width in (8, 32):
        net, exact = build('convnet-a', width).to(memory_format=torch.channels_last), build('convnet-a', width).double()
        bench_gradients(net, x, y, exact)
        bench_trace(net, x, y, exact)
    bench_eigenvalues()
    bench_layers()
    bench_density()
