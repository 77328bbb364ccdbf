"""The history checker as a program: see `judge.check`."""

import sys

from judge.check import main

sys.exit(main())
