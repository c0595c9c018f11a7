"Parameter-space measures against BackPACK, PyHessian and curvlinops, where they compute the same thing."
import contextlib
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smoothinterp.curvature import (
    estimate,
    exact_trace,
    hessian_product,
    hutchinson_trace,
    lanczos,
    layer_blocks,
    layer_eigenvalues,
    quadrature,
    smoothed,
    spectral_density,
    top_eigenvalues,
)
from smoothinterp.data import digits
from smoothinterp.gradients import gradient_norms
from smoothinterp.models import build

pytestmark = pytest.mark.numeric


@pytest.fixture
def digits_net():
    data = digits()
    return build('convnet-a', 1.5, 10, 1, 8, init='he'), data.inputs(data.x)[:64], data.y[:64]


def from_backpack(net, x, y, extension, name):
    backpack = pytest.importorskip('backpack')
    theirs, loss = (backpack.extend(build('convnet-a', 1.5, 10, 1, 8, init='he')),
                    backpack.extend(nn.CrossEntropyLoss(reduction='sum')))
    theirs.load_state_dict(net.state_dict())
    with backpack.backpack(getattr(backpack.extensions, extension)()): loss(theirs(x), y).backward()
    return [getattr(p, name) for p in theirs.parameters()]


def test_gradient_norms_are_backpacks(digits_net):
    net, x, y = digits_net
    theirs = sum(from_backpack(net, x, y, 'BatchL2Grad', 'batch_l2')).sqrt()
    torch.testing.assert_close(gradient_norms(net, x, y)['total'].float(), theirs, rtol=1e-5, atol=0)


def test_trace_is_backpacks(digits_net):
    net, x, y = digits_net
    theirs = sum(d.sum() for d in from_backpack(net, x, y, 'DiagGGNExact', 'diag_ggn_exact')).item() / len(x)
    assert exact_trace(net, x, y)['total'].mean().item() == pytest.approx(theirs, rel=1e-5)


def test_hutchinson_is_the_trace_of_curvlinops_hessian():
    curvlinops, data = pytest.importorskip('curvlinops'), digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(18, 10))
    x, y = data.inputs(data.x)[:16], data.y[:16]
    H = curvlinops.HessianLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), [(x, y)])
    want = (H @ torch.eye(H.shape[1])).trace().item()
    value, error = estimate(hutchinson_trace(net, x, y, draws=200)['total'])
    assert abs(value - want) < 4 * error


def test_top_eigenvalues_are_pyhessians(digits_net):
    pyhessian = pytest.importorskip('pyhessian')
    net, x, y = digits_net
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pyhessian.hessian(net, F.cross_entropy, data=(x, y),
                                   cuda=False).eigenvalues(maxIter=1000, tol=1e-6, top_n=2)[0]
    torch.testing.assert_close(top_eigenvalues(net, x, y, k=2).values, torch.tensor(theirs).double(), rtol=1e-3, atol=0)


@pytest.fixture
def torch_eig(monkeypatch):
    "The solver that PyHessian calls, which PyTorch no longer has."
    def eig(T, eigenvectors):
        values, vectors = torch.linalg.eigh(T)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors
    monkeypatch.setattr(torch, 'eig', eig, raising=False)


def test_quadrature_is_pyhessians_from_the_same_probe(digits_net, torch_eig):
    pyhessian = pytest.importorskip('pyhessian')
    net, x, y = digits_net
    theirs = pyhessian.hessian(net, F.cross_entropy, data=(x, y), cuda=False)
    torch.manual_seed(0)
    nodes, weights = (torch.tensor(v[0]).double() for v in theirs.density(iter=30, n_v=1))
    torch.manual_seed(0)
    signs = torch.cat([torch.randint_like(p, high=2).flatten() for p in net.parameters()]) * 2 - 1
    with hessian_product(net, x, y) as product: ours = quadrature(product, signs, 30)
    for k in range(1, 6):
        assert (weights * nodes**k).sum().item() == pytest.approx((ours[1] * ours[0]**k).sum().item(), rel=1e-4)
    grid, width = torch.linspace(-1, 11, 500).double(), .1
    torch.testing.assert_close(smoothed(*ours, grid, width), smoothed(nodes, weights, grid, width),
                               rtol=1e-3, atol=1e-5)


def test_density_of_a_tiny_network_is_that_of_its_exact_eigenvalues():
    data = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(18, 10)).double()
    x, y = data.inputs(data.x)[:32].double(), data.y[:32]
    size = sum(p.numel() for p in net.parameters())
    with hessian_product(net, x, y) as product:
        values, vectors = torch.linalg.eigh(torch.stack([product(e) for e in torch.eye(size).double()]))
    got = spectral_density(net, x, y, probes=40)
    bumps = torch.stack([smoothed(v[None], torch.ones(1).double(), got.grid, got.width) for v in values], 1)
    moments = torch.stack([(got.weights * got.nodes**k).sum(1).mean() for k in (1, 2, 3)])
    for found, f in ((got.density, bumps), (moments, torch.stack([values**k for k in (1, 2, 3)]))):
        # the variance of v'Av over random signs is twice the sum of A's squared off-diagonal entries
        variance = 2 * f.square().sum(1) - 2 * (f @ vectors.T**2).square().sum(1)
        error = variance.sqrt() / size / 40**.5
        assert ((found - f.mean(1)).abs() <= 4 * error + 1e-6 * f.mean(1).abs().max()).all()
    within = (got.density - bumps.mean(1)).abs() <= 2 * got.error + 1e-6 * got.density.max()
    assert within.double().mean() > .9
    assert torch.trapezoid(got.density, got.grid).item() == pytest.approx(1, abs=1e-4)


def test_layer_eigenvalues_are_those_of_curvlinops_blocks(digits_net):
    curvlinops = pytest.importorskip('curvlinops')
    net, x, y = digits_net
    net, x = copy.deepcopy(net).double(), x.double()
    parameters, blocks, loss = list(net.parameters()), layer_blocks(net), nn.CrossEntropyLoss()
    for layer, found in layer_eigenvalues(net, x, y, k=2, tolerance=1e-10).items():
        H = curvlinops.HessianLinearOperator(net, loss, [parameters[i] for i in blocks[layer]], [(x, y)])
        want = torch.linalg.eigvalsh(H @ torch.eye(H.shape[1]).double()).flip(0)[:2]
        torch.testing.assert_close(found.values, want, rtol=1e-8, atol=0)


@pytest.mark.parametrize('gap', [.1, .01, .001])
def test_an_eigenvalue_lies_within_the_error_even_if_two_are_close(gap):
    "An error that takes the gap to what is found so far for the gap to all others is too small here."
    values = torch.cat([torch.linspace(0, .5, 200), torch.tensor([1, 1 + gap])]).double()
    for seed in range(20):
        start = torch.randn(len(values), generator=torch.Generator().manual_seed(seed)).double()
        found = lanczos(lambda v: values * v, start, tolerance=1e-3)
        nearest = (values - found.values).abs().min()
        assert nearest <= found.errors and found.errors <= 1e-3 * found.values
