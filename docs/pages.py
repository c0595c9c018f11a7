"""The site. mkdocs calls `on_config`, which gathers the pages, and `on_page_content`. The pages lie in a folder of this
process, so that two builds at once do not take each other's pages away.

Pages are the Markdown files of this folder, the notebooks, the gallery, the benchmarks, and a reference made from
the exported modules. Formulas become MathML and scripts are local, so that the site needs no network."""
import ast
import json
import re
import shutil
import tempfile
import unicodedata
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parent.parent
GATHERED = tempfile.TemporaryDirectory(prefix='pages-') # deleted when the process ends
PAGES = Path(GATHERED.name)
CODE = r'(```.*?```|`[^`\n]*`|(?:^|(?<=\n))(?: {4}[^\n]*(?:\n|$))+)' # fenced, inline, indented
PRINTED = r'\$((?:(?!\\\\)[^$])+?)\$' # a formula in a printed table, not the repr of one
STYLE = r'<style type="text/css">(.*?)</style>'
PARTS = {'How-to': [f'howto/{name}.md' for name in (
             'own_data', 'own_model', 'gpu', 'ray', 'slurm', 'add_measure', 'add_family', 'add_figure')],
         'Explanation': ['explanation/smooth_interpolation.md', 'explanation/kinks.md', 'explanation/theorem2.md',
                         'nbs/differences.ipynb', 'nbs/coverage.ipynb', 'nbs/claims.ipynb', 'nbs/reproduction.ipynb']}


def on_config(config):
    "Gather the pages and their order."
    gather()
    config['docs_dir'] = str(PAGES)
    config['nav'] = [{'Home': 'index.md'}, {'Tutorial': ['nbs/tutorial.ipynb', *notebooks('00_')]},
                     {'How-to': [*PARTS['How-to'], *notebooks('28_|example|explore|machines')]},
                     {'Reference': ['reference/folders.md', 'reference/commands.md', *references(),
                                    {'Notebooks': notebooks(r'(0[1-9]|1\d|2[0-7])_')}, 'benchmarks/README.md']},
                     {'Explanation': [*PARTS['Explanation'], 'figures/README.md',
                                      {'Figures': notebooks(r'fig|[bc]\d')}]}]
    return config


def on_page_content(html, page, config, files):
    "Leave out what mkdocs-jupyter reads from the network, and keep its style sheet once instead of on every page."
    for outside in (r'<script[^>]*src="(?:https?://[^"]*)?"[^>]*>.*?</script>', r'<link[^>]*href="https?://[^>]*>',
                    r'<script type="(?:module|text/x-mathjax-config)">.*?</script>'):
        html = re.sub(outside, '', html, flags=re.S)
    if not (styles := re.findall(STYLE, html, re.S)): return html
    write('assets/notebook.css', '\n'.join(styles), Path(config['site_dir']))
    return f'<link rel="stylesheet" href="{"../" * page.url.count("/")}assets/notebook.css">' + re.sub(
        STYLE, '', html, flags=re.S)


def notebooks(pattern: str) -> list[str]:
    "Pages of the notebooks whose name begins with a pattern."
    return [f'nbs/{p.name}' for p in sorted((ROOT/'nbs').glob('*.ipynb')) if re.match(pattern, p.name)]


def modules() -> list[Path]:
    return sorted((ROOT/'smoothinterp').glob('[!_]*.py'), key=lambda p: source(p).name)


def references() -> list[dict]: return [{p.stem: f'reference/{p.stem}.md'} for p in modules()]


def gather() -> None:
    "Fill the folder of pages."
    shutil.rmtree(PAGES, ignore_errors=True)
    for path in (ROOT/'docs').rglob('*.*'):
        if path.suffix == '.md': write(path.relative_to(ROOT/'docs'), markdown(path.read_text()))
        elif path.suffix in ('.css', '.js'): copy(path, 'assets')
    for path in (ROOT/'nbs').glob('*.ipynb'):
        if path.stem != 'index': write(f'nbs/{path.name}', json.dumps(notebook(path)))
    for path in modules(): write(f'reference/{path.stem}.md', reference(path))
    write('reference/commands.md', commands())
    for folder in ('figures', 'benchmarks'):
        for path in (ROOT/folder).glob('*.*'):
            if path.suffix in ('.md', '.png', '.parquet') and '-width' not in path.stem: copy(path, folder)


def write(name: str | Path, text: str, folder: Path = PAGES) -> None:
    (folder/name).parent.mkdir(parents=True, exist_ok=True)
    (folder/name).write_text(text)


def copy(path: Path, folder: str) -> None:
    (PAGES/folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(path, PAGES/folder)


def mathml(text: str) -> str:
    "Markdown with $$...$$ and $...$ replaced outside code."
    def formulas(prose):
        prose = re.sub(r'\$\$(.+?)\$\$', lambda m: formula(m[1], 'block'), prose, flags=re.S)
        return re.sub(r'\$([^$]+?)\$', inline, prose)
    return ''.join(part if i % 2 else formulas(part) for i, part in enumerate(re.split(CODE, text, flags=re.S)))


def inline(found: re.Match) -> str: return formula(found[1], 'inline')


def formula(tex: str, display: str) -> str:
    "A formula as MathML on one line, with bold and script letters as characters, as browsers show them."
    found = re.sub(r'\s*\n\s*', ' ', convert(' '.join(tex.split()), display=display))
    return re.sub(r'<(m[io]) mathvariant="(bold|script|double-struck)">(\w)</', letter, found)


def letter(found: re.Match) -> str:
    "A letter of an alphabet as the character of that alphabet; a few are older than the others and named otherwise."
    tag, alphabet, x = found.groups()
    if not x.isascii() or x.isdigit(): return found[0]
    name = f'{alphabet.upper()} {"CAPITAL" if x.isupper() else "SMALL"} {x.upper()}'
    try: x = unicodedata.lookup(f'MATHEMATICAL {name}')
    except KeyError: x = unicodedata.lookup(name)
    return f'<{tag} mathvariant="normal">{x}</'


def markdown(text: str) -> str:
    "A page of this folder, which in the site lies one folder higher than in the repository."
    return mathml(re.sub(r'\]\(\.\./(?=\.\./|nbs/|figures/|benchmarks/)', '](', text))


def notebook(path: Path) -> dict:
    "A notebook as a page: links to pages, formulas as MathML, no directives of nbdev, no cells of only those."
    nb = json.loads(path.read_text())
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'code': text = re.sub(r'^#\|.*\n?', '', text, flags=re.M)
        else:
            text = re.sub(r'\]\(([^)\s]+)\.ipynb(#\S*)?\)', r'](\1.html\2)', mathml(text)).replace('](../nbs/', '](')
            text = text.replace('README.md)', 'index.html)').replace('](index.html)', '](../index.html)')
        cell['source'] = text
        for shown in [output.get('data', {}) for output in cell.get('outputs', [])]:
            if 'text/html' in shown: shown['text/html'] = re.sub(PRINTED, inline, ''.join(shown['text/html']))
    nb['cells'] = [cell for cell in nb['cells'] if cell['source'].strip()]
    return nb


def source(path: Path) -> Path:
    "The notebook that exports a module."
    return ROOT/'nbs'/re.search(r'File to edit: \.\./nbs/(\w+\.ipynb)', path.read_text())[1]


def reference(path: Path) -> str:
    "Signature, with a comment per argument, and docstring of every public name of a module."
    tree, lines, nb = ast.parse(path.read_text()), path.read_text().split('\n'), source(path)
    public = next(ast.literal_eval(node.value) for node in tree.body
                  if isinstance(node, ast.Assign) and node.targets[0].id == '__all__')
    parts = [f'# {path.stem}\n\n{ast.get_docstring(tree)}\n\nExamples and tests: [{nb.stem}](../nbs/{nb.name}).\n']
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if getattr(node, 'name', None) not in public: continue
        bases = [classes[b.id] for b in getattr(node, 'bases', []) if getattr(b, 'id', None) in classes]
        parts.append(f'## {node.name}\n\n{entry(node, lines, bases)}')
        for method in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith('_'):
                parts.append(f'### {node.name}.{method.name}\n\n{entry(method, lines)}')
    return '\n'.join(parts)


def entry(node, lines: list[str], bases: list = ()) -> str: # node: function or class; bases in its module
    "Signature and docstring; of a class also its fields and those of its bases."
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    body = next((n for n in node.body if not isinstance(n, ast.AnnAssign)), node.body[-1])
    at = [*range(start, max(node.body[0].lineno - 1, node.lineno))]
    at += [i for c in (*bases, node) for n in c.body if isinstance(n, ast.AnnAssign)
           for i in range(n.lineno - 1, n.end_lineno)]
    shown = [lines[i][node.col_offset:] for i in dict.fromkeys(at)]
    if body.lineno == node.lineno: shown[0] = shown[0][:body.col_offset - node.col_offset].rstrip() # all in one line
    return '```python\n' + '\n'.join(shown) + f'\n```\n\n{prose(ast.get_docstring(node) or "")}\n'


def prose(docstring: str) -> str:
    "A docstring as Markdown: `code` stays, other signs are meant as they are."
    parts = re.split(r'(`[^`]*`)', docstring)
    return ''.join(part if i % 2 else re.sub(r'([<*_\[])', r'\\\1', part) for i, part in enumerate(parts))


def commands() -> str:
    "The help text of every command."
    from smoothinterp.cli import parser
    subs = next(action.choices for action in parser()._actions if action.dest == 'command')
    return '# Command line\n\n' + '\n'.join(f'## {name}\n\n```text\n{sub.format_help()}```\n'
                                            for name, sub in subs.items())
