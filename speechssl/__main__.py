"""`python -m speechssl`: the command, where its script is not on the path."""

import sys

from speechssl.cli import main

sys.exit(main())
