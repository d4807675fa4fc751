"""`epicrisis push` as a file of its own."""

import sys

from epicrisis.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command("push"))
