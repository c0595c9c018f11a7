"The monitor records what direct calls say, changes nothing of the training, and goes on after a stop."
import math
import random
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from smoothinterp.core import load_frame
from smoothinterp.data import digits, torchvision_datasets
from smoothinterp.measures import cross_entropy, empirical_lipschitz, loss_jacobian
from smoothinterp.monitor import Monitor, lightning_callback, trainer_callback

N, EPOCHS = 120, 4
ROWS = ['error', 'cross_entropy', 'loss_jacobian', 'logit_operator', 'logit_frobenius', 'lipschitz']


@pytest.fixture(scope='module')
def xy():
    data = digits()
    return data.inputs(data.x[:N]), data.y[:N]


class Counter(nn.Module):
    "Counts its calls in a buffer, in every mode."
    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros(()))
    def forward(self, x):
        self.calls += 1
        return x


def convnet():
    "Dropout, batch statistics, a spectral norm that iterates, a frozen layer, a module in evaluation mode."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(.2), nn.Conv2d(8, 8, 3),
                        nn.BatchNorm2d(8), nn.ReLU(), Counter(), nn.Flatten(),
                        spectral_norm(nn.Linear(128, 32)), nn.ReLU(), nn.Linear(32, 10))
    net[4].requires_grad_(False)
    return net


class Augmented(torch.utils.data.Dataset):
    "Pairs with noise from three generators."
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.y)
    def __getitem__(self, i):
        noise = torch.randn(1).item() + np.random.randn() + random.random()
        return self.x[i] + .01 * noise, self.y[i]


def loop(pairs, monitor=None, net=None, epochs=range(EPOCHS)):
    "A plain loop with momentum, gradients that stay until the next step, and one module kept in evaluation mode."
    net = net or convnet()
    random.seed(0)
    np.random.seed(0)
    sgd = torch.optim.SGD(net.parameters(), .05, momentum=.9)
    for epoch in epochs:
        net.train()
        net[5].eval()
        for x, y in DataLoader(pairs, 30, shuffle=True):
            sgd.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            sgd.step()
        if monitor: monitor(net, epoch + 1)
    return net


def kept(net):
    "All that a measurement could change."
    grads = {f'{k}.grad': p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
    state = {k: v.clone() for k, v in net.state_dict().items()}
    flags = {k: p.requires_grad for k, p in net.named_parameters()}
    return grads | state, flags, {k: m.training for k, m in net.named_modules()}


def assert_same(a, b):
    assert a[1:] == b[1:] and a[0].keys() == b[0].keys()
    assert [k for k, v in a[0].items() if not torch.equal(v, b[0][k])] == []


def generators(): return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_a_plain_loop_is_not_changed(xy, tmp_path):
    pairs = Augmented(*xy)
    alone = loop(pairs)
    last = generators()
    net = convnet()
    monitor = Monitor(pairs, samples=50, path=tmp_path/'m.parquet')
    monitor(net, 0)
    watched = loop(pairs, monitor, net)
    assert_same(kept(alone), kept(watched))
    assert generators() == last and len(monitor.frame) == (EPOCHS + 1) * len(ROWS)


def test_one_measurement_changes_nothing_also_when_it_fails(xy):
    net, monitor = loop(TensorDataset(*xy)), Monitor(*xy)
    before, numbers = kept(net), generators()
    monitor.record(net, 1)
    assert_same(before, kept(net))
    monitor.y = torch.full_like(monitor.y, 11)
    with pytest.warns(UserWarning, match='must lie in'): monitor.record(net, 2)
    assert_same(before, kept(net))
    assert generators() == numbers


def test_the_numbers_are_those_of_direct_calls(xy):
    net, monitor = convnet(), Monitor(*xy, samples=40)
    x, y = monitor.x, monitor.y
    monitor.record(net, 3)
    rows = monitor.frame.set_index('measure')
    assert [*rows.index] == ROWS and set(rows['n']) == {40} and set(rows['epoch']) == {3.}
    assert rows.loc['lipschitz', 'value'] == pytest.approx(empirical_lipschitz(net, x, y), rel=1e-9)
    for f in (loss_jacobian, cross_entropy):
        values = f(net, x, y)
        assert rows.loc[f.__name__, 'value'] == pytest.approx(values.mean().item(), rel=1e-9)
        assert rows.loc[f.__name__, 'error'] == pytest.approx(values.std().item() / 40**.5, rel=1e-9)


def test_every_k_epochs(xy):
    monitor = Monitor(*xy, every=3, samples=5)
    loop(TensorDataset(*xy), monitor, epochs=range(7))
    assert monitor.frame['epoch'].unique().tolist() == [3, 6]
    with pytest.raises(ValueError, match='from 1, not 0'): Monitor(*xy, every=0)


def test_it_goes_on_where_it_stopped(xy, tmp_path):
    path, pairs = tmp_path/'deep'/'m.parquet', TensorDataset(*xy)
    whole = Monitor(*xy, path=path)
    loop(pairs, whole)
    again = Monitor(*xy, path=path)
    pd.testing.assert_frame_equal(again.frame, whole.frame, check_exact=True)
    again.record(convnet(), 2)
    assert again.frame['epoch'].unique().tolist() == [1, 2]
    pd.testing.assert_frame_equal(load_frame(path)[0], again.frame)
    pd.testing.assert_frame_equal(again.frame.query('epoch == 1'), whole.frame.query('epoch == 1'))


def test_a_file_of_other_samples_or_a_damaged_one_is_refused(xy, tmp_path):
    path = tmp_path/'m.parquet'
    Monitor(*xy, path=path).record(convnet(), 0)
    with pytest.raises(ValueError, match='other samples'): Monitor(*xy, samples=9, path=path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match='damaged.*: delete it, or pass another path$'): Monitor(*xy, path=path)
    for other in (tmp_path, tmp_path/'m.png'): # its picture is written there
        with pytest.raises(ValueError, match=r'must end in \.parquet'): Monitor(*xy, path=other)


def test_a_killed_write_leaves_the_file_before(xy, tmp_path, monkeypatch):
    path, net = tmp_path/'m.parquet', convnet()
    monitor = Monitor(*xy, path=path)
    monitor.record(net, 0)
    before = path.read_bytes()
    monkeypatch.setattr('os.replace', lambda *a: (_ for _ in ()).throw(OSError('no space left')))
    with pytest.warns(UserWarning, match='no space left'): monitor.record(net, 1)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]
    assert monitor.frame['epoch'].max() == 1 # still in memory
    with pytest.raises(OSError): Monitor(*xy, path=tmp_path/'other.parquet').record(net, 0)


def test_a_diverged_network_gets_rows_without_values(xy, tmp_path):
    net, monitor = convnet(), Monitor(*xy, path=tmp_path/'m.parquet')
    monitor.record(net, 0)
    with torch.no_grad(): net[0].weight.fill_(math.nan)
    with pytest.warns(UserWarning, match='epoch 1: 0.weight holds NaN'): monitor.record(net, 1)
    last = Monitor(*xy, path=tmp_path/'m.parquet').frame.query('epoch == 1')
    assert [*last['measure']] == ROWS and last['value'].isna().all() and (last['n'] == 0).all()
    assert last['why'].str.contains('NaN').all()
    with pytest.raises(ValueError, match='holds NaN'): Monitor(*xy).record(net, 0)
    monitor.plot()


def test_what_is_wrong_is_said_at_once(xy):
    x, y = xy
    class Stream(IterableDataset):
        def __iter__(self): return iter(zip(x, y))
    with pytest.raises(ValueError, match='no fixed subset'): Monitor(Stream())
    with pytest.raises(ValueError, match='labels are missing'): Monitor(x)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match='number of samples from 1'): Monitor(x, y, samples=n)
    for given in (dict(x=x, y=y), dict(x=x), {}):
        with pytest.raises(ValueError, match='not a dict: pass the tensors in it'): Monitor(given)
    with pytest.raises(ValueError, match='must be a tensor.*, not a str'): Monitor('folder')
    with pytest.raises(ValueError, match='leave y out'): Monitor(DataLoader(TensorDataset(x, y)), y)
    with pytest.raises(ValueError, match='dictionaries'): Monitor([dict(pixels=x[0], label=1)])
    with pytest.raises(ValueError, match='must lie in 0..9'): Monitor(x, y + 5).record(convnet(), 0)


def test_vectors(xy):
    x, y = xy
    net, monitor = nn.Linear(64, 10), Monitor(x.flatten(1), y)
    monitor.record(net, 0)
    found = monitor.frame.set_index('measure')['value']['lipschitz']
    assert found == pytest.approx(torch.linalg.matrix_norm(net.weight, 2).item(), rel=1e-5)


def test_the_picture(xy, tmp_path):
    monitor = Monitor(*xy, path=tmp_path/'m.parquet')
    loop(TensorDataset(*xy), monitor)
    axes = monitor.plot().axes
    assert [ax.get_title('left') for ax in axes] == ['error', 'cross-entropy', 'loss Jacobian', 'Lipschitz constant']
    assert [*axes[3].lines[0].get_xdata()] == [1, 2, 3, 4] and (tmp_path/'m.png').read_bytes()[:4] == b'\x89PNG'
    Monitor(*xy).plot() # nothing was recorded


@pytest.fixture
def lightning():
    torchvision_datasets() # torchmetrics imports torchvision
    return pytest.importorskip('lightning')


@pytest.fixture
def transformers():
    torchvision_datasets()
    pytest.importorskip('accelerate')
    return pytest.importorskip('transformers')


def fitted(lightning, xy, folder, monitor=None, epochs=EPOCHS, go_on=None, **kw):
    "A module after training by Lightning, with validation."
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = convnet()
        def forward(self, x): return self.net(x)
        def training_step(self, batch, i): return nn.functional.cross_entropy(self(batch[0]), batch[1])
        def validation_step(self, batch, i): self.log('loss', nn.functional.cross_entropy(self(batch[0]), batch[1]))
        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 1e-2)

    module, pairs = Module(), TensorDataset(*xy)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator='cpu', logger=False, enable_progress_bar=False,
                                enable_model_summary=False, enable_checkpointing=False,
                                callbacks=[lightning_callback(monitor)] if monitor else [], **kw)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        trainer.fit(module, DataLoader(pairs, 30, shuffle=True), DataLoader(pairs, 60), ckpt_path=go_on)
    trainer.save_checkpoint(folder/f'{epochs}.ckpt')
    return module


def test_lightning(lightning, xy, tmp_path):
    monitor = Monitor(*xy, every=3, path=tmp_path/'m.parquet')
    module = fitted(lightning, xy, tmp_path, monitor)
    assert_same(kept(fitted(lightning, xy, tmp_path)), kept(module))
    assert monitor.frame['epoch'].unique().tolist() == [0, 3, 4] and (tmp_path/'m.png').exists()
    last = monitor.frame.query('epoch == 4').set_index('measure')['value']
    assert last['lipschitz'] == pytest.approx(empirical_lipschitz(module, monitor.x, monitor.y), rel=1e-9)


def test_lightning_goes_on(lightning, xy, tmp_path):
    path = tmp_path/'m.parquet'
    fitted(lightning, xy, tmp_path, Monitor(*xy, path=path), epochs=2)
    monitor = Monitor(*xy, path=path)
    fitted(lightning, xy, tmp_path, monitor, epochs=4, go_on=tmp_path/'2.ckpt')
    assert monitor.frame['epoch'].unique().tolist() == [0, 1, 2, 3, 4]


def test_lightning_in_half_precision_is_measured_in_full(lightning, xy, tmp_path):
    monitor = Monitor(*xy, every=4)
    module = fitted(lightning, xy, tmp_path, monitor, precision='bf16-mixed')
    last = monitor.frame.query('epoch == 4').set_index('measure')['value']
    assert last['lipschitz'] == pytest.approx(empirical_lipschitz(module.net, monitor.x, monitor.y), rel=1e-9)


def trained(transformers, xy, folder, monitor=None, epochs=EPOCHS, go_on=None, **kw):
    "A vision transformer after training by Hugging Face's Trainer, and its logits in float32."
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=10, hidden_dropout_prob=.1))
    args = transformers.TrainingArguments(folder, num_train_epochs=epochs, per_device_train_batch_size=30, use_cpu=True,
        learning_rate=1e-2, report_to=[], logging_strategy='no', disable_tqdm=True,
        **dict(save_strategy='no', lr_scheduler_type='constant') | kw)
    dicts = [dict(pixel_values=image, labels=label) for image, label in zip(*xy)]
    transformers.Trainer(model, args, train_dataset=dicts,
                         callbacks=[trainer_callback(monitor)] if monitor else []).train(resume_from_checkpoint=go_on)
    return model


class Plain(nn.Module):
    "A model of transformers with its weights, which Accelerate never saw."
    def __init__(self, model):
        super().__init__()
        self.model = type(model)(model.config)
        self.model.load_state_dict(model.state_dict())
    def forward(self, x): return self.model(x).logits


@pytest.mark.parametrize('precision', [{}, dict(bf16=True)], ids=['float32', 'bf16'])
def test_hugging_face(transformers, xy, tmp_path, precision):
    monitor = Monitor(*xy, every=3, path=tmp_path/'m.parquet')
    model = trained(transformers, xy, tmp_path, monitor, **precision)
    assert_same(kept(trained(transformers, xy, tmp_path, **precision)), kept(model))
    assert monitor.frame['epoch'].unique().tolist() == [0, 3, 4] and (tmp_path/'m.png').exists()
    last = monitor.frame.query('epoch == 4').set_index('measure')['value']
    assert last['lipschitz'] == pytest.approx(empirical_lipschitz(Plain(model), monitor.x, monitor.y), rel=1e-5)
    mean = loss_jacobian(Plain(model), monitor.x, monitor.y).mean().item()
    assert last['loss_jacobian'] == pytest.approx(mean, rel=1e-5)


def test_hugging_face_goes_on_and_stops_within_an_epoch(transformers, xy, tmp_path):
    path, saved = tmp_path/'m.parquet', dict(save_strategy='epoch')
    trained(transformers, xy, tmp_path, Monitor(*xy, path=path), epochs=2, **saved)
    monitor = Monitor(*xy, path=path)
    trained(transformers, xy, tmp_path, monitor, epochs=4, go_on=tmp_path/'checkpoint-8', **saved)
    assert monitor.frame['epoch'].unique().tolist() == [0, 1, 2, 3, 4]
    monitor = Monitor(*xy)
    trained(transformers, xy, tmp_path, monitor, max_steps=6)
    assert monitor.frame['epoch'].unique().tolist() == [0, 1, 1.5]


def test_without_the_libraries_the_module_imports_and_says_what_is_missing(xy, monkeypatch):
    code = ('import sys, smoothinterp.monitor; '
            "assert not {'lightning', 'pytorch_lightning', 'transformers'} & set(sys.modules)")
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
    for name in ('lightning', 'lightning.pytorch', 'pytorch_lightning', 'transformers'):
        monkeypatch.setitem(sys.modules, name, None)
    for callback in (lightning_callback, trainer_callback):
        with pytest.raises(ImportError): callback(Monitor(*xy))
