"README.md is nbs/index.ipynb, seen from the root: `python tests/readme.py` writes it."
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent


def readme() -> str:
    "The notebook as Markdown, without the code of cells that begin with `#| echo: false`."
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    nb.metadata['language_info'] = {'name': 'python'} # nbdev_clean takes it out
    for cell in nb.cells:
        if cell.source.startswith('#| echo: false'): cell.source = ''
    text = MarkdownExporter().from_notebook_node(nb)[0].replace('../', '')
    text = text.replace('```\n\n```\n', '').replace('```python\n\n```\n', '')
    while '\n\n\n' in text: text = text.replace('\n\n\n', '\n\n')
    return text


if __name__ == '__main__': (ROOT/'README.md').write_text(readme())
