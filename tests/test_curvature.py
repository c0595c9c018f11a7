"Parameter-space measures against BackPACK, PyHessian and curvlinops, where they compute the same thing."
import contextlib
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smoothinterp.curvature import estimate, exact_trace, hutchinson_trace, top_eigenvalues
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
