"Sweeps: whoever carries a study out, in whatever order and however often interrupted, its numbers are the same."
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from smoothinterp.files import load_tensors, read_json
from smoothinterp.results import results
from smoothinterp.run import checkpoint_path
from smoothinterp.study import STUDIES, Study, run_folder, train_runs
from smoothinterp.sweep import sweep
from smoothinterp.train import Recipe

SMOKE = replace(STUDIES['smoke'], points=10, directions=1)
ADAM = Recipe(epochs=3, lr=1e-3, warmup_epochs=0, optimiser='adam', augment=True)
FAMILIES = {'convnet-a': (2, SMOKE.recipe), 'convnet-b': (8, ADAM), 'mlp': (4, SMOKE.recipe), 'resnet18': (2, ADAM),
            'resnet18-plain': (2, SMOKE.recipe), 'vit': (6, ADAM)}


class Stopped(Exception): pass


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


@pytest.mark.parametrize('change,said', [(dict(noise=.3), 'noise: 0.2 on disk, 0.3 wanted'), (dict(family='convnet-b'), "family: 'convnet-a' on disk"),
                                         (dict(points=11), 'points: 10 on disk, 11 wanted')])
def test_another_definition_under_the_same_name_is_refused(runs, change, said):
    sweep(SMOKE, [1], device='cpu')
    with pytest.raises(ValueError, match=said): sweep(replace(SMOKE, **change), [1], device='cpu')
    with pytest.raises(ValueError, match=said): results(replace(SMOKE, **change), [1])


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
def test_the_main_process_stays_small(runs, tmp_path):
    "Under 500 MB, although its workers hold the images."
    script = tmp_path/'main.py'
    script.write_text("""if __name__ == '__main__':
    from pathlib import Path
    from smoothinterp.cli import main
    main(['sweep', 'smoke', '--device', 'cpu'])
    print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 500_000 # kB


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
    with pytest.raises(RuntimeError, match='a worker died.*start again'): sweep(study, workers=2, device='cpu')
    stamp = (run_folder(study, 1, 0)/'run.json').stat().st_mtime_ns
    sweep(study, workers=2, device='cpu')
    assert (run_folder(study, 1, 0)/'run.json').stat().st_mtime_ns == stamp
    assert results(study).width.unique().tolist() == [1, 8]


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(runs):
    command = [Path(sys.executable).parent/'smoothinterp', 'sweep', 'digits', '--widths', '16', '--seeds', '0,1', '--device', 'cpu']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(runs.rglob('epoch-00000.safetensors')): time.sleep(.02)
    os.killpg(process.pid, signal.SIGINT) # as a terminal does, to the workers too
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and 'Traceback' not in said
    assert said.strip().endswith('stopped; to go on: smoothinterp sweep digits --widths 16 --seeds 0,1 --device cpu')
