"The examples run as they are, where their libraries are installed."
from pathlib import Path

import pytest

from smoothinterp.data import torchvision_datasets

nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
NBS = Path(__file__).parent.parent/'nbs'
NEEDS = {'28_monitor': ('lightning', 'transformers', 'accelerate'), 'example_vit': ('timm',)}


@pytest.mark.slow
@pytest.mark.parametrize('name', NEEDS)
def test_a_notebook_runs(name):
    torchvision_datasets() # these libraries import torchvision
    for library in NEEDS[name]: pytest.importorskip(library)
    nb = nbformat.read(NBS/f'{name}.ipynb', as_version=4)
    place = dict(metadata=dict(path=str(NBS)))
    nbclient.NotebookClient(nb, timeout=600, kernel_name='python3', resources=place).execute()
