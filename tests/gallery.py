"figures/README.md, the gallery, made from the figure notebooks: `python tests/gallery.py` writes it."
import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def gallery() -> str:
    "Title, question, picture and command of every figure notebook, and of the other studies that are committed."
    parts = ['# Gallery\n\nEvery picture is drawn by its notebook from committed results; the numbers lie beside it.\n']
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        if not re.match(r'fig|[bc]\d', path.stem): continue
        first = ''.join(json.loads(path.read_text())['cells'][0]['source'])
        title, question = first.split('\n')[0].removeprefix('# '), re.search(r'^> (.*)$', first, re.M).group(1)
        parts.append(f'## {title}\n\n*{question}* [{path.stem}](../nbs/{path.name})\n')
        for picture in pictures(path.stem):
            parts.append(f'![{title}]({picture.name})\n\n`{command(path.stem, picture.stem)}`\n')
    return '\n'.join(parts)


def pictures(stem: str) -> list[Path]:
    "The committed pictures of a notebook, the default study first; those with a marked width are the reader's own."
    found = [p for p in (ROOT/'figures').glob(f'{stem}*.png') if re.fullmatch(rf'{stem}(-(?!width).*)?', p.stem)
             and '-width' not in p.stem]
    return sorted(found, key=lambda p: (p.stem != stem, p.stem))


def command(notebook: str, picture: str) -> str:
    "What draws a picture."
    study = picture.removeprefix(notebook).lstrip('-').removeprefix('classes').lstrip('-')
    return f'papermill nbs/{notebook}.ipynb' + (f' -p study {study}' if study else '')


if __name__ == '__main__': (ROOT/'figures/README.md').write_text(gallery())
