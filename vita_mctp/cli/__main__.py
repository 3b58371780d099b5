"""`python -m vita_mctp.cli`."""

import sys

from vita_mctp.cli import main

sys.exit(main())
