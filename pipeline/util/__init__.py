"""Files, progress, the machine and the memo: what knows nothing of images; and the log of all packages."""

import logging

log = logging.getLogger("tlpipe")
