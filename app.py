"""Serve the compare view of a finished run: `python app.py RUN`. The same as `lite-c2f app RUN`."""

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code: 2 for what the user can fix, told in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python app.py runs/toy --port 7860", allow_abbrev=False
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="a finished run directory (default: runs/toy)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve; other than this machine needs --auth")
    parser.add_argument("--port", type=int, default=7860, help="port to serve (default: 7860)")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask visitors for these")
    parser.add_argument("--root-path", help="where a reverse proxy serves the page, a path or a URL")
    given = parser.parse_args(arguments)

    from lite_c2f.errors import C2FError, ConfigError

    try:
        auth = None
        if given.auth is not None:
            user, _, password = given.auth.partition(":")
            if not (user and password):
                raise ConfigError.because("--auth without a user and a password", "user:password", "give both")
            auth = (user, password)
        from lite_c2f.ui.app import launch

        launch(given.run, given.host, given.port, auth, given.root_path)
    except C2FError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
