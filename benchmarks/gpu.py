"""On a GPU: samples a second eagerly, as CUDA graphs in TF32 and bf16, and several networks at once; then minutes of a
whole study.

    python benchmarks/gpu.py [STUDY]     default: convnet-cifar10-reduced, on random images
"""
import os
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from statistics import median
from tempfile import mkdtemp

import numpy as np
import torch
from timing import table

from smoothinterp.core import load_tensors
from smoothinterp.data import CIFAR10, Data
from smoothinterp.models import build
from smoothinterp.results import TrainedNetwork, checkpoints_of, kept_rows, measure_network
from smoothinterp.runs import Run, _engine, begin
from smoothinterp.stack import Engine, fast_cuda, gpu_group
from smoothinterp.study import (
    CONVNET_B,
    SOURCES,
    Source,
    find_study,
    network,
    run_folder,
    stacked,
    study_data,
    train_runs,
)
from smoothinterp.sweep import cost, tasks
from smoothinterp.train import Recipe, epoch_order, in_memory, train_epoch
from smoothinterp.workers import find_device

N, BATCH, REPEATS = 12_800, 128, 5
WIDTHS = 4, 8, 16, 64

RECIPE = Recipe(warmup_epochs=0)


def data():
    g = torch.Generator().manual_seed(0)
    return in_memory(torch.randn(N, 3, 32, 32, generator=g)).cuda(), torch.randint(10, (N,), generator=g).cuda()


def networks(width, n):
    return [build('convnet-a', width, seed=s).cuda().to(memory_format=torch.channels_last) for s in range(n)]


def eager(width, x, y):
    net, = networks(width, 1)
    sgd = torch.optim.SGD(net.parameters(), lr=RECIPE.lr, momentum=RECIPE.momentum)
    def epoch(e):
        with fast_cuda('tf32'): return [train_epoch(net, sgd, x, y, epoch_order(N, 0, e).cuda(), BATCH)]
    return epoch


def graph(width, x, y, n, precision):
    return Engine(networks(width, n), [x] * n, [y] * n, replace(RECIPE, precision=precision), list(range(n)),
                  stack=True).epoch


def timed(epochs):
    "Name to median seconds of an epoch, interleaved; the first epochs have to agree."
    first = {name: epoch(1)[0] for name, (epoch, _) in epochs.items()}
    assert max(abs(loss - first['eager']) for loss in first.values()) < 1e-2, first
    seconds = {name: [] for name in epochs}
    for e in range(2, 2 + REPEATS):
        for name, (epoch, _) in epochs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            epoch(e)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(s) for name, s in seconds.items()}


def bench(width, x, y):
    "Samples a second of all networks together, by name."
    n = gpu_group(width)
    epochs = {'eager': (eager(width, x, y), 1), 'tf32': (graph(width, x, y, 1, 'tf32'), 1),
              'bf16': (graph(width, x, y, 1, 'bf16'), 1)}
    if n > 1: epochs |= {f'{p}, grouped': (graph(width, x, y, n, p), n) for p in ('tf32', 'bf16')}
    return {name: epochs[name][1] * N / s for name, s in timed(epochs).items()}


def random_images(study, seed):
    "As many random images as a study of CIFAR-10 has, so that no data set is needed."
    g = torch.Generator().manual_seed(0)
    (x, x_test), (y, y_test) = zip(*((torch.randint(256, (n, 3, study.size, study.size), generator=g,
                                                    dtype=torch.uint8),
                                      torch.randint(10, (n,), generator=g))
                                     for n in (study.n or 50_000, (study.n or 50_000) // 5)))
    return Data('random', x, y, y, x_test, y_test, 10, CIFAR10)


def ticks(device):
    "Seconds since the last call, with everything done that was asked of the device."
    last = [time.perf_counter()]
    def tick():
        if device != 'cpu': torch.cuda.synchronize()
        before, last[0] = last[0], time.perf_counter()
        return last[0] - before
    return tick


def task_seconds(study, task, device):
    "What a sweep does with runs that it trains as one network: seconds of set-up, of all epochs, of all evaluations."
    tick, shared = ticks(device), {}
    runs = [Run(run_folder(study, w, s), partial(network, study, w), study_data(study, s), study.recipe, s, {})
            for w, s in task]
    under_way = [begin(run, device, shared) for run in runs]
    train, setup = _engine(under_way, stacked(study, task[0][0], device)), tick()
    train.epoch(1)
    tick()
    train.epoch(2)
    epoch = tick()
    for t in under_way: t.record(0.)
    return {'set-up': setup, 'training': epoch * study.recipe.epochs,
            'evaluation': tick() * len(under_way[0].recorded_epochs)}


def measuring_seconds(study, width, device):
    "Seconds to measure a run, the weights that it kept on the way too (those of an untrained network)."
    train_runs(replace(study, recipe=replace(study.recipe, epochs=1, keep=())), [(width, 0)], device)
    folder = run_folder(study, width, 0)
    for epoch in study.recipe.keep:
        shutil.copy(folder/'epoch-00001.safetensors', folder/f'epoch-{epoch:05d}.safetensors')
    tick, trained = ticks(device), TrainedNetwork(network(study, width).to(device).eval(),
                                     load_tensors(folder/'epoch-00000.safetensors')[0],
                                     study_data(study, 0), study.points, study.directions)
    left_out = measure_network(trained)[1]
    kept_rows(trained, checkpoints_of(folder))
    for name, why in left_out.items(): print(f'not measured at w = {width:g}: {name}, {why}')
    return tick()


def projection(study, device):
    """Print what a sweep of a study takes on one device, in minutes, from its own tasks: two epochs of each,
    measuring at three widths."""
    todo = sorted(((w, 0) for w in study.widths), reverse=True)
    parts = {tuple(f'{w:g}' for w, _ in task): task_seconds(study, task, device) for task in tasks(study, todo, device)}
    few = [study.widths[i] for i in (len(study.widths) // 3, 2 * len(study.widths) // 3, -1)]
    measured = np.interp([cost(study, w) for w in study.widths], [cost(study, w) for w in few],
                         [measuring_seconds(study, w, device) for w in few])
    table(f'{study.name}, {study.recipe.precision}: minutes a task',
          [{'widths': ' '.join(ws)} | {k: v / 60 for k, v in p.items()} for ws, p in parts.items()])
    total = {k: sum(p[k] for p in parts.values()) / 60
             for k in ('set-up', 'training', 'evaluation')} | dict(measuring=sum(measured) / 60)
    print(f'{sum(total.values()):.1f} minutes in all with one worker: '
          + ', '.join(f'{k} {v:.1f}' for k, v in total.items()))


if __name__ == '__main__':
    os.environ['SMOOTHINTERP_RUNS'] = mkdtemp()
    SOURCES['random'] = Source(random_images, 10, 3)
    if not torch.cuda.is_available() and len(sys.argv) == 1:
        sys.exit(print('no GPU: skipped; name a small study of 3-channel images to try the projection on a CPU'))
    device, study = find_device(), replace(find_study(sys.argv[1]) if len(sys.argv) > 1 else CONVNET_B, data='random',
                                           noise_kind='symmetric')
    if device == 'cuda':
        x, y = data()
        speeds = [bench(width, x, y) for width in WIDTHS]
        table(f'Samples/s, ConvNet A, 3 x 32 x 32, batch {BATCH}, {torch.cuda.get_device_name()}',
              [{'w': float(w), 'group': float(gpu_group(w))} | {k: s.get(k, float('nan')) for k in
               ('eager', 'tf32', 'bf16', 'tf32, grouped', 'bf16, grouped')} | {'tf32 / eager': s['tf32'] / s['eager']}
               for w, s in zip(WIDTHS, speeds, strict=True)])
    for precision in ('tf32', 'bf16'):
        named = replace(study, name=f'{study.name}-{precision}', recipe=replace(study.recipe, precision=precision))
        projection(named, device)
