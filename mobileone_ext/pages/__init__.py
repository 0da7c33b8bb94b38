"""Reports as pages: one HTML file each, which opens without a server or a network.

``*.html`` are jinja2's templates, which escape what they are given; ``page.css`` and ``*.js`` go into the page with the
data, as JSON. A browser runs no script but the page's own, whatever stood in a name, by the page's policy.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..files import write_text
from ..text import as_text

_HERE = Path(__file__).parent
_SCRIPTS = ('charts.js', 'page.js')
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data:; base-uri 'none'; form-action 'none'"
)


def write_page(path: str | Path, template: str, data: Mapping[str, Any], **shown: Any) -> None:
    """Write the page ``path``, whole or not at all.

    Args:
        template: the name of a file here.
        data: what its scripts read, as JSON has it.
        shown: what the template shows, by name.

    Raises:
        ValueError: for NaN or infinities in ``data``.
    """
    style, scripts = _read('page.css'), '\n'.join(map(_read, _SCRIPTS))
    text = json.dumps(data, allow_nan=False, separators=(',', ':')).replace('<', r'\u003c')  # no name ends the element
    policy = _POLICY.format(script=_hash(scripts), style=_hash(style))
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template(template).render(style=style, scripts=scripts, data=text, policy=policy, **shown)
    write_text(as_text(html), path)  # a name may hold bytes that are not UTF-8


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding='utf-8')


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
