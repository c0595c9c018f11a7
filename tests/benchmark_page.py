"benchmarks/README.md, every row of benchmarks/results.json: `python tests/benchmark_page.py` writes it."
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
INTRODUCTION = '''# Benchmarks

`make bench` measures all rows anew and writes `results.json`; `python tests/benchmark_page.py` makes this page of it.
Everything that is compared runs interleaved, in one process, on one thread of the same quiet machine.
The median over rounds is kept.
A *unit* is one forward pass of the same network on one sample, a *train step* one forward and one backward pass.
Where a row names another implementation, the number says how many times longer that one takes (x).
Rows that miss their goal stay in the table.

| measure | compared with, or unit | w | value | goal | met |
|---|---|---|---|---|---|
'''


def benchmarks() -> str:
    "The page: one table row for each row of the results."
    rows = json.loads((ROOT/'benchmarks/results.json').read_text())
    lines = [f"| {r['measure']} | {r['what']} | {r['width'] or ''} | {r['value']:.3g} | {r['goal']} | "
             f"{'yes' if r['met'] else '**no**'} |" for r in rows]
    return INTRODUCTION + '\n'.join(lines) + '\n'


if __name__ == '__main__': (ROOT/'benchmarks/README.md').write_text(benchmarks())
