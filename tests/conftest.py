import os

import pytest
import torch

torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1' # of processes that tests start


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes; run with `make slow`')
    config.addinivalue_line('markers', 'cuda: needs a GPU')
    config.addinivalue_line('markers', 'numeric: depends on how the processor calculates; run by `make avx2` too')


def pytest_collection_modifyitems(config, items):
    "Slow tests run only when asked for by `-m slow`."
    if 'slow' in config.option.markexpr: return
    for item in items:
        if 'slow' in item.keywords: item.add_marker(pytest.mark.skip(reason='slow: run `make slow`'))


@pytest.fixture(scope='session', autouse=True)
def no_runs(tmp_path_factory):
    "No test sees what lies in the reader's `runs/`."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SMOOTHINTERP_RUNS', str(tmp_path_factory.mktemp('no-runs')))
        yield


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "An empty folder for runs."
    monkeypatch.setenv('SMOOTHINTERP_RUNS', str(tmp_path/'runs'))
    return tmp_path/'runs'
