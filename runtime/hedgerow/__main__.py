"""Entry point of the `hedgerow` command and of `python -m hedgerow`."""

import signal


def main() -> None:
    """Run the command line."""
    # Loading it takes 0.2 s, in which Ctrl-C would show a traceback from whatever import is running.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hedgerow.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
