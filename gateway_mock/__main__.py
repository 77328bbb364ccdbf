"""`python -m gateway_mock`: see `gateway_mock.cli`."""

import sys

from gateway_mock.cli import main

if __name__ == "__main__":
    sys.exit(main())
