"""The explorer in a real browser: `python tests/explorer_page.py` executes its notebook, keeps the picture and
writes figures/explore.png. Needs playwright and a Chromium."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent
PICTURE = 'img.widget-image'


def browser() -> str | None:
    "Path of a Chromium: `CHROMIUM`, or one that is installed; None if there is none."
    names = 'chromium', 'chromium-browser', 'google-chrome', 'chrome'
    return os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def served():
    "Within: voila serves the notebook at the address that is yielded, as `make explore` does."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    words = ['nbs/explore.ipynb', '--no-browser', '--Voila.ip=127.0.0.1', f'--port={port}']
    server = subprocess.Popen([sys.executable, '-m', 'voila', *words], cwd=ROOT,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try: urlopen(f'http://127.0.0.1:{port}/voila/static/voila.js', timeout=5)
            except OSError as e:
                if getattr(e, 'code', None): break # it answers
                time.sleep(.5)
            else: break
        yield f'http://127.0.0.1:{port}/'
    finally:
        server.terminate()
        server.wait()


@contextmanager
def opened():
    "Within: the page with the explorer in a headless Chromium, and the list of its console errors."
    from playwright.sync_api import sync_playwright
    with served() as address, sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser(), args=['--no-sandbox'])
        page, errors = chromium.new_page(viewport=dict(width=1100, height=900), device_scale_factor=1.5), []
        page.on('console', lambda m: errors.append(f'{m.text} {m.location}') if m.type == 'error' else None)
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.route(lambda url: not url.startswith(address), lambda route: route.fulfill(body='')) # icons of a CDN
        page.goto(address, timeout=240_000)
        page.wait_for_selector(PICTURE, timeout=240_000)
        yield page, errors
        chromium.close()


def without_widgets(path: Path) -> None:
    "Take widgets, which need a kernel, out of a notebook's outputs. Their picture stays."
    nb = json.loads(path.read_text())
    nb['metadata'].pop('widgets', None)
    for output in (o for cell in nb['cells'] for o in cell.get('outputs', [])):
        output.get('data', {}).pop('application/vnd.jupyter.widget-view+json', None)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n')


def drag(page, name: str, steps: int) -> None:
    "Move the slider of a name by some steps to the right, and wait for another picture after each."
    handle = page.locator('.widget-hslider', has_text=name).locator('.noUi-handle')
    handle.focus()
    for _ in range(steps):
        before = page.locator(PICTURE).evaluate('img => img.src')
        handle.press('ArrowRight')
        page.wait_for_function('([css, src]) => (img => img.src != src && img.complete)(document.querySelector(css))',
                               arg=[PICTURE, before], timeout=60_000)


if __name__ == '__main__':
    notebook = ROOT/'nbs/explore.ipynb'
    words = ['--to', 'notebook', '--inplace', '--execute', notebook]
    subprocess.run([sys.executable, '-m', 'nbconvert', *words], check=True)
    without_widgets(notebook)
    subprocess.run([Path(sys.executable).parent/'nbdev_clean'], cwd=ROOT, check=True)
    with opened() as (page, _):
        page.locator('.widget-vbox', has=page.locator(PICTURE)).first.screenshot(path=ROOT/'figures/explore.png')
