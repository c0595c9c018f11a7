"Opening a notebook in JupyterLab, which adds metadata and saves by itself, changes no committed file."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

pytest.importorskip('jupyter_server')
pytest.importorskip('nbdev')
ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p.name for p in (ROOT/'nbs').glob('*.ipynb'))


def git(folder, *words):
    return subprocess.run(['git', '-C', folder, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    "A repository with the notebooks, all committed."
    copy = tmp_path_factory.mktemp('lab')
    shutil.copytree(ROOT/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('.*'))
    for name in ('settings.ini', '.gitignore'): shutil.copy(ROOT/name, copy)
    git(copy, 'init', '-q')
    git(copy, 'add', '-A')
    git(copy, '-c', 'user.name=test', '-c', 'user.email=test@example.org', 'commit', '-qm', 'all')
    return copy


@pytest.fixture(scope='module')
def contents(checkout, tmp_path_factory):
    "The contents API of a Jupyter server with the configuration that `make` installs, as Lab speaks to it."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    config = tmp_path_factory.mktemp('config')
    shutil.copy(ROOT/'jupyter_server_config.json', config)
    words = ['server', '--no-browser', '--allow-root', f'--port={port}', '--IdentityProvider.token=secret']
    server = subprocess.Popen([Path(sys.executable).parent/'jupyter', *words], cwd=checkout,
                              env=os.environ | {'JUPYTER_CONFIG_DIR': str(config)},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def call(method, path, content=None):
        body = None if content is None else json.dumps(dict(type='notebook', format='json', content=content)).encode()
        request = Request(f'http://127.0.0.1:{port}/api/contents/{path}', body, method=method,
                          headers={'Authorization': 'token secret', 'Content-Type': 'application/json'})
        with urlopen(request, timeout=30) as answer: return json.load(answer)
    for _ in range(120):
        try: call('GET', 'nbs')
        except OSError: time.sleep(.5)
        else: break
    yield call
    server.terminate()
    server.wait()


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_opening_and_saving_leaves_git_clean(checkout, contents, name):
    notebook = contents('GET', f'nbs/{name}')['content']
    notebook['metadata']['kernelspec'] = dict(display_name='Python 3 (ipykernel)', language='python', name='python3')
    notebook['metadata']['language_info'] = {
        'codemirror_mode': {'name': 'ipython', 'version': 3}, 'file_extension': '.py', 'mimetype': 'text/x-python',
        'name': 'python', 'nbconvert_exporter': 'python', 'pygments_lexer': 'ipython3', 'version': '3.11.7'}
    before = (checkout/'nbs'/name).stat().st_mtime_ns
    contents('PUT', f'nbs/{name}', notebook)
    assert (checkout/'nbs'/name).stat().st_mtime_ns > before
    assert git(checkout, 'status', '--porcelain') == ''


def test_what_a_reader_changes_is_saved(checkout, contents):
    notebook = contents('GET', 'nbs/fig2.ipynb')['content']
    notebook['cells'][0]['source'] += '\nA note.'
    contents('PUT', 'nbs/fig2.ipynb', notebook)
    assert '+    "A note."' in git(checkout, 'diff', '--', 'nbs/fig2.ipynb')
    git(checkout, 'checkout', '--', 'nbs')
