__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING: from smoothinterp.report import smoothness as smoothness


def __getattr__(name: str):
    "`from smoothinterp import smoothness` imports PyTorch only when it is asked for."
    if name != 'smoothness': raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from smoothinterp.report import smoothness
    return smoothness
