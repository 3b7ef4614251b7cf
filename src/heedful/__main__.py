"""`python -m heedful` is the command line."""

import sys

from heedful.cli import main

sys.exit(main())
