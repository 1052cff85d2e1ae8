"""The documentation as a site, which ``make docs`` builds in ``build/docs``. Its pages are plain Markdown."""

import re
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.application import Sphinx

from docs.reference import reference

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "troll-rft"
author = "The troll-rft contributors"
extensions = ["myst_parser", "sphinx_copybutton"]
html_theme = "furo"
html_title = "troll-rft"
html_static_path: list[str] = []
html_extra_path = ["figures"]
exclude_patterns = ["figures/*.py"]
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 4
# MathML needs no script, from here or from elsewhere.
html_math_renderer = "mathml"

FROM_THE_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md"}
"""Pages that lie where people look for them in a repository."""


def write_pages(_: Sphinx) -> None:
    """The pages that are made of something else; git ignores them."""
    for page, source in FROM_THE_ROOT.items():
        text = (ROOT / source).read_text()
        text = text.replace("](docs/", "](").replace("](SECURITY.md)", "](security.md)")
        (HERE / page).write_text(text.replace("](CHANGELOG.md)", "](changelog.md)"))
    (HERE / "reference.md").write_text(reference())


def visit_math(self: Any, node: Any) -> None:
    display = "block" if node.tagname == "math_block" else "inline"
    self.body.append(convert(re.sub(r"\\big\b", "", node.astext()), display=display))
    raise SkipNode


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_pages)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
