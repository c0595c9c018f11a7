import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes; run with `make slow`')
    config.addinivalue_line('markers', 'cuda: needs a GPU')


def pytest_collection_modifyitems(config, items):
    "Slow tests run only when asked for by `-m slow`."
    if 'slow' in config.option.markexpr: return
    for item in items:
        if 'slow' in item.keywords: item.add_marker(pytest.mark.skip(reason='slow: run `make slow`'))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "An empty folder for runs."
    monkeypatch.setenv('SMOOTHINTERP_RUNS', str(tmp_path/'runs'))
    return tmp_path/'runs'
