"The literal command, on a study of seconds, in a checkout of its own."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smoothinterp.core import load_frame

pytest.importorskip('papermill')
ROOT = Path(__file__).parent.parent
PAPERMILL = str(Path(sys.executable).parent/'papermill')


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    copy = tmp_path_factory.mktemp('checkout')
    for name in ('nbs', 'smoothinterp'): shutil.copytree(ROOT/name, copy/name)
    shutil.copy(ROOT/'settings.ini', copy)
    return copy


def papermill(checkout, *args, **kw):
    env = {k: v for k, v in os.environ.items() if k != 'SMOOTHINTERP_RUNS'} | {'PYTHONPATH': str(checkout)}
    return subprocess.run([PAPERMILL, 'nbs/fig2.ipynb', *args], cwd=checkout, env=env, capture_output=True, text=True,
                          stdin=kw.pop('stdin', subprocess.DEVNULL), timeout=300, **kw)


def figures(checkout):
    return sorted(p.name for p in (checkout/'figures').glob('*')) if (checkout/'figures').exists() else []


def test_the_width_is_trained_measured_and_marked(checkout):
    source = (checkout/'nbs/fig2.ipynb').read_bytes()
    done = papermill(checkout, '-p', 'study', 'smoke', '-p', 'width', '3')
    assert done.returncode == 0, done.stderr
    assert figures(checkout) == [f'fig2-smoke-width3.{e}' for e in ('ipynb', 'parquet', 'png', 'svg')]
    assert (checkout/'runs/smoke/w003-s0/run.json').exists()
    df, meta = load_frame(checkout/'figures/fig2-smoke-width3.parquet')
    assert set(df['width']) == {1, 2, 3, 4} and set(df['study']) == {'smoke'}
    assert (checkout/'nbs/fig2.ipynb').read_bytes() == source
    said = done.stdout # what is trained, how long that takes and, at the end, where the numbers come from
    plan, seconds, first = map(said.index, ('no results for w = 1, 2, 3, 4', 'all runs: at most', 'done after 8'))
    assert plan < seconds < first
    assert 'results: runs' in said
    cells = json.loads((checkout/'figures/fig2-smoke-width3.ipynb').read_text())['cells']
    assert 'What to see' not in json.dumps([c.get('outputs') for c in cells])

    stamps = {p: p.stat().st_mtime_ns for p in (checkout/'runs').rglob('results.parquet')}
    read, write = os.pipe()
    done = papermill(checkout, '-p', 'study', 'smoke', '-p', 'width', '2', stdin=read)
    os.close(read), os.close(write)
    assert done.returncode == 0, done.stderr
    assert set(load_frame(checkout/'figures/fig2-smoke-width2.parquet')[0]['width']) == {1, 2, 4}
    assert stamps == {p: p.stat().st_mtime_ns for p in (checkout/'runs').rglob('results.parquet')}


def test_committed_results_are_drawn_and_measured_again(checkout):
    "Without runs of its own a checkout draws what is committed, says so, and checks it where it has the images."
    env = os.environ | {'PYTHONPATH': str(checkout)}
    env.pop('SMOOTHINTERP_RUNS', None)
    publish = [sys.executable, '-c', 'from smoothinterp.cli import main; main(["publish", "smoke"])']
    assert 'manifest.json' in subprocess.run(publish, cwd=checkout, env=env, capture_output=True, text=True,
                                             check=True).stdout
    (checkout/'runs').rename(checkout/'elsewhere')
    drawn = load_frame(checkout/'figures/fig2-smoke-width2.parquet')[0]
    done = papermill(checkout, '-p', 'study', 'smoke', '-p', 'width', '2')
    (checkout/'elsewhere').rename(checkout/'runs')
    assert done.returncode == 0, done.stderr
    said = (checkout/'figures/fig2-smoke-width2.ipynb').read_text()
    assert 'results: committed' in said and 'tangent_hessian 0' in said
    assert 'w = 2 measured again from the committed weights' in said
    assert drawn.equals(load_frame(checkout/'figures/fig2-smoke-width2.parquet')[0])


@pytest.mark.parametrize('args, says', [
    (('-p', 'widht', '15'), "did you mean 'width'"), (('-p', 'width', '99999'), 'from 0.5 to 64'),
    (('-p', 'width', '-3'), 'from 0.5 to 64'), (('-p', 'width', 'abc'), 'from 0.5 to 64'),
    (('-p', 'study', 'digit'), "did you mean 'digits'")])
def test_a_wrong_parameter_is_refused_before_anything_is_written(checkout, args, says):
    before = figures(checkout)
    done = papermill(checkout, *args)
    assert done.returncode != 0 and says in done.stderr
    assert figures(checkout) == before


def test_help_names_every_parameter(checkout):
    out = papermill(checkout, '--help-notebook').stdout
    assert 'study: str' in out and 'width: float' in out and 'base width to measure' in out


def test_an_explicit_output_is_papermills_own_business(checkout, tmp_path):
    done = papermill(checkout, str(tmp_path/'mine.ipynb'), '-p', 'study', 'smoke', '-p', 'width', '-1')
    assert done.returncode != 0 and 'from 1 to 64' in done.stderr
    assert (tmp_path/'mine.ipynb').exists()
