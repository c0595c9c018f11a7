__version__ = "0.1.0"


def __getattr__(name):
    "`from smoothinterp import smoothness` imports PyTorch only when it is asked for."
    if name != 'smoothness': raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from smoothinterp.report import smoothness
    return smoothness
