"A study that is trained twice gives the same numbers, and a number that moved is named."
import json

from retrain import compare, train

from smoothinterp.results import over_epochs, results


def test_trained_again(runs, tmp_path, monkeypatch, capsys):
    costs = tmp_path/'costs.json'
    train(['smoke'], costs)
    before, by_epoch = results('smoke'), over_epochs('smoke')
    monkeypatch.setenv('SMOOTHINTERP_RUNS', str(tmp_path/'again'))
    train(['smoke'], costs)
    assert json.loads(costs.read_text())['retrain']['smoke']['how'] == 'measured'
    capsys.readouterr()
    compare('smoke', before, by_epoch)
    printed = capsys.readouterr().out
    assert 'claims that changed: 0' in printed and 'tangent_hessian' in printed
    moved = before.copy()
    doubled = (moved['measure'] == 'loss_jacobian') & (moved['width'] == 2)
    moved.loc[doubled, 'mean'] *= 2
    compare('smoke', moved, by_epoch)
    lines = capsys.readouterr().out.splitlines()
    row, = [line.split() for line in lines if line.startswith('loss_jacobian') and ' 0.5 ' in line]
    assert row[2] == str(doubled.sum()) and row[-2:] == ['2', '0']
