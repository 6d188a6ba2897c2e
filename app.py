"""Serve the page of a run: `python app.py RUN [--host --port --auth user:password --root-path]`.

The same as `lite-c2f app RUN`.
"""

import sys

from lite_c2f.cli import main

if __name__ == "__main__":
    main(["app", *sys.argv[1:]])
