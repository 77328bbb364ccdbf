"""The history checker as a program: see `judge.cli`."""

import sys

from judge.cli import main

sys.exit(main())
