"The real CIFAR-10, where it is at hand: SMOOTHINTERP_DATA or the data folder."
from dataclasses import replace

import pytest
import torch

from smoothinterp.core import data_dir
from smoothinterp.data import cifar10, with_noise
from smoothinterp.study import STUDIES, images, study_data

needs_cifar10 = pytest.mark.skipif(not (data_dir()/'cifar-10-batches-py').exists(),
                                   reason=f'CIFAR-10 is not in {data_dir()}; set SMOOTHINTERP_DATA')


@pytest.fixture(scope='module')
def data():
    return cifar10()


@needs_cifar10
def test_it_is_the_official_data_with_the_papers_statistics(data):
    assert data.x.shape == (50_000, 3, 32, 32) and data.x_test.shape == (10_000, 3, 32, 32)
    assert data.y.bincount().tolist() == [5000] * 10 and data.y_test.bincount().tolist() == [1000] * 10
    x = data.inputs(data.x[:5000])
    assert x.mean().abs() < .03
    assert ((data.x.double().mean((0, 2, 3)) / 255) - torch.tensor(data.normalize.mean)).abs().max() < 1e-4


@needs_cifar10
def test_noise_is_exactly_ten_thousand_labels(data):
    assert with_noise(data, .2, seed=0).corrupted.sum() == 10_000


@needs_cifar10
def test_a_small_part_of_it(data):
    small = cifar10(n=4000, size=16)
    assert small.x.shape == (4000, 3, 16, 16) and small.x_test.shape == (10_000, 3, 16, 16)
    assert torch.equal(small.y, data.y[:4000])
    block = data.x[7, 1, 4:6, 8:10].float().mean()
    assert abs(float(small.x[7, 1, 2, 4]) - block) <= .5
    with pytest.raises(ValueError, match='1..50000'): cifar10(n=60_000)


def test_where_it_cannot_be_had_the_error_says_where_it_looked(tmp_path, monkeypatch):


    from smoothinterp import data as module

    def offline(self): raise OSError('no network')
    monkeypatch.setattr(module.torchvision_datasets().CIFAR10, 'download', offline)
    with pytest.raises(FileNotFoundError, match=f'not in {tmp_path}.*SMOOTHINTERP_DATA.*cifar-10-batches-py'):
        cifar10(root=tmp_path)


@needs_cifar10
def test_studies_of_human_labels_and_of_49_000_images():
    small = replace(STUDIES['cifar10-small'], data='cifar10-49k', n=None, size=32)
    assert len(study_data(small, 0).y) == images(small) == 49_000 and study_data(small, 0).corrupted.sum() == 9800
    if not (data_dir()/'cifar10n.npz').exists(): pytest.skip('the human labels are not there')
    human = replace(STUDIES['cifar10-small'], data='cifar10n', noise_rate=0.)
    assert .35 < study_data(human, 0).noise_rate < .45
    with pytest.raises(ValueError, match='noisy already'): study_data(replace(human, noise_rate=.2), 0)
