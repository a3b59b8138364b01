"""The command ``star``, which waits as soon as a log has so many rows, until it is killed or a signal is to end it:
``python paused.py LOG ROWS WORDS...``

Whoever kills it there finds it there, however fast it was and however late the killer is.
"""

import sys
import time
from pathlib import Path

from star_upstream import cli
from star_upstream.training import run_folder, stop

file, rows = Path(sys.argv[1]), int(sys.argv[2])
log = run_folder.RunFolder.log


class Request(stop.Request):
    def __init__(self):
        Request.latest = self


def pausing(self, row):
    log(self, row)
    while self.lead and self.path / "log.csv" == file and len(self._rows()) >= rows and not Request.latest.name:
        time.sleep(0.05)


stop.Request = Request
run_folder.RunFolder.log = pausing
if __name__ == "__main__":
    cli.main(sys.argv[3:])
