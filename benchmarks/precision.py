"""What a training precision does to a study: test error and Lipschitz constant in TF32, bf16 and float32, width by
width.

    python benchmarks/precision.py [STUDY [WIDTH...]]     default: convnet-cifar10-5k at 4, 9 and 16, nine networks of
    31,400 steps
"""
import sys
import time
from dataclasses import replace

from timing import table

from smoothinterp.checkpoints import load_run
from smoothinterp.core import load_frame
from smoothinterp.data import to_pixels
from smoothinterp.measures import empirical_lipschitz
from smoothinterp.study import find_study, run_folder, study_data, train_runs
from smoothinterp.workers import find_device


def trained(study, width, precision, device):
    """One network of a study trained in a precision, under a name of its own: its errors, its Lipschitz constant,
    seconds if it was trained in one go."""
    study = replace(study, name=f'{study.name}-{precision}', recipe=replace(study.recipe, precision=precision, keep=()))
    begun = any((run_folder(study, width, 0)/name).exists() for name in ('run.json', 'state.safetensors'))
    study_data(study, 0)
    start = time.perf_counter()
    train_runs(study, [(width, 0)], device)
    seconds = float('nan') if begun else time.perf_counter() - start
    (model, data), last = load_run(study, width), load_frame(run_folder(study, width, 0)/'history.parquet')[0].iloc[-1]
    x = data.normalize(to_pixels(data.x[:study.points]))
    return {'w': float(width), 'precision': precision, 'train error': last.train_error, 'test error': last.test_error,
            'Lipschitz': empirical_lipschitz(model.to(device), x, data.y[:study.points]), 'seconds': seconds}


if __name__ == '__main__':
    name, *widths = sys.argv[1:] or ['convnet-cifar10-5k', '4', '9', '16']
    device = find_device()
    if device == 'cpu' and len(sys.argv) == 1: sys.exit('no GPU: skipped; name a small study to try it on a CPU')
    try: study_data(find_study(name), 0)
    except FileNotFoundError as e:
        print(f'skipped: {e}')
        sys.exit()
    table(f'{name} in three precisions, {device}',
          [trained(find_study(name), float(w), p, device) for w in widths for p in ('float32', 'tf32', 'bf16')])
