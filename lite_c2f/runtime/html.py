"""HTML templates: one Jinja2 environment for a room's pages, in which every value is escaped."""

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@functools.cache
def environment(package: str) -> Environment:
    """The templates of a package's folder `templates`. A value is text unless it is markupsafe.Markup.

    package: such as "lite_c2f.ui". A name that a template uses and is not given raises jinja2.UndefinedError.
    """
    loader = PackageLoader(package, "templates")
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,  # compiled once: a page is drawn anew with every token
    )


def render(package: str, template: str, **values: Any) -> str:
    """A template of a package, filled in.

    >>> render("lite_c2f.ui", "head.html", name="<b>", about="")
    '<div class="head" title=""><b>&lt;b&gt;</b> <span></span></div>'
    """
    return environment(package).get_template(template).render(**values)
