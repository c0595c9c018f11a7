"The explorer: what its menus offer, what it draws, what it computes anew; and in a real browser."
import base64
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('ipywidgets')
from explorer_page import PICTURE, browser, drag, opened

from smoothinterp import explore
from smoothinterp.checkpoints import committed_studies
from smoothinterp.explore import END, Explorer, along, chosen, error_panel, image_panel, loss_panel, measure_panel
from smoothinterp.results import results, threshold

ROOT = Path(__file__).parent.parent
START = dict(study='digits', measure='loss_jacobian', volume=3, subset='noisy', width=2.5)
COMPUTED = dict(pictures=explore.picture, errors=error_panel, measures=measure_panel, images=image_panel,
                losses=loss_panel, networks=explore.trained, paths=along, frames=explore.frame)


@pytest.fixture
def explorer():
    return Explorer(**START)


def computed(change):
    "How often each cached function computed something during a change, if it did."
    before = {name: f.cache_info().misses for name, f in COMPUTED.items()}
    change()
    return {name: n for name, f in COMPUTED.items() if (n := f.cache_info().misses - before[name])}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def changed(before, after):
    "Which of the four panels of two pictures differ."
    differ = (pixels(before) != pixels(after)).any(-1)
    h, w = (n // 2 for n in differ.shape)
    parts = dict(errors=differ[:h, :w], images=differ[:h, w:], measure=differ[h:, :w], losses=differ[h:, w:])
    return {name for name, part in parts.items() if part.any()}


def set_to(explorer, **values):
    "Choose, and which panels changed."
    before = explorer.image.value
    for name, value in values.items(): explorer.menus[name].value = value
    return changed(before, explorer.image.value)


def test_all_committed_studies_are_offered_under_readable_names():
    names = chosen()[1]['study']
    assert [study for _, study in names] == committed_studies()
    for study in committed_studies():
        for menu, options in chosen(study=study)[1].items():
            assert options and not any('_' in name for name, _ in options), menu


def test_a_study_that_is_not_committed_stays_in_the_menu(monkeypatch):
    monkeypatch.setattr(explore, '_committed', lambda: {'digits-clean': 'digits-clean: clean labels'})
    explorer = Explorer(study='digits')
    for study in ('digits-clean', 'digits'):
        explorer.menus['study'].value = study
        assert explorer.choices['study'] == study
        assert explorer.menus['study'].options[1] == ('digits: measured here', 'digits')
    with pytest.raises(FileNotFoundError, match='no file mine.py'): chosen(study='mine.py')


def test_a_width_moves_the_line_the_predictions_and_the_losses(explorer):
    assert set_to(explorer, width=16.) == {'errors', 'images', 'measure', 'losses'}
    panel = measure_panel('digits', 'loss_jacobian', 3, 'noisy', True)
    df = results('digits').query("measure == 'loss_jacobian' and path == 'svd' and volume == 3 and subset == 'noisy'")
    expected = df[df['width'] == 16]['mean'].mean()
    assert set(panel.line.get_xdata()) == {16} and panel.said.get_text() == f'w = 16: {expected:.3g}'
    predictions, losses = along('digits', 16., explorer.choices['point'])
    shown = [text.get_text() for text in image_panel('digits', explorer.choices['point']).classes]
    assert shown == [f'{c:.0f}' for c in predictions.flatten()]
    drawn = [line.get_ydata() for line in loss_panel(losses.shape).lines]
    assert np.array_equal(drawn, losses.clip(*explore.LOSSES))


def test_the_threshold_is_dotted_above_and_below(explorer):
    at = threshold(results('digits'))
    for panel in (error_panel('digits'), measure_panel('digits', 'loss_jacobian', 3, 'noisy', True)):
        assert [line.get_xdata()[0] for line in panel.ax.lines if line.get_linestyle() == ':'] == [at]


def test_each_choice_changes_what_depends_on_it(explorer):
    assert set_to(explorer, point=explorer.menus['point'].options[5][1]) == {'images', 'losses'}
    assert set_to(explorer, volume=2) == {'measure', 'images', 'losses'}
    assert set_to(explorer, measure='tangent_hessian') == {'measure'}
    assert set_to(explorer, measure='logit_operator') >= {'measure'} # at the points alone
    assert explorer.choices['volume'] == 0
    assert set_to(explorer, epoch=8) == {'errors', 'measure'}
    assert set_to(explorer, measure='hessian_trace') >= {'errors', 'measure'} # at the end alone
    assert explorer.choices['epoch'] == END


def test_a_subset_offers_its_points(explorer):
    _, data = explore.trained('digits', 2.5)
    assert all(data.corrupted[i] for _, i in explorer.menus['point'].options)
    explorer.menus['subset'].value = 'clean'
    assert not any(data.corrupted[i] for _, i in explorer.menus['point'].options)
    explorer.menus['study'].value = 'digits-clean'
    assert explorer.choices['subset'] == 'clean' and len(explorer.menus['point'].options) == 1000


def test_little_is_computed_anew(explorer):
    "Dragging back and forth computes nothing; a new point one image panel; a new width one network and its path."
    widths = [w for _, w in explorer.menus['width'].options]
    def drag_all():
        for w in widths: explorer.menus['width'].value = w
    drag_all()
    assert computed(drag_all) == {}
    point = explorer.menus['point'].options[9][1]
    assert computed(lambda: set_to(explorer, point=point)) == dict(pictures=1, images=1, paths=1)
    assert computed(drag_all) == Counter(pictures=len(widths) - 1, paths=len(widths) - 1)
    assert computed(lambda: set_to(explorer, volume=5)) == dict(pictures=1, measures=1)
    set_to(explorer, measure='logit_operator', epoch=8)
    assert computed(lambda: set_to(explorer, epoch=16)) == dict(pictures=1)


def test_an_epoch_shows_each_runs_last_number_up_to_it():
    rows = explore.curve('digits', 'error', epoch=256, split='test')
    ended = explore.curve('digits', 'error', split='test').set_index(['width', 'seed'])['value']
    early = rows[rows['epoch'] < 256].set_index(['width', 'seed'])['value']
    assert len(rows) == len(ended) and len(early) and np.allclose(early, ended[early.index])


def test_a_study_without_its_images_says_so_and_shows_its_curves(monkeypatch, tmp_path):
    explore.trained.cache_clear()
    monkeypatch.setenv('SMOOTHINTERP_DATA', str(tmp_path))
    explorer = Explorer(study='cifar10-small')
    told = explore.trained('cifar10-small', 1.)
    assert 'set SMOOTHINTERP_DATA' in told and 'cifar-10-batches-py' in told
    assert not list(tmp_path.iterdir())
    assert set_to(explorer, width=24.) == {'errors', 'measure'}
    explore.trained.cache_clear()
    explore.picture.cache_clear()


def test_where_no_kernel_runs_there_is_a_picture(explorer):
    shown = explorer._repr_mimebundle_()
    assert base64.b64decode(shown['image/png']) == explorer.image.value
    assert 'application/vnd.jupyter.widget-view+json' in shown


def test_the_notebook_holds_the_picture_and_no_widgets():
    "If not: `python tests/explorer_page.py`."
    nb = json.loads((ROOT/'nbs/explore.ipynb').read_text())
    kinds = Counter(kind for cell in nb['cells'] for o in cell.get('outputs', []) for kind in o.get('data', {}))
    assert kinds['image/png'] == 1
    assert 'widgets' not in nb['metadata'] and 'application/vnd.jupyter.widget-view+json' not in kinds


@pytest.mark.slow
def test_in_a_browser_the_slider_moves_and_the_picture_changes():
    pytest.importorskip('playwright', reason='pip install playwright')
    if browser() is None: pytest.skip('no Chromium: install one, or set CHROMIUM to its path')
    with opened() as (page, errors):
        before = page.locator(PICTURE).screenshot()
        drag(page, 'width', 2)
        after = page.locator(PICTURE).screenshot()
        drag(page, 'point', 1)
        assert len(changed(before, after)) == 4
        assert changed(after, page.locator(PICTURE).screenshot()) == {'images', 'losses'}
        assert errors == []
