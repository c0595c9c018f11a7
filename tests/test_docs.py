"The documentation: every code block runs, every command exists, the site builds, every link leads somewhere."
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from smoothinterp.cli import parser
from smoothinterp.study import find_study

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT/'docs').rglob('*.md')), ROOT/'CONTRIBUTING.md']
BLOCK = r'^```(\w+)\n(.*?)^```(?:\n\n```text\n(.*?)^```)?'


def blocks(page, kind):
    "Code of a kind in a page, each with the output that the page promises, or None."
    return [(code, out or None) for name, code, out in re.findall(BLOCK, page.read_text(), re.M | re.S) if name == kind]


@pytest.mark.parametrize('page', [p for p in PAGES if blocks(p, 'python')], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page, tmp_path):
    "In a process and an empty folder of its own, as a reader would type it."
    code = ''.join(f'{code}\nprint("\\x1e", end="")\n' for code, _ in blocks(page, 'python'))
    env = os.environ | dict(PYTHONPATH=str(ROOT), SMOOTHINTERP_RUNS=str(tmp_path/'runs'), MPLBACKEND='agg')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (_, promised), printed in zip(blocks(page, 'python'), done.stdout.split('\x1e')):
        if promised: assert printed == promised


def commands():
    "Every command of every page."
    text = lambda page: '\n'.join(code for code, _ in blocks(page, 'sh'))
    return [pytest.param(line.split('  #')[0].strip(), id=f'{page.stem}: {line[:50]}')
            for page in PAGES for line in text(page).splitlines() if line.strip()]


@pytest.mark.parametrize('line', commands())
def test_the_commands_of_a_page_exist(line):
    for inner in re.findall(r"--wrap '(.*?)'", line) or [line]:
        words = shlex.split(inner.replace('$SLURM_ARRAY_TASK_ID', '2'))
        if 'xargs' in words: words = [*words[words.index('smoothinterp'):], words[1]]
        if words[0] == 'smoothinterp':
            given = parser().parse_args(words[1:])
            if (study := getattr(given, 'study', None)) and not study.endswith('.py'): find_study(study)
            if figure := getattr(given, 'figure', None): assert (ROOT/f'nbs/{figure}.ipynb').exists()
        elif words[0] == 'make': assert f'\n{words[1]}:' in (ROOT/'Makefile').read_text()
        elif words[0] in ('papermill', 'python'): assert (ROOT/words[1]).exists()
        else: assert words[0] in ('ray', 'pip', 'export')


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_links_lead_to_files_of_the_repository(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if not urlsplit(link).scheme: assert (page.parent/urlsplit(link).path).exists(), link


class Links(HTMLParser):
    "Anchors of a page, what it links to, and what it loads."
    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get('id'), found.get('name')}
        if tag == 'a' and found.get('href'): self.links.append(found['href'])
        if tag in ('script', 'img', 'iframe') and found.get('src'): self.loads.append(found['src'])
        if tag == 'link' and found.get('rel') != 'canonical': self.loads.append(found['href'])


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The built site. mkdocs is strict: a warning is an error."
    for module in ('mkdocs', 'material', 'mkdocs_jupyter', 'latex2mathml'): pytest.importorskip(module)
    out = tmp_path_factory.mktemp('site')
    done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '-q', '-d', out], cwd=ROOT,
                          env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Links(path.read_text()) for path in out.rglob('*.html')}


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_page_and_an_anchor(site):
    wrong = []
    for path, page in site.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or path.name == '404.html': continue
            to = (path.parent/unquote(url.path)).resolve() if url.path else path
            if to.is_dir(): to = to/'index.html'
            anchors = site[to].anchors if to.suffix == '.html' and to in site else set()
            if not to.exists() or url.fragment and unquote(url.fragment) not in anchors:
                wrong.append(f'{path.name}: {link}')
    assert wrong == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_the_network(site):
    outside = lambda src: urlsplit(src).scheme in ('http', 'https') or src.startswith('//')
    assert {src for page in site.values() for src in page.loads if outside(src)} == set()
    for path in site: assert 'cdnjs' not in path.read_text()


@pytest.mark.slow
def test_the_search_works_on_files(site):
    if not (chromium := shutil.which('chromium')): pytest.skip('needs chromium')
    home = next(path for path in site if path.name == 'index.html' and (path.parent/'search').exists())
    done = subprocess.run([chromium, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=20000',
                           '--dump-dom', f'{home.as_uri()}?q=kinks'], capture_output=True, text=True, timeout=120)
    assert re.search(r'\d+ matching documents', done.stdout)


@pytest.mark.slow
def test_the_site_has_no_unconverted_formulas(site):
    for path in site:
        copied = re.sub(r'<div class="clipboard-copy-txt".*?</div>', '', path.read_text(), flags=re.S)
        prose = re.sub(r'<(pre|code|script|style)\b.*?</\1>', '', copied, flags=re.S)
        assert not re.search(r'\$[^$<\\]*\\[a-z]+[^$<]*\$', prose), path.name


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    import importlib
    pages = {path.stem: page for path, page in site.items() if path.parent.name == 'reference'}
    for module in (ROOT/'smoothinterp').glob('[!_]*.py'):
        if module.stem == 'papermill_plugin': pytest.importorskip('papermill')
        found = importlib.import_module(f'smoothinterp.{module.stem}')
        functions = {n for n in found.__all__ if hasattr(getattr(found, n), '__doc__') and callable(getattr(found, n))
                     and getattr(getattr(found, n), '__module__', '') == found.__name__}
        assert {n.lower() for n in functions} <= pages[module.stem].anchors, module.stem
