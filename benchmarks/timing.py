"Fair timing on a shared machine: everything that is compared runs interleaved, in one process, on one thread."
import time
from statistics import median

import torch

torch.set_num_threads(1)


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


def table(title: str, rows: list[dict]) -> None:
    "Print rows as columns of equal width."
    columns = list(rows[0])
    cells = [[c if isinstance(c, str) else f'{c:.3g}' for c in (row[k] for k in columns)] for row in rows]
    widths = [max(len(k), *(len(r[i]) for r in cells)) for i, k in enumerate(columns)]
    print(f'\n{title}')
    for line in [columns, *cells]: print('  ' + '  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def ratios(seconds: dict, name: str, unit: str) -> float:
    "Median over rounds of one function's time over another's in the same round."
    return median(a / b for a, b in zip(seconds[name], seconds[unit], strict=True))
