"""`epicrisis generate` for launchers that want a file, as `accelerate launch` does."""

import sys

from epicrisis.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command("generate"))
