"""`python -m hookedvid.cli`, where no `hookedvid` is on the path."""

import sys

from hookedvid.cli.commands import main

sys.exit(main())
