"""`python -m lorakit`: the `lorakit` command, where its script is not on the PATH."""

import sys
from importlib import import_module

if __name__ == "__main__":
    # by name, like the commands themselves: no layer is added on top of the command line
    sys.exit(import_module("lorakit.cli.__main__").main())
