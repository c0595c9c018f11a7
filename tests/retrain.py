"""What figures cost, and whether their numbers come again. `make figures RETRAIN=1` calls `train` before and `compare`
after it draws; `python tests/retrain.py time` measures what the README's table says."""
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from smoothinterp.checkpoints import committed_studies
from smoothinterp.claims import all_claims, changed_claims, movement
from smoothinterp.core import write_json
from smoothinterp.results import _committed_frame, over_epochs, results
from smoothinterp.study import STUDIES, find_study
from smoothinterp.sweep import _run_seconds, sweep

ROOT = Path(__file__).parent.parent
COSTS = ROOT/'benchmarks/figures.json'


def embedded() -> list[str]:
    "Committed studies whose images need no download: the default studies of all figures, and those that stand beside."
    return [name for name in committed_studies() if STUDIES[name].data == 'digits']


def record(path: Path, section: str, values: dict) -> None:
    "Merge values into one section of the file of costs."
    costs = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, costs | {section: costs.get(section, {}) | values})


def train(names: list[str], path: Path = COSTS) -> None:
    "Train and measure studies in the folder of runs, which should be empty, and record the minutes."
    for name in names:
        start = time.monotonic()
        sweep(name)
        record(path, 'retrain', {name: dict(minutes=round((time.monotonic() - start) / 60, 1), how='measured')})


def compare(name: str, before: pd.DataFrame, by_epoch: pd.DataFrame) -> None: # tidy: results and epochs as they were
    "Print how far each number of a study moved, and which of its claims changed."
    study = find_study(name)
    after, by_epoch_after = results(study), over_epochs(study)
    print(f'\n{name}, {after.attrs["source"]}: change of each measure, relative to the larger of both numbers')
    print(movement(before, after).to_string(float_format='{:.2g}'.format))
    print('over epochs:')
    print(movement(by_epoch, by_epoch_after).to_string(float_format='{:.2g}'.format))
    changed = changed_claims(all_claims(before, by_epoch), all_claims(after, by_epoch_after))
    print(f'claims that changed: {len(changed)}')
    if len(changed): print(changed.to_string(float_format='{:.3g}'.format))


def draw_seconds(notebook: Path) -> float:
    "Seconds of processor time to draw a figure from committed results, with starting Python."
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    start = used()
    with tempfile.TemporaryDirectory() as folder:
        papermill = Path(sys.executable).parent/'papermill'
        subprocess.run([papermill, '--log-level', 'ERROR', notebook, f'{folder}/out.ipynb'], cwd=ROOT, check=True,
                       capture_output=True)
    return round(used() - start, 1)


def folds_minutes() -> float:
    "Minutes for the folds of c2_mislabelled in one process: five networks on four fifths of the images, per run."
    study = find_study('digits')
    seconds = _run_seconds(study, (2.5, 6, 16), 'cpu') # the widths in FOLDED
    return len(study.seeds) * (5 * .8 * seconds['training'] + seconds['measuring']).sum() / 60


def measure_costs(names: list[str]) -> None:
    "Time every figure, and project the minutes of studies that were never trained here from a few timed steps."
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        if re.match(r'fig|[bc]\d', path.stem): record(COSTS, 'draw', {path.stem: draw_seconds(path)})
    folds = dict(minutes=round(folds_minutes(), 1), how='projected for one process')
    record(COSTS, 'retrain', {'c2_mislabelled': folds})
    known = json.loads(COSTS.read_text()).get('retrain', {})
    for name in names:
        if known.get(name, {}).get('how') == 'measured': continue
        study = find_study(name)
        minutes = _run_seconds(study, study.widths, 'cpu').sum().sum() * len(study.seeds) / 2 / 60
        record(COSTS, 'retrain', {name: dict(minutes=round(minutes, 1), how='projected for two cores')})


if __name__ == '__main__':
    command, names = sys.argv[1], sys.argv[2:] or embedded()
    if command == 'train': train(names)
    if command == 'compare':
        for name in names: compare(name, *(_committed_frame(find_study(name), kind) for kind in ('results', 'epochs')))
    if command == 'time': measure_costs(names)
