"What is committed fits together: notebooks, exported module, README, parameters."
import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('nbconvert')
from benchmark_page import benchmarks
from gallery import gallery
from readme import readme

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))


def run(*args, **kw):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kw)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy of the checkout after nbdev_export and nbdev_clean."
    copy = tmp_path_factory.mktemp('sync')
    for name in ('settings.ini', 'nbs', 'smoothinterp'):
        source = ROOT/name
        if source.is_dir():
            shutil.copytree(source, copy/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
        else: shutil.copy(source, copy)
    for module in (copy/'smoothinterp').glob('*.py'):
        if module.name != '__init__.py': module.unlink()
    for tool in ('nbdev_export', 'nbdev_clean'): run(BIN/tool, cwd=copy)
    return copy


def files(folder, pattern):
    return {p.name: p.read_text() for p in folder.glob(pattern)}


def test_module_is_what_the_notebooks_export(exported):
    assert files(exported/'smoothinterp', '*.py') == files(ROOT/'smoothinterp', '*.py')


def test_notebooks_are_clean(exported):
    assert files(exported/'nbs', '*.ipynb') == files(ROOT/'nbs', '*.ipynb')


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_lines_of_code_fit_110_columns(notebook):
    "Nobody has to scroll sideways to read a cell in JupyterLab."
    cells = [c for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']
    lines = [line for c in cells for line in ''.join(c['source']).splitlines()]
    assert [line for line in lines if len(line) > 110] == []


def test_pages_are_made_from_their_sources():
    assert readme() == (ROOT/'README.md').read_text()
    assert gallery() == (ROOT/'figures/README.md').read_text()
    assert benchmarks() == (ROOT/'benchmarks/README.md').read_text()


@pytest.mark.parametrize('notebook', [p for p in NOTEBOOKS if p.name.startswith(('fig', 'b'))], ids=lambda p: p.stem)
def test_figure_notebooks_have_one_tagged_parameters_cell(exported, notebook):
    cells = json.loads((exported/'nbs'/notebook.name).read_text())['cells']
    assert sum('parameters' in c['metadata'].get('tags', []) for c in cells) == 1


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_open_cold(notebook):
    nb = json.loads(notebook.read_text())
    assert nb['metadata']['kernelspec'] == dict(display_name='python3', language='python', name='python3')
    assert ''.join(nb['cells'][0]['source']).startswith('# ')
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error']
    assert not any(str(Path.home()) in json.dumps(o) or str(ROOT) in json.dumps(o) for o in outputs)


def test_the_module_needs_neither_nbdev_nor_fastcore():
    "Without them, and without papermill and its click, every module imports but the papermill plug-in itself."
    names = [p.stem for p in (ROOT/'smoothinterp').glob('*.py') if not p.stem.startswith('_')
             and p.stem != 'papermill_plugin']
    block = ("import sys; [sys.modules.__setitem__(m, None) for m in ('fastcore', 'nbdev', 'IPython', 'papermill', "
             "'click')]; ")
    run(sys.executable, '-c', block + '; '.join(f'import smoothinterp.{n}' for n in names), cwd=ROOT)


def test_importing_the_package_is_light():
    code = "import sys, smoothinterp; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    run(sys.executable, '-c', code, cwd=ROOT)


def test_every_command_of_the_readme_exists():
    text = (ROOT/'README.md').read_text()
    targets = (ROOT/'Makefile').read_text()
    for target in ('fig2', 'test', 'readme'):
        assert f'make {target}' in text and f'\n{target}:' in targets
    assert 'usage: smoothinterp' in run(BIN/'smoothinterp', '--help', env=os.environ)


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_every_public_name_is_used_in_a_cell_whose_output_is_seen(notebook):
    public, shown = set(), set()
    for cell in json.loads(notebook.read_text())['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or source.startswith('%'): continue
        tree = ast.parse(source)
        if source.startswith('#| export'):
            public |= {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        elif cell['outputs']:
            shown |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
            shown |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    missing = {name for name in public - shown if not name.startswith('_')}
    assert not missing
