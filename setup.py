import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


class BuildPy(build_py):
    "Copy the committed study `digits` into the package. `pip install -e` needs no copy."

    def run(self):
        super().run()
        if self.editable_mode: return
        copy = Path(self.build_lib) / cfg["lib_path"] / "committed" / "digits"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(here / "checkpoints" / "digits", copy)


setup(
    cmdclass={"build_py": BuildPy},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    packages=[cfg["lib_path"]],
    package_data={cfg["lib_path"]: ["*.mplstyle", "py.typed"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split()
                    for extra in ("lab", "ray", "docs", "dev", "bench", "monitor", "examples")},
    entry_points={
        "console_scripts": ["smoothinterp = smoothinterp.cli:main"],
        "papermill.engine": ["smoothinterp = smoothinterp.papermill_plugin:Engine"],
    },
)
