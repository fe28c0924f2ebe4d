"""Entry point of the `hedgerow` command and of `python -m hedgerow`."""

import _signal  # type: ignore[import-not-found]  # builtin, while `signal` itself has imports to interrupt


def main() -> None:
    """Run the command line."""
    # Loading it takes 0.2 s, in which Ctrl-C would show a traceback from whatever import is running.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from hedgerow.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
