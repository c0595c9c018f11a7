"Fair timing on a shared machine: everything that is compared runs interleaved, in one process, on one thread."
import json
import time
from pathlib import Path
from statistics import median

import torch

torch.set_num_threads(1)
RESULTS = Path(__file__).with_name('results.json')


def interleaved(functions: dict, repeats: int = 7) -> dict:
    "Name to seconds of each of `repeats` calls, one of each function in turn, after a warm-up."
    for f in functions.values(): f()
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, f in functions.items():
            start = time.perf_counter()
            f()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict, name: str, unit: str) -> float:
    "Median over rounds of one function's time over another's in the same round."
    return median(a / b for a, b in zip(seconds[name], seconds[unit], strict=True))


def table(title: str, rows: list[dict]) -> None:
    "Print rows as columns of equal width."
    columns = list(rows[0])
    cells = [[c if isinstance(c, str) else f'{c:.3g}' for c in (row[k] for k in columns)] for row in rows]
    widths = [max(len(k), *(len(r[i]) for r in cells)) for i, k in enumerate(columns)]
    print(f'\n{title}')
    for line in [columns, *cells]:
        print('  ' + '  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def keep(measure: str, what: str, width: float | None, value: float, goal: str) -> None:
    """Keep one row of the table that the README shows: a number, and the goal '<= 2.5 units' or '>= 1.8 x' it has
    to meet."""
    sign, bound, _ = goal.split(maxsplit=2)
    met = value <= float(bound) if sign == '<=' else value >= float(bound)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [r for r in rows if (r['measure'], r['what'], r['width']) != (measure, what, width)]
    rows.append(dict(measure=measure, what=what, width=width, value=value, goal=goal, met=met))
    RESULTS.write_text(json.dumps(sorted(rows, key=lambda r: (r['measure'], r['what'], r['width'])), indent=0) + '\n')
