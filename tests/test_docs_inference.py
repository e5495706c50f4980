"""What the page on inference shows must run."""

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "inference.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore::rosenblatt.inference.ImportanceWarning")
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number, tmp_path):
    script = tmp_path / "snippet.py"
    # A tenth of the steps: whether fits are good is asked elsewhere.
    script.write_text(re.sub(r"steps=(\d+)0\b", r"steps=\1", SNIPPETS[number]))
    made = runpy.run_path(str(script))
    posterior = made.get("posterior")
    if posterior is not None:
        assert len(posterior.history) == posterior.history[-1]["step"]
