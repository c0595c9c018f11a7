"The real CIFAR-100, and what people answered, where the files are at hand: SMOOTHINTERP_DATA or the data folder."
import pytest
import torch

from smoothinterp.core import data_dir
from smoothinterp.data import (
    cifar10,
    cifar100,
    from_dataset,
    hold_out,
    torchvision_datasets,
    with_human_noise,
    with_noise,
)


def needs(*names):
    missing = [n for n in names if not (data_dir()/n).exists()]
    return pytest.mark.skipif(bool(missing), reason=f'{", ".join(missing)} not in {data_dir()}; set SMOOTHINTERP_DATA')


needs_cifar100 = needs('cifar-100-python')


@pytest.fixture(scope='module')
def data():
    return cifar100()


@needs_cifar100
def test_it_is_the_official_data_with_fine_labels_and_the_papers_statistics(data):
    assert data.x.shape == (50_000, 3, 32, 32) and data.x_test.shape == (10_000, 3, 32, 32)
    assert data.y.bincount().tolist() == [500] * 100 and data.y_test.bincount().tolist() == [100] * 100
    assert ((data.x.double().mean((0, 2, 3)) / 255) - torch.tensor(data.normalize.mean)).abs().max() < 1e-4
    assert data.inputs(data.x[:2000]).mean().abs() < .03


@needs_cifar100
def test_class_dependent_noise_as_in_the_text_and_in_the_code(data):
    text, code = (with_noise(data, .2, 0, kind) for kind in ('asymmetric', 'asymmetric-official'))
    assert text.corrupted.sum() == 8000 and text.corrupted_classes.sum() == 20
    assert code.corrupted.sum() == 10_000 and code.corrupted_classes.nonzero()[:, 0].tolist() == list(range(25))
    assert len(code.y[code.corrupted & (code.true == 0)].unique()) > 90  # all other classes, not one
    assert text.corrupted_classes[text.y_test].sum() == 2000


@needs_cifar100
def test_the_split_of_the_papers_readmes(data):
    rest, x, y = hold_out(data)
    assert rest.x.shape[0] == 49_000 and x.shape == (1000, 3, 32, 32)
    assert with_noise(rest, .2, 0).corrupted.sum() == 9800
    expected = torch.utils.data.random_split(range(50_000), [49_000, 1000],
                                             torch.Generator().manual_seed(42))[1].indices
    assert torch.equal(y, data.y[expected]) and torch.equal(x, data.x[expected])
    assert with_noise(rest, .2, 0, 'asymmetric-official').corrupted_classes.sum() == 25


@needs_cifar100
def test_read_item_by_item_it_is_the_same(data):
    train, test = (torchvision_datasets().CIFAR100(data_dir(), train=train) for train in (True, False))
    own = from_dataset(torch.utils.data.Subset(train, range(3000)), torch.utils.data.Subset(test, range(50)), 'mine',
                       classes=100)
    assert torch.equal(own.x, data.x[:3000]) and torch.equal(own.y, data.y[:3000])
    assert torch.equal(own.x_test, data.x_test[:50])


@needs('cifar-10-batches-py', 'cifar10n.npz')
def test_cifar10n_has_the_published_shares_of_wrong_labels():
    "Wei et al. (2022); the released majority labels have 9.01 %, the article says 9.03 %."
    data = cifar10()
    shares = {k: with_human_noise(data, k).noise_rate for k in ('aggre', 'random1', 'random2', 'random3', 'worse')}
    published = dict(aggre=.0903, random1=.1723, random2=.1812, random3=.1764, worse=.4021)
    assert shares == pytest.approx(published, abs=2.1e-4)
    few = with_human_noise(cifar10(n=4000, size=16), 'worse')
    assert few.corrupted.sum() == with_human_noise(data, 'worse').corrupted[:4000].sum()
    with pytest.raises(ValueError, match='before you split'): with_human_noise(hold_out(data)[0], 'worse')


@needs('cifar-100-python', 'cifar100n.npz')
def test_cifar100n_has_the_published_share_of_wrong_labels(data):
    assert with_human_noise(data, 'noisy').noise_rate == pytest.approx(.4020, abs=6e-5)
    with pytest.raises(ValueError, match='there are noisy'): with_human_noise(data, 'worse')
