"figures/README.md, the gallery, made from the figure notebooks: `python tests/gallery.py` writes it."
import json
import re
from functools import cache
from pathlib import Path

from smoothinterp.claims import all_claims
from smoothinterp.results import over_epochs, results, threshold

ROOT = Path(__file__).parent.parent


def gallery() -> str:
    "Title, question, pictures with captions and commands of every figure notebook."
    parts = ['# Gallery\n\nEvery picture is drawn by its notebook from committed results; the numbers lie beside it. '
             'Below a picture stand its studies and the papers\' claims that they do not show. Labels count as fitted '
             'if the mean training error over seeds is below .0005.\n']
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        if not re.match(r'fig|[bc]\d', path.stem): continue
        cells = [''.join(cell['source']) for cell in json.loads(path.read_text())['cells']]
        title, question = cells[0].split('\n')[0].removeprefix('# '), re.search(r'^> (.*)$', cells[0], re.M).group(1)
        parts.append(f'## {title}\n\n*{question}* [{path.stem}](../nbs/{path.name})\n')
        default = re.search(r"study: str = '([^']+)'", cells[1])
        for picture in pictures(path.stem):
            study = other_study(path.stem, picture.stem) or (default and default.group(1))
            shown = [study, *beside().get(path.stem, [])] if picture.stem == path.stem else [study]
            parts.append(f'![{title}]({picture.name})\n\n{caption(path.stem, shown)}'
                         f'`{command(path.stem, picture.stem)}`\n')
    return '\n'.join(parts)


@cache
def beside() -> dict[str, list[str]]: # notebook → further studies that its picture shows
    return json.loads((ROOT/'benchmarks/figures.json').read_text())['beside']


def caption(notebook: str, studies: list[str | None]) -> str:
    "A sentence on each study, and one on the claims of a notebook's figure that it does not show."
    if not studies[0]: return ''
    if notebook.startswith('fig0'): return f'One network and one image of `{studies[0]}`.\n\n'
    return '\n\n'.join(about(notebook.split('_')[0], study) for study in studies) + '\n\n'


def about(figure: str, study: str) -> str: # figure: such as 'fig2'
    at, n, failed = facts(study)
    fits = f'labels are fitted from w = {at:g} on' if at else 'no network fits its labels'
    seeds = 'one seed' if n == 1 else f'{n} seeds'
    lacks = [claim + f' ({holds})' * (holds != 'no') for of, claim, holds in failed if of == figure]
    return f'`{study}`: {seeds}; {fits}.' + (f' Claims that fail: {"; ".join(lacks)}.' if lacks else '')


@cache
def facts(study: str) -> tuple: # threshold, number of seeds, claims that do not hold for every seed
    df = results(study)
    table = all_claims(df, over_epochs(study))
    failed = table[~table['holds'].isin(['yes', 'not measured'])]
    return threshold(df), df['seed'].nunique(), list(failed[['figure', 'claim', 'holds']].itertuples(index=False))


def pictures(stem: str) -> list[Path]:
    "The committed pictures of a notebook, the default study first; those with a marked width are the reader's own."
    found = [p for p in (ROOT/'figures').glob(f'{stem}*.png') if re.fullmatch(rf'{stem}(-(?!width).*)?', p.stem)
             and '-width' not in p.stem]
    return sorted(found, key=lambda p: (p.stem != stem, p.stem))


def other_study(notebook: str, picture: str) -> str: # empty for the notebook's own
    return picture.removeprefix(notebook).lstrip('-').removeprefix('classes').lstrip('-')


def command(notebook: str, picture: str) -> str:
    "What draws a picture."
    study = other_study(notebook, picture)
    return f'papermill nbs/{notebook}.ipynb' + (f' -p study {study}' if study else '')


if __name__ == '__main__': (ROOT/'figures/README.md').write_text(gallery())
