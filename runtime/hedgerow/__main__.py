"""`python -m hedgerow` is `hedgerow`."""

from hedgerow.cli.main import main

main()
