"""What every figure notebook draws: its own cells, run on a synthetic tidy frame, whose numbers have a formula. Axes
are read from the figure that would be saved."""
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.image import AxesImage

import smoothinterp.checkpoints
import smoothinterp.core
import smoothinterp.figures
import smoothinterp.published
import smoothinterp.results
import smoothinterp.sweep
import smoothinterp.toy
from smoothinterp.figures import FIG2

plt.switch_backend('agg')
NBS = Path(__file__).parent.parent/'nbs'
NOTEBOOKS = sorted(p.stem for p in NBS.glob('*.ipynb') if re.match(r'fig|[bc]\d', p.stem))
committed, on_the_way = cache(smoothinterp.results.results), cache(smoothinterp.results.over_epochs)

# The frame: rows of the committed results, every number replaced by a formula

AT = {'digits-resnet18': 4, 'digits-resnet18-plain': 6, 'digits-mlp': 48} # threshold of the synthetic results; else 2.5
SUBSETS = dict(all=1, clean=.5, noisy=2, untouched=.8, corrupted=1.5)


def value(measure, w, seed, at, volume=0, subset='all', split='train', epoch=1e6):
    "A tent over log width that peaks at the threshold, higher for larger volumes and for later seeds."
    if measure == 'error' and split == 'train': return np.where(w >= at, 0, .5 + .01 * seed)
    size = .1 if measure == 'error' else 1 + len(measure) / 10
    return size * SUBSETS[subset] * (1 + volume) * (1 + .1 * seed) / (1 + np.log2(w / at)**2) * epoch / (epoch + 10)


def synthetic(df, at, over_epochs=False):
    columns = [df[c] for c in ('measure', 'width', 'seed', 'volume', 'subset', 'split')]
    mean = [float(value(m, w, s, at, v, u, split, e if over_epochs else 1e6))
            for m, w, s, v, u, split, e in zip(*columns, df['epoch'])]
    new = df.assign(mean=mean, rms=1.25 * np.array(mean), std=.01 * np.array(mean))
    new.attrs = df.attrs | dict(source='synthetic')
    return new


@pytest.fixture
def drawn(monkeypatch):
    "Runs a notebook's cells up to the last one that saves a picture: to the figures, by name, and its variables."
    def run(stem, seeds=None, fitted=True, **parameters):
        at_of = lambda study: AT.get(study, 2.5) if fitted else 1e9
        def frame(df, study, over_epochs=False):
            return synthetic(df if seeds is None else df[df['seed'].isin(seeds)], at_of(study), over_epochs)
        named = lambda study: getattr(study, 'name', study)
        def stored(path):
            df, meta = smoothinterp.figures.load_frame(path)
            return synthetic(df, 2.5), meta
        found = {}
        def save(fig, df, name, folder=None):
            found[name] = fig
            fig.numbers = df
            return []
        monkeypatch.setattr(smoothinterp.sweep, 'study_frame',
                            lambda study, width=0: frame(committed(named(study)), named(study)))
        monkeypatch.setattr(smoothinterp.results, 'over_epochs',
                            lambda study, widths=None: frame(on_the_way(named(study)), named(study), True))
        monkeypatch.setattr(smoothinterp.core, 'load_frame', stored)
        monkeypatch.setattr(smoothinterp.figures, 'save_figure', save)
        monkeypatch.setattr(smoothinterp.toy.fit_network, '__defaults__', (128, 20, .01, 0))
        scope = dict(display=lambda *_: None, __name__='__main__')
        cells = [c for c in json.loads((NBS/f'{stem}.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
        sources = [''.join(c['source']) for c in cells]
        last = max(i for i, s in enumerate(sources) if 'keep_figure(' in s or 'save_figure(' in s)
        for cell, source in zip(cells, sources[:last + 1]):
            exec(compile(source, f'{stem}:{cell.get("id")}', 'exec'), scope)
            if 'parameters' in cell['metadata'].get('tags', []): scope |= parameters
        return found, scope
    yield run
    plt.close('all')


# What is read from a picture

def line(ax, label): return next(x for x in ax.get_lines() if x.get_label() == label)
def dotted(ax): return [x.get_xdata()[0] for x in ax.get_lines() if x.get_linestyle() == ':']
def red(ax): return [x.get_xdata()[0] for x in ax.get_lines() if x.get_color() == 'tab:red']
def bands(ax): return [c for c in ax.collections if isinstance(c, PolyCollection)]
def image(ax): return next(c for c in ax.collections if isinstance(c, QuadMesh))


def holds_curve(ax, label, measure, scale=1, study='digits', of=lambda v: v, **where):
    "A curve is the mean over the seeds, and its band goes from the lowest to the highest."
    df = committed(study)
    widths, seeds = sorted(df['width'].unique()), sorted(df['seed'].unique())
    at = AT.get(study, 2.5)
    numbers = [[float(value(measure, w, s, at, **where)) for w in widths] for s in seeds]
    numbers = of(scale * np.array(numbers))
    curve = line(ax, label)
    np.testing.assert_allclose(curve.get_xdata(), widths)
    np.testing.assert_allclose(curve.get_ydata(), numbers.mean(0), rtol=1e-9)
    if len(seeds) == 1: return
    edges = {(w, round(y, 9)) for w, low, high in zip(widths, numbers.min(0), numbers.max(0)) for y in (low, high)}
    color = to_rgba(curve.get_color(), .15)
    own = [c for c in bands(ax) if np.allclose(c.get_facecolor()[0], color)]
    assert any(edges <= {(x, round(y, 9)) for x, y in c.get_paths()[0].vertices} for c in own), label


def holds_volumes(ax, measure, subset='all', study='digits'):
    "A curve for each volume, along the paths."
    for k in range(6): holds_curve(ax, str(k) if k else '0 (the point)', measure, study=study, volume=k, subset=subset)


def over_width(ax, study='digits', yscale='linear'):
    assert (ax.get_xscale(), ax.get_yscale()) == ('log', yscale)
    assert dotted(ax) == [AT.get(study, 2.5)]


@pytest.mark.parametrize('stem, study, subsets, measures', [
    ('fig2', 'digits', ('all',), FIG2), ('fig3', 'digits', ('clean', 'noisy'), FIG2),
    ('fig4', 'digits-clean', ('all',), FIG2),
    ('fig7', 'digits-asymmetric', ('clean', 'noisy'), FIG2),
    ('c1_kinks', 'digits', ('all',), ('tangent_hessian', 'tangent_smooth', 'tangent_kink'))])
def test_measures_over_volumes(drawn, stem, study, subsets, measures):
    fig = drawn(stem)[0][stem]
    assert len(fig.axes) == len(subsets) * len(measures)
    for ax, (subset, measure) in zip(fig.axes, [(s, m) for s in subsets for m in measures]):
        over_width(ax)
        holds_volumes(ax, measure, subset, study)
        assert ax.get_ylabel().startswith(smoothinterp.figures.LABELS[measure])
        assert ax.get_ylabel().endswith(subset if len(subsets) > 1 else '')
    if measures is FIG2:
        holds_curve(fig.axes[0], 'test images', 'error', study=study, split='test', of=lambda v: 1 - v)


def test_fig7_classes(drawn):
    ax, = drawn('fig7')[0]['fig7-classes'].axes
    over_width(ax)
    for subset in ('corrupted', 'untouched'):
        holds_curve(ax, subset, 'error', study='digits-asymmetric', split='test', subset=subset)


def test_fig6(drawn):
    errors, *around, free = drawn('fig6')[0]['fig6'].axes
    study = 'digits-resnet18'
    for split in ('test', 'train'): holds_curve(errors, f'{split} error', 'error', study=study, split=split)
    assert line(errors, 'test, published').get_xdata().max() <= 8
    for ax, measure in zip(around, FIG2): holds_volumes(ax, measure, study=study)
    for ax in (errors, *around): over_width(ax, study)
    assert not free.axison


@pytest.mark.parametrize('stem, study', [('fig5', 'digits'), ('fig11', 'digits-resnet18'),
                                         ('fig13', 'digits-resnet18-plain')])
def test_heat_maps_over_epochs(drawn, stem, study):
    "Rows are the epochs of the longest run, columns widths; a run that ended keeps its last value."
    axes = drawn(stem)[0][stem].axes[:3]
    by_epoch = on_the_way(study)
    widths = sorted(by_epoch['width'].unique())
    for ax, (measure, split) in zip(axes, (('error', 'test'), ('loss', 'train'), ('loss_jacobian', 'train'))):
        shown = image(ax).get_array()
        assert shown.shape[1] == len(widths) and len(ax.get_xticklabels()) == len(widths)
        assert isinstance(image(ax).norm, LogNorm) == (measure != 'error')
        at, w = AT.get(study, 2.5), widths[-1]
        own = by_epoch.query('measure == @measure and width == @w and split == @split and path == "none"')
        ends = own.groupby('seed')['epoch'].max()
        last = np.mean([value(measure, w, s, at, split=split, epoch=e) for s, e in ends.items()])
        np.testing.assert_allclose(shown[-1, -1], last)
    assert axes[0].get_ylabel() == 'epoch'


def test_b1(drawn):
    "A column per family, a color per level of noise; published curves where the family has some."
    axes = np.reshape(drawn('b1_lipschitz')[0]['b1_lipschitz'].axes, (2, -1))
    columns = dict(zip(('digits', 'digits-mlp', 'digits-resnet18', 'digits-resnet18-plain'), axes.T))
    names = 'ConvNet', 'MLP', 'ResNet18', 'ResNet18,\nno batch norm'
    for (study, (errors, slopes)), name in zip(columns.items(), names):
        assert errors.get_title('left')[4:] == name
        noisy = {'10%': 'digits-noise10', '15%': 'digits-noise15', '0%': 'digits-clean'} if study == 'digits' else {}
        for noise, one in ({'20%': study} | noisy).items():
            for split in ('test', 'train'): holds_curve(errors, f'{split}, {noise}', 'error', study=one, split=split)
            holds_curve(slopes, f'{noise} noise', 'logit_operator', 1.25, one)
        for ax in (errors, slopes): over_width(ax, study)
        assert len(bands(slopes)) == 1 + len(noisy)
        grey = [x for x in slopes.get_lines() if str(x.get_label()).startswith('published')]
        assert len(grey) == (study != 'digits-mlp')
    assert {ax.get_ylim() for ax in axes[0]} == {axes[0, 0].get_ylim()}
    errors, slopes = columns['digits']
    grey = line(slopes, 'published,\npeak as high as ours') # the published peak, at 14 of a threshold of 15
    peak = grey.get_ydata().argmax()
    np.testing.assert_allclose(grey.get_xdata()[peak], 14 * 2.5 / 15)
    np.testing.assert_allclose(grey.get_ydata()[peak], 1.25 * value('logit_operator', 2.5, 1, 2.5))
    assert grey.get_linewidth() < 1 and line(errors, 'published, test').get_ydata().max() < 1


def test_b2(drawn):
    found, scope = drawn('b2_acceleration')
    slopes, errors = found['b2_acceleration'].axes
    assert {slopes.get_xscale(), errors.get_xscale()} == {'symlog'}
    assert [x.get_label() for x in slopes.get_lines()] == [f'{w:g}' for w in scope['chosen']] and 2.5 in scope['chosen']
    curve = line(slopes, '2.5')
    np.testing.assert_allclose(curve.get_ydata()[0], 1.25 * np.mean([
        value('logit_operator', 2.5, s, 2.5, epoch=curve.get_xdata()[0]) for s in range(3)]))
    ends = on_the_way('digits').query('measure == "logit_operator" and width == 2.5').groupby('seed')['epoch'].max()
    assert ends.nunique() == 3 # a seed that ended keeps its last value
    np.testing.assert_allclose(curve.get_ydata()[-1], 1.25 * np.mean([
        value('logit_operator', 2.5, s, 2.5, epoch=e) for s, e in ends.items()]))


LINES = { # label → (measure, factor of its column, split)
    'b3_upper_bound': {'empirical': ('logit_operator', 1.25, 'train'), 'valid bound': ('valid_bound', 1, 'train'),
                       'product, operators': ('product_bound', 1, 'train'),
                       'product, reshaped': ('product_bound_reshaped', 1, 'train')},
    'b6_probe': {'training points': ('logit_operator', 1.25, 'train'), 'Gaussian': ('logit_operator', 1.25, 'normal'),
                 'uniform': ('logit_operator', 1.25, 'uniform'), 'ball': ('logit_operator', 1.25, 'ball')}}


@pytest.mark.parametrize('stem', LINES)
def test_curves_on_logarithmic_axes(drawn, stem):
    ax, = drawn(stem)[0][stem].axes
    over_width(ax, yscale='log')
    for label, (measure, scale, split) in LINES[stem].items(): holds_curve(ax, label, measure, scale, split=split)


def test_b4(drawn):
    axes = drawn('b4_curvature')[0]['b4_curvature'].axes
    measures = 'hessian_trace', 'hessian_lambda_max', 'hessian_lambda_r', 'loss_jacobian'
    for ax, measure in zip(axes, measures, strict=True):
        over_width(ax, yscale='log')
        holds_curve(ax, 'ours', measure)
        grey = line(ax, 'published,\npeak as high as ours')
        np.testing.assert_allclose(grey.get_ydata().max(), value(measure, 2.5, 1, 2.5))


def test_b5(drawn):
    axes = drawn('b5_distance')[0]['b5_distance'].axes
    shown, widths = image(axes[0]).get_array(), sorted(committed('digits')['width'].unique())
    tent = value('distance:conv1', np.array(widths), 0, 2.5)
    np.testing.assert_allclose(shown, np.tile(tent / tent.max(), (5, 1)))
    layers = [ax for ax in axes if 'base width' in ax.get_xlabel()][1:]
    assert [ax.get_title('left')[4:] for ax in layers] == ['conv1', 'conv2', 'conv3', 'conv4', 'linear']
    for ax in layers:
        over_width(ax)
        np.testing.assert_allclose(line(ax, 'ours').get_ydata(), tent / tent.max())
        assert .99 < line(ax, 'published').get_ydata().max() <= 1


def squares(study, seed):
    "Curves over the widths of a study: measure to values, of the column that a squared norm is the mean of."
    widths = np.array(sorted(committed(study)['width'].unique()))
    norms = 'loss_jacobian', 'gradient_norm', 'theorem2:grad_theta1', 'theorem2:unshared'
    return lambda m: (1.25 if m in norms else 1) * value(m, widths, seed, AT.get(study, 2.5))


def left_side(of, smallest='theorem2:x_min'):
    return (of(smallest) / of('theorem2:theta1') * of('loss_jacobian'))**2


def test_b7(drawn):
    "Right over left side, and a line where both are equal."
    ax, = drawn('b7_layerwise')[0]['b7_layerwise'].axes
    over_width(ax, yscale='log')
    for label, gradient, smallest in (('shared weights', 'theorem2:grad_theta1', 'theorem2:x_min'),
                                      ('a copy per position', 'theorem2:unshared', 'theorem2:patch_min')):
        seeds = [squares('digits', s) for s in range(3)]
        ratio = np.mean([of(gradient)**2 / left_side(of, smallest) for of in seeds], 0)
        np.testing.assert_allclose(line(ax, label).get_ydata(), ratio)
    assert any(list(x.get_ydata()) == [1, 1] for x in ax.get_lines())


def test_b8(drawn):
    both, ratio, left, right = drawn('b8_theorem2')[0]['b8_theorem2'].axes
    for ax in (both, ratio, left, right): over_width(ax, 'digits-mlp', 'log')
    seeds = [squares('digits-mlp', s) for s in range(3)]
    mean = lambda of_seed: np.mean([of_seed(of) for of in seeds], 0)
    right_side = lambda of: 2 * of('theorem2:loss_max') * of('hessian_trace')
    drawn_as = [(both, 'left side', left_side), (both, 'right side', right_side),
                (left, r'$x_{\min}/\|\theta^1\|$', lambda of: of('theorem2:x_min') / of('theorem2:theta1')),
                (left, r'$\mathbb{E}\|\nabla_x L\|^2$', lambda of: of('loss_jacobian')**2),
                (right, r'$L_{\max}$', lambda of: of('theorem2:loss_max')),
                (right, 'tr $H$', lambda of: of('hessian_trace'))]
    for ax, label, of_seed in drawn_as: np.testing.assert_allclose(line(ax, label).get_ydata(), mean(of_seed))
    np.testing.assert_allclose(ratio.get_lines()[0].get_ydata(), mean(lambda of: right_side(of) / left_side(of)))


def test_c2(drawn):
    found, scope = drawn('c2_mislabelled')
    axes = found['c2_mislabelled'].axes
    for ax, (name, m) in zip(axes, [(q, m) for q in ('auroc', 'precision') for m in scope['MEASURES']], strict=True):
        over_width(ax)
        holds_volumes(ax, f'{name}:{m}')
        assert set(line(ax, 'cleanlab, 5 folds').get_xdata()) == {2.5, 6, 16}


def test_c3(drawn):
    found, scope = drawn('c3_seeds')
    axes = found['c3_seeds'].axes
    scales = dict(loss_jacobian=6, tangent_hessian=6, logit_operator=1.25) # 6: over volume 5
    for ax, (m, scale) in zip(axes, scales.items()):
        curves = [x for x in ax.get_lines() if x.get_color() != 'tab:red']
        assert len(curves) == 10 and ax.get_xscale() == 'log'
        for s, curve in enumerate(curves):
            np.testing.assert_allclose(curve.get_ydata(), scale * value(m, curve.get_xdata(), s, 2.5))
    assert [bar.get_height() for bar in axes[3].patches] == [10] # every seed has the same threshold


def test_fig0(drawn):
    axes = drawn('fig0_method')[0]['fig0_method'].axes
    *images, left, right = axes
    assert len(images) == 12 and all(any(isinstance(a, AxesImage) for a in ax.get_children()) for ax in images)
    assert len(right.get_lines()[0].get_xdata()) == 6 and len(left.get_lines()) == 2
    np.testing.assert_allclose(left.get_lines()[0].get_ydata()[0], right.get_lines()[0].get_ydata()[0], rtol=1e-5)


def test_fig1(drawn):
    polynomial, network, *errors = drawn('fig1')[0]['fig1'].axes
    for ax in (polynomial, network): assert ax.get_ylim() == (-2, 2)
    over_width(errors[0])
    for split in ('test', 'train'): holds_curve(errors[0], split, 'error', split=split)


def test_b9(drawn):
    found, scope = drawn('b9_toy', steps=30)
    fig, rows = found['b9_toy'], scope['frame']
    for ax in fig.axes:
        step = int(ax.get_title('left').split()[-1])
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), rows.loc[rows['step'] == step, 'f'])
        arrows, = ax.collections
        np.testing.assert_allclose(np.abs(arrows.V).max(), .3, rtol=.3)


# Every picture

OVER_WIDTH = [n for n in NOTEBOOKS if n not in ('b9_toy', 'fig0_method', 'fig5', 'fig11', 'fig13', 'b2_acceleration')]


@pytest.mark.parametrize('stem', ['fig5', 'fig11', 'fig13', 'b5_distance'])
def test_a_width_is_marked_in_a_heat_map(drawn, stem):
    "Its name is red; a dotted line stands before the first column that fits."
    found, scope = drawn(stem, width=6.)
    maps = [ax for ax in found[f'{stem}-width6'].axes
            if ax.get_xlabel() and any(isinstance(c, QuadMesh) for c in ax.collections)]
    columns = sorted(scope['results']['width'].unique())
    assert len(maps) == (1 if stem == 'b5_distance' else 3)
    at = AT.get({'fig11': 'digits-resnet18', 'fig13': 'digits-resnet18-plain'}.get(stem), 2.5)
    for ax in maps:
        assert [t.get_text() for t in ax.get_xticklabels() if t.get_color() == 'tab:red'] == ['6']
        assert dotted(ax) == [columns.index(at)]


def test_a_width_is_drawn_over_epochs(drawn):
    assert 12 in drawn('b2_acceleration', width=12.)[1]['chosen']


@pytest.mark.parametrize('stem', OVER_WIDTH)
def test_a_width_is_marked(drawn, stem):
    study = {'fig6': 'digits-resnet18', 'b8_theorem2': 'digits-mlp'}.get(stem, 'digits')
    width = 6.
    if study == 'digits-mlp': width = 64.
    found, _ = drawn(stem, width=width)
    assert any(red(ax) == [width] for fig in found.values() for ax in fig.axes)
    assert all(name.endswith(f'-width{width:g}') for name in found)


@pytest.mark.parametrize('stem', [n for n in OVER_WIDTH if n not in ('c2_mislabelled', 'c3_seeds')])
def test_one_seed_that_fits_nothing(drawn, stem):
    "No threshold: nothing is dotted, nothing published is drawn. One seed: no band, and the figure says so."
    found, _ = drawn(stem, seeds=[0], fitted=False)
    for fig in found.values():
        for ax in fig.axes:
            assert not dotted(ax) and not bands(ax)
            assert not [x for x in ax.get_lines() if str(x.get_label()).startswith('published')]
        assert 'one seed' in fig._supxlabel.get_text()


def test_every_figure_is_tested():
    source = Path(__file__).read_text()
    assert len(NOTEBOOKS) == 22 and all(f"'{stem}'" in source for stem in NOTEBOOKS)
