"""Measures on models that people have: the right number, from plain autograd in float64 one sample at a time, or
one sentence."""
import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as P
from torch import nn

from smoothinterp.curvature import hessian_trace, hutchinson_trace, top_eigenvalues
from smoothinterp.data import Normalize
from smoothinterp.gradients import gradient_norms
from smoothinterp.measures import input_hessian, loss_jacobian, tangent_hessian, tangent_parts

pytestmark = pytest.mark.numeric
NORMALIZE = Normalize((.5,), (.25,))


class Model(nn.Module):
    "A module whose forward pass is a function of itself and x."
    def __init__(self, forward, **modules):
        super().__init__()
        for name, m in modules.items(): setattr(self, name, m)
        self.run = forward

    def forward(self, x): return self.run(self, x)


def positions(m, x):
    grid = torch.tensor([[[-1., -1.], [-1., 1.], [1., -1.], [1., 1.]]]).to(x)
    return m.head(torch.relu(m.patch(x).flatten(2).mT + m.place(grid)).mean(1))


def experts(m, x):
    z = x.flatten(1)
    bright, out = z.mean(1) > 0, z.new_zeros(len(z), 6)
    out[bright], out[~bright] = m.a(z[bright]), m.b(z[~bright])
    return m.c(torch.relu(out))


def halves(m, x):
    z = m.n(x.flatten(1))
    out = z.new_zeros(len(x), 3)
    out[:, :2], out[:, 2:] = m.a(z), m.b(z)
    return out


class LoRA(nn.Linear):
    def __init__(self, i, o):
        super().__init__(i, o)
        self.A, self.B = nn.Linear(i, 2, bias=False), nn.Linear(2, o, bias=False)

    def forward(self, x): return super().forward(x) + self.B(self.A(x))


def tied():
    a = nn.Linear(16, 16)
    return Model(lambda m, x: m.c(torch.relu(F.linear(torch.relu(m.a(x.flatten(1))), m.a.weight))), a=a,
                 c=nn.Linear(16, 3))


MODELS = dict(
    relu=lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    positions=lambda: Model(positions, patch=nn.Conv2d(1, 6, 2, 2), place=nn.Linear(2, 6), head=nn.Linear(6, 3)),
    time_first=lambda: Model(lambda m, x: m.c(torch.relu(m.a(x[:, 0].transpose(0, 1))).mean(0)), a=nn.Linear(4, 6),
                             c=nn.Linear(6, 3)),
    all_tokens=lambda: Model(lambda m, x: m.c(torch.relu(m.a(x.reshape(-1, 4))).view(len(x), 4, 6).mean(1)),
                             a=nn.Linear(4, 6), c=nn.Linear(6, 3)),
    experts=lambda: Model(experts, a=nn.Linear(16, 6), b=nn.Linear(16, 6), c=nn.Linear(6, 3)),
    in_place=lambda: Model(halves, n=nn.LayerNorm(16), a=nn.Linear(16, 2), b=nn.Linear(16, 1)),
    scale=lambda: Model(lambda m, x: m.b(m.s(x.new_ones(len(x), 1)).exp() * torch.relu(m.a(x.flatten(1)))),
                        s=nn.Linear(1, 6), a=nn.Linear(16, 6), b=nn.Linear(6, 3)),
    gate=lambda: Model(lambda m, x: m.b(torch.sigmoid(m.s(x.new_ones(len(x), 1))) * torch.relu(m.a(x.flatten(1)))),
                       s=nn.Linear(1, 6), a=nn.Linear(16, 6), b=nn.Linear(6, 3)),
    view=lambda: Model(lambda m, x: m.c(torch.relu(m.a(x)).view(-1, 12)), a=nn.Conv2d(1, 3, 3), c=nn.Linear(12, 3)),
    weight_norm=lambda: nn.Sequential(P.weight_norm(nn.Conv2d(1, 3, 3)), nn.ReLU(), nn.Flatten(),
                                      P.weight_norm(nn.Linear(12, 3))),
    keyword=lambda: Model(lambda m, x: m.c(input=torch.relu(m.a(input=x.flatten(1)))), a=nn.Linear(16, 6),
                          c=nn.Linear(6, 3)),
    bare=lambda: Model(lambda m, x: F.linear(x.flatten(1), m.w), w=nn.Parameter(torch.randn(3, 16))),
    conv1d=lambda: Model(lambda m, x: m.c(x[:, 0]).mean(2), c=nn.Conv1d(4, 3, 2)),
    lora=lambda: nn.Sequential(nn.Flatten(), LoRA(16, 3)),
    gru=lambda: Model(lambda m, x: m.c(m.r(x[:, 0])[0][:, -1]), r=nn.GRU(4, 5, batch_first=True), c=nn.Linear(5, 3)),
    hardsigmoid=lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Hardsigmoid(), nn.Linear(6, 3)),
    input_in_place=lambda: Model(lambda m, x: m.c(torch.relu(m.a(x.mul_(2).flatten(1)))),
                                 a=nn.Linear(16, 6), c=nn.Linear(6, 3)),
    tied=tied, data_parallel=lambda: nn.DataParallel(nn.Sequential(nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3))))


def reference(model, x, y):
    "Loss Jacobians, gradient norms and the mean trace of the parameter Hessian."
    model, x = copy.deepcopy(model).double().eval(), x.double()
    parameters, slopes, norms, trace = list(model.parameters()), [], [], 0.
    for i in range(len(x)):
        one = x[i:i + 1].clone().requires_grad_()
        loss = F.cross_entropy(model(one.clone()), y[i:i + 1])
        by_x, *by_theta = torch.autograd.grad(loss, [one, *parameters], create_graph=True, allow_unused=True)
        by_theta = [(p, g) for p, g in zip(parameters, by_theta) if g is not None]
        slopes.append(by_x.norm().item())
        norms.append(sum(g.square().sum() for _, g in by_theta).sqrt().item())
        for p, g in by_theta:
            for j, entry in enumerate(g.flatten()):
                if entry.requires_grad:
                    h, = torch.autograd.grad(entry, p, retain_graph=True, allow_unused=True)
                    trace += 0. if h is None else h.flatten()[j].item()
    return torch.tensor(slopes).double(), torch.tensor(norms).double(), trace / len(x)


@pytest.mark.parametrize('name', MODELS)
def test_right_numbers(name):
    torch.manual_seed(0)
    model, x, y = MODELS[name]().eval(), torch.randn(7, 1, 4, 4), torch.arange(7) % 3
    slopes, norms, trace = reference(getattr(model, 'module', model), x,
                                     y) if name not in ('hardsigmoid', 'weight_norm') else (None, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for batch in (7, 3, 1):
            if slopes is None: continue
            torch.testing.assert_close(loss_jacobian(model, x, y, batch=batch), slopes, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(gradient_norms(model, x, y, batch=batch)['total'], norms, rtol=1e-4, atol=1e-6)
        found = hessian_trace(model, x, y, draws=400)['total']
    if trace is not None: assert abs(found.value - trace) < max(4 * found.error, 1e-4 * abs(trace))


FLAT_FIRST = dict(tanh=(lambda: [nn.Tanh()], 0), hardswish=(lambda: [nn.Hardswish()], 300),
                  gelu=(lambda: [nn.GELU()], 300))


@pytest.mark.parametrize('name', FLAT_FIRST)
def test_curved_networks_that_are_flat_on_the_first_samples(name):
    torch.manual_seed(0)
    make, factor = FLAT_FIRST[name]
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), *make(),
                                nn.Linear(6, 3)), torch.randn(8, 1, 4, 4), torch.arange(8) % 3
    nn.init.zeros_(model[1].bias)
    x[:4] *= factor
    exact = copy.deepcopy(model).double()
    hessian = lambda i: torch.autograd.functional.hessian(lambda v: F.cross_entropy(exact(v.view(1, 1, 4, 4)),
                                                                                    y[i:i + 1]),
                                                          x[i].double().flatten())
    want = torch.stack([hessian(i).trace() for i in range(4, 8)])
    torch.testing.assert_close(input_hessian(model, x, y)['trace'][4:], want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('margin', [350, 400, 600, 720, 900])
def test_confident_samples_have_tiny_numbers(margin):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad(): model[3].bias.copy_(torch.tensor([float(margin), 0, 0]))
    x, y = torch.randn(4, 1, 4, 4), torch.zeros(4, dtype=torch.long)
    numbers = [loss_jacobian(model, x, y), gradient_norms(model, x, y)['total'],
               tangent_hessian(model, x, y, NORMALIZE), hutchinson_trace(model, x, y, 3)['total'],
               top_eigenvalues(model, x, y, k=1).values]
    for values in numbers: assert values.isfinite().all() and values.abs().max() < 1e-100


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 13])
def test_any_number_of_channels_and_any_default_type(channels):
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Conv2d(channels, 3, 3), nn.ReLU(), nn.Flatten(),
                                nn.Linear(108, 3)), torch.rand(3, channels, 8, 8), torch.arange(3)
    usual = tangent_parts(model, x, y, Normalize((.5,) * channels, (.25,) * channels))
    torch.set_default_dtype(torch.float64)
    try: other = tangent_parts(model, x, y, Normalize((.5,) * channels, (.25,) * channels))
    finally: torch.set_default_dtype(torch.float32)
    assert usual.keys() == other.keys() and all(v.isfinite().all() for v in other.values())


def test_refusals_name_the_reason():
    x, y = torch.randn(4, 1, 4, 4), torch.arange(4) % 3
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    refused = {'other samples of its batch': nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), flat),
               'something random': Model(lambda m, x: m.a(F.dropout(x.flatten(1))), a=nn.Linear(16, 3)),
               'cut off from the input': Model(lambda m, x: m.a(x.detach().flatten(1)), a=nn.Linear(16, 3)),
               '[0, z]': nn.Sequential(nn.Flatten(), nn.Linear(16, 1)),
               'not a tuple': Model(lambda m, x: (m.a(x.flatten(1)), x), a=nn.Linear(16, 3)),
               'torch.float16 logits': Model(lambda m, x: m.a(x.flatten(1)).half(), a=nn.Linear(16, 3)),
               'fails on inputs': nn.Sequential(nn.Flatten(), nn.Linear(3, 3))}
    for reason, model in refused.items():
        with pytest.raises(ValueError, match=reason.replace('[', r'\[')): loss_jacobian(model, x, y * 0)


class Counting(nn.Module):
    "Counts its calls in one buffer in place, and in another that it replaces."
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 3)
        self.register_buffer('calls', torch.zeros(()))
        self.register_buffer('seen', torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen = self.seen + len(x)
        return self.a(x.flatten(1))


def test_calls_leave_buffers_and_data_as_they_were():
    model, x, y = Counting(), torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    scaling, same = Model(lambda m, x: m.a(x.mul_(2).flatten(1)), a=nn.Linear(16, 3)), x.clone()
    for f in (loss_jacobian, input_hessian, gradient_norms, hessian_trace):
        f(model, x, y)
        f(scaling, x, y)
        assert model.calls == model.seen == 0 and torch.equal(x, same)


def test_calls_leave_a_model_in_training_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).train()
    before, x, y = copy.deepcopy(model.state_dict()), torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    for f in (loss_jacobian, input_hessian, gradient_norms, hessian_trace): f(model, x, y)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
