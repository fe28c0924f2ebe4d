"""Reads configuration files: YAML 1.2 into a `NodeConfig`, with errors that point to the line."""

from hedgerow.configfile.document import (
    BadConfigFile,
    Document,
    Problem,
    explain,
    known_keys,
    load,
    merge,
    parse,
    schema,
)

__all__ = ["BadConfigFile", "Document", "Problem", "explain", "known_keys", "load", "merge", "parse", "schema"]
