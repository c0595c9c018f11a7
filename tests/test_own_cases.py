"Images and labels as people have them: read as what they show, or refused with what to type instead."
import enum
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from smoothinterp.data import Normalize, from_dataset, from_tensors

COLORS = np.random.default_rng(0).integers(0, 256, (4, 3), dtype=np.uint8)
FEW = COLORS[np.random.default_rng(1).integers(0, 4, (5, 8, 6))] # [5, H, W, 3]
MANY = np.random.default_rng(2).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
CHW = torch.from_numpy(MANY).permute(0, 3, 1, 2)


def read(images, labels=range(5)):
    items = list(zip(images, labels))
    return from_dataset(items, items, classes=5)


def saved(image, kind, **kw):
    "An image as it comes back from a file."
    file = io.BytesIO()
    image.save(file, kind, **kw)
    return Image.open(io.BytesIO(file.getvalue()))


def transparent(image):
    image.info['transparency'] = 0
    return image


GREY = MANY[..., 0]
RIGHT = {'RGB': (lambda i: Image.fromarray(MANY[i]), CHW),
         'PNG': (lambda i: saved(Image.fromarray(MANY[i]), 'PNG'), CHW),
         'palette': (lambda i: Image.fromarray(FEW[i]).quantize(4), torch.from_numpy(FEW).permute(0, 3, 1, 2)),
         'PNG-8': (lambda i: saved(Image.fromarray(FEW[i]).quantize(4), 'PNG'),
                   torch.from_numpy(FEW).permute(0, 3, 1, 2)),
         'GIF': (lambda i: saved(Image.fromarray(FEW[i]).quantize(4), 'GIF'),
                 torch.from_numpy(FEW).permute(0, 3, 1, 2)),
         'grey': (lambda i: Image.fromarray(GREY[i]), torch.from_numpy(GREY)[:, None]),
         'two colors': (lambda i: Image.fromarray(GREY[i] > 99),
                         torch.from_numpy((GREY > 99) * np.uint8(255))[:, None]),
         'array': (lambda i: MANY[i], CHW), 'array, channels first': (lambda i: MANY[i].transpose(2, 0, 1), CHW),
         'array, colors reversed': (lambda i: MANY[i][..., ::-1], CHW.flip(1)),
         'array [H, W]': (lambda i: GREY[i], torch.from_numpy(GREY)[:, None]),
         'array [H, W, 1]': (lambda i: GREY[i][..., None], torch.from_numpy(GREY)[:, None]),
         'array [1, H, W]': (lambda i: GREY[i][None], torch.from_numpy(GREY)[:, None]),
         'four channels': (lambda i: MANY[i][..., [0, 1, 2, 0]], CHW[:, [0, 1, 2, 0]]),
         'four, first': (lambda i: MANY[i][..., [0, 1, 2, 0]].transpose(2, 0, 1), CHW[:, [0, 1, 2, 0]]),
         'tensor': (lambda i: CHW[i], CHW),
         'tensor of 13 channels': (lambda i: torch.cat([CHW[i]] * 5)[:13], torch.cat([CHW] * 5, 1)[:, :13])}

@pytest.mark.parametrize('form', RIGHT)
def test_pixels_are_those_that_are_seen(form):
    make, pixels = RIGHT[form]
    found = read(map(make, range(5)))
    assert torch.equal(found.x, pixels) and torch.equal(found.x_test, pixels) and found.x.is_contiguous()


rgb = Image.fromarray(MANY[0])
WRONG = {'mode RGBA.*convert': rgb.convert('RGBA'), 'mode LA.*convert': rgb.convert('LA'),
         'mode PA.*convert': rgb.convert('RGBA').convert('PA'),
         'mode CMYK.*convert': rgb.convert('CMYK'), 'mode YCbCr.*convert': rgb.convert('YCbCr'),
         'mode HSV.*convert': rgb.convert('HSV'), 'mode LAB.*convert': rgb.convert('LAB'),
         'mode RGBX': rgb.convert('RGBX'), 'mode P with transparency': transparent(rgb.quantize(4)),
         'mode I;16 .* // 257': Image.fromarray(GREY[0].astype(np.uint16)),
         'mode I .* // 257': rgb.convert('I'), 'mode F .* // 257': rgb.convert('F'),
         r'which size of an array \[13, 8, 6\]': np.zeros((13, 8, 6), np.uint8),
         r'which size of an array \[3, 8, 3\]': np.zeros((3, 8, 3), np.uint8),
         r'which size of an array \[1, 3, 8, 8\]': np.zeros((1, 3, 8, 8), np.uint8),
         r'\(255 \* x\).round\(\)': MANY[0] / 255,
         r'x.round\(\).to\(torch.uint8\) for pixels in 0..255': MANY[0].astype(np.float32),
         r'255 \* x.to': MANY[0] > 99,
         'undo their normalisation': CHW[0].float() / 128 - 1, r'type x.to\(torch.uint8\)': MANY[0].astype(int),
         'all 0 or 1': (MANY[0] > 99).astype(np.uint8),
         'go up to 65278: .* // 257': MANY[0].astype(np.int32) * 257, 'not a str': 'photo.png',
         'not a list': MANY[0].tolist(), r'permute\(0, 3, 1, 2\)': torch.from_numpy(MANY[0]),
         'item 4: ': np.array([[None]])}

@pytest.mark.parametrize('reason', WRONG)
def test_other_pixels_are_refused_with_what_to_type(reason):
    with pytest.raises(ValueError, match=reason):
        read([WRONG[reason]] * 5 if reason != 'item 4: ' else [*CHW[:4], WRONG[reason]])


def test_what_was_to_be_typed_is_right():
    exact = read(CHW)
    for x in ((255 * (CHW / 255)).round().to(torch.uint8), CHW.float().round().to(torch.uint8),
              CHW.int().to(torch.uint8),
              (CHW.int() * 257 // 257).to(torch.uint8), torch.from_numpy(MANY).permute(0, 3, 1, 2)):
        assert torch.equal(from_tensors('mine', x, range(5), x, range(5)).x, exact.x)
    sixteen = Image.fromarray(GREY[0].astype(np.uint16) * 257)
    assert torch.equal(read([(np.array(sixteen) // 257).astype(np.uint8)] * 5).x[0, 0], torch.from_numpy(GREY[0]))


def test_images_of_two_kinds():
    with pytest.raises(ValueError, match='convert all to one mode'): read([rgb, rgb.convert('L')] * 2 + [rgb])
    with pytest.raises(ValueError, match='crop or resize'): read([rgb, rgb.resize((5, 5))] * 2 + [rgb])
    with pytest.raises(ValueError, match='must have the same shape'): from_dataset([(rgb, 0)], [(rgb.convert('L'), 0)])


class Kind(enum.IntEnum):
    cat, dog = 3, 4

@pytest.mark.parametrize('label', [3, np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor([3]), np.array([3]),
                                   np.array([[3]]), [3], Kind.cat])
def test_whole_numbers_are_labels(label):
    assert read([*CHW], [label] * 5).y.tolist() == [3] * 5


@pytest.mark.parametrize('label, reason', [(1.7, r'1\.7: give int'), (1., 'give int'), (np.float32(1.7), '1.7'),
                                           (torch.tensor(1.7), 'integer'), (True, 'integer'),
                                           ('cat', 'number the classes'),
                                           ('3', 'number the classes'), (None, 'number the classes'),
                                           ({'a': 1}, 'number the classes'), ([0, 1, 0], 'argmax'),
                                           (torch.eye(3)[1], 'argmax'), (np.eye(3)[1], 'argmax'), ((0., 1.), 'argmax'),
                                           ([], 'integer')])
def test_other_labels_are_refused(label, reason):
    with pytest.raises(ValueError, match=f'item 4: .*{reason}'): read([*CHW], [0, 1, 2, 3, label])


@pytest.mark.parametrize('labels, reason', [(torch.tensor([0, 1, 1.7, 2, 3]), '1.7 is no class'),
                                            (torch.arange(5.), r'y\.long\(\)'), (np.arange(5) > 2, r'y\.long\(\)'),
                                            (list('abcde'), r'names\.index'),
                                            (np.array(list('abcde')), r'names\.index'), (torch.eye(5), 'argmax'),
                                            (torch.eye(5).long(), 'argmax'), (torch.arange(5)[:, None], r'y\[:, 0\]'),
                                            (torch.arange(4), 'one per image'), (torch.arange(5) - 1, '0..4')])
def test_other_labels_in_tensors_are_refused(labels, reason):
    with pytest.raises(ValueError, match=reason): from_tensors('mine', CHW, labels, CHW, range(5))


def test_arrays_and_lists_are_tensors():
    for x, y in ((CHW.numpy(), np.arange(5)), (CHW.numpy(), list(range(5))), (CHW, torch.arange(5).int()),
                 (CHW, torch.arange(5).to(torch.uint8))):
        assert torch.equal(from_tensors('mine', x, y, x, y).x,
                           CHW) and from_tensors('mine', x, y, x, y).y.dtype == torch.int64
    for channels in (1, 2, 4):
        last = torch.from_numpy(MANY)[..., :1].expand(-1, -1, -1, channels)
        with pytest.raises(ValueError, match=r'permute\(0, 3, 1, 2\)'):
            from_tensors('mine', last, range(5), last, range(5))
    with pytest.raises(ValueError, match='from_dataset'): from_tensors('mine', [rgb] * 5, range(5), CHW, range(5))


@pytest.mark.parametrize('mean, std, reason', [((125.3, 123., 113.9), (63., 62.1, 66.7),
                                                'divide statistics of bytes by 255'), ((.5,), (.5,), '1 means'),
                                               ((.5,) * 3, (.5, .5, 0.), 'above 0')])
def test_statistics_are_of_pixels_in_0_to_1(mean, std, reason):
    with pytest.raises(ValueError, match=reason):
        from_tensors('mine', CHW, range(5), CHW, range(5), normalize=Normalize(mean, std))
    fine = Normalize((.5,) * 3, (1.,) * 3)
    assert from_tensors('mine', CHW, range(5), CHW, range(5), normalize=fine).normalize == fine


def test_items_are_pairs():
    for item in (dict(image=rgb, label=0), (rgb, 0, 'more'), rgb, (rgb,)):
        with pytest.raises(ValueError, match=r'item 0 must be a pair \(image, label\)'): from_dataset([item], [item])
    assert torch.equal(from_dataset(TensorDataset(CHW, torch.arange(5)), [[rgb, 0]]).x, CHW)
