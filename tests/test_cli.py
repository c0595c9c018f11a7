"The command line answers at once, and explains every command and option."
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smoothinterp.cli import parser, studies_table
from smoothinterp.study import STUDIES

ROOT = Path(__file__).parent.parent


def commands():
    "From the name of each command to its parser."
    return next(action.choices for action in parser()._actions if action.dest == 'command')


def options():
    return [pytest.param(action, id=f'{name} {action.dest}')
            for name, sub in commands().items() for action in sub._actions]


@pytest.mark.parametrize('action', options())
def test_every_option_has_a_help_text(action):
    assert action.help and len(action.help) > 10
    if action.option_strings and action.dest != 'help': assert '(default: ' in action.help


@pytest.mark.parametrize('name', commands())
def test_every_command_says_what_it_does(name):
    assert commands()[name].description in ' '.join(parser().format_help().split())


@pytest.mark.parametrize('words', [['studies'], ['--help'], ['sweep', '--help']], ids=' '.join)
def test_it_answers_in_less_than_a_second_and_without_torch(words):
    code = f"import sys; sys.argv[1:] = {words}\nfrom smoothinterp.cli import main\ntry: main()\n" \
           "finally: assert not {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)"
    times = []
    for _ in range(3): # the fastest of three, because other work may slow one down
        start = time.monotonic()
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
        times.append(time.monotonic() - start)
        assert done.returncode == 0 and done.stdout, done.stderr
    assert min(times) < 1


def test_every_study_is_listed_once():
    assert [line.split()[0] for line in studies_table().splitlines()] == list(STUDIES)
