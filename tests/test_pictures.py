"The numbers beside each committed picture are those that it was drawn from."
from pathlib import Path

import pytest
from PIL import Image

from smoothinterp.core import frame_digest, load_frame

FIGURES = Path(__file__).parent.parent/'figures'
# pictures of a marked width and of the trial study are a reader's own; explore.png is a screenshot
PICTURES = sorted(p for p in FIGURES.glob('*.png') if '-width' not in p.stem and '-smoke' not in p.stem
                  and p.stem != 'explore')


@pytest.mark.parametrize('png', PICTURES, ids=lambda p: p.stem)
def test_a_picture_was_drawn_from_the_numbers_beside_it(png):
    "A stale one is drawn again by `papermill nbs/NAME.ipynb -p study STUDY`, see figures/README.md."
    told = f'drawn from numbers with SHA-256 {frame_digest(load_frame(png.with_suffix(".parquet"))[0])}'
    assert Image.open(png).text.get('Source') == told
    assert told in png.with_suffix('.svg').read_text()


def test_every_picture_has_all_three_files():
    stems = [{p.stem for p in FIGURES.glob(f'*.{ending}') if '-width' not in p.stem and '-smoke' not in p.stem}
             for ending in ('png', 'svg', 'parquet')]
    assert stems[0] - {'explore'} == stems[1] == stems[2] - {'published'}
