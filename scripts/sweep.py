"""`epicrisis sweep` for those who want a file."""

import sys

from epicrisis.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command("sweep"))
