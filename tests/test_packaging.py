"The package as others get it: wheel and source distribution, without a clone, and its types."
import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'CHANGELOG.md', 'LICENSE', 'constraints.txt',
         'smoothinterp', 'checkpoints')
CHECK = '''
import json
from pathlib import Path
import smoothinterp
from smoothinterp.checkpoints import load_run
from smoothinterp.core import checkpoints_dir, home
from smoothinterp.results import publish, results
from smoothinterp.sweep import study_frame
model, data = load_run('digits', 2.5)
wrong = int((model(data.inputs(data.x)).argmax(1) != data.y).sum())
errors = {}
for name, f in dict(load=lambda: load_run('digits-mlp', 4), results=lambda: results('digits-mlp'),
                    frame=lambda: study_frame('digits-noise10'), publish=lambda: publish('digits')).items():
    try: f()
    except FileNotFoundError as e: errors[name] = str(e)
print(json.dumps(dict(module=smoothinterp.__file__, home=str(home()), there=str(checkpoints_dir()), wrong=wrong,
                      rows=len(results('digits')), errors=errors)))
'''


def run(*args, **kw):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kw)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def packed(names):
    "Names of files inside the package."
    return {name.split('smoothinterp/', 1)[1] for name in names if 'smoothinterp/' in name and not name.endswith('/')}


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "Wheel and source distribution; the wheel is built from the latter, as `python -m build` does."
    for module in ('build', 'setuptools', 'wheel'): pytest.importorskip(module)
    copy, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for name in BUILD:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns('__pycache__'))
        else: shutil.copy(ROOT/name, copy)
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, copy)
    return next(out.glob('*.whl')), next(out.glob('*.tar.gz'))


@pytest.fixture(scope='module')
def installed(dist, tmp_path_factory):
    "A folder with the installed wheel and nothing else."
    folder = tmp_path_factory.mktemp('site')
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', folder, dist[0])
    return folder


def elsewhere(installed, tmp_path):
    "Where to run so that neither the clone nor the reader's files are seen."
    env = {k: v for k, v in os.environ.items() if not k.startswith('SMOOTHINTERP')}
    return dict(cwd=tmp_path, env=env | dict(PYTHONPATH=str(installed), HOME=str(tmp_path)))


@pytest.mark.slow
def test_the_wheel_holds_modules_style_types_and_digits(dist):
    found = packed(zipfile.ZipFile(dist[0]).namelist())
    assert {f'committed/digits/{p.name}' for p in (ROOT/'checkpoints/digits').iterdir()} <= found
    assert {p.name for p in (ROOT/'smoothinterp').iterdir() if p.is_file()} <= found
    assert {name.split('/')[1] for name in found if name.startswith('committed/')} == {'digits'}
    assert dist[0].stat().st_size < 2e6


@pytest.mark.slow
def test_an_installed_wheel_finds_digits_and_never_trains(installed, tmp_path):
    found = json.loads(run(sys.executable, '-c', CHECK, **elsewhere(installed, tmp_path)))
    assert Path(found['module']).is_relative_to(installed) and Path(found['there']).is_relative_to(installed)
    assert found['home'] == str(tmp_path/'.cache/smoothinterp')
    assert found['wrong'] == 0 and found['rows'] > 1000
    assert all('clone' in found['errors'][name] for name in ('load', 'results', 'frame', 'publish'))
    assert not [*tmp_path.iterdir()] # nothing was trained or written


@pytest.mark.slow
def test_a_figure_of_an_installed_wheel_says_what_it_needs(installed, tmp_path):
    done = subprocess.run([sys.executable, '-m', 'smoothinterp.cli', 'figure', 'fig2'], capture_output=True, text=True,
                          **elsewhere(installed, tmp_path))
    assert done.returncode == 1 and 'come with a clone' in done.stderr and len(done.stderr.splitlines()) == 1
    assert 'digits ' in run(sys.executable, '-m', 'smoothinterp.cli', 'studies', **elsewhere(installed, tmp_path))


@pytest.mark.slow
def test_runs_go_where_the_reader_says(installed, tmp_path):
    there = elsewhere(installed, tmp_path)
    there['env']['SMOOTHINTERP_RUNS'] = str(tmp_path/'mine')
    run(sys.executable, '-m', 'smoothinterp.cli', 'sweep', 'smoke', '--widths', '1', '--workers', '1', **there)
    assert (tmp_path/'mine/smoke/w001-s0/results.parquet').exists() and not (tmp_path/'.cache').exists()


def test_every_extra_has_requirements():
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini')
    text = (ROOT/'setup.py').read_text()
    for extra in ('lab', 'ray', 'docs', 'dev', 'bench', 'monitor', 'examples'):
        assert cfg['DEFAULT'][f'{extra}_requirements'].split() and f'"{extra}"' in text


def mypy(tmp_path, *args, **env):
    (tmp_path/'mypy.ini').write_text('[mypy]\nignore_missing_imports = True\n')
    run(sys.executable, '-m', 'mypy', *args, cwd=tmp_path, env=os.environ | env)


def test_public_signatures_are_valid_types(tmp_path):
    "Stubs of all modules, which hold every signature and nothing else, pass mypy."
    pytest.importorskip('mypy')
    run(Path(sys.executable).parent/'stubgen', '-q', ROOT/'smoothinterp', '-o', tmp_path, cwd=tmp_path)
    mypy(tmp_path, tmp_path)


def test_a_program_that_uses_the_package_passes_strict_mypy(tmp_path):
    pytest.importorskip('mypy')
    (tmp_path/'use.py').write_text('''
from pathlib import Path
from torch import Tensor
from typing_extensions import assert_type
from smoothinterp import smoothness
from smoothinterp.checkpoints import load_run
from smoothinterp.measures import empirical_lipschitz, loss_jacobian
from smoothinterp.report import Report
from smoothinterp.results import results

model, data = load_run('digits', 2.5)
x, y = data.inputs(data.x), data.y
assert_type(loss_jacobian(model, x, y), Tensor)
assert_type(empirical_lipschitz(model, x, y), float)
assert_type(smoothness(model, x, y), Report)
assert_type(smoothness(model, x, y).save('report.html'), Path)
print(results('digits', widths=[2.5]))
''')
    mypy(tmp_path, '--strict', '--follow-imports=silent', 'use.py', MYPYPATH=str(ROOT))
