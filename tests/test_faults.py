"Kill -9, full disks, flipped bits, two processes at once: nothing finished is lost, nothing damaged is believed."
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from unittest.mock import Mock, patch

import pytest
import torch

from smoothinterp.checkpoints import load_run
from smoothinterp.core import DamagedFile, load_frame, load_tensors, save_tensors
from smoothinterp.results import GROUPS, measure_run, results
from smoothinterp.runs import checkpoint_path
from smoothinterp.study import STUDIES, run_folder, train_runs

STUDY = replace(STUDIES['smoke'], name='faults', recipe=replace(STUDIES['smoke'].recipe, epochs=12))
TRAIN = '''
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import smoothinterp.study as study
from functools import partial
from test_faults import STUDY
print('started', flush=True)
study.fit = partial(study.fit, save_every=0)
study.train_runs(STUDY, [(4, 0)], report=lambda run, epoch, loss: print('epoch', epoch, flush=True))
'''.format(tests=os.path.dirname(__file__))


def start(runs):
    env = os.environ | {'SMOOTHINTERP_RUNS': str(runs)}
    return subprocess.Popen([sys.executable, '-c', TRAIN], env=env, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def untouched(tmp_path_factory):
    "Final weights of a run that was never interrupted."
    runs = tmp_path_factory.mktemp('untouched')
    assert start(runs).wait() == 0
    return (load_tensors(next(runs.rglob('epoch-00012.safetensors')))[0],
            load_frame(next(runs.rglob('history.parquet')))[0])


def test_killed_in_mid_epoch_again_and_again_ends_with_the_same_bits(runs, untouched):
    kills = 0
    for epoch in (2, 5, 9):
        process = start(runs)
        for line in process.stdout:
            if re.match(rf'epoch {epoch}\b', line): break
        time.sleep(.005 * epoch)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3 and not list(runs.rglob('run.json'))
    assert start(runs).wait() == 0
    weights = load_tensors(next(runs.rglob('epoch-00012.safetensors')))[0]
    assert all(torch.equal(weights[k], v) for k, v in untouched[0].items())
    assert load_frame(next(runs.rglob('history.parquet')))[0].equals(untouched[1])


def test_a_full_disk_leaves_the_state_before_it(runs, untouched):
    process = start(runs)
    for line in process.stdout:
        if line == 'epoch 3\n': break
    process.kill(), process.wait()
    state = next(runs.rglob('state.safetensors'))
    before = load_tensors(state)[1]['epoch']
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n" + TRAIN
    env = os.environ | {'SMOOTHINTERP_RUNS': str(runs)}
    done = subprocess.run([sys.executable, '-c', limited], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and 'File too large' in done.stderr
    assert load_tensors(state)[1]['epoch'] == before
    assert start(runs).wait() == 0
    weights = load_tensors(next(runs.rglob('epoch-00012.safetensors')))[0]
    assert all(torch.equal(weights[k], v) for k, v in untouched[0].items())


@pytest.fixture
def trained(runs):
    train_runs(STUDY, [(1, 0)]), measure_run(STUDY, 1, 0)
    return run_folder(STUDY, 1, 0)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize('hurt', [lambda p: flip(p, -5), lambda p: p.write_bytes(p.read_bytes()[:-9]),
                                  lambda p: p.write_bytes(b'')],
                         ids=['flipped', 'truncated', 'empty'])
def test_damage_is_named_and_mended_only_when_asked(trained, hurt):
    weights, table = checkpoint_path(trained, 12), trained/'results.parquet'
    good = load_tensors(weights)[0]
    hurt(weights), hurt(table)
    with pytest.raises(DamagedFile, match='epoch-00012.safetensors is damaged'): load_run(STUDY, 1, 0)
    with pytest.raises(DamagedFile, match='results.parquet is damaged'): results(STUDY, [1])
    with pytest.raises(DamagedFile): measure_run(STUDY, 1, 0)
    train_runs(STUDY, [(1, 0)], force=True), measure_run(STUDY, 1, 0, force=True)
    assert all(torch.equal(load_tensors(weights)[0][k], v) for k, v in good.items())
    assert {'accuracy', 'tangent_hessian', 'logit_operator'} < set(results(STUDY, [1])['measure'])


def test_a_partial_write_of_our_own_is_not_read(trained):
    (trained/'results.parquet.123.part').write_bytes(b'half a table')
    before = results(STUDY, [1])
    (trained/'results.parquet').unlink()
    assert measure_run(STUDY, 1, 0).equals(before)


def interrupted(trained, width, seed=0):
    "Measure a run anew as far as the bounds. Gives the names of the parts that are then stored."
    (trained/'results.parquet').unlink()
    with patch.dict(GROUPS, product_bound=Mock(side_effect=KeyboardInterrupt)):
        with pytest.raises(KeyboardInterrupt): measure_run(STUDY, width, seed)
    return {p.stem for p in (trained/'measuring').iterdir()}


def test_an_interrupted_measurement_goes_on_to_the_same_bits(trained):
    before = {n: load_frame(trained/f'{n}.parquet')[0] for n in ('results', 'epochs')}
    stored, computed = interrupted(trained, 1), []
    assert len(stored) == 8 and 'sharpness' in stored
    measure_run(STUDY, 1, 0, report=computed.append)
    assert computed == [n for n in [*GROUPS, 'epochs'] if n not in stored]
    assert all(load_frame(trained/f'{n}.parquet')[0].equals(df) for n, df in before.items())
    assert not (trained/'measuring').exists()


@pytest.mark.parametrize('force', [False, True])
def test_parts_of_other_weights_and_forced_ones_are_computed_again(trained, force):
    interrupted(trained, 1)
    if not force:
        weights, meta = load_tensors(checkpoint_path(trained, 12))
        changed = {k: v + .01 for k, v in weights.items()}
        save_tensors(checkpoint_path(trained, 12), changed, **meta)
    computed = []
    measure_run(STUDY, 1, 0, force, report=computed.append)
    assert computed == [*GROUPS, 'epochs']


def test_two_processes_do_not_train_the_same_run(runs):
    first = start(runs)
    next(first.stdout)
    next(first.stdout)
    env = os.environ | {'SMOOTHINTERP_RUNS': str(runs)}
    second = subprocess.run([sys.executable, '-c', TRAIN], env=env, capture_output=True, text=True)
    assert first.poll() is not None or 'another process is working on' in second.stderr
    assert first.wait() == 0
