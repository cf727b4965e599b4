"""``python -m relay.admin`` is ``relay-admin``."""

import sys

from relay.admin.command import main

sys.exit(main())
