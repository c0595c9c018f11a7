"""What the plug-in makes of `papermill nbs/figx.ipynb`, typed at a terminal, into a pipe and in the wrong way."""
import ast
import base64
import importlib
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('papermill')
import click
import nbformat
import papermill.cli
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook

from smoothinterp import papermill_plugin as mill

TYPED = [str(Path(sys.executable).with_name('papermill'))]
MODULE = [sys.executable, '-m', 'papermill']
HOME = Path(__file__).parent.parent


def notebook(path, *sources):
    nb = new_notebook(cells=[new_code_cell(source) for source in sources])
    nb.metadata.kernelspec = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    nb.cells[0].metadata.tags = ['parameters']
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


@pytest.fixture
def root(tmp_path):
    "A small checkout."
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nlib_name = smoothinterp\n')
    notebook(tmp_path/'nbs'/'figx.ipynb', 'n: int = 3  # how many\nwho: str = "ann"  # for whom', 'print(who * n)')
    return tmp_path


@pytest.fixture
def foreign(tmp_path):
    "A notebook in the `nbs` of another project."
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'settings.ini').write_text('[DEFAULT]\nlib_name = other\n')
    return notebook(tmp_path/'other'/'nbs'/'figx.ipynb', 'n = 3')


def start(command, cwd, stdin=subprocess.DEVNULL, **kw):
    return subprocess.run(command, cwd=cwd, stdin=stdin, capture_output=True, text=True, timeout=30, **kw)


def at_terminal(command, cwd):
    "Exit status and what the terminal shows, where all three streams are one pseudo-terminal."
    ours, theirs = pty.openpty()
    process, shown = subprocess.Popen(command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs), b''
    os.close(theirs)
    try:
        while more := os.read(ours, 4096): shown += more
    except OSError: pass  # Linux reports the closed terminal as an error
    os.close(ours)
    return process.wait(60), shown.decode()


@pytest.fixture
def here(root, monkeypatch):
    "Papermill in this process: arguments in, click's result out. No kernel is started with --prepare-only."
    monkeypatch.chdir(root)
    return lambda *args, **kw: CliRunner().invoke(papermill.cli.papermill, [str(a) for a in args], **kw)


def figures(root):
    return sorted(p.name for p in (root/'figures').glob('*')) + sorted(p.name for p in (root/'figures').glob('.*'))


def injected(path):
    "The parameters that papermill wrote into an executed copy."
    return dict(nbformat.read(path, 4).metadata.papermill.parameters)


def printed(path): return nbformat.read(path, 4).cells[-1].outputs[0].text


# Typed as one would

def test_in_a_pipe(root):
    source = (root/'nbs'/'figx.ipynb').read_bytes()
    done = start([*TYPED, 'nbs/figx.ipynb', '-p', 'n', '5'], root)
    assert (done.returncode, done.stdout) == (0, 'annannannannann\n') # what the cell prints
    assert done.stderr.count('The executed notebook goes to figures/figx-n5.ipynb\n') == 1
    assert figures(root) == ['figx-n5.ipynb']
    assert printed(root/'figures'/'figx-n5.ipynb') == 'annannannannann\n'
    assert nbformat.read(root/'figures'/'figx-n5.ipynb', 4).metadata.papermill.output_path == 'figures/figx-n5.ipynb'
    assert (root/'nbs'/'figx.ipynb').read_bytes() == source and os.listdir(root/'nbs') == ['figx.ipynb']


def test_at_a_terminal(root):
    status, shown = at_terminal([*TYPED, 'nbs/figx.ipynb', '-p', 'n', '1'], root)
    assert status == 0 and 'goes to figures/figx-n1.ipynb' in shown
    assert printed(root/'figures'/'figx-n1.ipynb') == 'ann\n'


def test_open_pipe_on_stdin_as_module_from_elsewhere(root):
    source = (root/'nbs'/'figx.ipynb').read_bytes()
    read, write = os.pipe()  # stays open: whoever reads from it waits for ever
    try: done = start([*MODULE, '../figx.ipynb'], (root/'nbs'/'sub').mkdir() or root/'nbs'/'sub', stdin=read)
    finally: os.close(read), os.close(write)
    assert done.returncode == 0 and 'goes to ../../figures/figx.ipynb\n' in done.stderr
    assert printed(root/'figures'/'figx.ipynb') == 'annannann\n'
    assert (root/'nbs'/'figx.ipynb').read_bytes() == source


@pytest.mark.parametrize('spelling', ['nbs/figx.ipynb', './nbs/../nbs//figx.ipynb', '{root}/nbs/figx.ipynb',
                                      '../{root.name}/nbs/figx.ipynb'])
def test_any_spelling(root, here, spelling):
    assert here(spelling.format(root=root), '--prepare-only').exit_code == 0
    assert figures(root) == ['figx.ipynb']


def test_through_a_link(root, here, tmp_path_factory):
    link = tmp_path_factory.mktemp('links')/'short'
    link.symlink_to(root)
    assert here(link/'nbs'/'figx.ipynb', '--prepare-only').exit_code == 0
    assert figures(root) == ['figx.ipynb']


# Parameters from everywhere

@pytest.mark.parametrize('args, given, name', [
    (['-y', '{who: bob, n: 4}'], {'who': 'bob', 'n': 4}, 'figx-n4-bob'),
    (['-f', 'five.yaml'], {'n': 5}, 'figx-n5'),
    (['-b', base64.b64encode(b'n: 6').decode()], {'n': 6}, 'figx-n6'),
    (['-r', 'who', '007'], {'who': '007'}, 'figx-007'),
    (['-p', 'n', '1e-3'], {'n': 0.001}, 'figx-n0.001'),
    (['-p', 'n', '3'], {'n': 3}, 'figx'),
    (['-p', 'n', '3.0'], {'n': 3.0}, 'figx'),
    (['-p', 'n', 'True'], {'n': True}, 'figx-nTrue'),
    (['-p', 'who', '../nbs/figx'], {'who': '../nbs/figx'}, 'figx-.._nbs_figx'),
    (['-p', 'n', '7', '-y', 'n: 6', '-f', 'five.yaml'], {'n': 7}, 'figx-n7'),
])
def test_parameters(root, here, args, given, name):
    (root/'five.yaml').write_text('n: 5')
    done = here('nbs/figx.ipynb', '--prepare-only', *args)
    assert done.exit_code == 0 and figures(root) == [f'{name}.ipynb']
    taken = injected(root/'figures'/f'{name}.ipynb')
    assert taken == given and [type(taken[k]) for k in given] == [type(v) for v in given.values()]


def test_parameters_from_a_pipe_are_read_once(root):
    os.mkfifo(root/'pipe.yaml')
    done = start(['sh', '-c', f'echo "n: 8" > pipe.yaml & exec {TYPED[0]} nbs/figx.ipynb --prepare-only -f pipe.yaml'],
                 root)
    assert done.returncode == 0, done.stderr
    assert injected(root/'figures'/'figx-n8.ipynb') == {'n': 8}


def test_injected_paths_are_no_typos(root, here):
    assert here('nbs/figx.ipynb', '--prepare-only', '--inject-paths').exit_code == 0
    assert injected(root/'figures'/'figx.ipynb')['PAPERMILL_OUTPUT_PATH'] == 'figures/figx.ipynb'


# Refusals

@pytest.mark.parametrize('args, told', [
    (['-p', 'm', '15'], "no parameter 'm'. figx has: n, who"),
    (['-y', 'whoo: 1'], "no parameter 'whoo'; did you mean 'who'? figx has: n, who"),
])
def test_unknown_parameters(root, here, args, told):
    done = here('nbs/figx.ipynb', *args)
    assert done.exit_code == 2 and told in done.output
    assert not (root/'figures').exists()


def test_unknown_notebook_even_with_a_pipe_on_stdin(root, here, monkeypatch):
    monkeypatch.setattr(papermill.cli, 'INPUT_PIPED', True)
    done = here('nbs/fgix.ipynb', input=(root/'nbs'/'figx.ipynb').read_text())
    assert done.exit_code == 2 and "no notebook nbs/fgix.ipynb; did you mean 'figx.ipynb'?" in done.output
    assert os.listdir(root/'nbs') == ['figx.ipynb']


def test_study_and_width_are_checked(root, here, monkeypatch):
    def validate_figure(study, width):
        asked.append((study, width))
        if width > 64: raise ValueError(f'width {width} is not one of 1 to 64')
    asked = []
    monkeypatch.setitem(sys.modules, 'smoothinterp.study', SimpleNamespace(validate_figure=validate_figure))
    notebook(root/'nbs'/'fig2.ipynb', 'study: str = "digits"  # which\nwidth: int = 15  # how wide')
    assert here('nbs/fig2.ipynb', '--prepare-only').exit_code == 0
    assert here('nbs/fig2.ipynb', '--prepare-only', '-p', 'width', '20', '-p', 'study', 'cifar10-small').exit_code == 0
    refused = here('nbs/fig2.ipynb', '--prepare-only', '-p', 'width', '99999')
    assert refused.exit_code == 2 and 'width 99999 is not one of 1 to 64' in refused.output
    assert here('nbs/figx.ipynb', '--prepare-only').exit_code == 0
    assert asked == [('digits', 15), ('cifar10-small', 20), ('digits', 99999)]
    assert figures(root) == ['fig2-cifar10-small-width20.ipynb', 'fig2.ipynb', 'figx.ipynb']


@pytest.mark.parametrize('width', ['-3', '99999', 'abc', 'nan', 'True'])
def test_the_library_refuses_widths(root, here, width):
    pytest.importorskip('smoothinterp.study')
    notebook(root/'nbs'/'fig2.ipynb', 'study: str = "digits"  # which\nwidth: int = 15  # how wide')
    done = here('nbs/fig2.ipynb', '-p', 'width', width)
    assert done.exit_code == 2 and 'width' in done.output.split('Error:')[1]
    assert not (root/'figures').exists()


# Failures

def test_failing_cell_leaves_what_was_there(root):
    notebook(root/'nbs'/'figx.ipynb', 'n = 3', 'print(6 / n)')
    (root/'figures').mkdir()
    (root/'figures'/'figx-n0.ipynb').write_text('an earlier copy')
    done = start([*TYPED, 'nbs/figx.ipynb', '-p', 'n', '0'], root)
    assert done.returncode == 1 and 'ZeroDivisionError' in done.stderr
    assert 'figures/figx-n0.ipynb was not written' in done.stderr
    assert figures(root) == ['figx-n0.ipynb']
    assert (root/'figures'/'figx-n0.ipynb').read_text() == 'an earlier copy'


# Everything else is papermill's

@pytest.mark.parametrize('piped', [True, False])
@pytest.mark.parametrize('args', [
    ['{foreign}', '--prepare-only', '-p', 'n', '4', '-p', 'bogus', '3'],
    ['nbs/figx.ipynb', 'out.ipynb', '--prepare-only', '-p', 'bogus', '3'],
    ['nbs/figx.ipynb', '-', '--prepare-only'],
    ['-', '-', '--prepare-only'],
    ['-', '--prepare-only'],
    ['--prepare-only'],
    ['nowhere.ipynb', '--prepare-only'],
    ['nbs/figx.json', '--prepare-only'],
    ['nbs/figx.ipynb', '--help-notebook'],
    ['nbs/figx.ipynb', '--bogus'],
    ['--version'],
    ['--help'],
])
def test_the_rest_is_as_without_plug_in(root, foreign, here, monkeypatch, args, piped):
    def outcome():
        done = here(*(a.format(foreign=foreign) for a in args), input=notebooks[foreign])
        files = {p: p.read_text() for p in root.rglob('*.ipynb')}
        for p in files: p.unlink()
        for p, text in notebooks.items(): p.write_text(text)
        return done.exit_code, done.stdout_bytes, repr(done.exception), files
    monkeypatch.setattr(nbformat.v4.nbbase, 'random_cell_id', lambda: 'some-id')
    for stream in ('INPUT_PIPED', 'OUTPUT_PIPED'): monkeypatch.setattr(papermill.cli, stream, piped)
    notebooks = {p: p.read_text() for p in root.rglob('*.ipynb')}
    with_plug = outcome()
    monkeypatch.setattr(click.Command, 'invoke', mill.invoke.original)
    assert outcome() == with_plug
    assert not (root/'figures').exists()


def test_help_notebook_lists_types_and_help(here):
    shown = here('nbs/figx.ipynb', '--help-notebook').output
    assert 'n: int (default 3)' in shown and 'how many' in shown and 'who: str (default "ann")' in shown


def test_other_commands_called_papermill(here, root):
    @click.command('papermill')
    @click.argument('notebook_path')
    def other(notebook_path): click.echo(f'mine: {notebook_path}')
    assert CliRunner().invoke(other, ['nbs/figx.ipynb']).output == 'mine: nbs/figx.ipynb\n'


# How it is loaded

@pytest.mark.parametrize('first', ['smoothinterp.papermill_plugin', 'papermill', 'papermill.cli'])
def test_import_is_light_and_comes_in_any_order(first):
    heavy = "{'torch', 'pandas', 'matplotlib', 'fastcore', 'nbdev', 'smoothinterp.study'} & set(sys.modules)"
    code = f"import sys, {first}; print({heavy}, 'papermill' in sys.modules); import papermill.cli, click; " \
           "print(papermill.engines.papermill_engines.get_engine('smoothinterp').__name__, " \
           "click.Command.invoke.__module__)"
    done = start([sys.executable, '-c', code], HOME)
    loaded = first != 'smoothinterp.papermill_plugin'
    assert done.stdout == f"set() {loaded}\nNBClientEngine smoothinterp.papermill_plugin\n", done.stderr


def test_reload_does_not_plug_in_twice(monkeypatch):
    monkeypatch.setattr(click.Command, 'invoke', click.Command.invoke)
    original = mill.invoke.original
    importlib.reload(mill)
    assert click.Command.invoke is mill.invoke and mill.invoke.original is original
    assert original.__module__ == 'click.core'


# What the plug-in expects of this project's notebooks

PARAMETRISED = [p for p in sorted((HOME/'nbs').glob('*.ipynb'))
                if any('parameters' in c.metadata.get('tags', []) for c in nbformat.read(p, 4).cells)]


@pytest.mark.parametrize('path', PARAMETRISED, ids=lambda p: p.stem)
def test_papermill_sees_every_parameter(path):
    "Papermill overlooks a parameter whose line has a second `=`, in its comment too."
    cell = next(c for c in nbformat.read(path, 4).cells if 'parameters' in c.metadata.get('tags', []))
    assigned = [s.target.id if isinstance(s, ast.AnnAssign) else s.targets[0].id
                for s in ast.parse(cell.source).body if isinstance(s, (ast.Assign, ast.AnnAssign))]
    assert list(mill.defaults(str(path))) == assigned != []
