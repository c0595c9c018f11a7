"""Every measure on torchvision's classifiers at random weights.

The cheap ones against autograd, one sample at a time in float64."""
import copy
import importlib
import warnings

import pytest
import torch
import torch.nn.functional as F

from smoothinterp.affine import is_piecewise_linear
from smoothinterp.bounds import distance_from_init
from smoothinterp.curvature import hutchinson_trace, top_eigenvalues
from smoothinterp.data import Normalize, torchvision_datasets
from smoothinterp.gradients import gradient_norms
from smoothinterp.measures import (
    accuracy,
    cross_entropy,
    input_hessian,
    logit_jacobian,
    loss_jacobian,
    tangent_hessian,
    tangent_parts,
)

pytestmark = pytest.mark.slow
NORMALIZE = Normalize((.5,) * 3, (.25,) * 3)
CLASSIFIERS = dict(
    resnet18=32, mobilenet_v2=32, mobilenet_v3_small=32, efficientnet_b0=32, convnext_tiny=32, vgg11=32,
    densenet121=32, squeezenet1_1=32, shufflenet_v2_x0_5=32, vit_b_16=32, regnet_y_400mf=32) # pixels per side


def classifier(name, size):
    torchvision_datasets()
    models = importlib.import_module('torchvision.models')
    torch.manual_seed(0)
    options = dict(image_size=size) if name.startswith('vit') else {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return getattr(models, name)(num_classes=10, **options)


def reference(model, x, y):
    "Cross-entropy, loss Jacobian, parameter gradient norm, ‖J‖ and norm of the target's row, by plain autograd."
    model, rows = copy.deepcopy(model).double().eval(), []
    for i in range(len(x)):
        z = x[i:i + 1].double().requires_grad_()
        logits = model(z)
        loss = F.cross_entropy(logits, y[i:i + 1])
        sources = [z, *model.parameters()]
        gx, *gw = torch.autograd.grad(loss, sources, retain_graph=True, materialize_grads=True)
        J = torch.stack([torch.autograd.grad(v, z, retain_graph=True)[0].flatten() for v in logits[0]])
        norms = gx.norm(), torch.stack([g.square().sum() for g in gw]).sum().sqrt()
        rows.append(torch.stack([loss.detach(), *norms, torch.linalg.matrix_norm(J, 2), J[y[i]].norm()]))
    return torch.stack(rows, 1)


@pytest.fixture(scope='module', params=CLASSIFIERS)
def trained(request):
    size = CLASSIFIERS[request.param]
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return classifier(request.param, size), x, torch.tensor([3, 7])


def test_the_cheap_measures_are_those_of_autograd(trained):
    model, x, y = trained
    jacobian = logit_jacobian(model, x, y)
    got = torch.stack([cross_entropy(model, x, y), loss_jacobian(model, x, y), gradient_norms(model, x, y)['total'],
                       jacobian['operator'], jacobian['target']])
    torch.testing.assert_close(got, reference(model, x, y), rtol=2e-3, atol=1e-6)
    assert torch.equal(accuracy(model, x, y), (copy.deepcopy(model).eval()(x).argmax(1) == y).double())


def test_curvature_is_a_number(trained):
    model, x, y = trained
    parts = tangent_parts(model, x, y, NORMALIZE, copies=2)
    torch.testing.assert_close(parts['finite'], tangent_hessian(model, x, y, NORMALIZE, copies=2), rtol=1e-3, atol=1e-6)
    assert all(v.isfinite().all() for v in parts.values())
    assert hutchinson_trace(model, x, y, draws=1)['total'].isfinite().all()
    assert set(distance_from_init(model, model.state_dict()).values()) == {0}


def test_input_hessian_is_exact_or_refused(trained):
    "A piecewise linear network has no negative curvature; the others take a dense matrix of 3,072 columns."
    model, x, y = trained
    if not is_piecewise_linear(model, x): pytest.skip('smooth: a dense Hessian takes minutes')
    found = input_hessian(model, x, y)
    assert (found['top'] >= 0).all() and (found['trace'] >= found['top'] * (1 - 1e-9)).all()
    finite = tangent_parts(model, x, y, NORMALIZE, copies=2)['smooth']
    assert (finite <= found['top'] * 3 * 3072**.5).all()


def test_largest_eigenvalue(trained):
    model, x, y = trained
    assert top_eigenvalues(model, x, y, k=1, tolerance=.3).values[0] > 0
