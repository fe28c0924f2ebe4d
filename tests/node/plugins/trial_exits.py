import sys

sys.exit("a licence is needed")
