"README.md is nbs/index.ipynb, seen from the root: `python tests/readme.py` writes it."
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def readme() -> str:
    done = subprocess.run([str(Path(sys.executable).parent/'jupyter-nbconvert'), '--to', 'markdown', '--stdout', 'nbs/index.ipynb'],
                          cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {'PYTHONWARNINGS': 'ignore'})
    return done.stdout.replace('../', '').replace('\n\n\n', '\n\n').replace('```\nimport', '```python\nimport')


if __name__ == '__main__': (ROOT/'README.md').write_text(readme())
