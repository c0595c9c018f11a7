"""Stacked training, resuming and, where there is a GPU, recorded steps: what takes more than one width, family or
device to check."""
import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from smoothinterp import stack
from smoothinterp.data import digits, with_noise
from smoothinterp.models import build
from smoothinterp.stack import Engine, RecordedStep, Stack, TrainingStep
from smoothinterp.train import Recipe, epoch_order, in_memory, lr_at, optimizer, train_epoch

pytestmark = pytest.mark.numeric
RECIPE = Recipe(lr=.02, warmup_from=.004, init='he')
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def bits(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def color(n, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return in_memory(torch.randn(n, 3, size, size, generator=g)), torch.randint(10, (n,), generator=g)


def digit_engine(seeds, width, **options):
    datas = [with_noise(digits(s), .2, s) for s in seeds]
    nets = [build('convnet-a', width, 10, 1, 8, 'he', s).to(memory_format=torch.channels_last) for s in seeds]
    return Engine(nets, [in_memory(d.inputs(d.x)) for d in datas], [d.y for d in datas], RECIPE, list(seeds),
                  stack=True, **options)


def recorded(engine):
    return RecordedStep(engine.step, engine.samples.order[:, :engine.recipe.batch])


def by_torch(model, x, y, recipe, seed, epochs):
    "Losses and momentum of the plain loop."
    theirs, losses = optimizer(model, recipe), []
    for e in epochs:
        theirs.param_groups[0]['lr'] = lr_at(recipe, e)
        losses.append(train_epoch(model, theirs, x, y, epoch_order(len(x), seed, e).to(x.device), recipe.batch,
                                  recipe.loss))
    return losses, [theirs.state[p].get('momentum_buffer') for p in model.parameters()]


@pytest.mark.parametrize('family', ['convnet-a', 'convnet-b', 'mlp'])
def test_stacked_is_separate_training_in_float64(family):
    "Widths differ, labels differ, images are shared, the last batch is smaller."
    widths, (x, y) = (1.5, 2, 5), color(300)
    x, ys = x.double(), [y, y.roll(1), y.roll(2)]
    nets = [build(family, w, size=16, seed=s).double() for s, w in enumerate(widths)]
    apart = copy.deepcopy(nets)
    together = Engine(nets, [x] * 3, ys, RECIPE, [0, 1, 2], stack=True)
    assert together.samples.x.shape[0] == 1 and together.step.params[0].shape[0] % 3 == 0
    losses = [together.epoch(e) for e in (1, 2, 3)]
    for i, net in enumerate(apart):
        expected, momentum = by_torch(net, x, ys[i], RECIPE, i, (1, 2, 3))
        torch.testing.assert_close([row[i] for row in losses], expected, rtol=0, atol=1e-12)
        for a, b in zip(nets[i].parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        for a, b in zip(together.step.state_of(i)[0], momentum, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        net.load_state_dict(nets[i].state_dict()) # the same names and shapes


def test_padding_stays_zero():
    "After training, whatever is outside the windows is zero to the bit."
    nets = [build('convnet-b', w, size=16, seed=1) for w in (1, 3)]
    x, y = color(256)
    e = Engine(nets, [x, x], [y, y], RECIPE, [0, 1], stack=True)
    e.take = e.step = TrainingStep(Stack(nets, multiple=8), RECIPE, e.samples)
    for epoch in (1, 2): e.epoch(epoch)
    with torch.no_grad():
        for tensors in (e.step.params, e.step.state[0]):
            assert all(t.abs().sum() > 0 for t in tensors)
            for i in (0, 1): torch._foreach_zero_(e.step.net.windows(tensors, i))
            assert all(t.count_nonzero() == 0 for t in tensors)


@pytest.mark.parametrize('width', [.5, 2, 3, 6])
def test_same_bits_in_any_company(width):
    "Alone, in twos, threes and fives, at any place."
    engines = [digit_engine(seeds, width) for seeds in ((0, 1, 2), (0,), (2, 0), (3, 4, 5, 6, 0))]
    for e in (1, 2, 3): losses = [x.epoch(e) for x in engines]
    for i, at in ((1, 0), (2, 1), (3, 4)):
        assert torch.equal(bits(engines[i].models[at]), bits(engines[0].models[0]))
        assert losses[i][at] == losses[0][0]
    assert len(losses[1]) == 1


@pytest.mark.parametrize('optimizer', ['sgd', 'adam'])
@pytest.mark.parametrize('family,width', [('resnet18', 8), ('resnet18-plain', 8), ('vit', 6), ('convnet-a', 6),
                                          ('mlp', 8)])
def test_resumes_to_the_same_bits(family, width, optimizer):
    "From a state dict and optimizer state that were saved between epochs."
    x, y = color(150, 8)
    net = lambda seed: build(family, width, size=8, seed=seed).to(memory_format=torch.channels_last)
    make = lambda seed, **start: Engine([net(seed)], [x], [y], replace(RECIPE, optimizer=optimizer), [0], **start)
    whole, first = make(0), make(0)
    for e in (1, 2, 3): whole.epoch(e)
    first.epoch(1)
    second = make(1, start=[[[t.contiguous() for t in slot] for slot in first.step.state_of(0)]])
    second.models[0].load_state_dict({k: v.contiguous() for k, v in first.models[0].state_dict().items()})
    for e in (2, 3): second.epoch(e)
    for k, v in whole.models[0].state_dict().items(): assert torch.equal(v, second.models[0].state_dict()[k]), k


def test_recording_a_step_changes_nothing(monkeypatch):
    "With a graph's warm-up played on the CPU: weights, momentum, sums and BatchNorm's statistics are put back."
    def warm_up_only(step):
        for _ in range(3): step()
        return step
    x, y = color(300, 8)
    make = lambda: Engine([build('resnet18', 8, size=8)], [x], [y], RECIPE, [0])
    plain, taped = make(), make()
    plain.epoch(1), taped.epoch(1)
    monkeypatch.setattr(stack, 'capture', warm_up_only)
    taped.step.net.eval() # as after an evaluation
    taped.take = recorded(taped)
    assert taped.step.net.training and plain.epoch(2) == taped.epoch(2)
    for k, v in plain.step.net.state_dict().items(): assert torch.equal(v, taped.step.net.state_dict()[k]), k


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(monkeypatch):
    def broken(step):
        step()
        raise RuntimeError('operation not permitted when stream is capturing')
    monkeypatch.setattr(stack, 'capture', broken)
    plain, other = digit_engine((0, 1), 2), digit_engine((0, 1), 2)
    with pytest.warns(UserWarning, match='not permitted when stream is capturing.*without, slower'):
        other.take = recorded(other)
    assert plain.epoch(1) == other.epoch(1)


def test_running_out_of_memory_is_no_failed_recording(monkeypatch):
    def full(step): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(stack, 'capture', full)
    with pytest.raises(torch.OutOfMemoryError): recorded(digit_engine((0, 1), 2))


def test_a_failed_capture_leaves_its_stream(monkeypatch):
    "PyTorch's capture does not leave its stream when it ends by an error."
    class Stream:
        def wait_stream(self, other): pass
    at = [Stream()]
    @contextmanager
    def stream(s):
        at.append(s)
        yield
        at.pop()
    @contextmanager
    def graph(g):
        at.append(Stream())
        yield
    fakes = dict(Stream=Stream, CUDAGraph=object, current_stream=lambda: at[-1], stream=stream, graph=graph,
                 set_stream=at.append)
    for name, fake in fakes.items(): monkeypatch.setattr(torch.cuda, name, fake)
    taken = []
    def step():
        taken.append(at[-1])
        if len(taken) == 4: raise RuntimeError('operation not permitted when stream is capturing')
    with pytest.raises(RuntimeError, match='not permitted'): stack.capture(step)
    assert at[-1] is at[0] and len({*taken}) == 2 and at[0] not in taken


def on_gpu(precision, stacked, epochs=5, family='convnet-a', widths=(4, 6), **changes):
    "Losses of a few epochs of 10 batches, the last of them smaller."
    nets, x, y = gpu_networks(precision, family, widths)
    n, recipe = len(nets), replace(RECIPE, precision='float32' if precision == 'float64' else precision, **changes)
    e = Engine(nets, [x] * n, [y] * n, recipe, list(range(n)), stacked, x.new_zeros(3))
    return e, [e.epoch(k) for k in range(1, epochs + 1)]


def gpu_networks(precision, family, widths):
    dtype = torch.float64 if precision == 'float64' else torch.float32
    x, y = (t.cuda() for t in color(1200, 32))
    return ([build(family, w, seed=s).to('cuda', dtype).to(memory_format=torch.channels_last)
             for s, w in enumerate(widths)], x.to(dtype), y)


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize('precision,stacked,family,widths,within', [
    ('float32', True, 'convnet-a', (4, 6), 1e-5), ('float32', True, 'convnet-b', (16,), 1e-5),
    ('float32', False, 'vit', (12,), 1e-5),
    ('tf32', True, 'convnet-a', (4, 6), 1e-3), ('tf32', True, 'convnet-b', (16,), 1e-3),
    ('tf32', True, 'convnet-a', (64,), 1e-3),
    ('float64', False, 'resnet18', (4,), 1e-10)]) # rounding grows by 1e5 in these steps of a ResNet
def test_graph_and_plain_loop_agree(precision, stacked, family, widths, within, recwarn):
    "Over 50 steps, with the plain loop in true float32 or float64."
    e, losses = on_gpu(precision, stacked, family=family, widths=widths)
    assert not [w for w in recwarn if 'captured' in str(w.message)] and e.take.full.__name__ == 'replay'
    nets, x, y = gpu_networks(precision, family, widths)
    for i, net in enumerate(nets):
        with stack.fast_cuda('float32'): expected, _ = by_torch(net, x, y, RECIPE, i, range(1, 6))
        torch.testing.assert_close([row[i] for row in losses], expected, rtol=0, atol=within)
        shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (net, e.models[i])]
        assert shapes[0] == shapes[1]


@pytest.mark.cuda
@cuda
def test_adam_and_crops_are_recorded(recwarn):
    adam = dict(optimizer='adam', lr=1e-3, warmup_epochs=0, loss='mse')
    e, losses = on_gpu('float64', False, 5, 'resnet18', (4,), **adam)
    assert not [w for w in recwarn if 'captured' in str(w.message)] and e.take.full.__name__ == 'replay'
    (net,), x, y = gpu_networks('float64', 'resnet18', (4,))
    with stack.fast_cuda('float32'): expected, _ = by_torch(net, x, y, replace(RECIPE, **adam), 0, range(1, 6))
    torch.testing.assert_close([row[0] for row in losses], expected, rtol=0, atol=1e-10)
    e, losses = on_gpu('tf32', True, 2, augment=True)
    assert not [w for w in recwarn if 'captured' in str(w.message)] and all(v == v for row in losses for v in row)


@pytest.mark.cuda
@cuda
def test_bf16_is_near():
    (_, full), (_, half) = (on_gpu(p, True) for p in ('float32', 'bf16'))
    torch.testing.assert_close(half, full, rtol=0, atol=2e-2)


@pytest.mark.cuda
@cuda
def test_padded_to_eight_and_switches_turned_back():
    def settings():
        matmul = torch.backends.cuda.matmul
        return torch.backends.cudnn.benchmark, getattr(matmul, 'fp32_precision', None) or matmul.allow_tf32
    before = settings()
    e, _ = on_gpu('bf16', True)
    assert [p.shape[0] for p in e.step.params[:8:2]] == [16, 32, 48, 96]
    assert settings() == before
