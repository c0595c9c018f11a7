from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    packages=[cfg["lib_path"]],
    package_data={cfg["lib_path"]: ["*.mplstyle"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("lab", "dev", "ray", "bench")},
    entry_points={
        "console_scripts": ["smoothinterp = smoothinterp.cli:main"],
        "papermill.engine": ["smoothinterp = smoothinterp.papermill_plugin:Engine"],
    },
)
