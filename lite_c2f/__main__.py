"""`python -m lite_c2f` is `lite-c2f`."""

from lite_c2f.cli import main

main()
