"""Bounds of networks that people really have: a right number, or a refusal that names the module. References:
autograd in float64."""
import copy
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as P
from torch import nn
from torch.nn.utils import prune

from smoothinterp.bounds import constants, distance_from_init, layer_norms, lipschitz, operator_norm, upper_bounds
from smoothinterp.models import build
from smoothinterp.theorem2 import check_theorem2, first_layer, layerwise

pytestmark = pytest.mark.filterwarnings('ignore')


class Net(nn.Module):
    "A network from a function of itself and its input."
    def __init__(self, forward, **modules):
        super().__init__()
        for name, m in modules.items(): setattr(self, name, m)
        self.run = forward

    def forward(self, x): return self.run(self, x)


def jacobian_norms(model, shape, n=24, scales=(.01, 1, 100)):
    "Operator norms of Jacobians at random inputs of several scales, one at a time, in float64."
    g, exact = torch.Generator().manual_seed(1), copy.deepcopy(model).double().eval()
    for p in exact.parameters(): p.requires_grad_(False)
    def norm(x):
        J = torch.autograd.functional.jacobian(lambda v: exact(v[None].clone())[0], x)
        return torch.linalg.matrix_norm(J.flatten(1), 2).item()
    return [norm(s * (torch.randn(shape, generator=g, dtype=torch.float64)
                      + torch.randn(1, generator=g, dtype=torch.float64)))
            for s in scales for _ in range(n // len(scales))]


def largest_ratio(model, shape, n=200):
    "Largest factor by which a pair of random inputs is moved apart."
    g, exact = torch.Generator().manual_seed(2), copy.deepcopy(model).double().eval()
    scale = 10 ** (4 * torch.rand(n, 1, 1, 1, generator=g, dtype=torch.float64) - 2)
    x = scale * torch.randn(n, *shape, generator=g, dtype=torch.float64)
    with torch.no_grad(): f = exact(x)
    return ((f[1:] - f[:-1]).norm(dim=1) / (x[1:] - x[:-1]).flatten(1).norm(dim=1)).max().item()


def conv(c=3, out=None, **kw): return nn.Conv2d(c, out or c, 3, padding=1, **kw)
def head(block, c=3, size=5): return nn.Sequential(block, nn.Flatten(), nn.Linear(c * size**2, 3)).eval()
def dense(layer, size=16): return nn.Sequential(nn.Flatten(), layer, nn.Linear(size, 3)).eval()


# Blocks that do more, or less, than add a shortcut and a branch

class ReZero(nn.Module):
    def __init__(self, alpha):
        super().__init__()
        self.conv, self.relu, self.downsample, self.alpha = conv(), nn.ReLU(), None, nn.Parameter(torch.tensor(alpha))
    def forward(self, x): return x + self.alpha * self.relu(self.conv(x))

class LayerScale(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.block, self.shortcut, self.gamma = (nn.Sequential(conv(), nn.ReLU()), nn.Identity(),
                                                 nn.Parameter(torch.full((3, 1, 1), gamma)))
    def forward(self, x): return self.gamma * self.block(x) + self.shortcut(x)

class Residual(nn.Module):
    "A block whose sum is any function of its input, branch and shortcut."
    def __init__(self, join, branch=None, after=None, inplace=False):
        super().__init__()
        self.branch = branch or nn.Sequential(conv(), nn.ReLU(inplace), conv())
        self.shortcut, self.relu, self.join = nn.Identity(), after or nn.ReLU(inplace), join
    def forward(self, x): return self.relu(self.join(x, self.branch(x), self.shortcut(x)))

class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.shortcut, self.pool = conv(), nn.Identity(), nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    def forward(self, x):
        z = self.conv(x)
        return z * self.gate(self.pool(z)) + self.shortcut(x)

class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.relu, self.conv, self.shortcut = nn.BatchNorm2d(3), nn.ReLU(), conv(), None
    def forward(self, x): return x + self.conv(self.relu(self.bn(x)))

class SharedPreActivation(PreActivation):
    "The shortcut starts after the activation, as in WideResNets that change their width."
    def __init__(self):
        super().__init__()
        self.shortcut = nn.Conv2d(3, 3, 1)
    def forward(self, x):
        z = self.relu(self.bn(x))
        return self.conv(z) + self.shortcut(z)

class InPlacePreActivation(PreActivation):
    "Its ReLU overwrites the block's input, so the shortcut is rectified too."
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
    def forward(self, x): return x + self.conv(self.relu(x))

class Dense(nn.Module):
    "Concatenation, as in DenseNets."
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.shortcut = conv(), nn.ReLU(), None
    def forward(self, x): return torch.cat([x, self.relu(self.conv(x))], 1)[:, ::2]

class StochasticDepth(nn.Module):
    "Drops its branch at random, in evaluation mode too."
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.shortcut = conv(), nn.ReLU(), nn.Identity()
    def forward(self, x):
        kept = (torch.rand(len(x), 1, 1, 1) < .5).to(x)
        return self.relu(self.conv(x)) * kept / .5 + self.shortcut(x)

class Hidden(nn.Module):
    "A scale that no version counter sees."
    def __init__(self, change):
        super().__init__()
        self.a, self.b, self.change, self.shortcut = conv(), conv(), change, None
    def forward(self, x):
        z = self.a(x)
        return self.b(self.change(z))

def through_data(z):
    z.data.mul_(25)
    return z

def through_numpy(z):
    a = z.detach().numpy()
    a *= 25
    return z

def stretched(z): return z[:, :1].expand(-1, 3, -1, -1)
def steep_when_large(z): return z * 25 if z.abs().max() > 10 else z
def steep_when_small(z): return z * 25 if z.abs().max() < 3 else z
def steep_when_dark(z): return torch.where(z.mean((1, 2, 3), keepdim=True) > 0, z, z * 25)

BLOCKS = dict(
    rezero=lambda: ReZero(10.), rezero_at_one=lambda: ReZero(1.), rezero_at_zero=lambda: ReZero(0.),
              layer_scale=lambda: LayerScale(25.),
    residual=lambda: Residual(lambda x, b, s: b + s),
              residual_in_place=lambda: Residual(lambda x, b, s: b.add_(s), inplace=True),
    weighted=lambda: Residual(lambda x, b, s: .5 * b + 4 * s), difference=lambda: Residual(lambda x, b, s: 10 * b - s),
    branch_alone=lambda: Residual(lambda x, b, s: b), scaled_branch=lambda: Residual(lambda x, b, s: 25 * b),
    mixed=lambda: Residual(lambda x, b, s: torch.sigmoid(x.mean()) * 25 * b + s),
              product=lambda: Residual(lambda x, b, s: b * s),
    sum_at_ordinary_inputs=lambda: Residual(lambda x, b, s: b * (25 if x.abs().max() > 50 else 1) + s),
    sum_at_large_inputs=lambda: Residual(lambda x, b, s: b * (25 if x.abs().max() < 1 else 1) + s),
    sum_where_positive=lambda: Residual(lambda x, b, s: b + s + 25 * (x - 100).relu()),
    three=lambda: Residual(lambda x, b, s: b + s + x),
              functional_after=lambda: Residual(lambda x, b, s: F.relu(b + s) * 25),
    dead_branch=lambda: Residual(lambda x, b, s: 25 * b + s, branch=dead_branch()),
              zero_branch=lambda: Residual(lambda x, b, s: 25 * b + s, branch=zero_branch()),
    squeeze_excite=SqueezeExcite, pre_activation=PreActivation, shared_pre_activation=SharedPreActivation,
    in_place_pre_activation=InPlacePreActivation, dense=Dense, stochastic_depth=StochasticDepth,
    data=lambda: Hidden(through_data), numpy=lambda: Hidden(through_numpy), stretched=lambda: Hidden(stretched),
    large=lambda: Hidden(steep_when_large), small=lambda: Hidden(steep_when_small),
              dark=lambda: Hidden(steep_when_dark),
    in_place=lambda: Hidden(lambda z: z.mul_(25)), relu_in_place=lambda: Hidden(F.relu_),
              out=lambda: Hidden(lambda z: torch.mul(z, 25, out=z)),
    mixing=lambda: Residual(lambda x, b, s: b + s.mean(0, keepdim=True).expand_as(s)),
              batch_norm=lambda: Hidden(lambda z: z - z.mean(0) + z),
    turned=lambda: Hidden(lambda z: z.transpose(2, 3)), flipped=lambda: Hidden(lambda z: z.flip(3)),
              same=lambda: Hidden(lambda z: z * 1),
)

def dead_branch():
    "A ReLU that no ordinary input wakes."
    branch = nn.Sequential(conv(), nn.ReLU())
    branch[0].bias.data.fill_(-1e6)
    return branch

def zero_branch():
    "A last convolution that starts at zero, as in Fixup."
    branch = nn.Sequential(conv(), nn.ReLU(), conv())
    for p in branch[2].parameters(): nn.init.zeros_(p)
    return branch

REFUSED = {'rezero', 'branch_alone', 'rezero_at_zero', 'layer_scale', 'weighted', 'difference', 'scaled_branch',
           'mixed', 'product', 'sum_at_ordinary_inputs',
           'sum_at_large_inputs', 'sum_where_positive', 'three', 'functional_after', 'dead_branch', 'squeeze_excite',
           'dense', 'stochastic_depth',
           'data', 'numpy', 'stretched', 'large', 'small', 'dark', 'in_place', 'relu_in_place', 'out', 'mixing',
           'batch_norm'}


@pytest.mark.parametrize('name', BLOCKS)
def test_a_block_is_bounded_or_refused_by_name(name):
    torch.manual_seed(0)
    model, x = head(BLOCKS[name]()), torch.randn(4, 3, 5, 5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if name in REFUSED:
        with pytest.raises(ValueError, match=r'^0 \(\w+\) does more|^0\.\S+ \(\w+\)'): upper_bounds(model, x)
    else:
        valid = upper_bounds(model, x)['valid']
        assert valid >= max(jacobian_norms(model, (3, 5, 5))) * (1 - 1e-4)
        assert valid >= largest_ratio(model, (3, 5, 5)) * (1 - 1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def exact_norm(layer, *shape):
    "Operator norm of a layer of float64 by its explicit matrix."
    J = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0].flatten(), torch.zeros(shape).double())
    return torch.linalg.matrix_norm(J.flatten(1), 2).item()


def test_a_residual_bound_is_the_sum_of_its_norms():
    torch.manual_seed(0)
    model, x = head(Residual(lambda x, b, s: b + s)).double(), torch.randn(1, 3, 5, 5)
    a, b = (exact_norm(model[0].branch[i], 3, 5, 5) for i in (0, 2))
    assert upper_bounds(model, x)['valid'] == pytest.approx((1 + a * b) * exact_norm(model[2], 75), rel=1e-6)


# Layers that are not what their class says

class EqualLinear(nn.Linear):
    def forward(self, x): return F.linear(x, self.weight * 8, self.bias)

class ResidualLinear(nn.Linear):
    def forward(self, x): return x + super().forward(x)

class Cosine(nn.Linear):
    def forward(self, x): return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))

class LoRA(nn.Linear):
    def __init__(self, i, o):
        super().__init__(i, o)
        self.A, self.B = nn.Linear(i, 2, bias=False), nn.Linear(2, o, bias=False)
    def forward(self, x): return super().forward(x) + 4 * self.B(self.A(x))

class Rectified(nn.Linear):
    def forward(self, x): return super().forward(x).relu() * 9

class Capped(nn.Linear):
    def forward(self, x): return super().forward(x * (1 + (x.abs() > 20)))

class Dropping(nn.Linear):
    def forward(self, x): return F.linear(F.dropout(x, .5, training=True), self.weight)

class Detached(nn.Linear):
    def forward(self, x): return super().forward(x.detach())

class StraightThrough(nn.Linear):
    "A backward pass that is not that of its forward pass."
    def forward(self, x):
        out = super().forward(x)
        return out.detach() * 8 + out - out.detach()

class Named(nn.Linear):
    "Changes nothing."

class EqualConv(nn.Conv2d):
    def forward(self, x): return self._conv_forward(x, self.weight * 6, self.bias)

class Standardized(nn.Conv2d):
    "Weight standardization."
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / w.flatten(1).std(1).view(-1, 1, 1, 1), self.bias)

class ConvReLU(nn.Conv2d):
    def forward(self, x): return F.relu(super().forward(x)) * 5

class DeadConv(nn.Conv2d):
    def forward(self, x): return F.relu(super().forward(x) - 1e7) * 5

class ConvBN(nn.Conv2d):
    def __init__(self, *a, **kw):
        super().__init__(*a, **kw)
        self.bn = nn.BatchNorm2d(self.out_channels)
    def forward(self, x): return F.relu(self.bn(super().forward(x)))

class ScaledReLU(nn.ReLU):
    def forward(self, x): return F.relu(x) * 1.7139

class LearnedReLU(nn.ReLU):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.))
    def forward(self, x): return torch.where(x > 0, x, self.slope * x)

class HalfReLU(nn.ReLU):
    "The same function, computed another way."
    def forward(self, x): return (x + x.abs()) / 2

class SteepAtZero(nn.ReLU):
    def forward(self, x): return torch.where(x.abs() < 1e-3, 25 * x.relu(), x.relu())

class LateReLU(nn.ReLU6):
    def forward(self, x): return F.relu(x) + 9 * F.relu(x - 200)

class Scaled(nn.Tanh):
    def forward(self, x): return 5 * super().forward(x)

class ActiveDropout(nn.Dropout):
    def forward(self, x): return F.dropout(x, self.p, training=True)

class StubbornDropout(nn.Dropout):
    def train(self, mode=True): return super().train(True)

class QuietDropout(nn.Dropout):
    def forward(self, x): return x if not self.training else super().forward(x)

class Pool(nn.MaxPool2d):
    def forward(self, x): return super().forward(x) * 3

class SamePool(nn.MaxPool2d):
    def forward(self, x): return F.max_pool2d(x, self.kernel_size, self.stride)

class ScaledNorm(nn.BatchNorm2d):
    def forward(self, x): return super().forward(x) * 7

class BatchStatistics(nn.BatchNorm2d):
    def train(self, mode=True): return super().train(True)

class Blur(nn.AvgPool2d):
    def forward(self, x): return super().forward(x) * 12

class Skip(nn.Identity):
    def forward(self, x): return 2 * x

class Rows(nn.Flatten):
    def forward(self, x): return super().forward(x) * 4

def pooled(layer): return nn.Sequential(conv(), layer, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)).eval()

def hooked(scale, kind='forward'):
    layer = nn.Linear(16, 16)
    def in_place(m, args, out): out.data.mul_(scale)
    if kind == 'forward': layer.register_forward_hook(lambda m, args, out: out * scale)
    if kind == 'in place': layer.register_forward_hook(in_place)
    if kind == 'before': layer.register_forward_pre_hook(lambda m, args: (args[0] * scale,))
    if kind == 'backward': layer.register_full_backward_hook(lambda m, g, _: (g[0] / scale,))
    if kind == 'instance': layer.forward = MethodType(lambda self, x: F.linear(x, scale * self.weight), layer)
    return layer

def hooked_container(scale):
    row = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    row.register_forward_hook(lambda m, args, out: out * scale)
    return row

LAYERS = dict(
    equal_linear=lambda: dense(EqualLinear(16, 16)), residual_linear=lambda: dense(ResidualLinear(16, 16)),
              lora=lambda: dense(LoRA(16, 16)),
    named=lambda: dense(Named(16, 16)), cosine=lambda: dense(Cosine(16, 16)),
              rectified=lambda: dense(Rectified(16, 16)),
    capped=lambda: dense(Capped(16, 16)), dropping=lambda: dense(Dropping(16, 16)),
              detached=lambda: dense(Detached(16, 16)),
    straight_through=lambda: dense(StraightThrough(16, 16)),
    equal_conv=lambda: pooled(EqualConv(3, 3, 3, padding=1)),
              standardized=lambda: pooled(Standardized(3, 3, 3, padding=1)),
    dead_conv=lambda: pooled(DeadConv(3, 3, 3, padding=1)),
    conv_relu=lambda: pooled(ConvReLU(3, 3, 3, padding=1)), conv_bn=lambda: pooled(ConvBN(3, 3, 3, padding=1)),
    scaled_relu=lambda: pooled(ScaledReLU()), learned_relu=lambda: pooled(LearnedReLU()),
              half_relu=lambda: pooled(HalfReLU()),
    steep_at_zero=lambda: pooled(SteepAtZero()), late_relu=lambda: pooled(LateReLU()),
              scaled_tanh=lambda: pooled(Scaled()),
    active_dropout=lambda: pooled(ActiveDropout()), stubborn_dropout=lambda: pooled(StubbornDropout()),
              quiet_dropout=lambda: pooled(QuietDropout()),
    dropout_2d=lambda: pooled(nn.Dropout2d()),
    pool=lambda: pooled(Pool(2)), same_pool=lambda: pooled(SamePool(2)),
              list_pool=lambda: pooled(nn.MaxPool2d([3, 2], [2, 1])),
    scaled_norm=lambda: pooled(ScaledNorm(3)), batch_statistics=lambda: pooled(BatchStatistics(3)),
    no_statistics=lambda: pooled(nn.BatchNorm2d(3, track_running_stats=False)), blur=lambda: pooled(Blur(2)),
              skip=lambda: pooled(Skip()),
    rows=lambda: nn.Sequential(Rows(), nn.Linear(16, 3)).eval(),
    weight_norm=lambda: dense(P.weight_norm(nn.Linear(16, 16))),
              spectral_norm=lambda: dense(P.spectral_norm(nn.Linear(16, 16))),
    spectral_norm_conv=lambda: pooled(P.spectral_norm(conv())),
              pruned=lambda: dense(prune.l1_unstructured(nn.Linear(16, 16), 'weight', .5)),
    old_weight_norm=lambda: pooled(nn.Sequential(old(conv()), normed())), hook=lambda: dense(hooked(25)),
              quiet_hook=lambda: dense(hooked(1)),
    in_place_hook=lambda: dense(hooked(25, 'in place')), pre_hook=lambda: dense(hooked(25, 'before')),
              backward_hook=lambda: dense(hooked(25, 'backward')),
    forward_of_an_instance=lambda: dense(hooked(25, 'instance')), hooked_row=lambda: dense(hooked_container(25)),
    circular=lambda: pooled(conv(padding_mode='circular')), reflect=lambda: pooled(conv(padding_mode='reflect')),
              grouped=lambda: pooled(conv(groups=3)),
    dilated=lambda: pooled(nn.Conv2d(3, 3, 3, dilation=2, padding=2)),
              transposed=lambda: pooled(nn.ConvTranspose2d(3, 3, 3, stride=2)),
)

def old(layer): return nn.utils.weight_norm(layer)

def normed():
    bn = nn.BatchNorm2d(3)
    bn.running_var.uniform_(.2, 2), bn.weight.data.uniform_(-2, 2)
    return bn

REFUSED_LAYERS = {'cosine', 'rectified', 'capped', 'dropping', 'straight_through', 'dead_conv', 'conv_relu', 'conv_bn',
                  'scaled_relu', 'learned_relu',
                  'steep_at_zero', 'late_relu', 'scaled_tanh', 'active_dropout', 'stubborn_dropout', 'pool',
                  'scaled_norm', 'batch_statistics',
                  'no_statistics', 'skip', 'rows', 'hooked_row', 'in_place_hook'}


@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_is_bounded_as_it_acts_or_refused_by_name(name):
    torch.manual_seed(0)
    model = LAYERS[name]()
    shape = (1, 4, 4) if isinstance(model[0], nn.Flatten) else (3, 4, 4)
    x = torch.randn(4, *shape)
    if name in REFUSED_LAYERS:
        with pytest.raises(ValueError, match=r'^[\d.]+(:| \()'): upper_bounds(model, x)
        return
    valid = upper_bounds(model, x)['valid']
    with torch.no_grad(): model(x) # deepcopy needs weights without a history
    assert valid >= max(jacobian_norms(model, shape)) * (1 - 1e-4)
    assert valid >= largest_ratio(model, shape) * (1 - 1e-4)


def test_layer_norms_are_those_of_the_map_that_acts():
    torch.manual_seed(0)
    layers = dict(equal_linear=EqualLinear(16, 16), residual_linear=ResidualLinear(16, 16), lora=LoRA(16, 16),
                  named=Named(16, 16),
                  weight_norm=P.weight_norm(nn.Linear(16, 16)), spectral_norm=P.spectral_norm(nn.Linear(16, 16)),
                  hook=hooked(25),
                  pre_hook=hooked(25, 'before'), instance=hooked(25, 'instance'))
    for name, layer in layers.items():
        model = dense(layer).double()
        with torch.no_grad(): matrix = model[1](torch.eye(16).double()) - model[1](torch.zeros(16, 16).double())
        row = layer_norms(model, torch.randn(1, 1, 4, 4)).loc['1']
        assert row.operator == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-6), name
        if row.frobenius == row.frobenius: assert row.frobenius == pytest.approx(matrix.norm().item(), rel=1e-6), name
        assert (row.frobenius == row.frobenius) == (name in ('named', 'weight_norm', 'spectral_norm')), name
    for layer in (EqualConv(3, 3, 3, padding=1), Standardized(3, 3, 3, padding=1), conv(padding_mode='circular'),
                  conv(groups=3), P.spectral_norm(conv())):
        model = pooled(nn.Sequential(layer)).double()
        assert layer_norms(model, torch.randn(1, 3, 4, 4)).operator['1.0'] == pytest.approx(exact_norm(layer, 3, 4, 4),
                                                                                            rel=1e-6)


@pytest.mark.parametrize('layer', [Cosine(16, 16), Rectified(16, 16), Dropping(16, 16), Capped(16, 16)])
def test_layer_norms_refuse_a_layer_that_is_no_linear_map(layer):
    with pytest.raises(ValueError, match='1: .* is no linear map'): layer_norms(dense(layer), torch.randn(1, 1, 4, 4))
    with pytest.raises(ValueError, match='is no linear map'): operator_norm(layer, torch.randn(1, 16))


def gru(s, x): return s.c(s.r(x[:, 0])[0][:, -1])
def attention(s, x): return s.c(s.a(s.q(x[:, 0]), s.q(x[:, 0]), s.q(x[:, 0]))[0].mean(1))
def by_keyword(s, x): return s.c(input=s.r(input=s.a(input=x)).flatten(1))
class Own(nn.Module):
    "A linear layer that is derived of nothing."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16))
    def forward(self, x): return x.flatten(1) @ self.weight.T

MISSING = {'r.weight_ih_l0': Net(gru, r=nn.GRU(4, 5, batch_first=True), c=nn.Linear(5, 3)),
           'a.in_proj_weight': Net(attention, q=nn.Linear(4, 4), a=nn.MultiheadAttention(4, 2, batch_first=True),
                                   c=nn.Linear(4, 3)),
           'w': Net(lambda s, x: s.c(x.flatten(1) @ s.w), w=nn.Parameter(torch.randn(16, 4)), c=nn.Linear(4, 3)),
           '0.weight': nn.Sequential(Own()), 'c.weight': Net(lambda s, x: F.linear(s.a(x).flatten(1), s.c.weight),
                                                             a=conv(1), c=nn.Linear(16, 3))}

@pytest.mark.parametrize('name', MISSING)
def test_layer_norms_miss_no_layer_without_a_word(name):
    with pytest.raises(ValueError, match=name): layer_norms(MISSING[name].eval(), torch.randn(2, 1, 4, 4))
    with pytest.raises(ValueError): upper_bounds(MISSING[name].eval(), torch.randn(2, 1, 4, 4))


def test_layers_that_do_not_run_are_no_reason_to_refuse():
    model = Net(lambda s, x: s.c(s.a(x).flatten(1)) + (s.aux(x.flatten(1)) if s.training else 0), a=conv(1),
                c=nn.Linear(16, 3), aux=nn.Linear(16, 3))
    assert list(layer_norms(model.eval(), torch.randn(1, 1, 4, 4)).index) == ['a', 'c']
    found = layer_norms(build('vit', 6, 10, 1, 8), torch.randn(1, 1, 8, 8))
    assert list(found.index)[:2] == ['patches', 'blocks.0.attention.qkv']


def test_a_layer_at_two_sizes_has_two_rows():
    torch.manual_seed(0)
    model = Net(lambda s, x: s.l(s.c(s.p(s.c(x))).flatten(1)), c=conv(1), p=nn.MaxPool2d(2),
                l=nn.Linear(4, 3)).double().eval()
    norms = layer_norms(model, torch.randn(1, 1, 4, 4))
    assert list(norms.index) == ['c (call 1)', 'c (call 2)', 'l']
    for row, size in zip(('c (call 1)', 'c (call 2)'), (4, 2)):
        assert norms.operator[row] == pytest.approx(exact_norm(model.c, 1, size, size), rel=1e-6)


# Wrapped, compiled, scripted; called in other modes and layouts

def small(): return nn.Sequential(conv(1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()

def test_wrapped_models_are_those_inside():
    torch.manual_seed(0)
    model, x, y = small(), torch.randn(2, 1, 4, 4), torch.tensor([0, 2])
    start = {k: v + 1 for k, v in model.state_dict().items()}
    norms, bounds, pieces = layer_norms(model, x), upper_bounds(model, x), layerwise(model, x, y)
    part = copy.deepcopy(model)
    part[3] = torch.compile(part[3], backend='eager')
    whole = copy.deepcopy(model)
    whole.compile(backend='eager')
    with torch.no_grad(): part(x), whole(x)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend='eager'), part, whole):
        assert layer_norms(wrapped, x).to_numpy().tolist() == norms.to_numpy().tolist()
        assert upper_bounds(wrapped, x) == bounds
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend='eager')):
        assert all(torch.equal(v, pieces[k]) for k, v in layerwise(wrapped, x, y).items())
        for init in (start, {f'{next(iter(wrapped._modules))}.{k}': v for k, v in start.items()}):
            assert distance_from_init(wrapped, init) == distance_from_init(model, start)
    traced, scripted = torch.jit.trace(model, x), torch.jit.script(model)
    for script in (traced, scripted, nn.Sequential(scripted), torch.jit.freeze(scripted)):
        for measure in (layer_norms, upper_bounds, first_layer):
            with pytest.raises(ValueError, match='pass the module that it was made of'): measure(script, x)
    graph = torch.fx.symbolic_trace(head(Residual(lambda x, b, s: b + s)))
    assert upper_bounds(graph, torch.randn(1, 3, 5, 5))['valid'] >= max(jacobian_norms(graph, (3, 5, 5))) * (1 - 1e-4)


def test_calls_within_inference_mode_are_the_same():
    torch.manual_seed(0)
    model, x, y = head(ReZero(1.)), torch.randn(2, 3, 5, 5), torch.tensor([0, 2])
    stem = nn.Sequential(conv(), *model)
    with torch.inference_mode():
        inside = x * 1
        assert upper_bounds(model, inside) == upper_bounds(model, x)
        assert layer_norms(model, inside).equals(layer_norms(model, x))
        assert torch.equal(layerwise(stem, inside, y)['unshared'], layerwise(stem, x, y)['unshared'])
        assert check_theorem2(stem, x, y).slack == pytest.approx(check_theorem2(stem, x, y).slack)
        assert distance_from_init(model, model.state_dict())['2'] == 0


def test_keywords_lists_and_layouts():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 4, 4)
    model = Net(by_keyword, a=conv(1, 2), r=nn.Flatten(), c=nn.Linear(32, 3)).eval()
    assert layer_norms(model, x).shape == (2, 3)
    assert upper_bounds(model, x)['valid'] >= max(jacobian_norms(model, (1, 4, 4))) * (1 - 1e-4)
    assert layerwise(model, x, torch.tensor([0]))['grad_x'] > 0
    flat = Net(lambda s, x: s.c(torch.flatten(s.a(x), 1)), a=nn.Sequential(conv(1, 2), nn.ReLU()),
               c=nn.Linear(32, 3)).eval()
    contiguous = upper_bounds(flat, x)
    assert upper_bounds(flat.to(memory_format=torch.channels_last),
                        x)['valid'] == pytest.approx(contiguous['valid'], rel=1e-4)
    linear = nn.Linear(4, 3)
    pooled = [upper_bounds(nn.Sequential(nn.MaxPool2d(k), nn.Flatten(), linear).eval(), x)['valid']
              for k in (2, (2, 2), [2, 2], [2])]
    assert pooled == [pytest.approx(torch.linalg.matrix_norm(linear.weight, 2).item())] * 4
    sized = Net(lambda s, x: s.c(s.t(x, output_size=[8, 8]).flatten(1)),
                t=nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1), c=nn.Linear(64, 3)).eval()
    with pytest.raises(ValueError, match='t .*more than one tensor'): upper_bounds(sized, x)


def test_a_hook_that_changes_the_input_of_the_model_is_refused():
    model = small()
    model.register_forward_pre_hook(lambda m, args: (args[0] * 25,))
    with pytest.raises(ValueError, match='changes the input'): upper_bounds(model, torch.randn(1, 1, 4, 4))


def test_a_batch_norm_is_folded_only_where_that_is_the_same():
    torch.manual_seed(0)
    for model in (nn.Sequential(nn.Flatten(1, 2), Net(lambda s, x: s.b(s.l(x)), l=nn.Linear(4, 4), b=nn.BatchNorm1d(4)),
                                nn.Flatten(), nn.Linear(16, 3)),
                  nn.Sequential(nn.Flatten(2), nn.Linear(16, 1), nn.Flatten(), nn.BatchNorm1d(1), nn.Linear(1, 3))):
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d): m.running_var.uniform_(.01, 2), m.weight.data.uniform_(-2, 2)
        valid = upper_bounds(model.eval(), torch.randn(2, 1, 4, 4))['valid']
        assert valid >= max(jacobian_norms(model, (1, 4, 4))) * (1 - 1e-4)


def test_a_rule_of_the_user_covers_its_class_alone():
    class Double(nn.Sequential):
        def forward(self, x): return 2 * super().forward(x)
    class More(Double):
        def forward(self, x): return 9 * super().forward(x)
    @lipschitz.register(Double)
    def _(module, call): return 2 * constants(call)[-1]
    torch.manual_seed(0)
    rest = nn.Flatten(), nn.Linear(75, 3)
    x = torch.randn(1, 3, 5, 5)
    model = nn.Sequential(Double(conv()), *rest).eval()
    assert upper_bounds(model, x)['valid'] >= max(jacobian_norms(model, (3, 5, 5))) * (1 - 1e-4)
    class Bounded(nn.Linear):
        def forward(self, x): return super().forward(x).tanh()
    @lipschitz.register(Bounded)
    def _(module, call): return torch.linalg.matrix_norm(module.weight, 2).item()
    bounds = upper_bounds(dense(Bounded(16, 16)), torch.randn(1, 1, 4, 4))
    # NaN: its operator norm is not known
    assert bounds['valid'] > 0 and bounds['paper_operator'] != bounds['paper_operator']
    with pytest.raises(ValueError, match=r'0 \(More\) does not act like Double'):
        upper_bounds(nn.Sequential(More(conv()), *rest).eval(), x)


# The layerwise inequality: about a first layer that is used once, and an input that is used nowhere else

def autograd_norms(model, x, y, weight):
    "Norms of each sample's loss gradient by the input and by a weight, in float64, one sample at a time."
    exact = copy.deepcopy(model).double()
    rows = []
    for a, b in zip(x.double(), y):
        a = a[None].requires_grad_()
        loss = F.cross_entropy(exact(a), b[None])
        rows.append([g.norm() for g in torch.autograd.grad(loss, [a, exact.get_parameter(weight)])])
    return torch.tensor(rows, dtype=torch.float64).T

def tokens(s, x): # patches of 2 x 2 pixels, as a mixer has them
    z = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return s.c(torch.relu(s.a(z)).flatten(1))

RIGHT = {'a.weight': Net(lambda s, x: s.c(torch.relu(s.a(x.flatten(1)))), a=nn.Linear(16, 6), c=nn.Linear(6, 3)),
         '0.weight': nn.Sequential(conv(1, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)),
         't.a.weight': nn.Sequential()}
RIGHT['t.a.weight'].t = Net(tokens, a=nn.Linear(4, 5), c=nn.Linear(20, 3))

@pytest.mark.parametrize('weight', RIGHT)
def test_layerwise_is_what_autograd_says(weight):
    torch.manual_seed(0)
    model, x, y = RIGHT[weight].eval(), torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    found, (by_x, by_weight) = layerwise(model, x, y, batch=2), autograd_norms(model, x, y, weight)
    torch.testing.assert_close(found['grad_x'], by_x, rtol=1e-5, atol=0)
    torch.testing.assert_close(found['grad_theta1'], by_weight, rtol=1e-5, atol=0)
    assert (found['patch'] * found['grad_x'] <= (1 + 1e-5) * first_layer(model, x).norm * found['unshared']).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())

def linear(i=16, o=16): return nn.Linear(i, o)

def tied(transposed=False):
    model = Net(lambda s, x: s.c(torch.relu(s.b(torch.relu(s.a(x.flatten(1)))))), a=linear(), b=linear(),
                c=linear(16, 3))
    model.b.weight = model.a.weight
    return model

def late(s, x): # a second call for bright inputs alone
    z = torch.relu(s.a(x.flatten(1)))
    return s.c(torch.relu(s.a(z)) if x.mean() > 2 else z)

def dead_tie(s, x): # the second use does nothing unless an input is large
    z = s.a(x.flatten(1))
    return s.c(torch.relu(z)) + F.linear(torch.relu(z - 50), s.a.weight)[:, :3]

def around(s, x): return s.c(torch.relu(s.a(x.flatten(1)))) + torch.relu(x.flatten(1)[:, :3] - 50)
def doubled(s, x): return s.c(torch.relu(s.a(2 * x.flatten(1))))
def shifted(s, x): return s.c(torch.relu(s.a(x.flatten(1) - x.mean() * (x.mean() > 2))))
def cut(s, x):
    with torch.no_grad(): z = torch.relu(s.a(x.flatten(1)))
    return s.c(z)

WRONG = {'0 runs more than once': lambda: nn.Sequential(*[conv(1)] * 2, nn.Flatten(), linear(16, 3)),
         'weights of a are used elsewhere': tied,
         'a runs more than once': lambda: Net(late, a=linear(), c=linear(16, 3)),
         'weights of a are used elsewhere too': lambda: Net(dead_tie, a=linear(), c=linear(16, 3)),
         'other ways than a': lambda: Net(around, a=linear(), c=linear(16, 3)),
         'a .Linear. is not': lambda: Net(doubled, a=linear(), c=linear(16, 3)),
         'a is not given the input itself in every batch': lambda: Net(shifted, a=linear(), c=linear(16, 3)),
         'no gradient passes through a': lambda: Net(cut, a=linear(), c=linear(16, 3)),
         '1 .EqualLinear. is not': lambda: dense(EqualLinear(16, 16)), '1 .LoRA. is not': lambda: dense(LoRA(16, 16)),
         '1 is computed from other parameters': lambda: dense(P.weight_norm(linear()))}

@pytest.mark.parametrize('reason', WRONG)
def test_layerwise_refuses_what_the_inequality_is_not_about(reason):
    torch.manual_seed(0)
    model, x, y = WRONG[reason]().eval(), torch.randn(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    x[4:] += 3 # only the last batch is bright
    for measure in (layerwise, check_theorem2):
        with pytest.raises(ValueError, match=reason): measure(model, x, y, batch=2)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


# Distance from the start

def moved(model):
    "The model's start as a state dict, and the model after a step."
    start = copy.deepcopy(model.state_dict())
    g = torch.Generator().manual_seed(3)
    for p in model.parameters(): p.data.add_(.1 * torch.randn(p.shape, generator=g))
    return start

def expected(now, start): return ((now - start).norm() / start.norm()).item()

def normalized(g, v): return g * v / v.flatten(1).norm(dim=1)[:, None]

def test_distances_are_of_the_weights_that_act():
    torch.manual_seed(0)
    for wrap in (P.weight_norm, nn.utils.weight_norm):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), wrap(nn.Linear(4, 3))).double()
        keys = [k for k in model.state_dict() if k.startswith('2.') and 'bias' not in k]
        start = moved(model)
        g, v = (lambda state: sorted((state[k] for k in keys), key=torch.numel))(model.state_dict())
        g0, v0 = sorted((start[k] for k in keys), key=torch.numel)
        found = distance_from_init(model, start)
        assert found == {'0': pytest.approx(expected(model[0].weight, start['0.weight'])),
                         '2': pytest.approx(expected(normalized(g, v), normalized(g0, v0)))}
    model = nn.Sequential(prune.l1_unstructured(nn.Linear(4, 4), 'weight', .5)).double()
    start = moved(model)
    want = expected(model[0].weight_orig * model[0].weight_mask, start['0.weight_orig'] * start['0.weight_mask'])
    assert distance_from_init(model, start) == {'0': pytest.approx(want)}
    for wrap in (P.spectral_norm, nn.utils.spectral_norm):
        model = nn.Sequential(wrap(conv(2), n_power_iterations=30)).double()
        model.train()
        for _ in range(3): model(torch.randn(1, 2, 5, 5).double())
        key = next(k for k in model.state_dict() if 'orig' in k)
        start, buffers = moved(model), copy.deepcopy(model.state_dict())
        sigma = lambda w: torch.linalg.matrix_norm(w.flatten(1), 2)
        w0 = start[key] / sigma(start[key])
        u, v = ([start[k] for k in start if k.endswith(e)][0] for e in ('_u', '_v'))
        w = model.state_dict()[key]
        w = w / (u @ w.flatten(1) @ v)
        assert distance_from_init(model, start) == {'0': pytest.approx(expected(w, w0), rel=1e-6)}
        assert all(torch.equal(v, buffers[k]) for k, v in model.state_dict().items()) and model.training


def test_a_start_before_a_layer_was_parametrized_or_pruned():
    torch.manual_seed(0)
    for wrap in (P.weight_norm, nn.utils.weight_norm, lambda m: prune.l1_unstructured(m, 'weight', .5)):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        start = copy.deepcopy(model.state_dict())
        wrap(model[1])
        with torch.no_grad(): model(torch.randn(1, 4))
        want = expected(model[1].weight, start['1.weight'])
        assert distance_from_init(model, start)['1'] == pytest.approx(want, abs=1e-6)
        with pytest.raises(KeyError, match=r'1\.'):
            distance_from_init(model, {k: v for k, v in start.items() if not k.startswith('1.')})
        with pytest.raises(ValueError, match='not.* the same network'):
            distance_from_init(model, start | {'1.weight': torch.zeros(5, 4)})


def test_distances_of_recurrent_layers_attention_and_bare_matrices():
    torch.manual_seed(0)
    for layer in (nn.GRU(3, 4), nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2), nn.RNN(3, 4)):
        start = moved(layer)
        found = distance_from_init(layer, start)
        assert found == {k: pytest.approx(expected(v.double(), start[k].double()), rel=1e-6)
                         for k, v in layer.state_dict().items() if v.ndim > 1}
    parametrized = nn.utils.parametrize.register_parametrization(nn.GRU(3, 4), 'weight_hh_l0', Half())
    start = moved(parametrized)
    assert set(distance_from_init(parametrized, start)) == {'weight_ih_l0', 'weight_hh_l0'}
    bare = Net(None, w=nn.Parameter(torch.randn(3, 4)), token=nn.Parameter(torch.randn(1, 1, 4)),
               a=nn.MultiheadAttention(4, 2), l=nn.LayerNorm(4))
    assert list(distance_from_init(bare, bare.state_dict())) == ['w', 'a.in_proj_weight', 'a.out_proj']

class Half(nn.Module):
    def forward(self, w): return w / 2


def test_names_of_plain_networks_are_those_of_their_weights():
    for family in ('convnet-a', 'resnet18', 'vit', 'mlp'):
        net = build(family, 6, 10, 1, 8)
        state = net.state_dict()
        names = [k.removesuffix('.weight') for k, w in state.items() if k.endswith('weight') and w.ndim > 1]
        assert list(distance_from_init(net, state)) == names
