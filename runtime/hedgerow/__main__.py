"""Makes `python -m hedgerow` the same as `hedgerow`."""

from hedgerow.cli.main import main

main()
