"The report says what direct calls say, keeps to its time, and has a row for what it cannot measure."
import math
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from smoothinterp import report as module
from smoothinterp import smoothness
from smoothinterp.augment import svd_paths
from smoothinterp.bounds import layer_norms, upper_bounds
from smoothinterp.checkpoints import load_run
from smoothinterp.cli import main
from smoothinterp.curvature import estimate, exact_trace, layer_eigenvalues, spectral_density, top_eigenvalues
from smoothinterp.data import Normalize, digits
from smoothinterp.geodesic import sharpness_volumes
from smoothinterp.gradients import gradient_norms
from smoothinterp.measures import cross_entropy, logit_jacobian, loss_jacobian, tangent_hessian, tangent_parts
from smoothinterp.report import (
    MEASURES,
    Measure,
    found_rows,
    images_in,
    load_weights,
    measure,
    on_budget,
    same_error,
    standing,
)
from smoothinterp.results import GROUPS, TrainedNetwork, results
from smoothinterp.theorem2 import check_theorem2

ROOT = Path(__file__).parent.parent
N = 100


@pytest.fixture(scope='module')
def trained():
    "A network of the study digits, with the first N of its samples and their normalization."
    model, data = load_run('digits', 2.5)
    return model, data.inputs(data.x[:N]), data.y[:N], data.normalize


@pytest.fixture(scope='module')
def report(trained):
    model, x, y, normalize = trained
    return smoothness(model, x, y, seconds=300, normalize=normalize, progress=False)


@pytest.fixture
def only():
    "Only these measures are taken."
    every = dict(MEASURES)
    def keep(*names):
        for name in every.keys() - {*names}: del MEASURES[name]
    yield keep
    MEASURES.clear()
    MEASURES.update(every)


def mlp(d=5, classes=3, activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 16), activation(), nn.Linear(16, classes))


def table(report): return report.frame.set_index('measure')


def test_means_and_error_bars_are_those_of_direct_calls(trained, report):
    model, x, y, normalize = trained
    norms, parts = logit_jacobian(model, x, y), tangent_parts(model, x, y, normalize)
    want = dict(cross_entropy=cross_entropy(model, x, y), loss_jacobian=loss_jacobian(model, x, y),
                logit_operator=norms['operator'], logit_frobenius=norms['frobenius'],
                tangent_hessian=tangent_hessian(model, x, y, normalize), tangent_smooth=parts['smooth'],
                tangent_kink=parts['kink'], gradient_norm=gradient_norms(model, x, y)['total'],
                hessian_trace=exact_trace(model, x, y)['total'])
    for name, values in want.items():
        torch.testing.assert_close(report.values[name], values)
        row = table(report).loc[name]
        assert row.n == N and (row.value, row.error) == pytest.approx(estimate(values), rel=1e-6), name


def test_numbers_of_the_network_are_those_of_direct_calls(trained, report):
    model, x, y, _ = trained
    value = table(report)['value']
    assert value['error'] == 0
    assert value['lipschitz'] == pytest.approx(report.values['logit_operator'].square().mean().sqrt().item())
    assert value['hessian_lambda_max'] == pytest.approx(top_eigenvalues(model, x, y, 1, 1e-4).values.item(), rel=1e-3)
    assert value['valid_bound'] == pytest.approx(upper_bounds(model, x)['valid'], rel=1e-4)
    assert value['product_bound'] == pytest.approx(layer_norms(model, x).operator.prod(), rel=1e-4)
    assert 'proved for a dense first layer' in table(report).loc['theorem2', 'why']


def test_spectrum_is_that_of_direct_calls(trained, report):
    model, x, y, _ = trained
    want, rows = layer_eigenvalues(model, x, y), table(report)
    assert report.spectrum['layers'].keys() == want.keys()
    for layer, top in want.items(): assert report.spectrum['layers'][layer].values.item() == pytest.approx(
        top.values.item(), rel=2e-3), layer
    layer = max(want, key=lambda name: want[name].values.item())
    assert rows.loc['hessian_layer_max', 'value'] == report.spectrum['layers'][layer].values.item()
    assert f'in {layer};' in rows.loc['hessian_layer_max', 'why']
    got = report.spectrum['density']
    full = spectral_density(model, x, y, probes=4, steps=60, width=got.width)
    at = torch.from_numpy(np.interp(full.grid, got.grid, got.density))
    assert (at - full.density).abs().max() < .02 * full.density.max()


@pytest.mark.parametrize('close', [1.003, 1.02, 1.1])
def test_a_largest_eigenvalue_with_another_close_by(close):
    "The first products mix the two, with a small residual and a large gap to what is known of the others."
    for seed in range(20):
        rest = torch.rand(98, generator=torch.Generator().manual_seed(seed)) * .01
        values = torch.cat([torch.tensor([close, 1.]), rest])
        found = module._largest(values.mul, 100, values, 9.)
        assert abs(found.values.item() - close) < 2e-3 * close


class Saddle(nn.Module):
    "A loss that curves down by 100 along 50 weights, and up by next to nothing along one."
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(50)), nn.Parameter(torch.tensor(.1))
    def forward(self, x):
        z = 50 * self.down.square().sum() + 1e-7 * self.up**2 + 0 * x.flatten(1)[:, 0]
        return torch.stack([z, -z], 1)


def test_a_largest_eigenvalue_that_is_tiny_is_no_lack_of_time(only):
    only('function', 'hessian_lambda_max', 'hessian_layers')
    rows = table(smoothness(Saddle(), torch.rand(40, 5), torch.zeros(40).long(), seconds=20, progress=False))
    for row in ('hessian_lambda_max', 'hessian_layer_max'):
        assert 'tiny beside the most negative one, -100.' in rows.loc[row, 'why']
        assert 'seconds' not in rows.loc[row, 'why'] and 'top_eigenvalues' in rows.loc[row, 'why']


@pytest.mark.parametrize('values, seconds, why', [
    (torch.linspace(0, 1, 10**5), 0, '^no time: the largest eigenvalue is .* after 1 product; pass more seconds'),
    (torch.tensor([-1., 1e-9]), 9, '^the largest eigenvalue .* after 2 products: .* the most negative one, -1;')])
def test_why_an_eigenvalue_is_unknown(values, seconds, why):
    with pytest.raises(ValueError, match=why): module._largest(values.mul, len(values), values, seconds)


def test_curved_directions_are_those_of_a_dense_hessian(only):
    only('function', 'hessian_density')
    model, x, y = mlp(activation=nn.Tanh), torch.randn(40, 5), torch.arange(40) % 3
    report = smoothness(model, x, y, seconds=60, progress=False)
    names, shapes = zip(*[(k, p.shape) for k, p in model.named_parameters()])
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    def loss(v):
        parts = [p.view(s) for p, s in zip(v.split([s.numel() for s in shapes]), shapes)]
        return nn.functional.cross_entropy(torch.func.functional_call(model, dict(zip(names, parts)), x), y)
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat).double())
    top, share = eigenvalues.abs().max(), table(report).loc['hessian_curved']
    want = (eigenvalues.abs() > .1 * top).double().mean().item()
    assert abs(share.value - want) < 4 * share.error and share.error < .1
    assert '4 random probes' in share.why


def test_flat_directions_are_not_counted_as_curved(only):
    "One direction of 10,000 is curved."
    only('function', 'hessian_density')
    x, y = torch.linspace(.5, 1, 20)[:, None] * torch.randn(5000), torch.arange(20) % 2
    assert table(smoothness(nn.Linear(5000, 2, bias=False), x, y, progress=False)).loc['hessian_curved', 'value'] < 5e-4


def test_a_largest_eigenvalue_of_a_part_is_said_to_be_too_large(only):
    m = MEASURES['hessian_lambda_max']
    assert 'too large' in found_rows(m, dict(hessian_lambda_max=module.Estimate(1., .1)), 50, 100)[0]['why']
    assert not found_rows(m, dict(hessian_lambda_max=module.Estimate(1., .1)), 100, 100)[0]['why']
    assert module._how_found(module.Estimate(1., math.nan), False, 50) == (
        'Lanczos, no time for two halves of the samples, a lower bound for these samples: no time for more')


@pytest.mark.parametrize('size', [(4, 12), (12, 4), (1, 1), (2, 2)])
def test_images_that_have_no_svd_paths_are_named(only, size):
    only('function', 'volumes')
    model = nn.Sequential(nn.Flatten(), mlp(size[0] * size[1], 2))
    rows = table(smoothness(model, torch.rand(4, 1, *size), torch.zeros(4).long(), progress=False))
    assert f'at least 3 x 3 pixels; these have {size[0]} x {size[1]}' in rows.loc['volume_accuracy', 'why']


@pytest.mark.parametrize('decades', [.01, .3, 1, 1.9, 8])
def test_every_sample_is_in_the_histogram_and_its_axis_has_numbers(decades):
    values = 3 * torch.logspace(-decades, 0, 50, dtype=torch.float64)
    fig, ax = plt.subplots()
    module._draw_samples(ax, values)
    fig.canvas.draw()
    assert sum(bar.get_height() for bar in ax.patches) == 50
    low, high = ax.get_xlim()
    assert sum(low <= tick <= high for tick in ax.get_xticks() if ax.xaxis.get_major_formatter()(tick)) >= 2
    plt.close(fig)


def test_volumes_are_the_largest_of_geodesic(trained, report):
    model, x, y, normalize = trained
    found = sharpness_volumes(model, normalize.inverse(x).clamp(0, 1), y, normalize, partial(svd_paths, directions=2))
    for name in ('accuracy', 'loss_jacobian', 'tangent_hessian'):
        torch.testing.assert_close(report.values[f'volume_{name}'], found[name][:, -1])


def test_every_row_says_what_it_is(report):
    frame = report.frame
    assert [*frame['measure']] == [row for m in MEASURES.values() for row in m.rows]
    assert set(frame['kind']) == {'exact', 'estimate', 'refused'}
    assert all(frame[frame['kind'] != 'exact']['why']) and all(frame['means'].str.endswith('.'))
    assert 'init' in table(report).loc['distance', 'why']
    for text in (repr(report), report._repr_html_()):
        assert all(name in text for name in frame['measure']) and 'digits has its own data' in text


@pytest.mark.parametrize('seconds', [.5, 3])
def test_it_keeps_to_its_time_and_says_what_it_left_out(seconds):
    model, data = load_run('digits', 16)
    began = time.monotonic()
    report = smoothness(model, data, seconds=seconds, progress=False)
    assert time.monotonic() - began < seconds + 15 # a busy machine, one call that had begun
    part = report.frame[(report.frame['n'] < 1000) & (report.frame['n'] > 1)]
    assert len(part) and part['why'].str.contains('of 1,000 samples').all() and set(part['kind']) == {'estimate'}
    assert part[part['n'] < 10]['why'].str.contains('too few').all()


def test_no_time_at_all_is_a_report_of_refusals(trained):
    model, x, y, _ = trained
    report = smoothness(model, x, y, seconds=0, progress=False)
    assert set(report.frame['kind']) == {'refused'} and not any(report.frame['standing'])
    assert 'pass more seconds' in repr(report) and 'inf s' not in repr(report)


@pytest.mark.parametrize('seconds', ['5', -1, None, math.nan, math.inf])
def test_seconds_are_a_number(trained, seconds):
    model, x, y, _ = trained
    with pytest.raises(ValueError, match='seconds must be a number from 0'): smoothness(model, x, y, seconds=seconds)


def test_samples_grow_while_there_is_time():
    def takes(seconds): return lambda i: time.sleep(seconds * len(i))
    order = torch.randperm(500)
    assert 20 < len(on_budget(takes(.002), order, .4)[1]) < 250
    assert len(on_budget(takes(1e-5), order, 10)[1]) == 500
    assert len(on_budget(takes(.01), order, .001)[1]) == 2
    assert len(on_budget(takes(0), torch.arange(1), 1)[1]) == 1


def test_more_samples_without_time_leave_what_fewer_gave():
    def takes(i):
        if len(i) > 2: raise module._NoTime('no time')
        return 'found'
    found, at, _ = on_budget(takes, torch.arange(9), 9)
    assert found == 'found' and at.tolist() == [0, 1]
    with pytest.raises(ValueError): on_budget(lambda i: takes(torch.arange(3)), torch.arange(9), 9)


def test_two_samples_that_are_refused_do_not_decide():
    asked = []
    def takes(i, least=40, seconds=0):
        asked.append(len(i))
        time.sleep(seconds)
        if len(i) < least: raise ValueError(f'{len(i)} are too few')
    order = torch.arange(600)
    assert len(on_budget(takes, order, 9)[1]) == 600 and asked == [2, 32, 512, 600]
    with pytest.raises(ValueError, match='600 are too few'): on_budget(partial(takes, least=999), order, 9)
    with pytest.raises(ValueError, match='2 are too few'): on_budget(partial(takes, seconds=.1), order, 1)


def test_more_samples_that_are_refused_decide():
    def takes(i):
        if 40 in i: raise ValueError('the model fails on this one')
    with pytest.raises(ValueError, match='fails on this one'): on_budget(takes, torch.arange(99), 9)


def test_a_network_that_is_certain_of_two_samples_has_a_theorem(only):
    only('function', 'theorem2')
    model = nn.Linear(5, 3, bias=False)
    model.weight.data.copy_(torch.eye(3, 5))
    x, y = 10 * torch.eye(3, 5).repeat(20, 1), torch.arange(60) % 3
    x[torch.randperm(60, generator=torch.Generator().manual_seed(0))[:2]] *= 100 # taken first
    row = table(smoothness(model, x, y, progress=False)).loc['theorem2']
    assert row.kind == 'exact' and row.n == 60
    t = check_theorem2(nn.Sequential(nn.Flatten(), model), x[:, None, None], y)
    assert row.value == pytest.approx(t.right / t.left, rel=1e-6) and math.isnan(row.error)
    assert table(smoothness(model, 100 * x, y, progress=False)).loc['theorem2', 'why'].startswith(
        'no loss changes with its input at 60 samples')


def test_what_was_found_on_a_part_is_of_these_samples(only, monkeypatch):
    only('function')
    slow = lambda model, x, y: (time.sleep(.004 * len(x)), dict(first=x.flatten(1)[:, 0].double()))[1]
    monkeypatch.setitem(MEASURES, 'slow', Measure(slow, dict(first='The first number.')))
    x = torch.arange(400.)[:, None].expand(-1, 5)
    report = smoothness(mlp(), x / 400, torch.zeros(400).long(), seconds=1, progress=False)
    there = report.values['first'].isfinite()
    assert 2 < there.sum() < 400 and there.sum() == table(report).loc['first', 'n']
    torch.testing.assert_close(report.values['first'][there].float(), x[:, 0][there] / 400)


def test_without_time_a_network_is_only_looked_at():
    calls = []
    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)
    smoothness(Counted(5, 3), torch.rand(20, 5), torch.arange(20) % 3, seconds=0, progress=False)
    assert len(calls) < 9, calls # logits, memory layout, two passes that must agree


def test_a_measure_that_would_take_too_long_is_not_begun(only, monkeypatch):
    only('function')
    begun = []
    monkeypatch.setitem(MEASURES, 'dear', Measure(lambda *a: begun.append(1), dict(dear='Dear.'), lambda C: 1e9))
    report = smoothness(mlp(), torch.randn(50, 5), torch.zeros(50).long(), seconds=2, progress=False)
    assert not begun and 'pass more seconds' in table(report).loc['dear', 'why']


@pytest.mark.parametrize('found, why', [
    (lambda model, x, y: dict(own=model(x).double()), 'one number per sample'),
    (lambda model, x, y: dict(own=torch.full((len(x),), torch.nan)), 'nan'),
    (lambda model, x, y: torch.linalg.cholesky(-torch.eye(2)), 'positive-definite')])
def test_a_measure_that_fails_is_a_row(only, monkeypatch, found, why):
    only('function')
    monkeypatch.setitem(MEASURES, 'own', Measure(found, dict(own='Mine.')))
    row = table(smoothness(mlp(), torch.randn(9, 5), torch.zeros(9).long(), progress=False)).loc['own']
    assert row.kind == 'refused' and why in row.why


@pytest.mark.parametrize('p', [.5, .002])
@pytest.mark.parametrize('place', ['first', 'inside', 'last'])
def test_every_row_of_a_random_network_says_that_it_is_random(p, place):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        def forward(self, x):
            drop = lambda here, x: nn.functional.dropout(x, p) if here == place else x
            return drop('last', self.net[3:](drop('inside', self.net[:3](drop('first', x)))))
    report = smoothness(Dropping().eval(), torch.rand(100, 3, 8, 8), torch.arange(100) % 4, seconds=9, progress=False)
    assert set(report.frame['kind']) == {'refused'}
    assert report.frame['why'].str.contains('other logits at each call').all()


def test_a_network_with_errors_has_no_theorem_and_vectors_no_pixels():
    x, y = torch.randn(40, 5), torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))
    rows = table(smoothness(mlp(activation=nn.GELU), x, y, progress=False))
    assert 'labels are not' in rows.loc['theorem2', 'why']
    assert 'vectors' in rows.loc['volume_loss_jacobian', 'why']
    assert 'Hutchinson' in rows.loc['hessian_trace', 'why'] and 'GELU' in rows.loc['valid_bound', 'why']


@pytest.mark.parametrize('around', [torch.no_grad, nullcontext])
def test_logits_without_a_graph_are_said_to_be_cut_off(around):
    class Cut(nn.Linear):
        def forward(self, x):
            with around(): return super().forward(x).detach()
    rows = table(smoothness(Cut(5, 3), torch.rand(20, 5), torch.arange(20) % 3, seconds=20, progress=False))
    assert rows.loc['error', 'kind'] == 'exact'
    for row in ('loss_jacobian', 'lipschitz', 'gradient_norm', 'hessian_trace', 'hessian_lambda_max', 'hessian_curved'):
        assert 'cut off from' in rows.loc[row, 'why'], row


def test_one_missed_label_of_many_refuses_theorem_2(only, monkeypatch):
    only('function', 'theorem2')
    model, x = mlp(), torch.randn(400, 5)
    with torch.no_grad(): y = model(x).argmax(1)
    begun = []
    monkeypatch.setitem(MEASURES, 'theorem2', replace(MEASURES['theorem2'], f=lambda *a: begun.append(a)))
    missed = torch.randperm(400, generator=torch.Generator().manual_seed(0))[-1] # taken last
    wrong = y.index_put((missed,), (y[missed] + 1) % 3)
    row = table(smoothness(model, x, wrong, seconds=20, progress=False)).loc['theorem2']
    assert '1 of 400 labels are not' in row.why and not begun


def test_labels_are_looked_at_while_there_is_time(only, monkeypatch):
    only('function', 'theorem2')
    model, x = mlp(), torch.randn(1000, 5)
    with torch.no_grad(): y = model(x).argmax(1)
    slow = lambda *a: (time.sleep(.3), torch.ones(len(a[1])))[1]
    monkeypatch.setattr(module, 'accuracy', slow)
    row = table(smoothness(model, x, y, seconds=2, progress=False)).loc['theorem2']
    assert 'of 1,000 labels are known to be fitted' in row.why


def test_groups_of_random_probes_count_by_their_samples(monkeypatch):
    def of_inputs(model, x, y, **kw): return dict(total=x.flatten(1)[:, 0].double().expand(3, -1).mean(1))
    monkeypatch.setattr(module, 'hutchinson_trace', of_inputs)
    x = torch.zeros(11, 1, 1, 5)
    x[10] = 11
    found = module._trace(nn.Sequential(nn.Flatten(), mlp(activation=nn.Tanh)), x, torch.zeros(11).long())
    assert found['hessian_trace'].value == pytest.approx(1)


def test_error_bars_of_the_spectrum_are_those_of_mixed_classes(only):
    only('function', 'hessian_lambda_max', 'hessian_layers')
    torch.manual_seed(0)
    y = torch.arange(200) // 100 # sorted by class, as the images of a folder
    x, model = torch.randn(200, 5) * (1 + 3 * y[:, None]), nn.Linear(5, 2)
    rows = table(smoothness(model, x, y, progress=False))
    resampled = [top_eigenvalues(nn.Sequential(nn.Flatten(), model), x[i, None, None], y[i], 1).values.item()
                 for i in torch.randint(200, (20, 200))]
    for row in ('hessian_lambda_max', 'hessian_layer_max'):
        assert 0 < rows.loc[row, 'error'] < 3 * torch.tensor(resampled).std()


def test_a_network_that_is_certain_has_no_curvature(only):
    only('function', 'loss_jacobian', 'hessian_trace', 'hessian_lambda_max', 'hessian_layers', 'hessian_density',
         'theorem2')
    model = nn.Linear(5, 3, bias=False)
    model.weight.data.copy_(1000 * torch.eye(3, 5))
    report = smoothness(model, torch.eye(3, 5).repeat(5, 1), torch.arange(15) % 3, progress=False)
    rows = table(report)
    for row in ('loss_jacobian', 'hessian_trace', 'hessian_lambda_max', 'hessian_layer_max', 'hessian_curved'):
        assert rows.loc[row, 'value'] == 0
    assert 'the Hessian is zero' in rows.loc['hessian_curved', 'why']
    assert 'no loss changes with its input' in rows.loc['theorem2', 'why']
    report.plot()


def test_layers_of_a_network_of_vectors_have_its_names(only):
    only('function', 'hessian_layers')
    report = smoothness(mlp(), torch.randn(20, 5), torch.arange(20) % 3, progress=False)
    assert [*report.spectrum['layers']] == ['model.0', 'model.2']


@pytest.mark.parametrize('x', [torch.rand(12, 5), torch.rand(12, 3, 8, 8)])
@pytest.mark.parametrize('freeze', [False, True])
def test_a_scripted_network_has_no_curvature(only, x, freeze):
    only('function', 'loss_jacobian', 'hessian_trace', 'hessian_lambda_max', 'hessian_layers', 'hessian_density')
    script = torch.jit.script(nn.Sequential(nn.Flatten(), mlp(x[0].numel())).eval())
    rows = table(smoothness(torch.jit.freeze(script) if freeze else script, x, torch.arange(12) % 3,
                            progress=False))
    assert rows.loc['loss_jacobian', 'kind'] == 'exact'
    assert rows.loc[[*rows.index[3:]], 'why'].str.contains('TorchScript module').all()


def test_few_samples_have_no_error_bar(only):
    only('function', 'loss_jacobian')
    model, x = mlp(), torch.randn(30, 5)
    with torch.no_grad(): y = model(x).argmax(1)
    few, more = (table(smoothness(model, x[:n], y[:n], progress=False)) for n in (9, 30))
    assert few['error'].isna().all() and few['why'].str.contains('too few samples for an error bar').all()
    assert set(few['kind']) == {'exact'} and not any(more['why']) and more['error'].notna().all()
    part = found_rows(MEASURES['function'], dict(error=torch.zeros(20), cross_entropy=torch.rand(20)), 20, 100)
    assert pd.isna(part[0]['error']) and part[1]['error'] > 0 # equal values of a part


@pytest.mark.parametrize('name', ['hessian_lambda_max', 'hessian_layers', 'hessian_density'])
def test_the_spectrum_ends_with_its_time(name, monkeypatch):
    "A product of half a second, and time for three."
    product = lambda v, block=None: (time.sleep(.5), torch.arange(1., len(v) + 1) * v)[1]
    monkeypatch.setattr(module, 'hessian_product', lambda *a: nullcontext(product))
    model, x = mlp(), torch.randn(20, 5)
    began, m = time.monotonic(), MEASURES[name]
    with pytest.raises(ValueError, match='pass more seconds'): m.f(model, x, torch.zeros(20).long(), 1.5)
    assert time.monotonic() - began < 1.5 * 1.3 + 1


def test_the_spectrum_is_refused_where_it_has_no_second_derivative(only):
    only('function', 'hessian_lambda_max', 'hessian_layers', 'hessian_density')
    scripted = torch.jit.trace(mlp(), torch.randn(2, 5))
    report = smoothness(scripted, torch.randn(20, 5), torch.zeros(20).long(), seconds=20, progress=False)
    for row in ('hessian_lambda_max', 'hessian_layer_max', 'hessian_curved'):
        assert table(report).loc[row, 'kind'] == 'refused' and table(report).loc[row, 'why'], row
    assert not report.spectrum
    said = [' '.join(text.get_text().split()) for ax in report.plot().axes for text in ax.texts]
    assert table(report).loc['hessian_curved', 'why'] in said


def test_images_of_unknown_normalization_have_no_pixels(only, trained):
    model, x, y, normalize = trained
    only('function', 'tangent_hessian')
    assert 'normalize=Normalize' in table(smoothness(model, x, y, progress=False)).loc['tangent_hessian', 'why']
    with pytest.raises(ValueError, match='pixels must lie in'):
        smoothness(model, x, y, normalize=Normalize((0.,), (1.,)), progress=False)
    pixels = normalize.inverse(x).clamp(0, 1)
    assert table(smoothness(model, pixels, y, progress=False)).loc['tangent_hessian', 'kind'] == 'estimate'


def test_tensors_loaders_and_data_sets_give_the_same(only, trained):
    model, x, y, _ = trained
    only('function', 'loss_jacobian')
    pairs = TensorDataset(x, y)
    given = [(x, y), (x.numpy(), y.tolist()), (DataLoader(pairs, 7),), (pairs,), ([*zip(x, y.tolist())],)]
    first, *others = [smoothness(model, *one, progress=False) for one in given]
    for other in others:
        pd.testing.assert_frame_equal(first.frame, other.frame)
        torch.testing.assert_close(first.values, other.values)
        assert torch.equal(other.index, torch.arange(N))


@pytest.mark.parametrize('workers', [0, 1])
def test_items_of_a_shuffled_loader_are_known(only, workers):
    only('function')
    x, y = torch.rand(25, 5), torch.arange(25) % 3
    report = smoothness(mlp(), DataLoader(TensorDataset(x, y), 4, shuffle=True, drop_last=True,
                                          num_workers=workers), progress=False)
    assert len(report.index) == 24 and report.frame['why'][0] == 'on 24 of 25 samples'
    assert torch.equal(report.x.flatten(1), x[report.index]) and torch.equal(report.y, y[report.index])


def test_a_loader_is_read_in_random_order_of_what_its_sampler_chooses(only, monkeypatch):
    only('function')
    x, y = torch.rand(400, 5), torch.arange(400) // 100 # sorted by class
    monkeypatch.setattr(module, '_network_inputs', lambda x: (time.sleep(.2), x)[1])
    loader = DataLoader(TensorDataset(x, y), 64, sampler=torch.utils.data.SequentialSampler(y))
    report = smoothness(mlp(classes=4), loader, seconds=.4, progress=False)
    assert len(report.y) == 64 and set(report.y.tolist()) == {0, 1, 2, 3}
    half = DataLoader(TensorDataset(x, y), 64, sampler=range(0, 400, 2))
    report = smoothness(mlp(classes=4), half, seconds=60, progress=False)
    assert report.index.tolist() == [*range(0, 400, 2)] and report.frame['why'][0] == 'on 200 of 400 samples'


def test_all_of_a_subset_is_exact(only):
    only('function')
    part = torch.utils.data.Subset(TensorDataset(torch.rand(25, 5), torch.arange(25) % 3), range(12))
    for data in (part, DataLoader(part, 5)):
        frame = smoothness(mlp(), data, progress=False).frame
        assert set(frame['kind']) == {'exact'} and set(frame['n']) == {12}


def test_a_data_set_that_is_read_in_part_is_an_estimate(only):
    class Slow(torch.utils.data.Dataset):
        def __len__(self): return 1000
        def __getitem__(self, i):
            time.sleep(.002)
            return torch.full((5,), i / 1000), i % 3
    only('function')
    report = smoothness(mlp(), Slow(), seconds=2, progress=False)
    n = len(report.index)
    assert 64 <= n < 1000 and 'of 1,000 samples' in report.frame['why'][0]
    torch.testing.assert_close(report.x.flatten(1)[:, 0], report.index / 1000)
    assert torch.equal(report.y, report.index % 3)


MISTAKES = {
    'dict': (lambda m, x, y: (Out(m, lambda z: dict(logits=z)), x, y), 'returns its logits alone'),
    'tuple': (lambda m, x, y: (Out(m, lambda z: (z, z)), x, y), 'not a tuple'),
    'no module': (lambda m, x, y: (lambda z: z, x, y), 'torch.nn.Module'),
    'one-hot': (lambda m, x, y: (m, x, nn.functional.one_hot(y, 10)), r'y.argmax\(1\)'),
    'strings': (lambda m, x, y: (m, x, [f'{c}' for c in y]), 'names.index'),
    'bytes': (lambda m, x, y: (m, (x.clamp(0, 1) * 255).byte(), y), r'\(x / 255 - mean\) / std'),
    '0..255': (lambda m, x, y: (m, (x.clamp(0, 1) * 255).round(), y), r'\(x / 255 - mean\) / std'),
    'channels last': (lambda m, x, y: (m, x.permute(0, 2, 3, 1), y), r'x.permute\(0, 3, 1, 2\)'),
    'no channels': (lambda m, x, y: (m, x[:, 0], y), r'x\[:, None\]'),
    'no labels': (lambda m, x, y: (m, x), 'pass y, integers'),
    'set without labels': (lambda m, x, y: (m, [*x]), r'pairs \(input, label\)'),
    'loader without labels': (lambda m, x, y: (m, DataLoader(x)), r'pairs \(input, label\)'),
    'dictionaries': (lambda m, x, y: (m, [dict(pixels=x[0], label=1)]), 'dictionaries with pixels, label'),
    'PIL images': (lambda m, x, y: (m, [(Image.new('L', (8, 8)), 1)]), r'transform=ToTensor\(\)'),
    'two sizes': (lambda m, x, y: (m, [(x[0], 1), (x[0, :, 1:], 1)]), 'of one size'),
    'labels too large': (lambda m, x, y: (m, x, y + 5), 'must lie in 0..9'),
    'integers': (lambda m, x, y: (m, x.flatten(1).long(), y), r'x.float\(\)'),
    'too few labels': (lambda m, x, y: (m, x, y[:5]), 'one per sample'),
    'a path': (lambda m, x, y: (m, Path('x')), 'must be a tensor'),
    'a generator': (lambda m, x, y: (m, (pair for pair in zip(x, y))), 'not a generator'),
    'a dictionary': (lambda m, x, y: (m, dict(x=x, y=y)), 'not a dict: pass the tensors in it'),
    'a table': (lambda m, x, y: (m, pd.DataFrame(x.flatten(1)), y), r'not a DataFrame: pass x.to_numpy\(\)'),
    'a list of images': (lambda m, x, y: (m, [*x], y), r'not a list: pass torch.stack\(x\)'),
    'PIL images and labels': (lambda m, x, y: (m, [Image.new('L', (8, 8))], y[:1]), 'not a list$'),
    'uneven pixels in 0..255': (lambda m, x, y: (m, x.clamp(.01, 1) * 254.7, y), r'\(x / 255 - mean\) / std'),
    'token ids': (lambda m, x, y: (nn.Embedding(9, 9), torch.zeros(9, 5).long(), y[:9]), 'token ids cannot'),
    'videos': (lambda m, x, y: (m, x[:, :, None], y), r'nn.Unflatten\(1, x.shape\[1:\]\)'),
    'segmentation': (lambda m, x, y: (nn.Conv2d(1, 10, 3), x, y), 'one image with one label'),
    'a lazy layer': (lambda m, x, y: (nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), x, y), 'has no size yet: call'),
    'batch statistics': (lambda m, x, y: (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(
        10, track_running_stats=False)), x, y), 'depend on the other samples of its batch'),
    'nothing': (lambda m, x, y: (m, x[:0], y[:0]), 'N is 0'),
    'an empty set': (lambda m, x, y: (m, TensorDataset(x[:0], y[:0])), 'the data set is empty'),
    'an empty loader': (lambda m, x, y: (m, DataLoader(TensorDataset(x, y), 999, drop_last=True)), 'drop_last'),
    'inputs alone': (lambda m, x, y: (m, TensorDataset(x)), 'inputs without labels'),
    'labels beside a Data': (lambda m, x, y: (m, digits(), digits().true), 'leave y and normalize out'),
    'log-probabilities': (lambda m, x, y: (Out(m, lambda z: z.log_softmax(1)), x, y), 'without log_softmax'),
    'labels twice': (lambda m, x, y: (m, DataLoader(TensorDataset(x, y)), y), 'leave y out'),
    'logits as images': (lambda m, x, y: (Out(m, lambda z: z[:, :, None, None]), x, y), r'\(model, nn.Flatten\(\)\)'),
    'one logit': (lambda m, x, y: (Out(m, lambda z: z[:, 0]), x, y), r'return \[0, z\]'),
    'probabilities': (lambda m, x, y: (Out(m, lambda z: z.softmax(1)), x, y), 'without softmax'),
    'half precision': (lambda m, x, y: (mlp(64, 10).half(), x.flatten(1), y), r'call model.float\(\) first'),
    'no values': (lambda m, x, y: (mlp(64, 10).to('meta'), x.flatten(1), y), 'load the weights first'),
    'another key': (lambda m, x, y: (Out(m, lambda z: dict(z=z)['logits']), x, y), "fails on inputs .*: KeyError"),
    'two arguments': (lambda m, x, y: (nn.Bilinear(8, 8, 10), x, y), 'fails on inputs .*: TypeError.*input2'),
    'NaN': (lambda m, x, y: (m, x.index_fill(0, torch.tensor([9, 7]), math.nan), y), 'in 2 of 100 samples: leave out'),
    'infinite pixels': (lambda m, x, y: (m, TensorDataset(x / 0, y)), 'NaN or infinite values'),
    'complex numbers': (lambda m, x, y: (m, x + 0j, y), 'or x.real'),
    'sparse inputs': (lambda m, x, y: (m, x.to_sparse(), y), r'pass x.to_dense\(\)'),
    'complex labels': (lambda m, x, y: (m, x, y + 0j), 'labels must be integers, not torch.complex64'),
    'one dimension': (lambda m, x, y: (m, x.flatten(), y), r'vectors \[N, D\], not \[6400\]'),
    'no study': (lambda m, x, y: (m, x, y, 9, None, 'digit'), 'There are digits, smoke'),
    'a function to normalize': (lambda m, x, y: (m, x, y, 9, lambda x: x), r'pass Normalize\(mean, std\)')}


class Out(nn.Module):
    def __init__(self, model, out):
        super().__init__()
        self.model, self.out = model, out
    def forward(self, x): return self.out(self.model(x))


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_gets_a_sentence(trained, name):
    given, advice = MISTAKES[name]
    with pytest.raises(ValueError, match=advice) as e: smoothness(*given(*trained[:3]), progress=False)
    assert '\n' not in str(e.value)


def test_where_a_network_stands():
    df = results('digits')
    at = df.query("measure == 'loss_jacobian' and path == 'none' and split == 'train' and subset == 'all'")
    mean = at.groupby('width')['mean'].mean()
    assert same_error(df, 0) == [w for w in mean.index if w >= 2.5] and same_error(df, .28) == [1.]
    assert standing(df, 'loss_jacobian', mean[4.], 0).endswith('nearest w = 4')
    assert standing(df, 'loss_jacobian', 9., 0).endswith('above all')
    assert standing(df, 'loss_jacobian', 1e-9, 0).endswith('below all')
    assert standing(df, 'loss_jacobian', 9., .28) == f'{mean[1.]:.3g} at w = 1'


def test_without_committed_results_it_says_so(only, monkeypatch):
    only('function', 'loss_jacobian')
    monkeypatch.setattr(module, 'results', lambda study: (_ for _ in ()).throw(FileNotFoundError('not here')))
    report = smoothness(mlp(), torch.randn(9, 5), torch.zeros(9).long(), progress=False)
    assert 'Not compared with digits: not here' in repr(report) and not any(report.frame['standing'])


def test_a_network_is_left_as_it_was(trained):
    model, x, y, _ = trained
    model = mlp(64, 10).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    numbers = torch.get_rng_state()
    smoothness(model, x.flatten(1)[:20], y[:20], seconds=2, progress=False)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_sharpest_are_mostly_wrong_labels(only):
    model, data = load_run('digits', 2.5)
    only('function', 'loss_jacobian')
    report = smoothness(model, data, seconds=60, progress=False)
    at = report.sharpest(20)
    assert torch.equal(at, loss_jacobian(model, data.inputs(data.x), data.y).topk(20).indices)
    assert data.corrupted[at].double().mean() > 2 * data.noise_rate
    titles = [ax.get_title('left') for ax in report.show_sharpest(5).axes if ax.images]
    assert titles == [f'label {y}' for y in data.y[at[:5]].tolist()] # it fits all


def test_the_sharpest_are_among_the_measured(only, monkeypatch):
    only('function')
    report = smoothness(mlp(), torch.rand(20, 5), torch.arange(20) % 3, progress=False)
    report.values['part'] = torch.tensor([math.nan, 3, math.nan, 5] + [math.nan] * 16)
    assert report.sharpest(16, 'part').tolist() == [3, 1]
    with pytest.raises(ValueError, match='these have: error, cross_entropy'): report.sharpest(3, 'theorem2')
    report.values.clear()
    with pytest.raises(ValueError, match='single samples; no row has$'): report.sharpest()


def test_inputs_with_a_history_are_shown(only, tmp_path):
    only('function', 'loss_jacobian')
    x = torch.rand(9, 3, 8, 8, requires_grad=True)
    model = nn.Sequential(nn.Flatten(), mlp(192))
    smoothness(model, x, torch.arange(9) % 3, progress=False).save(tmp_path/'report.html')
    assert x.grad is None


def test_a_page_is_one_file(report, tmp_path):
    page = report.save(tmp_path/'report.html').read_text()
    assert page.count('src="data:image/png;base64,') == page.count('src=') == 2
    text = re.sub('base64,[^"]*', '', page) # which holds any four letters by chance
    assert not any(word in text for word in ('href=', '<script', '<link', 'http')) and len(page) > 50_000
    assert [p.name for p in tmp_path.iterdir()] == ['report.html']


def test_a_registered_measure_is_in_report_and_results(only, trained, monkeypatch):
    only('function')
    @measure('Sum of the input.')
    def total(model, x, y): return x.flatten(1).sum(1)
    try:
        model, x, y, _ = trained
        report = smoothness(model, x, y, progress=False)
        torch.testing.assert_close(report.values['total'], total(model, x, y))
        rows = pd.DataFrame(GROUPS['total'](TrainedNetwork(model, {}, load_run('digits', 2.5)[1], N, 2)))
        there = rows.query("subset == 'all' and volume == 0")
        assert [*there['path']] == ['none', 'svd'] and rows['volume'].max() == 5
        assert there['mean'].to_numpy() == pytest.approx(x.flatten(1).sum(1).mean().item(), rel=1e-4)
    finally: del MEASURES['total'], GROUPS['total']


def test_the_package_knows_it_and_nothing_else():
    import smoothinterp
    assert smoothinterp.smoothness is smoothness
    with pytest.raises(AttributeError, match='no attribute'): smoothinterp.smothness # noqa: B018


@pytest.fixture(scope='module')
def folder(tmp_path_factory, trained):
    "A folder to type commands in: a module that builds a network, its weights, and images by class."
    at, (model, x, y, normalize) = tmp_path_factory.mktemp('shell'), trained
    (at/'mynet.py').write_text(
        'from smoothinterp.checkpoints import load_run\n'
        'from torch import nn\n'
        'def build():\n'
        "    model, data = load_run('digits', 2.5, initial=True)\n"
        '    return model, data.normalize\n'
        'def other(): return nn.Linear(3, 2)\n'
        'def width(w): return nn.Linear(3, w)\n'
        'def three(): return other(), None, 3\n'
        'def numbers(): return other(), (.5, .5)\n'
        'def nothing(): pass\n')
    (at/'broken.py').write_text('def build(:')
    (at/'empty.pt').touch()
    (at/'text.pt').write_text('no weights')
    save_file(model.state_dict(), at/'w.safetensors')
    torch.save(model.state_dict(), at/'w.pt')
    torch.save(dict(state_dict=model.state_dict(), epoch=3), at/'checkpoint.pt')
    torch.save(model, at/'whole.pt')
    pixels = (normalize.inverse(x) * 255).round().byte()
    for i in range(60):
        (at/'images'/f'{y[i]}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i, 0].numpy()).save(at/f'images/{y[i]}/{i}.png')
    return at


def shell(folder, *words):
    return subprocess.run([sys.executable, '-m', 'smoothinterp.cli', 'report', *words], cwd=folder, text=True,
                          capture_output=True)


def test_a_shell_prints_the_table_and_writes_the_page(folder, trained):
    done = shell(folder, '--model', 'mynet:build', '--weights', 'w.safetensors', '--data', 'images', '--seconds', '20',
                 '--save', 'report.html')
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith('cross_entropy'))
    assert f'{cross_entropy(trained[0], trained[1][:60], trained[2][:60]).mean():.4g}' in line and 'n = 60' in line
    assert 'tangent_kink' in done.stdout and (folder/'report.html').exists()


@pytest.mark.parametrize('weights', ['w.safetensors', 'w.pt', 'checkpoint.pt'])
def test_weights_are_read(folder, trained, weights):
    model = load_run('digits', 2.5, initial=True)[0]
    load_weights(model, folder/weights)
    assert all(torch.equal(v, trained[0].state_dict()[k]) for k, v in model.state_dict().items())


def test_images_and_transforms_give_the_inputs(folder, trained):
    for how in (trained[3], lambda image: trained[3](torch.tensor([*image.tobytes()]).view(1, 8, 8) / 255)):
        x, y = zip(*images_in(folder/'images', how))
        assert len(y) == 60 and x[0].shape == (1, 8, 8)
        assert (torch.stack(x)[:, None] - trained[1][None, :60]).abs().flatten(2).sum(2).amin(1).max() < 1e-3


def test_folders_with_numbers_as_names_are_the_labels(tmp_path):
    for name in ('3', '7', '10'):
        (tmp_path/name).mkdir()
        Image.new('L', (8, 8)).save(tmp_path/name/'0.png')
    with pytest.raises(ValueError, match='folder 10 would be label 0, by alphabetical order'): images_in(tmp_path)


@pytest.mark.parametrize('words, why', [
    ('--model broken:build --data images', 'SyntaxError'),
    ('--model mynet:build --weights whole.pt --data images', 'save model.state_dict()'),
    ('--model mynet:other --weights w.pt --data images', 'not a state dict of this network'),
    ('--model mynet:build --weights none.pt --data images', 'no file none.pt'),
    ('--model mynet:build --weights empty.pt --data images', 'save model.state_dict()'),
    ('--model mynet:build --weights text.pt --data images', 'save model.state_dict()'),
    ('--model mynet:width --data images', "positional argument: 'w'"),
    ('--model mynet:three --data images', 'must return a torch.nn.Module'),
    ('--model mynet:numbers --data images', 'a function of images'),
    ('--model mynet:nothing --weights w.pt --data images', 'it returns None'),
    ('--model mynet --data images', 'module:function'),
    ('--model nonet:build --data images', 'nonet'),
    ('--model mynet:build --data nowhere', 'no folder nowhere'),
    ('--model mynet:build --data images/0', 'class folder')])
def test_a_mistake_in_a_shell_is_one_line(folder, monkeypatch, words, why):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    with pytest.raises(SystemExit) as e: main(['report', *words.split()])
    assert why in str(e.value) and str(e.value).startswith('smoothinterp: ') and '\n' not in str(e.value)
