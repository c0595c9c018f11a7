"Sweeps: whoever carries a study out, in whatever order and however often interrupted, its numbers are the same."
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from smoothinterp.core import load_tensors, read_json
from smoothinterp.data import digits
from smoothinterp.results import measure_run, results
from smoothinterp.runs import checkpoint_path, only_one
from smoothinterp.study import STUDIES, Source, Study, run_folder, train_runs
from smoothinterp.sweep import _watch, sweep, todo
from smoothinterp.train import Recipe

SMOKE = replace(STUDIES['smoke'], points=10, directions=1)
ADAM = Recipe(epochs=3, lr=1e-3, warmup_epochs=0, optimizer='adam', augment=True)
FAMILIES = {'convnet-a': (2, SMOKE.recipe), 'convnet-b': (8, ADAM), 'mlp': (4, SMOKE.recipe), 'resnet18': (2, ADAM),
            'resnet18-plain': (2, SMOKE.recipe), 'vit': (6, ADAM)}


class Stopped(Exception): pass


@pytest.mark.numeric
@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_goes_on_to_the_same_bits(runs, family, monkeypatch):
    width, recipe = FAMILIES[family]
    study = Study('whole', 'digits', (width,), (0,), replace(recipe, epochs=3, batch=500), family, size=8)
    train_runs(study, [(width, 0)])

    def stop(run, epoch, loss):
        if epoch == 2: raise Stopped
    import smoothinterp.study as module
    fit, other = module.fit, replace(study, name='stopped')
    monkeypatch.setattr(module, 'fit', lambda *a, **kw: fit(*a, save_every=0, **kw))
    with pytest.raises(Stopped): train_runs(other, [(width, 0)], report=stop)
    assert load_tensors(run_folder(other, width, 0)/'state.safetensors')[1]['epoch'] == 1
    train_runs(other, [(width, 0)])
    whole, stopped = (load_tensors(checkpoint_path(run_folder(s, width, 0), 3))[0] for s in (study, other))
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[k], stopped[k]) for k in whole)


def test_networks_that_diverge_do_not_stop_the_others(runs):
    wild = replace(SMOKE, name='wild', recipe=replace(SMOKE.recipe, lr=1e30, warmup_epochs=0))
    sweep(wild, device='cpu')
    for w in wild.widths: assert read_json(run_folder(wild, w, 0)/'run.json')['status'] == 'diverged'
    assert results(wild)['mean'].notna().all()


@pytest.mark.parametrize('change,said', [(dict(noise_rate=.3), 'noise_rate: 0.2 on disk, 0.3 wanted'),
                                         (dict(family='convnet-b'), "family: 'convnet-a' on disk"),
                                         (dict(points=11), 'points: 10 on disk, 11 wanted')])
def test_another_definition_under_the_same_name_is_refused(runs, change, said):
    sweep(SMOKE, [1], device='cpu')
    with pytest.raises(ValueError, match=said): sweep(replace(SMOKE, **change), [1], device='cpu')
    with pytest.raises(ValueError, match=said): results(replace(SMOKE, **change), [1])


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
def test_the_main_process_stays_small(runs, tmp_path):
    """At most 180 MB above its imports (PyTorch for CUDA takes 350 MB more of them than that for CPUs), although
    its workers hold the images."""
    script = tmp_path/'main.py'
    script.write_text("""if __name__ == '__main__':
    from pathlib import Path
    import smoothinterp.sweep
    from smoothinterp.cli import main
    def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) # kB
    imported = peak()
    main(['sweep', 'smoke', '--device', 'cpu'])
    print(peak() - imported)""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 180_000


def kill_one_worker(folder, seen):
    "Kill the first Ray worker that is at work once a run has been saved."
    import psutil
    while not list(folder.rglob('state.safetensors')): time.sleep(.02)
    for process in psutil.Process().children(recursive=True):
        if '_on_ray' in ' '.join(process.cmdline()):
            seen.append(process.pid)
            return os.kill(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_ray_has_the_same_numbers_though_a_worker_is_killed(runs, tmp_path, monkeypatch):
    pytest.importorskip('ray')
    study = replace(SMOKE, recipe=replace(SMOKE.recipe, epochs=500), widths=(1, 8))
    killed = []
    killer = threading.Thread(target=kill_one_worker, args=(runs, killed), daemon=True)
    killer.start()
    sweep(study, engine='ray', address='local', device='cpu')
    assert killed
    by_ray = results(study)
    monkeypatch.setenv('SMOOTHINTERP_RUNS', str(tmp_path/'here'))
    sweep(study, device='cpu', workers=1)
    pd.testing.assert_frame_equal(by_ray, results(study))


def test_a_worker_that_dies_loses_nothing_that_is_done(runs):
    study = replace(SMOKE, widths=(1, 8), recipe=replace(SMOKE.recipe, epochs=200))

    def kill():
        import psutil
        while not (run_folder(study, 1, 0)/'run.json').exists(): time.sleep(.02)
        for process in psutil.Process().children(recursive=True):
            if 'spawn_main' in ' '.join(process.cmdline()): os.kill(process.pid, signal.SIGKILL)
    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(RuntimeError, match='a worker ended.*Start again'): sweep(study, workers=2, device='cpu')
    stamp = (run_folder(study, 1, 0)/'run.json').stat().st_mtime_ns
    sweep(study, workers=2, device='cpu')
    assert (run_folder(study, 1, 0)/'run.json').stat().st_mtime_ns == stamp
    assert results(study).width.unique().tolist() == [1, 8]


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(runs):
    command = [Path(sys.executable).parent/'smoothinterp', 'sweep', 'digits', '--widths', '16', '--seeds', '0,1',
               '--device', 'cpu']
    def heed_ctrl_c():
        signal.signal(signal.SIGINT, signal.SIG_DFL) # what a shell starts in the background is deaf to it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True, preexec_fn=heed_ctrl_c)
    while not list(runs.rglob('epoch-00000.safetensors')): time.sleep(.02)
    os.killpg(process.pid, signal.SIGINT) # as a terminal does, to the workers too
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and 'Traceback' not in said
    assert 'stopped; to go on: smoothinterp sweep digits --widths 16 --seeds 0,1 --device cpu\n' in said


def cli(*words, **kw):
    return subprocess.run([Path(sys.executable).parent/'smoothinterp', *words], capture_output=True, text=True, **kw)


def test_a_study_file_with_its_own_data_from_the_command_line(runs, tmp_path):
    (tmp_path/'mine.py').write_text('''
from dataclasses import replace
from smoothinterp.data import digits
from smoothinterp.study import SOURCES, STUDIES, Source
def flipped(study, seed): return replace(digits(seed), x=digits(seed).x.flip(2))
SOURCES['flipped'] = Source(flipped, classes=10, colors=1, images=1000)
mine = replace(STUDIES['smoke'], name='mine', data='flipped', widths=(1,), points=10, directions=1)
''')
    done = cli('sweep', 'mine.py', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 0 and '1 to do' in done.stdout, done.stderr
    assert (runs/'mine/w001-s0/results.parquet').exists()


def test_results_of_images_that_changed_are_not_used(runs, monkeypatch):
    from smoothinterp import study as module
    turned = lambda way, study, seed: replace(digits(seed), x=digits(seed).x.flip(way))
    images = lambda way: Source(partial(turned, way), classes=10, colors=1, images=1000)
    study = replace(SMOKE, name='turned', data='turned', widths=(1,), points=10, directions=1)
    monkeypatch.setitem(module.SOURCES, 'turned', images(2))
    train_runs(study, [(1, 0)])
    measure_run(study, 1, 0)
    assert not todo(study, [1], [0]) and len(results(study))
    monkeypatch.setitem(module.SOURCES, 'turned', images(3))
    module.study_data.cache_clear()
    for use in (lambda: todo(study, [1], [0]), lambda: results(study), lambda: measure_run(study, 1, 0)):
        with pytest.raises(ValueError, match='images: .* on disk'): use()


def test_what_another_definition_left_is_not_mixed_in(runs):
    def stop(run, epoch, loss):
        if epoch == 3: raise Stopped
    first = replace(SMOKE, recipe=replace(SMOKE.recipe, keep=(1, 2, 3)))
    with pytest.raises(Stopped): train_runs(first, [(1, 0)], report=stop)
    train_runs(replace(SMOKE, recipe=replace(SMOKE.recipe, lr=.01)), [(1, 0)])
    kept = sorted(p.name for p in (runs/'smoke/w001-s0').glob('epoch-*'))
    assert kept == ['epoch-00000.safetensors', 'epoch-00008.safetensors']


def test_force_throws_nothing_away_while_another_works(runs):
    train_runs(SMOKE, [(1, 0), (2, 0)])
    with only_one(run_folder(SMOKE, 1, 0)), pytest.raises(RuntimeError, match='another process'):
        train_runs(SMOKE, [(2, 0), (1, 0)], force=True)
    assert all((run_folder(SMOKE, w, 0)/'run.json').exists() for w in (1, 2))
    with only_one(run_folder(SMOKE, 1, 0)), pytest.raises(RuntimeError, match='another process'):
        measure_run(SMOKE, 1, 0)


def test_more_widths_than_the_study_has(runs):
    "Trained in the same sweep, from one plan; finished runs are told on standard output, the progress in few lines."
    done = cli('sweep', 'smoke', '--widths', '1', '--also', '1.5', '--device', 'cpu')
    assert done.returncode == 0 and '2 runs of at most 8 epochs, 0 done, 2 to do' in done.stdout, done.stderr
    assert results('smoke', (1, 1.5)).width.unique().tolist() == [1, 1.5]
    assert done.stdout.count('done after 8 epochs\n') == 2 and len(done.stderr.splitlines()) < 10, done.stderr


class Told:
    "A queue with an epoch of one run every tenth of a second, by a clock of its own."
    def __init__(self, epochs): self.epochs, self.at = epochs, 0
    def empty(self): return self.at == self.epochs
    def seconds(self): return self.at / 10
    def get(self, timeout):
        self.at += 1
        return 1, 0, f'epoch {self.at}', self.at / self.epochs, 0


def test_a_log_has_a_line_every_ten_seconds(monkeypatch, capsys):
    queue = Told(1000)
    monkeypatch.setattr('tqdm.std.time', queue.seconds)
    _watch(SMOKE, [(1, 0)], queue, [])
    out, err = capsys.readouterr()
    assert out == 'smoke w=1 seed 0: epoch 1000\n'
    lines = err.splitlines()
    assert len(lines) == 12 and '\r' not in err and 'epoch 500' in lines[5] and '50%' in lines[5]


@pytest.mark.parametrize('words,said', [(('--widths', '0'), 'from 1 to 64; did you mean 1?'),
                                        (('--seeds', '9'), 'from 0 to 2; did you mean 2?'),
                                        (('--device', 'cuda'), '--device cpu'),
                                        (('--force', '--resume'), 'give one of them')])
def test_mistakes_are_answered_in_one_line(runs, words, said):
    if words[0] == '--device' and torch.cuda.is_available(): pytest.skip('there is a GPU')
    done = cli('sweep', 'smoke', *words)
    assert done.returncode != 0 and said in done.stderr and 'Traceback' not in done.stderr
    assert not runs.exists()
